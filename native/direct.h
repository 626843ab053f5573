// Convolution by its plain definition, sixteen output positions to a register. Included by
// kernels_impl.h.

namespace plain {

// Sums of F filters over N vectors of outputs stay in registers while all inputs pass by.
template <int F, int N, int T>
static void sums(const Direct& d, const int32_t* filters, const Vector* vectors, float* out) {
  V s[F][N];
#pragma GCC unroll 16
  for (int f = 0; f < F; ++f)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) s[f][n] = V{};
  const float* rows[F];
  for (int f = 0; f < F; ++f) rows[f] = d.weights + filters[f] * d.row;
  int64_t source[N];
  for (int n = 0; n < N; ++n) source[n] = vectors[n].source;
  const int taps = T ? T : d.taps;
  for (int i = 0; i < d.inputs; ++i) {
    const float* plane = d.input + d.input_offsets[i];
    const int64_t at = d.weight_offsets[i];
    auto step = [&](int t) __attribute__((always_inline)) {
      const float* tap = T == 1 ? plane : plane + d.tap_offsets[t];
      V x[N];
      for (int n = 0; n < N; ++n) x[n] = load(tap + source[n]);
      for (int f = 0; f < F; ++f) {
        const V w = splat(rows[f][at + t]);
        for (int n = 0; n < N; ++n) s[f][n] += w * x[n];
      }
    };
    if constexpr (T == 1) {
      step(0);
    } else {
      for (int t = 0; t < taps; ++t) step(t);
    }
  }
#pragma GCC unroll 16
  for (int f = 0; f < F; ++f)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store(out + (f * N + n) * kLanes, s[f][n]);
}

static void finish(const Epilogue& e, const float* sums, const Vector* vectors, int count, int filter) {
  float* plane = e.out + static_cast<int64_t>(filter) * e.positions;
  const bool adds = e.add && (!e.add_active || e.add_active[filter]);
  const float* other = adds ? e.add + static_cast<int64_t>(filter) * e.positions : nullptr;
  const V bias = splat(e.bias[filter]);
  for (int n = 0; n < count; ++n) {
    const Vector& v = vectors[n];
    V y = load(sums + n * kLanes);
    if (v.count == kLanes) {
      y = activate(e.act, y + bias);
      if (adds) y = y + load(other + v.target);
      store(plane + v.target, activate(e.post, y));
    } else if (v.count) {
      y = activate(e.act, compress(y, v.lanes) + bias);
      if (adds) y = y + load_some(other + v.target, v.count);
      store_some(plane + v.target, activate(e.post, y), v.count);
    }
  }
}

// How many filters go with N vectors: sums, vectors and a weight must fit the registers.
constexpr int filters_for(int n) {
  return std::max(1, std::min(n == 1 ? 14 : 12, (kRegisters - 1 - n) / n));
}

template <int F, int N, int T>
static void tile(const Direct& d, const int32_t* filters, const Vector* vectors) {
  alignas(64) float out[F * N * kLanes];
  sums<F, N, T>(d, filters, vectors, out);
  for (int f = 0; f < F; ++f) finish(d.epilogue, out + f * N * kLanes, vectors, N, filters[f]);
}

// A tile of `count` <= F filters, each count compiled apart.
template <int F, int N, int T>
static void some(const Direct& d, const int32_t* filters, int count, const Vector* vectors) {
  if (count == F) return tile<F, N, T>(d, filters, vectors);
  if constexpr (F > 1) some<F - 1, N, T>(d, filters, count, vectors);
}

template <int N, int T>
static void column(const Direct& d, const Vector* vectors) {
  constexpr int most = filters_for(N);
  int left = d.last_filter - d.first_filter;
  int groups = (left + most - 1) / most;
  for (const int32_t* f = d.filters + d.first_filter; groups; --groups) {
    const int count = (left + groups - 1) / groups;  // groups of even size
    some<most, N, T>(d, f, count, vectors);
    f += count, left -= count;
  }
}

