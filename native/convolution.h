// The convolution step: which kernel, what it needs, who does what.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "network.h"

namespace ftwt {

enum class Algorithm { automatic, direct, winograd, dot };

struct ConvolutionSpec {
  int x = 0, out = 0;
  const float* weight = nullptr;  // (K, C / groups, kh, kw), read while the step is made
  std::string name;               // of the weight: steps of the same may share it; empty: of none
  const float* bias = nullptr;
  std::array<int, 2> kernel{1, 1}, stride{1, 1}, dilation{1, 1};
  std::array<int, 4> padding{0, 0, 0, 0};  // top, left, bottom, right
  int groups = 1;
  Activation act = Activation::none, post = Activation::none;
  std::optional<int> mask, add, after;
  Algorithm algorithm = Algorithm::automatic;  // the last three where they apply: for tests
};

std::unique_ptr<Step> make_convolution(Network& net, const ConvolutionSpec& spec);
// The same on an eight-bit map: `weight` of the spec is null, `weights` (K, C / groups, kh, kw), `scale` (K,).
std::unique_ptr<Step> make_integer_convolution(Network& net, const ConvolutionSpec& spec, const int8_t* weights,
                                               const float* scale);

}  // namespace ftwt
