// What the kernels are asked to do. They are compiled once for each instruction set; `Kernels` is
// the table of one such set, and `find_kernels` chooses a table that this machine can run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ftwt {

// What kernels multiplied, by how they do it: counted where FTWT_COUNT is defined, for tests. Lanes
// that are no output of a plane or no input of a filter are counted apart, where that is known.
enum class Product { direct, idle, depthwise, winograd, dot, panel, columns, integer, kinds };

#if defined(FTWT_COUNT)
extern int64_t products[static_cast<int>(Product::kinds)];
#define FTWT_PRODUCTS(kind, n) \
  __atomic_fetch_add(&products[static_cast<int>(Product::kind)], static_cast<int64_t>(n), __ATOMIC_RELAXED)
#else
#define FTWT_PRODUCTS(kind, n) static_cast<void>(0)
#endif

enum class Activation {
  none, relu, relu6, silu, hardswish, sigmoid, hardsigmoid, leaky_relu, elu, gelu, tanh
};

// What happens to a convolution's sums: out = post(act(sum + bias) + add), filter by filter.
struct Epilogue {
  const float* bias;
  Activation act, post;
  const float* add;             // map to add, or null; its plane f is at add + f * positions
  const uint8_t* add_active;    // filters whose plane of `add` is not zero; null: all
  int positions;                // of an output plane
  float* out;                   // plane f is at out + f * positions
};

// Sixteen outputs: where their inputs lie, where they go.
struct Vector {
  int32_t source;     // of lane 0, relative to a plane's first tap
  int32_t target;     // of the first valid lane, within the output plane
  uint16_t lanes;     // those that are outputs; the others fell into a gap between rows
  uint16_t count;     // how many these are
};

// Sums over planes by the plain definition: every tap of every active input, for whole vectors of
// output positions and a few filters at a time. Any subset of inputs and of filters costs only
// itself, since a weight is a scalar and is read in place.
struct Direct {
  const Vector* vectors;
  int first_vector, last_vector;
  const float* input;          // base that `input_offsets` are relative to
  const int64_t* input_offsets;   // of each active input
  const int64_t* weight_offsets;  // of each active input's taps, in the row of a filter
  int inputs;
  const int32_t* tap_offsets;  // where a tap reads, relative to an input's base
  int taps;
  const float* weights;
  int64_t row;                 // floats between the weights of two filters
  const int32_t* filters;      // those to compute
  int first_filter, last_filter;
  float* partial;              // direct_partial(filters) floats
  Epilogue epilogue;
};

// Lays a plane out for `Direct`: rows with zeros around, in one plane for each phase of the strides.
struct Stage {
  const float* plane;
  int height, width, top, left, stride_h, stride_w;
  int rows, pitch;             // of a plane that is written
  int plane_floats;            // from one to the next; what rows leave of it becomes zero
  int planes;
  const int32_t* phase_of;     // row and column phase of each plane
  float* out;
};

// A convolution of each channel with its own filter.
struct Depthwise {
  Stage stage;                 // with room for one channel; no planes: read in place
  const float* input;
  const uint8_t* active;       // channels of the input
  const int32_t* tap_offsets;
  int taps;
  int square;                  // the stride of a 3x3 filter with a border of one, which needs no stage; else 0
  const Vector* vectors;
  int vector_count;
  const float* weights;        // (C, taps)
  const int32_t* filters;
  int first_filter, last_filter;
  Epilogue epilogue;
};

// Winograd's F(2x2, 3x3): 4x4 patches of the input, transformed, are 16 frequencies, one register;
// the sum over the inputs is a product in each of them. A pair of filter and input is one cache
// line of weights, so that here too any subset costs only itself.
struct Patches {
  const float* input;          // (C, height, width)
  int height, width, top, left;
  const int32_t* channels;     // active ones
  int inputs;
  int first_input, last_input; // those to transform now
  int tile_columns;
  int first_row, last_row;     // of tiles
  float* patches;              // (tiles / 4, inputs, 4, 16)
  float* scratch;              // winograd_padded(rows, ...) floats
};

