// sigmoid_focal_loss and its gradient.
//
// The forward pass has two launches: focal_kernel reads the logits once, and finish_groups_kernel
// adds the sums of its blocks (group_sums.h). The backward pass is one launch, which reads the
// logits and writes their gradients. A thread handles 16 bytes of logits at a time and walks
// through their rows and classes, so that it divides only once.
//
// Both passes are expected to take about as long for their arithmetic, some 45 operations per
// logit, as for the memory (prediction: benchmarks/NOTES.md, "losses of one-stage detectors on a
// GPU").
#include <type_traits>

#include "../loss_math.h"
#include "../ops.h"
#include "group_sums.h"

namespace mdssd {
namespace {

struct ExpOfTerm {
  template <class T>
  __device__ T operator()(T x) const {
    return exp_of_term(x);
  }
};

template <class S>
constexpr int kNumbers = int(16 / sizeof(S));  // in 16 bytes

// The arguments of both passes.
template <class S>
struct Input {
  using T = Wide<S>;
  const S* logits;
  const int64_t* labels;
  int64_t group_numbers, numbers;  // logits of a group, and of all
  int classes;
  unsigned per_group;  // blocks
  T positive_weight, negative_weight, gamma;
  Power power;
};

// The logits that are loaded together. `first` is the index of x[0], which need not belong to the
// block's group; those from `begin` to `end` - 1 do.
template <class S>
struct Numbers {
  int64_t first;
  int begin, end;
  S x[kNumbers<S>];
};

// Calls visit(numbers, k, label, column) for each logit of the block's group that is this thread's,
// and after kNumbers of them store(numbers).
template <class S, class Visit, class Store>
__device__ void for_each_logit(const Input<S>& in, const Visit& visit, const Store& store) {
  constexpr int kCount = kNumbers<S>;
  const int64_t group = blockIdx.x / in.per_group, begin = group * in.group_numbers;
  const int64_t end = begin + in.group_numbers, rows = in.numbers / in.classes;
  const int64_t step = int64_t(in.per_group) * kSumThreads * kCount;
  const int64_t step_rows = step / in.classes;
  const int step_columns = int(step % in.classes);
  const int64_t place = int64_t(blockIdx.x % in.per_group) * kSumThreads + threadIdx.x;
  int64_t first = begin / kCount * kCount + place * kCount, next_row = first / in.classes;
  int next_column = int(first % in.classes);
  for (; first < end; first += step) {
    Numbers<S> of;
    of.first = first;
    of.begin = first < begin ? int(begin - first) : 0;
    of.end = end - first < kCount ? int(end - first) : kCount;
    if (first + kCount <= in.numbers) {
      const uint4 loaded = *reinterpret_cast<const uint4*>(in.logits + first);
      memcpy(of.x, &loaded, sizeof(loaded));
    } else {
#pragma unroll
      for (int k = 0; k < kCount; ++k)
        if (first + k < in.numbers) of.x[k] = in.logits[first + k];
    }
    int64_t row = next_row, label = in.labels[row];
    int column = next_column;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (k >= of.begin && k < of.end) visit(of, k, label, column);
      if (++column < in.classes) continue;
      column = 0;
      if (++row < rows) label = in.labels[row];
    }
    store(of);
    next_row += step_rows;
    next_column += step_columns;
    if (next_column >= in.classes) {
      next_column -= in.classes;
      ++next_row;
    }
  }
}

// A label that is neither -1, nor 0, nor a class makes its row NaN, so that the caller notices.
template <class S>
__device__ bool is_label(const Input<S>& in, int64_t label) {
  return label >= -1 && label <= in.classes;
}

template <class S>
__global__ void __launch_bounds__(kSumThreads)
    focal_kernel(Input<S> in, GroupSum* __restrict__ sums) {
  using T = Wide<S>;
  double loss = 0;
  int64_t positives = 0;
  T sum = 0;
  for_each_logit<S>(
      in,
      [&](const Numbers<S>& of, int k, int64_t label, int column) {
        if (label == -1) return;
        const T x = widen(of.x[k]);
        const bool own = label - 1 == column;
        const T weight = own ? in.positive_weight : in.negative_weight;
        const T term = weight * focal(own ? x : -x, in.power, in.gamma, ExpOfTerm{});
        sum += is_label(in, label) ? term : T(NAN);
        positives += own;
      },
      [&](const Numbers<S>&) {
        loss += double(sum);
        sum = 0;
      });
  store_group_sum(loss, positives, sums);
}

template <class S>
__global__ void __launch_bounds__(kSumThreads, 4)
    sigmoid_focal_loss_backward_kernel(Input<S> in, const Wide<S>* __restrict__ grad_loss,
                                       const int64_t* __restrict__ normaliser,
                                       S* __restrict__ grad_logits) {
  using T = Wide<S>;
  const unsigned group = blockIdx.x / in.per_group;
  const T scale = grad_loss[group] / T(normaliser[group]);
  S result[kNumbers<S>];
  for_each_logit<S>(
      in,
      [&](const Numbers<S>& of, int k, int64_t label, int column) {
        const T x = widen(of.x[k]);
        const bool own = label - 1 == column;
        const T factor = scale * (own ? -in.positive_weight : in.negative_weight);
        const T slope = factor * focal_slope(own ? x : -x, in.power, in.gamma, ExpOfTerm{});
        result[k] = narrow<S>(label == -1 ? T(0) : is_label(in, label) ? slope : T(NAN));
      },
      [&](const Numbers<S>& of) {
        if (of.begin == 0 && of.end == kNumbers<S>) {
          uint4 stored;
          memcpy(&stored, result, sizeof(stored));
          *reinterpret_cast<uint4*>(grad_logits + of.first) = stored;
        } else {
#pragma unroll
          for (int k = 0; k < kNumbers<S>; ++k)
            if (k >= of.begin && k < of.end) grad_logits[of.first + k] = result[k];
        }
      });
}

template <class S>
Input<S> make_input(const void* logits, const int64_t* labels, int64_t groups, int64_t group_rows,
                    int64_t classes, const SigmoidFocalLossSettings& settings) {
  using T = Wide<S>;
  if (classes > 0x7fffffff)
    throw std::length_error("sigmoid_focal_loss: more than 2^31 - 1 classes");
  const int64_t numbers = group_rows * classes;
  // Two steps of a block at least, which halves the number of sums.
  const unsigned per_group = blocks_per_group(groups, numbers, 2 * kSumThreads * kNumbers<S>);
  return {static_cast<const S*>(logits), labels, numbers, groups * numbers, int(classes), per_group,
          T(settings.positive_weight), T(settings.negative_weight), T(settings.gamma),
          power_of(settings.gamma)};
}

}  // namespace

