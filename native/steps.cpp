#include "steps.h"
#include "channels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ftwt {

namespace {

// mask = weights * features + bias > threshold. The matrices are stored by columns, so that an
// inactive feature's weights are never read.
class Predict : public Step {
 public:
  Predict(Network& net, const PredictSpec& spec)
      : features_(spec.features), gate_(spec.mask), filters_(net.gates[spec.mask]), width_(spec.width),
        rank_(spec.rank), threshold_(spec.threshold), softmax_(spec.softmax), bias_(spec.bias, spec.bias + filters_) {
    const int inner = rank_ ? rank_ : width_;
    weight_ = columns(net, spec.weight, spec.weight_name, filters_, inner);
    if (rank_) reduce_ = columns(net, spec.reduce, spec.reduce_name, rank_, width_);
    const float* first = rank_ ? spec.reduce : spec.weight;
    const int rows = rank_ ? rank_ : filters_;
    rows_sum_.assign(rows, 0.0f);
    for (int c = 0; c < width_; ++c)
      for (int k = 0; k < rows; ++k) rows_sum_[k] += first[static_cast<size_t>(k) * width_ + c];
    work = static_cast<int64_t>(rows) * width_ + static_cast<int64_t>(rank_) * filters_;
    reads = features_;
  }

  void run(Network& net, int batch, int index) const override {
    net.workers.share(batch, [&](int sample, int) { predict(net, sample, index, batch == 1); });
  }

 private:
  // A matrix by columns; of bytes, of which there is a quarter to read, if each row is whole numbers times a scale.
  struct Matrix {
    const float* floats;
    const int8_t* bytes;
    std::vector<float> scale;  // of each row
  };

  static Matrix columns(Network& net, const float* matrix, const std::string& name, int rows, int width) {
    const size_t size = static_cast<size_t>(rows) * width;
    std::vector<float> scale = scales_of(matrix, rows, width);
    const std::string key = name.empty() ? name : name + "/predict" + std::to_string(rows) + "," + std::to_string(width);
    const auto turn = [&](auto* to, auto value) {
      for (int c = 0; c < width; ++c)
        for (int r = 0; r < rows; ++r) to[static_cast<size_t>(c) * rows + r] = value(r, matrix[static_cast<size_t>(r) * width + c]);
    };
    if (scale.empty()) return {net.keep(key, size + 16, [&](float* to) { turn(to, [](int, float v) { return v; }); }), nullptr, {}};
    const float* kept = net.keep(key, size / 4 + 16, [&](float* to) {
      turn(reinterpret_cast<int8_t*>(to), [&](int r, float v) { return static_cast<int8_t>(std::lrint(v / scale[r])); });
    });
    return {nullptr, reinterpret_cast<const int8_t*>(kept), std::move(scale)};
  }

  // What rows are whole numbers of, the largest 127; empty: one is not.
  static std::vector<float> scales_of(const float* matrix, int rows, int width) {
    std::vector<float> scales(rows, 1.0f);
    for (int r = 0; r < rows; ++r) {
      const float* row = matrix + static_cast<size_t>(r) * width;
      float most = 0.0f;
      for (int c = 0; c < width; ++c) most = std::max(most, std::fabs(row[c]));
      if (most > 0.0f) scales[r] = most / 127.0f;
      for (int c = 0; c < width; ++c)
        if (!(std::rint(row[c] / scales[r]) * scales[r] == row[c])) return {};
    }
    return scales;
  }

  // sums[k] += row k times `values`, those of the columns at `offsets`.
  static void multiply(Network& net, const Matrix& matrix, Columns c, int parts) {
    static thread_local std::vector<float> whole;
    float* const sums = c.sums;
    if (matrix.bytes) whole.assign(c.n, 0.0f), c.sums = whole.data();
    net.workers.share(parts, [&](int part, int) {
      const int from = c.n / 16 * part / parts * 16, to = part + 1 < parts ? c.n / 16 * (part + 1) / parts * 16 : c.n;
      net.kernels.columns({matrix.floats ? matrix.floats + from : nullptr, c.offsets, c.values, c.count, to - from, c.sums + from,
                           matrix.bytes ? matrix.bytes + from : nullptr});
    });
    for (int k = 0; matrix.bytes && k < c.n; ++k) sums[k] += c.sums[k] * matrix.scale[k];
  }

