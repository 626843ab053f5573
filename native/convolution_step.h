// What the convolution steps have in common: which channels a sample asks for, and what follows.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "convolution.h"

namespace ftwt {

// What one sample asks of a convolution.
struct Job {
  std::vector<int32_t> inputs;     // active channels
  std::vector<int32_t> filters;    // to compute
  const float* x;
  Epilogue epilogue;
  size_t staged;                   // where its staged input starts in the shared scratch
};

// The shape of a dot kernel, and how a convolution looks to it.
struct DotPlan {
  DotShape shape = DotShape::none;
  int positions = 0;         // of the input
  int inputs = 0, taps = 1;  // of a filter
  int tap = -1;              // the only one that ever meets an input, or -1: all
};

DotPlan plan_dot(const ConvolutionSpec& spec, const Shape& in, const Shape& out);

class Convolution : public Step {
 public:
  Convolution(const Network& net, const ConvolutionSpec& spec);

  void run(Network& net, int batch, int index) const override;
  // Computes the filters of all jobs.
  virtual void compute(Network& net, std::vector<Job>& jobs) const = 0;

 protected:
  // Whether what is added is the same after it, where it lies already; and making a filter of it alone.
  virtual bool stays(const Network& net) const;
  virtual void pass_plane(Network& net, int sample, int filter) const;

  static constexpr size_t kPhaseFloats = size_t{1} << 22;  // of staged inputs of several samples: 16 MiB

  // Samples whose staged inputs fit the shared scratch together, staged and then computed: so the
  // weights of a filter are read once for all of them.
  template <typename Size, typename Stage, typename Compute>
  static void in_phases(Network& net, std::vector<Job>& jobs, Size size, Stage stage, Compute compute) {
    for (size_t first = 0; first < jobs.size();) {
      size_t last = first, floats = 0;
      while (last < jobs.size() && (last == first || floats + size(jobs[last]) <= kPhaseFloats)) {
        jobs[last].staged = floats;
        floats += size(jobs[last++]);
      }
      float* scratch = net.shared().need(floats + 64);
      stage(jobs.data() + first, static_cast<int>(last - first), scratch);
      compute(jobs.data() + first, static_cast<int>(last - first), scratch);
      first = last;
    }
  }

  // All jobs by the dot kernels, with weights (K, taps, stride).
  void dot(Network& net, std::vector<Job>& jobs, const DotPlan& plan, int stride, const float* weights) const;

  // The weights of all steps that name the same constant, laid out in the same way.
  template <typename Fill>
  const float* keep(Network& net, const char* layout, size_t size, const Fill& fill) const {
    const std::string shape = std::to_string(taps_) + "," + std::to_string(group_in_) + "," + std::to_string(out_.channels);
    return net.keep(spec_.name.empty() ? "" : spec_.name + "/" + layout + shape, size, fill);
  }

  // The part of a job's filters among [from, to) of all.
  static std::pair<int, int> filters_between(const Job& job, int from, int to);

  const ConvolutionSpec spec_;
  const Shape in_, out_;
  const int taps_, group_in_, group_out_;
  const std::vector<float> bias_;

 private:
  void prepare(Network& net, int sample, Job& job) const;
  int64_t count(const Job& job) const;
  void pass_on(Network& net, int sample, const Job& job) const;
};

std::unique_ptr<Convolution> make_direct(Network& net, const ConvolutionSpec& spec);
std::unique_ptr<Convolution> make_winograd(Network& net, const ConvolutionSpec& spec);
std::unique_ptr<Convolution> make_dot(Network& net, const ConvolutionSpec& spec);
std::unique_ptr<Convolution> make_columns(Network& net, const ConvolutionSpec& spec);
std::unique_ptr<Convolution> make_panels(Network& net, const ConvolutionSpec& spec);

}  // namespace ftwt
