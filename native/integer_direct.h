// Convolution by its plain definition, sixteen output positions to a register, a dword of inputs at
// a time. Included by integer_impl.h.

namespace integers {

// Sums at sixteen positions as reals.
FTWT_INLINE V converted(const int32_t* sums) {
  return each([&](int k) { return __builtin_convertvector(load_dwords(sums + k * kWidth), R); });
}

// Without the lanes that are no outputs.
FTWT_INLINE V valid(V y, const Vector& v) { return v.lanes != (1u << v.count) - 1 ? compress(y, v.lanes) : y; }

// The sums of one filter at n vectors become outputs, where activations only clip, if they do anything
// at all: of type Out, with bytes of type Add (or, if that is f32, nothing) between the two.
template <Type Out, Type Add, bool Act, bool Post>
[[gnu::noinline]] static void finish_clipped(const IntegerEpilogue& e, int filter, const Vector* vectors, int n, bool whole,
                                            const int32_t* sums) {
  const V scale = splat(e.scale[filter]), bias = splat(e.bias[filter]);
  const Clip act = clip_of(e.act), post = clip_of(e.post);
  const V low = splat(act.low), high = splat(act.high), least = splat(post.low), most = splat(post.high);
  const int64_t plane = static_cast<int64_t>(filter) * e.positions;
  const Values add{e.add.at, Add, e.add.scale, false};
  const Target out{e.out.at, Out, e.out.inverse};
  const auto one = [&](V y, int64_t at, int count) __attribute__((always_inline)) {
    y = y * scale;
    y = y + bias;
    if constexpr (Act) y = clip(y, low, high);
    if constexpr (Add != Type::f32) y = y + load_values(add, at, count);
    if constexpr (Post) y = clip(y, least, most);
    store_values(out, at, y, count);
  };
  if (whole) {
    for (int i = 0; i < n; ++i) one(converted(sums + i * kLanes), plane + vectors[i].target, kLanes);
    return;
  }
  for (int i = 0; i < n; ++i) {
    const Vector& v = vectors[i];
    one(valid(converted(sums + i * kLanes), v), plane + v.target, v.count);
  }
}

// The same for anything.
[[gnu::noinline]] static void finish_any(const IntegerEpilogue& e, int filter, const Vector* vectors, int n, bool,
                                        const int32_t* sums) {
  const V scale = splat(e.scale[filter]), bias = splat(e.bias[filter]);
  const int64_t plane = static_cast<int64_t>(filter) * e.positions;
  for (int i = 0; i < n; ++i) {
    const Vector& v = vectors[i];
    V y = valid(converted(sums + i * kLanes), v) * scale;
    y = activate(e.act, y + bias);
    if (e.add.at) {
      if (!e.add_active || e.add_active[filter]) y = y + load_values(e.add, plane + v.target, v.count);
      y = activate(e.post, y);
    }
    store_values(e.out, plane + v.target, y, v.count);
  }
}

// `whole`: each vector is sixteen outputs side by side.
typedef void (*Finish)(const IntegerEpilogue&, int, const Vector*, int, bool, const int32_t*);

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

static Finish find_finish(const IntegerEpilogue& e, bool adds) {
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

// How filters are finished: those that something is added to, and the others.
struct Finishes {
  const IntegerEpilogue& e;
  const Finish alone = find_finish(e, false), added = e.add.at ? find_finish(e, true) : alone;

  void operator()(int filter, const Vector* vectors, int n, bool whole, const int32_t* sums) const {
    (e.add.at && (!e.add_active || e.add_active[filter]) ? added : alone)(e, filter, vectors, n, whole, sums);
  }
};

FTWT_INLINE bool all_whole(const Vector* vectors, int n) {
  bool whole = true;
  for (int i = 0; i < n; ++i) whole &= vectors[i].count == kLanes;
  return whole;
}

constexpr int kRun = 8;     // vectors whose sums are finished together
constexpr int kChunk = kParts == 1 ? 16 : 48;  // dwords between two fetches of what lies ahead
constexpr int kNear = 288;  // dwords of a vector that stay near with the weights of some filters

// Weights that are wanted next, fetched from afar while others are multiplied: some lines each time.
struct Ahead {
  const uint8_t* weights;
  const int64_t row;
  const int32_t *next, *last;
  int64_t lines;
  int64_t at = 0;

  void fetch() {
    if (next >= last) return;
    const uint8_t* p = weights + *next * row + at;
    const uint8_t* const end = p + min<int64_t>(64 * lines, row - at);
    for (; p < end; p += 64) __builtin_prefetch(p, 0, 2);
    at += 64 * lines;
    if (at >= row) at = 0, ++next;
  }
};

// F filters at N vectors, some of the dwords, of which all but the first add to what there is; a lone
// vector of few filters has its sums in two chains.
template <int F, int N>
static void tile(const IntegerDirect& d, int first, const Vector* vectors, Ahead* ahead, int32_t* out, int from, int to) {
  constexpr int kChains = kParts * F * N <= kRegisters / 4 ? 2 : 1;
  RI s[kChains][F][N * kParts];
#pragma GCC unroll 2
  for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f)
#pragma GCC unroll 12
      for (int n = 0; n < N * kParts; ++n)
        s[c][f][n] = c == 0 && from ? load_dwords(out + f * kRun * kLanes + n * kWidth) : splat_dword(c ? 0 : -d.less[first + f]);
  const int32_t* input[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) input[n] = d.input + vectors[n].source;
  const int64_t row = d.row / 4, stride = d.stride;
  const int32_t *w = static_cast<const int32_t*>(d.weights) + first * row + from, *others = w + 3 * row;
  asm("" : "+r"(others));  // two pointers and a distance are all that six rows need in registers
  const auto step = [&](int i, int64_t offset, int chain) __attribute__((always_inline)) {
    RI in[N * kParts];
#pragma GCC unroll 12
    for (int n = 0; n < N * kParts; ++n) in[n] = load_dwords(input[n / kParts] + offset + n % kParts * kWidth);
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f) {
      const RI weight = splat_dword(f < 3 ? w[f * row + i] : others[(f - 3) * row + i]);
#pragma GCC unroll 12
      for (int n = 0; n < N * kParts; ++n) s[chain][f][n] = multiply_add(s[chain][f][n], in[n], weight);
    }
  };
  const int chunk = ahead ? kChunk : to - from;
  const int32_t* offset = d.offsets + from;
  int64_t place = from * stride;
  for (int left = to - from; left > 0; left -= chunk) {
    const int32_t* const end = offset + min(left, chunk);
    if (ahead) ahead->fetch();
    if constexpr (kChains == 2)
      for (; offset + 2 <= end; offset += 2, w += 2, others += 2) step(0, offset[0], 0), step(1, offset[1], 1);
    if (d.taps == 1 && kChains == 1) {  // each input is read once, and from afar
      for (; offset < end; ++offset, ++w, ++others, place += stride) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) __builtin_prefetch(input[n] + place + 3 * stride, 0, 3);
        step(0, place, 0);
      }
    } else {
      for (; offset < end; ++offset, ++w, ++others) step(0, *offset, 0);
    }
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

