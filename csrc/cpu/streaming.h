// Non-temporal stores for results that do not fit into the caches. An ordinary store first reads
// the cache line that it writes to.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace mdssd {

constexpr int64_t kStreamedBytes = int64_t{8} << 20;  // results of this size or more are streamed

// Must be called after stream_fill and stream_copy, before other threads may read the result.
inline void finish_streaming() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// Fills part of a result of `total` bytes with the byte `value`.
inline void stream_fill(void* out, int value, int64_t bytes, int64_t total) {
#ifdef __SSE2__
  if (total >= kStreamedBytes) {
    auto* at = static_cast<char*>(out);
    char* const end = at + bytes;
    const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<intptr_t>(at) & 15);
    std::memset(at, value, head);
    const __m128i vector = _mm_set1_epi8(char(value));
    for (at += head; end - at >= 16; at += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(at), vector);
    std::memset(at, value, end - at);
    return;
  }
#endif
  (void)total;
  std::memset(out, value, bytes);
}

// Copies to part of a result of `total` bytes.
inline void stream_copy(void* out, const void* from, int64_t bytes, int64_t total) {
#ifdef __SSE2__
  if (total >= kStreamedBytes) {
    auto* at = static_cast<char*>(out);
    const auto* source = static_cast<const char*>(from);
    char* const end = at + bytes;
    const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<intptr_t>(at) & 15);
    std::memcpy(at, source, head);
    source += head;
    for (at += head; end - at >= 16; at += 16, source += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(at),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
    std::memcpy(at, source, end - at);
    return;
  }
#endif
  (void)total;
  std::memcpy(out, from, bytes);
}

// Fills part of a result with zero bytes and calls finish_streaming.
inline void fill_zeros(void* out, int64_t bytes, int64_t total) {
  stream_fill(out, 0, bytes, total);
  finish_streaming();
}

}  // namespace mdssd
