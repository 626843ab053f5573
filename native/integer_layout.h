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

// The weights of one filter's active inputs side by side, tap after tap.
static void pack_row(const IntegerPack& p, const Weight* row, Weight* out) {
  const bool blocks = p.block < p.inputs;  // those of sixty-four inputs lie together, all taps of them
  const int taps = p.taps, inputs = p.inputs, last = (inputs - 1) / 64 * 64;
  const int64_t step = blocks ? int64_t{64} * taps : 64, tap = blocks ? 64 : inputs, tap_of_last = blocks ? inputs - last : inputs;
  const Weight* const rest = row + last / 64 * step;
#if defined(__AVX512VBMI__)
  // sixty-four that end up side by side, of all taps: most come from three blocks
  const auto begins = [&](int block) { return 64 * block < last ? row + block * step : rest; };
  const auto advances = [&](int block) { return 64 * block < last ? tap : tap_of_last; };
  const Pick* pick = p.picks;
  for (int done = 0; done < p.count; done += 64) {
    const int left = p.count - done, more = pick->more, second = min(64 * (pick->block + 1), last) / 64;
    const Pick *const third = pick + (more > 0), *const others = pick + 2;
    const __m512i order = _mm512_loadu_si512(pick->order), order_of_third = _mm512_loadu_si512(third->order);
    const __mmask64 lanes = more > 0 ? third->lanes : 0, written = left < 64 ? ~uint64_t{0} >> (64 - left) : ~uint64_t{0};
    const Weight *a = begins(pick->block), *b = begins(second), *c = begins(third->block);
    const int64_t next_a = advances(pick->block), next_b = advances(second), next_c = advances(third->block);
    Weight* to = out + done;
    for (int t = 0; t < taps; ++t, a += next_a, b += next_b, c += next_c, to += p.count) {
      __m512i w = _mm512_permutex2var_epi8(_mm512_loadu_si512(a), order, _mm512_loadu_si512(b));
      w = _mm512_mask_permutexvar_epi8(w, lanes, order_of_third, _mm512_loadu_si512(c));
      for (const Pick* o = others; o <= pick + more; ++o)
        w = _mm512_mask_permutexvar_epi8(w, o->lanes, _mm512_loadu_si512(o->order), _mm512_loadu_si512(begins(o->block) + t * advances(o->block)));
      if (left >= 64) _mm512_storeu_si512(to, w);
      else _mm512_mask_storeu_epi8(to, written, w);
    }
    pick += more + 1;
  }
#elif defined(__AVX2__)
  // sixty-four at a time; of what is read past a block nothing is kept, and memory goes on behind it
  uint8_t* to = reinterpret_cast<uint8_t*>(out);
  const auto some = [&](const Weight* from, int c) __attribute__((always_inline)) {
    const int64_t at = c * static_cast<int64_t>(sizeof(Weight));
    to = pack_block(reinterpret_cast<const uint8_t*>(from), p.orders + at, p.kept + at / 16, to);
  };
  for (int t = 0; t < taps; ++t) {
    const Weight* from = row + t * tap;
    for (int c = 0; c < last; c += 64, from += step) some(from, c);
    some(rest + t * tap_of_last, last);
  }
#else
  for (int t = 0; t < taps; ++t)
    for (int i = 0; i < p.count; ++i) {
      const int input = p.chosen[i];
      *out++ = input < last ? row[input / 64 * step + t * tap + input % 64] : rest[t * tap_of_last + input - last];
    }
#endif
}

static void pack(const IntegerPack& p) {
  const Weight* all = static_cast<const Weight*>(p.weights);
  const int64_t width = static_cast<int64_t>(p.taps) * p.inputs * static_cast<int64_t>(sizeof(Weight));
  for (int f = 0; f < p.filter_count; ++f) {
    const uint8_t* next = reinterpret_cast<const uint8_t*>(all + p.filters[min(f + 1, p.filter_count - 1)] * p.row);
    for (int64_t i = 0; i < width; i += 64) __builtin_prefetch(next + i, 0, 3);
    Weight* const out = static_cast<Weight*>(p.out) + f * p.out_row;
    if (p.count) pack_row(p, all + p.filters[f] * p.row, out);
    p.sums[f] = 0;
#if defined(__AVX512VNNI__)
    if (p.shifted) {
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
