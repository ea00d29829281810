// Depthwise convolutions of a part of the pixels, or of all.
#include "convolution.h"

namespace {

// KERNEL and STRIDE, of both directions, are 0 for any. ROWS rows of the result are computed at
// once and share what they load.
template <int KERNEL, int STRIDE, int ROWS>
void piece_of(const Depthwise& op, const Piece& piece, const Rows& rows, int64_t channel,
              float* to) {
  const Window& window = op.window;
  const int height = KERNEL ? KERNEL : window.kernel_height;
  const int width = KERNEL ? KERNEL : window.kernel_width;
  const int stride_y = STRIDE ? STRIDE : window.stride_height;
  const int stride_x = STRIDE ? STRIDE : window.stride_width;
  const float* const weights = op.weights + channel * height * width;
  const Vec bias = broadcast(op.bias[channel]);
  Vec kept[KERNEL == 3 ? 9 : 1];  // as many as fit the registers
  if (KERNEL == 3)
#pragma GCC unroll 9
    for (int k = 0; k < 9; k++) kept[k] = broadcast(weights[k]);
  const int64_t pitch = rows.pitch(), phase = rows.phase();

  const auto compute = [&](auto count_of_rows, int y, int x, int count,
                           float* out) __attribute__((always_inline)) {
    constexpr int R = decltype(count_of_rows)::value;
    const float* const first = rows.at(y, 0, 0) + x;
    for (int begin = 0; begin < count; begin += LANES) {
      const int i = last_whole(begin, count);
      Vec sums[R];
      for (Vec& sum : sums) sum = bias;
#pragma GCC unroll 16
      for (int k = 0; k < (R - 1) * stride_y + height; k++) {
        const float* row = first + k * pitch + i;
#pragma GCC unroll 8
        for (int kx = 0; kx < width; kx++) {
          const Vec pixels = load(row + kx % stride_x * phase + kx / stride_x);
#pragma GCC unroll 4
          for (int r = 0; r < R; r++) {
            const int ky = k - r * stride_y;
            if (ky < 0 || ky >= height) continue;
            const int at = ky * width + kx;
            sums[r] =
                multiply_add(KERNEL == 3 ? kept[at] : broadcast(weights[at]), pixels, sums[r]);
          }
        }
      }
      for (int r = 0; r < R; r++)
        store(out + (int64_t)r * op.out.width + i, activate(op.activation, sums[r]));
    }
  };

  const int columns = op.out.width;
  int next = 0;  // the first row that is not computed
  piece.rows(columns, [&](int y, int x, int count, int64_t offset) {
    if (y < next) return;
    if (x == 0 && (y + ROWS) * columns <= piece.last) {
      compute(std::integral_constant<int, ROWS>(), y, x, count, to + offset);
      next = y + ROWS;
    } else {
      compute(std::integral_constant<int, 1>(), y, x, count, to + offset);
    }
  });
}

// 3x3 with stride 1 and padding 1, on pixels behind each other, whatever row they are in.
void flat(const Depthwise& op, int64_t start, int64_t end, int64_t channel, float* to) {
  const int64_t width = op.in.width;
  const float* in = op.in.channel(channel) + start;
  Vec weights[9];
#pragma GCC unroll 9
  for (int k = 0; k < 9; k++) weights[k] = broadcast(op.weights[channel * 9 + k]);
  const Vec bias = broadcast(op.bias[channel]);
  const auto inside = [](const Neighbours& there, int y) {
    return y == 0 ? there.above : y == 1 ? ALL : there.below;
  };
  const Neighbours* there = op.neighbours + start / LANES;
  const auto row = [&](int y, int v) {  // of the vector v behind this one
    return SHIFTS ? load(in + (y - 1) * width + v * LANES, inside(there[v], y)) : bias;
  };
  Vec before[3] = {row(0, -1), row(1, -1), row(2, -1)}, here[3] = {row(0, 0), row(1, 0), row(2, 0)};
  for (; start < end; start += LANES, in += LANES, to += LANES, there++) {
    // Three sums: at the edges of a picture those of the left and right neighbours do not count.
    Vec sums[3] = {broadcast(0), bias, broadcast(0)};
#pragma GCC unroll 3
    for (int y = 0; y < 3; y++) {
      Vec pixels[3];
      if (SHIFTS) {
        const Vec next = row(y, 1);
        pixels[0] = shifted_in(before[y], here[y]), pixels[1] = here[y];
        pixels[2] = shifted_out(here[y], next);
        before[y] = here[y], here[y] = next;
      } else if (inside(there[0], y) == ALL) {
#pragma GCC unroll 3
        for (int x = 0; x < 3; x++) pixels[x] = load(in + (y - 1) * width + x - 1);
      } else {
#pragma GCC unroll 3
        for (int x = 0; x < 3; x++)
          pixels[x] = load(in + (y - 1) * width + x - 1, inside(there[0], y));
      }
#pragma GCC unroll 3
      for (int x = 0; x < 3; x++) sums[x] = multiply_add(weights[y * 3 + x], pixels[x], sums[x]);
    }
    sums[1] = add(sums[1], add(masked(sums[0], there->left), masked(sums[2], there->right)));
    store(to, activate(op.activation, sums[1]));
  }
}

// 3x3 with stride 2 and padding 1: the middle column of a window and the right one are the even and
// the odd floats of a row, the left one is the right one of the window before.
void halved(const Depthwise& op, const Segments& segments, int64_t channel, float* to) {
  const Tensor& in = op.in;
  Vec weights[9];
#pragma GCC unroll 9
  for (int k = 0; k < 9; k++) weights[k] = broadcast(op.weights[channel * 9 + k]);
  const Vec bias = broadcast(op.bias[channel]);
  for (const Segment& s : segments) {
    const int top = 2 * s.y - 1;
    const float* rows = in.channel(channel) + (s.picture * in.height + top) * in.width;
    // The last vector of a row may reach into the next one, which comes later.
    for (int x = s.x; x < s.x + s.count; x += LANES) {
      const Mask left = x == 0 ? ALL - 1 : ALL, right = first_lanes((in.width - 2 * x) / 2);
      Vec sum = bias;
#pragma GCC unroll 3
      for (int k = 0; k < 3; k++) {
        if (top + k < 0 || top + k >= in.height) continue;
        const float* p = rows + k * in.width + 2 * x;
        Vec middle, odd;
        load_pairs(p, middle, odd);
        const Vec before = shifted_in(broadcast(p[-1]), odd);
        sum = multiply_add(weights[k * 3], masked(before, left), sum);
        sum = multiply_add(weights[k * 3 + 1], middle, sum);
        sum = multiply_add(weights[k * 3 + 2], masked(odd, right), sum);
      }
      store(to + s.offset + (x - s.x), activate(op.activation, sum));
    }
  }
}

using PieceOf = void (*)(const Depthwise&, const Piece&, const Rows&, int64_t, float*);

PieceOf choose(const Window& w) {
  const bool square = w.kernel_height == w.kernel_width && w.stride_height == w.stride_width;
  const int kernel = w.kernel_width, stride = w.stride_width;
  if (square && kernel == 3 && stride == 2) return piece_of<3, 2, 2>;
  if (square && kernel == 5 && stride == 1) return piece_of<5, 1, 4>;
  if (square && kernel == 5 && stride == 2) return piece_of<5, 2, 2>;
  return piece_of<0, 0, 1>;
}

}  // namespace

