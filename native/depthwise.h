// Planes laid out for convolutions by their plain definition, and the convolution of each plane with
// its own filter. Included by kernels_impl.h, after direct.h.

namespace plain {

// Every second float of 32.
static inline V even(const float* p) {
  return shuffle<0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30>(load(p), load(p + kLanes));
}

static inline void clear(float* p, int64_t n) {
  if (n > 0) std::memset(p, 0, static_cast<size_t>(n) * sizeof(float));
}

// Zeros are written only with `fresh`: where the last plane was laid out alike, they still stand.
static void stage(const Stage& s, bool fresh) {
  if (fresh) clear(s.out, static_cast<int64_t>(s.planes) * s.plane_floats);
  for (int plane = 0; plane < s.planes; ++plane) {
    float* out = s.out + static_cast<int64_t>(plane) * s.plane_floats;
    const int y0 = s.phase_of[2 * plane] - s.top, x0 = s.phase_of[2 * plane + 1] - s.left;
    // columns [first, last) of a row have an input: 0 <= x0 + column * stride < width
    const int first = min(s.pitch, x0 < 0 ? (-x0 + s.stride_w - 1) / s.stride_w : 0);
    const int last = max(first, min(s.pitch, (s.width - x0 + s.stride_w - 1) / s.stride_w));
    for (int r = 0; r < s.rows; ++r, out += s.pitch) {
      const int y = y0 + r * s.stride_h;
      if (y < 0 || y >= s.height) continue;
      const float* row = s.plane + static_cast<int64_t>(y) * s.width + x0;
      int c = first;
      if (s.stride_w == 1) {
        for (; c + kLanes <= last; c += kLanes) store(out + c, load(row + c));
        if (c < last) store_some(out + c, load_some(row + c, last - c), last - c);
        c = last;
      } else if (s.stride_w == 2) {
        for (; c + kLanes < last; c += kLanes) store(out + c, even(row + 2 * c));
      }
      for (; c < last; ++c) out[c] = row[static_cast<int64_t>(c) * s.stride_w];
    }
  }
}

template <int N>
static void across(const Depthwise& d, int taps, const float* plane, const float* weights, const Vector* vectors,
                   int filter) {
  V s[N] = {};
  int64_t source[N];
  for (int n = 0; n < N; ++n) {
    source[n] = vectors[n].source;
    FTWT_PRODUCTS(depthwise, taps * vectors[n].count);
  }
  for (int t = 0; t < taps; ++t) {
    const float* tap = plane + d.tap_offsets[t];
    const V w = splat(weights[t]);
    for (int n = 0; n < N; ++n) s[n] += w * load(tap + source[n]);
  }
  alignas(64) float sums[N * kLanes];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) store(sums + n * kLanes, s[n]);
  finish(d.epilogue, sums, vectors, N, filter);
}

// A 3x3 filter with a border of one, row by row: every input row is read once, as three shifted
// vectors, and takes part in the three (stride 2: one or two) output rows around it.
template <int Stride>
static void square(const Depthwise& d, const float* plane, const float* w, int filter) {
  const Epilogue& e = d.epilogue;
  const int height = d.stage.height, width = d.stage.width;
  const int out_width = (width - 1) / Stride + 1, out_height = (height - 1) / Stride + 1;
  const V bias = splat(e.bias[filter]);
  float* to = e.out + static_cast<int64_t>(filter) * e.positions;
  const bool adds = e.add && (!e.add_active || e.add_active[filter]);
  const float* other = adds ? e.add + static_cast<int64_t>(filter) * e.positions : nullptr;
  const Clip bounds = clip_of(e.act);
  const V low = splat(bounds.low), high = splat(bounds.high);
  V taps[9];
  for (int t = 0; t < 9; ++t) taps[t] = splat(w[t]);
  for (int x = 0; x < out_width; x += kLanes) {
    const int count = min(kLanes, out_width - x), column = x * Stride;
    FTWT_PRODUCTS(depthwise, int64_t{9} * count * out_height);
    V left = {}, middle = {}, right = {};
    auto read = [&](int y) __attribute__((always_inline)) {
      const float* row = plane + static_cast<int64_t>(y) * width + column;
      if constexpr (Stride == 1) {
        const bool border = column == 0, end = column + kLanes + 1 > width;
        middle = end ? load_some(row, min(kLanes, width - column)) : load(row);
        if (border)
          left = shuffle<16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14>(middle, V{});
        else
          left = end ? load_some(row - 1, min(kLanes, width - column + 1)) : load(row - 1);
        if (border && end)
          right = shuffle<1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16>(middle, V{});
        else
          right = end ? load_some(row + 1, min(kLanes, width - column - 1)) : load(row + 1);
      } else {
        const int rest = width - column;
        const V a = load_some(row, min(kLanes, rest));
        const V b = rest > kLanes ? load_some(row + kLanes, min(kLanes, rest - kLanes)) : V{};
        middle = shuffle<0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30>(a, b);
        right = shuffle<1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31>(a, b);
        const V before = splat(column ? row[-1] : 0.0f);
        left = shuffle<16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14>(right, before);
      }
    };
    auto row_of = [&](int k) __attribute__((always_inline)) {
      return taps[3 * k] * left + taps[3 * k + 1] * middle + taps[3 * k + 2] * right;
    };
    auto write = [&](int y, V sum) __attribute__((always_inline)) {
      const int64_t at = static_cast<int64_t>(y) * out_width + x;
      V v = bounds.only ? clip(sum + bias, low, high) : activate(e.act, sum + bias);
      if (adds) v = v + load_some(other + at, count);
      if (e.post != Activation::none) v = activate(e.post, v);
      if (count == kLanes) store(to + at, v);
      else store_some(to + at, v, count);
    };
    if constexpr (Stride == 1) {
      V above = {}, here = {};  // sums of the output rows y - 1 and y, so far
      for (int y = 0; y < height; ++y) {
        read(y);
        const V done = above + row_of(2);
        above = here + row_of(1), here = row_of(0);
        if (y) write(y - 1, done);
      }
      write(height - 1, above);
    } else {
      V above = {};             // what row 2 y - 1 gave to output row y
      for (int y = 0; y < out_height; ++y) {
        read(2 * y);
        V sum = above + row_of(1);
        if (2 * y + 1 < height) {
          read(2 * y + 1);
          sum += row_of(2), above = row_of(0);
        }
        write(y, sum);
      }
    }
  }
}

