// What every operator is to the threads that run it. The Python side holds the same structures.
#pragma once

#include <cstdint>

#include "simd.h"

// Activations lie channel by channel, the pictures of a batch behind each other within a channel:
// [C][B * H * W]. A channel begins at a multiple of 16 floats, 32 at least behind the last pixel of
// the one before (where it has more than one): kernels load and store whole vectors, and what lies
// beside a picture is loaded and dropped.
struct Tensor {
  float* data;
  int64_t stride;  // floats from a channel to the next
  int32_t pictures, channels, height, width;

  int64_t pixels() const { return (int64_t)pictures * height * width; }
  float* channel(int64_t c) const { return data + c * stride; }
};

// Which thread computes its share of an operator's result.
struct Part {
  int32_t thread, threads;
  float* scratch;  // this thread's own

  // The thread's share of so many channels.
  int64_t begin(int64_t channels) const { return channels * thread / threads; }
  int64_t end(int64_t channels) const { return channels * (thread + 1) / threads; }
};

struct Task {
  void (*run)(const void* op, const Part& part);
  const void* op;
  int32_t wait;  // whether the next task needs the result
};
