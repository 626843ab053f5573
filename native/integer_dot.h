// Small planes: a register holds inputs of one position, side by side, and a weight that was read
// serves every position at once; zeros of the padding are not multiplied. Weights are one stream, and
// are nearly all there is to read. Included by integer_impl.h.

namespace integers {

constexpr int kStep = kBytes ? 64 : 2 * kWidth;  // inputs of a register

// Weights as they are multiplied: a register of bytes, or of halves.
FTWT_INLINE RI load_weights(const int8_t* p) {
#if defined(__AVX512VNNI__)
  return (RI)_mm512_loadu_si512(p);
#elif defined(__AVX2__)
  return (RI)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  typedef int8_t Bytes __attribute__((vector_size(2 * kWidth)));
  typedef int16_t Halves __attribute__((vector_size(4 * kWidth)));
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return (RI)__builtin_convertvector(bytes, Halves);
#endif
}

// Inputs from the i-th on.
FTWT_INLINE RI load_inputs(const void* input, int64_t i) {
  return load_dwords(static_cast<const int32_t*>(input) + i / kDword);
}

// Lane i of the result: the sum over register i, of as many as have lanes.
template <int S = kWidth>
FTWT_INLINE RI whole_sums(const RI* r) {
  if constexpr (S == 1) return *r;
  else {
    const R x = (R)whole_sums<S / 2>(r), y = (R)whole_sums<S / 2>(r + S / 2);
    return (RI)even_blocks<S / 2>(x, y, AllLanes{}) + (RI)odd_blocks<S / 2>(x, y, AllLanes{});
  }
}

// sums: of F filters, each at P positions from `from` on; there are sixteen, or zeros behind them.
template <int F, int P>
static void finish_dots(const IntegerDot& d, const RI* sums, const int32_t* filters, int from) {
  const IntegerEpilogue& e = *d.epilogue;
    alignas(64) float scale[kLanes] = {}, bias[kLanes] = {};
  alignas(64) int32_t less[kLanes] = {};
  alignas(64) uint8_t other[4 * kLanes] = {}, out[4 * kLanes];
  for (int f = 0; f < F; ++f)
    for (int p = 0; p < P; ++p) scale[f * P + p] = e.scale[filters[f]], bias[f * P + p] = e.bias[filters[f]];
  if (d.less)
    for (int f = 0; f < F; ++f)
      for (int p = 0; p < P; ++p) less[f * P + p] = d.less[static_cast<int64_t>(filters[f]) * e.positions + from + p];
  V y = each([&](int i) {
    return __builtin_convertvector(whole_sums(sums + i * kWidth) - load_dwords(less + i * kWidth), R);
  });
  y = y * load(scale);
  y = activate(e.act, y + load(bias));
  if (e.add.at) {
    const int size = P * size_of(e.add.type);
    for (int f = 0; f < F; ++f)
      if (!e.add_active || e.add_active[filters[f]])
        std::memcpy(other + f * size,
                    static_cast<const uint8_t*>(e.add.at) + (static_cast<int64_t>(filters[f]) * e.positions + from) * size_of(e.add.type), size);
    y = activate(e.post, y + load_values({other, e.add.type, e.add.scale, false}, 0, kLanes));
  }
  store_values({out, e.out.type, e.out.inverse}, 0, y, kLanes);
  const int size = P * size_of(e.out.type);
  for (int f = 0; f < F; ++f)
    std::memcpy(static_cast<uint8_t*>(e.out.at) + (static_cast<int64_t>(filters[f]) * e.positions + from) * size_of(e.out.type),
                out + f * size, size);
}

// F filters at P positions, one tap. The rows of the next filters are fetched meanwhile.
template <int F, int P>
static void points(const IntegerDot& d, const int32_t* filters, const int32_t* next, int position) {
  RI s[F * P];
#pragma GCC unroll 16
  for (int i = 0; i < F * P; ++i) s[i] = RI{};
  const int8_t *rows[F], *ahead[F];
  for (int f = 0; f < F; ++f) rows[f] = d.weights + static_cast<int64_t>(filters[f]) * d.row;
  for (int f = 0; f < F; ++f) ahead[f] = d.weights + static_cast<int64_t>(next[f]) * d.row;
  const int64_t input = static_cast<int64_t>(position) * d.stride;
  for (int b = 0; b < d.block_count; ++b) {
    const int64_t block = static_cast<int64_t>(d.blocks[b]) * kIntegerBlock;
    for (int f = 0; f < F; ++f) __builtin_prefetch(ahead[f] + block, 0, 3);
    for (int at = 0; at < kIntegerBlock; at += kStep) {
      RI w[F];
#pragma GCC unroll 16
      for (int f = 0; f < F; ++f) w[f] = load_weights(rows[f] + block + at);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const RI x = load_inputs(d.input, input + static_cast<int64_t>(p) * d.stride + block + at);
#pragma GCC unroll 16
        for (int f = 0; f < F; ++f) s[f * P + p] = multiply_add(s[f * P + p], x, w[f]);
      }
    }
  }
  RI sums[kLanes];  // s itself stays in registers
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) sums[i] = i < F * P ? s[i] : RI{};
  finish_dots<F, P>(d, sums, filters, position);
}

