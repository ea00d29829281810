// What the machine gives at most, for the limit in compare.py: multiply-adds a second
// from registers alone, and bytes a second, read and written, of copying CACHED bytes.
//
//     peak THREADS  ->  {"multiply_adds": 1e11, "copied_bytes": 1e11}, the sums over the threads
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "simd.h"  // of the kernels: vectors as wide as theirs

namespace {

constexpr int CHAINS = 12;  // hide the latency of two units, and leave 4 of AVX2's 16 registers
constexpr int STEPS = 100000;
constexpr size_t CACHED = 4 << 20;  // bytes: about the largest activation of MobileNetV1
constexpr int REPETITIONS = 300;    // of which the quickest counts

volatile float factor = 0.5f, sink;  // or the compiler computes or drops the loops

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

float chains(float x) {
  Vec sums[CHAINS];
  for (Vec& sum : sums) sum = broadcast(x);
  const Vec a = broadcast(x), b = broadcast(1 - x);
  for (int i = 0; i < STEPS; i++)
    for (Vec& sum : sums) sum = multiply_add(sum, a, b);
  for (int i = 1; i < CHAINS; i++) sums[0] = add(sums[0], sums[i]);
  float lanes[LANES];
  store(lanes, sums[0]);
  return lanes[0];
}

template <class F>
double quickest(F work) {
  double best = 1e9;
  for (int i = 0; i < REPETITIONS; i++) {
    const double started = seconds();
    work();
    best = std::min(best, seconds() - started);
  }
  return best;
}

// The sum over threads that begin together of what each reaches.
template <class F>
double together(int threads, F rate) {
  std::atomic<int> waiting{threads};
  std::vector<double> rates(threads);
  std::vector<std::thread> running;
  for (int t = 0; t < threads; t++)
    running.emplace_back([&, t] {
      for (waiting--; waiting > 0;) {
      }
      rates[t] = rate();
    });
  double sum = 0;
  for (int t = 0; t < threads; t++) {
    running[t].join();
    sum += rates[t];
  }
  return sum;
}

}  // namespace

int main(int count, char** words) {
  const int threads = count > 1 ? std::atoi(words[1]) : 1;
  const double multiply_adds = together(threads, [] {
    return (double)STEPS * CHAINS * LANES / quickest([] { sink = chains(factor); });
  });
  const double copied = together(threads, [] {
    std::vector<char> from(CACHED, 1), to(CACHED);
    return 2.0 * CACHED / quickest([&] {
             std::memcpy(to.data(), from.data(), CACHED);
             sink = to[CACHED / 2];
           });
  });
  std::printf("{\"multiply_adds\": %.4g, \"copied_bytes\": %.4g}\n", multiply_adds, copied);
}
