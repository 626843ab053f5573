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

// Tile `sum` += tile `weights` times tile `x`, which is read first.
#define FTWT_TILES(sum, weights, x, from)                   \
  do {                                                      \
    _tile_loadd(x, from, pitch);                            \
    FTWT_TILES_AGAIN(sum, weights, x);                      \
  } while (false)
#define FTWT_TILES_AGAIN(sum, weights, x)                   \
  do {                                                      \
    if constexpr (Signed) _tile_dpbssd(sum, weights, x);    \
    else _tile_dpbsud(sum, weights, x);                     \
  } while (false)

// Thirty-two filters at N <= 2 vectors, or sixteen at N <= 4: their sums to memory.
// Weights that lie `ahead` are fetched meanwhile.
template <int M, int N, bool Signed>
FTWT_INLINE void sums(const IntegerDirect& d, const int8_t* weights, int64_t row, const Vector* vectors, const int8_t* ahead,
                      int32_t* out) {
  constexpr int kLine = kRun * kLanes;
  _tile_zero(0);
  if constexpr (N > 1) _tile_zero(1);
  if constexpr (M > 1 || N > 2) _tile_zero(2);
  if constexpr (M * N > 3) _tile_zero(3);
  const int64_t pitch = d.stride * 4;
  int64_t source[N];
  for (int n = 0; n < N; ++n) source[n] = vectors[n].source;
  for (int t = 0; t < d.taps; ++t) {
    const int32_t* x = d.input + d.tap_offsets[t];
    for (int g = 0; g < d.groups; g += d.tile_groups, weights += 4 * d.tile_groups, x += d.tile_groups * d.stride) {
      if (ahead)
        for (int i = 0; i < 16 * M; ++i, ahead += 64) __builtin_prefetch(ahead, 0, 2);
      _tile_loadd(4, weights, row);
      FTWT_TILES(0, 4, 6, x + source[0]);
      if constexpr (N > 1) FTWT_TILES(1, 4, 7, x + source[1]);
      if constexpr (M > 1) {
        _tile_loadd(5, weights + 16 * row, row);
        FTWT_TILES_AGAIN(2, 5, 6);
        if constexpr (N > 1) FTWT_TILES_AGAIN(3, 5, 7);
      } else {
        if constexpr (N > 2) FTWT_TILES(2, 4, 6, x + source[2]);
        if constexpr (N > 3) FTWT_TILES(3, 4, 7, x + source[3]);
      }
    }
  }
  _tile_stored(0, out, 4 * kLine);
  if constexpr (N > 1) _tile_stored(1, out + 16, 4 * kLine);
  if constexpr (M > 1) {
    _tile_stored(2, out + 16 * kLine, 4 * kLine);
    if constexpr (N > 1) _tile_stored(3, out + 16 * kLine + 16, 4 * kLine);
  } else {
    if constexpr (N > 2) _tile_stored(2, out + 32, 4 * kLine);
    if constexpr (N > 3) _tile_stored(3, out + 48, 4 * kLine);
  }
}

template <int M, bool Signed>
static void filters(const IntegerDirect& d, const integers::Finishes& finish, int first, int count, int64_t row) {
  alignas(64) int32_t out[16 * M * kRun * kLanes];
  const int8_t* weights = static_cast<const int8_t*>(d.weights) + first * row;
  const int8_t* next = d.groups >= 16 && count == 16 * M ? weights + count * row : nullptr;  // the next filters, or nothing's
  for (int run = d.first_vector; run < d.last_vector; run += kRun) {
    const Vector* vectors = d.vectors + run;
    const int n = min(kRun, d.last_vector - run);
    const bool whole = integers::all_whole(vectors, n);
    const int8_t* ahead = run == d.first_vector ? next : nullptr;
    int v = 0;
    if constexpr (M == 1) {
      for (; v + 4 <= n; v += 4) sums<M, 4, Signed>(d, weights, row, vectors + v, v ? nullptr : ahead, out + v * kLanes);
      if (v + 3 == n) sums<M, 3, Signed>(d, weights, row, vectors + v, v ? nullptr : ahead, out + v * kLanes), v += 3;
    }
    for (; v + 2 <= n; v += 2) sums<M, 2, Signed>(d, weights, row, vectors + v, v ? nullptr : ahead, out + v * kLanes);
    if (v < n) sums<M, 1, Signed>(d, weights, row, vectors + v, v ? nullptr : ahead, out + v * kLanes);
    for (int f = 0; f < count; ++f) finish(d.filters[first + f], vectors, n, whole, out + f * kRun * kLanes);
  }
}

static void direct(const IntegerDirect& d) {
  if (!d.tile_groups) return integers::direct(d);
  for (int i = d.first_vector; i < d.last_vector; ++i)
    FTWT_PRODUCTS(integer, int64_t{4} * d.filter_count * d.groups * d.taps * d.vectors[i].count);
  const integers::Finishes finish{*d.epilogue};
  for (int f = 0; f < d.filter_count; f += 32) {
    const int count = min(32, d.filter_count - f), rows[2] = {min(16, count), max(1, count - 16)};
    Shapes s{};
    s.palette = 1;
    for (int i = 0; i < 4; ++i) s.rows[i] = static_cast<uint8_t>(rows[count > 16 ? i / 2 : 0]), s.columns[i] = 64;
    for (int i = 4; i < 6; ++i) s.rows[i] = static_cast<uint8_t>(rows[i - 4]), s.columns[i] = static_cast<uint16_t>(4 * d.tile_groups);
    for (int i = 6; i < 8; ++i) s.rows[i] = static_cast<uint8_t>(d.tile_groups), s.columns[i] = 64;
    _tile_loadconfig(&s);
    if (d.is_signed) count > 16 ? filters<2, true>(d, finish, f, count, d.row) : filters<1, true>(d, finish, f, count, d.row);
    else count > 16 ? filters<2, false>(d, finish, f, count, d.row) : filters<1, false>(d, finish, f, count, d.row);
  }
  _tile_release();
}

}  // namespace tiles
