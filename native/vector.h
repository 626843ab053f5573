// Sixteen floats at a time, whatever the instruction set: a `V` is as many registers `R` as that
// takes, each one of GCC and Clang's vector extensions, and stays in them once all is inlined.
// Compiled once for each instruction set (see kernels_*.cpp), inside a namespace of its own, and
// with no functions of the standard library that are compiled here, so that two instruction sets
// never share a symbol.

#define FTWT_INLINE [[gnu::always_inline]] static inline

#if defined(__AVX512F__)
constexpr int kWidth = 16, kRegisters = 32;  // floats in a register, registers
#elif defined(__AVX2__)
constexpr int kWidth = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kWidth = 4, kRegisters = 32;
#else
constexpr int kWidth = 4, kRegisters = 15;  // of sixteen: products need one before they are added
#endif
constexpr int kLanes = 16, kParts = kLanes / kWidth;

typedef float R __attribute__((vector_size(4 * kWidth)));
typedef float RLoose __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef int32_t RI __attribute__((vector_size(4 * kWidth)));

struct V {
  R part[kParts];
};

template <typename T> FTWT_INLINE constexpr T min(T a, T b) { return b < a ? b : a; }
template <typename T> FTWT_INLINE constexpr T max(T a, T b) { return a < b ? b : a; }

// A V of f(0), f(1), ...: spelled out, since GCC keeps in memory what a loop goes through.
template <typename F>
FTWT_INLINE V each(F f) {
  if constexpr (kParts == 1) return {{f(0)}};
  else if constexpr (kParts == 2) return {{f(0), f(1)}};
  else return {{f(0), f(1), f(2), f(3)}};
}

FTWT_INLINE V operator+(V a, V b) { return each([&](int i) { return a.part[i] + b.part[i]; }); }
FTWT_INLINE V operator-(V a, V b) { return each([&](int i) { return a.part[i] - b.part[i]; }); }
FTWT_INLINE V operator*(V a, V b) { return each([&](int i) { return a.part[i] * b.part[i]; }); }
FTWT_INLINE V& operator+=(V& a, V b) { return a = a + b; }

FTWT_INLINE R load_part(const float* p) { return *reinterpret_cast<const RLoose*>(p); }
FTWT_INLINE void store_part(float* p, R r) { *reinterpret_cast<RLoose*>(p) = r; }
FTWT_INLINE R splat_part(float s) { return s - R{}; }  // s + 0 would lose the sign of -0

FTWT_INLINE V load(const float* p) { return each([&](int i) { return load_part(p + i * kWidth); }); }
FTWT_INLINE V splat(float s) { return each([&](int) { return splat_part(s); }); }
FTWT_INLINE void store(float* p, V v) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) store_part(p + i * kWidth, v.part[i]);
}

#if defined(__AVX512F__)
FTWT_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }
#elif defined(__AVX2__)
// Which lanes of part i are among the first n of all.
FTWT_INLINE __m256i first_lanes(int n, int i) {
  alignas(64) static constexpr int32_t ones[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones + kLanes - n + i * kWidth));
}
#endif

// The first n lanes from memory, zeros after them; nothing past them is read.
FTWT_INLINE V load_some(const float* p, int n) {
#if defined(__AVX512F__)
  return {{(R)_mm512_maskz_loadu_ps(first_lanes(n), p)}};
#elif defined(__AVX2__)
  return each([&](int i) { return (R)_mm256_maskload_ps(p + i * kWidth, first_lanes(n, i)); });
#else
  return each([&](int i) {
    const float* q = p + i * kWidth;
    const int k = n - i * kWidth;
    return k >= kWidth ? load_part(q) : k <= 0 ? R{} : R{q[0], k > 1 ? q[1] : 0.0f, k > 2 ? q[2] : 0.0f};
  });
#endif
}