#if defined(__AVX512VNNI__)
// F filters at P positions whose inputs lie side by side: a lane is no position but some inputs.
template <int F, int P>
static void few_at(const IntegerDirect& d, int first, int32_t* out) {
  RI s[F][P];
#pragma GCC unroll 8
  for (int f = 0; f < F; ++f)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) s[f][p] = RI{};
  const int64_t row = d.row / 4;
  const int32_t* const weights = static_cast<const int32_t*>(d.weights) + first * row;
  for (int i = 0; i < d.dwords; i += kWidth) {
    RI x[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) x[p] = load_dwords(d.few + p * d.few_stride + i);
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f) {
      const RI w = load_dwords(weights + f * row + i);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) s[f][p] = multiply_add(s[f][p], x[p], w);
    }
  }
  const auto four = [](RI r) __attribute__((always_inline)) {
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256((__m512i)r), _mm512_extracti64x4_epi64((__m512i)r, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  };
#pragma GCC unroll 8
  for (int f = 0; f < F; ++f) {
    __m128i x[4] = {};
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) x[p] = four(s[f][p]);
    const __m128i all = _mm_hadd_epi32(_mm_hadd_epi32(x[0], x[1]), _mm_hadd_epi32(x[2], x[3]));
    // a whole register, since it is read as one
    store_dwords(out + f * kRun * kLanes, (RI)_mm512_zextsi128_si512(_mm_sub_epi32(all, _mm_set1_epi32(d.less[first + f]))));
  }
}

template <int F>
static void few(const IntegerDirect& d, int first, int count, int32_t* out) {
  if (count == 1) few_at<F, 1>(d, first, out);
  else if (count == 2) few_at<F, 2>(d, first, out);
  else if (count == 3) few_at<F, 3>(d, first, out);
  else few_at<F, 4>(d, first, out);
}
#else
template <int F>
static void few(const IntegerDirect&, int, int, int32_t*) {}
#endif

