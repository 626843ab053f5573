// How the input of a convolution by its plain definition is laid out.
#pragma once

#include <vector>

#include "convolution.h"
#include "integer.h"

namespace ftwt {

// Where each of the taps lies in an input that was laid out for it: rows with zeros around, and for
// a stride of s, s x s planes of every s-th row and column.
struct Staging {
  Stage layout{};
  std::vector<int32_t> phases;     // row phase, column phase, of each plane
  std::vector<int32_t> taps;
  std::vector<Vector> vectors;
  bool in_place = false;           // a 1x1 convolution reads the map as it is
};

Staging plan_staging(const ConvolutionSpec& spec, const Shape& in, const Shape& out);

// The same with one plane for each column of the kernel and each phase of the rows, as wide as the
// output: no vector has a gap, but the input is written several times.
Staging plan_columns(const ConvolutionSpec& spec, const Shape& in, const Shape& out);

// How vectors of sixteen dwords write all that; empty if rows are long, and as well copied one by one.
std::vector<Move> plan_moves(const Stage& layout);

}  // namespace ftwt