struct Winograd {
  const float* patches;        // as written by `patches`
  int inputs;
  const int64_t* weight_offsets;  // of each active input, in the row of a filter
  const float* weights;        // (K, C, 16)
  int64_t row;
  const int32_t* filters;
  int first_filter, last_filter;
  int tile_columns, first_row, last_row;
  int out_height, out_width;
  float* scratch;              // winograd_sums(tiles) floats
  Epilogue epilogue;
};

// Small planes: sums over the inputs sixteen at a time, each weight read once for all positions.
struct Dot {
  const float* input;          // (positions, stride), zero where inactive
  int stride;
  const int32_t* blocks;       // of sixteen inputs, those with an active one
  int block_count;
  const float* weights;        // (K, stride), or (K, stride / 16, 9, 16) for squares
  const int32_t* filters;
  int first_filter, last_filter;
  Epilogue epilogue;
};

// A 1x1 convolution of all inputs and all filters, panels of filters at some positions.
constexpr int kPanel = 32;  // filters

struct Panel {
  const float* input;          // (C, positions)
  int inputs, filters;
  const float* weights;        // (panels, C, 32)
  int first_panel, last_panel, first_position, last_position;
  Epilogue epilogue;
};

enum class DotShape { points, square2, square4, none };

struct Interleave {
  const float* input;          // (C, positions)
  int positions, channels;
  const int32_t* active;       // channels, ascending
  int inputs;
  int stride;                  // at least C, a multiple of 16
  float* out;                  // (positions, stride)
};

// sums[0, n) += values[i] * rows[offsets[i]][0, n), all i: a matrix by columns times a sparse vector.
struct Columns {
  const float* matrix;         // or null:
  const int64_t* offsets;
  const float* values;
  int count, n;
  float* sums;
  const int8_t* bytes = nullptr;     // the matrix of whole numbers
};

// The maximum or the mean of planes.
struct Planes {
  const float* input;
  int positions;
  const int32_t* channels;
  int count;
  bool maximum;
  float* out;                  // out[c]
};

struct Window {
  int height, width, out_height, out_width;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
  bool maximum, include_padding, adaptive;
};

// Floats that a window, or a vector of them, may reach past either end of a row.
constexpr int pool_margin(const Window& w) { return (w.pad_w + w.kernel_w + 48 + 15) / 16 * 16; }

struct Pooling {
  const float* x;              // a plane
  Window window;
  float* line;                 // width + 2 pool_margin + 16 floats
  float* out;
  int first_row, last_row;     // of the output, those to make now
};

struct Kernels {
  const char* name;
  void (*stage)(const Stage&, bool fresh);
  void (*direct)(const Direct&);
  void (*depthwise)(const Depthwise&);
  void (*patches)(const Patches&);
  void (*winograd)(const Winograd&);
  void (*interleave)(const Interleave&);
  void (*dot)(const Dot&, DotShape);
  void (*panel)(const Panel&);
  // out[i] = act(x[i] * scale + shift), n values
  void (*affine)(const float* x, float scale, float shift, Activation act, float* out, int64_t n);
  // out = act(a + b) or act(a * b); a null operand is zeros
  void (*combine)(const float* a, const float* b, bool product, Activation act, float* out, int64_t n);
  void (*planes)(const Planes&);
  void (*pool)(const Pooling&);
  void (*columns)(const Columns&);
};

// Sums of all filters over eight vectors, and of one tile more.
constexpr size_t direct_partial(int filters) { return static_cast<size_t>(filters + 16) * 8 * 16; }
// Floats from one row of a padded plane to the next: four tiles read ten, as sixteen.
constexpr int winograd_pitch(int tile_columns, int width) {
  const int tiles = 2 * ((tile_columns + 3) / 4 * 4) + 8;
  return tiles > width ? tiles : width;
}
constexpr size_t winograd_padded(int tile_rows, int tile_columns, int width) {
  return static_cast<size_t>(2 * tile_rows + 2) * winograd_pitch(tile_columns, width) + 16;
}
constexpr size_t winograd_patches(int tiles, int inputs) {
  return static_cast<size_t>((tiles + 3) / 4 * 4) * inputs * 16;
}
// Sums of six filters, four tiles more than there are.
constexpr size_t winograd_sums(int tiles) { return static_cast<size_t>(tiles + 8) * 6 * 16; }

const Kernels& find_kernels(const std::string& isa);  // throws std::invalid_argument
std::vector<std::string> available_isas();            // best first

}  // namespace ftwt
