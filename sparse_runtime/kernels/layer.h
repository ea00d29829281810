// What a layer is to the kernels. The Python side holds the same structure for ctypes.
//
// Activations lie channel by channel, the pictures of a batch behind each other within a channel:
// [C][B * H * W], a channel's beginning a multiple of 16 floats. A tile is V * LANES pixels of
// that; it is computed whole, whatever picture they belong to.
#pragma once

#include <cstdint>

#include "simd.h"

enum Kind : int32_t { POOL = 0, DEPTHWISE = 1, PATCHES = 2, COPY = 3 };

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
  const Mask*
      masks;  // [vectors of pixels + 1][5]: where there is a pixel above, here, below, left, right

  // A sparse matrix of rows x tile_rows. Non-zeros are sorted by block of tile rows, then by row.
  int32_t rows, tile_rows, block_rows, relu;
  const float* values;
  const uint16_t* indices;  // of the tile row inside its block
  const uint32_t* starts;   // [blocks * rows + 1]
  const float* bias;        // [rows]
  float* out;
  int64_t out_stride;  // floats from a row to the next

  int32_t vectors;  // V: of a tile
  int32_t groups;   // parts into which the rows are split, a divisor of the number of threads
  int32_t chains;   // sums of a row that are added up at last, to hide the latency of few vectors
};

// Rows [first, last) of the tile that begins at pixel `start`, into tile [last - first][V * LANES].
void depthwise(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile);
void patches(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile);
void copy_pixels(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile);

// out[row][start:] (+)= matrix[row][block's columns] * tile, for rows [first, last).
void multiply(const Layer& layer, int vectors, int64_t start, int block, int first, int last,
              const float* tile);

void pool(const Layer& layer, int first, int last);  // channels
