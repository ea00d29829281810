// The pixels that a convolution's kernel sees: tile row (channel, ky, kx) holds in[channel]
// shifted.
#include <algorithm>

#include "layer.h"

namespace {

// out[i] = in[x + i * STRIDE], 0 outside of [0, width).
template <int STRIDE>
void shifted(const float* in, int x, int width, int count, float* out) {
  int i = 0;
  for (; i < count && x + i * STRIDE < 0; i++) out[i] = 0;
  const int inside = std::min(count, (width - x + STRIDE - 1) / STRIDE);
  for (; i + LANES < inside; i += LANES) {
    Vec here, between;
    if (STRIDE == 1)
      here = load(in + x + i);
    else
      load_pairs(in + x + 2 * i, here, between);
    store(out + i, here);
  }
  for (; i < inside; i++) out[i] = in[x + i * STRIDE];
  for (; i < count; i++) out[i] = 0;
}

}  // namespace

void patches(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile) {
  const int size = layer.out_height * layer.out_width, k = layer.kernel;
  const int64_t pixels = (int64_t)layer.batch * size, end = start + vectors * LANES;
  for (int t = first; t < last; t++, tile += vectors * LANES) {
    const int c = t / (k * k), ky = t / k % k, kx = t % k;
    for (int64_t p = start; p < end;) {
      if (p >= pixels) {
        std::fill(tile + (p - start), tile + (end - start), 0.0f);
        break;
      }
      const int image = p / size, y = p % size / layer.out_width, x0 = p % layer.out_width;
      const int count = std::min<int64_t>(layer.out_width - x0, end - p);
      const int row = y * layer.stride + ky - layer.padding;
      float* out = tile + (p - start);
      if (row < 0 || row >= layer.in_height) {
        std::fill(out, out + count, 0.0f);
      } else {
        const float* in = layer.in + c * layer.in_channel_stride + image * layer.in_batch_stride +
                          (int64_t)row * layer.in_width;
        const int from = x0 * layer.stride + kx - layer.padding;
        (layer.stride == 1 ? shifted<1> : shifted<2>)(in, from, layer.in_width, count, out);
      }
      p += count;
    }
  }
}

void copy_pixels(const Layer& layer, int vectors, int64_t start, int first, int last, float* tile) {
  for (int c = first; c < last; c++, tile += vectors * LANES) {
    const float* in = layer.in + c * layer.in_channel_stride + start;
    std::copy(in, in + vectors * LANES, tile);
  }
}
