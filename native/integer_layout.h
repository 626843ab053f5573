// What a convolution reads, laid out for it: active inputs side by side in dwords, and the weights
// of these alone. Included by integer_impl.h.

namespace integers {

// What stands in for a zero: unsigned bytes hold a signed one 128 higher.
static int32_t zero_of(Type type) { return kBytes && type == Type::s8 ? static_cast<int32_t>(0x80808080u) : 0; }

// n positions of a dword's channels side by side; some dwords past them may be written.
static void interleave(const IntegerStage& s, int64_t n, int32_t* out) {
  const int32_t zero = s.shifted ? zero_of(s.type) : 0;
  alignas(64) static constexpr uint8_t zeros[64] = {};
  const uint8_t* p[kDword];
  int step[kDword];
  for (int k = 0; k < kDword; ++k) p[k] = s.channels[k] ? s.channels[k] : zeros, step[k] = s.channels[k] ? 1 : 0;
#if defined(__AVX512F__)
  // Four times sixty-four bytes: dwords are arranged first, so that unpacking leaves them in order.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i flip = _mm512_set1_epi32(zero);
  for (int64_t i = 0; i < n; i += 64) {
    __m512i x[4];
    for (int k = 0; k < 4; ++k) x[k] = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(p[k] + i * step[k]));
    const __m512i a = _mm512_unpacklo_epi8(x[0], x[1]), b = _mm512_unpackhi_epi8(x[0], x[1]);
    const __m512i c = _mm512_unpacklo_epi8(x[2], x[3]), d = _mm512_unpackhi_epi8(x[2], x[3]);
    const __m512i r[4] = {_mm512_unpacklo_epi16(a, c), _mm512_unpackhi_epi16(a, c), _mm512_unpacklo_epi16(b, d),
                          _mm512_unpackhi_epi16(b, d)};
    for (int k = 0; k < 4; ++k)
      if (i + 16 * k < n) _mm512_storeu_si512(out + i + 16 * k, _mm512_xor_si512(r[k], flip));
  }
#else
  for (int64_t i = 0; i < n; i += kWidth) {
    RI x[kDword];
    for (int k = 0; k < kDword; ++k) x[k] = widen(p[k] + i * step[k], s.type);
    RI dword = x[kDword - 1];
    if constexpr (kBytes) dword = (x[0] & 255) | (x[1] & 255) << 8 | (x[2] & 255) << 16 | x[3] << 24;
    else dword = (x[0] & 65535) | x[1] << 16;
    const RI flipped = dword ^ splat_dword(zero);
    std::memcpy(out + i, &flipped, sizeof flipped);
  }
#endif
}

static void fill(int32_t* p, int64_t n, int32_t value) {
  for (int64_t i = 0; i < n; ++i) p[i] = value;
}

template <int Step>
static inline void copy_row(const int32_t* from, int count, int step, int32_t* to) {
  const int s = Step ? Step : step;
  if constexpr (Step == 1) std::memcpy(to, from, sizeof(int32_t) * count);
  else
    for (int i = 0; i < count; ++i) to[i] = from[static_cast<int64_t>(i) * s];
}

static void stage(const IntegerStage& s) {
  const Stage& l = s.layout;
  const int64_t positions = static_cast<int64_t>(l.height) * l.width;
  if (!l.planes) return interleave(s, positions, s.out);
  interleave(s, positions, s.flat);
  const int32_t zero = s.shifted ? zero_of(s.type) : 0;
#if defined(__AVX512F__)
  if (s.move_count) {
    const __m512i zeros = _mm512_set1_epi32(zero);
    for (const Move* g = s.moves; g < s.moves + s.move_count; ++g) {
      const __m512i order = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(g->order)));
      const __m512i first = _mm512_loadu_si512(s.flat + g->from), second = _mm512_loadu_si512(s.flat + g->from + 16);
      const __m512i found = _mm512_permutex2var_epi32(first, order, second);
      if (g->more) _mm512_mask_storeu_epi32(s.out + g->to, g->lanes, found);
      else _mm512_storeu_si512(s.out + g->to, _mm512_mask_blend_epi32(g->lanes, zeros, found));
    }
    return;
  }
