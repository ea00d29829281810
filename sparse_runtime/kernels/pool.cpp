// The mean of a channel over each picture.
#include "layer.h"

void pool(const Layer& layer, int first, int last) {
  const int size = layer.in_height * layer.in_width;
  for (int c = first; c < last; c++)
    for (int b = 0; b < layer.batch; b++) {
      const float* in = layer.in + c * layer.in_channel_stride + b * layer.in_batch_stride;
      Vec sums = broadcast(0);
      for (int i = 0; i < size; i += LANES) sums = add(sums, load(in + i, first_lanes(size - i)));
      float parts[LANES];
      store(parts, sums);
      double sum = 0;
      for (float part : parts) sum += part;
      layer.out[c * layer.out_stride + b] = sum / size;
    }
}
