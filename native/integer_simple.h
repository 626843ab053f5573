// Everything on eight-bit maps that does not multiply by a matrix. Included by integer_impl.h.

namespace integers {

// Bytes of type A, and of B if that is not f32, to bytes of type Out; the activation only clips.
template <Type A, Type B, Type Out>
[[gnu::noinline]] static void blend_bytes(const Blend& b) {
  const Clip clips = clip_of(b.act);
  const V low = splat(clips.low), high = splat(clips.high);
  const Values x{b.a.at, A, b.a.scale, false}, y{b.b.at, B, b.b.scale, false};
  const Target out{b.out.at, Out, b.out.inverse};
  for (int64_t i = 0; i < b.n; i += kLanes) {
    const int count = static_cast<int>(min<int64_t>(kLanes, b.n - i));
    V v = load_values(x, i, count);
    if constexpr (B != Type::f32) v = v + load_values(y, i, count);
    store_values(out, i, clip(v, low, high), count);
  }
}

template <Type A, Type B>
static void blend_to(const Blend& b) {
  if (b.out.type == Type::u8) blend_bytes<A, B, Type::u8>(b);
  else blend_bytes<A, B, Type::s8>(b);
}

template <Type A>
static void blend_with(const Blend& b) {
  if (!b.b.at) blend_to<A, Type::f32>(b);
  else if (b.b.type == Type::u8) blend_to<A, Type::u8>(b);
  else blend_to<A, Type::s8>(b);
}

static void blend(const Blend& b) {
  const auto bytes = [](const Values& v) { return v.type != Type::f32 && !v.spread; };
  if (b.a.at && bytes(b.a) && (!b.b.at || bytes(b.b)) && b.out.type != Type::f32 && clip_of(b.act).only)
    return b.a.type == Type::u8 ? blend_with<Type::u8>(b) : blend_with<Type::s8>(b);
  for (int64_t i = 0; i < b.n; i += kLanes) {
    const int count = static_cast<int>(min<int64_t>(kLanes, b.n - i));
    V v = load_values(b.a, i, count);
    if (b.b.at) v = v + load_values(b.b, i, count);
    if (b.act != Activation::none) v = activate(b.act, v);
    store_values(b.out, i, v, count);
  }
}

#if defined(__AVX512VNNI__)
FTWT_INLINE uint64_t bytes_from(int n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; }
#endif

// Of n values, at most 2^16: their sum, and the largest.
template <typename Byte>
FTWT_INLINE int32_t sum_of(const Byte* x, int n) {
#if defined(__AVX512VNNI__)
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sum = _mm512_setzero_si512();
  for (int k = 0; k < n; k += 64) {
    const __m512i some = _mm512_maskz_loadu_epi8(bytes_from(n - k), x + k);
    sum = std::is_signed_v<Byte> ? _mm512_dpbusd_epi32(sum, ones, some) : _mm512_dpbusd_epi32(sum, some, ones);
  }
  return _mm512_reduce_add_epi32(sum);
#else
  int32_t sum = 0;
  for (int k = 0; k < n; ++k) sum += x[k];
  return sum;
#endif
}

template <typename Byte>
FTWT_INLINE Byte largest_of(const Byte* x, int n) {
  Byte best = x[0];
#if defined(__AVX512VNNI__)
  if (n >= 16) {
    const __m512i least = _mm512_set1_epi8(static_cast<char>(std::numeric_limits<Byte>::min()));
    __m512i most = least;
    for (int k = 0; k < n; k += 64) {
      const __m512i some = _mm512_mask_loadu_epi8(least, bytes_from(n - k), x + k);
      most = std::is_signed_v<Byte> ? _mm512_max_epi8(most, some) : _mm512_max_epu8(most, some);
    }
    const __m256i half = std::is_signed_v<Byte>
                             ? _mm256_max_epi8(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64(most, 1))
                             : _mm256_max_epu8(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64(most, 1));
    alignas(32) Byte left[32];
    _mm256_store_si256(reinterpret_cast<__m256i*>(left), half);
    for (const Byte one : left) best = max(best, one);
    return best;
  }
#endif
  for (int k = 1; k < n; ++k) best = max(best, x[k]);
  return best;
}

template <typename Byte>
static void planes_of(const IntegerPlanes& p) {
  for (int i = 0; i < p.count; ++i) {
    const int c = p.channels[i];
    const Byte* x = reinterpret_cast<const Byte*>(p.input) + static_cast<int64_t>(c) * p.positions;
    if (p.maximum) {
      const Byte best = largest_of(x, p.positions);
      if (p.out.type == Type::f32) static_cast<float*>(p.out.at)[c] = static_cast<float>(best) * p.scale;
      else static_cast<Byte*>(p.out.at)[c] = best;
    } else {
      int64_t sum = 0;
      for (int from = 0; from < p.positions; from += 1 << 16) sum += sum_of(x + from, min(p.positions - from, 1 << 16));
      static_cast<float*>(p.out.at)[c] = static_cast<float>(sum) * p.scale;
    }
  }
}

static void planes(const IntegerPlanes& p) {
  if (p.type == Type::u8) planes_of<uint8_t>(p);
  else planes_of<int8_t>(p);
}

// Sixty-four bytes.
template <typename Byte>
struct Block {
  typedef Byte Bytes __attribute__((vector_size(64), aligned(1), may_alias));
  FTWT_INLINE Bytes load(const Byte* p) { return *reinterpret_cast<const Bytes*>(p); }
  FTWT_INLINE void store(Byte* p, Bytes b) { *reinterpret_cast<Bytes*>(p) = b; }
  FTWT_INLINE Bytes larger(Bytes a, Bytes b) { return a > b ? a : b; }
};

// out[x] = in[x * step]
template <typename Byte>
static void every(const Byte* in, int count, int step, Byte* out) {
  if (step == 1) {
    std::memcpy(out, in, count);
  } else if (step == 2) {
#if defined(__AVX512F__)
    for (int x = 0; x < count; x += 32) {
      const __mmask32 some = count - x >= 32 ? ~__mmask32{0} : (__mmask32{1} << (count - x)) - 1;
      _mm256_mask_storeu_epi8(out + x, some, _mm512_cvtepi16_epi8(_mm512_loadu_si512(in + 2 * x)));
    }
    return;
#endif
    for (int x = 0; x < count; ++x) {
      uint16_t two;
      std::memcpy(&two, in + 2 * x, 2);
      out[x] = static_cast<Byte>(two & 255);
    }
  } else {
    for (int x = 0; x < count; ++x) out[x] = in[static_cast<int64_t>(x) * step];
  }
}

// The first and the last but one of what a window reads along an axis.
struct Span {
  int from, to;
};

static inline Span span_of(int i, bool adaptive, int length, int count, int kernel, int stride, int pad) {
  if (adaptive)
    return {static_cast<int>(static_cast<int64_t>(i) * length / count),
            static_cast<int>((static_cast<int64_t>(i + 1) * length + count - 1) / count)};
  const int64_t start = static_cast<int64_t>(i) * stride - pad;
  return {static_cast<int>(max<int64_t>(start, 0)), static_cast<int>(min<int64_t>(start + kernel, length))};
}

// Rows of pairs of rows, each value the largest of two by two.
template <typename Byte>
static void halve(const IntegerPooling& p) {
  const Window& w = p.window;
  const Byte* x = reinterpret_cast<const Byte*>(p.x) + static_cast<int64_t>(p.first_row) * 2 * w.width;
  Byte* out = reinterpret_cast<Byte*>(p.out) + static_cast<int64_t>(p.first_row) * w.out_width;
  const int64_t n = static_cast<int64_t>(p.last_row - p.first_row) * w.out_width;
  int64_t done = 0;
#if defined(__AVX512VNNI__)
  const auto most = [](__m512i a, __m512i b) __attribute__((always_inline)) {
    return std::is_signed_v<Byte> ? _mm512_max_epi8(a, b) : _mm512_max_epu8(a, b);
  };
  if (w.width == 2 || w.width == 4 || w.width == 8)
    for (; done + 16 <= n; done += 16) {  // pairs of bytes, then of what is left of rows
      const __m512i all = _mm512_loadu_si512(x + 4 * done);
      const __m512i rows = _mm512_zextsi256_si512(_mm512_cvtepi16_epi8(most(all, _mm512_srli_epi16(all, 8))));
      __m128i half;
      if (w.width == 2) half = _mm256_cvtepi16_epi8(_mm512_castsi512_si256(most(rows, _mm512_srli_epi16(rows, 8))));
      else if (w.width == 4) half = _mm256_cvtepi32_epi16(_mm512_castsi512_si256(most(rows, _mm512_srli_epi32(rows, 16))));
      else half = _mm256_cvtepi64_epi32(_mm512_castsi512_si256(most(rows, _mm512_srli_epi64(rows, 32))));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + done), half);
    }
