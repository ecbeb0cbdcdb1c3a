// Writes that pass by the caches, for results larger than those: a cached write would first read
// the line that it replaces.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace mdssd {

constexpr int64_t kStreamedBytes = int64_t{8} << 20;  // results from this size on are streamed

// Fills with zero bytes, a part of a result of `total` bytes.
inline void fill_zeros(void* out, int64_t bytes, int64_t total) {
#ifdef __SSE2__
  if (total < kStreamedBytes) {
    std::memset(out, 0, bytes);
    return;
  }
  auto* at = static_cast<char*>(out);
  char* const end = at + bytes;
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<intptr_t>(at) & 15);
  std::memset(at, 0, head);
  for (at += head; end - at >= 16; at += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(at), _mm_setzero_si128());
  std::memset(at, 0, end - at);
  _mm_sfence();  // before other threads are told that the result is there
#else
  (void)total;
  std::memset(out, 0, bytes);
#endif
}

}  // namespace mdssd
