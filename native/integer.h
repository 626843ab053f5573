// What the kernels on eight-bit maps are asked to do. They are compiled once for each instruction
// set, as those on floats are (kernels.h), and give the same result to the last bit on all.
//
// A quantised map lies in memory as a float map does: channel after channel, a byte for each value,
// and what an inactive channel holds is unspecified. A convolution lays out its active inputs anew:
// a few of them side by side are one `dword` at each position, four bytes or two halves of 16 bits,
// whatever the instruction set multiplies and adds at once.
#pragma once

#include "kernels.h"

namespace ftwt {

enum class Type : uint8_t { f32, u8, s8 };

constexpr int size_of(Type type) { return type == Type::f32 ? 4 : 1; }

// Values to read as reals; null: zeros.
struct Values {
  const void* at;
  Type type;
  float scale;                 // of a quantised map
  bool spread;                 // one value for all
};

// Where reals go, and how: q = clip(rint(v * inverse)).
struct Target {
  void* at;
  Type type;
  float inverse;
};

// out = act(a + b), n values.
struct Blend {
  Values a, b;
  Activation act;
  Target out;
  int64_t n;
};

// Sixteen dwords of what is laid out, from thirty-two of a plane.
struct Move {
  int32_t from, to;
  uint16_t lanes;              // those that come from the plane; the others are zeros,
  bool more;                   // or stay as they are
  uint8_t order[16];           // which of the thirty-two
};

// Lays dwords out for `IntegerDirect`, as `Stage` lays out floats.
struct IntegerStage {
  Stage layout;                // `plane`, `out` and `plane_floats` are those of dwords; no planes: as it is
  const uint8_t* channels[4];  // planes of the input; null: zeros
  Type type;
  bool shifted;                // bytes are to be unsigned: signed ones become 128 more
  int32_t* flat;               // height * width + 64 dwords, if there are planes
  int32_t* out;
  const Move* moves;       // all planes from first to last, where vectors have sixteen lanes; or none
  int move_count;
};

// What makes sixty-four weights of active inputs, or the last of them: a shuffle of two blocks that lie
// one behind the other, and what comes from further ones.
struct Pick {
  int32_t block;               // of sixty-four inputs
  int32_t more;                // how many of its line follow
  uint64_t lanes;
  uint8_t order[64];
};

// Weights of the inputs that are active, side by side, for some filters of one group.
struct IntegerPack {
  const void* weights;         // (K, blocks, taps, inputs of the block), as the instruction set reads them
  int64_t row;                 // of weights, from one filter to the next
  int taps, inputs;            // of a group, filled up to whole dwords
  int block;                   // inputs of a block, kIntegerBlock or all
  const int32_t* chosen;       // inputs, ascending, of whole dwords
  const Pick* picks;           // the same as shuffles of sixty-four bytes, if there are such;
  const uint8_t* orders;       // and as shuffles of sixteen bytes each, if the instruction set wants
  const uint8_t* kept;         // these: the bytes that are kept first, and how many they are
  int count;
  const int32_t* filters;
  int filter_count;
  void* out;                   // (filters, taps, count)
  int64_t out_row;
  int32_t* sums;               // of each filter: what to take off its sums
  bool shifted;                // the input is 128 more than it says
};

constexpr int kIntegerFilters = 32;  // at most, of a call
constexpr int kIntegerBlock = 64;    // inputs whose weights lie together

struct IntegerEpilogue {
  const float* scale;
  const float* bias;
  Activation act, post;
  Values add;                  // its plane f is at f * positions
  const uint8_t* add_active;
  int positions;
  Target out;
};

// Sums over planes by the plain definition, as in `Direct`.
struct IntegerDirect {
  const Vector* vectors;
  int first_vector, last_vector;
  const int32_t* input;        // dwords
  int64_t stride;              // from one dword's planes to the next
  int groups;                  // of inputs: dwords
  const int32_t* tap_offsets;
  int taps;
  const int32_t* offsets;      // of all groups' taps, in the order of the weights
  int dwords;                  // how many these are
  const int32_t* few;          // dwords of the last vector's positions, side by side in the order of the weights, zeros
  int few_stride;              // behind them, from one position to the next; null: it is a vector like others
  const void* weights;         // (filters, dwords)
  int64_t row;                 // bytes from one filter's weights to the next
  const uint8_t* all_weights;  // rows of so many bytes, of which
  int64_t all_row;
  const int32_t* next;         // those of these filters are wanted next
  int next_count;
  int32_t less[kIntegerFilters];         // to be taken off the sums
  const int32_t* filters;
  int filter_count;
  const IntegerEpilogue* epilogue;
  int tile_groups;             // dwords of inputs to a tile, rows of weights at one distance; 0: no tiles
  bool is_signed;              // what tiles read
};

// Lays out the input of `IntegerDot`: zeros for what is not active.
struct IntegerArrange {
  const uint8_t* map;          // (channels, positions * span)
  Type type;
  int channels;
  const int32_t* active;       // channels, ascending
  int count;
  int positions;               // of a channel that are positions to `IntegerDot`
  int span;                    // or that are inputs of the only position
  int stride;
  bool picked;                 // channels that are active are the inputs; else all are
  void* out;
};

// Sums of weights times all inputs of a position, which lie side by side, as in `Dot`.
struct IntegerDot {
  const void* input;           // (positions, stride), as the instruction set reads it
  int stride;                  // values of a position: inputs, filled up to whole blocks
  const int32_t* blocks;       // those that hold an active input
  const Pick* picks;           // of squares: what makes blocks of active inputs alone; null: blocks are as they are
  int block_count;
  const int8_t* weights;       // (K, row / kIntegerBlock, taps, kIntegerBlock)
  int row;
  const int32_t* less;         // (K, positions): to be taken off the sums; null: nothing
  const int32_t* filters;
  int first_filter, last_filter;
  const IntegerEpilogue* epilogue;
};

// Four taps in a row of sixteen outputs of a small plane.
struct Quad {
  int32_t order;               // number of the order that its bytes are put in,
  uint64_t placed;             // only these: the others are zeros
};

// Sixty-four bytes from sixty-four: by one shuffle, or first of dwords, then within sixteen bytes.
struct ByteOrder {
  uint8_t bytes[64];
  int32_t dwords[16];
  uint8_t within[64];
};

// A convolution of each channel with its own filter; only where there is such a kernel.
struct IntegerDepthwise {
  const uint8_t* input;
  Type type;
  const uint8_t* active;       // channels of the input
  int height, width;           // of the input
  const Vector* vectors;       // of a large plane: columns of them, rows one after the other
  int vector_count;
  const Quad* quads;           // of a plane of at most 64 bytes: (vectors, taps); null: it is larger,
  int top, left, pitch;        // has zeros around it,
  const int32_t* offsets;      // and its taps lie there
  int taps;                    // fours of them; or single ones, if they are paired,
  int stride_h, stride_w;      // at most 2: of halves there is a plane for each phase of rows and columns,
  int64_t plane_halves;        // from one to the next
  bool neighbours;             // three rows of one four, and those of the next output are one row further
  uint8_t* plane;              // so many bytes
  int64_t plane_bytes;
  const ByteOrder* orders;     // of a large plane: one
  const int32_t* weights;      // (K, taps) dwords, of pairs half as many
  const int32_t* less;         // of each filter: to be taken off its sums
  const int32_t* filters;
  int first_filter, last_filter;
  const IntegerEpilogue* epilogue;
};

// The maximum or the sum of planes, times a scale.
struct IntegerPlanes {
  const uint8_t* input;
  Type type;
  int positions;
  const int32_t* channels;
  int count;
  bool maximum;
  float scale;
  Target out;                  // out[c]; a maximum of the input's type is not scaled
};

// Whether each value of a small plane becomes the largest of two by two: planes one below the other are then as one.
constexpr bool halves(const Window& w) {
  return !w.adaptive && w.width <= 8 && w.kernel_h == 2 && w.kernel_w == 2 && w.stride_h == 2 && w.stride_w == 2 && w.pad_h == 0 && w.pad_w == 0 &&
         w.width == 2 * w.out_width && w.height == 2 * w.out_height;
}

struct IntegerPooling {        // a maximum
  const uint8_t* x;
  Type type;
  Window window;
  uint8_t* line;               // integer_line(window) bytes
  uint8_t* out;
  int first_row, last_row;
};

// Two lines: columns with what is around them, and windows.
constexpr size_t integer_line(const Window& w) {
  return 2 * (static_cast<size_t>(w.width) + 2 * w.pad_w + 2 * static_cast<size_t>(w.kernel_w) + w.stride_w + 192);
}

struct IntegerKernels {
  const char* name;
  int dword;                   // inputs in one: four bytes, or two halves
  bool tiles;                  // whether it has a matrix unit, which takes bytes with a sign too
  bool orders, picks;          // whether it packs by `orders`, or `picks`
  void (*blend)(const Blend&);
  void (*stage)(const IntegerStage&);
  void (*pack)(const IntegerPack&);
  void (*direct)(const IntegerDirect&);
  void (*arrange)(const IntegerArrange&);
  void (*dot)(const IntegerDot&, DotShape);
  void (*depthwise)(const IntegerDepthwise&);  // or null
  void (*planes)(const IntegerPlanes&);
  void (*pool)(const IntegerPooling&);
};

const IntegerKernels& find_integer_kernels(const std::string& isa);  // one that `find_kernels` knows

}  // namespace ftwt
