// A convolution of each channel with its own filter. Included by integer_impl.h.

namespace integers {

#if defined(__AVX512VNNI__)

// Four taps in a row are a dword of bytes, taken from the plane by a shuffle or two.

constexpr int kSome = 16;  // vectors whose sums are finished together

FTWT_INLINE __m512i arranged(__m512i bytes, const ByteOrder& order, uint64_t placed = ~uint64_t{0}) {
#if defined(__AVX512VBMI__)
  return _mm512_maskz_permutexvar_epi8(placed, _mm512_loadu_si512(order.bytes), bytes);
#else
  const __m512i near = _mm512_permutexvar_epi32(_mm512_loadu_si512(order.dwords), bytes);
  return _mm512_maskz_shuffle_epi8(placed, near, _mm512_loadu_si512(order.within));
#endif
}

FTWT_INLINE uint64_t first_bytes(int n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; }

// Sums of one filter on a plane of one register.
FTWT_INLINE void small_plane(const IntegerDepthwise& d, int c, int first, int count, int32_t* sums) {
  const int positions = d.height * d.width;
  const __m512i flip = _mm512_set1_epi32(zero_of(d.type));
  const __m512i bytes = _mm512_maskz_loadu_epi8(first_bytes(positions), d.input + static_cast<int64_t>(c) * positions);
  const int32_t* weights = d.weights + static_cast<int64_t>(c) * d.taps;
  const Quad* quad = d.quads + static_cast<int64_t>(first) * d.taps;
  for (int k = 0; k < count; ++k) {
    __m512i sum = _mm512_set1_epi32(-d.less[c]);
    for (int t = 0; t < d.taps; ++t, ++quad)
      sum = _mm512_dpbusd_epi32(sum, _mm512_xor_si512(arranged(bytes, d.orders[quad->order], quad->placed), flip),
                                _mm512_set1_epi32(weights[t]));
    _mm512_store_si512(sums + k * kLanes, sum);
  }
}

// The plane between its zeros, which are there already.
FTWT_INLINE void copy_plane(const IntegerDepthwise& d, int c) {
  const uint8_t* from = d.input + static_cast<int64_t>(c) * d.height * d.width;
  uint8_t* to = d.plane + static_cast<int64_t>(d.top) * d.pitch + d.left;
  const __m512i flip = _mm512_set1_epi32(zero_of(d.type));
  for (int y = 0; y < d.height; ++y, from += d.width, to += d.pitch)
    for (int x = 0; x < d.width; x += 64) {
      const uint64_t some = first_bytes(d.width - x);
      _mm512_mask_storeu_epi8(to + x, some, _mm512_xor_si512(_mm512_maskz_loadu_epi8(some, from + x), flip));
    }
}

// Sums of one filter on a plane that was copied. What a row of outputs reads, the next rows read too.
FTWT_INLINE void large_plane(const IntegerDepthwise& d, int c, int first, int count, int32_t* sums) {
  const int32_t* weights = d.weights + static_cast<int64_t>(c) * d.taps;
  const __m512i less = _mm512_set1_epi32(-d.less[c]);
  const auto at = [&](int64_t offset) __attribute__((always_inline)) { return arranged(_mm512_loadu_si512(d.plane + offset), *d.orders); };
  if (d.neighbours) {
    const __m512i w0 = _mm512_set1_epi32(weights[0]), w1 = _mm512_set1_epi32(weights[1]), w2 = _mm512_set1_epi32(weights[2]);
    __m512i above = less, same = less;
    int64_t wanted = -1;
    for (int k = 0; k < count; ++k) {
      const int64_t source = d.vectors[first + k].source;
      if (source != wanted) above = at(source), same = at(source + d.pitch);
      const __m512i below = at(source + 2 * d.pitch);
      const __m512i two = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(less, above, w0), same, w1);
      _mm512_store_si512(sums + k * kLanes, _mm512_dpbusd_epi32(two, below, w2));
      above = same, same = below, wanted = source + d.pitch;
    }
    return;
  }
  for (int k = 0; k < count; ++k) {
    __m512i sum = less;
    for (int t = 0; t < d.taps; ++t)
      sum = _mm512_dpbusd_epi32(sum, at(d.vectors[first + k].source + d.offsets[t]), _mm512_set1_epi32(weights[t]));
    _mm512_store_si512(sums + k * kLanes, sum);
  }
}

static void depthwise(const IntegerDepthwise& d) {
  const Finishes finish{*d.epilogue};
  if (!d.quads) std::memset(d.plane, zero_of(d.type) & 255, d.plane_bytes);
  for (int i = d.first_filter; i < d.last_filter; ++i) {
    const int c = d.filters[i];
    const bool active = d.active[c];
    if (active && !d.quads) copy_plane(d, c);
    for (int v = 0; v < d.vector_count; v += kSome) {
      alignas(64) int32_t sums[kSome * kLanes];
      const int n = min(kSome, d.vector_count - v);
      if (!active) std::memset(sums, 0, sizeof sums);
      else if (d.quads) small_plane(d, c, v, n, sums);
      else large_plane(d, c, v, n, sums);
      for (int k = 0; active && k < n; ++k) FTWT_PRODUCTS(integer, int64_t{4} * d.taps * d.vectors[v + k].count);
      finish(c, d.vectors + v, n, all_whole(d.vectors + v, n), sums);
    }
  }
}

