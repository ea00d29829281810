// One vector of floats in the widths of the host: AVX-512, AVX2, or plain C++ elsewhere.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

using Mask = uint16_t;  // a bit a pixel; masked loads give 0 where it is not set

#if defined(__AVX512F__)

constexpr int LANES = 16, REGISTERS = 32;

struct Vec {
  __m512 v;
};

inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const float* p, Mask mask) { return {_mm512_maskz_loadu_ps(mask, p)}; }
inline Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec multiply(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }

// The vector one float before b's first, where a holds what lies before b; and one behind a's.
inline Vec shifted_in(Vec a, Vec b) {
  return {_mm512_castsi512_ps(
      _mm512_alignr_epi32(_mm512_castps_si512(b.v), _mm512_castps_si512(a.v), 15))};
}
inline Vec shifted_out(Vec a, Vec b) {
  return {_mm512_castsi512_ps(
      _mm512_alignr_epi32(_mm512_castps_si512(b.v), _mm512_castps_si512(a.v), 1))};
}

// Of the 2 * LANES floats at p the first, third, ... and the second, fourth, ...
inline void load_pairs(const float* p, Vec& even, Vec& odd) {
  const __m512 low = _mm512_loadu_ps(p), high = _mm512_loadu_ps(p + 16);
  const __m512i i = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  even.v = _mm512_permutex2var_ps(low, i, high);
  odd.v = _mm512_permutex2var_ps(low, _mm512_add_epi32(i, _mm512_set1_epi32(1)), high);
}

inline Vec masked(Vec a, Mask mask) { return {_mm512_maskz_mov_ps(mask, a.v)}; }

// Four floats, and one of them in all lanes: this way four weights take one load.
inline Vec load_four(const float* p) { return {_mm512_broadcast_f32x4(_mm_loadu_ps(p))}; }
template <int I>
inline Vec one_of(Vec four) {
  return {_mm512_permute_ps(four.v, I * 0x55)};
}

#elif defined(__AVX2__)

constexpr int LANES = 8, REGISTERS = 16;

struct Vec {
  __m256 v;
};

inline __m256i lanes(Mask mask) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(mask), bits), bits);
}

inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const float* p, Mask mask) { return {_mm256_maskload_ps(p, lanes(mask))}; }
inline Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec multiply(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec masked(Vec a, Mask mask) {
  return {_mm256_and_ps(a.v, _mm256_castsi256_ps(lanes(mask)))};
}
inline void load_pairs(const float* p, Vec& even, Vec& odd) {
  const __m256 low = _mm256_loadu_ps(p), high = _mm256_loadu_ps(p + 8);
  const __m256d e = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0x88));
  const __m256d o = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0xdd));
  even.v = _mm256_castpd_ps(_mm256_permute4x64_pd(e, 0xd8));
  odd.v = _mm256_castpd_ps(_mm256_permute4x64_pd(o, 0xd8));
}

inline Vec shifted_in(Vec a, Vec b) {
  const __m256i a_ = _mm256_castps_si256(a.v), b_ = _mm256_castps_si256(b.v);
  return {_mm256_castsi256_ps(_mm256_alignr_epi8(b_, _mm256_permute2x128_si256(a_, b_, 0x21), 12))};
}
inline Vec shifted_out(Vec a, Vec b) {
  const __m256i a_ = _mm256_castps_si256(a.v), b_ = _mm256_castps_si256(b.v);
  return {_mm256_castsi256_ps(_mm256_alignr_epi8(_mm256_permute2x128_si256(a_, b_, 0x21), a_, 4))};
}
inline Vec load_four(const float* p) {
  return {_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p))};
}
template <int I>
inline Vec one_of(Vec four) {
  return {_mm256_permute_ps(four.v, I * 0x55)};
}

#else

constexpr int LANES = 4, REGISTERS = 16;

struct Vec {
  float v[LANES];
};

template <class F>
inline Vec each(F f) {
  Vec r;
  for (int i = 0; i < LANES; i++) r.v[i] = f(i);
  return r;
}

inline Vec load(const float* p) {
  return each([&](int i) { return p[i]; });
}
inline Vec load(const float* p, Mask mask) {
  return each([&](int i) { return mask >> i & 1 ? p[i] : 0.0f; });
}
inline Vec broadcast(float x) {
  return each([&](int) { return x; });
}
inline void store(float* p, Vec a) {
  for (int i = 0; i < LANES; i++) p[i] = a.v[i];
}
inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline Vec add(Vec a, Vec b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline Vec multiply(Vec a, Vec b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline Vec max(Vec a, Vec b) {
  return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Vec min(Vec a, Vec b) {
  return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Vec masked(Vec a, Mask mask) {
  return each([&](int i) { return mask >> i & 1 ? a.v[i] : 0.0f; });
}
inline void load_pairs(const float* p, Vec& even, Vec& odd) {
  even = each([&](int i) { return p[2 * i]; });
  odd = each([&](int i) { return p[2 * i + 1]; });
}

inline Vec shifted_in(Vec a, Vec b) {
  return each([&](int i) { return i == 0 ? a.v[LANES - 1] : b.v[i - 1]; });
}
inline Vec shifted_out(Vec a, Vec b) {
  return each([&](int i) { return i == LANES - 1 ? b.v[0] : a.v[i + 1]; });
}
inline Vec load_four(const float* p) { return load(p); }
template <int I>
inline Vec one_of(Vec four) {
  return broadcast(four.v[I]);
}

#endif

// Whether floats beside a vector are better shifted in than loaded anew: a load of 64 bytes that is
// not aligned counts twice.
constexpr bool SHIFTS = LANES == 16;

constexpr Mask ALL = (1u << LANES) - 1;

inline Mask first_lanes(int count) {
  return count <= 0 ? 0 : count >= LANES ? ALL : (1 << count) - 1;
}

// Of a tile: sums of that many, a weight, four weights and what else a loop needs have to fit the
// registers.
constexpr int MAX_VECTORS = REGISTERS - 4;

// A single float in the place of a vector.
inline void store(float* p, float a) { *p = a; }
inline float multiply_add(float a, float b, float c) { return a * b + c; }
inline float add(float a, float b) { return a + b; }
inline float multiply(float a, float b) { return a * b; }
inline float max(float a, float b) { return a > b ? a : b; }
inline float min(float a, float b) { return a < b ? a : b; }

template <class T>
constexpr int LANES_OF = sizeof(T) / sizeof(float);

template <class T>
inline T broadcast_as(float x) {
  if constexpr (std::is_same_v<T, float>)
    return x;
  else
    return broadcast(x);
}

// Of the four floats at p, which load_four() loaded.
template <class T, int I>
inline T one_of_as(const float* p, Vec four) {
  if constexpr (std::is_same_v<T, float>)
    return p[I];
  else
    return one_of<I>(four);
}

template <class T>
inline T load_as(const float* p) {
  if constexpr (std::is_same_v<T, float>)
    return *p;
  else
    return load(p);
}
