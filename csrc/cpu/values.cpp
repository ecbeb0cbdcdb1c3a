// What the checks of values that are always made read from a tensor.
#include <limits>

#include "../ops.h"
#include "vector_math.h"

namespace mdssd {
namespace {

template <class S>
MDSSD_SIMD double largest(const S* numbers, int64_t count) {
  using T = Wide<S>;
  int nan = 0;
  for (int64_t i = 0; i < count; ++i) nan |= widen(numbers[i]) != widen(numbers[i]);
  if (nan) return std::numeric_limits<double>::quiet_NaN();
  return double(lane_max<T>(count, -std::numeric_limits<T>::infinity(),
                            [=](int64_t i) { return widen(numbers[i]); }));
}

}  // namespace

double largest_cpu(const void* numbers, int64_t count, DType dtype) {
  double result = 0;
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    result = largest(static_cast<const S*>(numbers), count);
  });
  return result;
}

double number_cpu(const void* numbers, int64_t place, DType dtype) {
  double result = 0;
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    result = double(widen(static_cast<const S*>(numbers)[place]));
  });
  return result;
}

int64_t lowest_cpu(const int64_t* numbers, int64_t count) {
  int64_t lowest = std::numeric_limits<int64_t>::max();
  for (int64_t i = 0; i < count; ++i) lowest = numbers[i] < lowest ? numbers[i] : lowest;
  return lowest;
}

}  // namespace mdssd
