// A block of columns of a sparse matrix times a tile: [rows][block_rows] x [block_rows][V * lanes].
// Loads bound it, so two rows are computed together, and what both have a weight for is loaded
// once.
#include <algorithm>
#include <utility>

#include "convolution.h"

namespace {

// C, the parts of a sum, where it is kept in parts.
constexpr int CHAINS = 2, SCALAR_CHAINS = 8;

// sums += the next `count` tile rows, each times the weights of R rows of the matrix. A sum is kept
// in C parts where there are so few of them that each multiply-add would wait for the one before.
template <int R, class T, int V, int C>
inline void accumulate(int count, const float*& values, const uint16_t*& indices, const float* tile,
                       T (*sums)[C][V]) {
  const auto take = [&](int c) {
    const float* x = tile + *indices++ * (V * LANES_OF<T>);
    T weights[R];
    for (int r = 0; r < R; r++) weights[r] = broadcast_as<T>(*values++);
#pragma GCC unroll 16
    for (int v = 0; v < V; v++) {
      const T pixels = load_as<T>(x + v * LANES_OF<T>);
      for (int r = 0; r < R; r++) sums[r][c][v] = multiply_add(weights[r], pixels, sums[r][c][v]);
    }
  };
  for (; count >= C; count -= C)
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) take(c);
  for (; count > 0; count--) take(0);
}

template <class T, int V, int C>
void multiply_pairs(const Convolution& op, int64_t start, int block, int first, int last,
                    const float* tile) {
  const bool from_bias = block == 0;
  const bool whole = (block + 1) * (int64_t)op.block_rows >= op.tile_rows;
  const Activation activation = whole ? op.activation : Activation{NONE, 0};
  const int64_t chunk = (int64_t)block * op.chunks + first;
  const float* values = op.values + op.starts[chunk * 2];
  const uint16_t* indices = op.indices + op.starts[chunk * 2 + 1];
  const Pair* pair = op.pairs + (int64_t)block * (op.rows / 2);
  const Pair* end = pair + std::min(last * CHUNK, op.rows) / 2;
  for (pair += first * CHUNK / 2; pair < end; pair++) {
    float* out[2];
    T sums[2][C][V];
    for (int r = 0; r < 2; r++) {
      const int row = pair->rows[r];
      out[r] = op.out.channel(std::min(row, op.out.channels - 1)) + start;
#pragma GCC unroll 16
      for (int v = 0; v < V; v++) {
        sums[r][0][v] =
            from_bias ? broadcast_as<T>(op.bias[row]) : load_as<T>(out[r] + v * LANES_OF<T>);
        if (from_bias && op.residual.data && row < op.residual.channels)
          sums[r][0][v] =
              add(sums[r][0][v], load_as<T>(op.residual.channel(row) + start + v * LANES_OF<T>));
        for (int c = 1; c < C; c++) sums[r][c][v] = broadcast_as<T>(0);
      }
    }
    accumulate<2>(pair->both, values, indices, tile, sums);
    accumulate<1>(pair->first, values, indices, tile, sums);
    accumulate<1>(pair->second, values, indices, tile, sums + 1);
    for (int r = 0; r < 2; r++) {
      if (pair->rows[r] >= op.out.channels) continue;  // what makes the rows even
#pragma GCC unroll 16
      for (int v = 0; v < V; v++) {
        for (int c = 1; c < C; c++) sums[r][0][v] = add(sums[r][0][v], sums[r][c][v]);
        store(out[r] + v * LANES_OF<T>, activate(activation, sums[r][0][v]));
      }
    }
  }
}

using Multiply = void (*)(const Convolution&, int64_t, int, int, int, const float*);

template <int... V>
Multiply choose(std::integer_sequence<int, V...>, const Convolution& op, int vectors) {
  static constexpr Multiply whole[] = {multiply_pairs<Vec, V + 1, 1>...};
  static constexpr Multiply in_parts[] = {multiply_pairs<Vec, V + 1, (V < 3 ? CHAINS : 1)>...};
  if (op.lanes == 1) return multiply_pairs<float, 1, SCALAR_CHAINS>;
  return (op.split ? in_parts : whole)[vectors - 1];
}

}  // namespace

void multiply(const Convolution& op, int vectors, int64_t start, int block, int first, int last,
              const float* tile) {
  choose(std::make_integer_sequence<int, MAX_VECTORS>(), op, vectors)(op, start, block, first, last,
                                                                      tile);
}
