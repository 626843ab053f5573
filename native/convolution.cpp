#include "convolution.h"

#include <algorithm>
#include <cstring>

namespace ftwt {

namespace {

constexpr int64_t kPatchFloats = int64_t{1} << 17;  // of Winograd patches at a time: 512 KiB, half of L2
constexpr size_t kPhaseFloats = size_t{1} << 22;    // of staged inputs of several samples: 16 MiB

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

class Convolution : public Step {
 public:
  Convolution(const Network& net, const ConvolutionSpec& spec)
      : spec_(spec), in_(net.maps[spec.x]), out_(net.maps[spec.out]),
        taps_(spec.kernel[0] * spec.kernel[1]), group_in_(in_.channels / spec.groups),
        group_out_(out_.channels / spec.groups), bias_(spec.bias, spec.bias + out_.channels) {
    reads.push_back(spec.x);
    if (spec.add) reads.push_back(*spec.add);
    writes = spec.out;
    if (spec.add) replaces = *spec.add;
    positive = spec.add ? spec.post == Activation::relu : spec.act == Activation::relu;
  }

  void run(Network& net, int batch, int index) const override {
    static thread_local std::vector<Job> jobs;  // their lists keep their memory from run to run
    jobs.resize(batch);
    for (int sample = 0; sample < batch; ++sample) {
      prepare(net, sample, jobs[sample]);
      net.macs(index, sample) = count(jobs[sample]);
    }
    compute(net, jobs);
    for (int sample = 0; sample < batch; ++sample) pass_on(net, sample);
  }

  virtual void compute(Network& net, std::vector<Job>& jobs) const = 0;

 protected:
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
  void dot(Network& net, std::vector<Job>& jobs, const DotPlan& plan, int stride, const float* weights) const {
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
                  filters_between(job, out_.channels * part / parts, out_.channels * (part + 1) / parts);
              net.kernels.dot({scratch + job.staged, stride, b.data(), static_cast<int>(b.size()), weights,
                               job.filters.data(), from, to, job.epilogue},
                              plan.shape);
            }
          });
        });
  }

  // The part of a job's filters among [from, to) of all.
  static std::pair<int, int> filters_between(const Job& job, int from, int to) {
    const auto begin = job.filters.begin();
    return {static_cast<int>(std::lower_bound(begin, job.filters.end(), from) - begin),
            static_cast<int>(std::lower_bound(begin, job.filters.end(), to) - begin)};
  }

  const ConvolutionSpec spec_;
  const Shape in_, out_;
  const int taps_, group_in_, group_out_;
  const std::vector<float> bias_;

 private:
  void prepare(Network& net, int sample, Job& job) const {
    const Activity& active = net.activity(spec_.x, sample);
    list(in_.channels, active.all ? nullptr : active.channels, nullptr, job.inputs);
    const uint8_t* mask = spec_.mask ? net.mask(*spec_.mask, sample) : nullptr;
    const uint8_t* after = spec_.after ? net.mask(*spec_.after, sample) : nullptr;
    list(out_.channels, mask, after, job.filters);
    job.x = net.map(spec_.x, sample);
    const uint8_t* add_active = nullptr;
    if (spec_.add) {
      const Activity& other = net.activity(*spec_.add, sample);
      if (!other.all) add_active = other.channels;
    }
    job.epilogue = {bias_.data(), spec_.act, spec_.post, spec_.add ? net.map(*spec_.add, sample) : nullptr,
                    add_active, out_.positions(), net.map(spec_.out, sample)};
  }

  // The channels that both masks keep; a null mask keeps all.
  static void list(int channels, const uint8_t* a, const uint8_t* b, std::vector<int32_t>& kept) {
    kept.resize(channels);
    int n = 0;
    for (int c = 0; c < channels; ++c) {
      kept[n] = c;
      n += (!a || a[c]) && (!b || b[c]);  // no branch: masks are not predictable
    }
    kept.resize(n);
  }

  int64_t count(const Job& job) const {
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

  // Filters that were not computed may still pass on what is added to them.
  void pass_on(Network& net, int sample) const {
    Activity& active = net.activity(spec_.out, sample);
    const uint8_t* mask = spec_.mask ? net.mask(*spec_.mask, sample) : nullptr;
    const uint8_t* after = spec_.after ? net.mask(*spec_.after, sample) : nullptr;
    active.all = !mask && !after;
    if (active.all) return;
    const Activity* other = spec_.add ? &net.activity(*spec_.add, sample) : nullptr;
    // where the sum took the place of what was added, that is there already
    const bool in_place = spec_.add && net.map(*spec_.add, sample) == net.map(spec_.out, sample) &&
                          (spec_.post == Activation::none || (spec_.post == Activation::relu && net.positive(*spec_.add)));
    const int64_t plane = out_.positions();
    for (int f = 0; f < out_.channels; ++f) {
      const bool computed = (!mask || mask[f]) && (!after || after[f]);
      const bool added = !computed && other && (!after || after[f]) && (other->all || other->channels[f]);
      active.channels[f] = computed || added;
      if (added && !in_place)
        net.kernels.affine(net.map(*spec_.add, sample) + f * plane, 1.0f, 0.0f, spec_.post,
                           net.map(spec_.out, sample) + f * plane, plane);
    }
  }
};

