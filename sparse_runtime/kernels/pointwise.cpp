// A block of columns of a sparse matrix times a tile: [rows][block_rows] x [block_rows][V * LANES].
#include <utility>

#include "layer.h"

namespace {

constexpr int CHAINS = 4;

// One row: a sum a vector of pixels, or CHAINS sums where there are so few vectors that each
// multiply-add would wait for the one before.
template <int V, int C>
inline void row(const Layer& layer, uint32_t k, uint32_t end, const float* tile, Vec (&sum)[V]) {
  Vec part[C][V];
  for (int c = 1; c < C; c++)
    for (int v = 0; v < V; v++) part[c][v] = broadcast(0);
  for (int v = 0; v < V; v++) part[0][v] = sum[v];
  for (; k + C <= end; k += C) {
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      const Vec weight = broadcast(layer.values[k + c]);
      const float* x = tile + layer.indices[k + c] * (V * LANES);
#pragma GCC unroll 16
      for (int v = 0; v < V; v++) part[c][v] = fma(weight, load(x + v * LANES), part[c][v]);
    }
  }
  for (; C > 1 && k < end; k++) {
    const Vec weight = broadcast(layer.values[k]);
    const float* x = tile + layer.indices[k] * (V * LANES);
#pragma GCC unroll 16
    for (int v = 0; v < V; v++) part[0][v] = fma(weight, load(x + v * LANES), part[0][v]);
  }
  for (int c = 1; c < C; c++)
    for (int v = 0; v < V; v++) part[0][v] = add(part[0][v], part[c][v]);
  for (int v = 0; v < V; v++) sum[v] = part[0][v];
}

template <int V, int C>
void rows(const Layer& layer, int64_t start, int block, int first, int last, const float* tile) {
  const uint32_t* starts = layer.starts + (int64_t)block * layer.rows;
  const bool from_bias = block == 0;
  const bool relu = layer.relu && (block + 1) * (int64_t)layer.block_rows >= layer.tile_rows;
  for (int r = first; r < last; r++) {
    float* out = layer.out + r * layer.out_stride + start;
    Vec sum[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; v++)
      sum[v] = from_bias ? broadcast(layer.bias[r]) : load(out + v * LANES);
    row<V, C>(layer, starts[r], starts[r + 1], tile, sum);
#pragma GCC unroll 16
    for (int v = 0; v < V; v++) store(out + v * LANES, relu ? max(broadcast(0), sum[v]) : sum[v]);
  }
}

using Rows = void (*)(const Layer&, int64_t, int, int, int, const float*);

template <int... V>
void call(std::integer_sequence<int, V...>, int vectors, int chains, const Layer& layer,
          int64_t start, int block, int first, int last, const float* tile) {
  static constexpr Rows one[] = {rows<V + 1, 1>...};
  static constexpr Rows several[] = {rows<V + 1, (V < 4 ? CHAINS : 1)>...};
  (chains > 1 ? several : one)[vectors - 1](layer, start, block, first, last, tile);
}

}  // namespace

void multiply(const Layer& layer, int vectors, int64_t start, int block, int first, int last,
              const float* tile) {
  call(std::make_integer_sequence<int, 14>(), vectors, layer.chains, layer, start, block, first,
       last, tile);
}
