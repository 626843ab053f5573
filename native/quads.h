// How a depthwise convolution of eight bits reads its planes: four taps in a row of sixteen outputs
// are sixteen dwords, from sixty-four bytes in another order.
#pragma once

#include <vector>

#include "convolution.h"

namespace ftwt {

struct Quads {
  int taps = 0;                // fours of them; 0: these shuffles do not reach all that is read
  std::vector<Vector> vectors;
  std::vector<Quad> quads;     // (vectors, taps)
  std::vector<ByteOrder> orders;
};

Quads plan_quads(const ConvolutionSpec& spec, const Shape& in, const Shape& out);

}  // namespace ftwt
