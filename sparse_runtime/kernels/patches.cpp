// The pixels that a convolution's kernel sees: tile row (channel, ky, kx) holds in[channel]
// shifted.
#include "convolution.h"

void patches(const Convolution& op, const Tile& tile, int first, int last, float* scratch,
             float* to) {
  const Window& window = op.window;
  const int size = window.kernel_height * window.kernel_width;
  const int64_t end = std::min(tile.start + tile.vectors * LANES, op.out.pixels());
  pieces(op.out, tile.start, end, [&](const Piece& piece) {
    const Segments segments(op.out, piece);
    Rows rows(window, op.in, op.out, piece, scratch, op.rows_size);
    rows.each(first / size, (last - 1) / size + 1, 0, [&](int64_t channel) {
      const int from = std::max<int>(first, channel * size);
      const int to_row = std::min<int>(last, (channel + 1) * size);
      for (int t = from; t < to_row; t++) {
        const int ky = t % size / window.kernel_width, kx = t % size % window.kernel_width;
        float* row = to + (t - first) * tile.stride;
        for (const Segment& s : segments) {
          const float* seen = rows.at(s.y, ky, kx) + s.x;
          for (int begin = 0; begin < s.count; begin += LANES) {
            const int i = last_whole(begin, s.count);
            store(row + s.offset + i, load(seen + i));
          }
        }
      }
    });
  });
}
