// Convolution by its plain definition, sixteen output positions to a register, a dword of inputs at
// a time. Included by integer_impl.h.

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

static void pack(const IntegerPack& p) {
  const Weight* all = static_cast<const Weight*>(p.weights);
  const int64_t width = static_cast<int64_t>(p.taps) * p.inputs;
  for (int f = 0; f < p.filter_count; ++f) {
    const Weight* row = all + p.filters[f] * p.row;
    Weight* out = static_cast<Weight*>(p.out) + f * p.out_row;
    p.sums[f] = 0;
#if defined(__AVX512VBMI2__)
    // whole rows at once; what the last load reads past one is masked, and memory goes on behind it
    uint8_t* to = reinterpret_cast<uint8_t*>(out);
    const Weight* next = all + p.filters[min(f + 1, p.filter_count - 1)] * p.row;
    for (int64_t i = 0; i < width; i += 64) {
      const uint64_t bits = p.bits[i / 64];
      __builtin_prefetch(next + i, 0, 2);
      const __m512i w = _mm512_loadu_si512(row + i);
      _mm512_storeu_si512(to, _mm512_maskz_compress_epi8(bits, w));
      to += __builtin_popcountll(bits);
    }
    if (p.shifted) {
      __m512i sum = _mm512_setzero_si512();
      const __m512i shift = _mm512_set1_epi8(static_cast<char>(128));
      const int64_t count = static_cast<int64_t>(p.taps) * p.count;
      int64_t i = 0;
      for (; i + 64 <= count; i += 64) sum = _mm512_dpbusd_epi32(sum, shift, _mm512_loadu_si512(out + i));
      if (i < count) sum = _mm512_dpbusd_epi32(sum, shift, _mm512_maskz_loadu_epi8((uint64_t{1} << (count - i)) - 1, out + i));
      p.sums[f] = _mm512_reduce_add_epi32(sum);
    }
#else
    for (int64_t t = 0; t < width; t += p.inputs)
      for (int i = 0; i < p.count; ++i) *out++ = row[t + p.chosen[i]];
#endif
  }
}

// Sums of one filter at sixteen positions as reals, without the lanes that are no outputs.
FTWT_INLINE V scaled(const int32_t* sums, const Vector& v, V scale, V bias) {
  V y = each([&](int k) { return __builtin_convertvector(load_dwords(sums + k * kWidth), R); });
  if (v.lanes != (1u << v.count) - 1) y = compress(y, v.lanes);
  y = y * scale;
  return y + bias;
}

// The sums of one filter at n vectors become outputs, where activations only clip, if they do anything
// at all: of type Out, with bytes of type Add (or, if that is f32, nothing) between the two.
template <Type Out, Type Add, bool Act, bool Post>
[[gnu::noinline]] static void finish_clipped(const IntegerEpilogue& e, int filter, const Vector* vectors, int n, const int32_t* sums) {
  const V scale = splat(e.scale[filter]), bias = splat(e.bias[filter]);
  const Clip act = clip_of(e.act), post = clip_of(e.post);
  const V low = splat(act.low), high = splat(act.high), least = splat(post.low), most = splat(post.high);
  const int64_t plane = static_cast<int64_t>(filter) * e.positions;
  const Values add{e.add.at, Add, e.add.scale, false};
  const Target out{e.out.at, Out, e.out.inverse};
  for (int i = 0; i < n; ++i) {
    const Vector& v = vectors[i];
    V y = scaled(sums + i * kLanes, v, scale, bias);
    if constexpr (Act) y = clip(y, low, high);
    if constexpr (Add != Type::f32) y = y + load_values(add, plane + v.target, v.count);
    if constexpr (Post) y = clip(y, least, most);
    store_values(out, plane + v.target, y, v.count);
  }
}

// The same for anything.
[[gnu::noinline]] static void finish_any(const IntegerEpilogue& e, int filter, const Vector* vectors, int n, const int32_t* sums) {
  const V scale = splat(e.scale[filter]), bias = splat(e.bias[filter]);
  const int64_t plane = static_cast<int64_t>(filter) * e.positions;
  for (int i = 0; i < n; ++i) {
    const Vector& v = vectors[i];
    V y = activate(e.act, scaled(sums + i * kLanes, v, scale, bias));
    if (e.add.at) {
      if (!e.add_active || e.add_active[filter]) y = y + load_values(e.add, plane + v.target, v.count);
      y = activate(e.post, y);
    }
    store_values(e.out, plane + v.target, y, v.count);
  }
}

typedef void (*Finish)(const IntegerEpilogue&, int, const Vector*, int, const int32_t*);

template <Type Out, Type Add>
static Finish finish_with(bool act, bool post) {
  if (act) return post ? finish_clipped<Out, Add, true, true> : finish_clipped<Out, Add, true, false>;
  return post ? finish_clipped<Out, Add, false, true> : finish_clipped<Out, Add, false, false>;
}

template <Type Out>
static Finish finish_to(Type add, bool act, bool post) {
  if (add == Type::u8) return finish_with<Out, Type::u8>(act, post);
  if (add == Type::s8) return finish_with<Out, Type::s8>(act, post);
  return finish_with<Out, Type::f32>(act, post);
}