template <int T>
static void by_taps(const Direct& d) {
  constexpr int most = kRegisters >= 32 ? 8 : kRegisters >= 8 ? 3 : 1;
  int left = d.last_vector - d.first_vector;
  // blocks of four are the best balance of loads; what does not divide is spread
  constexpr int best = std::min(most, 4);
  int blocks = std::max(1, left / best);
  if (left > blocks * most) blocks = (left + most - 1) / most;
  for (const Vector* v = d.vectors + d.first_vector; left > 0; --blocks) {
    const int count = (left + blocks - 1) / blocks;
    switch (count) {
      case 1: column<1, T>(d, v); break;
      case 2: if constexpr (most >= 2) column<2, T>(d, v); break;
      case 3: if constexpr (most >= 3) column<3, T>(d, v); break;
      case 4: if constexpr (most >= 4) column<4, T>(d, v); break;
      case 5: if constexpr (most >= 5) column<5, T>(d, v); break;
      case 6: if constexpr (most >= 6) column<6, T>(d, v); break;
      case 7: if constexpr (most >= 7) column<7, T>(d, v); break;
      case 8: if constexpr (most >= 8) column<8, T>(d, v); break;
      default: break;
    }
    v += count, left -= count;
  }
}

static void direct(const Direct& d) {
  switch (d.taps) {
    case 1: return by_taps<1>(d);
    case 9: return by_taps<9>(d);
    default: return by_taps<0>(d);
  }
}

// Every second float of 32.
static inline V even(const float* p) {
  return __builtin_shufflevector(load(p), load(p + kLanes), 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}

static inline void clear(float* p, int64_t n) {
  if (n > 0) std::memset(p, 0, static_cast<size_t>(n) * sizeof(float));
}

static void stage(const Stage& s) {
  for (int plane = 0; plane < s.planes; ++plane) {
    float* out = s.out + static_cast<int64_t>(plane) * s.plane_floats;
    const int y0 = s.phase_of[2 * plane] - s.top, x0 = s.phase_of[2 * plane + 1] - s.left;
    // columns [first, last) of a row have an input: 0 <= x0 + column * stride < width
    const int first = std::min(s.pitch, x0 < 0 ? (-x0 + s.stride_w - 1) / s.stride_w : 0);
    const int last = std::max(first, std::min(s.pitch, (s.width - x0 + s.stride_w - 1) / s.stride_w));
    for (int r = 0; r < s.rows; ++r, out += s.pitch) {
      const int y = y0 + r * s.stride_h;
      if (y < 0 || y >= s.height) {
        clear(out, s.pitch);
        continue;
      }
      const float* row = s.plane + static_cast<int64_t>(y) * s.width + x0;
      clear(out, first);
      int c = first;
      if (s.stride_w == 1) {
        for (; c + kLanes <= last; c += kLanes) store(out + c, load(row + c));
        if (c < last) store_some(out + c, load_some(row + c, last - c), last - c);
        c = last;
      } else if (s.stride_w == 2) {
        for (; c + kLanes < last; c += kLanes) store(out + c, even(row + 2 * c));
      }
      for (; c < last; ++c) out[c] = row[static_cast<int64_t>(c) * s.stride_w];
      clear(out + last, s.pitch - last);
    }
    clear(out, s.plane_floats - static_cast<int64_t>(s.rows) * s.pitch);
  }
}

template <int N>
static void across(const Depthwise& d, const float* plane, const float* weights, const Vector* vectors, int filter) {
  V s[N] = {};
  int64_t source[N];
  for (int n = 0; n < N; ++n) source[n] = vectors[n].source;
  for (int t = 0; t < d.taps; ++t) {
    const float* tap = plane + d.tap_offsets[t];
    const V w = splat(weights[t]);
    for (int n = 0; n < N; ++n) s[n] += w * load(tap + source[n]);
  }
  alignas(64) float sums[N * kLanes];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) store(sums + n * kLanes, s[n]);
  finish(d.epilogue, sums, vectors, N, filter);
}

static void depthwise(const Depthwise& d) {
  Stage s = d.stage;
  for (int i = d.first_filter; i < d.last_filter; ++i) {
    const int c = d.filters[i];
    Depthwise one = d;
    const float* plane = d.input + static_cast<int64_t>(c) * s.height * s.width;
    if (!d.active[c]) one.taps = 0;  // what is left is the bias
    else if (s.planes) {
      s.plane = plane;
      stage(s);
      plane = s.out;
    }
    const float* weights = d.weights + static_cast<int64_t>(c) * d.taps;
    constexpr int most = kRegisters >= 32 ? 8 : kRegisters >= 8 ? 4 : 2;
    int n = 0;
    for (; n + most <= d.vector_count; n += most) across<most>(one, plane, weights, d.vectors + n, c);
    if constexpr (most > 4)
      for (; n + 4 <= d.vector_count; n += 4) across<4>(one, plane, weights, d.vectors + n, c);
    for (; n < d.vector_count; ++n) across<1>(one, plane, weights, d.vectors + n, c);
  }
}

}  // namespace plain
