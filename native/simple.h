// Everything that does not multiply by a matrix. Included by kernels_impl.h.

namespace simple {

static void affine(const float* x, float scale, float shift, Activation act, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, activate(act, load(x + i) * scale + shift));
  const int rest = static_cast<int>(n - i);
  if (rest) store_some(out + i, activate(act, load_some(x + i, rest) * scale + shift), rest);
}

static inline V operand(const float* p, int64_t i, int n) {
  return !p ? V{} : n == kLanes ? load(p + i) : load_some(p + i, n);
}

static void combine(const float* a, const float* b, bool product, Activation act, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, n - i));
    const V x = operand(a, i, count), y = operand(b, i, count);
    const V z = activate(act, product ? x * y : x + y);
    if (count == kLanes) store(out + i, z);
    else store_some(out + i, z, count);
  }
}

static float peak(const float* x, int n) {
  V best = splat(x[0]);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) best = larger(load(x + i), best);
  float result = x[0];
  for (int lane = 0; lane < kLanes; ++lane)
    if (best[lane] > result || best[lane] != best[lane]) result = best[lane];
  for (; i < n; ++i)
    if (x[i] > result || x[i] != x[i]) result = x[i];
  return result;
}

static float total(const float* x, int n) {
  V a = {}, b = {};
  int i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) a += load(x + i), b += load(x + i + kLanes);
  for (; i < n; i += kLanes) a += load_some(x + i, std::min(kLanes, n - i));
  return sum(a + b);
}

static void accumulate(const float* row, float scale, float* sums, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(sums + i, load(sums + i) + load(row + i) * scale);
  for (; i < n; ++i) sums[i] += row[i] * scale;
}

// Window i of a pool along one side: [from, to), clipped, and its length as a mean counts it.
struct Span {
  int from, to, counted;
};

static inline Span span(const Window& w, bool rows, int i) {
  const int length = rows ? w.height : w.width, outs = rows ? w.out_height : w.out_width;
  if (w.adaptive) {
    const int from = static_cast<int>(static_cast<int64_t>(i) * length / outs);
    const int to = static_cast<int>((static_cast<int64_t>(i + 1) * length + outs - 1) / outs);
    return {from, to, to - from};
  }
  const int kernel = rows ? w.kernel_h : w.kernel_w, pad = rows ? w.pad_h : w.pad_w;
  const int start = i * (rows ? w.stride_h : w.stride_w) - pad;
  const int end = std::min(start + kernel, length + pad);
  const int from = std::max(start, 0), to = std::min(end, length);
  return {from, to, w.include_padding ? end - start : to - from};
}

// Rows first, then columns. `line` holds a row of the input between pool_margin floats on either
// side, which never win a maximum.
static void pool(const Pooling& p) {
  const Window& w = p.window;
  const float nothing = w.maximum ? -std::numeric_limits<float>::infinity() : 0.0f;
  float* line = p.line + pool_margin(w);
  for (int c = 0; c < pool_margin(w); c += kLanes) store(p.line + c, splat(nothing));
  const bool wide = w.maximum && !w.adaptive && w.stride_w <= 2;
  float* out = p.out;
  for (int oy = 0; oy < w.out_height; ++oy, out += w.out_width) {
    const Span rows = span(w, true, oy);
    for (int c = 0; c < w.width; c += kLanes) {
      const int n = std::min(kLanes, w.width - c);
      V v = splat(nothing);
      for (int y = rows.from; y < rows.to; ++y) {
        const V row = load_some(p.x + static_cast<int64_t>(y) * w.width + c, n);
        v = w.maximum ? larger(row, v) : v + row;
      }
      store(line + c, v);
    }
    if (wide) {
      for (int c = 0; c < pool_margin(w); c += kLanes) store(line + w.width + c, splat(nothing));
      for (int ox = 0; ox < w.out_width; ox += kLanes) {
        const float* from = line + ox * w.stride_w - w.pad_w;
        V v = w.stride_w == 2 ? plain::even(from) : load(from);
        for (int k = 1; k < w.kernel_w; ++k) v = larger(w.stride_w == 2 ? plain::even(from + k) : load(from + k), v);
        store_some(out + ox, v, std::min(kLanes, w.out_width - ox));
      }
      continue;
    }
    for (int ox = 0; ox < w.out_width; ++ox) {
      const Span columns = span(w, false, ox);
      float value = nothing;
      for (int c = columns.from; c < columns.to; ++c) {
        const float v = line[c];
        if (!w.maximum) value += v;
        else if (v > value || v != v) value = v;
      }
      out[ox] = w.maximum ? value : value / static_cast<float>(rows.counted * columns.counted);
    }
  }
}

}  // namespace simple
