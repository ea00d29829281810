// Cuts a convolution into tiles of pixels, and a tile into blocks of rows that fit a cache.
#include "convolution.h"

#include <algorithm>

// A thread has all rows of some pixels, or some rows of them.
extern "C" void convolution(const void* of, const Part& part) {
  const Convolution& op = *static_cast<const Convolution*>(of);
  const Matrix& matrix = *op.matrix;
  const auto multiply = matrix.dense ? multiply_dense : multiply_sparse;
  const int group = part.thread % op.groups, share = part.thread / op.groups;
  const int shares = part.threads / op.groups;
  const int first_chunk = (int64_t)matrix.chunks() * group / op.groups;
  const int last_chunk = (int64_t)matrix.chunks() * (group + 1) / op.groups;
  const int64_t all = (op.out.pixels() + op.lanes - 1) / op.lanes;
  const int64_t first = all * share / shares, last = all * (share + 1) / shares;
  const int64_t tiles = (last - first + op.vectors - 1) / op.vectors;
  float* const made = part.scratch + op.rows_size;
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t begin = first + (last - first) * t / tiles;
    const int count = first + (last - first) * (t + 1) / tiles - begin;
    Tile tile = {made, count * op.lanes, count, begin * op.lanes};
    for (int row = 0, block = 0; row < matrix.columns; row += matrix.block_columns, block++) {
      const int end = std::min(row + matrix.block_columns, matrix.columns);
      switch (op.producer) {
        case DIRECT:
          tile.pixels = op.in.channel(row) + tile.start, tile.stride = op.in.stride;
          break;
        case COPY:
          for (int c = row; c < end; c++)
            std::copy_n(op.in.channel(c) + tile.start, tile.stride, made + (c - row) * tile.stride);
          break;
        case PATCHES:
          tile.stride = count * op.lanes + LANES;  // where a short row's vector ends
          patches(op, tile, row, end, part.scratch, made);
          break;
        case DEPTHWISE:
          depthwise_tile(*op.before, tile, row, end, made);
      }
      for (int chunk = first_chunk; chunk < last_chunk; chunk++) multiply(op, tile, block, chunk);
    }
  }
}

extern "C" int convolution_size() { return sizeof(Convolution); }

extern "C" int matrix_size() { return sizeof(Matrix); }