void depthwise_tile(const Depthwise& op, const Tile& tile, int first, int last, float* to) {
  const int64_t end = std::min(tile.start + tile.vectors * LANES, op.out.pixels());
  if (op.neighbours) {
    for (int c = first; c < last; c++, to += tile.stride) flat(op, tile.start, end, c, to);
  } else {
    const Segments segments(op.out, tile.start, end);
    for (int c = first; c < last; c++, to += tile.stride) halved(op, segments, c, to);
  }
}

extern "C" int depthwise_size() { return sizeof(Depthwise); }

extern "C" void depthwise(const void* of, const Part& part) {
  const Depthwise& op = *static_cast<const Depthwise*>(of);
  const int64_t first = part.begin(op.out.channels), last = part.end(op.out.channels);
  if (op.neighbours) {
    for (int64_t c = first; c < last; c++) flat(op, 0, op.out.pixels(), c, op.out.channel(c));
    return;
  }
  const PieceOf piece_of = choose(op.window);
  for (int64_t start = 0; start < op.out.pixels(); start += op.strip)
    pieces(op.out, start, std::min(start + op.strip, op.out.pixels()), [&](const Piece& piece) {
      Rows rows(op.window, op.in, op.out, piece, part.scratch, op.rows_size);
      rows.each(first, last, 0,
                [&](int64_t c) { piece_of(op, piece, rows, c, op.out.channel(c) + start); });
    });
}
