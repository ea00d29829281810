// Depthwise 3x3, padding 1, of the pixels of a tile.
#include <algorithm>

#include "layer.h"

namespace {

// Each of the three rows is loaded once a vector; its left and right neighbours are shifted out of
// the vectors around it.
void stride_1(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile) {
  const int width = layer.in_width;
  const Mask* masks = layer.masks + start / LANES * 5;
  const Vec low = broadcast(layer.depthwise_relu ? 0.0f : -__builtin_inff());
  for (int c = first; c < last; c++) {
    const float* in = layer.in + c * layer.in_channel_stride + start;
    Vec weight[9], before_[3], here[3];
    for (int k = 0; k < 9; k++) weight[k] = broadcast(layer.depthwise_weights[c * 9 + k]);
    for (int y = 0; y < 3; y++) {
      before_[y] = load(in + (y - 1) * width - LANES, start ? masks[y - 5] : Mask(0));
      here[y] = load(in + (y - 1) * width, masks[y]);
    }
    const Vec bias = broadcast(layer.depthwise_bias[c]);
    for (int v = 0; v < vectors; v++, in += LANES, tile += LANES) {
      const Mask left = masks[v * 5 + 3], right = masks[v * 5 + 4];
      Vec sum = bias;
#pragma GCC unroll 3
      for (int y = 0; y < 3; y++) {
        const Vec next = load(in + (y - 1) * width + LANES, masks[v * 5 + 5 + y]);
        sum = fma(weight[y * 3], before(before_[y], here[y], left), sum);
        sum = fma(weight[y * 3 + 1], here[y], sum);
        sum = fma(weight[y * 3 + 2], behind(here[y], next, right), sum);
        before_[y] = here[y], here[y] = next;
      }
      store(tile, max(low, sum));
    }
  }
}

// A row of output pixels at a time.
void stride_2(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile) {
  const int size = layer.out_height * layer.out_width, width = layer.in_width;
  const int64_t pixels = (int64_t)layer.batch * size, end = start + vectors * LANES;
  const Vec low = broadcast(layer.depthwise_relu ? 0.0f : -__builtin_inff());
  for (int c = first; c < last; c++, tile += vectors * LANES) {
    Vec weight[9];
    for (int k = 0; k < 9; k++) weight[k] = broadcast(layer.depthwise_weights[c * 9 + k]);
    const Vec bias = broadcast(layer.depthwise_bias[c]);
    for (int64_t p = start; p < end;) {
      if (p >= pixels) {
        std::fill(tile + (p - start), tile + (end - start), 0.0f);
        break;
      }
      const int image = p / size, y = p % size / layer.out_width, x = p % layer.out_width;
      const int count = std::min<int64_t>({layer.out_width - x, end - p, LANES});
      const float* in = layer.in + c * layer.in_channel_stride + image * layer.in_batch_stride +
                        (int64_t)(2 * y - 1) * width + 2 * x - 1;
      const Mask left = x == 0 ? ALL - 1 : ALL;
      const Mask right = 2 * (x + count) > width ? ALL >> (LANES - count + 1) : ALL;
      Vec sum = bias;
      for (int k = 0; k < 3; k++, in += width) {
        if (2 * y + k - 1 < 0 || 2 * y + k - 1 >= layer.in_height) continue;
        Vec even, odd;
        load_pairs(in, even, odd);
        sum = fma(weight[k * 3], masked(even, left), sum);
        sum = fma(weight[k * 3 + 1], odd, sum);
        sum = fma(weight[k * 3 + 2], behind(even, broadcast(in[2 * LANES]), right), sum);
      }
      store(tile + (p - start), max(low, sum), ALL >> (LANES - count));
      p += count;
    }
  }
}

}  // namespace

void depthwise(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile) {
  (layer.stride == 1 ? stride_1 : stride_2)(layer, vectors, start, first, last, tile);
}
