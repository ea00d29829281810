// A block of a dense matrix' columns times a tile.
//
// Sums of DENSE_ROWS rows by up to PANEL vectors of pixels stay in registers: a load of pixels
// serves that many multiply-adds, a load of a weight as many as the panel has vectors.
#include <algorithm>

#include "convolution.h"

namespace {

constexpr int ROWS = DENSE_ROWS;
constexpr int PANEL = (REGISTERS - 1) / (ROWS + 1);

// ROWS rows from `row` on, times V vectors.
template <int V>
void multiply(const Convolution& op, const Tile& tile, int block, int row) {
  constexpr int C = V == 1 ? 2 : 1;  // parts of a sum, so that not each waits for the one before
  const Matrix& matrix = *op.matrix;
  const int begin = block * matrix.block_columns;
  const int end = std::min(begin + matrix.block_columns, matrix.columns);
  const int groups = (matrix.rows + ROWS - 1) / ROWS;
  const int rows = std::min(ROWS, matrix.rows - row);
  const float* weights =
      matrix.values + (int64_t)begin * groups * ROWS + (int64_t)row * (end - begin);
  const float* x = tile.pixels;
  Vec sums[C][ROWS][V];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++) {
    begin_sums<Vec, V>(op, row + (r < rows ? r : 0), block == 0, tile.start, sums[0][r]);
#pragma GCC unroll 2
    for (int c = 1; c < C; c++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sums[c][r][v] = broadcast(0);
  }
  const auto take = [&](Vec(&sum)[ROWS][V]) {
    Vec pixels[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) pixels[v] = load(x + v * LANES);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
      const Vec weight = broadcast(weights[r]);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sum[r][v] = multiply_add(weight, pixels[v], sum[r][v]);
    }
    x += tile.stride, weights += ROWS;
  };
  int count = end - begin;
  for (; count >= C; count -= C)
#pragma GCC unroll 2
    for (int c = 0; c < C; c++) take(sums[c]);
  for (; count > 0; count--) take(sums[0]);
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 2
    for (int c = 1; c < C; c++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sums[0][r][v] = add(sums[0][r][v], sums[c][r][v]);
    if (r < rows) end_sums<Vec, V>(op, row + r, end == matrix.columns, tile.start, sums[0][r]);
  }
}

template <int V>
void up_to(const Convolution& op, const Tile& tile, int block, int row) {
  if constexpr (V > 1)
    if (tile.vectors < V) return up_to<V - 1>(op, tile, block, row);
  multiply<V>(op, tile, block, row);
}

// Of one pixel: the products of row and pixels, which are [columns] then.
void multiply_one(const Convolution& op, const Tile& tile, int block, int first, int last) {
  const Matrix& matrix = *op.matrix;
  const int begin = block * matrix.block_columns;
  const int width = std::min(matrix.block_columns, matrix.columns - begin);
  for (int row = first; row < last; row++) {
    const float* weights = matrix.values + (int64_t)row * matrix.columns + begin;
    Vec sums[4] = {broadcast(0), broadcast(0), broadcast(0), broadcast(0)};
    int k = 0;
    for (; k + 4 * LANES <= width; k += 4 * LANES)
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++)
        sums[i] =
            multiply_add(load(weights + k + i * LANES), load(tile.pixels + k + i * LANES), sums[i]);
    float lanes[LANES], sum;
    store(lanes, add(add(sums[0], sums[1]), add(sums[2], sums[3])));
    begin_sums<float, 1>(op, row, block == 0, tile.start, &sum);
    for (; k < width; k++) sum += weights[k] * tile.pixels[k];
    for (float lane : lanes) sum += lane;
    end_sums<float, 1>(op, row, begin + width == matrix.columns, tile.start, &sum);
  }
}

}  // namespace

void multiply_dense(const Convolution& op, const Tile& tile, int block, int chunk) {
  const int first = chunk * op.matrix->chunk_rows;
  const int last = std::min(first + op.matrix->chunk_rows, op.matrix->rows);
  if (op.lanes == 1) return multiply_one(op, tile, block, first, last);
  const int panels = (tile.vectors + PANEL - 1) / PANEL;
  for (int row = first; row < last; row += ROWS)
    for (int p = 0; p < panels; p++) {  // of equal widths, or nearly
      const int from = tile.vectors * p / panels, to = tile.vectors * (p + 1) / panels;
      const Tile part = {tile.pixels + from * LANES, tile.stride, to - from,
                         tile.start + from * LANES};
      up_to<PANEL>(op, part, block, row);
    }
}
