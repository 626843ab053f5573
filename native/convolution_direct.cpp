// Convolutions by their plain definition: which inputs are staged how, and who computes what.
#include "convolution_step.h"
#include "staging.h"

#include <algorithm>
#include <cstring>

namespace ftwt {

namespace {

class DirectConvolution : public Convolution {
 public:
  DirectConvolution(Network& net, const ConvolutionSpec& spec)
      : Convolution(net, spec), staging_(plan_staging(spec, in_, out_)) {
    const size_t size = static_cast<size_t>(out_.channels) * group_in_ * taps_;
    weights_ = keep(net, "plain", size, [&](float* to) { std::memcpy(to, spec.weight, size * sizeof(float)); });
    staging_.layout.phase_of = staging_.phases.data();
    input_floats_ = static_cast<size_t>(staging_.layout.planes) * staging_.layout.plane_floats;
    // a 1x1 convolution over few positions fills vectors better with inputs, if nearly all are active
    if (staging_.in_place && spec.groups == 1 && spec.algorithm == Algorithm::automatic && in_.channels % 16 == 0 &&
        (in_.positions() == 16 || (in_.positions() <= 64 && in_.positions() % 16 != 0)))
      dot_ = plan_dot(spec, in_, out_);
  }

  void compute(Network& net, std::vector<Job>& jobs) const override {
    if (spec_.groups > 1 && group_in_ == 1 && group_out_ == 1) return depthwise(net, jobs);
    if (dot_.shape == DotShape::points && mostly_active(jobs)) return dot(net, jobs, dot_, in_.channels, weights_);
    in_phases(
        net, jobs, [&](const Job& job) { return staging_.in_place ? 0 : job.inputs.size() * input_floats_; },
        [&](Job* first, int count, float* scratch) { stage(net, first, count, scratch); },
        [&](Job* first, int count, float* scratch) { multiply(net, first, count, scratch); });
  }

 private:
  void stage(Network& net, Job* jobs, int count, float* scratch) const {
    if (staging_.in_place) return;
    const int parts = net.workers.count() > 1 ? 4 : 1;
    net.workers.share(count * parts, [&](int i, int worker) {
      const Job& job = jobs[i / parts];
      const int n = static_cast<int>(job.inputs.size());
      for (int c = share_of(n, i % parts, parts); c < share_of(n, i % parts + 1, parts); ++c) {
        net.pulse(worker, static_cast<int64_t>(input_floats_));
        Stage s = staging_.layout;
        s.plane = job.x + static_cast<int64_t>(job.inputs[c]) * in_.positions();
        s.out = scratch + job.staged + c * input_floats_;
        net.kernels.stage(s, true);
      }
    });
  }

  void multiply(Network& net, const Job* jobs, int count, const float* scratch) const {
    // pieces of filters or of positions, whatever there is more of; filters outside, so that their
    // weights serve all samples
    const int vectors = static_cast<int>(staging_.vectors.size());
    const int workers = net.workers.count();
    const int64_t row = static_cast<int64_t>(group_in_) * taps_;
    int filter_parts = 1, vector_parts = 1;
    if (workers > 1) {
      if (vectors >= 16 * workers) vector_parts = std::min(2 * workers, vectors / 4);
      else filter_parts = std::min(2 * workers, std::max(1, out_.channels / 12));
    }
    if (count > 1) filter_parts = std::max(filter_parts, static_cast<int>(out_.channels * row / (1 << 16)));
    filter_parts = std::clamp(std::max(filter_parts, out_.channels / kMostFilters), 1, out_.channels);
    vector_parts = std::max(vector_parts, vectors / per_piece(vectors, work / vectors / filter_parts));
    net.workers.share(filter_parts * vector_parts, [&](int i, int worker) {
      const int part = i / vector_parts, piece = i % vector_parts;
      const int first_filter = share_of(out_.channels, part, filter_parts);
      const int last_filter = share_of(out_.channels, part + 1, filter_parts);
      float* partial = net.scratch(worker).need(direct_partial(last_filter - first_filter));
      static thread_local std::vector<int64_t> inputs, weights;
      for (int k = 0; k < count; ++k) {
        const Job& job = jobs[k];
        const auto [from, to] = filters_between(job, first_filter, last_filter);
        if (from == to) continue;
        net.pulse(worker, work / filter_parts / vector_parts);
        Direct d{staging_.vectors.data(), share_of(vectors, piece, vector_parts), share_of(vectors, piece + 1, vector_parts),
                 staging_.in_place ? job.x : scratch + job.staged, nullptr, nullptr, 0, staging_.taps.data(), taps_,
                 weights_, row, job.filters.data(), from, to, partial, job.epilogue};
        const int n = static_cast<int>(job.inputs.size());
        int input = 0;
        for (int f = from; f < to;) {
          const int group = spec_.groups == 1 ? 0 : job.filters[f] / group_out_;
          int end = spec_.groups == 1 ? to : f;
          while (end < to && job.filters[end] / group_out_ == group) ++end;
          while (group && input < n && job.inputs[input] / group_in_ < group) ++input;
          inputs.clear(), weights.clear();
          for (; input < n && (spec_.groups == 1 || job.inputs[input] / group_in_ == group); ++input) {
            inputs.push_back(staging_.in_place ? static_cast<int64_t>(job.inputs[input]) * in_.positions()
                                               : static_cast<int64_t>(input) * static_cast<int64_t>(input_floats_));
            weights.push_back(static_cast<int64_t>(job.inputs[input] - group * group_in_) * taps_);
          }
          d.input_offsets = inputs.data(), d.weight_offsets = weights.data();
          d.inputs = static_cast<int>(inputs.size());
          d.first_filter = f, d.last_filter = end;
          net.kernels.direct(d);
          f = end;
        }
      }
    });
  }

