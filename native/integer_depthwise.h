// A convolution of each channel with its own filter: four taps in a row are a dword of bytes, taken
// from the plane by a shuffle or two. Included by integer_impl.h.

namespace integers {

#if defined(__AVX512VNNI__)

FTWT_INLINE __m512i arranged(__m512i bytes, const ByteOrder& order, uint64_t placed) {
#if defined(__AVX512VBMI__)
  return _mm512_maskz_permutexvar_epi8(placed, _mm512_loadu_si512(order.bytes), bytes);
#else
  const __m512i near = _mm512_permutexvar_epi32(_mm512_loadu_si512(order.dwords), bytes);
  return _mm512_maskz_shuffle_epi8(placed, near, _mm512_loadu_si512(order.within));
#endif
}

static void depthwise(const IntegerDepthwise& d) {
  constexpr int kSome = 16;  // vectors at a time
  const __m512i zero = _mm512_set1_epi32(zero_of(d.type));
  for (int i = d.first_filter; i < d.last_filter; ++i) {
    const int c = d.filters[i];
    const uint8_t* plane = d.input + static_cast<int64_t>(c) * d.positions;
    const int32_t* weights = d.weights + static_cast<int64_t>(c) * d.taps;
    const bool active = d.active[c];
    for (int v = 0; v < d.vector_count; v += kSome) {
      alignas(64) int32_t sums[kSome * kLanes];
      const int n = min(kSome, d.vector_count - v);
      const Quad* quad = d.quads + static_cast<int64_t>(v) * d.taps;
      for (int k = 0; k < n; ++k) {
        __m512i sum = _mm512_setzero_si512();
        if (active) {
          sum = _mm512_set1_epi32(-d.less[c]);
          for (int t = 0; t < d.taps; ++t, ++quad) {
            const __m512i bytes = _mm512_maskz_loadu_epi8(quad->read, plane + quad->offset);
            const __m512i dwords = arranged(bytes, d.orders[quad->order], quad->placed);
            sum = _mm512_dpbusd_epi32(sum, _mm512_xor_si512(dwords, zero), _mm512_set1_epi32(weights[t]));
          }
          FTWT_PRODUCTS(integer, int64_t{4} * d.taps * d.vectors[v + k].count);
        }
        _mm512_store_si512(sums + k * kLanes, sum);
      }
      finish(*d.epilogue, c, d.vectors + v, n, sums);
    }
  }
}

#else

constexpr void (*depthwise)(const IntegerDepthwise&) = nullptr;

#endif

}  // namespace integers