// Where each of the taps lies in an input that was laid out for it: rows with zeros around, and for
// a stride of s, s x s planes of every s-th row and column.
struct Staging {
  Stage layout{};
  std::vector<int32_t> phases;     // row phase, column phase, of each plane
  std::vector<int32_t> taps;
  std::vector<Vector> vectors;
  bool in_place = false;           // a 1x1 convolution reads the map as it is
};

Staging plan_staging(const ConvolutionSpec& spec, const Shape& in, const Shape& out) {
  Staging s;
  const auto [sh, sw] = spec.stride;
  const auto [kh, kw] = spec.kernel;
  const auto [dh, dw] = spec.dilation;
  const int top = spec.padding[0], left = spec.padding[1];
  int pitch = 0, rows = 0;
  s.layout.height = in.height, s.layout.width = in.width;
  if (kh == 1 && kw == 1 && sh == 1 && sw == 1 && !top && !left && out.height == in.height && out.width == in.width) {
    s.in_place = true;
    s.taps = {0};
    pitch = out.width;
  } else {
    const int height = (out.height - 1) * sh + (kh - 1) * dh + 1, width = (out.width - 1) * sw + (kw - 1) * dw + 1;
    rows = (height + sh - 1) / sh, pitch = (width + sw - 1) / sw;
    if (sw == 1 && left > 0 && out.width % 16) {
      // the zeros left of a row also stand right of the row before it
      const int right = std::max(0, width - left - in.width);
      pitch = std::max(out.width, pitch - std::min(left, right));
    }
    std::vector<int> plane_of(sh * sw, -1);
    std::vector<std::array<int, 3>> where;  // plane, row, column
    for (int ky = 0; ky < kh; ++ky)
      for (int kx = 0; kx < kw; ++kx) {
        const int a = ky * dh % sh, b = kx * dw % sw;
        int& plane = plane_of[a * sw + b];
        if (plane < 0) {
          plane = static_cast<int>(s.phases.size() / 2);
          s.phases.push_back(a), s.phases.push_back(b);
        }
        where.push_back({plane, ky * dh / sh, kx * dw / sw});
      }
    const int size = (rows * pitch + 48 + 15) / 16 * 16;
    for (const auto& [plane, row, column] : where) s.taps.push_back(plane * size + row * pitch + column);
    s.layout = {nullptr, in.height, in.width, top, left, sh, sw, rows, pitch, size,
                static_cast<int>(s.phases.size() / 2), nullptr, nullptr};
  }
  if (pitch == out.width || out.width % 16) {
    const int run = (out.height - 1) * pitch + out.width;
    for (int v = 0; v < run; v += 16) {
      Vector vector{v, 0, 0, 0};
      for (int lane = 0; lane < 16 && v + lane < run; ++lane) {
        const int y = (v + lane) / pitch, x = (v + lane) % pitch;
        if (x >= out.width) continue;
        if (!vector.count) vector.target = y * out.width + x;
        vector.lanes |= static_cast<uint16_t>(1 << lane), ++vector.count;
      }
      if (vector.count) s.vectors.push_back(vector);
    }
  } else {
    for (int y = 0; y < out.height; ++y)
      for (int x = 0; x < out.width; x += 16) s.vectors.push_back({y * pitch + x, y * out.width + x, 0xffff, 16});
  }
  return s;
}