#endif
  for (int p = 0; p < l.planes; ++p) {
    int32_t* plane = s.out + static_cast<int64_t>(p) * l.plane_floats;
    const int row_phase = l.phase_of[2 * p], column = l.phase_of[2 * p + 1] - l.left;
    // of a row's columns, [first, last) lie in the input
    const int first = min(l.pitch, column >= 0 ? 0 : (l.stride_w - 1 - column) / l.stride_w);
    const int last = max(first, min(l.pitch, l.width > column ? (l.width - 1 - column) / l.stride_w + 1 : 0));
    for (int r = 0; r < l.rows; ++r) {
      int32_t* to = plane + static_cast<int64_t>(r) * l.pitch;
      const int64_t y = static_cast<int64_t>(r) * l.stride_h + row_phase - l.top;
      if (y < 0 || y >= l.height) {
        fill(to, l.pitch, zero);
        continue;
      }
      fill(to, first, zero), fill(to + last, l.pitch - last, zero);
      const int32_t* from = s.flat + y * l.width + static_cast<int64_t>(first) * l.stride_w + column;
      if (l.stride_w == 1) copy_row<1>(from, last - first, 1, to + first);
      else if (l.stride_w == 2) copy_row<2>(from, last - first, 2, to + first);
      else copy_row<0>(from, last - first, l.stride_w, to + first);
    }
    const int64_t end = static_cast<int64_t>(l.rows) * l.pitch;
    fill(plane + end, l.plane_floats - end, zero);
  }
}

#if defined(__AVX512VBMI__)
constexpr bool kOrders = false, kPicks = true;
#elif defined(__AVX2__)
constexpr bool kOrders = true, kPicks = false;

// Sixty-four weights, sixteen bytes at a time: `orders` puts those that are kept first, `kept` says
// how many. Returns the place behind them.
FTWT_INLINE uint8_t* pack_block(const uint8_t* from, const uint8_t* orders, const uint8_t* kept, uint8_t* to) {
#if defined(__AVX512F__)
  const __m512i w = _mm512_shuffle_epi8(_mm512_loadu_si512(from), _mm512_loadu_si512(orders));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_castsi512_si128(w)), to += kept[0];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_extracti32x4_epi32(w, 1)), to += kept[1];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_extracti32x4_epi32(w, 2)), to += kept[2];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_extracti32x4_epi32(w, 3)), to += kept[3];
#else
  for (int i = 0; i < 64 * static_cast<int>(sizeof(Weight)); i += 16) {
    const __m128i w = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    const __m128i order = _mm_loadu_si128(reinterpret_cast<const __m128i*>(orders + i));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(w, order)), to += kept[i / 16];
  }
#endif
  return to;
}
#else
constexpr bool kOrders = false, kPicks = false;
#endif

// Where the weights of a filter lie: of sixty-four inputs together, all taps of them, or of all inputs.
struct Places {
  int last;                    // the first of the last sixty-four inputs, or fewer
  int64_t step, tap, rest, tap_of_rest;

  explicit Places(const IntegerPack& p) : last((p.inputs - 1) / 64 * 64) {
    const bool blocks = p.block < p.inputs;
    step = blocks ? int64_t{64} * p.taps : 64, tap = blocks ? 64 : p.inputs;
    rest = last / 64 * step, tap_of_rest = blocks ? p.inputs - last : p.inputs;
  }
  int64_t of(int block) const { return 64 * block < last ? block * step : rest; }
  int64_t advance(int block) const { return 64 * block < last ? tap : tap_of_rest; }
};