template <int F>
static void run_of(const IntegerDirect& d, const Finishes& finish, int first, const Vector* vectors, int n, bool whole,
                   Ahead* ahead) {
  alignas(64) int32_t sums[F * kRun * kLanes];
  const int full = n - (d.few && vectors + n == d.vectors + d.last_vector);
  int v = 0;
  // three and two rather than four and one
  for (; full - v >= 6 || full - v == 4; v += 4) tile<F, 4>(d, first, vectors + v, ahead, sums + v * kLanes, 0, d.dwords);
  for (; full - v >= 3; v += 3) tile<F, 3>(d, first, vectors + v, ahead, sums + v * kLanes, 0, d.dwords);
  for (; full - v >= 2; v += 2) tile<F, 2>(d, first, vectors + v, ahead, sums + v * kLanes, 0, d.dwords);
  for (; v < full; ++v) tile<F, 1>(d, first, vectors + v, ahead, sums + v * kLanes, 0, d.dwords);
  if (full < n) few<F>(d, first, vectors[full].count, sums + full * kLanes);
  for (int f = 0; f < F; ++f) finish(d.filters[first + f], vectors, n, whole, sums + f * kRun * kLanes);
}

// Where a register is not a vector, few filters pass at once, and read what stays near.
static void run_near(const IntegerDirect& d, const Finishes& finish, const Vector* vectors, int n, bool whole, Ahead* ahead) {
  constexpr int most = kParts == 2 ? 6 : 2;
  alignas(64) int32_t sums[kIntegerFilters * kRun * kLanes];
  for (int from = 0; from < d.dwords || from == 0; from += kNear)
    for (int v = 0; v < n; ++v) {
      const int to = min(from + kNear, d.dwords);
      const auto at = [&](int f) { return sums + (f * kRun + v) * kLanes; };
      int f = 0;
      for (; f + most <= d.filter_count; f += most) tile<most, 1>(d, f, vectors + v, ahead, at(f), from, to);
      if constexpr (most > 4)
        for (; f + 4 <= d.filter_count; f += 4) tile<4, 1>(d, f, vectors + v, ahead, at(f), from, to);
      if constexpr (most > 2)
        for (; f + 2 <= d.filter_count; f += 2) tile<2, 1>(d, f, vectors + v, ahead, at(f), from, to);
      for (; f < d.filter_count; ++f) tile<1, 1>(d, f, vectors + v, ahead, at(f), from, to);
    }
  for (int f = 0; f < d.filter_count; ++f) finish(d.filters[f], vectors, n, whole, sums + f * kRun * kLanes);
}

static void direct(const IntegerDirect& d) {
  constexpr int most = 6;
  for (int i = d.first_vector; i < d.last_vector; ++i)
    FTWT_PRODUCTS(integer, int64_t{kDword} * d.filter_count * d.dwords * d.vectors[i].count);
  const Finishes finish{*d.epilogue};
  Ahead ahead{d.all_weights, d.all_row, d.next, d.next + d.next_count, 0};
  for (int v = d.first_vector; v < d.last_vector; v += kRun) {
    const Vector* vectors = d.vectors + v;
    const int n = min(kRun, d.last_vector - v);
    const bool whole = all_whole(vectors, n);
    if (v == d.first_vector && d.next_count) {  // shared out among the tiles of the first run
      const int tiles = ((d.filter_count + most - 1) / most) * ((n * kParts + 3) / 4);
      const int64_t fetches = int64_t{tiles} * max(1, d.dwords / kChunk), each = max<int64_t>(1, fetches / d.next_count);
      ahead.lines = ((d.all_row + 63) / 64 + each - 1) / each;  // rows are not fetched together
    }
    Ahead* const next = ahead.next < ahead.last ? &ahead : nullptr;
    if constexpr (kParts > 1) {
      run_near(d, finish, vectors, n, whole, next);
    } else {
      int f = 0;
      for (; f + most <= d.filter_count; f += most) run_of<most>(d, finish, f, vectors, n, whole, next);
      for (; f + 4 <= d.filter_count; f += 4) run_of<4>(d, finish, f, vectors, n, whole, next);
      for (; f + 2 <= d.filter_count; f += 2) run_of<2>(d, finish, f, vectors, n, whole, next);
      for (; f < d.filter_count; ++f) run_of<1>(d, finish, f, vectors, n, whole, next);
    }
  }
}

}  // namespace integers
