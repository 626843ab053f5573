// Sixteen dwords at a time, and reals from and to eight bits. Included by integer_impl.h.

#if defined(__AVX512VNNI__)
constexpr int kDword = 4;
typedef int8_t Weight;
#else
constexpr int kDword = 2;
typedef int16_t Weight;
#endif
constexpr bool kBytes = kDword == 4;

typedef int32_t RILoose __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef uint8_t RU8 __attribute__((vector_size(kWidth)));
typedef int8_t RS8 __attribute__((vector_size(kWidth)));

struct VI {
  RI part[kParts];
};

FTWT_INLINE RI load_dwords(const int32_t* p) { return *reinterpret_cast<const RILoose*>(p); }
FTWT_INLINE void store_dwords(int32_t* p, RI r) { *reinterpret_cast<RILoose*>(p) = r; }
FTWT_INLINE RI splat_dword(int32_t s) { return s - RI{}; }

// sum + the products of the values in a dword, lane by lane: of x, unsigned if they are bytes, and
// of w, signed.
FTWT_INLINE RI multiply_add(RI sum, RI x, RI w) {
#if defined(__AVX512VNNI__)
  return (RI)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#elif defined(__AVX2__)
  return sum + (RI)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#elif defined(__SSE2__)
  return sum + (RI)_mm_madd_epi16((__m128i)x, (__m128i)w);
#else
  return sum + (x << 16 >> 16) * (w << 16 >> 16) + (x >> 16) * (w >> 16);
#endif
}

// Bytes as numbers; a few bytes past those that are asked for may be read.
FTWT_INLINE RI widen(const uint8_t* p, Type type) {
  if (type == Type::s8) {
    RS8 bytes;
    std::memcpy(&bytes, p, sizeof bytes);
#if defined(__AVX512F__)
    return (RI)_mm512_cvtepi8_epi32((__m128i)bytes);
#elif defined(__AVX2__)
    return (RI)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
    return __builtin_convertvector(bytes, RI);
#endif
  }
  RU8 bytes;
  std::memcpy(&bytes, p, sizeof bytes);
#if defined(__AVX512F__)
  return (RI)_mm512_cvtepu8_epi32((__m128i)bytes);
#elif defined(__AVX2__)
  return (RI)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  return __builtin_convertvector(bytes, RI);
#endif
}

FTWT_INLINE V reals(const RI* part) {
  return each([&](int i) { return __builtin_convertvector(part[i], R); });
}

// `n` values from the i-th on.
FTWT_INLINE V load_values(const Values& v, int64_t i, int n) {
  if (!v.at) return V{};
  if (v.type == Type::f32) {
    const float* p = static_cast<const float*>(v.at);
    return v.spread ? splat(*p) : n == kLanes ? load(p + i) : load_some(p + i, n);
  }
  const uint8_t* p = static_cast<const uint8_t*>(v.at);
  if (v.spread) return splat(static_cast<float>(v.type == Type::u8 ? *p : static_cast<int8_t>(*p)) * v.scale);
  return each([&](int k) { return __builtin_convertvector(widen(p + i + k * kWidth, v.type), R) * v.scale; });
}

// The nearest whole numbers, of two the even one; of values that fit 22 bits.
FTWT_INLINE RI nearest(R v) {
#if defined(__AVX512F__)
  return (RI)_mm512_cvtps_epi32((__m512)v);
#elif defined(__AVX2__)
  return (RI)_mm256_cvtps_epi32((__m256)v);
#elif defined(__SSE2__)
  return (RI)_mm_cvtps_epi32((__m128)v);
#else
  return __builtin_convertvector((v + 12582912.0f) - 12582912.0f, RI);
#endif
}

// The first n values to the i-th place on.
FTWT_INLINE void store_values(const Target& t, int64_t i, V v, int n) {
  if (t.type == Type::f32) {
    float* p = static_cast<float*>(t.at) + i;
    if (n == kLanes) store(p, v);
    else store_some(p, v, n);
    return;
  }
  uint8_t* p = static_cast<uint8_t*>(t.at) + i;
  const R inverse = splat_part(t.inverse);
#if defined(__AVX512F__)
  const __m512 scaled = (__m512)(v.part[0] * inverse);
  __m128i bytes;
  if (t.type == Type::u8)  // what is too large saturates, as what has no 32 bits does
    bytes = _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(_mm512_max_ps(scaled, _mm512_setzero_ps())));
  else
    bytes = _mm512_cvtepi32_epi8((__m512i)nearest(clip((R)scaled, splat_part(-127.0f), splat_part(127.0f))));
  if (n == kLanes) _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  else _mm_mask_storeu_epi8(p, first_lanes(n), bytes);
#elif defined(__AVX2__)
  RI whole[2];
#pragma GCC unroll 2
  for (int k = 0; k < 2; ++k) {
    R scaled = v.part[k] * inverse;
    if (t.type == Type::u8) {  // what is negative saturates, as what is not a number does
      scaled = (R)_mm256_min_ps((__m256)splat_part(255.0f), (__m256)scaled);
    } else {
      const __m256 number = _mm256_cmp_ps((__m256)scaled, (__m256)scaled, _CMP_ORD_Q);
      scaled = (R)_mm256_and_ps(number, (__m256)clip(scaled, splat_part(-127.0f), splat_part(127.0f)));
    }
    whole[k] = nearest(scaled);
  }
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)whole[0], (__m256i)whole[1]), 0xd8);
  const __m128i first = _mm256_castsi256_si128(words), second = _mm256_extracti128_si256(words, 1);
  const __m128i bytes = t.type == Type::u8 ? _mm_packus_epi16(first, second) : _mm_packs_epi16(first, second);
  if (n == kLanes) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  alignas(16) uint8_t some[kLanes];
  _mm_store_si128(reinterpret_cast<__m128i*>(some), bytes);
  if (n >= 8) std::memcpy(p, some, 8), std::memcpy(p + n - 8, some + n - 8, 8);  // two that may overlap
  else if (n >= 4) std::memcpy(p, some, 4), std::memcpy(p + n - 4, some + n - 4, 4);
  else for (int k = 0; k < n; ++k) p[k] = some[k];
#else
  const R least = splat_part(t.type == Type::u8 ? 0.0f : -127.0f), most = splat_part(t.type == Type::u8 ? 255.0f : 127.0f);
  alignas(64) uint8_t bytes[kLanes];
#pragma GCC unroll 4
  for (int k = 0; k < kParts; ++k) {
    const R scaled = v.part[k] * inverse;
    const RI whole = nearest(scaled == scaled ? clip(scaled, least, most) : R{});  // not a number: 0
    for (int lane = 0; lane < kWidth; ++lane) bytes[k * kWidth + lane] = static_cast<uint8_t>(whole[lane]);
  }
  std::memcpy(p, bytes, n == kLanes ? kLanes : n);
#endif
}
