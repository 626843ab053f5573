// Convolutions whose weights are most of the work: small planes, linear layers, 1x1.
#include "convolution_step.h"

#include <algorithm>
#include <cstring>

namespace ftwt {

namespace {

// Inputs of a position side by side, zero where inactive; and which sixteens hold an active one.
void interleave(Network& net, const Job& job, const Shape& in, const DotPlan& plan, int stride, float* staged,
                std::vector<int32_t>& blocks) {
  const int span = plan.inputs / in.channels;  // inputs of a channel
  for (const int c : job.inputs)
    for (int b = c * span / 16; b <= ((c + 1) * span - 1) / 16; ++b)
      if (blocks.empty() || blocks.back() < b) blocks.push_back(b);
  if (plan.positions > 1) {
    net.kernels.interleave({job.x, plan.positions, in.channels, job.inputs.data(), static_cast<int>(job.inputs.size()),
                            stride, staged});
    return;
  }
  std::memset(staged, 0, sizeof(float) * stride);
  if (job.inputs.size() == static_cast<size_t>(in.channels)) {
    std::memcpy(staged, job.x, sizeof(float) * plan.inputs);
    return;
  }
  for (const int c : job.inputs)
    std::memcpy(staged + static_cast<int64_t>(c) * span, job.x + static_cast<int64_t>(c) * span, sizeof(float) * span);
}

class DotConvolution : public Convolution {
 public:
  DotConvolution(Network& net, const ConvolutionSpec& spec)
      : Convolution(net, spec), plan_(plan_dot(spec, in_, out_)), stride_((plan_.inputs + 15) / 16 * 16) {
    const DotPlan& plan = plan_;
    const int among = plan.tap >= 0 ? 9 : plan.taps;
    const std::string layout = "dot" + std::to_string(plan.taps) + "," + std::to_string(plan.tap) + ",";
    weights_ = keep(net, layout.c_str(), static_cast<size_t>(out_.channels) * plan.taps * stride_, [&](float* w) {
      for (int64_t f = 0; f < out_.channels; ++f)
        for (int c = 0; c < plan.inputs; ++c)
          for (int t = 0; t < plan.taps; ++t)
            w[((f * (stride_ / 16) + c / 16) * plan.taps + t) * 16 + c % 16] =
                spec.weight[(f * plan.inputs + c) * among + (plan.tap >= 0 ? plan.tap : t)];
    });
  }

  void compute(Network& net, std::vector<Job>& jobs) const override {
    dot(net, jobs, plan_, stride_, weights_);
  }

 private:
  const DotPlan plan_;
  const int stride_;
  const float* weights_;
};

// A linear layer whose inputs may be masked: weights by columns, so that those of an inactive input
// are never read. They are all the work there is.
class ColumnConvolution : public Convolution {
 public:
  ColumnConvolution(Network& net, const ConvolutionSpec& spec) : Convolution(net, spec) {
    const int64_t filters = out_.channels;
    weights_ = keep(net, "columns", static_cast<size_t>(in_.channels) * filters, [&](float* w) {
      for (int64_t f = 0; f < filters; ++f)
        for (int c = 0; c < in_.channels; ++c) w[c * filters + f] = spec.weight[f * in_.channels + c];
    });
  }

  void compute(Network& net, std::vector<Job>& jobs) const override {
    const int parts = (out_.channels + kPart - 1) / kPart;
    net.workers.share(parts, [&](int part, int) {
      const int first = part * kPart, count = std::min(kPart, out_.channels - first);
      std::vector<int64_t> offsets;
      std::vector<float> values;
      for (const Job& job : jobs) {
        offsets.clear(), values.clear();
        for (const int c : job.inputs) offsets.push_back(static_cast<int64_t>(c) * out_.channels), values.push_back(job.x[c]);
        float* out = job.epilogue.out + first;
        std::copy_n(bias_.data() + first, count, out);
        net.kernels.columns({weights_ + first, offsets.data(), values.data(), static_cast<int>(values.size()), count, out});
        if (spec_.act != Activation::none) net.kernels.affine(out, 1.0f, 0.0f, spec_.act, out, count);
      }
    });
  }