// The weights of active inputs side by side, tap after tap, of filters from one on.
static void pack_rows(const IntegerPack& p, int first, int end) {
  const Places places(p);
  [[maybe_unused]] const int taps = p.taps, count = p.count;
  const Weight* const all = static_cast<const Weight*>(p.weights);
  Weight* const out = static_cast<Weight*>(p.out);
#if defined(__AVX512VBMI__)
  // sixty-four that end up side by side: most come from three blocks
  const Pick* pick = p.picks;
  for (int done = 0; done < count; done += 64) {
    const int left = count - done, more = pick->more, second = min(64 * (pick->block + 1), places.last) / 64;
    const Pick *const third = pick + (more > 0), *const others = pick + 2, *const end_of_line = pick + more + 1;
    const __m512i order = _mm512_loadu_si512(pick->order), order_of_third = _mm512_loadu_si512(third->order);
    const __mmask64 lanes = more > 0 ? third->lanes : 0, written = left < 64 ? ~uint64_t{0} >> (64 - left) : ~uint64_t{0};
    const int64_t at = places.of(pick->block), at_second = places.of(second) - at, at_third = places.of(third->block) - at;
    const int64_t next = places.advance(pick->block), next_second = places.advance(second), next_third = places.advance(third->block);
    for (int f = first; f < end; ++f) {
      const Weight* const row = all + p.filters[f] * p.row;
      const Weight *a = row + at, *b = a + at_second, *c = a + at_third;
      Weight* to = out + f * p.out_row + done;
      for (int t = 0; t < taps; ++t, a += next, b += next_second, c += next_third, to += count) {
        __m512i w = _mm512_permutex2var_epi8(_mm512_loadu_si512(a), order, _mm512_loadu_si512(b));
        w = _mm512_mask_permutexvar_epi8(w, lanes, order_of_third, _mm512_loadu_si512(c));
        for (const Pick* o = others; o < end_of_line; ++o)
          w = _mm512_mask_permutexvar_epi8(w, o->lanes, _mm512_loadu_si512(o->order),
                                           _mm512_loadu_si512(row + places.of(o->block) + t * places.advance(o->block)));
        if (left >= 64) _mm512_storeu_si512(to, w);
        else _mm512_mask_storeu_epi8(to, written, w);
      }
    }
    pick = end_of_line;
  }
#else
  for (int f = first; f < end; ++f) {
    const Weight* const row = all + p.filters[f] * p.row;
#if defined(__AVX2__)
    // sixty-four at a time; of what is read past a block nothing is kept, and memory goes on behind it
    uint8_t* to = reinterpret_cast<uint8_t*>(out + f * p.out_row);
    for (int t = 0; t < taps; ++t)
      for (int c = 0; c < p.inputs; c += 64) {
        const int64_t at = c * static_cast<int64_t>(sizeof(Weight));
        const Weight* from = row + places.of(c / 64) + t * places.advance(c / 64);
        to = pack_block(reinterpret_cast<const uint8_t*>(from), p.orders + at, p.kept + at / 16, to);
      }
#else
    Weight* to = out + f * p.out_row;
    for (int t = 0; t < taps; ++t)
      for (int i = 0; i < count; ++i) {
        const int block = p.chosen[i] / 64;
        *to++ = row[places.of(block) + t * places.advance(block) + p.chosen[i] % 64];
      }
#endif
  }
#endif
}

static void pack(const IntegerPack& p) {
  if (kPicks && p.taps == 1) pack_rows(p, 0, p.filter_count);
  for (int f = 0; f < p.filter_count; ++f) {
    if (!kPicks) {
      const Weight* next = static_cast<const Weight*>(p.weights) + p.filters[min(f + 1, p.filter_count - 1)] * p.row;
      for (int64_t i = 0; i < p.row; i += 64 / sizeof(Weight)) __builtin_prefetch(next + i, 0, 3);
    }
    if (!kPicks || p.taps > 1) pack_rows(p, f, f + 1);
    p.sums[f] = 0;
#if defined(__AVX512VNNI__)
    if (p.shifted) {
      const Weight* out = static_cast<const Weight*>(p.out) + f * p.out_row;
      __m512i sum = _mm512_setzero_si512();
      const __m512i shift = _mm512_set1_epi8(static_cast<char>(128));
      const int64_t count = static_cast<int64_t>(p.taps) * p.count;
      int64_t i = 0;
      for (; i + 64 <= count; i += 64) sum = _mm512_dpbusd_epi32(sum, shift, _mm512_loadu_si512(out + i));
      if (i < count) sum = _mm512_dpbusd_epi32(sum, shift, _mm512_maskz_loadu_epi8((uint64_t{1} << (count - i)) - 1, out + i));
      p.sums[f] = _mm512_reduce_add_epi32(sum);
    }
#endif
  }
}

}  // namespace integers
