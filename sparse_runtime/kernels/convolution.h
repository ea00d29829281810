// A convolution: a matrix times tiles of what its kernel sees.
#pragma once

#include "activation.h"
#include "window.h"

// How a tile is made: the input's pixels where they are, or copied; those under a kernel; or the
// result of a depthwise convolution.
enum Producer : int32_t { DIRECT, COPY, PATCHES, DEPTHWISE };

// Lanes of a vector of pixels that have one above, below, left and right.
struct Neighbours {
  Mask above, below, left, right;
};

struct Depthwise {
  Tensor in, out;
  Window window;
  Activation activation;
  const float* weights;          // [C][kernel_height * kernel_width]
  const float* bias;             // [C]
  const Neighbours* neighbours;  // [vectors of pixels]; of 3x3 with stride 1 and padding 1 alone
  int64_t strip;                 // pixels that are computed at once
  int64_t rows_size;             // floats that Rows has for them
};

// Rows one after another that have equally many weights: the processor then predicts where the
// loop over a row's weights ends.
struct Alike {
  uint16_t weights, rows;
};

// Rows [rows] x [columns], cut into blocks of columns and these into chunks of rows.
struct Matrix {
  int32_t rows, columns;
  int32_t block_columns, chunk_rows;  // at most 65535 each
  // Dense: block by block [rows / DENSE_ROWS, rounded up][block's columns][DENSE_ROWS], 0 where
  // there is no row; of a convolution of one pixel [rows][columns]. Sparse: block by block, chunk
  // by chunk, those that are not zero of one row after another, which `order` numbers in the chunk.
  int32_t dense;
  const float* values;
  const uint16_t* indices;  // of the values: column in the block
  const Alike* alike;
  const uint16_t* order;   // [blocks][rows]
  const uint32_t* starts;  // [blocks * chunks + 1][2]: of a chunk's values and of its Alikes

  int blocks() const { return (columns + block_columns - 1) / block_columns; }
  int chunks() const { return (rows + chunk_rows - 1) / chunk_rows; }
};

constexpr int DENSE_ROWS = 4;  // whose sums share a load of pixels

struct Convolution {
  Tensor in, out;
  Tensor residual;  // is added before the activation; data may be null
  Window window;
  Activation activation;
  int32_t producer;
  const Depthwise* before;       // of DEPTHWISE
  const Neighbours* neighbours;  // of PATCHES of 3x3 with stride 1 and padding 1 alone
  int64_t rows_size;  // of other PATCHES: floats of scratch for Rows; the tile lies behind them

  const Matrix* matrix;
  const float* bias;  // [rows]
  int32_t lanes;      // of a vector of pixels: LANES, or 1 where there is one pixel
  int32_t vectors;    // of a tile
  int32_t groups;     // threads that share the matrix' rows; a divisor of their number
};

// Pixels that a matrix is multiplied by: [block's columns][vectors], `stride` floats from a row to
// the next.
struct Tile {
  const float* pixels;
  int64_t stride;
  int vectors;
  int64_t start;  // the first one's number in the result
};

// Rows [first, last) of a tile, into to [last - first][tile.stride]; a vector more may be written.
void patches(const Convolution& op, const Tile& tile, int first, int last, float* scratch,
             float* to);

// Channels [first, last) of 3x3 with padding 1 and stride 1 or 2, likewise.
void depthwise_tile(const Depthwise& op, const Tile& tile, int first, int last, float* to);

// out[row][start:] (+)= columns of a block * tile, for the rows of a chunk.
void multiply_sparse(const Convolution& op, const Tile& tile, int block, int chunk);
void multiply_dense(const Convolution& op, const Tile& tile, int block, int chunk);

// Sums of a row at its beginning: bias and residual, or what the blocks before have left in `out`.
template <class T, int V>
inline void begin_sums(const Convolution& op, int row, bool first, int64_t start, T* sums) {
  const float* from = first ? nullptr : op.out.channel(row) + start;
  if (first && op.residual.data) from = op.residual.channel(row) + start;
  const T bias = broadcast_as<T>(first ? op.bias[row] : 0);
#pragma GCC unroll 32
  for (int v = 0; v < V; v++) sums[v] = bias;
  if (from)
#pragma GCC unroll 32
    for (int v = 0; v < V; v++) sums[v] = add(sums[v], load_as<T>(from + v * LANES_OF<T>));
}

template <class T, int V>
inline void end_sums(const Convolution& op, int row, bool last, int64_t start, const T* sums) {
  float* to = op.out.channel(row) + start;
  const auto all = [&](auto function) {
#pragma GCC unroll 32
    for (int v = 0; v < V; v++) store(to + v * LANES_OF<T>, function(sums[v]));
  };
  if (!last || op.activation.kind == NONE)
    all([](T sum) { return sum; });
  else if (op.activation.kind == RELU)
    all([](T sum) { return max(broadcast_as<T>(0), sum); });
  else
#pragma GCC unroll 32
    for (int v = 0; v < V; v++) store(to + v * LANES_OF<T>, activate(op.activation, sums[v]));
}