 private:
  static constexpr int kPart = 512;  // outputs at a time
  const float* weights_;
};

// A 1x1 convolution in a network without masks.
class PanelConvolution : public Convolution {
 public:
  PanelConvolution(Network& net, const ConvolutionSpec& spec)
      : Convolution(net, spec), panels_((out_.channels + kPanel - 1) / kPanel) {
    const int64_t inputs = in_.channels;
    weights_ = keep(net, "panels", static_cast<size_t>(panels_ * inputs) * kPanel, [&](float* w) {
      for (int f = 0; f < out_.channels; ++f)
        for (int64_t c = 0; c < inputs; ++c) w[(f / kPanel * inputs + c) * kPanel + f % kPanel] = spec.weight[f * inputs + c];
    });
  }

  void compute(Network& net, std::vector<Job>& jobs) const override {
    const int batch = static_cast<int>(jobs.size()), workers = net.workers.count(), positions = in_.positions();
    const int shared = workers > 1 && positions >= 56 * workers ? 2 * workers : 1;
    const int pieces = std::max(shared, positions / per_piece(positions, work / positions));
    const int parts = std::min(panels_, (workers > 1 && shared == 1) || batch > 1 ? std::max(2 * workers, panels_ / 4) : 1);
    net.workers.share(parts * pieces, [&](int i, int worker) {
      const int part = i / pieces, piece = i % pieces;
      net.pulse(worker, work / parts / pieces * batch);
      for (const Job& job : jobs)
        net.kernels.panel({job.x, in_.channels, out_.channels, weights_, share_of(panels_, part, parts),
                           share_of(panels_, part + 1, parts), share_of(positions, piece, pieces), share_of(positions, piece + 1, pieces),
                           job.epilogue});
    });
  }

 private:
  const int panels_;
  const float* weights_;
};

}  // namespace

void Convolution::dot(Network& net, std::vector<Job>& jobs, const DotPlan& plan, int stride, const float* weights) const {
  std::vector<std::vector<int32_t>> blocks(jobs.size());
  Job* all = jobs.data();
  in_phases(
      net, jobs, [&](const Job&) { return static_cast<size_t>(plan.positions) * stride; },
      [&](Job* first, int count, float* scratch) {
        net.workers.share(count, [&](int k, int) {
          interleave(net, first[k], in_, plan, stride, scratch + first[k].staged, blocks[first + k - all]);
        });
      },
      [&](Job* first, int count, float* scratch) {
        const int parts = std::clamp(out_.channels / 24, 1, net.workers.count() > 1 || count > 1 ? 64 : 1);
        net.workers.share(parts, [&](int part, int) {
          for (int k = 0; k < count; ++k) {
            const Job& job = first[k];
            const std::vector<int32_t>& b = blocks[first + k - all];
            const auto [from, to] =
                filters_between(job, share_of(out_.channels, part, parts), share_of(out_.channels, part + 1, parts));
            net.kernels.dot({scratch + job.staged, stride, b.data(), static_cast<int>(b.size()), weights,
                             job.filters.data(), from, to, job.epilogue},
                            plan.shape);
          }
        });
      });
}

std::unique_ptr<Convolution> make_dot(Network& net, const ConvolutionSpec& spec) {
  return std::make_unique<DotConvolution>(net, spec);
}

std::unique_ptr<Convolution> make_columns(Network& net, const ConvolutionSpec& spec) {
  return std::make_unique<ColumnConvolution>(net, spec);
}

std::unique_ptr<Convolution> make_panels(Network& net, const ConvolutionSpec& spec) {
  return std::make_unique<PanelConvolution>(net, spec);
}

}  // namespace ftwt