// The first n lanes to memory; nothing past them is written.
FTWT_INLINE void store_some(float* p, V v, int n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)v.part[0]);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(p, first_lanes(n, 0), (__m256)v.part[0]);
  _mm256_maskstore_ps(p + kWidth, first_lanes(n, 1), (__m256)v.part[1]);
#else
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    float* q = p + i * kWidth;
    const int k = n - i * kWidth;
    if (k >= kWidth) store_part(q, v.part[i]);
    else
      for (int lane = 0; lane < k; ++lane) q[lane] = v.part[i][lane];
  }
#endif
}

FTWT_INLINE void prefetch(const float* p) { __builtin_prefetch(p, 0, 2); }

// The lanes that `lanes` names, side by side, the first of them in lane 0.
FTWT_INLINE V compress(V v, uint16_t lanes) {
#if defined(__AVX512F__)
  return {{(R)_mm512_maskz_compress_ps(lanes, (__m512)v.part[0])}};
#else
  alignas(64) float all[kLanes], packed[kLanes + 1] = {};
  store(all, v);
  for (int i = 0, n = 0; i < kLanes; ++i) packed[n] = all[i], n += lanes >> i & 1;
  return load(packed);
#endif
}

template <int... J>
using Lanes = std::integer_sequence<int, J...>;
using AllLanes = std::make_integer_sequence<int, kWidth>;

// What shuffle<I...> takes from where, in terms of parts: those of x, then those of y.
template <int... I>
struct Order {
  static constexpr int kNone = 2 * kParts;
  static constexpr int part(int i) {
    constexpr int lanes[] = {I...};
    return lanes[i] / kWidth;
  }
  static constexpr int lane(int i) {
    constexpr int lanes[] = {I...};
    return lanes[i] % kWidth;
  }
  // The first part after part `last` that part p of the result needs.
  static constexpr int next(int p, int last) {
    int first = kNone;
    for (int i = p * kWidth; i < (p + 1) * kWidth; ++i)
      if (part(i) > last) first = min(first, part(i));
    return first;
  }
};

template <int N>
FTWT_INLINE R part_of(V x, V y) {
  if constexpr (N < kParts) return x.part[N];
  else return y.part[N - kParts];
}

// The lanes of part P that come from parts after `Last`, put among those that are done.
template <typename O, int P, int Last, int... J>
FTWT_INLINE R gather_rest(V x, V y, R done, Lanes<J...> all) {
  constexpr int next = O::next(P, Last), i = P * kWidth;
  if constexpr (next == O::kNone) return done;
  else {
    done = __builtin_shufflevector(done, part_of<next>(x, y), (O::part(i + J) == next ? kWidth + O::lane(i + J) : J)...);
    return gather_rest<O, P, next>(x, y, done, all);
  }
}

// Part P of a shuffle: of the first two parts that it needs, then of the others.
template <typename O, int P, int... J>
FTWT_INLINE R gather(V x, V y, Lanes<J...> all) {
  constexpr int i = P * kWidth, a = O::next(P, -1), next = O::next(P, a), b = next == O::kNone ? a : next;
  const R done = __builtin_shufflevector(part_of<a>(x, y), part_of<b>(x, y),
                                         (O::lane(i + J) + (O::part(i + J) == a ? 0 : kWidth))...);
  return gather_rest<O, P, b>(x, y, done, all);
}

// Lanes by number, those of x from 0 on, those of y from 16 on.
template <int... I>
FTWT_INLINE V shuffle(V x, V y) {
  static_assert(sizeof...(I) == kLanes);
  using O = Order<I...>;
  constexpr AllLanes all;
  if constexpr (kParts == 1) return {{gather<O, 0>(x, y, all)}};
  else if constexpr (kParts == 2) return {{gather<O, 0>(x, y, all), gather<O, 1>(x, y, all)}};
  else return {{gather<O, 0>(x, y, all), gather<O, 1>(x, y, all), gather<O, 2>(x, y, all), gather<O, 3>(x, y, all)}};
}