  void predict(Network& net, int sample, int index, bool alone) const {
    // lists that keep their memory from run to run
    static thread_local std::vector<int> active;
    static thread_local std::vector<float> values, sums, logits;
    static thread_local std::vector<int64_t> offsets;
    active.clear(), values.clear(), offsets.clear();
    int base = 0;
    for (const int f : features_) {
      const float* x = net.map(f, sample);
      for (const int c : active_channels(net, f, sample)) active.push_back(base + c), values.push_back(x[c]);
      base += net.maps[f].channels;
    }
    float silent = 0.0f;  // the share of an inactive feature
    if (softmax_) {
      const bool full = static_cast<int>(active.size()) == width_;
      float most = full ? values[0] : 0.0f;
      for (const float v : values) most = std::max(most, v);
      silent = full ? 0.0f : std::exp(-most);
      double total = static_cast<double>(silent) * (width_ - static_cast<double>(active.size()));
      for (float& v : values) v = std::exp(v - most), total += v;
      silent = static_cast<float>(silent / total);
      for (float& v : values) v = static_cast<float>(v / total) - silent;
    }
    const int rows = rank_ ? rank_ : filters_;
    sums.resize(rows);
    for (int k = 0; k < rows; ++k) sums[k] = (rank_ ? 0.0f : bias_[k]) + silent * rows_sum_[k];
    const Matrix& first = rank_ ? reduce_ : weight_;
    for (const int c : active) offsets.push_back(static_cast<int64_t>(c) * rows);
    // one image's large matrix is shared out by filters; the lists belong to this thread
    const bool large = alone && values.size() * rows >= kLarge;
    const int parts = large ? std::max(1, std::min(net.workers.count(), rows / 16)) : 1;
    multiply(net, first, {nullptr, offsets.data(), values.data(), static_cast<int>(values.size()), rows, sums.data()}, parts);
    if (rank_) {
      logits = bias_;
      offsets.clear();
      for (int j = 0; j < rank_; ++j) offsets.push_back(static_cast<int64_t>(j) * filters_);
      multiply(net, weight_, {nullptr, offsets.data(), sums.data(), rank_, filters_, logits.data()}, 1);
    } else {
      logits.swap(sums);
    }
    uint8_t* mask = net.mask(gate_, sample);
    if (const uint8_t* given = net.forced[gate_]) {
      std::memcpy(mask, given + static_cast<size_t>(sample) * filters_, filters_);
    } else {
      const float most = *std::max_element(logits.begin(), logits.end());
      for (int k = 0; k < filters_; ++k) mask[k] = !(logits[k] <= threshold_) || logits[k] == most;
    }
    const int64_t read = softmax_ ? width_ : static_cast<int64_t>(active.size());
    net.macs(index, sample) = read * rows + (rank_ ? static_cast<int64_t>(rank_) * filters_ : 0);
  }

  static constexpr size_t kLarge = 1 << 14;  // products

  const std::vector<int> features_;
  const int gate_, filters_, width_, rank_;
  const float threshold_;
  const bool softmax_;
  const std::vector<float> bias_;
  Matrix weight_{}, reduce_{};
  std::vector<float> rows_sum_;  // of the first matrix
};

class Fixed : public Step {
 public:
  Fixed(const Network& net, int gate, const uint8_t* value) : gate_(gate), value_(value, value + net.gates[gate]) {}

  void run(Network& net, int batch, int) const override {
    for (int sample = 0; sample < batch; ++sample) {
      const uint8_t* given = net.forced[gate_];
      std::memcpy(net.mask(gate_, sample), given ? given + sample * value_.size() : value_.data(), value_.size());
    }
  }

 private:
  const int gate_;
  const std::vector<uint8_t> value_;
};

class Pool : public Step {
 public:
  Pool(int x, int out, const Window& window) : window_(window) { reads = {x}, writes = out; }

  void run(Network& net, int batch, int) const override {
    const int x = reads[0], positions = window_.height * window_.width;
    const int64_t plane = window_.out_height * window_.out_width;
    if (window_.adaptive && plane == 1) {
      net.workers.share(batch, [&](int sample, int) {
        const std::vector<int32_t>& active = active_channels(net, x, sample);
        net.kernels.planes({net.map(x, sample), positions, active.data(), static_cast<int>(active.size()),
                            window_.maximum, net.map(writes, sample)});
      });
    } else {
      each_channel(net, batch, x, false, [&](int worker, int sample, int c) {
        const float* from = net.map(x, sample) + static_cast<int64_t>(c) * positions;
        float* line = net.scratch(worker).need(window_.width + 2 * pool_margin(window_) + 32);
        // what a row of outputs reads, when rows and then columns are gone through
        const int64_t each = static_cast<int64_t>(std::min(window_.kernel_h, window_.height)) * window_.width +
                             static_cast<int64_t>(window_.kernel_w) * window_.out_width;
        const int some = per_piece(window_.out_height, 4 * each);
        for (int row = 0; row < window_.out_height; row += some) {
          net.pulse(worker, 4 * each * some);
          net.kernels.pool({from, window_, line, net.map(writes, sample) + c * plane, row, std::min(window_.out_height, row + some)});
        }
      });
    }
    for (int sample = 0; sample < batch; ++sample) copy_activity(net, x, writes, sample);
  }

