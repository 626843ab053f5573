// The same convolution by the processor's matrix unit: sixteen filters by sixty-four inputs, times
// these inputs at sixteen positions, are sums of sixteen filters at sixteen positions. An input that
// was laid out in dwords and a row of weights are such matrices as they lie. Included by integer_impl.h.

namespace tiles {

struct alignas(64) Shapes {
  uint8_t palette, start_row, reserved[14];
  uint16_t columns[16];        // bytes
  uint8_t rows[16];
};

constexpr int kRun = 8;  // vectors whose sums are finished together

// 16 M filters at N vectors: their sums to memory.
template <int M, int N, bool Signed>
FTWT_INLINE void sums(const IntegerDirect& d, const int8_t* weights, int64_t row, const int64_t* source, int32_t* out) {
  _tile_zero(0);
  if constexpr (N > 1) _tile_zero(1);
  if constexpr (M > 1) _tile_zero(2);
  if constexpr (M > 1 && N > 1) _tile_zero(3);
  const int64_t pitch = d.stride * 4;
  for (int t = 0; t < d.taps; ++t) {
    const int32_t* x = d.input + d.tap_offsets[t];
    for (int g = 0; g < d.groups; g += d.tile_groups, weights += 4 * d.tile_groups, x += d.tile_groups * d.stride) {
      _tile_loadd(4, weights, row);
      _tile_loadd(6, x + source[0], pitch);
      if constexpr (Signed) _tile_dpbssd(0, 4, 6);
      else _tile_dpbsud(0, 4, 6);
      if constexpr (N > 1) {
        _tile_loadd(7, x + source[1], pitch);
        if constexpr (Signed) _tile_dpbssd(1, 4, 7);
        else _tile_dpbsud(1, 4, 7);
      }
      if constexpr (M > 1) {
        _tile_loadd(5, weights + 16 * row, row);
        if constexpr (Signed) _tile_dpbssd(2, 5, 6);
        else _tile_dpbsud(2, 5, 6);
        if constexpr (N > 1) {
          if constexpr (Signed) _tile_dpbssd(3, 5, 7);
          else _tile_dpbsud(3, 5, 7);
        }
      }
    }
  }
  constexpr int line = kRun * kLanes;
  _tile_stored(0, out, 4 * line);
  if constexpr (N > 1) _tile_stored(1, out + 16, 4 * line);
  if constexpr (M > 1) _tile_stored(2, out + 16 * line, 4 * line);
  if constexpr (M > 1 && N > 1) _tile_stored(3, out + 16 * line + 16, 4 * line);
}

template <int M, bool Signed>
static void filters(const IntegerDirect& d, int first, int count, int64_t row) {
  alignas(64) int32_t out[32 * kRun * kLanes];
  const int8_t* weights = static_cast<const int8_t*>(d.weights[first]);
  for (int run = d.first_vector; run < d.last_vector; run += kRun) {
    const Vector* vectors = d.vectors + run;
    const int n = min(kRun, d.last_vector - run);
    for (int v = 0; v < n; v += 2) {
      const int64_t source[2] = {vectors[v].source, v + 1 < n ? vectors[v + 1].source : 0};
      if (v + 1 < n) sums<M, 2, Signed>(d, weights, row, source, out + v * kLanes);
      else sums<M, 1, Signed>(d, weights, row, source, out + v * kLanes);
    }
    for (int f = 0; f < count; ++f) integers::finish(*d.epilogue, d.filters[first + f], vectors, n, out + f * kRun * kLanes);
  }
}

static void direct(const IntegerDirect& d) {
  if (!d.tile_groups) return integers::direct(d);
  const int64_t row = d.filter_count > 1 ? static_cast<const int8_t*>(d.weights[1]) - static_cast<const int8_t*>(d.weights[0]) : 64;
  for (int i = d.first_vector; i < d.last_vector; ++i)
    FTWT_PRODUCTS(integer, int64_t{4} * d.filter_count * d.groups * d.taps * d.vectors[i].count);
  for (int f = 0; f < d.filter_count; f += 32) {
    const int count = min(32, d.filter_count - f), rows[2] = {min(16, count), max(1, count - 16)};
    Shapes s{};
    s.palette = 1;
    for (int i = 0; i < 4; ++i) s.rows[i] = static_cast<uint8_t>(rows[i / 2]), s.columns[i] = 64;
    for (int i = 4; i < 6; ++i) s.rows[i] = static_cast<uint8_t>(rows[i - 4]), s.columns[i] = static_cast<uint16_t>(4 * d.tile_groups);
    for (int i = 6; i < 8; ++i) s.rows[i] = static_cast<uint8_t>(d.tile_groups), s.columns[i] = 64;
    _tile_loadconfig(&s);
    if (d.is_signed) count > 16 ? filters<2, true>(d, f, count, row) : filters<1, true>(d, f, count, row);
    else count > 16 ? filters<2, false>(d, f, count, row) : filters<1, false>(d, f, count, row);
  }
  _tile_release();
}

}  // namespace tiles