// Lanes in blocks of S: the even blocks of x, each with that of y after it; and the odd ones.
template <int S, int... J>
FTWT_INLINE R even_blocks(R x, R y, Lanes<J...>) {
  return __builtin_shufflevector(x, y, (J / S % 2 ? kWidth + J - S : J)...);
}
template <int S, int... J>
FTWT_INLINE R odd_blocks(R x, R y, Lanes<J...>) {
  return __builtin_shufflevector(x, y, (J / S % 2 ? kWidth + J : J + S)...);
}
template <int S, int... J>
FTWT_INLINE R rotated(R x, Lanes<J...>) {
  return __builtin_shufflevector(x, x, (J + S) % kWidth...);
}

// All lanes, pair by pair, in lane 0.
template <int S = kWidth / 2, typename F>
FTWT_INLINE float across_lanes(R x, F f) {
  if constexpr (S == 0) return x[0];
  else return across_lanes<S / 2>(f(x, rotated<S>(x, AllLanes{})), f);
}
template <typename F>
FTWT_INLINE float reduce(V v, F f) {
  if constexpr (kParts == 1) return across_lanes(v.part[0], f);
  else if constexpr (kParts == 2) return across_lanes(f(v.part[0], v.part[1]), f);
  else return across_lanes(f(f(v.part[0], v.part[2]), f(v.part[1], v.part[3])), f);
}
FTWT_INLINE float sum(V v) {
  return reduce(v, [](R a, R b) { return a + b; });
}

// Lane i of the result: the sum over register i, of as many as have lanes.
template <int S = kWidth>
FTWT_INLINE R sums_of(const R* r) {
  if constexpr (S == 1) return *r;
  else {
    const R x = sums_of<S / 2>(r), y = sums_of<S / 2>(r + S / 2);
    return even_blocks<S / 2>(x, y, AllLanes{}) + odd_blocks<S / 2>(x, y, AllLanes{});
  }
}

// Rows and columns of kWidth registers exchanged: lane j of register i goes to lane i of register j.
template <int S = 1>
FTWT_INLINE void transpose_block(R* r) {
  if constexpr (S < kWidth) {
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i)
      if (i / S % 2 == 0) {
        const R x = r[i], y = r[i + S];
        r[i] = even_blocks<S>(x, y, AllLanes{}), r[i + S] = odd_blocks<S>(x, y, AllLanes{});
      }
    transpose_block<2 * S>(r);
  }
}

// The same for sixteen times sixteen lanes.
FTWT_INLINE void transpose16(const V* m, V* r) {
#pragma GCC unroll 4
  for (int p = 0; p < kParts; ++p)
#pragma GCC unroll 4
    for (int q = 0; q < kParts; ++q) {
      R block[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) block[i] = m[p * kWidth + i].part[q];
      transpose_block(block);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) r[q * kWidth + i].part[p] = block[i];
    }
}

// Two runs of eight floats, and back.
FTWT_INLINE V load_halves(const float* a, const float* b) {
#if defined(__AVX512F__)
  return {{(R)_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(a)), _mm256_loadu_ps(b), 1)}};
#else
  return each([&](int i) { return load_part(i < kParts / 2 ? a + i * kWidth : b + (i - kParts / 2) * kWidth); });
#endif
}
FTWT_INLINE void store_half(float* p, V v) {
#if defined(__AVX512F__)
  _mm256_storeu_ps(p, _mm512_castps512_ps256((__m512)v.part[0]));
#else
#pragma GCC unroll 2
  for (int i = 0; i < kParts / 2; ++i) store_part(p + i * kWidth, v.part[i]);
#endif
}

// A NaN in v stays one, as in torch: the comparison is false for it.
FTWT_INLINE R at_least(R v, float low) { return v < low ? splat_part(low) : v; }
FTWT_INLINE R at_most(R v, float high) { return v > high ? splat_part(high) : v; }
// The larger of two, and a NaN if either is one.
FTWT_INLINE R larger(R a, R b) { return ((a > b) | (a != a)) ? a : b; }
FTWT_INLINE V larger(V a, V b) { return each([&](int i) { return larger(a.part[i], b.part[i]); }); }

