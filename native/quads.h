// How a depthwise convolution of eight bits reads its planes: four taps in a row of sixteen outputs
// are sixteen dwords, from sixty-four bytes in another order.
#pragma once

#include <vector>

#include "convolution.h"

namespace ftwt {

// A plane of at most 64 bytes is one register, and an order gives any sixteen outputs. A larger one
// has zeros around it, and the only order gives those of a row.
struct Quads {
  int taps = 0;                // fours of them; 0: these shuffles do not reach all that is read
  std::vector<Vector> vectors;
  std::vector<Quad> quads;     // (vectors, taps) of a small plane
  std::vector<ByteOrder> orders;
  std::vector<int32_t> offsets;  // of a large one: where taps lie,
  int pitch = 0;               // from one row to the next,
  int64_t bytes = 0;           // and so many it has
  int64_t plane = 0;           // halves from one to the next, where there are several
};

Quads plan_quads(const ConvolutionSpec& spec, const Shape& in, const Shape& out);

// The same for halves, two taps at once, wherever they lie: a plane for each phase of the strides, and
// `taps` single ones, an even number of which have offsets.
Quads plan_halves(const ConvolutionSpec& spec, const Shape& in, const Shape& out);

}  // namespace ftwt
