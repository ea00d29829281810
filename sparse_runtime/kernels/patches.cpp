// The pixels that a convolution's kernel sees: tile row (channel, ky, kx) holds in[channel]
// shifted.
#include "convolution.h"

namespace {

// Of 3x3 with stride 1 and padding 1: pixels behind each other, whatever row they are in.
void flat(const Convolution& op, const Tile& tile, int first, int last, float* to) {
  const Neighbours* there = op.neighbours + tile.start / LANES;
  for (int t = first; t < last; t++, to += tile.stride) {
    const int ky = t % 9 / 3, kx = t % 3;
    const float* from = op.in.channel(t / 9) + tile.start + (ky - 1) * op.in.width + kx - 1;
    for (int v = 0; v < tile.vectors; v++) {
      const Mask rows = ky == 0 ? there[v].above : ky == 1 ? ALL : there[v].below;
      const Mask inside = rows & (kx == 0 ? there[v].left : kx == 1 ? ALL : there[v].right);
      const float* pixels = from + v * LANES;
      store(to + v * LANES, inside == ALL ? load(pixels) : load(pixels, inside));
    }
  }
}

}  // namespace

void patches(const Convolution& op, const Tile& tile, int first, int last, float* scratch,
             float* to) {
  if (op.neighbours) return flat(op, tile, first, last, to);
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