 private:
  const Window window_;
};

class Affine : public Step {
 public:
  Affine(const Network& net, int x, int out, const float* scale, const float* shift, Activation act)
      : scale_(scale, scale + net.maps[x].channels), shift_(shift, shift + net.maps[x].channels), act_(act) {
    reads = {x}, writes = out;
  }

  void run(Network& net, int batch, int) const override {
    const int x = reads[0];
    const int64_t plane = net.maps[x].positions();
    each_channel(net, batch, x, true, [&](int, int sample, int c) {
      const Activity& active = net.activity(x, sample);
      float* to = net.map(writes, sample) + c * plane;
      if (active.all || active.channels[c])
        net.kernels.affine(net.map(x, sample) + c * plane, scale_[c], shift_[c], act_, to, plane);
      else
        net.kernels.combine(nullptr, nullptr, false, Activation::none, to, plane),
            net.kernels.affine(to, 0.0f, shift_[c], act_, to, plane);
    });
    for (int sample = 0; sample < batch; ++sample) net.activity(writes, sample).all = true;
  }

 private:
  const std::vector<float> scale_, shift_;
  const Activation act_;
};

class Activate : public Step {
 public:
  Activate(int x, int out, Activation act) : act_(act) { reads = {x}, writes = out; }

  void run(Network& net, int batch, int) const override {
    const int x = reads[0];
    const int64_t plane = net.maps[x].positions();
    each_channel(net, batch, x, renews(act_), [&](int, int sample, int c) {
      const Activity& active = net.activity(x, sample);
      const bool silent = !active.all && !active.channels[c];
      const float* from = silent ? nullptr : net.map(x, sample) + c * plane;
      net.kernels.combine(from, nullptr, false, act_, net.map(writes, sample) + c * plane, plane);
    });
    for (int sample = 0; sample < batch; ++sample) {
      if (renews(act_)) net.activity(writes, sample).all = true;
      else copy_activity(net, x, writes, sample);
    }
  }

 private:
  const Activation act_;
};

class Combine : public Step {
 public:
  Combine(int a, int b, int out, bool product, Activation act) : product_(product), act_(act) {
    reads = {a, b}, writes = out;
  }

  void run(Network& net, int batch, int) const override {
    const int a = reads[0], b = reads[1];
    const int64_t plane = net.maps[a].positions();
    const bool spread = net.maps[b].positions() == 1 && plane != 1;
    const bool all = renews(act_);
    each_channel(net, batch, writes, true, [&](int, int sample, int c) {
      const Activity &first = net.activity(a, sample), &second = net.activity(b, sample);
      const bool has_a = first.all || first.channels[c], has_b = second.all || second.channels[c];
      float* to = net.map(writes, sample) + c * plane;
      const float* x = has_a ? net.map(a, sample) + c * plane : nullptr;
      const float* y = has_b ? net.map(b, sample) + (spread ? c : c * plane) : nullptr;
      if (!all && (product_ ? !has_a || !has_b : !has_a && !has_b)) return;
      if (!spread || !has_b) return net.kernels.combine(x, y, product_, act_, to, plane);
      if (!x) net.kernels.combine(nullptr, nullptr, false, Activation::none, to, plane), x = to;
      net.kernels.affine(x, product_ ? *y : 1.0f, product_ ? 0.0f : *y, act_, to, plane);
    });
    for (int sample = 0; sample < batch; ++sample) {
      const Activity &first = net.activity(a, sample), &second = net.activity(b, sample);
      Activity& active = net.activity(writes, sample);
      active.all = all || (product_ ? first.all && second.all : first.all || second.all);
      if (active.all) continue;
      for (int c = 0; c < net.maps[writes].channels; ++c) {
        const bool has_a = first.all || first.channels[c], has_b = second.all || second.channels[c];
        active.channels[c] = product_ ? has_a && has_b : has_a || has_b;
      }
    }
  }

