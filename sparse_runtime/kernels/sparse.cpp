// A block of a sparse matrix' columns times a tile.
//
// One row is computed at a time, its sums in V registers: a multiply-add takes its pixels from
// memory, and as many loads as multiply-adds fit a cycle, so that sharing pixels between rows would
// gain nothing.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "convolution.h"

namespace {

// Parts of a sum: where there are few sums, a multiply-add would wait for the one before.
constexpr int parts(int vectors) { return vectors < 3 ? 4 : vectors < 7 ? 2 : 1; }

template <class T, int V>
void multiply(const Convolution& op, const Tile& tile, int block, int chunk) {
  constexpr int C = parts(V);
  const Matrix& matrix = *op.matrix;
  const uint32_t* start = matrix.starts + 2 * (block * matrix.chunks() + chunk);
  const float* values = matrix.values + start[0];
  const uint16_t* indices = matrix.indices + start[0];
  const int first_row = chunk * matrix.chunk_rows;
  const uint16_t* order = matrix.order + (int64_t)block * matrix.rows + first_row;
  const bool first = block == 0, last = block == matrix.blocks() - 1;
  const Alike *alike = matrix.alike + start[1], *end = matrix.alike + start[3];
  for (; alike < end; alike++)
    for (int i = 0; i < alike->rows; i++) {
      const int row = first_row + *order++;
      T sums[C][V];
      begin_sums<T, V>(op, row, first, tile.start, sums[0]);
#pragma GCC unroll 4
      for (int c = 1; c < C; c++)
#pragma GCC unroll 32
        for (int v = 0; v < V; v++) sums[c][v] = broadcast_as<T>(0);
      const auto take = [&](T weight, int index, T(&sum)[V]) {
        const float* pixels = tile.pixels + index * tile.stride;
#pragma GCC unroll 32
        for (int v = 0; v < V; v++)
          sum[v] = multiply_add(weight, load_as<T>(pixels + v * LANES_OF<T>), sum[v]);
      };
      int count = alike->weights;
      for (; count >= 4; count -= 4, values += 4, indices += 4) {
        const Vec four = load_four(values);
        uint64_t places;
        std::memcpy(&places, indices, sizeof places);
        take(one_of_as<T, 0>(values, four), places & 0xffff, sums[0]);
        take(one_of_as<T, 1>(values, four), places >> 16 & 0xffff, sums[1 % C]);
        take(one_of_as<T, 2>(values, four), places >> 32 & 0xffff, sums[2 % C]);
        take(one_of_as<T, 3>(values, four), places >> 48, sums[3 % C]);
      }
      for (; count > 0; count--) take(broadcast_as<T>(*values++), *indices++, sums[0]);
#pragma GCC unroll 4
      for (int c = 1; c < C; c++)
#pragma GCC unroll 32
        for (int v = 0; v < V; v++) sums[0][v] = add(sums[0][v], sums[c][v]);
      end_sums<T, V>(op, row, last, tile.start, sums[0]);
    }
}

using Multiply = void (*)(const Convolution&, const Tile&, int, int);

template <int... V>
Multiply of_vectors(std::integer_sequence<int, V...>, int vectors) {
  static constexpr Multiply all[] = {multiply<Vec, V + 1>...};
  return all[vectors - 1];
}

}  // namespace

void multiply_sparse(const Convolution& op, const Tile& tile, int block, int chunk) {
  const auto compute =
      op.lanes == 1 ? multiply<float, 1>
                    : of_vectors(std::make_integer_sequence<int, MAX_VECTORS>(), tile.vectors);
  compute(op, tile, block, chunk);
}

extern "C" void encode_sparse(const float* dense, Matrix* matrix, float* values, uint16_t* indices,
                              Alike* alike, uint16_t* order, uint32_t* starts) {
  const Matrix& m = *matrix;
  const float* const first_value = values;
  const Alike* const first_alike = alike;
  std::vector<int> counts(m.chunk_rows), places(m.block_columns + 2);
  for (int begin = 0; begin < m.columns; begin += m.block_columns) {
    const int width = std::min(m.block_columns, m.columns - begin);
    for (int first = 0; first < m.rows; first += m.chunk_rows) {
      const int height = std::min(m.chunk_rows, m.rows - first);
      const float* part = dense + (int64_t)first * m.columns + begin;
      *starts++ = values - first_value, *starts++ = alike - first_alike;
      // The rows by their number of weights, counted first.
      std::fill(places.begin(), places.end(), 0);
      for (int r = 0; r < height; r++) {
        const float* row = part + (int64_t)r * m.columns;
        counts[r] = width - std::count(row, row + width, 0.0f);
        places[counts[r] + 1]++;
      }
      for (int count = 0; count <= width; count++)
        if (places[count + 1] > 0) *alike++ = {(uint16_t)count, (uint16_t)places[count + 1]};
      std::partial_sum(places.begin(), places.end(), places.begin());
      for (int r = 0; r < height; r++) order[places[counts[r]]++] = r;
      for (int i = 0; i < height; i++) {
        const float* row = part + (int64_t)order[i] * m.columns;
        for (int k = 0; k < width; k++) {  // a place behind the last one is written, too
          *values = row[k], *indices = k;
          const bool there = row[k] != 0;
          values += there, indices += there;
        }
      }
      order += height;
    }
  }
  *starts++ = values - first_value, *starts++ = alike - first_alike;
}
