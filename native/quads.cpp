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

Quads plan_quads(const ConvolutionSpec& spec, const Shape& in, const Shape& out) {
  Quads plan;
  const auto [sh, sw] = spec.stride;
  const auto [kh, kw] = spec.kernel;
  const auto [dh, dw] = spec.dilation;
  const int reach = 15 * sw + 3 * dw;  // of a row, by sixteen outputs
  if (reach >= 64 || static_cast<int64_t>(kh) * kw * out.positions() > 1 << 20) return plan;
  // a plane of one register gives any sixteen outputs, a larger one those of a row
  const bool small = in.positions() <= 64;
  const int length = small ? out.positions() : out.width, rows = small ? 1 : out.height;
  for (int y = 0; y < rows; ++y)
    for (int x = 0; x < length; x += 16) {
      const int count = std::min(16, length - x), lanes = (1 << count) - 1;
      plan.vectors.push_back({0, y * length + x, static_cast<uint16_t>(lanes), static_cast<uint16_t>(count)});
    }
  const int fours = (kw + 3) / 4;
  if (!small) {
    plan.orders.push_back({});
    for (int i = 0; i < 64; ++i) plan.orders[0].bytes[i] = static_cast<uint8_t>(i / 4 * sw + i % 4 * dw);
    if (!split(plan.orders[0], ~uint64_t{0})) return {};
  }
  for (const Vector& v : plan.vectors)
    for (int t = 0; t < kh * fours; ++t) {
      const int ky = t / fours, kx = t % fours * 4, top = v.target / out.width, left = v.target % out.width;
      Quad q{0, 0, 0, 0};
      ByteOrder order{};
      const int row = top * sh + ky * dh - spec.padding[0], start = left * sw + kx * dw - spec.padding[1];
      if (!small) q.offset = row * in.width + start;
      for (int i = 0; i < 4 * v.count; ++i) {
        const int at = v.target + i / 4, k = kx + i % 4;
        const int y = at / out.width * sh + ky * dh - spec.padding[0], x = at % out.width * sw + k * dw - spec.padding[1];
        if (k >= kw || y < 0 || y >= in.height || x < 0 || x >= in.width) continue;
        q.placed |= uint64_t{1} << i;
        const int byte = small ? y * in.width + x : x - start;
        q.read |= uint64_t{1} << byte;
        order.bytes[i] = static_cast<uint8_t>(byte);
      }
      if (small) {
        if (!split(order, q.placed)) return {};
        q.order = static_cast<int>(plan.orders.size());
        plan.orders.push_back(order);
      }
      plan.quads.push_back(q);
    }
  plan.taps = kh * fours;
  return plan;
}

}  // namespace ftwt
