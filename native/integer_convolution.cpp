// Convolutions of eight-bit maps: which inputs are laid out how, whose weights, who computes what.
#include <algorithm>
#include <cstring>

#include "integer_convolution.h"
#include "quads.h"
#include "staging.h"

namespace ftwt {

namespace {

// The active inputs of one group of a convolution, filled up to whole dwords.
struct Chosen {
  int first, count;             // in the list of all; of inputs
  bool all;                     // then weights are read where they lie
};

// What one sample's active inputs come to.
struct Columns {
  std::vector<int32_t> inputs;  // within their group, ascending; may lie past the group's channels
  std::vector<int32_t> channels;  // of the map; -1: zeros
  std::vector<Chosen> groups;
};

class IntegerDirectConvolution : public IntegerConvolution {
 public:
  IntegerDirectConvolution(Network& net, const ConvolutionSpec& spec, const int8_t* weights, const float* scale)
      : IntegerConvolution(net, spec, scale), dword_(net.integers.dword),
        folded_(net.integers.tiles && spec.groups == 1 && group_in_ <= 4 && group_out_ >= 8 && spec.kernel[1] > 1 && spec.kernel[1] <= 16),
        tiles_(folded_ || (net.integers.tiles && group_in_ >= 4 * kFewest && group_out_ >= 8)), inputs_(whole(group_in_)),
        block_(tiles_ ? inputs_ : std::min(inputs_, kIntegerBlock)), row_(static_cast<int64_t>(taps_) * inputs_),
        few_(dword_ == 4 && !tiles_ && group_out_ >= 8 ? kFew : 0),
        staging_(folded_ ? plan_columns(spec, in_, out_) : plan(spec, in_, out_, few_)) {
    staging_.layout.phase_of = staging_.phases.data();
    if (dword_ == 4 && !staging_.in_place) moves_ = plan_moves(staging_.layout);
    for (int y = 0; folded_ && y < spec.kernel[0]; ++y) rows_.push_back(staging_.taps[y * spec.kernel[1]]);
    stride_ = staging_.in_place ? (in_.positions() + 15) / 16 * 16
                                : static_cast<int64_t>(staging_.layout.planes) * staging_.layout.plane_floats;
    if (stride_ / 16 % 2 == 0) stride_ += 16;  // so that dwords of a position do not share a place in the cache
    const int each = 4 / dword_;  // bytes of a weight
    const size_t size = static_cast<size_t>(out_.channels) * row_ * each;
    const std::string layout = "integer" + std::to_string(dword_) + "," + std::to_string(block_) + ",";
    weights_ = keep(net, layout.c_str(), size / 4 + 32, [&](float* to) {
      const auto lay = [&](auto* w) {
        for (int64_t f = 0; f < out_.channels; ++f)
          for (int64_t c = 0; c < group_in_; ++c)
            for (int64_t t = 0; t < taps_; ++t) w[f * row_ + place(c, t)] = weights[(f * group_in_ + c) * taps_ + t];
      };
      if (each == 1) lay(reinterpret_cast<int8_t*>(to));
      else lay(reinterpret_cast<int16_t*>(to));
    });
    less_.assign(out_.channels, 0);
    plan_depthwise(net, weights);
    const bool bytes = dword_ == 4 && net.types[spec.x] == Type::s8;
    shifted_ = bytes && !tiles_;
    for (int64_t f = 0; bytes && f < out_.channels; ++f)
      for (int64_t i = 0; i < int64_t{group_in_} * taps_; ++i) less_[f] += 128 * weights[f * group_in_ * taps_ + i];
  }

