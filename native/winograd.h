// Winograd's F(2x2, 3x3) with the sixteen frequencies of a tile as the lanes of a register.
// Included by kernels_impl.h. Source: Lavin, Gray, "Fast Algorithms for Convolutional Neural
// Networks", CVPR 2016, section 4.1.

namespace wino {

constexpr int kTiles = 4;                                   // in a group
constexpr int kFilters = (kRegisters - 1) / (kTiles + 1);  // sums, weights and a patch: registers
constexpr int kChunk = 64;                                  // inputs whose weights stay in L1

// One row of d B for four tiles, side by side in the quarters: ten inputs from x on.
static inline V across(V x) {
  const V a = shuffle<0, 1, 2, 1, 2, 3, 4, 3, 4, 5, 6, 5, 6, 7, 8, 7>(x, x);
  const V b = shuffle<2, 2, 1, 3, 4, 4, 3, 5, 6, 6, 5, 7, 8, 8, 7, 9>(x, x);
  alignas(64) static constexpr float sign[kLanes] = {-1, 1, -1, -1, -1, 1, -1, -1, -1, 1, -1, -1, -1, 1, -1, -1};
  return a + load(sign) * b;  // d0 - d2, d1 + d2, d2 - d1, d1 - d3
}

// Quarters of four registers exchanged: quarter i of result j is quarter j of register i.
static inline void transpose(const V* m, V* r) {
  const V p = shuffle<0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23>(m[0], m[1]);
  const V q = shuffle<8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31>(m[0], m[1]);
  const V u = shuffle<0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23>(m[2], m[3]);
  const V v = shuffle<8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31>(m[2], m[3]);
  r[0] = shuffle<0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23>(p, u);
  r[1] = shuffle<8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31>(p, u);
  r[2] = shuffle<0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23>(q, v);
  r[3] = shuffle<8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31>(q, v);
}

// Rows [2 first_row, 2 last_row + 2) of a padded plane, with zeros as far right as four tiles read.
static void pad(const Patches& p, const float* plane, float* padded, int pitch) {
  const int rows = 2 * (p.last_row - p.first_row) + 2;
  for (int k = 0; k < rows; ++k, padded += pitch) {
    const int y = 2 * p.first_row + k - p.top;
    int x = 0;
    for (; x < p.left; ++x) padded[x] = 0.0f;
    if (y >= 0 && y < p.height) {
      const float* row = plane + static_cast<int64_t>(y) * p.width;
      int from = 0;
      for (; from + kLanes <= p.width; from += kLanes) store(padded + x + from, load(row + from));
      if (from < p.width) store_some(padded + x + from, load_some(row + from, p.width - from), p.width - from);
      x += p.width;
    }
    for (; x + kLanes <= pitch; x += kLanes) store(padded + x, V{});
    if (x < pitch) store_some(padded + x, V{}, pitch - x);
  }
}

static void patches(const Patches& p) {
  const int pitch = winograd_pitch(p.tile_columns, p.width + p.left);
  const int64_t step = static_cast<int64_t>(p.inputs) * kTiles * kLanes;  // of a group of tiles
  for (int i = p.first_input; i < p.last_input; ++i) {
    pad(p, p.input + static_cast<int64_t>(p.channels[i]) * p.height * p.width, p.scratch, pitch);
    float* out = p.patches + static_cast<int64_t>(i) * kTiles * kLanes;
    for (int tx = 0; tx < p.tile_columns; tx += 4) {
      const int count = min(4, p.tile_columns - tx);
      const float* row = p.scratch + 2 * tx;
      V d[4];
      d[2] = across(load(row)), d[3] = across(load(row + pitch));
      for (int ty = 0; ty < p.last_row - p.first_row; ++ty) {
        row += 2 * pitch;
        d[0] = d[2], d[1] = d[3], d[2] = across(load(row)), d[3] = across(load(row + pitch));
        const V columns[4] = {d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]};
        V y[4];
        transpose(columns, y);
        const int tile = ty * p.tile_columns + tx;
        if (count == 4 && tile % kTiles == 0) {
          float* to = out + tile / kTiles * step;
#pragma GCC unroll 4
          for (int t = 0; t < 4; ++t) store(to + t * kLanes, y[t]);
        } else {
          for (int t = 0; t < count; ++t)
            store(out + (tile + t) / kTiles * step + (tile + t) % kTiles * kLanes, y[t]);
        }
      }
    }
  }
}

// Weights that are needed next, fetched while these are used: a few inputs at a time.
struct Ahead {
  const float* const* rows;
  const int64_t* offsets;
  int from, to;
};

// sums (F, tiles of a group) += weights * patches, over some of the inputs: the frequencies of one
// register from `part` on.
template <int F>
static inline void product(const float* const* rows, const int64_t* offsets, int inputs, int part, const float* patches,
                           float* sums, int64_t stride, bool first, Ahead ahead) {
  patches += part, sums += part;
  FTWT_PRODUCTS(winograd, int64_t{F} * inputs * kTiles * kWidth);
  R s[F][kTiles];
#pragma GCC unroll 8
  for (int f = 0; f < F; ++f)
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) s[f][t] = first ? R{} : load_part(sums + f * stride + t * kLanes);
  const int every = ahead.to > ahead.from ? max(1, inputs / (ahead.to - ahead.from)) : inputs + 1;
  int wait = 1;
  for (int i = 0; i < inputs; ++i) {
    if (--wait == 0) {
      wait = every;
      if (ahead.from < ahead.to) {
        const int64_t next = ahead.offsets[ahead.from++];
#pragma GCC unroll 8
        for (int f = 0; f < F; ++f) prefetch(ahead.rows[f] + next);
      }
    }
    const int64_t at = offsets[i] + part;
    R w[F];
    for (int f = 0; f < F; ++f) w[f] = load_part(rows[f] + at);
    for (int t = 0; t < kTiles; ++t) {
      const R x = load_part(patches + t * kLanes);
      for (int f = 0; f < F; ++f) s[f][t] += w[f] * x;
    }
    patches += kTiles * kLanes;
  }
