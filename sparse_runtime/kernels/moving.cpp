// What moves values and computes none.
#include <algorithm>

#include "step.h"

struct Moved {
  Tensor in, out;
  const uint16_t* channels;  // of gather: the number of each channel in the input
  int32_t factor;            // of upsample
};

extern "C" {

int moved_size() { return sizeof(Moved); }

void gather(const void* of, const Part& part) {
  const Moved& op = *static_cast<const Moved*>(of);
  for (int64_t c = part.begin(op.out.channels); c < part.end(op.out.channels); c++) {
    const float* in = op.in.channel(op.channels ? op.channels[c] : c);
    std::copy(in, in + op.out.pixels(), op.out.channel(c));
  }
}

void flatten(const void* of, const Part& part) {
  const Moved& op = *static_cast<const Moved*>(of);
  const int64_t size = (int64_t)op.in.height * op.in.width;
  for (int64_t c = part.begin(op.out.channels); c < part.end(op.out.channels); c++)
    for (int b = 0; b < op.out.pictures; b++)
      op.out.channel(c)[b] = op.in.channel(c / size)[b * size + c % size];
}

void upsample(const void* of, const Part& part) {
  const Moved& op = *static_cast<const Moved*>(of);
  const int width = op.out.width;
  for (int64_t c = part.begin(op.out.channels); c < part.end(op.out.channels); c++)
    for (int64_t line = 0; line < (int64_t)op.out.pictures * op.out.height; line++) {
      const float* in = op.in.channel(c) + line / op.factor * op.in.width;
      float* out = op.out.channel(c) + line * width;
      if (line % op.factor > 0)
        std::copy(out - width, out, out);
      else
        for (int x = 0; x < op.in.width; x++, out += op.factor) std::fill_n(out, op.factor, in[x]);
    }
}
}