  void compute(Network& net, std::vector<Job>& jobs) const override {
    if (quad_weights_) return depthwise(net, jobs);
    static thread_local std::vector<Columns> columns;
    if (columns.size() < jobs.size()) columns.resize(jobs.size());
    for (size_t k = 0; k < jobs.size(); ++k) choose(jobs[k], columns[k]);
    const Job* all = jobs.data();
    Columns* lists = columns.data();
    in_phases(
        net, jobs, [&](const Job& job) { return dwords(lists[&job - all]) * stride_; },
        [&](Job* first, int count, float* scratch) { stage(net, first, count, lists + (first - all), scratch); },
        [&](Job* first, int count, float* scratch) { multiply(net, first, count, lists + (first - all), scratch); });
  }

 private:
  static Staging plan(const ConvolutionSpec& spec, const Shape& in, const Shape& out, int few) {
    Staging plain = plan_staging(spec, in, out);
    if (plain.in_place || spec.kernel[1] > 8 || out.positions() > 1024) return plain;
    Staging columns = plan_columns(spec, in, out);
    const auto cost = [&](const Staging& s) {
      return 4 * s.vectors.size() - (ends_with_few(s, few) ? 4 - s.vectors.back().count : 0);
    };
    // where shuffles lay it out, that is soon made good
    return (few ? cost(columns) < cost(plain) : cost(columns) * 20 < cost(plain) * 19) ? columns : plain;
  }

  // Whether the last vector has so few positions, side by side, that lanes had better be inputs there.
  static bool ends_with_few(const Staging& s, int few) {
    return !s.vectors.empty() && s.vectors.back().count <= few && s.vectors.back().lanes == (1u << s.vectors.back().count) - 1;
  }

  void plan_depthwise(Network& net, const int8_t* weights) {
    const auto [kh, kw] = spec_.kernel;
    const int fours = (kw + 3) / 4;
    if (!net.integers.depthwise || group_in_ > 1 || group_out_ > 1) return;
    if (dword_ == 2) return plan_pairs(net, weights);
    quads_ = plan_quads(spec_, in_, out_);
    if (!quads_.taps) return;
    const size_t row = quads_.taps;
    quad_weights_ = keep(net, "quads", out_.channels * row, [&](float* to) {
      int8_t* w = reinterpret_cast<int8_t*>(to);
      std::memset(w, 0, out_.channels * row * 4);
      for (int f = 0; f < out_.channels; ++f)
        for (int y = 0; y < kh; ++y) std::memcpy(w + (f * row + y * fours) * 4, weights + (f * kh + y) * kw, kw);
    });
  }

  // Pairs of taps; the last has a zero beside it, if need be.
  void plan_pairs(Network& net, const int8_t* weights) {
    if (spec_.stride[0] > 2 || spec_.stride[1] > 2) return;
    quads_ = plan_halves(spec_, in_, out_);
    if (!quads_.taps) return;
    const int pairs = (taps_ + 1) / 2;
    quad_weights_ = keep(net, "pairs", static_cast<size_t>(out_.channels) * pairs, [&](float* to) {
      int16_t* w = reinterpret_cast<int16_t*>(to);
      for (int f = 0; f < out_.channels; ++f)
        for (int t = 0; t < 2 * pairs; ++t) w[f * 2 * pairs + t] = t < taps_ ? weights[f * taps_ + t] : 0;
    });
  }