#elif defined(__AVX2__)

// Two taps, wherever they lie, are a dword of halves.

constexpr int kSome = 16;  // vectors whose sums are finished together

// Sixteen bytes as halves, the first n of them: the others are zeros.
FTWT_INLINE __m256i first_halves(__m256i halves, int n) {
  alignas(32) static constexpr int16_t masks[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  if (n >= 16) return halves;
  return _mm256_and_si256(halves, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(masks + 16 - max(n, 0))));
}

// The plane between its zeros, which are there already: what is written past a row is zero, too.
template <Type Of>
static void copy_plane(const IntegerDepthwise& d, int c, int16_t* plane) {
  const auto put = [](int16_t* to, __m256i halves, int n) __attribute__((always_inline)) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), first_halves(halves, n));
  };
  const uint8_t* from = d.input + static_cast<int64_t>(c) * d.height * d.width;
  for (int y = d.top; y < d.top + d.height; ++y, from += d.width) {
    int16_t* to = plane + (y % d.stride_h * d.stride_w) * d.plane_halves + static_cast<int64_t>(y / d.stride_h) * d.pitch;
    if (d.stride_w == 1) {
      to += d.left;
      for (int x = 0; x < d.width; x += 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + x));
        put(to + x, Of == Type::s8 ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes), d.width - x);
      }
      continue;
    }
    // two columns apart: those of even numbers, and the others
    int16_t* const even = to + d.left % 2 * d.plane_halves + d.left / 2;
    int16_t* const odd = to + (d.left + 1) % 2 * d.plane_halves + (d.left + 1) / 2;
    for (int x = 0; x < d.width; x += 32) {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + x));
      const __m256i low = _mm256_slli_epi16(bytes, 8);
      put(even + x / 2, Of == Type::s8 ? _mm256_srai_epi16(low, 8) : _mm256_srli_epi16(low, 8), (d.width - x + 1) / 2);
      put(odd + x / 2, Of == Type::s8 ? _mm256_srai_epi16(bytes, 8) : _mm256_srli_epi16(bytes, 8), (d.width - x) / 2);
    }
  }
}

// Sums of one filter; Pairs: so many dwords of taps, or, if 0, as many as there are.
template <int Pairs>
static void sums_of(const IntegerDepthwise& d, const int16_t* plane, int c, int first, int count, int32_t* sums) {
  const int pairs = Pairs ? Pairs : (d.taps + 1) / 2;
  const int32_t *weights = d.weights + static_cast<int64_t>(c) * pairs, *offsets = d.offsets;
  for (int k = 0; k < count; ++k) {
    const int16_t* source = plane + d.vectors[first + k].source;
    RI near{}, far{};  // positions 0 to 3 and 8 to 11, and the others
#pragma GCC unroll 5
    for (int t = 0; t < pairs; ++t) {
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + offsets[2 * t]));
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + offsets[2 * t + 1]));
      const RI w = splat_dword(weights[t]);
      near = multiply_add(near, (RI)_mm256_unpacklo_epi16(a, b), w);
      far = multiply_add(far, (RI)_mm256_unpackhi_epi16(a, b), w);
    }
    store_dwords(sums + k * kLanes, (RI)_mm256_permute2x128_si256((__m256i)near, (__m256i)far, 0x20));
    store_dwords(sums + k * kLanes + kWidth, (RI)_mm256_permute2x128_si256((__m256i)near, (__m256i)far, 0x31));
  }
}

static void depthwise(const IntegerDepthwise& d) {
  const Finishes finish{*d.epilogue};
  int16_t* const plane = reinterpret_cast<int16_t*>(d.plane);
  std::memset(d.plane, 0, d.plane_bytes);
  const auto sums_at = d.taps == 9 ? sums_of<5> : sums_of<0>;
  for (int i = d.first_filter; i < d.last_filter; ++i) {
    const int c = d.filters[i];
    const bool active = d.active[c];
    if (active) (d.type == Type::s8 ? copy_plane<Type::s8> : copy_plane<Type::u8>)(d, c, plane);
    for (int v = 0; v < d.vector_count; v += kSome) {
      alignas(64) int32_t sums[kSome * kLanes];
      const int n = min(kSome, d.vector_count - v);
      if (active) sums_at(d, plane, c, v, n, sums);
      else std::memset(sums, 0, sizeof sums);
      for (int k = 0; active && k < n; ++k) FTWT_PRODUCTS(integer, int64_t{2} * ((d.taps + 1) / 2) * d.vectors[v + k].count);
      finish(c, d.vectors + v, n, all_whole(d.vectors + v, n), sums);
    }
  }
}

#else

constexpr void (*depthwise)(const IntegerDepthwise&) = nullptr;

#endif

}  // namespace integers
