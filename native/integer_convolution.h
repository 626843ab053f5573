// The convolutions on eight-bit maps.
#pragma once

#include "convolution_step.h"

namespace ftwt {

class IntegerConvolution : public Convolution {
 public:
  IntegerConvolution(const Network& net, const ConvolutionSpec& spec, const float* scale)
      : Convolution(net, spec), scale_(scale, scale + out_.channels) {
    positive = net.types[spec.out] == Type::u8;
  }

 protected:
  bool stays(const Network& net) const override;
  void pass_plane(Network& net, int sample, int filter) const override;
  IntegerEpilogue epilogue(const Network& net, const Job& job) const;

  const std::vector<float> scale_;
};

// Small planes and linear layers, where weights are nearly all there is to read; null: it is not one.
std::unique_ptr<Step> make_integer_dot(Network& net, const ConvolutionSpec& spec, const int8_t* weights, const float* scale);

// The shuffles that put these inputs, of blocks of sixty-four, side by side.
void pick_lines(const int32_t* inputs, int count, std::vector<Pick>& picks);

}  // namespace ftwt
