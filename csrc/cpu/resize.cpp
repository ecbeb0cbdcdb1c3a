// resize: bilinear interpolation of uint8 images. Each task computes one row of the result from two
// rows of the input; the taps of the columns are computed once per call.
#include <vector>

#include "../ops.h"
#include "../resize_math.h"
#include "parallel.h"

namespace mdssd {

constexpr int64_t kParallelFrom = 1 << 14;  // starting threads takes longer than fewer bytes

void resize_cpu(const uint8_t* images, int64_t num_images, int64_t height, int64_t width,
                int64_t channels, int64_t out_height, int64_t out_width, uint8_t* out,
                int threads) {
  std::vector<Tap> columns(out_width);
  for (int64_t x = 0; x < out_width; ++x) columns[x] = tap(x, width, out_width);
  if (num_images * out_height * out_width * channels < kParallelFrom) threads = 1;
  parallel_for(threads, num_images * out_height, [&](int64_t task) {
    const int64_t image = task / out_height;
    const Tap row = tap(task % out_height, height, out_height);
    const uint8_t* top = images + (image * height + row.index) * width * channels;
    const uint8_t* bottom = row.fraction ? top + width * channels : top;
    uint8_t* to = out + task * out_width * channels;
    for (const Tap& column : columns) {
      const int64_t left = column.index * channels;
      const int64_t right = column.fraction ? left + channels : left;
      for (int64_t c = 0; c < channels; ++c)
        *to++ = blend_four(top[left + c], top[right + c], bottom[left + c], bottom[right + c],
                           column.fraction, row.fraction);
    }
  });
}

}  // namespace mdssd
