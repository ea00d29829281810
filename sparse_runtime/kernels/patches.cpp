// The pixels that a convolution's kernel sees: tile row (channel, ky, kx) holds in[channel]
// shifted.
#include "convolution.h"

namespace {

// STRIDE 0: any.
template <int STRIDE>
void shifted(const Convolution& op, int vectors, int64_t start, int first, int last, float* tile) {
  const Tensor& in = op.in;
  const Window& window = op.window;
  const Runs runs(in, op.out, window, vectors, start);
  const int stride = STRIDE ? STRIDE : window.stride_width;
  const int size = window.kernel_height * window.kernel_width;
  const Vec zero = broadcast(0);
  for (int t = first; t < last; t++) {
    const int ky = t % size / window.kernel_width, kx = t % size % window.kernel_width;
    const float* channel = in.channel(t / size) + (int64_t)ky * in.width;
    for (const Run& run : runs) {
      const bool inside = run.row + ky >= 0 && run.row + ky < in.height;
      const int x = run.x * stride + kx - window.left;
      // The last vector of a run may reach into the next one, which comes later.
      for (int i = 0; i < run.count; i += LANES)
        store(tile + i,
              inside ? row_values(channel + run.in, x + i * stride, in.width, stride, zero) : zero);
      tile += run.count;
    }
    tile += runs.beyond;  // whatever is there: no picture's pixels
  }
}

}  // namespace

void patches(const Convolution& op, int vectors, int64_t start, int first, int last, float* tile) {
  const int stride = op.window.stride_width;
  (stride == 1   ? shifted<1>
   : stride == 2 ? shifted<2>
                 : shifted<0>)(op, vectors, start, first, last, tile);
}