  void depthwise(Network& net, const std::vector<Job>& jobs) const {
    const int batch = static_cast<int>(jobs.size());
    const bool plain = spec_.kernel == std::array{3, 3} && spec_.dilation == std::array{1, 1} &&
                       spec_.padding[0] == 1 && spec_.padding[1] == 1 && spec_.stride[0] == spec_.stride[1];
    const bool same = plain && (in_.height - 1) / spec_.stride[0] + 1 == out_.height &&
                      (in_.width - 1) / spec_.stride[0] + 1 == out_.width;
    const int square = same && spec_.stride[0] <= 2 ? spec_.stride[0] : 0;
    const int parts = net.workers.count() > 1 ? std::min(4 * net.workers.count(), in_.channels) : 1;
    net.workers.share(batch * parts, [&](int i, int worker) {
      const Job& job = jobs[i / parts];
      const int part = i % parts;
      const auto [from, to] = filters_between(job, share_of(in_.channels, part, parts), share_of(in_.channels, part + 1, parts));
      std::vector<uint8_t> active(in_.channels, 0);
      for (const int c : job.inputs) active[c] = 1;
      Depthwise d{staging_.layout, job.x, active.data(), staging_.taps.data(), taps_, square, staging_.vectors.data(),
                  static_cast<int>(staging_.vectors.size()), weights_, job.filters.data(), from, to,
                  job.epilogue};
      d.stage.out = net.scratch(worker).need(input_floats_ + 64);
      // a few filters at a time, and of one that is a long piece of work, a few vectors
      const int64_t each = static_cast<int64_t>(out_.positions()) * taps_;
      const int vectors = d.vector_count, filters = per_piece(to - from, each);
      const int some = square || each <= kPiece ? vectors : per_piece(vectors, each / vectors);
      for (int f = from; f < to; f += filters)
        for (int v = 0; v < vectors; v += some) {
          net.pulse(worker, each * filters / vectors * some);
          d.first_filter = f, d.last_filter = std::min(to, f + filters);
          d.vectors = staging_.vectors.data() + v, d.vector_count = std::min(some, vectors - v);
          net.kernels.depthwise(d);
        }
    });
  }

  bool mostly_active(const std::vector<Job>& jobs) const {
    size_t active = 0;
    for (const Job& job : jobs) active += job.inputs.size();
    return active * 4 >= jobs.size() * in_.channels * 3;
  }

  Staging staging_;
  DotPlan dot_;
  static constexpr int kMostFilters = 1 << 13;  // whose sums one worker holds
  const float* weights_;
  size_t input_floats_ = 0;
};

}  // namespace

std::unique_ptr<Convolution> make_direct(Network& net, const ConvolutionSpec& spec) {
  return std::make_unique<DirectConvolution>(net, spec);
}

}  // namespace ftwt
