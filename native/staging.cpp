#include "staging.h"

#include <algorithm>
#include <array>

namespace ftwt {

Staging plan_staging(const ConvolutionSpec& spec, const Shape& in, const Shape& out) {
  Staging s;
  const auto [sh, sw] = spec.stride;
  const auto [kh, kw] = spec.kernel;
  const auto [dh, dw] = spec.dilation;
  const int top = spec.padding[0], left = spec.padding[1];
  int pitch = 0, rows = 0, shared = 0;
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
      shared = std::min(left, right);
      pitch = std::max(out.width, pitch - shared);
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
    const int size = (rows * pitch + shared + 48 + 15) / 16 * 16;  // the last row's zeros lie behind it
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

Staging plan_columns(const ConvolutionSpec& spec, const Shape& in, const Shape& out) {
  Staging s;
  const auto [sh, sw] = spec.stride;
  const auto [kh, kw] = spec.kernel;
  const auto [dh, dw] = spec.dilation;
  const int rows = ((out.height - 1) * sh + (kh - 1) * dh) / sh + 1;
  const int size = (rows * out.width + 48 + 15) / 16 * 16;
  std::vector<int> first(sh, -1);  // plane of a row phase's first column
  for (int ky = 0; ky < kh; ++ky) {
    int& plane = first[ky * dh % sh];
    if (plane < 0) {
      plane = static_cast<int>(s.phases.size() / 2);
      for (int kx = 0; kx < kw; ++kx) s.phases.push_back(ky * dh % sh), s.phases.push_back(kx * dw);
    }
    for (int kx = 0; kx < kw; ++kx) s.taps.push_back((plane + kx) * size + ky * dh / sh * out.width);
  }
  s.layout = {nullptr, in.height, in.width, spec.padding[0], spec.padding[1], sh, sw, rows, out.width, size,
              static_cast<int>(s.phases.size() / 2), nullptr, nullptr};
  for (int v = 0; v < out.positions(); v += 16) {
    const int count = std::min(16, out.positions() - v);
    s.vectors.push_back({v, v, static_cast<uint16_t>((1 << count) - 1), static_cast<uint16_t>(count)});
  }
  return s;
}

std::vector<Move> plan_moves(const Stage& l) {
  std::vector<Move> all;
  const int size = l.planes * l.plane_floats;
  if (size > 1 << 14) return all;
  for (int to = 0; to < size; to += 16) {
    int from[16], lanes = 0;  // where the dwords of the plane lie
    for (int i = 0; i < 16; ++i) {
      const int p = (to + i) / l.plane_floats, at = (to + i) % l.plane_floats;
      const int y = at / l.pitch * l.stride_h + l.phase_of[2 * p] - l.top, x = at % l.pitch * l.stride_w + l.phase_of[2 * p + 1] - l.left;
      if (at >= l.rows * l.pitch || y < 0 || y >= l.height || x < 0 || x >= l.width) continue;
      from[i] = y * l.width + x, lanes |= 1 << i;
    }
    Move g{0, to, 0, false, {}};
    do {  // as many as thirty-two reach
      int first = -1;
      for (int i = 0; i < 16; ++i) {
        if (!(lanes >> i & 1)) continue;
        if (first < 0) first = from[i];
        if (from[i] - first >= 32) continue;
        g.order[i] = static_cast<uint8_t>(from[i] - first), g.lanes |= static_cast<uint16_t>(1 << i);
      }
      g.from = std::max(first, 0);
      all.push_back(g);
      lanes &= ~g.lanes;
      g = {0, to, 0, true, {}};
    } while (lanes);
  }
  return all;
}

}  // namespace ftwt
