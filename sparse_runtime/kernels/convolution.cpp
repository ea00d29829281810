// Cuts a convolution into strips and tiles of pixels, and a tile into blocks of rows that fit a
// cache.
#include "convolution.h"

#include <algorithm>

// A thread has all rows of some pixels, or some rows of them. A strip of pixels goes through a
// depthwise convolution at once, and then tile by tile through the matrix.
extern "C" void convolution(const void* of, const Part& part) {
  const Convolution& op = *static_cast<const Convolution*>(of);
  const Matrix& matrix = *op.matrix;
  const auto multiply = matrix.dense ? multiply_dense : multiply_sparse;
  const int group = part.thread % op.groups, share = part.thread / op.groups;
  const int shares = part.threads / op.groups;
  const int first_chunk = (int64_t)matrix.chunks() * group / op.groups;
  const int last_chunk = (int64_t)matrix.chunks() * (group + 1) / op.groups;
  const int64_t pixels = op.out.pixels(), all = (pixels + op.lanes - 1) / op.lanes;
  const int64_t first = all * share / shares, last = all * (share + 1) / shares;
  float* const made = part.scratch + op.rows_size;
  const int64_t strip = op.producer == DEPTHWISE ? op.before->strip / op.lanes : last - first;
  for (int64_t from = first; from < last; from += strip) {
    const int64_t to = std::min(from + strip, last);
    const int64_t width = (to - from) * op.lanes + LANES;  // a short row's vector ends behind it
    if (op.producer == DEPTHWISE)
      depthwise_pixels(*op.before, from * op.lanes, std::min(to * op.lanes, pixels), 0,
                       matrix.columns, part.scratch, made, width);
    const int64_t tiles = (to - from + op.vectors - 1) / op.vectors;
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t begin = from + (to - from) * t / tiles;
      const int count = from + (to - from) * (t + 1) / tiles - begin;
      Tile tile = {made, count * op.lanes, count, begin * op.lanes};
      if (op.producer == PATCHES) tile.stride += LANES;
      for (int row = 0, block = 0; row < matrix.columns; row += matrix.block_columns, block++) {
        const int end = std::min(row + matrix.block_columns, matrix.columns);
        if (op.producer == DEPTHWISE)
          tile.pixels = made + row * width + (begin - from) * op.lanes, tile.stride = width;
        else if (op.producer == PATCHES)
          patches(op, tile, row, end, part.scratch, made);
        else if (op.producer == DIRECT)
          tile.pixels = op.in.channel(row) + tile.start, tile.stride = op.in.stride;
        else
          for (int c = row; c < end; c++)
            std::copy_n(op.in.channel(c) + tile.start, tile.stride, made + (c - row) * tile.stride);
        for (int chunk = first_chunk; chunk < last_chunk; chunk++) multiply(op, tile, block, chunk);
      }
    }
  }
}
