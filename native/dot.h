// Small planes: the inputs of a position lie side by side, and a weight that was read serves every
// position at once. Zero weights of the padding are never multiplied. Included by kernels_impl.h.

namespace dots {

// Sixteen sums of sixteen lanes each: lane i of the result is the sum over s[i].
static inline V sums_of(const V* s) {
#if defined(__AVX512F__)
  V a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i) {  // pairs within quarters
    const V x = s[2 * i], y = s[2 * i + 1];
    a[i] = __builtin_shufflevector(x, y, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           __builtin_shufflevector(x, y, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
  for (int i = 0; i < 4; ++i) {
    const V x = a[2 * i], y = a[2 * i + 1];
    b[i] = __builtin_shufflevector(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           __builtin_shufflevector(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  for (int i = 0; i < 2; ++i) {
    const V x = b[2 * i], y = b[2 * i + 1];
    c[i] = __builtin_shufflevector(x, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           __builtin_shufflevector(x, y, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  }
  return __builtin_shufflevector(c[0], c[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         __builtin_shufflevector(c[0], c[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
#else
  V v = {};
  for (int i = 0; i < kLanes; ++i) v[i] = sum(s[i]);
  return v;
#endif
}

// sums: filter by filter, each with its positions.
static void finish(const Epilogue& e, const V* sums, const int32_t* filters, int count) {
  alignas(64) float values[kLanes];
  store(values, sums_of(sums));
  const int positions = e.positions;
  for (int f = 0; f < count; ++f) {
    const int64_t at = static_cast<int64_t>(filters[f]) * positions;
    V y = load_some(values + f * positions, positions) + e.bias[filters[f]];
    y = activate(e.act, y);
    if (e.add && (!e.add_active || e.add_active[filters[f]])) y = y + load_some(e.add + at, positions);
    store_some(e.out + at, activate(e.post, y), positions);
  }
}

// P positions, one tap: a linear layer, or a 1x1 convolution.
template <int F, int P>
static void points(const Dot& d, const int32_t* filters) {
  V s[kLanes] = {};
  const float* rows[F];
  for (int f = 0; f < F; ++f) rows[f] = d.weights + static_cast<int64_t>(filters[f]) * d.stride;
  for (int b = 0; b < d.block_count; ++b) {
    const int64_t at = static_cast<int64_t>(d.blocks[b]) * kLanes;
    V x[P];
    for (int p = 0; p < P; ++p) x[p] = load(d.input + static_cast<int64_t>(p) * d.stride + at);
    for (int f = 0; f < F; ++f) {
      const V w = load(rows[f] + at);
      for (int p = 0; p < P; ++p) s[f * P + p] += w * x[p];
    }
  }
  finish(d.epilogue, s, filters, F);
}

// A 3x3 convolution with a border of one over an S x S plane.
template <int F, int S>
static void square(const Dot& d, const int32_t* filters) {
  V s[kLanes] = {};
  const float* rows[F];
  for (int f = 0; f < F; ++f) rows[f] = d.weights + static_cast<int64_t>(filters[f]) * 9 * d.stride;
  for (int b = 0; b < d.block_count; ++b) {
    const int64_t at = static_cast<int64_t>(d.blocks[b]) * kLanes;
    for (int f = 0; f < F; ++f) {
      V w[9];
      for (int t = 0; t < 9; ++t) w[t] = load(rows[f] + t * d.stride + at);
#pragma GCC unroll 16
      for (int q = 0; q < S * S; ++q) {  // an input position, and the outputs that see it
        const V x = load(d.input + static_cast<int64_t>(q) * d.stride + at);
#pragma GCC unroll 9
        for (int t = 0; t < 9; ++t) {
          const int y = q / S - t / 3 + 1, column = q % S - t % 3 + 1;
          if (y >= 0 && y < S && column >= 0 && column < S)
            s[f * S * S + y * S + column] += w[t] * x;
        }
      }
    }
  }
  finish(d.epilogue, s, filters, F);
}

template <void (*Many)(const Dot&, const int32_t*), void (*One)(const Dot&, const int32_t*)>
static void over(const Dot& d, int step) {
  int f = d.first_filter;
  for (; f + step <= d.last_filter; f += step) Many(d, d.filters + f);
  for (; f < d.last_filter; ++f) One(d, d.filters + f);
}

static void dot(const Dot& d, DotShape shape) {
  switch (shape) {
    case DotShape::point1: return over<points<8, 1>, points<1, 1>>(d, 8);
    case DotShape::point2: return over<points<4, 2>, points<1, 2>>(d, 4);
    case DotShape::point4: return over<points<4, 4>, points<1, 4>>(d, 4);
    case DotShape::square2: return over<square<4, 2>, square<1, 2>>(d, 4);
    case DotShape::square4: return over<square<1, 4>, square<1, 4>>(d, 1);
    case DotShape::none: return;
  }
}

}  // namespace dots