// e^x to about one unit in the last place: 2^n times a polynomial in what is left (Cephes).
FTWT_INLINE R exponential(R x) {
  const R nan = x;
  x = at_most(at_least(x, -87.33654f), 88.72283f);
  const R n = __builtin_convertvector(
      __builtin_convertvector(x * 1.44269504f + (x < 0.0f ? splat_part(-0.5f) : splat_part(0.5f)), RI), R);
  x = x - n * 0.693359375f + n * 2.12194440e-4f;
  R y = splat_part(1.9875691500e-4f);
  y = y * x + 1.3981999507e-3f;
  y = y * x + 8.3334519073e-3f;
  y = y * x + 4.1665795894e-2f;
  y = y * x + 1.6666665459e-1f;
  y = y * x + 5.0000001201e-1f;
  y = y * (x * x) + x + 1.0f;
  // 2^n in two steps: n may be 128
  const RI half = __builtin_convertvector(n, RI) / 2;
  const RI rest = __builtin_convertvector(n, RI) - half;
  const R result = y * (R)((half + 127) << 23) * (R)((rest + 127) << 23);
  constexpr float infinity = std::numeric_limits<float>::infinity();
  return nan > 88.72283f ? splat_part(infinity) : nan != nan ? nan : result;
}

FTWT_INLINE R logistic(R x) { return 1.0f / (1.0f + exponential(-x)); }

// Activations that only clip are bounds; the others follow after it.
struct Clip {
  float low, high;
  bool only;
};

static inline Clip clip_of(Activation kind) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  switch (kind) {
    case Activation::none: return {-infinity, infinity, true};
    case Activation::relu: return {0.0f, infinity, true};
    case Activation::relu6: return {0.0f, 6.0f, true};
    default: return {-infinity, infinity, false};
  }
}

// The processors' instructions return their second operand where a comparison meets a NaN.
FTWT_INLINE R clip(R v, R low, R high) {
#if defined(__AVX512F__)
  return (R)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)v));
#elif defined(__AVX2__)
  return (R)_mm256_min_ps((__m256)high, _mm256_max_ps((__m256)low, (__m256)v));
#elif defined(__SSE2__)
  return (R)_mm_min_ps((__m128)high, _mm_max_ps((__m128)low, (__m128)v));
#else
  v = v < low ? low : v;
  return v > high ? high : v;
#endif
}
FTWT_INLINE V clip(V v, V low, V high) {
  return each([&](int i) { return clip(v.part[i], low.part[i], high.part[i]); });
}

static inline R activate(Activation kind, R x) {
  switch (kind) {
    case Activation::none: return x;
    case Activation::relu: return at_least(x, 0.0f);
    case Activation::relu6: return at_most(at_least(x, 0.0f), 6.0f);
    case Activation::silu: return x * logistic(x);
    case Activation::hardswish: return x * (at_most(at_least(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6.0f));
    case Activation::sigmoid: return logistic(x);
    case Activation::hardsigmoid: return at_most(at_least(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6.0f);
    case Activation::leaky_relu: return x < 0.0f ? x * 0.01f : x;
    case Activation::elu: return x < 0.0f ? exponential(x) - 1.0f : x;
    case Activation::gelu:
      for (int i = 0; i < kWidth; ++i) x[i] = 0.5f * x[i] * (1.0f + ::erff(x[i] * 0.70710678f));
      return x;
    case Activation::tanh:
      for (int i = 0; i < kWidth; ++i) x[i] = ::tanhf(x[i]);
      return x;
  }
  return x;
}
FTWT_INLINE V activate(Activation kind, V v) {
  return each([&](int i) { return activate(kind, v.part[i]); });
}
