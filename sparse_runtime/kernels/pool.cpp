// The largest and the mean value under a window; the mean of a channel over each picture.
#include "window.h"

struct Pool {
  Tensor in, out;
  Window window;
  // One over the number of rows and of columns under the window that lie in the picture, by the
  // result's row and column; null: the largest value.
  const float *of_rows, *of_columns;
};

namespace {

template <bool MEAN>
void pool(const Pool& op, const Part& part) {
  const Tensor &in = op.in, &out = op.out;
  const Window& window = op.window;
  const Vec outside = broadcast(MEAN ? 0.0f : -__builtin_inff());
  for (int64_t c = part.begin(out.channels); c < part.end(out.channels); c++)
    for (int64_t line = 0; line < (int64_t)out.pictures * out.height; line++) {
      const int64_t picture = line / out.height;
      const int y = line % out.height, top = y * window.stride_height - window.top;
      const float* rows = in.channel(c) + picture * in.height * in.width;
      // The last vector of a line may reach into the next one, which comes later.
      for (int x = 0; x < out.width; x += LANES) {
        Vec found = outside;
        for (int row = top; row < top + window.kernel_height; row++) {
          if (row < 0 || row >= in.height) continue;
          for (int k = 0; k < window.kernel_width; k++) {
            const Vec here = row_values(rows + (int64_t)row * in.width,
                                        x * window.stride_width + k - window.left, in.width,
                                        window.stride_width, outside);
            found = MEAN ? add(found, here) : max(found, here);
          }
        }
        if (MEAN) {
          const Mask mask = first_lanes(out.width - x);
          const Vec of_columns = load(op.of_columns + x, mask);
          found = multiply(found, multiply(broadcast(op.of_rows[y]), of_columns));
        }
        store(out.channel(c) + line * out.width + x, found);
      }
    }
}

}  // namespace

extern "C" {

void max_pool(const void* op, const Part& part) {
  pool<false>(*static_cast<const Pool*>(op), part);
}

void average_pool(const void* op, const Part& part) {
  pool<true>(*static_cast<const Pool*>(op), part);
}

void mean(const void* of, const Part& part) {
  const Pool& op = *static_cast<const Pool*>(of);
  const int size = op.in.height * op.in.width;
  for (int64_t c = part.begin(op.out.channels); c < part.end(op.out.channels); c++)
    for (int b = 0; b < op.in.pictures; b++) {
      const float* in = op.in.channel(c) + (int64_t)b * size;
      Vec sums = broadcast(0);
      for (int i = 0; i < size; i += LANES) sums = add(sums, load(in + i, first_lanes(size - i)));
      float parts[LANES];
      store(parts, sums);
      double sum = 0;
      for (float one : parts) sum += one;
      op.out.channel(c)[b] = sum / size;
    }
}
}
