#include "quads.h"

#include <algorithm>

namespace ftwt {

// The two shuffles that do what `bytes` says, where it says anything; false: there are none.
static bool split(ByteOrder& order, uint64_t placed) {
  for (int lane = 0; lane < 4; ++lane) {
    int32_t* dwords = order.dwords + 4 * lane;
    int count = 0;
    for (int i = 16 * lane; i < 16 * lane + 16; ++i) {
      if (!(placed >> i & 1)) continue;
      const int dword = order.bytes[i] / 4, at = static_cast<int>(std::find(dwords, dwords + count, dword) - dwords);
      if (at == 4) return false;
      if (at == count) dwords[count++] = dword;
      order.within[i] = static_cast<uint8_t>(4 * at + order.bytes[i] % 4);
    }
  }
  return true;
}

static Quads plan_small(const ConvolutionSpec& spec, const Shape& in, const Shape& out) {
  Quads plan;
  const auto [kh, kw] = spec.kernel;
  const int fours = (kw + 3) / 4;
  for (int v = 0; v < out.positions(); v += 16) {
    const int count = std::min(16, out.positions() - v);
    plan.vectors.push_back({0, v, static_cast<uint16_t>((1 << count) - 1), static_cast<uint16_t>(count)});
    for (int t = 0; t < kh * fours; ++t) {
      ByteOrder order{};
      uint64_t placed = 0;
      for (int i = 0; i < 4 * count; ++i) {
        const int at = v + i / 4, k = t % fours * 4 + i % 4;
        const int y = at / out.width * spec.stride[0] + t / fours * spec.dilation[0] - spec.padding[0];
        const int x = at % out.width * spec.stride[1] + k * spec.dilation[1] - spec.padding[1];
        if (k >= kw || y < 0 || y >= in.height || x < 0 || x >= in.width) continue;
        placed |= uint64_t{1} << i;
        order.bytes[i] = static_cast<uint8_t>(y * in.width + x);
      }
      if (!split(order, placed)) return {};
      plan.quads.push_back({static_cast<int>(plan.orders.size()), placed});
      plan.orders.push_back(order);
    }
  }
  plan.taps = kh * fours;
  return plan;
}

Quads plan_quads(const ConvolutionSpec& spec, const Shape& in, const Shape& out) {
  Quads plan;
  const auto [sh, sw] = spec.stride;
  const auto [kh, kw] = spec.kernel;
  const auto [dh, dw] = spec.dilation;
  if (static_cast<int64_t>(kh) * kw * out.positions() > 1 << 20) return plan;
  if (in.positions() <= 64) return plan_small(spec, in, out);
  if (15 * sw + 3 * dw >= 64) return plan;
  plan.orders.push_back({});
  for (int i = 0; i < 64; ++i) plan.orders[0].bytes[i] = static_cast<uint8_t>(i / 4 * sw + i % 4 * dw);
  if (!split(plan.orders[0], ~uint64_t{0})) return {};
  const int64_t rows = std::max<int64_t>(int64_t{out.height - 1} * sh + int64_t{kh - 1} * dh + 1, spec.padding[0] + in.height);
  const int64_t pitch = std::max<int64_t>(int64_t{out.width - 1} * sw + int64_t{kw - 1} * dw + 1, spec.padding[1] + in.width);
  if (rows * pitch > 1 << 24) return {};
  plan.pitch = static_cast<int>(pitch), plan.bytes = rows * pitch;
  for (int x = 0; x < out.width; x += 16)
    for (int y = 0; y < out.height; ++y) {
      const int count = std::min(16, out.width - x);
      plan.vectors.push_back({y * sh * plan.pitch + x * sw, y * out.width + x, static_cast<uint16_t>((1 << count) - 1),
                              static_cast<uint16_t>(count)});
    }
  const int fours = (kw + 3) / 4;
  for (int t = 0; t < kh * fours; ++t) plan.offsets.push_back(t / fours * dh * plan.pitch + t % fours * 4 * dw);
  plan.taps = kh * fours;
  return plan;
}

Quads plan_halves(const ConvolutionSpec& spec, const Shape& in, const Shape& out) {
  Quads plan;
  const auto [sh, sw] = spec.stride;
  const auto [kh, kw] = spec.kernel;
  const auto [dh, dw] = spec.dilation;
  const int64_t rows = 1 + std::max<int64_t>((int64_t{out.height - 1} * sh + int64_t{kh - 1} * dh) / sh, (spec.padding[0] + in.height) / sh);
  const int64_t pitch = 1 + std::max<int64_t>((int64_t{out.width - 1} * sw + int64_t{kw - 1} * dw) / sw, (spec.padding[1] + in.width) / sw);
  if (static_cast<int64_t>(kh) * kw > 1 << 10 || rows * pitch > 1 << 22) return plan;
  plan.pitch = static_cast<int>(pitch), plan.plane = rows * pitch + 32;
  plan.bytes = 2 * (sh * sw * plan.plane + 32);
  for (int y = 0; y < out.height; ++y)
    for (int x = 0; x < out.width; x += 16) {
      const int count = std::min(16, out.width - x);
      plan.vectors.push_back({y * plan.pitch + x, y * out.width + x, static_cast<uint16_t>((1 << count) - 1), static_cast<uint16_t>(count)});
    }
  for (int y = 0; y < kh; ++y)
    for (int x = 0; x < kw; ++x)
      plan.offsets.push_back(static_cast<int32_t>((y * dh % sh * sw + x * dw % sw) * plan.plane + y * dh / sh * pitch + x * dw / sw));
  plan.taps = kh * kw;
  if (plan.taps % 2) plan.offsets.push_back(plan.offsets.back());
  return plan;
}

}  // namespace ftwt
