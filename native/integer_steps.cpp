// The steps beside the convolution on maps of eight bits.
#include "channels.h"
#include "steps.h"

namespace ftwt {

namespace {

constexpr int kTiny = 64;  // positions of a plane that is not worth a call of its own

class Convert : public Step {
 public:
  Convert(const Network& net, int x, int out) {
    reads = {x}, writes = out;
    positive = net.types[out] == Type::u8;
  }

  void run(Network& net, int batch, int) const override {
    const int x = reads[0];
    const int64_t plane = net.maps[x].positions();
    if (plane <= kTiny) {  // all channels, whatever they hold, sooner than one after the other
      for (int sample = 0; sample < batch; ++sample)
        net.integers.blend({net.values(x, sample), {}, Activation::none, net.target(writes, sample), net.maps[x].size()});
    } else each_channel(net, batch, x, false, [&](int, int sample, int c) {
      net.integers.blend({net.values(x, sample, c * plane), {}, Activation::none, net.target(writes, sample, c * plane), plane});
    });
    for (int sample = 0; sample < batch; ++sample) copy_activity(net, x, writes, sample);
  }
};

class IntegerSum : public Step {
 public:
  IntegerSum(const Network& net, int a, int b, int out, Activation act) : act_(act) {
    reads = {a, b}, writes = out;
    positive = net.types[out] == Type::u8;
  }

  void run(Network& net, int batch, int) const override {
    const int a = reads[0], b = reads[1];
    const int64_t plane = net.maps[a].positions();
    const bool spread = net.maps[b].positions() == 1 && plane != 1;
    for (int sample = 0; sample < batch; ++sample) {
      const Activity &first = net.activity(a, sample), &second = net.activity(b, sample);
      Activity& active = net.activity(writes, sample);
      active.all = first.all || second.all;
      if (active.all) continue;
      for (int c = 0; c < net.maps[writes].channels; ++c) active.channels[c] = first.channels[c] | second.channels[c];
    }
    each_channel(net, batch, writes, false, [&](int, int sample, int c) {
      const Activity &first = net.activity(a, sample), &second = net.activity(b, sample);
      Values x = net.values(a, sample, c * plane), y = net.values(b, sample, spread ? c : c * plane);
      y.spread = spread;
      if (!first.all && !first.channels[c]) x.at = nullptr;
      if (!second.all && !second.channels[c]) y.at = nullptr;
      net.integers.blend({x, y, act_, net.target(writes, sample, c * plane), plane});
    });
  }

 private:
  const Activation act_;
};

class IntegerPool : public Step {
 public:
  IntegerPool(const Network& net, int x, int out, const Window& window)
      : window_(window), scale_(net.scales[x] / (window.maximum ? 1.0f : static_cast<float>(net.maps[x].positions()))) {
    reads = {x}, writes = out;
    positive = net.types[out] == Type::u8;
  }

  void run(Network& net, int batch, int) const override {
    const int x = reads[0], positions = window_.height * window_.width;
    const int64_t plane = window_.out_height * window_.out_width;
    const Type type = net.types[x];
    if (window_.adaptive && plane == 1) {
      net.workers.share(batch, [&](int sample, int) {
        const std::vector<int32_t>& active = active_channels(net, x, sample);
        net.integers.planes({net.bytes(x, sample), type, positions, active.data(), static_cast<int>(active.size()),
                             window_.maximum, scale_, net.target(writes, sample)});
      });
    } else if (halves(window_) && positions <= kTiny) {
      const int channels = net.maps[x].channels;
      Window all = window_;
      all.height *= channels, all.out_height *= channels;
      for (int sample = 0; sample < batch; ++sample)
        net.integers.pool({net.bytes(x, sample), type, all, nullptr, net.bytes(writes, sample), 0, all.out_height});
    } else {
      each_channel(net, batch, x, false, [&](int worker, int sample, int c) {
        const uint8_t* from = net.bytes(x, sample) + static_cast<int64_t>(c) * positions;
        uint8_t* line = reinterpret_cast<uint8_t*>(net.scratch(worker).need(integer_line(window_) / 4 + 16));
        const int64_t each = static_cast<int64_t>(std::min(window_.kernel_h, window_.height)) * window_.width +
                             static_cast<int64_t>(window_.kernel_w) * window_.out_width;
        const int some = per_piece(window_.out_height, each);
        for (int row = 0; row < window_.out_height; row += some) {
          net.pulse(worker, each * some);
          net.integers.pool({from, type, window_, line, net.bytes(writes, sample) + c * plane, row,
                             std::min(window_.out_height, row + some)});
        }
      });
    }
    for (int sample = 0; sample < batch; ++sample) copy_activity(net, x, writes, sample);
  }

 private:
  const Window window_;
  const float scale_;
};

}  // namespace

std::unique_ptr<Step> make_convert(const Network& net, int x, int out) { return std::make_unique<Convert>(net, x, out); }
std::unique_ptr<Step> make_integer_pool(const Network& net, int x, int out, const Window& window) {
  return std::make_unique<IntegerPool>(net, x, out, sized(net, x, out, window));
}
std::unique_ptr<Step> make_integer_sum(const Network& net, int a, int b, int out, Activation act) {
  return std::make_unique<IntegerSum>(net, a, b, out, act);
}

}  // namespace ftwt
