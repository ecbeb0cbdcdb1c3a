// box_loss and its gradient.
//
// The forward pass has two launches: box_loss_kernel reads the labels, and the offsets and priors
// of the positives, which it decodes and compares in registers; finish_groups_kernel adds the sums
// of its blocks (group_sums.h). The backward pass is one launch: it reads the same and writes the
// gradient, nearly all zeros. Both are bound by the memory.
#include "../loss_math.h"
#include "../ops.h"
#include "group_sums.h"

namespace mdssd {
namespace {

// The arguments of both passes.
template <class S>
struct Input {
  using T = Wide<S>;
  const S* loc;
  const T *loc_targets, *priors;
  const int64_t* labels;
  int64_t group_rows, num_priors;
  BoxLossNumbers<T> numbers;

  __device__ BoxLoss<T> operator()(int64_t row) const {
    const Box<T> o = load_box(loc, row), t = load_box(loc_targets, row);
    const Box<T> prior = load_box(priors, row % num_priors);
    return box_loss(Offsets<T>{o.x1, o.y1, o.x2, o.y2}, Offsets<T>{t.x1, t.y1, t.x2, t.y2},
                    prior.x2, prior.y2, numbers, Exp{});
  }
};

template <class S>
__global__ void __launch_bounds__(kSumThreads)
    box_loss_kernel(Input<S> in, unsigned per_group, GroupSum* __restrict__ sums) {
  const int64_t begin = int64_t(blockIdx.x / per_group) * in.group_rows;
  const int64_t place = int64_t(blockIdx.x % per_group) * kSumThreads + threadIdx.x;
  double loss = 0;
  int64_t positives = 0;
  for (int64_t i = place; i < in.group_rows; i += int64_t(per_group) * kSumThreads) {
    if (in.labels[begin + i] <= 0) continue;
    loss += double(in(begin + i).loss);
    ++positives;
  }
  store_group_sum(loss, positives, sums);
}

template <class S>
__global__ void __launch_bounds__(kSumThreads)
    box_loss_backward_kernel(Input<S> in, int64_t rows, const Wide<S>* __restrict__ grad_loss,
                             const int64_t* __restrict__ normaliser, S* __restrict__ grad_loc) {
  using T = Wide<S>;
  const int64_t row = int64_t(blockIdx.x) * kSumThreads + threadIdx.x;
  if (row >= rows) return;
  Offsets<T> slope = {0, 0, 0, 0};
  T scale = 0;
  if (in.labels[row] > 0) {
    const int64_t group = row / in.group_rows;
    scale = grad_loss[group] / T(normaliser[group]);
    slope = in(row).slope;
  }
  store_four(grad_loc, row, slope.x * scale, slope.y * scale, slope.w * scale, slope.h * scale);
}

template <class S>
Input<S> make_input(const void* loc, const void* loc_targets, const int64_t* labels,
                    const void* priors, int64_t group_rows, int64_t num_priors,
                    const BoxLossSettings& settings) {
  using T = Wide<S>;
  return {static_cast<const S*>(loc), static_cast<const T*>(loc_targets),
          static_cast<const T*>(priors), labels, group_rows, num_priors,
          BoxLossNumbers<T>(settings)};
}

}  // namespace

void box_loss_cuda(const void* loc, const void* loc_targets, const int64_t* labels,
                   const void* priors, int64_t groups, int64_t group_rows, int64_t num_priors,
                   const BoxLossSettings& settings, void* loss, int64_t* normaliser,
                   void* workspace, DType dtype, Stream stream) {
  const char* op = "box_loss";
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    Workspace memory(workspace);
    GroupSum* const sums = take_sums(memory, groups);
    // Four steps of a block at least, which leaves fewer sums.
    const unsigned per_group = blocks_per_group(groups, group_rows, 4 * kSumThreads);
    launch(op, box_loss_kernel<S>, unsigned(groups) * per_group, kSumThreads, stream,
           make_input<S>(loc, loc_targets, labels, priors, group_rows, num_priors, settings),
           per_group, sums);
    finish_groups<Wide<S>>(op, sums, groups, per_group, settings.normalise, loss, normaliser,
                           stream);
  });
}

void box_loss_backward_cuda(const void* grad_loss, const void* loc, const void* loc_targets,
                            const int64_t* labels, const void* priors, const int64_t* normaliser,
                            int64_t groups, int64_t group_rows, int64_t num_priors,
                            const BoxLossSettings& settings, void* grad_loc, DType dtype,
                            Stream stream) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    launch("box_loss_backward", box_loss_backward_kernel<S>,
           grid_size(groups * group_rows, kSumThreads), kSumThreads, stream,
           make_input<S>(loc, loc_targets, labels, priors, group_rows, num_priors, settings),
           groups * group_rows, static_cast<const Wide<S>*>(grad_loss), normaliser,
           static_cast<S*>(grad_loc));
  });
}

}  // namespace mdssd