  void depthwise(Network& net, const std::vector<Job>& jobs) const {
    const int parts = net.workers.count() > 1 ? std::min(4 * net.workers.count(), in_.channels) : 1;
    net.workers.share(static_cast<int>(jobs.size()) * parts, [&](int i, int worker) {
      const Job& job = jobs[i / parts];
      const int part = i % parts, n = static_cast<int>(job.filters.size());
      std::vector<uint8_t> active(in_.channels, 0);
      for (const int c : job.inputs) active[c] = 1;
      const IntegerEpilogue e = epilogue(net, job);
      uint8_t* plane = reinterpret_cast<uint8_t*>(net.scratch(worker).need(quads_.bytes / 4 + 64));
      IntegerDepthwise d{};
      d.input = reinterpret_cast<const uint8_t*>(job.x), d.type = net.types[spec_.x], d.active = active.data();
      d.height = in_.height, d.width = in_.width, d.plane = plane, d.plane_bytes = quads_.bytes + 64;
      d.top = spec_.padding[0], d.left = spec_.padding[1], d.pitch = quads_.pitch, d.offsets = quads_.offsets.data();
      d.vectors = quads_.vectors.data(), d.vector_count = static_cast<int>(quads_.vectors.size());
      d.quads = quads_.quads.empty() ? nullptr : quads_.quads.data(), d.orders = quads_.orders.data(), d.taps = quads_.taps;
      d.stride_h = spec_.stride[0], d.stride_w = spec_.stride[1], d.plane_halves = quads_.plane;
      d.neighbours = quads_.taps == 3 && spec_.kernel[0] == 3 && spec_.stride[0] == 1 && spec_.dilation[0] == 1;
      d.weights = reinterpret_cast<const int32_t*>(quad_weights_), d.less = less_.data(), d.filters = job.filters.data();
      d.epilogue = &e;
      const int64_t each = static_cast<int64_t>(out_.positions()) * taps_ + in_.positions();
      const int from = share_of(n, part, parts), to = share_of(n, part + 1, parts), some = per_piece(to - from, each);
      for (int f = from; f < to; f += some) {
        net.pulse(worker, each * some);
        d.first_filter = f, d.last_filter = std::min(to, f + some);
        net.integers.depthwise(d);
      }
    });
  }

  size_t dwords(const Columns& c) const { return c.inputs.size() / dword_; }

  // So many inputs, filled up to whole dwords, or to tiles of as many dwords each.
  int whole(int inputs) const {
    const int dwords = (inputs + dword_ - 1) / dword_;
    return (tiles_ && dwords ? tiles_of(dwords) * tile_dwords(dwords) : dwords) * dword_;
  }
  static int tiles_of(int dwords) { return (dwords + 15) / 16; }
  static int tile_dwords(int dwords) { return (dwords + tiles_of(dwords) - 1) / tiles_of(dwords); }

  // Inactive inputs of a group, the last of it first, make its last dword or tile whole.
  void choose(const Job& job, Columns& c) const {
    c.groups.clear();
    size_t next = 0, n = 0;
    c.inputs.resize(static_cast<size_t>(spec_.groups) * inputs_ + 1), c.channels.resize(c.inputs.size());
    std::vector<uint8_t> chosen(inputs_);
    for (int g = 0; g < spec_.groups; ++g) {
      const int base = g * group_in_;
      std::fill(chosen.begin(), chosen.end(), uint8_t{0});
      int count = 0;
      for (; next < job.inputs.size() && job.inputs[next] < base + group_in_; ++next, ++count) chosen[job.inputs[next] - base] = 1;
      const int wanted = whole(count);
      for (int i = inputs_ - 1; count < wanted; --i)
        if (!chosen[i]) chosen[i] = 2, ++count;
      c.groups.push_back({static_cast<int>(n), count, count == inputs_});
      int32_t *const inputs = c.inputs.data(), *const channels = c.channels.data();
      for (int i = 0; i < inputs_; ++i) {  // no branch depends on a mask
        inputs[n] = i, channels[n] = chosen[i] == 1 ? base + i : -1;
        n += chosen[i] != 0;
      }
    }
    c.inputs.resize(n), c.channels.resize(n);
  }