#pragma GCC unroll 8
  for (int f = 0; f < F; ++f)
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) store_part(sums + f * stride + t * kLanes, s[f][t]);
}

// A^T m A of four tiles m side by side: two rows of eight outputs, the upper in the lower half.
static inline V backward(const float* m) {
  const V tiles[4] = {load(m), load(m + 16), load(m + 32), load(m + 48)};
  V r[4];
  transpose(tiles, r);
  const V y0 = r[0] + r[1] + r[2], y1 = r[1] - r[2] - r[3];
  // per tile (m0 .. m3) -> (m0 + m1 + m2, m1 - m2 - m3): both rows of outputs at once
  const V a = shuffle<0, 3, 16, 19, 4, 7, 20, 23, 8, 11, 24, 27, 12, 15, 28, 31>(y0, y1);
  const V b = shuffle<1, 1, 17, 17, 5, 5, 21, 21, 9, 9, 25, 25, 13, 13, 29, 29>(y0, y1);
  const V c = shuffle<2, 2, 18, 18, 6, 6, 22, 22, 10, 10, 26, 26, 14, 14, 30, 30>(y0, y1);
  alignas(64) static constexpr float sign[kLanes] = {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1};
  const V y = b + load(sign) * (a + c);
  return shuffle<0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15>(y, y);
}

static void finish(const Winograd& w, const float* sums, int filter) {
  const Epilogue& e = w.epilogue;
  float* plane = e.out + static_cast<int64_t>(filter) * e.positions;
  const bool adds = e.add && (!e.add_active || e.add_active[filter]);
  const float* other = adds ? e.add + static_cast<int64_t>(filter) * e.positions : nullptr;
  const V bias = splat(e.bias[filter]);
  for (int ty = w.first_row; ty < w.last_row; ++ty) {
    const float* m = sums + static_cast<int64_t>(ty - w.first_row) * w.tile_columns * kLanes;
    const bool second = 2 * ty + 1 < w.out_height;
    for (int tx = 0; tx < w.tile_columns; tx += 4) {
      const int64_t at = static_cast<int64_t>(2 * ty) * w.out_width + 2 * tx, below = at + w.out_width;
      const int count = min(8, w.out_width - 2 * tx);
      V y = activate(e.act, backward(m + tx * kLanes) + bias);
      if (adds) {
        V add = {};
        if (count == 8 && second) {
          add = load_halves(other + at, other + below);
        } else {
          const V a = load_some(other + at, count);
          const V b = second ? load_some(other + below, count) : V{};
          add = shuffle<0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23>(a, b);
        }
        y = y + add;
      }
      y = activate(e.post, y);
      const V lower = shuffle<8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15>(y, y);
      if (count == 8) {
        store_half(plane + at, y);
        if (second) store_half(plane + below, lower);
      } else {
        store_some(plane + at, y, count);
        if (second) store_some(plane + below, lower, count);
      }
    }
  }
}

// `next`: the filters after these, as many, or null.
template <int F>
static void group(const Winograd& w, const int32_t* filters, const int32_t* next, int tiles) {
  const int groups = (tiles + kTiles - 1) / kTiles;
  const int64_t stride = static_cast<int64_t>(groups) * kTiles * kLanes;
  const float *rows[F], *later[F];
  for (int f = 0; f < F; ++f) {
    rows[f] = w.weights + filters[f] * w.row;
    later[f] = next ? w.weights + next[f] * w.row : nullptr;
  }
  for (int i = 0; i < w.inputs || i == 0; i += kChunk) {
    const int inputs = min(kChunk, w.inputs - i);
    const bool last = i + kChunk >= w.inputs;
    const int begin = last ? 0 : i + kChunk;
    const int ahead = last && !next ? 0 : min(kChunk, w.inputs - begin);
    for (int k = 0; k < groups * kParts; ++k) {
      const int g = k / kParts, part = k % kParts * kWidth;
      product<F>(rows, w.weight_offsets + i, inputs, part,
                 w.patches + (static_cast<int64_t>(g) * w.inputs + i) * kTiles * kLanes,
                 w.scratch + static_cast<int64_t>(g) * kTiles * kLanes, stride, i == 0,
                 {last ? later : rows, w.weight_offsets, begin + ahead * g / groups,
                  begin + (part ? ahead * g / groups : ahead * (g + 1) / groups)});
    }
  }
  for (int f = 0; f < F; ++f) finish(w, w.scratch + f * stride, filters[f]);
}

template <int F>
static void some(const Winograd& w, const int32_t* filters, int count, int tiles) {
  if (count == F) return group<F>(w, filters, nullptr, tiles);
  if constexpr (F > 1) some<F - 1>(w, filters, count, tiles);
}

static void winograd(const Winograd& w) {
  const int tiles = (w.last_row - w.first_row) * w.tile_columns;
  int f = w.first_filter;
  for (; f + kFilters <= w.last_filter; f += kFilters) {
    const bool more = f + 2 * kFilters <= w.last_filter;
    group<kFilters>(w, w.filters + f, more ? w.filters + f + kFilters : nullptr, tiles);
  }
  if constexpr (kFilters > 1)
    if (f < w.last_filter) some<kFilters - 1>(w, w.filters + f, w.last_filter - f, tiles);
}

}  // namespace wino
