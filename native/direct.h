// Convolution by its plain definition, sixteen output positions to a register. Included by
// kernels_impl.h.

namespace plain {

// Sums of F filters over N vectors of outputs stay in registers while inputs [from, to) pass by.
// They go on from `partial`, and end there too, or, with `last`, as plain outputs.
template <int F, int N, int T>
static inline void sums(const Direct& d, const int32_t* filters, const int32_t* next, const Vector* vectors, int from,
                        int to, float* partial, bool last) {
  V s[F][N];
  if (from == 0) {
#pragma GCC unroll 16
    for (int f = 0; f < F; ++f)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) s[f][n] = V{};
  } else {
#pragma GCC unroll 16
    for (int f = 0; f < F; ++f)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) s[f][n] = load(partial + (f * N + n) * kLanes);
  }
  const float* rows[F];
  for (int f = 0; f < F; ++f) rows[f] = d.weights + filters[f] * d.row;
  const float* ahead[16];  // rows of the filters after these, fetched while these are used
  for (int f = 0; f < 16; ++f) ahead[f] = d.weights + next[f % F] * d.row;
  int64_t source[N];
  for (int n = 0; n < N; ++n) source[n] = vectors[n].source;
  const int taps = T ? T : d.taps;
  for (int n = 0; n < N; ++n) {
    FTWT_PRODUCTS(direct, int64_t{F} * (to - from) * taps * vectors[n].count);
    FTWT_PRODUCTS(idle, int64_t{F} * (to - from) * taps * (kLanes - vectors[n].count));
  }
  int i = from;
  if constexpr (T == 1 && N == 1 && F * kParts <= kRegisters / 4) {  // two chains of sums: few filters, and each waits for itself
    V r[F];
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f) r[f] = V{};
    for (; i + 2 <= to; i += 2) {
      const int64_t at = d.weight_offsets[i], after = d.weight_offsets[i + 1];
      prefetch(ahead[i % 8] + at), prefetch(ahead[(i + 1) % 8] + after);
      const V x = load(d.input + d.input_offsets[i] + source[0]), y = load(d.input + d.input_offsets[i + 1] + source[0]);
#pragma GCC unroll 8
      for (int f = 0; f < F; ++f) s[f][0] += splat(rows[f][at]) * x, r[f] += splat(rows[f][after]) * y;
    }
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f) s[f][0] += r[f];
  }
  for (; i < to; ++i) {
    const float* plane = d.input + d.input_offsets[i];
    const int64_t at = d.weight_offsets[i];
    auto step = [&](int t) __attribute__((always_inline)) {
      const float* tap = T == 1 ? plane : plane + d.tap_offsets[t];
      if constexpr (N > 1 && F < N * kParts) {  // what is fewer is held while the others pass by
        R w[F];
#pragma GCC unroll 16
        for (int f = 0; f < F; ++f) w[f] = splat_part(rows[f][at + t]);
#pragma GCC unroll 32
        for (int i = 0; i < N * kParts; ++i) {
          const R x = load_part(tap + source[i / kParts] + i % kParts * kWidth);
#pragma GCC unroll 16
          for (int f = 0; f < F; ++f) s[f][i / kParts].part[i % kParts] += w[f] * x;
        }
      } else {
        V x[N];
        for (int n = 0; n < N; ++n) x[n] = load(tap + source[n]);
        for (int f = 0; f < F; ++f) {
          const V w = splat(rows[f][at + t]);
          for (int n = 0; n < N; ++n) s[f][n] += w * x[n];
        }
      }
    };
    if constexpr (T == 1) {
      prefetch(ahead[i % (F <= 8 ? 8 : 16)] + at);  // a line holds sixteen inputs
      step(0);
    } else {
#pragma GCC unroll 16
      for (int f = 0; f < F; ++f) prefetch(ahead[f] + at);
      for (int t = 0; t < taps; ++t) step(t);
    }
  }
  if (last) {
    const Epilogue& e = d.epilogue;
    const Clip bounds = clip_of(e.act);
    const V low = splat(bounds.low), high = splat(bounds.high);
#pragma GCC unroll 16
    for (int f = 0; f < F; ++f) {
      float* plane = e.out + static_cast<int64_t>(filters[f]) * e.positions;
      const V bias = splat(e.bias[filters[f]]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) store(plane + vectors[n].target, clip(s[f][n] + bias, low, high));
    }
    return;
  }
#pragma GCC unroll 16
  for (int f = 0; f < F; ++f)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store(partial + (f * N + n) * kLanes, s[f][n]);
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

// How many filters go with n vectors: sums, and vectors or weights, and one of the others, must fit
// the registers.
constexpr int filters_for(int n) {
  const int parts = n * kParts;
  int filters = 1;
  while (filters < (n == 1 ? 7 : 12) && (filters + 1) * parts + min(filters + 1, parts) + 1 <= kRegisters) ++filters;
  return filters;
}

template <int F, int N, int T>
static void tile(const Direct& d, const int32_t* filters, const int32_t* next, const Vector* vectors, int from, int to,
                 float* partial, bool whole) {
  const bool last = to == d.inputs;
  sums<F, N, T>(d, filters, next, vectors, from, to, partial, last && whole);
  if (last && !whole)
    for (int f = 0; f < F; ++f) finish(d.epilogue, partial + f * N * kLanes, vectors, N, filters[f]);
}

// A tile of `count` <= F filters, each count compiled apart.
template <int F, int N, int T>
static void some(const Direct& d, const int32_t* filters, const int32_t* next, int count, const Vector* vectors,
                 int from, int to, float* partial, bool whole) {
  if (count == F) return tile<F, N, T>(d, filters, next, vectors, from, to, partial, whole);
  if constexpr (F > 1) some<F - 1, N, T>(d, filters, next, count, vectors, from, to, partial, whole);
}

template <int N, int T>
static void column(const Direct& d, const Vector* vectors) {
  constexpr int most = filters_for(N);
  bool whole = !d.epilogue.add && clip_of(d.epilogue.act).only && d.epilogue.post == Activation::none;
  for (int n = 0; n < N; ++n) whole &= vectors[n].count == kLanes;
  // as many inputs at a time as stay in L1 while all filters pass by
  const int most_inputs = T == 1 ? 384 / N : max(1, 1024 / N / d.taps);
  const int chunks = max(1, (d.inputs + most_inputs / 2) / most_inputs);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int from = static_cast<int>(static_cast<int64_t>(d.inputs) * chunk / chunks);
    const int to = static_cast<int>(static_cast<int64_t>(d.inputs) * (chunk + 1) / chunks);
    int left = d.last_filter - d.first_filter;
    float* partial = d.partial;
    for (const int32_t* f = d.filters + d.first_filter; left > 0;) {
      const int groups = (left + most - 1) / most, count = (left + groups - 1) / groups;  // of even size
      const int32_t* next = left >= 2 * count ? f + count : f;
      some<most, N, T>(d, f, next, count, vectors, from, to, partial, whole);
      if (chunks > 1) partial += count * N * kLanes;
      f += count, left -= count;
    }
  }
}

template <int T>
static void by_taps(const Direct& d) {
  constexpr int most = max(1, kRegisters / (4 * kParts));
  int left = d.last_vector - d.first_vector;
  // blocks of four are the best balance of loads; what does not divide is spread
  constexpr int best = min(most, 4);
  int blocks = max(1, left / best);
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
    case 9: return by_taps<(kParts <= 2 ? 9 : 0)>(d);  // GCC unrolls nine, which takes more registers
    default: return by_taps<0>(d);
  }
}

}  // namespace plain