class DirectConvolution : public Convolution {
 public:
  DirectConvolution(const Network& net, const ConvolutionSpec& spec)
      : Convolution(net, spec), staging_(plan_staging(spec, in_, out_)) {
    const size_t size = static_cast<size_t>(out_.channels) * group_in_ * taps_;
    std::memcpy(weights_.need(size), spec.weight, size * sizeof(float));
    staging_.layout.phase_of = staging_.phases.data();
    input_floats_ = static_cast<size_t>(staging_.layout.planes) * staging_.layout.plane_floats;
    // a 1x1 convolution over few positions fills vectors better with inputs, if nearly all are active
    if (staging_.in_place && spec.groups == 1 && spec.algorithm == Algorithm::automatic && in_.channels % 16 == 0 &&
        (in_.positions() == 16 || (in_.positions() <= 64 && in_.positions() % 16 != 0)))
      dot_ = plan_dot(spec, in_, out_);
  }

  void compute(Network& net, std::vector<Job>& jobs) const override {
    if (spec_.groups > 1 && group_in_ == 1 && group_out_ == 1) return depthwise(net, jobs);
    if (dot_.shape == DotShape::points && mostly_active(jobs)) return dot(net, jobs, dot_, in_.channels, weights_.data());
    in_phases(
        net, jobs, [&](const Job& job) { return staging_.in_place ? 0 : job.inputs.size() * input_floats_; },
        [&](Job* first, int count, float* scratch) { stage(net, first, count, scratch); },
        [&](Job* first, int count, float* scratch) { multiply(net, first, count, scratch); });
  }

