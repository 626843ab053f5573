// The steps beside the convolution.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "network.h"

namespace ftwt {

struct PredictSpec {
  std::vector<int> features;
  int mask = 0;
  int width = 0, rank = 0;         // rank: rows of `reduce`, 0 without
  const float* weight = nullptr;   // (K, rank or width)
  const float* bias = nullptr;     // (K,)
  const float* reduce = nullptr;   // (rank, width)
  std::string weight_name, reduce_name;  // steps of the same may share them; empty: of none
  float threshold = 0.0f;
  bool softmax = false;
};

std::unique_ptr<Step> make_predict(Network& net, const PredictSpec& spec);
std::unique_ptr<Step> make_fixed(const Network& net, int mask, const uint8_t* value);
std::unique_ptr<Step> make_pool(const Network& net, int x, int out, const Window& window);
std::unique_ptr<Step> make_affine(const Network& net, int x, int out, const float* scale, const float* shift, Activation act);
std::unique_ptr<Step> make_activate(const Network& net, int x, int out, Activation act);
std::unique_ptr<Step> make_combine(const Network& net, int a, int b, int out, bool product, Activation act);
std::unique_ptr<Step> make_gather(const Network& net, std::vector<int> xs, int out, std::vector<int32_t> index);
std::unique_ptr<Step> make_flatten(int x, int out);
std::unique_ptr<Step> make_silence(int x, int out, int mask);

// Where a map holds eight bits (integer_steps.cpp).
std::unique_ptr<Step> make_convert(const Network& net, int x, int out);  // floats to eight bits, or back
std::unique_ptr<Step> make_integer_pool(const Network& net, int x, int out, const Window& window);
std::unique_ptr<Step> make_integer_sum(const Network& net, int a, int b, int out, Activation act);

}  // namespace ftwt
