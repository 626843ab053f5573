// A 1x1 convolution that computes all filters: thirty-two of them are two registers, and an input at
// some positions is so many scalars. Nothing is gathered, nothing falls into a gap; but no filter
// can be left out. Included by kernels_impl.h.

namespace panels {

// As many filters at a time, and positions: sums, weights and an input are registers.
constexpr int kWide = kParts == 1 ? 2 : 1;  // times sixteen
constexpr int kMost = (kRegisters - 1) / (kWide * kParts) - 1;

constexpr int kAheadFloats = 48 * kPanel;

// Sums of some of a panel's filters at P positions, then plane by plane to memory.
template <int P>
static void tile(const Panel& p, int filter, int position) {
  V s[P][kWide];
#pragma GCC unroll 16
  for (int i = 0; i < P; ++i)
#pragma GCC unroll 2
    for (int k = 0; k < kWide; ++k) s[i][k] = V{};
  const float* x = p.input + position;
  FTWT_PRODUCTS(panel, int64_t{P} * kWide * kLanes * p.inputs);
  const float* w = p.weights + static_cast<int64_t>(filter / kPanel) * p.inputs * kPanel + filter % kPanel;
  for (int c = 0; c < p.inputs; ++c, x += p.epilogue.positions, w += kPanel) {
    V weights[kWide];
#pragma GCC unroll 2
    for (int k = 0; k < kWide; ++k) weights[k] = load(w + k * kLanes), prefetch(w + kAheadFloats + k * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < P; ++i) {
      const V at = splat(x[i]);
#pragma GCC unroll 2
      for (int k = 0; k < kWide; ++k) s[i][k] += weights[k] * at;
    }
  }
  const Epilogue& e = p.epilogue;
#pragma GCC unroll 2
  for (int k = 0; k < kWide; ++k) {
    V rows[kLanes] = {}, filters[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < P; ++i) rows[i] = s[i][k];
    transpose16(rows, filters);
    alignas(64) float out[kLanes][kLanes];
#pragma GCC unroll 16
    for (int f = 0; f < kLanes; ++f) store(out[f], filters[f]);
    const int first = filter + k * kLanes, count = min(kLanes, p.filters - first);
    for (int f = 0; f < count; ++f) {
      const int64_t at = static_cast<int64_t>(first + f) * e.positions + position;
      V y = activate(e.act, load(out[f]) + splat(e.bias[first + f]));
      if (e.add) {
        if (!e.add_active || e.add_active[first + f]) y = y + load_some(e.add + at, P);
        y = activate(e.post, y);
      }
      store_some(e.out + at, y, P);
    }
  }
}

template <int P>
static void some(const Panel& p, int filter, int position, int count) {
  if (count == P) return tile<P>(p, filter, position);
  if constexpr (P > 1) some<P - 1>(p, filter, position, count);
}

static void panel(const Panel& p) {
  // positions outside: their inputs stay near while all panels pass by
  for (int position = p.first_position; position < p.last_position;) {
    const int left = p.last_position - position, tiles = (left + kMost - 1) / kMost;
    const int count = (left + tiles - 1) / tiles;
    for (int f = p.first_panel * kPanel; f < p.last_panel * kPanel; f += kWide * kLanes)
      some<kMost>(p, f, position, count);
    position += count;
  }
}

}  // namespace panels