static Finish find_finish(const IntegerEpilogue& e, int filter) {
  const bool adds = e.add.at && (!e.add_active || e.add_active[filter]);
  if (!clip_of(e.act).only || !clip_of(e.post).only || (adds && e.add.type == Type::f32)) return finish_any;
  // unsigned bytes end at zero anyway
  const auto clips = [&](Activation act, bool last) {
    return act != Activation::none && !(last && act == Activation::relu && e.out.type == Type::u8);
  };
  const bool act = clips(e.act, !e.add.at), post = e.add.at && clips(e.post, true);
  const Type add = adds ? e.add.type : Type::f32;
  if (e.out.type == Type::u8) return finish_to<Type::u8>(add, act, post);
  if (e.out.type == Type::s8) return finish_to<Type::s8>(add, act, post);
  return finish_to<Type::f32>(add, act, post);
}

FTWT_INLINE void finish(const IntegerEpilogue& e, int filter, const Vector* vectors, int n, const int32_t* sums) {
  find_finish(e, filter)(e, filter, vectors, n, sums);
}

constexpr int kRun = 6;  // vectors whose sums are finished together

// F filters at N vectors; a lone vector of few filters has its sums in two chains.
template <int F, int N, bool One>
static void tile(const IntegerDirect& d, int first, const Vector* vectors, int32_t* out) {
  constexpr int kChains = kParts * F * N <= kRegisters / 4 ? 2 : 1;
  RI s[kChains][F][N * kParts];
#pragma GCC unroll 2
  for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f)
#pragma GCC unroll 12
      for (int n = 0; n < N * kParts; ++n) s[c][f][n] = splat_dword(c ? 0 : -d.less[first + f]);
  const int32_t* rows[F];
  for (int f = 0; f < F; ++f) rows[f] = static_cast<const int32_t*>(d.weights[first + f]);
  int64_t source[N];
  for (int n = 0; n < N; ++n) source[n] = vectors[n].source;
  auto step = [&](const int32_t* x, int64_t w, int chain) __attribute__((always_inline)) {
    RI in[N * kParts];
#pragma GCC unroll 12
    for (int n = 0; n < N * kParts; ++n) in[n] = load_dwords(x + source[n / kParts] + n % kParts * kWidth);
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f) {
      const RI weight = splat_dword(rows[f][w]);
#pragma GCC unroll 12
      for (int n = 0; n < N * kParts; ++n) s[chain][f][n] = multiply_add(s[chain][f][n], in[n], weight);
    }
  };
  int g = 0;
  if constexpr (One) {
    const int32_t* x = d.input;
    if constexpr (kChains == 2)
      for (; g + 2 <= d.groups; g += 2, x += 2 * d.stride) step(x, g, 0), step(x + d.stride, g + 1, 1);
    for (; g < d.groups; ++g, x += d.stride) step(x, g, 0);
  } else if constexpr (kChains == 2) {
    for (; g + 2 <= d.groups; g += 2) {
      const int32_t *x = d.input + g * d.stride, *y = x + d.stride;
      for (int64_t t = 0, w = g; t < d.taps; ++t, w += d.groups) {
        step(x + d.tap_offsets[t], w, 0);
        step(y + d.tap_offsets[t], w + 1, 1);
      }
    }
  }
  for (; g < d.groups; ++g) {
    const int32_t* x = d.input + g * d.stride;
    for (int64_t t = 0, w = g; t < d.taps; ++t, w += d.groups) step(x + d.tap_offsets[t], w, 0);
  }
#pragma GCC unroll 8
  for (int f = 0; f < F; ++f)
#pragma GCC unroll 12
    for (int n = 0; n < N * kParts; ++n) {
      RI sum = s[0][f][n];
      if constexpr (kChains == 2) sum += s[1][f][n];
      store_dwords(out + f * kRun * kLanes + n * kWidth, sum);
    }
}

template <int F, bool One>
static void run_of(const IntegerDirect& d, int first, const Vector* vectors, int n) {
  alignas(64) int32_t sums[F * kRun * kLanes];
  int v = 0;
  if constexpr (kParts == 1) {
    // two twos rather than three and one
    for (; n - v >= 5 || n - v == 3; v += 3) tile<F, 3, One>(d, first, vectors + v, sums + v * kLanes);
    for (; n - v >= 2; v += 2) tile<F, 2, One>(d, first, vectors + v, sums + v * kLanes);
  }
  for (; v < n; ++v) tile<F, 1, One>(d, first, vectors + v, sums + v * kLanes);
  for (int f = 0; f < F; ++f) finish(*d.epilogue, d.filters[first + f], vectors, n, sums + f * kRun * kLanes);
}

template <bool One>
static void all_vectors(const IntegerDirect& d) {
  constexpr int most = kParts == 1 ? 8 : kParts == 2 ? 4 : 2;
  for (int v = d.first_vector; v < d.last_vector; v += kRun) {
    const Vector* vectors = d.vectors + v;
    const int n = min(kRun, d.last_vector - v);
    int f = 0;
    for (; f + most <= d.filter_count; f += most) run_of<most, One>(d, f, vectors, n);
    if constexpr (most > 4)
      for (; f + 4 <= d.filter_count; f += 4) run_of<4, One>(d, f, vectors, n);
    if constexpr (most > 2)
      for (; f + 2 <= d.filter_count; f += 2) run_of<2, One>(d, f, vectors, n);
    for (; f < d.filter_count; ++f) run_of<1, One>(d, f, vectors, n);
  }
}

static void direct(const IntegerDirect& d) {
  for (int i = d.first_vector; i < d.last_vector; ++i)
    FTWT_PRODUCTS(integer, int64_t{kDword} * d.filter_count * d.groups * d.taps * d.vectors[i].count);
  if (d.taps == 1 && d.tap_offsets[0] == 0) all_vectors<true>(d);
  else all_vectors<false>(d);
}

}  // namespace integers
