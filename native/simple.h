// Everything that does not multiply by a matrix. Included by kernels_impl.h.

namespace simple {

static void affine(const float* x, float scale, float shift, Activation act, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, activate(act, load(x + i) * splat(scale) + splat(shift)));
  const int rest = static_cast<int>(n - i);
  if (rest) store_some(out + i, activate(act, load_some(x + i, rest) * splat(scale) + splat(shift)), rest);
}

static inline V operand(const float* p, int64_t i, int n) {
  return !p ? V{} : n == kLanes ? load(p + i) : load_some(p + i, n);
}

static void combine(const float* a, const float* b, bool product, Activation act, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = static_cast<int>(min<int64_t>(kLanes, n - i));
    const V x = operand(a, i, count), y = operand(b, i, count);
    const V z = activate(act, product ? x * y : x + y);
    if (count == kLanes) store(out + i, z);
    else store_some(out + i, z, count);
  }
}

static float peak(const float* x, int n) {
  if (n < kLanes) {
    float best = x[0];
    for (int i = 1; i < n; ++i)
      if (x[i] > best || x[i] != x[i]) best = x[i];
    return best;
  }
  V best = load(x);
  int i = kLanes;
  for (; i + kLanes <= n; i += kLanes) best = larger(load(x + i), best);
  if (i < n) best = larger(load(x + n - kLanes), best);
  return reduce(best, [](R a, R b) { return larger(a, b); });
}

static inline float total(const float* x, int n) {
  V a = {}, b = {};
  int i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) a += load(x + i), b += load(x + i + kLanes);
  if (i + kLanes <= n) a += load(x + i), i += kLanes;
  if (i < n) b += load_some(x + i, n - i);
  return sum(a + b);
}

static void planes(const Planes& p) {
  for (int i = 0; i < p.count; ++i) {
    const float* x = p.input + static_cast<int64_t>(p.channels[i]) * p.positions;
    p.out[p.channels[i]] = p.maximum ? peak(x, p.positions) : total(x, p.positions) / static_cast<float>(p.positions);
  }
}

// n floats, or whole numbers.
FTWT_INLINE V entries(const float* p, int n) { return n == kLanes ? load(p) : load_some(p, n); }

FTWT_INLINE V entries(const int8_t* p, int n) {
  alignas(16) int8_t some[kLanes] = {};
  if (n < kLanes) std::memcpy(some, p, n), p = some;
#if defined(__AVX512F__)
  return {{(R)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))}};
#elif defined(__AVX2__)
  return each([&](int k) { return (R)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + k * kWidth)))); });
#else
  typedef int8_t Bytes __attribute__((vector_size(kWidth)));
  return each([&](int k) {
    Bytes bytes;
    std::memcpy(&bytes, p + k * kWidth, sizeof bytes);
    return __builtin_convertvector(bytes, R);
  });
#endif
}

// Eight columns at a time, so that the sums are read and written once for them.
template <typename Entry>
static void columns_of(const Columns& c, const Entry* matrix) {
  constexpr int kColumns = 8, kLine = 64 / sizeof(Entry);
  for (int i = 0; i < c.count; i += kColumns) {
    const Entry* rows[kColumns];
    const Entry* ahead[kColumns];
    V scale[kColumns];
    for (int k = 0; k < kColumns; ++k) {
      const int at = min(i + k, c.count - 1);
      rows[k] = matrix + c.offsets[at];
      ahead[k] = matrix + c.offsets[min(at + kColumns, c.count - 1)];
      scale[k] = splat(i + k < c.count ? c.values[at] : 0.0f);
    }
    const auto add = [&](V s, int n, int some) __attribute__((always_inline)) {
      V t = {};
#pragma GCC unroll 8
      for (int k = 0; k < kColumns; k += 2) s += scale[k] * entries(rows[k] + n, some), t += scale[k + 1] * entries(rows[k + 1] + n, some);
      return s + t;
    };
    int n = 0;
    for (; n + kLanes <= c.n; n += kLanes) {
      if (n % kLine == 0)
#pragma GCC unroll 8
        for (int k = 0; k < kColumns; ++k) __builtin_prefetch(ahead[k] + n, 0, 3);
      store(c.sums + n, add(load(c.sums + n), n, kLanes));
    }
    if (n < c.n) store_some(c.sums + n, add(load_some(c.sums + n, c.n - n), n, c.n - n), c.n - n);
  }
}

static void columns(const Columns& c) {
  FTWT_PRODUCTS(columns, static_cast<int64_t>(c.count) * c.n);
  if (c.bytes) columns_of(c, c.bytes);
  else columns_of(c, c.matrix);
}

// Window i of a pool along one side: [from, to), clipped, and its length as a mean counts it.
struct Span {
  int from, to, counted;
};

static inline Span span(const Window& w, bool rows, int i) {
  const int length = rows ? w.height : w.width, outs = rows ? w.out_height : w.out_width;
  if (w.adaptive) {
    const int from = static_cast<int>(static_cast<int64_t>(i) * length / outs);
    const int to = static_cast<int>((static_cast<int64_t>(i + 1) * length + outs - 1) / outs);
    return {from, to, to - from};
  }
  const int kernel = rows ? w.kernel_h : w.kernel_w, pad = rows ? w.pad_h : w.pad_w;
  const int start = i * (rows ? w.stride_h : w.stride_w) - pad;
  const int end = min(start + kernel, length + pad);
  const int from = max(start, 0), to = min(end, length);
  return {from, to, w.include_padding ? end - start : to - from};
}

// Rows first, then columns. `line` holds a row of the input between pool_margin floats on either
// side, which never win a maximum.
static void pool(const Pooling& p) {
  const Window& w = p.window;
  const float nothing = w.maximum ? -std::numeric_limits<float>::infinity() : 0.0f;
  float* line = p.line + pool_margin(w);
  for (int c = 0; c < pool_margin(w); c += kLanes) store(p.line + c, splat(nothing));
  const bool wide = w.maximum && !w.adaptive && w.stride_w <= 2;
  float* out = p.out + static_cast<int64_t>(p.first_row) * w.out_width;
  for (int oy = p.first_row; oy < p.last_row; ++oy, out += w.out_width) {
    const Span rows = span(w, true, oy);
    for (int c = 0; c < w.width; c += kLanes) {
      const int n = min(kLanes, w.width - c);
      V v = splat(nothing);
      for (int y = rows.from; y < rows.to; ++y) {
        const V row = load_some(p.x + static_cast<int64_t>(y) * w.width + c, n);
        v = w.maximum ? larger(row, v) : v + row;
      }
      store(line + c, v);
    }
    if (wide) {
      for (int c = 0; c < pool_margin(w); c += kLanes) store(line + w.width + c, splat(nothing));
      for (int ox = 0; ox < w.out_width; ox += kLanes) {
        const float* from = line + ox * w.stride_w - w.pad_w;
        V v = w.stride_w == 2 ? plain::even(from) : load(from);
        for (int k = 1; k < w.kernel_w; ++k) v = larger(w.stride_w == 2 ? plain::even(from + k) : load(from + k), v);
        store_some(out + ox, v, min(kLanes, w.out_width - ox));
      }
      continue;
    }
    for (int ox = 0; ox < w.out_width; ++ox) {
      const Span columns = span(w, false, ox);
      float value = nothing;
      for (int c = columns.from; c < columns.to; ++c) {
        const float v = line[c];
        if (!w.maximum) value += v;
        else if (v > value || v != v) value = v;
      }
      out[ox] = w.maximum ? value : value / static_cast<float>(rows.counted * columns.counted);
    }
  }
}

}  // namespace simple
