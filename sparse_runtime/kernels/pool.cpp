// The largest and the mean value under a window; the mean of a channel over each picture.
#include "window.h"

struct Pool {
  Tensor in, out;
  Window window;
  int64_t strip, rows_size;  // pixels that are computed at once; floats that Rows has for them
  // One over the number of rows and of columns under the window that lie in the picture, by the
  // result's row and column; null: the largest value.
  const float *of_rows, *of_columns;
};

namespace {

template <bool MEAN>
void pool(const Pool& op, const Part& part) {
  const Window& window = op.window;
  const float outside = MEAN ? 0.0f : -__builtin_inff();
  const int width = op.out.width;
  for (int64_t start = 0; start < op.out.pixels(); start += op.strip)
    pieces(op.out, start, std::min(start + op.strip, op.out.pixels()), [&](const Piece& piece) {
      Rows rows(window, op.in, op.out, piece, part.scratch, op.rows_size);
      const int64_t channels = op.out.channels;
      rows.each(part.begin(channels), part.end(channels), outside, [&](int64_t c) {
        piece.rows(width, [&](int y, int x, int count, int64_t offset) {
          // The last vector may reach into the next row, which comes later.
          for (int i = x; i < x + count; i += LANES) {
            Vec found = broadcast(outside);
            for (int ky = 0; ky < window.kernel_height; ky++)
              for (int kx = 0; kx < window.kernel_width; kx++) {
                const Vec here = load(rows.at(y, ky, kx) + i);
                found = MEAN ? add(found, here) : max(found, here);
              }
            if (MEAN) {
              const Vec of_columns = load(op.of_columns + i, first_lanes(width - i));
              found = multiply(found, multiply(broadcast(op.of_rows[y]), of_columns));
            }
            store(op.out.channel(c) + start + offset + (i - x), found);
          }
        });
      });
    });
}

}  // namespace

extern "C" {

int pool_size() { return sizeof(Pool); }

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