  void stage(Network& net, Job* jobs, int count, const Columns* columns, float* scratch) const {
    const int parts = net.workers.count() > 1 ? 4 : 1;
    net.workers.share(count * parts, [&](int i, int worker) {
      const Job& job = jobs[i / parts];
      const Columns& c = columns[i / parts];
      const int n = static_cast<int>(dwords(c));
      IntegerStage s{staging_.layout, {}, net.types[spec_.x], shifted_, nullptr, nullptr, moves_.data(), static_cast<int>(moves_.size())};
      s.flat = reinterpret_cast<int32_t*>(net.scratch(worker).need(in_.positions() + 64));
      for (int d = share_of(n, i % parts, parts); d < share_of(n, i % parts + 1, parts); ++d) {
        net.pulse(worker, stride_ + in_.positions());
        for (int k = 0; k < dword_; ++k) {
          const int channel = c.channels[d * dword_ + k];
          s.channels[k] = channel < 0 ? nullptr
                                      : reinterpret_cast<const uint8_t*>(job.x) + static_cast<int64_t>(channel) * in_.positions();
        }
        s.out = reinterpret_cast<int32_t*>(scratch + job.staged + d * stride_);
        net.integers.stage(s);
      }
    });
  }

  // Where the weight of an input's tap lies in the row of a filter.
  int64_t place(int64_t input, int64_t tap) const {
    const int64_t first = input / block_ * block_, inputs = std::min<int64_t>(block_, inputs_ - first);
    return first * taps_ + tap * inputs + input - first;
  }

  // The inputs of a group as shuffles that put their weights side by side.
  struct Marks {
    std::vector<Pick> picks;
    std::vector<uint8_t> chosen, orders, kept;
  };

  void mark(const Network& net, const int32_t* inputs, int count, Marks& m) const {
    if (net.integers.picks) pick_lines(inputs, count, m.picks);
    if (!net.integers.orders) return;
    const int words = (inputs_ + 63) / 64, each = 4 / dword_, some = 16 / each;  // bytes of a weight, weights of a shuffle
    m.chosen.assign(64 * words, 0);
    for (int i = 0; i < count; ++i) m.chosen[inputs[i]] = 1;
    m.orders.assign(64 * words * each + 16, 0), m.kept.resize(4 * words * each);
    for (int i = 0; i < 4 * words * each; ++i) {
      uint8_t* const order = &m.orders[16 * i];
      int n = 0;
      for (int k = 0; k < some; ++k) {
        for (int byte = 0; byte < each; ++byte) order[n + byte] = static_cast<uint8_t>(k * each + byte);
        n += m.chosen[i * some + k] ? each : 0;
      }
      m.kept[i] = static_cast<uint8_t>(n);
    }
  }

