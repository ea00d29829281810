// What operators with a moving window have in common.
#pragma once

#include "step.h"

struct Window {
  int32_t kernel_height, kernel_width, stride_height, stride_width, top, left;
};

// The values row[x], row[x + stride], ...; `outside` for those outside of [0, width).
inline Vec row_values(const float* row, int x, int width, int stride, Vec outside) {
  const int last = x + (LANES - 1) * stride;
  if (last < 0 || x >= width) return outside;
  if (stride > 2 || x < -LANES) {
    float lanes[LANES];
    store(lanes, outside);
    for (int i = 0; i < LANES; i++, x += stride)
      if (x >= 0 && x < width) lanes[i] = row[x];
    return load(lanes);
  }
  Vec here, between;
  if (stride == 1)
    here = load(row + x);
  else
    load_pairs(row + x, here, between);
  if (x >= 0 && last < width) return here;
  const Mask left = x < 0 ? first_lanes((stride - 1 - x) / stride) : Mask(0);
  return select(first_lanes((width - x + stride - 1) / stride) & ~left, here, outside);
}

// Pixels of a tile that lie side by side in a picture.
struct Run {
  int64_t in;         // floats from a channel's beginning to the first row under the window
  int row, x, count;  // that row; first pixel in its row; pixels
};

// Those of the tile of V vectors that begins at pixel `start` of `out`.
class Runs {
 public:
  int beyond;  // pixels of the tile behind the last picture

  Runs(const Tensor& in, const Tensor& out, const Window& window, int vectors, int64_t start) {
    const int size = out.height * out.width;
    const int64_t pixels = out.pixels(), end = start + vectors * LANES;
    int64_t p = start;
    for (; p < end && p < pixels; p += runs_[count_++].count) {
      const int64_t picture = p / size;
      const int y = p % size / out.width, x = p % size % out.width;
      const int row = y * window.stride_height - window.top;
      const int64_t begin = (picture * in.height + row) * in.width;
      const int64_t count = out.width - x < end - p ? out.width - x : end - p;
      runs_[count_] = {begin, row, x, (int)count};
    }
    beyond = end - p;
  }

  const Run* begin() const { return runs_; }
  const Run* end() const { return runs_ + count_; }

 private:
  Run runs_[MAX_VECTORS * LANES];
  int count_ = 0;
};
