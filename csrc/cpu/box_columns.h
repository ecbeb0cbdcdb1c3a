// Any number of boxes with one array per coordinate and one for the areas, which vector loops read
// without shuffles.
#pragma once

#include <cstdint>
#include <vector>

#include "../box_math.h"
#include "types.h"

namespace mdssd {

template <class S>
MDSSD_INLINE Box<Wide<S>> load_box(const S* rows, int64_t i) {
  return {widen(rows[4 * i]), widen(rows[4 * i + 1]), widen(rows[4 * i + 2]),
          widen(rows[4 * i + 3])};
}

template <class S>
MDSSD_INLINE void store4(S* out, Wide<S> a, Wide<S> b, Wide<S> c, Wide<S> d) {
  out[0] = narrow<S>(a);
  out[1] = narrow<S>(b);
  out[2] = narrow<S>(c);
  out[3] = narrow<S>(d);
}

template <class T>
class BoxColumns {
 public:
  explicit BoxColumns(int64_t count) : count_(count), data_(5 * count) {}

  template <class S>
  BoxColumns(const S* rows, int64_t count) : BoxColumns(count) {
    for (int64_t i = 0; i < count; ++i) set(i, load_box(rows, i));
  }

  void set(int64_t i, Box<T> b) {
    column(0)[i] = b.x1;
    column(1)[i] = b.y1;
    column(2)[i] = b.x2;
    column(3)[i] = b.y2;
    column(4)[i] = mdssd::area(b);
  }

  const T* x1() const { return column(0); }
  const T* y1() const { return column(1); }
  const T* x2() const { return column(2); }
  const T* y2() const { return column(3); }
  const T* area() const { return column(4); }
  Box<T> box(int64_t i) const { return {x1()[i], y1()[i], x2()[i], y2()[i]}; }

 private:
  T* column(int k) { return data_.data() + k * count_; }
  const T* column(int k) const { return data_.data() + k * count_; }

  int64_t count_;
  std::vector<T> data_;
};

}  // namespace mdssd
