// Small planes: the inputs of a position lie side by side, and a weight that was read serves every
// position at once. Zero weights of the padding are never multiplied. Included by kernels_impl.h.

namespace dots {

// Plane by plane to position by position: out[p * stride + c] for the inputs named, zero for others.
static void interleave(const Interleave& n) {
  const float* const none = nullptr;
  for (int first = 0, at = 0; first < n.channels; first += kLanes) {
    const float* planes[kLanes];
    bool any = false;
    for (int k = 0; k < kLanes; ++k) {
      const bool active = at < n.inputs && n.active[at] == first + k;
      planes[k] = active ? n.input + static_cast<int64_t>(n.active[at++]) * n.positions : none;
      any |= active;
    }
    for (int p = 0; p < n.positions; p += kLanes) {
      const int count = min(kLanes, n.positions - p);
      V rows[kLanes], columns[kLanes] = {};
      if (any) {
        for (int k = 0; k < kLanes; ++k) rows[k] = planes[k] ? load_some(planes[k] + p, count) : V{};
        transpose16(rows, columns);
      }
      for (int k = 0; k < count; ++k) store(n.out + static_cast<int64_t>(p + k) * n.stride + first, columns[k]);
    }
  }
}

// sums: filter by filter, each with P of its positions from `from` on.
template <int P>
static inline void finish(const Epilogue& e, const R* sums, const int32_t* filters, int count, int from) {
  alignas(64) float bias[kLanes] = {}, other[kLanes] = {}, out[kLanes];
  for (int f = 0; f < count; ++f)
    for (int p = 0; p < P; ++p) bias[f * P + p] = e.bias[filters[f]];
  V y = activate(e.act, each([&](int i) { return sums_of(sums + i * kWidth); }) + load(bias));
  if (e.add) {
    for (int f = 0; f < count; ++f)
      if (!e.add_active || e.add_active[filters[f]])
        std::memcpy(other + f * P, e.add + static_cast<int64_t>(filters[f]) * e.positions + from, P * sizeof(float));
    y = activate(e.post, y + load(other));
  }
  store(out, y);
  for (int f = 0; f < count; ++f)
    std::memcpy(e.out + static_cast<int64_t>(filters[f]) * e.positions + from, out + f * P, P * sizeof(float));
}

// F filters at P positions, one tap: a linear layer, or a 1x1 convolution. The rows of the next
// filters are fetched meanwhile.
template <int F, int P, bool Fetch>
static void points(const Dot& d, const int32_t* filters, const int32_t* next, int position) {
  R s[F * P];
#pragma GCC unroll 32
  for (int i = 0; i < F * P; ++i) s[i] = R{};
  const float *rows[F], *ahead[F];
  for (int f = 0; f < F; ++f) {
    rows[f] = d.weights + static_cast<int64_t>(filters[f]) * d.stride;
    ahead[f] = d.weights + static_cast<int64_t>(next[f]) * d.stride;
  }
  const float* input = d.input + static_cast<int64_t>(position) * d.stride;
  FTWT_PRODUCTS(dot, int64_t{F} * P * d.block_count * kLanes);
  for (int b = 0; b < d.block_count; ++b) {
    const int64_t block = static_cast<int64_t>(d.blocks[b]) * kLanes;
    if constexpr (Fetch) {
      asm("" : "+m"(ahead));  // these pointers are read from memory: the registers are for the sums
#pragma GCC unroll 16
      for (int f = 0; f < F; ++f) prefetch(ahead[f] + block);
    }
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      const int64_t at = block + part * kWidth;
      R w[F];
#pragma GCC unroll 16
      for (int f = 0; f < F; ++f) w[f] = load_part(rows[f] + at);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        const R x = load_part(input + static_cast<int64_t>(p) * d.stride + at);
#pragma GCC unroll 16
        for (int f = 0; f < F; ++f) s[f * P + p] += w[f] * x;
      }
    }
  }
  constexpr int most = kLanes / P, all = (F + most - 1) / most * kLanes;  // filters of sixteen results
  R sums[all];                                                           // s itself stays in registers
#pragma GCC unroll 32
  for (int i = 0; i < all; ++i) sums[i] = i < F * P ? s[i] : R{};
#pragma GCC unroll 4
  for (int f = 0; f < F; f += most)
    finish<P>(d.epilogue, sums + f * P, filters + f, min(most, F - f), position);
}

