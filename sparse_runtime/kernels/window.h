// What operators with a moving window have in common.
#pragma once

#include <algorithm>

#include "step.h"

struct Window {
  int32_t kernel_height, kernel_width, stride_height, stride_width, top, left;
};

// Pixels of a result that lie in one picture.
struct Piece {
  int64_t picture;
  int first, last;  // of the picture
  int64_t offset;   // of the first one among all pixels that are asked for

  // Calls f(y, x, count, offset) for what is in each row.
  template <class F>
  void rows(int width, F f) const {
    int64_t to = offset;
    int y = first / width, x = first % width;
    for (int left = last - first; left > 0; y++, x = 0) {
      const int count = std::min(width - x, left);
      f(y, x, count, to);
      left -= count, to += count;
    }
  }
};

// Calls f(piece) for what pixels [start, end) of `out` have in each picture.
template <class F>
void pieces(const Tensor& out, int64_t start, int64_t end, F f) {
  const int size = out.height * out.width;
  for (int64_t p = start; p < end;) {
    const int64_t picture = p / size, last = std::min(end, (picture + 1) * size);
    f(Piece{picture, int(p - picture * size), int(last - picture * size), p - start});
    p = last;
  }
}

// Pixels of a tile that lie in one row of a picture.
struct Segment {
  int64_t picture;
  int y, x, count;
  int64_t offset;  // of the first one in the tile
};

// What a tile, or the piece of it that is in one picture, consists of; found once, not a channel.
class Segments {
 public:
  Segments(const Tensor& out, const Piece& piece) { append(out, piece); }
  Segments(const Tensor& out, int64_t start, int64_t end) {
    pieces(out, start, end, [&](const Piece& piece) { append(out, piece); });
  }

  const Segment* begin() const { return all_; }
  const Segment* end() const { return all_ + count_; }

 private:
  void append(const Tensor& out, const Piece& piece) {
    piece.rows(out.width, [&](int y, int x, int count, int64_t offset) {
      all_[count_++] = {piece.picture, y, x, count, offset};
    });
  }

  Segment all_[MAX_VECTORS * LANES];
  int count_ = 0;
};

// Where the vector begins that holds column `begin`: the last one of a row is moved back, so that
// it does not reach into the next row. In rows shorter than a vector it does.
inline int last_whole(int begin, int count) {
  return begin + LANES > count && count >= LANES ? count - LANES : begin;
}

// Rows of a channel, with what lies around the picture where a window needs it. What windows see
// that lie side by side is side by side here, too: with a stride of s, columns s apart.
class Rows {
 public:
  // For what a piece of `out` is made of; `scratch` has `size` floats: rows_size() of operator.py.
  Rows(const Window& window, const Tensor& in, const Tensor& out, const Piece& piece,
       float* scratch, int64_t size)
      : window_(window),
        in_(in),
        piece_(piece),
        first_(piece.first / out.width),
        used_(out.width + (window.kernel_width - 1) / window.stride_width),
        phase_((used_ + 2 * LANES - 1) / LANES * LANES),
        scratch_(scratch) {
    const int count = (piece.last - 1) / out.width - first_;
    rows_ = count * window.stride_height + window.kernel_height;
    at_once_ = std::clamp<int64_t>(size / (rows_ * pitch()), 1, 8);
  }

  // Calls f(channel) for channels [first, last), while at() gives that one's rows. They are filled
  // some channels ahead: a processor waits where it loads what it has just stored, cut otherwise.
  template <class F>
  void each(int64_t first, int64_t last, float outside, F f) {
    for (int64_t from = first; from < last; from += at_once_) {
      const int64_t to = std::min(from + at_once_, last);
      data_ = scratch_;
      for (int64_t c = from; c < to; c++, data_ += rows_ * pitch()) fill(c, outside);
      data_ = scratch_;
      for (int64_t c = from; c < to; c++, data_ += rows_ * pitch()) f(c);
    }
  }

  // What the windows of the result's row y have in their row ky and column kx.
  const float* at(int y, int ky, int kx) const {
    const int s = window_.stride_width;
    return data_ + ((y - first_) * window_.stride_height + ky) * pitch() + kx % s * phase_ + kx / s;
  }

  int64_t pitch() const { return (int64_t)phase_ * window_.stride_width; }  // to the next row
  int64_t phase() const { return phase_; }  // to what windows have one column further on

 private:
  void fill(int64_t channel, float outside) {
    const float* picture = in_.channel(channel) + piece_.picture * in_.height * in_.width;
    float* to = data_;
    const int begin = first_ * window_.stride_height - window_.top;
    for (int y = begin; y < begin + rows_; y++, to += pitch())
      if (y < 0 || y >= in_.height)
        std::fill_n(to, pitch(), outside);
      else
        fill_row(picture + (int64_t)y * in_.width, to, outside);
  }

  void fill_row(const float* row, float* to, float outside) const {
    const int s = window_.stride_width, left = window_.left, width = in_.width;
    if (s == 1) {
      for (int x = 0; x < std::min(width, used_ - left); x += LANES)
        store(to + left + x, load(row + x));
    } else if (s == 2) {
      for (int p = left / 2; p < std::min(used_, (left + width + 1) / 2); p += LANES) {
        Vec even, odd;
        load_pairs(row + 2 * p - left, even, odd);
        store(to + p, even), store(to + phase_ + p, odd);
      }
    } else {
      for (int x = 0; x < width && (left + x) / s < used_; x++)
        to[(left + x) % s * phase_ + (left + x) / s] = row[x];
    }
    for (int phase = 0; phase < s; phase++, to += phase_) {
      for (int p = 0; p * s + phase < left; p++) to[p] = outside;
      for (int p = (left + width - phase + s - 1) / s; p < used_; p++) to[p] = outside;
    }
  }

  const Window& window_;
  const Tensor& in_;
  const Piece& piece_;
  const int first_;  // row of the result
  const int used_;   // columns of a phase that windows see
  const int phase_;  // columns of a phase: vectors may reach a little further
  int rows_;         // of the input
  int64_t at_once_;  // channels
  float* const scratch_;
  float* data_ = nullptr;
};