#endif
  for (; done < n; ++done) {
    const Byte* at = x + done / w.out_width * 2 * w.width + done % w.out_width * 2;
    out[done] = max(max(at[0], at[1]), max(at[w.width], at[w.width + 1]));
  }
}

template <typename Byte>
static void pool_of(const IntegerPooling& p) {
  if (halves(p.window)) return halve<Byte>(p);
  typedef Block<Byte> B;
  const Window& w = p.window;
  const Byte* x = reinterpret_cast<const Byte*>(p.x);
  // columns: the largest of each, between bytes that never win; windows: the largest from each on
  Byte* columns = reinterpret_cast<Byte*>(p.line);
  Byte* windows = columns + integer_line(w) / 2;
  constexpr Byte least = std::numeric_limits<Byte>::min();
  Byte* inner = columns + (w.adaptive ? 0 : w.pad_w);
  const int span = w.adaptive ? 0 : (w.out_width - 1) * w.stride_w + 1;
  std::memset(columns, static_cast<uint8_t>(least), integer_line(w) / 2);
  for (int y = p.first_row; y < p.last_row; ++y) {
    const Span rows = span_of(y, w.adaptive, w.height, w.out_height, w.kernel_h, w.stride_h, w.pad_h);
    for (int k = 0; k < w.width; k += 64) {
      const Byte* at = x + static_cast<int64_t>(rows.from) * w.width + k;
      auto most = B::load(at);
      for (int r = rows.from + 1; r < rows.to; ++r) at += w.width, most = B::larger(most, B::load(at));
      B::store(inner + k, most);
    }
    B::store(inner + w.width, typename B::Bytes{} + least);
    Byte* out = reinterpret_cast<Byte*>(p.out) + static_cast<int64_t>(y) * w.out_width;
    if (w.adaptive) {
      for (int k = 0; k < w.out_width; ++k) {
        const Span among = span_of(k, true, w.width, w.out_width, 0, 0, 0);
        Byte best = inner[among.from];
        for (int i = among.from + 1; i < among.to; ++i) best = max(best, inner[i]);
        out[k] = best;
      }
      continue;
    }
    for (int k = 0; k < span; k += 64) {
      auto most = B::load(columns + k);
      for (int i = 1; i < w.kernel_w; ++i) most = B::larger(most, B::load(columns + k + i));
      B::store(windows + k, most);
    }
    every(windows, w.out_width, w.stride_w, out);
  }
}

static void pool(const IntegerPooling& p) {
  if (p.type == Type::u8) pool_of<uint8_t>(p);
  else pool_of<int8_t>(p);
}

}  // namespace integers
