// Depthwise convolutions: of the pixels of a tile, or of all.
#include <algorithm>

#include "convolution.h"

namespace {

// 3x3, stride 1, padding 1. Each of the three rows is loaded once a vector; its left and right
// neighbours are shifted out of the vectors around it.
void stride_1(const Depthwise& op, int vectors, int64_t start, int first, int last, float* tile) {
  const int width = op.in.width;
  const Neighbours* there = op.neighbours + start / LANES;
  for (int c = first; c < last; c++) {
    const float* in = op.in.channel(c) + start;
    Vec weight[9], before_[3], here[3];
    for (int k = 0; k < 9; k++) weight[k] = broadcast(op.weights[c * 9 + k]);
    before_[0] = load(in - width - LANES, start ? there[-1].above : Mask(0));
    before_[1] = load(in - LANES);
    before_[2] = load(in + width - LANES, start ? there[-1].below : Mask(0));
    here[0] = load(in - width, there[0].above);
    here[1] = load(in);
    here[2] = load(in + width, there[0].below);
    const Vec bias = broadcast(op.bias[c]);
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
      store(tile, activate(op.activation, sum));
    }
  }
}

// Any window. STRIDE 0: any.
template <int STRIDE, int KERNEL>
void any(const Depthwise& op, int vectors, int64_t start, int first, int last, float* tile) {
  const Tensor& in = op.in;
  const Window& window = op.window;
  const Runs runs(in, op.out, window, vectors, start);
  const int stride = STRIDE ? STRIDE : window.stride_width;
  const int height = KERNEL ? KERNEL : window.kernel_height;
  const int width = KERNEL ? KERNEL : window.kernel_width;
  const Vec zero = broadcast(0);
  for (int c = first; c < last; c++) {
    const float* weights = op.weights + (int64_t)c * height * width;
    for (const Run& run : runs) {
      // The last vector of a run may reach into the next one, which comes later.
      for (int i = 0; i < run.count; i += LANES) {
        Vec sum = broadcast(op.bias[c]);
        for (int y = 0; y < height; y++) {
          if (run.row + y < 0 || run.row + y >= in.height) continue;
          const float* row = in.channel(c) + run.in + (int64_t)y * in.width;
          for (int x = 0; x < width; x++)
            sum = multiply_add(
                broadcast(weights[y * width + x]),
                row_values(row, (run.x + i) * stride + x - window.left, in.width, stride, zero),
                sum);
        }
        store(tile + i, activate(op.activation, sum));
      }
      tile += run.count;
    }
    tile += runs.beyond;  // whatever is there: no picture's pixels
  }
}

}  // namespace

void depthwise_tile(const Depthwise& op, int vectors, int64_t start, int first, int last,
                    float* tile) {
  const Window& window = op.window;
  const int stride = window.stride_width, kernel = window.kernel_width;
  const bool square = window.kernel_height == kernel;
  const auto compute = op.neighbours                          ? stride_1
                       : stride == 1 && square && kernel == 3 ? any<1, 3>
                       : stride == 1 && square && kernel == 5 ? any<1, 5>
                       : stride == 2 && square && kernel == 3 ? any<2, 3>
                       : stride == 2 && square && kernel == 5 ? any<2, 5>
                                                              : any<0, 0>;
  compute(op, vectors, start, first, last, tile);
}

extern "C" void depthwise(const void* of, const Part& part) {
  const Depthwise& op = *static_cast<const Depthwise*>(of);
  const int64_t vectors = (op.out.pixels() + LANES - 1) / LANES;
  for (int64_t c = part.begin(op.out.channels); c < part.end(op.out.channels); c++)
    for (int64_t v = 0; v < vectors; v += MAX_VECTORS)
      depthwise_tile(op, std::min<int64_t>(MAX_VECTORS, vectors - v), v * LANES, c, c + 1,
                     op.out.channel(c) + v * LANES);
}