  void multiply(Network& net, const Job* jobs, int count, const Columns* columns, const float* scratch) const {
    const int workers = net.workers.count(), vectors = static_cast<int>(staging_.vectors.size());
    // of many weights fewer filters, so that these stay near
    const bool few = folded_ || row_ > 2048;
    const int many = tiles_ ? (few ? 16 : kIntegerFilters) : taps_ == 1 && dword_ == 4 ? 30 : row_ > 1024 && dword_ == 4 ? 6 : 12;
    const int blocks = (out_.channels + many - 1) / many;
    int filter_parts = 1, vector_parts = 1;
    if (workers > 1) {
      filter_parts = std::min(2 * workers, blocks);
      if (filter_parts < 2 * workers) vector_parts = std::clamp(vectors / 4, 1, 2 * workers / filter_parts);
    }
    const int64_t block = row_ * std::min(out_.channels, many) * 16;  // of a vector
    net.workers.share(count * filter_parts * vector_parts, [&](int i, int worker) {
      const int k = i / (filter_parts * vector_parts), part = i / vector_parts % filter_parts, piece = i % vector_parts;
      const Job& job = jobs[k];
      const Columns& c = columns[k];
      // whole blocks of what the sample keeps
      const int n = static_cast<int>(job.filters.size()), all = (n + many - 1) / many;
      const int from = share_of(all, part, filter_parts) * many;
      const int to = std::min(n, share_of(all, part + 1, filter_parts) * many);
      const int first = share_of(vectors, piece, vector_parts), last = share_of(vectors, piece + 1, vector_parts);
      const int some = per_piece(last - first, block);
      const IntegerEpilogue e = epilogue(net, job);
      IntegerDirect d{};
      d.vectors = staging_.vectors.data(), d.stride = stride_, d.tap_offsets = staging_.taps.data(), d.taps = taps_;
      d.epilogue = &e, d.is_signed = net.types[spec_.x] == Type::s8;
      static thread_local Marks marks;
      static thread_local std::vector<int32_t> offsets, few;
      const bool apart = last == vectors && ends_with_few(staging_, few_);
      int marked = -1, laid = -1, gathered = -1;
      for (int f = from; f < to;) {
        const int group = job.filters[f] / group_out_;
        const Chosen& g = c.groups[group];
        int end = f + 1;
        while (end < to && end < f + many && job.filters[end] / group_out_ == group) ++end;
        d.input = reinterpret_cast<const int32_t*>(scratch + job.staged) + g.first / dword_ * stride_;
        d.groups = g.count / dword_;
        if (laid != g.count) lay_offsets(g, offsets), laid = g.count;
        d.offsets = offsets.data(), d.dwords = static_cast<int>(offsets.size());
        d.few_stride = (d.dwords + 15) / 16 * 16;
        if (apart && gathered != group) gather(d, few), gathered = group;
        const bool few_inputs = d.groups < kFewest && net.types[spec_.x] == Type::u8;
        d.tile_groups = tiles_ && d.groups && !few_inputs ? tile_dwords(d.groups) : 0;
        if (folded_ && d.groups) {  // the columns of the kernel are the inputs, its rows the taps
          d.groups = d.tile_groups = spec_.kernel[1], d.stride = staging_.layout.plane_floats;
          d.taps = spec_.kernel[0], d.tap_offsets = rows_.data();
        }
        d.filters = job.filters.data() + f, d.filter_count = end - f;
        if (!g.all && marked != group) mark(net, c.inputs.data() + g.first, g.count, marks), marked = group;
        lay(net, worker, g, c, marks, d);
        d.next = job.filters.data() + end, d.next_count = std::min(many, to - end);
        for (int v = first; v < last; v += some) {
          net.pulse(worker, block * std::min(some, last - v));
          d.first_vector = v, d.last_vector = std::min(last, v + some);
          d.few = apart && d.last_vector == last ? few.data() : nullptr;
          net.integers.direct(d);
        }
        f = end;
      }
    });
  }

  // Where the taps of a group's dwords lie, in the order of their weights.
  void lay_offsets(const Chosen& g, std::vector<int32_t>& offsets) const {
    const int groups = g.count / dword_, block = (g.all ? block_ : g.count) / dword_;
    offsets.resize(static_cast<size_t>(groups) * taps_);
    int32_t* to = offsets.data();
    for (int first = 0; first < groups; first += block)
      for (const int tap : staging_.taps)
        for (int i = first; i < std::min(groups, first + block); ++i) *to++ = static_cast<int32_t>(i * stride_ + tap);
  }

  // What the last vector's positions read, in the order of the weights.
  void gather(const IntegerDirect& d, std::vector<int32_t>& few) const {
    const Vector& v = staging_.vectors.back();
    few.assign(static_cast<size_t>(v.count) * d.few_stride, 0);
    for (int p = 0; p < v.count; ++p)
      for (int i = 0; i < d.dwords; ++i) few[p * d.few_stride + i] = d.input[d.offsets[i] + v.source + p];
  }