// A 3x3 convolution with a border of one over an S x S plane: sums of a filter.
template <int S, bool Picked>
FTWT_INLINE void square_sums(const IntegerDot& d, int32_t filter, int32_t next, RI* out) {
  const int64_t row = static_cast<int64_t>(d.row) * 9;
  const int8_t *weights = d.weights + filter * row, *ahead = d.weights + next * row;
  constexpr int kChains = S == 2 && kRegisters > 16 ? 2 : 1;  // four sums would wait for themselves
  RI s[kChains][S * S];
#pragma GCC unroll 2
  for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 16
    for (int i = 0; i < S * S; ++i) s[c][i] = RI{};
  const auto multiply = [&](const RI* w, int64_t input, RI* into) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int q = 0; q < S * S; ++q) {  // an input position, and the outputs that see it
      const RI x = load_inputs(d.input, static_cast<int64_t>(q) * d.stride + input);
#pragma GCC unroll 9
      for (int t = 0; t < 9; ++t) {
        const int y = q / S - t / 3 + 1, column = q % S - t % 3 + 1;
        if (y >= 0 && y < S && column >= 0 && column < S) into[y * S + column] = multiply_add(into[y * S + column], x, w[t]);
      }
    }
  };
  const auto fetch = [&](int64_t block) __attribute__((always_inline)) {
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) __builtin_prefetch(ahead + block * 9 + t * kIntegerBlock, 0, 3);
  };
  [[maybe_unused]] const Pick* pick = d.picks;
  const auto step = [&](int b, RI* into) __attribute__((always_inline)) {
    RI w[9];
    if constexpr (Picked) {
#if defined(__AVX512VBMI__)
      const int last = d.row - kIntegerBlock, block = pick->block * kIntegerBlock, second = min(block + kIntegerBlock, last);
      const Pick *const third = pick + (pick->more > 0), *const end = pick + pick->more;
      const __m512i order = _mm512_loadu_si512(pick->order), order_of_third = _mm512_loadu_si512(third->order);
      const __mmask64 lanes = pick->more > 0 ? third->lanes : 0;
      fetch(block), fetch(second);
#pragma GCC unroll 9
      for (int t = 0; t < 9; ++t) {
        const int8_t* from = weights + t * kIntegerBlock;
        const __m512i two = _mm512_permutex2var_epi8(_mm512_loadu_si512(from + block * 9), order, _mm512_loadu_si512(from + second * 9));
        w[t] = (RI)_mm512_mask_permutexvar_epi8(two, lanes, order_of_third, _mm512_loadu_si512(from + third->block * kIntegerBlock * 9));
      }
      for (pick = min(pick + 2, end + 1); pick <= end; ++pick)
#pragma GCC unroll 9
        for (int t = 0; t < 9; ++t)
          w[t] = (RI)_mm512_mask_permutexvar_epi8((__m512i)w[t], pick->lanes, _mm512_loadu_si512(pick->order),
                                                  _mm512_loadu_si512(weights + (pick->block * 9 + t) * kIntegerBlock));
      multiply(w, static_cast<int64_t>(b) * kIntegerBlock, into);
#endif
    } else {
      const int64_t block = static_cast<int64_t>(d.blocks[b]) * kIntegerBlock;
      fetch(block);
      for (int at = 0; at < kIntegerBlock; at += kStep) {
#pragma GCC unroll 9
        for (int t = 0; t < 9; ++t) w[t] = load_weights(weights + block * 9 + at + t * kIntegerBlock);
        multiply(w, block + at, into);
      }
    }
  };
  for (int b = 0; b < d.block_count; ++b) {
    step(b, s[0]);
    if constexpr (kChains == 2) {
      if (++b == d.block_count) break;
      step(b, s[1]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < S * S; ++i) {
    out[i] = s[0][i];
    if constexpr (kChains == 2) out[i] += s[1][i];
  }
}

// As many filters as give sixteen sums; those of `next` come after them.
template <int S>
static void square(const IntegerDot& d, const int32_t* filters, const int32_t* next) {
  constexpr int count = kLanes / (S * S);
  RI sums[kLanes];
  for (int f = 0; f < count; ++f) {
    const int32_t after = f + 1 < count ? filters[f + 1] : next[0];
    if (kPicks && d.picks) square_sums<S, kPicks>(d, filters[f], after, sums + f * S * S);
    else square_sums<S, false>(d, filters[f], after, sums + f * S * S);
  }
  finish_dots<count, S * S>(d, sums, filters, 0);
}

template <int F>
static void all_points(const IntegerDot& d, const int32_t* filters, const int32_t* next) {
  const int n = d.epilogue->positions;
  int p = 0;
  for (; p + 4 <= n; p += 4) points<F, 4>(d, filters, next, p);
  for (; p + 2 <= n; p += 2) points<F, 2>(d, filters, next, p);
  if (p < n) points<F, 1>(d, filters, next, p);
}

static void dot(const IntegerDot& d, DotShape shape) {
  constexpr int most = kRegisters > 16 ? 4 : 2;  // times four positions, weights and an input are registers
  const bool alone = shape == DotShape::points && d.epilogue->positions == 1;
  const int some = shape == DotShape::square4 ? 1 : shape == DotShape::square2 ? 4 : alone ? 2 * most : most;
  const int met = shape == DotShape::square4 ? 100 : shape == DotShape::square2 ? 16 : d.epilogue->positions;
  FTWT_PRODUCTS(integer, int64_t{met} * (d.last_filter - d.first_filter) * d.block_count * kIntegerBlock);
  for (int first = d.first_filter; first < d.last_filter; first += some) {
    int32_t filters[8], next[8];  // if there are too few, the last one again
    for (int i = 0; i < some; ++i) {
      filters[i] = d.filters[min(first + i, d.last_filter - 1)];
      next[i] = d.filters[min(first + some + i, d.last_filter - 1)];
    }
    if (shape == DotShape::square4) square<4>(d, filters, next);
    else if (shape == DotShape::square2) square<2>(d, filters, next);
    else if (alone) points<2 * most, 1>(d, filters, next, 0);
    else all_points<most>(d, filters, next);
  }
}

static void arrange(const IntegerArrange& a) {
  const int32_t zero = zero_of(a.type);
  int32_t* out = static_cast<int32_t*>(a.out);
  const int row = a.stride / kDword;  // dwords of a position
  IntegerStage s{{}, {}, a.type, true, nullptr, nullptr, nullptr, 0};
  if (a.positions > 1) {
    alignas(64) int32_t flat[16 + kLanes];
    const int32_t* next = a.active;
    const int32_t* const last = a.active + a.count;
    for (int g = 0; g < row; ++g) {
      bool any = false;
      for (int k = 0; k < kDword; ++k) {
        const bool active = next < last && (a.picked || *next == g * kDword + k);
        s.channels[k] = active ? a.map + static_cast<int64_t>(*next++) * a.positions : nullptr;
        any |= active;
      }
      if (any) interleave(s, a.positions, flat);
      for (int p = 0; p < a.positions; ++p) out[static_cast<int64_t>(p) * row + g] = any ? flat[p] : zero;
    }
    return;
  }
  fill(out, row, zero);
  typedef std::conditional_t<kBytes, uint8_t, int16_t> Input;
  Input* to = static_cast<Input*>(a.out);
  for (int i = 0; i < a.count; ++i) {
    const int64_t from = static_cast<int64_t>(a.active[i]) * a.span;
    for (int64_t k = from; k < from + a.span; ++k) {
      if constexpr (kBytes) to[k] = static_cast<uint8_t>(a.map[k] ^ (zero & 255));
      else to[k] = a.type == Type::s8 ? static_cast<int8_t>(a.map[k]) : static_cast<int16_t>(a.map[k]);
    }
  }
}

}  // namespace integers
