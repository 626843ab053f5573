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
  const int32_t* x = d.input;
  for (int from = 0; from < d.groups; from += d.block) {
    const int groups = min(d.block, d.groups - from);  // with one tap, blocks are as one
    int64_t w = static_cast<int64_t>(from) * d.taps;
    int g = 0;
    if constexpr (One) {
      if constexpr (kChains == 2)
        for (; g + 2 <= groups; g += 2, w += 2, x += 2 * d.stride) step(x, w, 0), step(x + d.stride, w + 1, 1);
      for (; g < groups; ++g, ++w, x += d.stride) step(x, w, 0);
    } else {
      if constexpr (kChains == 2)
        for (; g + 2 <= groups; g += 2, w += 2, x += 2 * d.stride) {
          const int32_t* y = x + d.stride;
          for (int64_t t = 0, at = w; t < d.taps; ++t, at += groups) {
            step(x + d.tap_offsets[t], at, 0);
            step(y + d.tap_offsets[t], at + 1, 1);
          }
        }
      for (; g < groups; ++g, ++w, x += d.stride)
        for (int64_t t = 0, at = w; t < d.taps; ++t, at += groups) step(x + d.tap_offsets[t], at, 0);
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

template <int F, bool One>
static void run_of(const IntegerDirect& d, int first, const Vector* vectors, int n) {
  alignas(64) int32_t sums[F * kRun * kLanes];
  int v = 0;
  if constexpr (kParts == 1) {
    // three and two rather than four and one
    for (; n - v >= 6 || n - v == 4; v += 4) tile<F, 4, One>(d, first, vectors + v, sums + v * kLanes);
    for (; n - v >= 3; v += 3) tile<F, 3, One>(d, first, vectors + v, sums + v * kLanes);
    for (; n - v >= 2; v += 2) tile<F, 2, One>(d, first, vectors + v, sums + v * kLanes);
  }
  for (; v < n; ++v) tile<F, 1, One>(d, first, vectors + v, sums + v * kLanes);
  for (int f = 0; f < F; ++f) finish(*d.epilogue, d.filters[first + f], vectors, n, sums + f * kRun * kLanes);
}

template <bool One>
static void all_vectors(const IntegerDirect& d) {
  constexpr int most = kParts == 1 ? 6 : kParts == 2 ? 4 : 2;
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
