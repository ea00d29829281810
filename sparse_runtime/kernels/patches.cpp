// The pixels that a convolution's kernel sees: tile row (channel, ky, kx) holds in[channel]
// shifted.
#include "convolution.h"

void patches(const Convolution& op, const Tile& tile, int first, int last, float* scratch,
             float* to) {
  const Window& window = op.window;
  const int size = window.kernel_height * window.kernel_width, width = op.out.width;
  const int64_t end = std::min(tile.start + tile.vectors * LANES, op.out.pixels());
  pieces(op.out, tile.start, end, [&](const Piece& piece) {
    Rows rows(window, op.in, op.out, piece, scratch, op.rows_size);
    rows.each(first / size, (last - 1) / size + 1, 0, [&](int64_t channel) {
      const int64_t begin = channel * size;
      for (int64_t k = std::max<int64_t>(first, begin); k < std::min<int64_t>(last, begin + size);
           k++) {
        const int ky = (k - begin) / window.kernel_width, kx = (k - begin) % window.kernel_width;
        float* row = to + (k - first) * tile.stride;
        piece.rows(width, [&](int y, int x, int count, int64_t offset) {
          const float* from = rows.at(y, ky, kx) + x;
          for (int first = 0; first < count; first += LANES) {
            const int i = last_whole(first, count);
            store(row + offset + i, load(from + i));
          }
        });
      }
    });
  });
}
