#include "convolution_step.h"

#include <algorithm>
#include <cstring>

namespace ftwt {

DotPlan plan_dot(const ConvolutionSpec& spec, const Shape& in, const Shape& out) {
  const bool plain = spec.groups == 1 && spec.stride == std::array{1, 1} && spec.dilation == std::array{1, 1};
  const bool padded = spec.padding != std::array{0, 0, 0, 0};
  if (spec.groups == 1 && !padded && out.positions() == 1 && spec.dilation == std::array{1, 1} &&
      spec.kernel == std::array{in.height, in.width})
    return {DotShape::points, 1, in.channels * in.positions(), 1, -1};
  if (plain && !padded && spec.kernel == std::array{1, 1}) return {DotShape::points, in.positions(), in.channels, 1, -1};
  if (plain && spec.kernel == std::array{3, 3} && spec.padding == std::array{1, 1, 1, 1} && in.height == in.width) {
    if (in.height == 1) return {DotShape::points, 1, in.channels, 1, 4};
    if (in.height == 2) return {DotShape::square2, 4, in.channels, 9, -1};
    if (in.height == 4) return {DotShape::square4, 16, in.channels, 9, -1};
  }
  return {};
}

Convolution::Convolution(const Network& net, const ConvolutionSpec& spec)
    : spec_(spec), in_(net.maps[spec.x]), out_(net.maps[spec.out]),
      taps_(spec.kernel[0] * spec.kernel[1]), group_in_(in_.channels / spec.groups),
      group_out_(out_.channels / spec.groups), bias_(spec.bias, spec.bias + out_.channels) {
  reads.push_back(spec.x);
  if (spec.add) reads.push_back(*spec.add);
  writes = spec.out;
  if (spec.add) replaces = *spec.add;
  positive = spec.add ? spec.post == Activation::relu : spec.act == Activation::relu;
  work = out_.size() * group_in_ * taps_;
}

void Convolution::run(Network& net, int batch, int index) const {
  static thread_local std::vector<Job> jobs;  // their lists keep their memory from run to run
  jobs.resize(batch);
  for (int sample = 0; sample < batch; ++sample) {
    prepare(net, sample, jobs[sample]);
    net.macs(index, sample) = count(jobs[sample]);
  }
  compute(net, jobs);
  for (int sample = 0; sample < batch; ++sample) pass_on(net, sample, jobs[sample]);
}

std::pair<int, int> Convolution::filters_between(const Job& job, int from, int to) {
  const auto begin = job.filters.begin();
  return {static_cast<int>(std::lower_bound(begin, job.filters.end(), from) - begin),
          static_cast<int>(std::lower_bound(begin, job.filters.end(), to) - begin)};
}

void Convolution::prepare(Network& net, int sample, Job& job) const {
  const Activity& active = net.activity(spec_.x, sample);
  list_channels(in_.channels, active.all ? nullptr : active.channels, nullptr, job.inputs);
  const uint8_t* mask = spec_.mask ? net.mask(*spec_.mask, sample) : nullptr;
  const uint8_t* after = spec_.after ? net.mask(*spec_.after, sample) : nullptr;
  list_channels(out_.channels, mask, after, job.filters);
  job.x = net.map(spec_.x, sample);
  const uint8_t* add_active = nullptr;
  if (spec_.add) {
    const Activity& other = net.activity(*spec_.add, sample);
    if (!other.all) add_active = other.channels;
  }
  job.epilogue = {bias_.data(), spec_.act, spec_.post, spec_.add ? net.map(*spec_.add, sample) : nullptr,
                  add_active, out_.positions(), net.map(spec_.out, sample)};
}

int64_t Convolution::count(const Job& job) const {
  int64_t pairs = 0;
  if (spec_.groups == 1) {
    pairs = static_cast<int64_t>(job.inputs.size()) * job.filters.size();
  } else {
    std::vector<int> active(spec_.groups, 0);
    for (const int c : job.inputs) ++active[c / group_in_];
    for (const int f : job.filters) pairs += active[f / group_out_];
  }
  return pairs * out_.positions() * taps_;
}

bool Convolution::stays(const Network& net) const {
  return spec_.post == Activation::none || (spec_.post == Activation::relu && net.positive(*spec_.add));
}

void Convolution::pass_plane(Network& net, int sample, int filter) const {
  const int64_t plane = out_.positions(), at = filter * plane;
  net.kernels.affine(net.map(*spec_.add, sample) + at, 1.0f, 0.0f, spec_.post, net.map(spec_.out, sample) + at, plane);
}

// Filters that were not computed may still pass on what is added to them.
void Convolution::pass_on(Network& net, int sample, const Job& job) const {
  Activity& active = net.activity(spec_.out, sample);
  active.all = !spec_.mask && !spec_.after;
  if (active.all) return;
  std::memset(active.channels, 0, out_.channels);
  for (const int f : job.filters) active.channels[f] = 1;
  if (!spec_.add) return;
  const Activity& other = net.activity(*spec_.add, sample);
  const uint8_t* after = spec_.after ? net.mask(*spec_.after, sample) : nullptr;
  // where the sum took the place of what was added, that is there already
  const bool in_place = net.map(*spec_.add, sample) == net.map(spec_.out, sample) && stays(net);
  for (int f = 0; f < out_.channels; ++f) {
    const bool added = (other.all || other.channels[f]) & (!after || after[f]);
    if (!in_place && added && !active.channels[f]) pass_plane(net, sample, f);
    active.channels[f] |= added;
  }
}

std::unique_ptr<Step> make_convolution(Network& net, const ConvolutionSpec& spec) {
  const Shape &in = net.maps[spec.x], &out = net.maps[spec.out];
  const DotPlan dot = plan_dot(spec, in, out);
  const int64_t tiles = (out.width + 1) / 2 + 3;  // in a row, which is the least that is worked on
  const bool winograd = spec.kernel == std::array{3, 3} && spec.stride == std::array{1, 1} &&
                        spec.dilation == std::array{1, 1} && spec.groups == 1 && tiles * (in.channels + 8) <= 1 << 20;
  const bool large = in.channels >= 16 && out.channels >= 16 && out.positions() >= 25;
  const bool small = dot.positions <= 4 || dot.shape == DotShape::square4;
  // its weights are filled up to sixteen inputs, which may be sixteen times as much
  const bool filled = dot.inputs >= 8 || static_cast<int64_t>(out.channels) * dot.taps <= 1 << 16;
  switch (spec.algorithm) {
    case Algorithm::automatic:
      if (dot.shape == DotShape::points && net.gates.empty() && out.positions() == in.positions() && in.positions() > 1 &&
          out.channels >= kPanel && (in.channels >= 256 || (in.channels >= 64 && in.positions() % 16 && in.positions() < 64)))
        return make_panels(net, spec);
      if (dot.shape == DotShape::points && !net.gates.empty() && in.positions() == 1 && spec.kernel == std::array{1, 1} &&
          !spec.mask && !spec.after && !spec.add)
        return make_columns(net, spec);
      if (dot.shape != DotShape::none && small && filled) return make_dot(net, spec);
      if (winograd && large) return make_winograd(net, spec);
      break;
    case Algorithm::dot:
      if (dot.shape != DotShape::none) return make_dot(net, spec);
      break;
    case Algorithm::winograd:
      if (winograd) return make_winograd(net, spec);
      break;
    case Algorithm::direct: break;
  }
  return make_direct(net, spec);
}

}  // namespace ftwt
