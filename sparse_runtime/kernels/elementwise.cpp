// What is computed of each value by itself. The last vector of a channel may reach behind its last
// pixel, into what no picture has.
#include "activation.h"
#include "step.h"

struct Binary {
  Tensor left, right, out;
  Activation activation;
};

struct Scale {
  Tensor in, out;
  Activation activation;
  const float *scale, *shift;
};

extern "C" {

int binary_size() { return sizeof(Binary); }

int scale_size() { return sizeof(Scale); }

void add(const void* of, const Part& part) {
  const Binary& op = *static_cast<const Binary*>(of);
  for (int64_t c = part.begin(op.out.channels); c < part.end(op.out.channels); c++) {
    const float *left = op.left.channel(c), *right = op.right.channel(c);
    float* out = op.out.channel(c);
    for (int64_t p = 0; p < op.out.pixels(); p += LANES)
      store(out + p, activate(op.activation, add(load(left + p), load(right + p))));
  }
}

void multiply(const void* of, const Part& part) {
  const Binary& op = *static_cast<const Binary*>(of);
  const int64_t size = (int64_t)op.out.height * op.out.width;
  const bool one = (int64_t)op.right.height * op.right.width < size;  // value a channel
  for (int64_t c = part.begin(op.out.channels); c < part.end(op.out.channels); c++) {
    const float *left = op.left.channel(c), *right = op.right.channel(c);
    float* out = op.out.channel(c);
    for (int64_t p = 0; p < op.out.pixels();) {
      const int64_t picture = p / size;
      const int64_t end = one ? (picture + 1) * size : op.out.pixels();
      const Vec factor = broadcast(right[picture]);
      for (; p < end; p += LANES)  // beyond `end` begins what comes next
        store(out + p,
              activate(op.activation, multiply(load(left + p), one ? factor : load(right + p))));
      p = end;
    }
  }
}

void scale(const void* of, const Part& part) {
  const Scale& op = *static_cast<const Scale*>(of);
  for (int64_t c = part.begin(op.out.channels); c < part.end(op.out.channels); c++) {
    const float* in = op.in.channel(c);
    float* out = op.out.channel(c);
    const Vec scale = broadcast(op.scale[c]), shift = broadcast(op.shift[c]);
    for (int64_t p = 0; p < op.out.pixels(); p += LANES)
      store(out + p, activate(op.activation, multiply_add(scale, load(in + p), shift)));
  }
}
}
