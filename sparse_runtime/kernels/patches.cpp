// The pixels that a convolution's kernel sees: tile row (channel, ky, kx) holds in[channel]
// shifted.
#include <algorithm>

#include "layer.h"

namespace {

// out[i] = in[x + i * STRIDE], 0 outside of [0, width). It may write up to a vector beyond `count`.
template <int STRIDE>
void shifted(const float* in, int x, int width, int count, float* out) {
  for (int i = 0; i < count; i += LANES, x += LANES * STRIDE) {
    Vec here, between;
    if (STRIDE == 1)
      here = load(in + x);
    else
      load_pairs(in + x, here, between);
    const Mask outside = x < 0 ? first_lanes((STRIDE - 1 - x) / STRIDE) : Mask(0);
    store(out + i, masked(here, first_lanes((width - x + STRIDE - 1) / STRIDE) & ~outside));
  }
}

}  // namespace

void patches(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile) {
  const Runs runs(layer, vectors, start);
  const int k = layer.kernel;
  for (int t = first; t < last; t++) {
    const int c = t / (k * k), ky = t / k % k, kx = t % k - layer.padding;
    const float* in = layer.in + c * layer.in_channel_stride + ky * layer.in_width;
    for (const Run& run : runs) {
      if (run.row + ky < 0 || run.row + ky >= layer.in_height)
        for (int i = 0; i < run.count; i += LANES) store(tile + i, broadcast(0));
      else
        (layer.stride == 1 ? shifted<1> : shifted<2>)(in + run.in, run.x * layer.stride + kx,
                                                      layer.in_width, run.count, tile);
      tile += run.count;
    }
    tile += runs.beyond;  // whatever is there: no picture's pixels
  }
}

void copy_pixels(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile) {
  for (int c = first; c < last; c++, tile += vectors * layer.lanes) {
    const float* in = layer.in + c * layer.in_channel_stride + start;
    std::copy(in, in + vectors * layer.lanes, tile);
  }
}