  // The weights of some filters: where they lie, or side by side, those of the active inputs alone.
  void lay(Network& net, int worker, const Chosen& g, const Columns& c, const Marks& m, IntegerDirect& d) const {
    const int each = 4 / dword_, first = d.filters[0];
    const uint8_t* weights = reinterpret_cast<const uint8_t*>(weights_);
    for (int f = 0; f < d.filter_count; ++f) d.less[f] = shifted_ ? less_[d.filters[f]] : 0;
    d.all_weights = weights, d.all_row = row_ * each;
    if (g.all && d.filters[d.filter_count - 1] - first == d.filter_count - 1) {
      d.weights = weights + first * row_ * each, d.row = row_ * each;
      return;
    }
    const int64_t row = (static_cast<int64_t>(taps_) * g.count + 63) / 64 * 64;
    uint8_t* side_by_side = reinterpret_cast<uint8_t*>(net.scratch(worker).need((d.filter_count * row * each + 64) / 4 + 16));
    d.weights = side_by_side, d.row = row * each;
    if (g.all)
      for (int f = 0; f < d.filter_count; ++f) std::memcpy(side_by_side + f * d.row, weights + d.filters[f] * row_ * each, row_ * each);
    else
      net.integers.pack({weights, row_, taps_, inputs_, block_, c.inputs.data() + g.first, m.picks.data(), m.orders.data(), m.kept.data(),
                         g.count, d.filters, d.filter_count, side_by_side, row, d.less, shifted_});
  }

  static constexpr int kFew = 4;      // positions of a last vector
  static constexpr int kFewest = 8;  // dwords of inputs that are worth the matrix unit

  const int dword_;             // values in one
  const bool folded_;           // of few inputs: the matrix unit takes those of a row of the kernel together
  const bool tiles_;
  const int inputs_;            // of a group, filled up to whole dwords or tiles
  const int block_;             // of them, whose weights lie together
  const int64_t row_;           // weights of a filter
  const int few_;               // positions of a last vector that lanes are not worth; 0: any are
  Staging staging_;
  std::vector<Move> moves_;
  int64_t stride_ = 0;          // from one dword's planes to the next
  const float* weights_;
  std::vector<int32_t> rows_;   // if folded: where the rows of the kernel read
  std::vector<int32_t> less_;   // of each filter: what its sums have too much
  Quads quads_;                 // of depthwise convolutions
  const float* quad_weights_ = nullptr;
  bool shifted_ = false;
};

}  // namespace

void pick_lines(const int32_t* inputs, int count, std::vector<Pick>& picks) {
  picks.clear();
  for (int line = 0; line < count; line += 64) {
    const size_t first = picks.size();
    for (int i = line; i < std::min(count, line + 64); ++i) {
      const int block = inputs[i] / 64, reach = picks.size() == first + 1 ? 1 : 0;  // of the first shuffle alone
      if (picks.size() == first || block > picks.back().block + reach) picks.push_back({block, 0, 0, {}});
      Pick& p = picks.back();
      p.lanes |= uint64_t{1} << (i - line), p.order[i - line] = static_cast<uint8_t>(inputs[i] - 64 * p.block);
    }
    picks[first].more = static_cast<int32_t>(picks.size() - first - 1);
  }
}

bool IntegerConvolution::stays(const Network& net) const {
  return net.scales[*spec_.add] == net.scales[spec_.out] && Convolution::stays(net);
}

void IntegerConvolution::pass_plane(Network& net, int sample, int filter) const {
  const int64_t plane = out_.positions(), at = filter * plane;
  net.integers.blend({net.values(*spec_.add, sample, at), {}, spec_.post, net.target(spec_.out, sample, at), plane});
}

IntegerEpilogue IntegerConvolution::epilogue(const Network& net, const Job& job) const {
  IntegerEpilogue e{scale_.data(), bias_.data(), spec_.act, spec_.post, {}, job.epilogue.add_active, out_.positions(),
                    {job.epilogue.out, net.types[spec_.out], 1.0f / net.scales[spec_.out]}};
  if (spec_.add) e.add = {job.epilogue.add, net.types[*spec_.add], net.scales[*spec_.add], false};
  return e;
}

std::unique_ptr<Step> make_integer_convolution(Network& net, const ConvolutionSpec& spec, const int8_t* weights,
                                               const float* scale) {
  if (auto step = make_integer_dot(net, spec, weights, scale)) return step;
  return std::make_unique<IntegerDirectConvolution>(net, spec, weights, scale);
}

}  // namespace ftwt