 private:
  const bool product_;
  const Activation act_;
};

class Gather : public Step {
 public:
  Gather(const Network& net, std::vector<int> xs, int out, const std::vector<int32_t>& index) {
    std::vector<int> ends;
    for (const int x : xs) ends.push_back((ends.empty() ? 0 : ends.back()) + net.maps[x].channels);
    for (const int32_t i : index) {
      const auto from = std::upper_bound(ends.begin(), ends.end(), i) - ends.begin();
      sources_.push_back({i < 0 ? -1 : xs[from], i < 0 ? i : i - (from ? ends[from - 1] : 0)});
    }
    reads = std::move(xs), writes = out;
  }

  void run(Network& net, int batch, int) const override {
    const int64_t plane = static_cast<int64_t>(net.maps[writes].positions()) * size_of(net.types[writes]);
    for (int sample = 0; sample < batch; ++sample) {
      Activity& active = net.activity(writes, sample);
      active.all = true;
      for (size_t c = 0; c < sources_.size(); ++c) {
        const auto [map, channel] = sources_[c];
        const Activity* source = map < 0 ? nullptr : &net.activity(map, sample);
        active.channels[c] = source && (source->all || source->channels[channel]);
        if (!active.channels[c]) active.all = false;
      }
    }
    each_channel(net, batch, writes, false, [&](int, int sample, int c) {
      const auto [map, channel] = sources_[c];
      std::memcpy(net.bytes(writes, sample) + c * plane, net.bytes(map, sample) + channel * plane, plane);
    });
  }

 private:
  struct Source { int map, channel; };
  std::vector<Source> sources_;
};

class Flatten : public Step {
 public:
  Flatten(int x, int out) { reads = {x}, writes = out, aliases = x; }

  void run(Network& net, int batch, int) const override {
    const Shape& shape = net.maps[reads[0]];
    for (int sample = 0; sample < batch; ++sample) {
      const Activity& source = net.activity(reads[0], sample);
      Activity& active = net.activity(writes, sample);
      active.all = source.all;
      if (source.all) continue;
      for (int c = 0; c < shape.channels; ++c)
        std::memset(active.channels + c * shape.positions(), source.channels[c], shape.positions());
    }
  }
};

class Silence : public Step {
 public:
  Silence(int x, int out, int mask) : mask_(mask) { reads = {x}, writes = out, aliases = x; }

  void run(Network& net, int batch, int) const override {
    for (int sample = 0; sample < batch; ++sample) {
      const Activity& source = net.activity(reads[0], sample);
      Activity& active = net.activity(writes, sample);
      const uint8_t* mask = net.mask(mask_, sample);
      active.all = false;
      for (int c = 0; c < net.maps[writes].channels; ++c)
        active.channels[c] = (source.all || source.channels[c]) && mask[c];
    }
  }

 private:
  const int mask_;
};

}  // namespace

std::unique_ptr<Step> make_predict(Network& net, const PredictSpec& spec) {
  return std::make_unique<Predict>(net, spec);
}
std::unique_ptr<Step> make_fixed(const Network& net, int mask, const uint8_t* value) {
  return std::make_unique<Fixed>(net, mask, value);
}
std::unique_ptr<Step> make_pool(const Network& net, int x, int out, const Window& window) {
  return std::make_unique<Pool>(x, out, sized(net, x, out, window));
}
std::unique_ptr<Step> make_affine(const Network& net, int x, int out, const float* scale, const float* shift, Activation act) {
  return std::make_unique<Affine>(net, x, out, scale, shift, act);
}
std::unique_ptr<Step> make_activate(const Network&, int x, int out, Activation act) {
  return std::make_unique<Activate>(x, out, act);
}
std::unique_ptr<Step> make_combine(const Network&, int a, int b, int out, bool product, Activation act) {
  return std::make_unique<Combine>(a, b, out, product, act);
}
std::unique_ptr<Step> make_gather(const Network& net, std::vector<int> xs, int out, std::vector<int32_t> index) {
  return std::make_unique<Gather>(net, std::move(xs), out, index);
}
std::unique_ptr<Step> make_flatten(int x, int out) { return std::make_unique<Flatten>(x, out); }
std::unique_ptr<Step> make_silence(int x, int out, int mask) { return std::make_unique<Silence>(x, out, mask); }

}  // namespace ftwt
