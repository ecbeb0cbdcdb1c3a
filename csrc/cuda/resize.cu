// resize: bilinear interpolation of uint8 images.
//
// Each thread computes one pixel of the result with all its channels. Neighbouring threads read the
// same or nearby pixels, so the caches serve all reads but the first and no shared memory is
// needed.
#include "../ops.h"
#include "../resize_math.h"
#include "runtime.h"

namespace mdssd {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    resize_kernel(const uint8_t* __restrict__ images, int64_t pixels, int64_t height, int64_t width,
                  int64_t channels, int64_t out_height, int64_t out_width,
                  uint8_t* __restrict__ out) {
  const int64_t pixel = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (pixel >= pixels) return;
  const int64_t line = pixel / out_width, image = line / out_height;
  const Tap column = tap(pixel - line * out_width, width, out_width);
  const Tap row = tap(line - image * out_height, height, out_height);
  const uint8_t* const top =
      images + ((image * height + row.index) * width + column.index) * channels;
  const int64_t right = column.fraction ? channels : 0;
  const int64_t down = row.fraction ? width * channels : 0;
  for (int64_t c = 0; c < channels; ++c)
    out[pixel * channels + c] =
        blend_four(top[c], top[right + c], top[down + c], top[down + right + c], column.fraction,
                   row.fraction);
}

}  // namespace

void resize_cuda(const uint8_t* images, int64_t num_images, int64_t height, int64_t width,
                 int64_t channels, int64_t out_height, int64_t out_width, uint8_t* out,
                 Stream stream) {
  const int64_t pixels = num_images * out_height * out_width;
  launch("resize", resize_kernel, grid_size(pixels, kThreads), kThreads, stream, images, pixels,
         height, width, channels, out_height, out_width, out);
}

}  // namespace mdssd