 private:
  void stage(Network& net, Job* jobs, int count, float* scratch) const {
    if (staging_.in_place) return;
    const int parts = net.workers.count() > 1 ? 4 : 1;
    net.workers.share(count * parts, [&](int i, int) {
      const Job& job = jobs[i / parts];
      const int n = static_cast<int>(job.inputs.size());
      for (int c = n * (i % parts) / parts; c < n * (i % parts + 1) / parts; ++c) {
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
      if (vectors >= 16 * workers) vector_parts = std::min(4 * workers, vectors / 4);
      else filter_parts = std::min(2 * workers, std::max(1, out_.channels / 12));
    }
    if (count > 1) filter_parts = std::max(filter_parts, static_cast<int>(out_.channels * row / (1 << 16)));
    filter_parts = std::clamp(filter_parts, 1, out_.channels);
    net.workers.share(filter_parts * vector_parts, [&](int i, int worker) {
      float* partial = net.scratch(worker).need(direct_partial(out_.channels));
      const int part = i / vector_parts, piece = i % vector_parts;
      std::vector<int64_t> inputs, weights;
      for (int k = 0; k < count; ++k) {
        const Job& job = jobs[k];
        const auto [from, to] = filters_between(job, out_.channels * part / filter_parts,
                                                out_.channels * (part + 1) / filter_parts);
        if (from == to) continue;
        Direct d{staging_.vectors.data(), vectors * piece / vector_parts, vectors * (piece + 1) / vector_parts,
                 staging_.in_place ? job.x : scratch + job.staged, nullptr, nullptr, 0, staging_.taps.data(), taps_,
                 weights_.data(), row, job.filters.data(), from, to, partial, job.epilogue};
        const int n = static_cast<int>(job.inputs.size());
        int input = 0;
        for (int f = from; f < to;) {
          const int group = job.filters[f] / group_out_;
          int end = f;
          while (end < to && job.filters[end] / group_out_ == group) ++end;
          while (input < n && job.inputs[input] / group_in_ < group) ++input;
          inputs.clear(), weights.clear();
          for (; input < n && job.inputs[input] / group_in_ == group; ++input) {
            inputs.push_back(staging_.in_place ? static_cast<int64_t>(job.inputs[input]) * in_.positions()
                                               : static_cast<int64_t>(input) * static_cast<int64_t>(input_floats_));
            weights.push_back(static_cast<int64_t>(job.inputs[input] % group_in_) * taps_);
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
      const auto [from, to] = filters_between(job, in_.channels * part / parts, in_.channels * (part + 1) / parts);
      std::vector<uint8_t> active(in_.channels, 0);
      for (const int c : job.inputs) active[c] = 1;
      Depthwise d{staging_.layout, job.x, active.data(), staging_.taps.data(), taps_, square, staging_.vectors.data(),
                  static_cast<int>(staging_.vectors.size()), weights_.data(), job.filters.data(), from, to,
                  job.epilogue};
      d.stage.out = net.scratch(worker).need(input_floats_ + 64);
      net.kernels.depthwise(d);
    });
  }

  bool mostly_active(const std::vector<Job>& jobs) const {
    size_t active = 0;
    for (const Job& job : jobs) active += job.inputs.size();
    return active * 4 >= jobs.size() * in_.channels * 3;
  }

  Staging staging_;
  DotPlan dot_;
  Buffer weights_;
  size_t input_floats_ = 0;
};

class WinogradConvolution : public Convolution {
 public:
  WinogradConvolution(const Network& net, const ConvolutionSpec& spec)
      : Convolution(net, spec), rows_((out_.height + 1) / 2), columns_((out_.width + 1) / 2) {
    float* u = weights_.need(static_cast<size_t>(out_.channels) * in_.channels * 16);
    for (int64_t pair = 0; pair < static_cast<int64_t>(out_.channels) * in_.channels; ++pair)
      transform(spec.weight + pair * 9, u + pair * 16);
    if (spec.algorithm == Algorithm::automatic && in_.channels * out_.channels <= 64 * 64)
      direct_ = std::make_unique<DirectConvolution>(net, spec);
  }

  void compute(Network& net, std::vector<Job>& jobs) const override {
    if (direct_ && few(jobs)) return direct_->compute(net, jobs);
    // rows of tiles whose patches fit the cache, and enough such blocks to share out
    const int workers = net.workers.count(), batch = static_cast<int>(jobs.size());
    const int64_t most = kPatchFloats / (static_cast<int64_t>(in_.channels) * columns_ * 16);
    const int fits = static_cast<int>(std::clamp<int64_t>(most, 1, rows_));
    const int wanted = workers > 1 && batch < 4 * workers ? 4 * workers / batch : 1;
    const int largest = std::clamp(rows_ * columns_ / kFewTiles, 1, rows_);  // number of blocks worth while
    const int blocks = std::max((rows_ + fits - 1) / fits, std::min(wanted, largest));
    // weights of more than 1 MiB are read once for all samples, and by one worker each
    const bool share_weights = weights_.size() > size_t{1} << 18 && blocks == 1 && (batch > 1 || workers > 1);
    if (blocks * batch >= workers && !share_weights) {
      net.workers.share(blocks * batch, [&](int i, int worker) {
        const Job& job = jobs[i / blocks];
        const int first = rows_ * (i % blocks) / blocks, last = rows_ * (i % blocks + 1) / blocks;
        if (first == last) return;
        const int tiles = (last - first) * columns_;
        const size_t patches = winograd_patches(tiles, static_cast<int>(job.inputs.size()));
        float* scratch = net.scratch(worker).need(
            patches + winograd_padded(last - first, columns_, in_.width + spec_.padding[1]) + winograd_sums(tiles));
        stage(net, job, 0, static_cast<int>(job.inputs.size()), first, last, scratch, scratch + patches);
        multiply(net, job, 0, static_cast<int>(job.filters.size()), first, last, scratch, scratch + patches);
      });
      return;
    }
    const int tiles = rows_ * columns_;
    in_phases(
        net, jobs, [&](const Job& job) { return winograd_patches(tiles, static_cast<int>(job.inputs.size())); },
        [&](Job* first, int count, float* scratch) {
          const int parts = workers > 1 ? 4 : 1;
          net.workers.share(count * parts, [&](int i, int worker) {
            const Job& job = first[i / parts];
            const int n = static_cast<int>(job.inputs.size()), part = i % parts;
            float* padded = net.scratch(worker).need(winograd_padded(rows_, columns_, in_.width + spec_.padding[1]));
            stage(net, job, n * part / parts, n * (part + 1) / parts, 0, rows_, scratch + job.staged, padded);
          });
        },
        [&](Job* first, int count, float* scratch) {
          const int parts = std::max(1, count > 1 || workers > 1 ? out_.channels / 24 : 1);
          net.workers.share(parts, [&](int part, int worker) {
            float* sums = net.scratch(worker).need(winograd_sums(tiles));
            for (int k = 0; k < count; ++k) {
              const auto [from, to] =
                  filters_between(first[k], out_.channels * part / parts, out_.channels * (part + 1) / parts);
              if (from < to) multiply(net, first[k], from, to, 0, rows_, scratch + first[k].staged, sums);
            }
          });
        });
  }

 private:
  // G g G^T
  static void transform(const float* g, float* u) {
    float half[4][3];
    for (int x = 0; x < 3; ++x) {
      half[0][x] = g[x];
      half[1][x] = (g[x] + g[3 + x] + g[6 + x]) * 0.5f;
      half[2][x] = (g[x] - g[3 + x] + g[6 + x]) * 0.5f;
      half[3][x] = g[6 + x];
    }
    for (int y = 0; y < 4; ++y) {
      const float* h = half[y];
      u[4 * y] = h[0];
      u[4 * y + 1] = (h[0] + h[1] + h[2]) * 0.5f;
      u[4 * y + 2] = (h[0] - h[1] + h[2]) * 0.5f;
      u[4 * y + 3] = h[2];
    }
  }

  void stage(Network& net, const Job& job, int from, int to, int first_row, int last_row, float* patches,
             float* padded) const {
    net.kernels.patches({job.x, in_.height, in_.width, spec_.padding[0], spec_.padding[1], job.inputs.data(),
                         static_cast<int>(job.inputs.size()), from, to, columns_, first_row, last_row, patches, padded});
  }

  void multiply(Network& net, const Job& job, int from, int to, int first_row, int last_row, const float* patches,
                float* sums) const {
    std::vector<int64_t> offsets(job.inputs.size());
    for (size_t i = 0; i < offsets.size(); ++i) offsets[i] = static_cast<int64_t>(job.inputs[i]) * 16;
    net.kernels.winograd({patches, static_cast<int>(job.inputs.size()), offsets.data(), weights_.data(),
                          static_cast<int64_t>(in_.channels) * 16, job.filters.data(), from, to, columns_, first_row,
                          last_row, out_.height, out_.width, sums, job.epilogue});
  }

  // Measured: a tile costs about 5 cycles for each input and filter and 0.6 for each pair of them, the
  // same outputs 1.35 for each pair by the plain definition.
  static bool few(const std::vector<Job>& jobs) {
    size_t pairs = 0, sides = 0;
    for (const Job& job : jobs) pairs += job.inputs.size() * job.filters.size(), sides += job.inputs.size() + job.filters.size();
    return 3 * pairs < 20 * sides;
  }

  static constexpr int kFewTiles = 24;  // fewer at a time do not pay for reading the weights

  const int rows_, columns_;  // of tiles
  std::unique_ptr<DirectConvolution> direct_;  // for when few channels are active
  Buffer weights_;
};

class DotConvolution : public Convolution {
 public:
  DotConvolution(const Network& net, const ConvolutionSpec& spec, const DotPlan& plan)
      : Convolution(net, spec), plan_(plan), stride_((plan.inputs + 15) / 16 * 16) {
    const int among = plan.tap >= 0 ? 9 : plan.taps;
    float* w = weights_.need(static_cast<size_t>(out_.channels) * plan.taps * stride_);
    for (int64_t f = 0; f < out_.channels; ++f)
      for (int c = 0; c < plan.inputs; ++c)
        for (int t = 0; t < plan.taps; ++t)
          w[((f * (stride_ / 16) + c / 16) * plan.taps + t) * 16 + c % 16] =
              spec.weight[(f * plan.inputs + c) * among + (plan.tap >= 0 ? plan.tap : t)];
  }

  void compute(Network& net, std::vector<Job>& jobs) const override {
    dot(net, jobs, plan_, stride_, weights_.data());
  }

 private:
  const DotPlan plan_;
  const int stride_;
  Buffer weights_;
};

// A linear layer whose inputs may be masked: weights by columns, so that those of an inactive input
// are never read. They are all the work there is.
class ColumnConvolution : public Convolution {
 public:
  ColumnConvolution(const Network& net, const ConvolutionSpec& spec) : Convolution(net, spec) {
    const int64_t filters = out_.channels;
    float* w = weights_.need(static_cast<size_t>(in_.channels) * filters);
    for (int64_t f = 0; f < filters; ++f)
      for (int c = 0; c < in_.channels; ++c) w[c * filters + f] = spec.weight[f * in_.channels + c];
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
        net.kernels.columns({weights_.data() + first, offsets.data(), values.data(), static_cast<int>(values.size()), count, out});
        if (spec_.act != Activation::none) net.kernels.affine(out, 1.0f, 0.0f, spec_.act, out, count);
      }
    });
  }

 private:
  static constexpr int kPart = 512;  // outputs at a time
  Buffer weights_;
};

// A 1x1 convolution in a network without masks.
class PanelConvolution : public Convolution {
 public:
  PanelConvolution(const Network& net, const ConvolutionSpec& spec)
      : Convolution(net, spec), panels_((out_.channels + kPanel - 1) / kPanel) {
    const int64_t inputs = in_.channels;
    float* w = weights_.need(static_cast<size_t>(panels_ * inputs) * kPanel);
    for (int f = 0; f < out_.channels; ++f)
      for (int64_t c = 0; c < inputs; ++c) w[(f / kPanel * inputs + c) * kPanel + f % kPanel] = spec.weight[f * inputs + c];
  }

  void compute(Network& net, std::vector<Job>& jobs) const override {
    const int batch = static_cast<int>(jobs.size()), workers = net.workers.count(), positions = in_.positions();
    const int pieces = workers > 1 && positions >= 56 * workers ? 2 * workers : 1;
    const int parts = std::min(panels_, (workers > 1 && pieces == 1) || batch > 1 ? std::max(2 * workers, panels_ / 4) : 1);
    net.workers.share(parts * pieces, [&](int i, int) {
      const int part = i / pieces, piece = i % pieces;
      for (const Job& job : jobs)
        net.kernels.panel({job.x, in_.channels, out_.channels, weights_.data(), panels_ * part / parts,
                           panels_ * (part + 1) / parts, positions * piece / pieces, positions * (piece + 1) / pieces,
                           job.epilogue});
    });
  }

 private:
  const int panels_;
  Buffer weights_;
};

}  // namespace

std::unique_ptr<Step> make_convolution(const Network& net, const ConvolutionSpec& spec) {
  const Shape &in = net.maps[spec.x], &out = net.maps[spec.out];
  const DotPlan dot = plan_dot(spec, in, out);
  const bool winograd = spec.kernel == std::array{3, 3} && spec.stride == std::array{1, 1} &&
                        spec.dilation == std::array{1, 1} && spec.groups == 1;
  const bool large = in.channels >= 16 && out.channels >= 16 && out.positions() >= 25;
  const bool small = dot.positions <= 4 || dot.shape == DotShape::square4;
  switch (spec.algorithm) {
    case Algorithm::automatic:
      if (dot.shape == DotShape::points && net.gates.empty() && out.positions() == in.positions() && in.positions() > 1 &&
          out.channels >= kPanel && (in.channels >= 256 || (in.channels >= 64 && in.positions() % 16 && in.positions() < 64)))
        return std::make_unique<PanelConvolution>(net, spec);
      if (dot.shape == DotShape::points && !net.gates.empty() && in.positions() == 1 && spec.kernel == std::array{1, 1} &&
          !spec.mask && !spec.after && !spec.add)
        return std::make_unique<ColumnConvolution>(net, spec);
      if (dot.shape != DotShape::none && small) return std::make_unique<DotConvolution>(net, spec, dot);
      if (winograd && large) return std::make_unique<WinogradConvolution>(net, spec);
      break;
    case Algorithm::dot:
      if (dot.shape != DotShape::none) return std::make_unique<DotConvolution>(net, spec, dot);
      break;
    case Algorithm::winograd:
      if (winograd) return std::make_unique<WinogradConvolution>(net, spec);
      break;
    case Algorithm::direct: break;
  }
  return std::make_unique<DirectConvolution>(net, spec);
}

}  // namespace ftwt