int64_t group_sums_workspace(int64_t groups) {
  Workspace memory(nullptr);
  take_sums(memory, groups);
  return memory.bytes();
}

void sigmoid_focal_loss_cuda(const void* logits, const int64_t* labels, int64_t groups,
                             int64_t group_rows, int64_t classes,
                             const SigmoidFocalLossSettings& settings, void* loss,
                             int64_t* normaliser, void* workspace, DType dtype, Stream stream) {
  const char* op = "sigmoid_focal_loss";
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    const Input<S> in = make_input<S>(logits, labels, groups, group_rows, classes, settings);
    Workspace memory(workspace);
    GroupSum* const sums = take_sums(memory, groups);
    launch(op, focal_kernel<S>, unsigned(groups) * in.per_group, kSumThreads, stream, in, sums);
    finish_groups<Wide<S>>(op, sums, groups, in.per_group, settings.normalise, loss, normaliser,
                           stream);
  });
}

void sigmoid_focal_loss_backward_cuda(const void* grad_loss, const void* logits,
                                      const int64_t* labels, const int64_t* normaliser,
                                      int64_t groups, int64_t group_rows, int64_t classes,
                                      const SigmoidFocalLossSettings& settings, void* grad_logits,
                                      DType dtype, Stream stream) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    const Input<S> in = make_input<S>(logits, labels, groups, group_rows, classes, settings);
    launch("sigmoid_focal_loss_backward", sigmoid_focal_loss_backward_kernel<S>,
           unsigned(groups) * in.per_group, kSumThreads, stream, in,
           static_cast<const Wide<S>*>(grad_loss), normaliser, static_cast<S*>(grad_logits));
  });
}

}  // namespace mdssd