template <int F>
static void all_points(const Dot& d, const int32_t* filters, const int32_t* next) {
  const int n = d.epilogue.positions;
  int p = 0;
  if (n >= 4) points<F, 4, true>(d, filters, next, 0), p = 4;
  for (; p + 4 <= n; p += 4) points<F, 4, false>(d, filters, next, p);
  for (; p + 2 <= n; p += 2) points<F, 2, true>(d, filters, next, p);
  for (; p < n; ++p) points<F, 1, true>(d, filters, next, p);
}

// A 3x3 convolution with a border of one over an S x S plane; weights (K, blocks, 9, 16). Filter by
// filter, so that the weights are one stream; what is fetched ahead of it goes on in the next filter.
template <int F, int S>
static void square(const Dot& d, const int32_t* filters, const int32_t* next) {
  constexpr int kAhead = S == 2 ? 32 : 16;  // blocks: as far as memory is away
  R sums[kLanes] = {};
  FTWT_PRODUCTS(dot, int64_t{F} * d.block_count * kLanes * (3 * S - 2) * (3 * S - 2));
  const int64_t row = static_cast<int64_t>(d.stride) * 9;
  for (int f = 0; f < F; ++f) {
    const float* weights = d.weights + filters[f] * row;
    const float* later = d.weights + (f + 1 < F ? filters[f + 1] : next[0]) * row;
    R s[S * S] = {}, r[S * S] = {};
    auto block = [&](int b, R* into) __attribute__((always_inline)) {
      const int ahead = b + kAhead;
      const float* fetch = ahead < d.block_count ? weights + static_cast<int64_t>(d.blocks[ahead]) * 9 * kLanes
                                                 : later + static_cast<int64_t>(d.blocks[min(ahead - d.block_count, d.block_count - 1)]) * 9 * kLanes;
      const int64_t at = static_cast<int64_t>(d.blocks[b]) * kLanes;
#pragma GCC unroll 9
      for (int t = 0; t < 9; ++t) prefetch(fetch + t * kLanes);
#pragma GCC unroll 4
      for (int part = 0; part < kLanes; part += kWidth) {
        R w[9];
#pragma GCC unroll 9
        for (int t = 0; t < 9; ++t) w[t] = load_part(weights + at * 9 + t * kLanes + part);
#pragma GCC unroll 16
        for (int q = 0; q < S * S; ++q) {  // an input position, and the outputs that see it
          const R x = load_part(d.input + static_cast<int64_t>(q) * d.stride + at + part);
#pragma GCC unroll 9
          for (int t = 0; t < 9; ++t) {
            const int y = q / S - t / 3 + 1, column = q % S - t % 3 + 1;
            if (y >= 0 && y < S && column >= 0 && column < S) into[y * S + column] += w[t] * x;
          }
        }
      }
    };
    int b = 0;
    if constexpr (S == 2)  // two chains of sums, or each would wait for itself
      for (; b + 2 <= d.block_count; b += 2) block(b, s), block(b + 1, r);
    for (; b < d.block_count; ++b) block(b, s);
    for (int q = 0; q < S * S; ++q) sums[f * S * S + q] = s[q] + r[q];
  }
  finish<S * S>(d.epilogue, sums, filters, F, 0);
}

using Many = void (*)(const Dot&, const int32_t* filters, const int32_t* next);

template <int F>
static void some_points(const Dot& d, const int32_t* filters, int count) {
  if (count == F) return all_points<F>(d, filters, filters);
  if constexpr (F > 1) some_points<F - 1>(d, filters, count);
}

static void some_squares(const Dot& d, Many one, const int32_t* filters, int count) {
  for (int f = 0; f < count; ++f) one(d, filters + f, filters + min(f + 1, count - 1));
}

static void dot(const Dot& d, DotShape shape) {
  constexpr int most = (kRegisters - 1) / 5;  // times four positions, weights and an input are registers
  const int step = shape == DotShape::points ? most : shape == DotShape::square2 ? 4 : 1;
  const Many many = shape == DotShape::points ? all_points<most> : shape == DotShape::square2 ? square<4, 2> : square<1, 4>;
  const int32_t* f = d.filters + d.first_filter;
  int left = d.last_filter - d.first_filter;
  for (; left >= step; f += step, left -= step) many(d, f, left >= 2 * step ? f + step : f);
  if (left && shape == DotShape::points) some_points<most>(d, f, left);
  else if (left) some_squares(d, square<1, 2>, f, left);
}

}  // namespace dots
