// What a layer is to the kernels. The Python side holds the same structure for ctypes.
//
// Activations lie channel by channel, the pictures of a batch behind each other within a channel:
// [C][B * H * W], a channel's beginning a multiple of 16 floats; only the network's input, which
// PATCHES and POOL alone take, lies picture by picture. A tile is V * LANES pixels of
// that; it is computed whole, whatever picture they belong to.
#pragma once

#include <cstdint>

#include "simd.h"

enum Kind : int32_t { POOL = 0, DEPTHWISE = 1, PATCHES = 2, COPY = 3 };

// Two rows' sums, a weight of each and the pixels have to fit the registers.
constexpr int MAX_VECTORS = (REGISTERS - 3) / 2;
constexpr int CHUNK = 64;  // rows of the matrix that may be paired with one another

// Lanes of a vector that have a pixel above, below, left and right.
struct Neighbours {
  Mask above, below, left, right;
};

struct Pair {
  uint16_t rows[2];
  uint16_t both, first, second;  // columns in which both rows have a weight, or one alone
};

struct Layer {
  // What the matrix is multiplied by: a depthwise convolution's result, the pixels under a kernel,
  // or the input. POOL is a mean over each picture, without a matrix.
  int32_t kind;
  int32_t batch, in_channels, in_height, in_width, out_height, out_width;
  int32_t kernel, stride, padding;
  int64_t in_channel_stride, in_batch_stride;  // floats
  const float* in;
  const float* depthwise_weights;  // [C_in][3 * 3]
  const float* depthwise_bias;     // [C_in]
  int32_t depthwise_relu;
  const Neighbours* neighbours;  // [vectors of pixels + 1], where stride is 1

  // A sparse matrix of rows x tile_rows, block by block of tile rows, within a block chunk by chunk
  // of rows, within a chunk pair by pair. Of a pair first the columns in which both rows have a
  // weight, two values an index, then those of its first row alone, then those of its second row.
  int32_t rows;  // an even number
  int32_t tile_rows, block_rows, chunks, relu;
  const float* values;
  const uint16_t* indices;  // of the tile row inside its block
  const uint32_t* starts;   // [blocks][chunks][2]: of a chunk's values and indices
  const Pair* pairs;        // [blocks][rows / 2]
  const float* bias;        // [rows]
  float* out;
  int64_t out_stride;  // floats from a row to the next

  int32_t lanes;    // of a vector of pixels: LANES, or 1 where there is one pixel
  int32_t vectors;  // V: of a tile
  int32_t groups;   // parts into which the chunks are split, a divisor of the number of threads
  int32_t split;    // sums are kept in parts that are added up at last
};

// Pixels of a tile that lie side by side in a picture.
struct Run {
  int64_t in;         // floats from a channel's beginning to the first row under the kernel
  int row, x, count;  // that row; first pixel in its row; pixels
};

class Runs {
 public:
  int beyond;  // pixels of the tile behind the last picture

  Runs(const Layer& layer, int vectors, int64_t start) {
    const int size = layer.out_height * layer.out_width;
    const int64_t pixels = (int64_t)layer.batch * size, end = start + vectors * LANES;
    int64_t p = start;
    for (; p < end && p < pixels; p += runs_[count_++].count) {
      const int64_t picture = p / size;
      const int y = p % size / layer.out_width, x = p % size % layer.out_width;
      const int row = y * layer.stride - layer.padding;
      const int64_t in = picture * layer.in_batch_stride + (int64_t)row * layer.in_width;
      const int64_t count = layer.out_width - x < end - p ? layer.out_width - x : end - p;
      runs_[count_] = {in, row, x, (int)count};
    }
    beyond = end - p;
  }

  const Run* begin() const { return runs_; }
  const Run* end() const { return runs_ + count_; }

 private:
  Run runs_[MAX_VECTORS * LANES];
  int count_ = 0;
};

// Rows [first, last) of the tile that begins at pixel `start`, into tile [last - first][V * LANES].
void depthwise(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile);
void patches(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile);
void copy_pixels(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile);

// out[row][start:] (+)= matrix[row][block's columns] * tile, for the rows of chunks [first, last).
void multiply(const Layer& layer, int vectors, int64_t start, int block, int first, int last,
              const float* tile);

void pool(const Layer& layer, int first, int last);  // channels
