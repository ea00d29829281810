// Depthwise 3x3, padding 1, of the pixels of a tile.
#include "layer.h"

namespace {

// Each of the three rows is loaded once a vector; its left and right neighbours are shifted out of
// the vectors around it.
void stride_1(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile) {
  const int width = layer.in_width;
  const Neighbours* there = layer.neighbours + start / LANES;
  const Vec low = broadcast(layer.depthwise_relu ? 0.0f : -__builtin_inff());
  for (int c = first; c < last; c++) {
    const float* in = layer.in + c * layer.in_channel_stride + start;
    Vec weight[9], before_[3], here[3];
    for (int k = 0; k < 9; k++) weight[k] = broadcast(layer.depthwise_weights[c * 9 + k]);
    before_[0] = load(in - width - LANES, start ? there[-1].above : Mask(0));
    before_[1] = load(in - LANES);
    before_[2] = load(in + width - LANES, start ? there[-1].below : Mask(0));
    here[0] = load(in - width, there[0].above);
    here[1] = load(in);
    here[2] = load(in + width, there[0].below);
    const Vec bias = broadcast(layer.depthwise_bias[c]);
    for (int v = 0; v < vectors; v++, in += LANES, tile += LANES) {
      const Neighbours &now = there[v], &soon = there[v + 1];
      const Vec next[3] = {load(in - width + LANES, soon.above), load(in + LANES),
                           load(in + width + LANES, soon.below)};
      // Three sums: at the edges of a picture those of the left and right neighbours do not count.
      Vec sum = bias, left = broadcast(0), right = broadcast(0);
#pragma GCC unroll 3
      for (int y = 0; y < 3; y++) {
        left = multiply_add(weight[y * 3], before(before_[y], here[y]), left);
        sum = multiply_add(weight[y * 3 + 1], here[y], sum);
        right = multiply_add(weight[y * 3 + 2], behind(here[y], next[y]), right);
        before_[y] = here[y], here[y] = next[y];
      }
      sum = add(sum, add(masked(left, now.left), masked(right, now.right)));
      store(tile, max(low, sum));
    }
  }
}

void stride_2(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile) {
  const int width = layer.in_width;
  const Runs runs(layer, vectors, start);
  const Vec low = broadcast(layer.depthwise_relu ? 0.0f : -__builtin_inff());
  for (int c = first; c < last; c++) {
    Vec weight[9];
    for (int k = 0; k < 9; k++) weight[k] = broadcast(layer.depthwise_weights[c * 9 + k]);
    const Vec bias = broadcast(layer.depthwise_bias[c]);
    for (const Run& run : runs) {
      const float* in = layer.in + c * layer.in_channel_stride + run.in;
      // The last vector of a run may reach into the next one, which comes later.
      for (int x = run.x; x < run.x + run.count; x += LANES) {
        const Mask left = x == 0 ? ALL - 1 : ALL, right = first_lanes((width - 2 * x) / 2);
        Vec sum = bias;
#pragma GCC unroll 3
        for (int k = 0; k < 3; k++) {
          if (run.row + k < 0 || run.row + k >= layer.in_height) continue;
          const float* p = in + k * width + 2 * x;
          Vec here, behind;
          load_pairs(p, here, behind);
          sum = multiply_add(weight[k * 3], masked(before(broadcast(p[-1]), behind), left), sum);
          sum = multiply_add(weight[k * 3 + 1], here, sum);
          sum = multiply_add(weight[k * 3 + 2], masked(behind, right), sum);
        }
        store(tile + (x - run.x), max(low, sum));
      }
      tile += run.count;
    }
    tile += runs.beyond;  // whatever is there: no picture's pixels
  }
}

}  // namespace

void depthwise(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile) {
  (layer.stride == 1 ? stride_1 : stride_2)(layer, vectors, start, first, last, tile);
}
