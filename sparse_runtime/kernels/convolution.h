// A convolution: a matrix times tiles of what its kernel sees.
#pragma once

#include "activation.h"
#include "window.h"

// How a tile is made: the input's pixels, those under a kernel, or a depthwise convolution's
// result.
enum Producer : int32_t { COPY, PATCHES, DEPTHWISE };

constexpr int CHUNK = 64;  // rows of the matrix that may be paired with one another

// Lanes of a vector that have a pixel above, below, left and right.
struct Neighbours {
  Mask above, below, left, right;
};

struct Depthwise {
  Tensor in, out;
  Window window;
  Activation activation;
  const float* weights;          // [C][kernel_height * kernel_width]
  const float* bias;             // [C]
  const Neighbours* neighbours;  // [vectors of pixels + 1], of 3x3 with stride 1 and padding 1
};

struct Pair {
  uint16_t rows[2];
  uint16_t both, first, second;  // columns in which both rows have a weight, or one alone
};

struct Convolution {
  Tensor in, out;
  Tensor residual;  // is added before the activation; data may be null
  Window window;
  Activation activation;
  int32_t producer;
  const Depthwise* before;  // of DEPTHWISE

  // A sparse matrix of rows x tile_rows, block by block of tile rows, within a block chunk by chunk
  // of rows, within a chunk pair by pair. Of a pair first the columns in which both rows have a
  // weight, two values an index, then those of its first row alone, then those of its second row.
  int32_t rows;  // an even number, one more than the result's channels where those are odd
  int32_t tile_rows, block_rows, chunks;
  const float* values;
  const uint16_t* indices;  // of the tile row inside its block
  const uint32_t* starts;   // [blocks][chunks][2]: of a chunk's values and indices
  const Pair* pairs;        // [blocks][rows / 2]
  const float* bias;        // [rows]

  int32_t lanes;    // of a vector of pixels: LANES, or 1 where there is one pixel
  int32_t vectors;  // V: of a tile
  int32_t groups;   // parts into which the chunks are split, a divisor of the number of threads
  int32_t split;    // sums are kept in parts that are added up at last
};

// Rows [first, last) of the tile that begins at pixel `start`, into tile [last - first][V * LANES].
void depthwise_tile(const Depthwise& op, int vectors, int64_t start, int first, int last,
                    float* tile);
void patches(const Convolution& op, int vectors, int64_t start, int first, int last, float* tile);

// out[row][start:] (+)= matrix[row][block's columns] * tile, for the rows of chunks [first, last).
void multiply(const Convolution& op, int vectors, int64_t start, int block, int first, int last,
              const float* tile);
