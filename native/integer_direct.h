// Convolution by its plain definition, sixteen output positions to a register, a dword of inputs at
// a time. Included by integer_impl.h.

namespace integers {

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

constexpr int kRun = 8;  // vectors whose sums are finished together

// F filters at N vectors, each behind the other if they are Near; a lone vector of few filters has its
// sums in two chains. What lies `ahead` is fetched meanwhile.
template <int F, int N, bool One, bool Near>
static void tile(const IntegerDirect& d, int first, const Vector* vectors, const uint8_t* ahead, int32_t* out) {
  constexpr int kChains = kParts * F * N <= kRegisters / 4 ? 2 : 1;
  RI s[kChains][F][N * kParts];
#pragma GCC unroll 2
  for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f)
#pragma GCC unroll 12
      for (int n = 0; n < N * kParts; ++n) s[c][f][n] = splat_dword(c ? 0 : -d.less[first + f]);
  int64_t source[N];
  for (int n = 0; n < N; ++n) source[n] = vectors[n].source - vectors[0].source;
  const int64_t row = d.row / 4;
  auto step = [&](const int32_t* x, const int32_t* w, int chain) __attribute__((always_inline)) {
    RI in[N * kParts];
#pragma GCC unroll 12
    for (int n = 0; n < N * kParts; ++n) in[n] = load_dwords(x + (Near ? n / kParts * kLanes : source[n / kParts]) + n % kParts * kWidth);
    const int32_t* others = w + 3 * row;  // two pointers and two distances are all that is in registers
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f) {
      const RI weight = splat_dword(f < 3 ? w[f * row] : others[(f - 3) * row]);
#pragma GCC unroll 12
      for (int n = 0; n < N * kParts; ++n) s[chain][f][n] = multiply_add(s[chain][f][n], in[n], weight);
    }
  };
  const int32_t *x = d.input + vectors[0].source, *w = static_cast<const int32_t*>(d.weights) + first * row;
  for (int from = 0; from < d.groups; from += d.block) {
    const int groups = min(d.block, d.groups - from);  // with one tap, blocks are as one
    int g = 0;
    if constexpr (One) {
      if (ahead)
        for (int i = 0; i < 4 * F * groups; i += 64) __builtin_prefetch(ahead, 0, 3), ahead += 64;
      if constexpr (kChains == 2)
        for (; g + 2 <= groups; g += 2, w += 2, x += 2 * d.stride) step(x, w, 0), step(x + d.stride, w + 1, 1);
      for (; g < groups; ++g, ++w, x += d.stride) step(x, w, 0);
    } else {
      const int64_t lines = (int64_t{F} * d.taps + 15) / 16;
      for (; g < groups; ++g, ++w, x += d.stride) {
        if (ahead)
          for (int i = 0; i < lines; ++i) __builtin_prefetch(ahead, 0, 3), ahead += 64;
        const int32_t* at = w;
        int t = 0;
        if constexpr (kChains == 2)
          for (; t + 2 <= d.taps; t += 2, at += 2 * groups) step(x + d.tap_offsets[t], at, 0), step(x + d.tap_offsets[t + 1], at + groups, 1);
        for (; t < d.taps; ++t, at += groups) step(x + d.tap_offsets[t], at, 0);
      }
      w += static_cast<int64_t>(d.taps - 1) * groups;
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

template <int F, int N, bool One>
FTWT_INLINE void tile_of(const IntegerDirect& d, int first, const Vector* vectors, const uint8_t* ahead, int32_t* out) {
  if (N > 1 && vectors[N - 1].source - vectors[0].source == (N - 1) * kLanes) tile<F, N, One, true>(d, first, vectors, ahead, out);
  else tile<F, N, One, false>(d, first, vectors, ahead, out);
}

template <int F, bool One>
static void run_of(const IntegerDirect& d, int first, const Vector* vectors, int n, const uint8_t* ahead) {
  alignas(64) int32_t sums[F * kRun * kLanes];
  int v = 0;
  if constexpr (kParts == 1) {
    // three and two rather than four and one
    for (; n - v >= 6 || n - v == 4; v += 4) tile_of<F, 4, One>(d, first, vectors + v, v ? nullptr : ahead, sums + v * kLanes);
    for (; n - v >= 3; v += 3) tile_of<F, 3, One>(d, first, vectors + v, v ? nullptr : ahead, sums + v * kLanes);
    for (; n - v >= 2; v += 2) tile_of<F, 2, One>(d, first, vectors + v, v ? nullptr : ahead, sums + v * kLanes);
  }
  for (; v < n; ++v) tile_of<F, 1, One>(d, first, vectors + v, v ? nullptr : ahead, sums + v * kLanes);
  for (int f = 0; f < F; ++f) finish(*d.epilogue, d.filters[first + f], vectors, n, sums + f * kRun * kLanes);
}

template <bool One>
static void all_vectors(const IntegerDirect& d) {
  constexpr int most = kParts == 1 ? 6 : kParts == 2 ? 4 : 2;
  const uint8_t* next = static_cast<const uint8_t*>(d.weights) + d.filter_count * d.row;
  for (int v = d.first_vector; v < d.last_vector; v += kRun) {
    const Vector* vectors = d.vectors + v;
    const int n = min(kRun, d.last_vector - v);
    const bool ahead = d.ahead && v == d.first_vector;
    int f = 0;
    for (; f + most <= d.filter_count; f += most) run_of<most, One>(d, f, vectors, n, ahead ? next + f * d.row : nullptr);
    if constexpr (most > 4)
      for (; f + 4 <= d.filter_count; f += 4) run_of<4, One>(d, f, vectors, n, nullptr);
    if constexpr (most > 2)
      for (; f + 2 <= d.filter_count; f += 2) run_of<2, One>(d, f, vectors, n, nullptr);
    for (; f < d.filter_count; ++f) run_of<1, One>(d, f, vectors, n, nullptr);
  }
}

static void direct(const IntegerDirect& d) {
  for (int i = d.first_vector; i < d.last_vector; ++i)
    FTWT_PRODUCTS(integer, int64_t{kDword} * d.filter_count * d.groups * d.taps * d.vectors[i].count);
  if (d.taps == 1 && d.tap_offsets[0] == 0) all_vectors<true>(d);
  else all_vectors<false>(d);
}

}  // namespace integers
