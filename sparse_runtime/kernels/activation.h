// The functions that may follow an operator.
#pragma once

#include <cstring>

#include "simd.h"

enum ActivationKind : int32_t {
  NONE,
  RELU,
  RELU6,
  LEAKY_RELU,
  HARD_SIGMOID,
  HARD_SWISH,
  SIGMOID,
  SWISH
};

struct Activation {
  int32_t kind;
  float slope;  // of LEAKY_RELU below 0
};

// To some 1e-7 of the result, from -87 to 88: e^x = 2^n * e^r, the latter by its Taylor series.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float to_whole = 12582912.0f;  // 1.5 * 2^23: a sum with it has no fraction
  const float n = (x * 1.44269504f + to_whole) - to_whole;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float e = 1.0f / 5040;
  const float factors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (float factor : factors) e = e * r + factor;
  const uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;  // any of NaN, of which e is, too
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return e * power;
}

inline float sigmoid(float x) { return x < -88.0f ? 0.0f : 1.0f / (1.0f + exponential(-x)); }

inline Vec sigmoid(Vec x) {
  float lanes[LANES];
  store(lanes, x);
  for (float& lane : lanes) lane = sigmoid(lane);
  return load(lanes);
}

template <class T>
inline T activate(Activation activation, T x) {
  const T zero = broadcast_as<T>(0), one = broadcast_as<T>(1), sixth = broadcast_as<T>(1.0f / 6);
  const auto hard_sigmoid = [&] {
    return min(one, max(zero, multiply_add(x, sixth, broadcast_as<T>(0.5f))));
  };
  switch (activation.kind) {
    case RELU:
      return max(zero, x);
    case RELU6:
      return min(broadcast_as<T>(6), max(zero, x));
    case LEAKY_RELU:
      return add(max(zero, x), multiply(broadcast_as<T>(activation.slope), min(zero, x)));
    case HARD_SIGMOID:
      return hard_sigmoid();
    case HARD_SWISH:
      return multiply(x, hard_sigmoid());
    case SIGMOID:
      return sigmoid(x);
    case SWISH:
      return multiply(x, sigmoid(x));
    default:
      return x;
  }
}
