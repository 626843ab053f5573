// Convolutions of eight-bit maps on small planes, and linear layers.
#include <algorithm>
#include <tuple>

#include "integer_convolution.h"

namespace ftwt {

namespace {

class IntegerDotConvolution : public IntegerConvolution {
 public:
  IntegerDotConvolution(Network& net, const ConvolutionSpec& spec, const DotPlan& plan, const int8_t* weights, const float* scale)
      : IntegerConvolution(net, spec, scale), plan_(plan), stride_(stride_of(plan)), span_(plan.inputs / in_.channels) {
    const int among = plan.tap >= 0 ? 9 : plan.taps;
    const std::string layout = "integer dot" + std::to_string(plan.taps) + "," + std::to_string(plan.tap) + ",";
    const auto weight = [&](int64_t f, int c, int t) { return weights[(f * plan.inputs + c) * among + (plan.tap >= 0 ? plan.tap : t)]; };
    weights_ = reinterpret_cast<const int8_t*>(keep(net, layout.c_str(), static_cast<size_t>(out_.channels) * plan.taps * stride_ / 4, [&](float* to) {
      int8_t* w = reinterpret_cast<int8_t*>(to);
      for (int64_t f = 0; f < out_.channels; ++f)
        for (int c = 0; c < plan.inputs; ++c)
          for (int t = 0; t < plan.taps; ++t)
            w[((f * (stride_ / kIntegerBlock) + c / kIntegerBlock) * plan.taps + t) * kIntegerBlock + c % kIntegerBlock] = weight(f, c, t);
    }));
    if (net.integers.dword == 4 && net.types[spec.x] == Type::s8) lay_less(weight);
  }

  void compute(Network& net, std::vector<Job>& jobs) const override {
    static thread_local std::vector<Lists> all_lists;
    if (all_lists.size() < jobs.size()) all_lists.resize(jobs.size());
    Lists* lists = all_lists.data();
    const Job* all = jobs.data();
    const size_t values = static_cast<size_t>(plan_.positions) * stride_;
    in_phases(
        net, jobs, [&](const Job&) { return values / net.integers.dword; },
        [&](Job* first, int count, float* scratch) {
          net.workers.share(count, [&](int k, int) { arrange(net, first[k], scratch + first[k].staged, lists[first + k - all]); });
        },
        [&](Job* first, int count, float* scratch) {
          const int parts = std::clamp(out_.channels / 24, 1, net.workers.count() > 1 || count > 1 ? 64 : 1);
          net.workers.share(parts, [&](int part, int worker) {
            for (int k = 0; k < count; ++k) {
              const Job& job = first[k];
              const Lists& l = lists[first + k - all];
              const auto [from, to] =
                  filters_between(job, share_of(out_.channels, part, parts), share_of(out_.channels, part + 1, parts));
              const IntegerEpilogue e = epilogue(net, job);
              net.pulse(worker, work / parts);
              net.integers.dot({scratch + job.staged, l.stride, l.blocks.data(), l.picks.empty() ? nullptr : l.picks.data(),
                                static_cast<int>(l.blocks.size()), weights_, stride_, less_.empty() ? nullptr : less_.data(), job.filters.data(), from, to, &e},
                               plan_.shape);
            }
          });
        });
  }

  static int stride_of(const DotPlan& plan) { return (plan.inputs + kIntegerBlock - 1) / kIntegerBlock * kIntegerBlock; }

 private:
  // What sums have too much where signed bytes are read as 128 more, and zeros as 128.
  template <typename Weight>
  void lay_less(Weight weight) {
    const int side = in_.width, n = out_.positions();
    less_.assign(static_cast<size_t>(out_.channels) * n, 0);
    for (int f = 0; f < out_.channels; ++f)
      for (int t = 0; t < plan_.taps; ++t) {
        int32_t sum = 0;
        for (int c = 0; c < plan_.inputs; ++c) sum += 128 * weight(f, c, t);
        for (int p = 0; p < n; ++p) {
          const int y = p / side + t / 3 - 1, x = p % side + t % 3 - 1;
          if (plan_.taps == 1 || (y >= 0 && y < side && x >= 0 && x < side)) less_[f * n + p] += sum;
        }
      }
  }

  // Which inputs a sample's filters are multiplied with: blocks with an active one, or blocks that are
  // made of active ones alone.
  struct Lists {
    std::vector<int32_t> blocks;
    std::vector<Pick> picks;
    int stride = 0;
  };

  void arrange(Network& net, const Job& job, float* staged, Lists& lists) const {
    const auto [blocks, picks, stride] = std::tie(lists.blocks, lists.picks, lists.stride);
    blocks.clear(), picks.clear(), stride = stride_;
    const int count = static_cast<int>(job.inputs.size()), lines = (count + kIntegerBlock - 1) / kIntegerBlock;
    // a shuffle takes as long as some products, of which two by two positions have too few
    if (net.integers.picks && less_.empty() && plan_.shape == DotShape::square4 && count && 4 * lines <= 3 * (stride_ / kIntegerBlock)) {
      pick_lines(job.inputs.data(), count, picks);
      stride = lines * kIntegerBlock;
    }
    if (!less_.empty() || !picks.empty())
      for (int b = 0; b < stride / kIntegerBlock; ++b) blocks.push_back(b);
    else
      for (const int c : job.inputs)
        for (int b = c * span_ / kIntegerBlock; b <= ((c + 1) * span_ - 1) / kIntegerBlock; ++b)
          if (blocks.empty() || blocks.back() < b) blocks.push_back(b);
    net.integers.arrange({reinterpret_cast<const uint8_t*>(job.x), net.types[spec_.x], in_.channels, job.inputs.data(),
                          count, plan_.positions, span_, stride, !picks.empty(), staged});
  }

  const DotPlan plan_;
  const int stride_;              // inputs, filled up to blocks
  const int span_;                // of them, of a channel
  const int8_t* weights_;
  std::vector<int32_t> less_;
};

}  // namespace

std::unique_ptr<Step> make_integer_dot(Network& net, const ConvolutionSpec& spec, const int8_t* weights, const float* scale) {
  const DotPlan plan = plan_dot(spec, net.maps[spec.x], net.maps[spec.out]);
  const bool small = plan.positions <= 4 || plan.shape == DotShape::square4;
  const bool filled = 3 * IntegerDotConvolution::stride_of(plan) <= 4 * plan.inputs;  // not much more than there is
  if (plan.shape == DotShape::none || !small || !filled || net.integers.tiles) return nullptr;
  return std::make_unique<IntegerDotConvolution>(net, spec, plan, weights, scale);
}

}  // namespace ftwt
