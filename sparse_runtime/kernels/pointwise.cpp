// A block of columns of a sparse matrix times a tile: [rows][block_rows] x [block_rows][V * lanes].
// Loads bound it, so two rows are computed together, and what both have a weight for is loaded
// once.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "layer.h"

namespace {

// C, the parts of a sum, where it is kept in parts.
constexpr int CHAINS = 2, SCALAR_CHAINS = 8;

template <class T>
constexpr int LANES_OF = sizeof(T) / sizeof(float);

template <class T>
T broadcast_as(float x) {
  if constexpr (std::is_same_v<T, float>)
    return x;
  else
    return broadcast(x);
}

template <class T>
T load_as(const float* p) {
  if constexpr (std::is_same_v<T, float>)
    return *p;
  else
    return load(p);
}

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
void multiply_pairs(const Layer& layer, int64_t start, int block, int first, int last,
                    const float* tile) {
  const bool from_bias = block == 0;
  const bool relu = layer.relu && (block + 1) * (int64_t)layer.block_rows >= layer.tile_rows;
  const int64_t chunk = (int64_t)block * layer.chunks + first;
  const float* values = layer.values + layer.starts[chunk * 2];
  const uint16_t* indices = layer.indices + layer.starts[chunk * 2 + 1];
  const Pair* pair = layer.pairs + (int64_t)block * (layer.rows / 2);
  const Pair* end = pair + std::min(last * CHUNK, layer.rows) / 2;
  for (pair += first * CHUNK / 2; pair < end; pair++) {
    float* out[2];
    T sums[2][C][V];
    for (int r = 0; r < 2; r++) {
      out[r] = layer.out + pair->rows[r] * layer.out_stride + start;
#pragma GCC unroll 16
      for (int v = 0; v < V; v++) {
        sums[r][0][v] = from_bias ? broadcast_as<T>(layer.bias[pair->rows[r]])
                                  : load_as<T>(out[r] + v * LANES_OF<T>);
        for (int c = 1; c < C; c++) sums[r][c][v] = broadcast_as<T>(0);
      }
    }
    accumulate<2>(pair->both, values, indices, tile, sums);
    accumulate<1>(pair->first, values, indices, tile, sums);
    accumulate<1>(pair->second, values, indices, tile, sums + 1);
    for (int r = 0; r < 2; r++)
#pragma GCC unroll 16
      for (int v = 0; v < V; v++) {
        for (int c = 1; c < C; c++) sums[r][0][v] = add(sums[r][0][v], sums[r][c][v]);
        const T sum = sums[r][0][v];
        store(out[r] + v * LANES_OF<T>, relu ? max(broadcast_as<T>(0), sum) : sum);
      }
  }
}

using Multiply = void (*)(const Layer&, int64_t, int, int, int, const float*);

template <int... V>
Multiply choose(std::integer_sequence<int, V...>, const Layer& layer, int vectors) {
  static constexpr Multiply whole[] = {multiply_pairs<Vec, V + 1, 1>...};
  static constexpr Multiply in_parts[] = {multiply_pairs<Vec, V + 1, (V < 3 ? CHAINS : 1)>...};
  if (layer.lanes == 1) return multiply_pairs<float, 1, SCALAR_CHAINS>;
  return (layer.split ? in_parts : whole)[vectors - 1];
}

}  // namespace

void multiply(const Layer& layer, int vectors, int64_t start, int block, int first, int last,
              const float* tile) {
  choose(std::make_integer_sequence<int, MAX_VECTORS>(), layer, vectors)(layer, start, block, first,
                                                                         last, tile);
}
