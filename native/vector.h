// Sixteen floats at a time, whatever the instruction set: GCC and Clang's vector extensions, compiled
// once for each of them (see kernels_*.cpp). Included inside a namespace of its own, so that two
// instruction sets never share a symbol.

typedef float V __attribute__((vector_size(64)));
typedef float VLoose __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t VI __attribute__((vector_size(64)));

constexpr int kLanes = 16;

#if defined(__AVX512F__)
constexpr int kRegisters = 32;  // of 16 floats each
#elif defined(__AVX2__)
constexpr int kRegisters = 8;  // a V is two of the 16 registers
#else
constexpr int kRegisters = 4;  // a V is four of the 16 registers
#endif

static inline V load(const float* p) { return *reinterpret_cast<const VLoose*>(p); }
static inline void store(float* p, V v) { *reinterpret_cast<VLoose*>(p) = v; }
static inline V splat(float s) { return V{s, s, s, s, s, s, s, s, s, s, s, s, s, s, s, s}; }

// The first n lanes from memory, zeros after them; nothing past them is read.
static inline V load_some(const float* p, int n) {
#if defined(__AVX512F__)
  return (V)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  V v = {};
  std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
  return v;
#endif
}

// The first n lanes to memory; nothing past them is written.
static inline void store_some(float* p, V v, int n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#else
  std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(float));
#endif
}

static inline void prefetch(const float* p) { __builtin_prefetch(p, 0, 2); }

// The lanes that `lanes` names, side by side, the first of them in lane 0.
static inline V compress(V v, uint16_t lanes) {
#if defined(__AVX512F__)
  return (V)_mm512_maskz_compress_ps(lanes, (__m512)v);
#else
  V packed = {};
  for (int i = 0, n = 0; i < kLanes; ++i)
    if (lanes >> i & 1) packed[n++] = v[i];
  return packed;
#endif
}

// A NaN in v stays one, as in torch: the comparison is false for it.
static inline V at_least(V v, float low) { return v < splat(low) ? splat(low) : v; }
static inline V at_most(V v, float high) { return v > splat(high) ? splat(high) : v; }
// The larger of two, and a NaN if either is one.
static inline V larger(V a, V b) { return (a > b) | (a != a) ? a : b; }

static inline float sum(V v) {
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3);
  v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1);
  return v[0] + v[1];
}

// Rows and columns of sixteen registers exchanged: lane j of result i is lane i of register j.
static inline void transpose16(const V* m, V* r) {
  V a[16], b[16];
  for (int i = 0; i < 16; i += 2) {  // single floats within pairs
    a[i] = __builtin_shufflevector(m[i], m[i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    a[i + 1] = __builtin_shufflevector(m[i], m[i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
  for (int i = 0; i < 16; i += 4)
    for (int k = 0; k < 2; ++k) {  // pairs within quarters
      b[i + k] = __builtin_shufflevector(a[i + k], a[i + k + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      b[i + k + 2] = __builtin_shufflevector(a[i + k], a[i + k + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
  for (int i = 0; i < 16; i += 8)
    for (int k = 0; k < 4; ++k) {  // quarters within halves
      a[i + k] = __builtin_shufflevector(b[i + k], b[i + k + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
      a[i + k + 4] = __builtin_shufflevector(b[i + k], b[i + k + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    }
  for (int k = 0; k < 8; ++k) {  // halves
    r[k] = __builtin_shufflevector(a[k], a[k + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    r[k + 8] = __builtin_shufflevector(a[k], a[k + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
}

// e^x to about one unit in the last place: 2^n times a polynomial in what is left (Cephes).
static inline V exponential(V x) {
  const V nan = x;
  x = at_most(at_least(x, -87.33654f), 88.72283f);
  const V n = __builtin_convertvector(
      __builtin_convertvector(x * 1.44269504f + (x < 0.0f ? splat(-0.5f) : splat(0.5f)), VI), V);
  x = x - n * 0.693359375f + n * 2.12194440e-4f;
  V y = splat(1.9875691500e-4f);
  y = y * x + 1.3981999507e-3f;
  y = y * x + 8.3334519073e-3f;
  y = y * x + 4.1665795894e-2f;
  y = y * x + 1.6666665459e-1f;
  y = y * x + 5.0000001201e-1f;
  y = y * (x * x) + x + 1.0f;
  // 2^n in two steps: n may be 128
  const VI half = __builtin_convertvector(n, VI) / 2;
  const VI rest = __builtin_convertvector(n, VI) - half;
  const V result = y * (V)((half + 127) << 23) * (V)((rest + 127) << 23);
  return nan != nan ? nan : result;
}

static inline V logistic(V x) { return 1.0f / (1.0f + exponential(-x)); }

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

static inline V clip(V v, V low, V high) {
#if defined(__AVX512F__)  // the second operand is what a comparison with NaN returns
  return (V)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)v));
#else
  v = v < low ? low : v;
  return v > high ? high : v;
#endif
}

static inline V activate(Activation kind, V x) {
  switch (kind) {
    case Activation::none: return x;
    case Activation::relu: return at_least(x, 0.0f);
    case Activation::relu6: return at_most(at_least(x, 0.0f), 6.0f);
    case Activation::silu: return x * logistic(x);
    case Activation::hardswish: return x * at_most(at_least(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6.0f);
    case Activation::sigmoid: return logistic(x);
    case Activation::hardsigmoid: return at_most(at_least(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6.0f);
    case Activation::leaky_relu: return x < 0.0f ? x * 0.01f : x;
    case Activation::elu: return x < 0.0f ? exponential(x) - 1.0f : x;
    case Activation::gelu:
      for (int i = 0; i < kLanes; ++i) x[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
      return x;
    case Activation::tanh:
      for (int i = 0; i < kLanes; ++i) x[i] = std::tanh(x[i]);
      return x;
  }
  return x;
}