// The same for a 4x4 plane, which is one register.
static inline V square4(const float* plane, const float* w, V bias) {
  const V x = load(plane), o = {};
  V y = splat(w[4]) * x, z = bias;
  z += splat(w[0]) * shuffle<16, 16, 16, 16, 16, 0, 1, 2, 16, 4, 5, 6, 16, 8, 9, 10>(x, o);
  y += splat(w[1]) * shuffle<16, 16, 16, 16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11>(x, o);
  z += splat(w[2]) * shuffle<16, 16, 16, 16, 1, 2, 3, 16, 5, 6, 7, 16, 9, 10, 11, 16>(x, o);
  y += splat(w[3]) * shuffle<16, 0, 1, 2, 16, 4, 5, 6, 16, 8, 9, 10, 16, 12, 13, 14>(x, o);
  z += splat(w[5]) * shuffle<1, 2, 3, 16, 5, 6, 7, 16, 9, 10, 11, 16, 13, 14, 15, 16>(x, o);
  y += splat(w[6]) * shuffle<16, 4, 5, 6, 16, 8, 9, 10, 16, 12, 13, 14, 16, 16, 16, 16>(x, o);
  z += splat(w[7]) * shuffle<4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 16, 16, 16>(x, o);
  y += splat(w[8]) * shuffle<5, 6, 7, 16, 9, 10, 11, 16, 13, 14, 15, 16, 16, 16, 16, 16>(x, o);
  return y + z;
}

// And for a 2x2 plane: each input times the four weights that lead from it to the four outputs.
static inline V square2(const float* plane, const float* w, V bias) {
  const V x = load_some(plane, 4);
  const V spread = shuffle<0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3>(x, x);
  const V taps = load_some(w, 9);
  V y = spread * shuffle<4, 3, 1, 0, 5, 4, 2, 1, 7, 6, 4, 3, 8, 7, 5, 4>(taps, taps);
  y += shuffle<8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7>(y, y);
  y += shuffle<4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3>(y, y);
  return y + bias;
}

// Planes of one register, of all filters.
template <int Positions>
static void tiny(const Depthwise& d) {
  const Epilogue& e = d.epilogue;
  const Clip bounds = clip_of(e.act);
  const V low = splat(bounds.low), high = splat(bounds.high);
  for (int i = d.first_filter; i < d.last_filter; ++i) {
    const int c = d.filters[i];
    const int64_t at = static_cast<int64_t>(c) * Positions;
    const float* w = d.weights + static_cast<int64_t>(c) * 9;
    V y = splat(e.bias[c]);
    if (d.active[c]) FTWT_PRODUCTS(depthwise, 9 * Positions);
    if (d.active[c]) y = Positions == 16 ? square4(d.input + at, w, y) : square2(d.input + at, w, y);
    y = bounds.only ? clip(y, low, high) : activate(e.act, y);
    if (e.add) {
      if (!e.add_active || e.add_active[c]) y = y + load_some(e.add + at, Positions);
      y = activate(e.post, y);
    }
    if constexpr (Positions == 16) store(e.out + at, y);
    else store_some(e.out + at, y, Positions);
  }
}

static void depthwise(const Depthwise& d) {
  if (d.square == 1 && d.stage.height == 4 && d.stage.width == 4) return tiny<16>(d);
  if (d.square == 1 && d.stage.height == 2 && d.stage.width == 2) return tiny<4>(d);
  Stage s = d.stage;
  bool fresh = true;
  for (int i = d.first_filter; i < d.last_filter; ++i) {
    const int c = d.filters[i];
    const float* plane = d.input + static_cast<int64_t>(c) * s.height * s.width;
    const float* weights = d.weights + static_cast<int64_t>(c) * d.taps;
    const int taps = d.active[c] ? d.taps : 0;  // without an input, what is left is the bias
    if (taps && d.square) {
      if (d.square == 1) square<1>(d, plane, weights, c);
      else square<2>(d, plane, weights, c);
      continue;
    }
    if (taps && s.planes) {
      s.plane = plane;
      stage(s, fresh);
      fresh = false;
      plane = s.out;
    }
    constexpr int most = kParts == 1 ? 8 : 8 / kParts;
    int n = 0;
    for (; n + most <= d.vector_count; n += most) across<most>(d, taps, plane, weights, d.vectors + n, c);
    if constexpr (most > 4)
      for (; n + 4 <= d.vector_count; n += 4) across<4>(d, taps, plane, weights, d.vectors + n, c);
    for (; n < d.vector_count; ++n) across<1>(d, taps, plane, weights, d.vectors + n, c);
  }
}

}  // namespace plain
