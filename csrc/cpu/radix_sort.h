// A stable radix sort of 32-bit indices by unsigned keys, in linear time.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "types.h"

namespace mdssd {

template <class Key>
struct Keyed {
  Key key;
  int32_t index;
};

// Returns a key that increases as the score decreases. NaN has the lowest key, and 0 and -0 have
// the same.
template <class T>
MDSSD_INLINE auto falling_key(T score) {
  using Key = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  constexpr Key sign = Key(1) << (8 * sizeof(T) - 1);
  const Key bits = bit_cast<Key>(score + T(0));
  const Key rising = bits & sign ? ~bits : bits | sign;
  return score != score ? Key(0) : Key(~rising);
}

template <class T>
using KeyOf = decltype(falling_key(T()));

// Does one counting sort per digit, from the least significant, and skips digits in which all keys
// are equal. `items` and `spare` have the same size and may be swapped.
template <int kBits, class Key>
void radix_sort(std::vector<Keyed<Key>>& items, std::vector<Keyed<Key>>& spare) {
  constexpr int kDigits = (8 * int(sizeof(Key)) + kBits - 1) / kBits;
  constexpr Key kMask = (Key(1) << kBits) - 1;
  Key differing = 0;  // the bits in which keys differ
  for (const auto& item : items) differing |= item.key ^ items[0].key;
  for (int d = 0; d < kDigits; ++d) {
    if (!(differing >> (d * kBits) & kMask)) continue;
    std::array<int32_t, size_t(1) << kBits> places = {};
    for (const auto& item : items) ++places[(item.key >> (d * kBits)) & kMask];
    int32_t sum = 0;
    for (int32_t& place : places) {
      const int32_t count = place;
      place = sum;
      sum += count;
    }
    for (const auto& item : items) spare[places[(item.key >> (d * kBits)) & kMask]++] = item;
    items.swap(spare);
  }
}

template <class Key>
void radix_sort(std::vector<Keyed<Key>>& items) {
  std::vector<Keyed<Key>> spare(items.size());
  // Wider digits need 2048 counters each, which pays off from about as many items.
  items.size() < 2048 ? radix_sort<8>(items, spare) : radix_sort<11>(items, spare);
}

}  // namespace mdssd
