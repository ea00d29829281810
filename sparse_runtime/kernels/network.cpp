// Runs layers one after another on threads of its own; each has a fixed part of every layer.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "layer.h"

namespace {

// What a thread does of a layer: all rows of some pixels, or some rows of them.
void work(const Layer& layer, int thread, int threads, float* tile) {
  if (layer.kind == POOL) {
    pool(layer, (int64_t)layer.in_channels * thread / threads,
         (int64_t)layer.in_channels * (thread + 1) / threads);
    return;
  }
  const auto produce = layer.kind == DEPTHWISE ? depthwise
                       : layer.kind == PATCHES ? patches
                                               : copy_pixels;
  const int64_t pixels = (int64_t)layer.batch * layer.out_height * layer.out_width;
  const int64_t vectors = (pixels + layer.lanes - 1) / layer.lanes;
  const int group = thread % layer.groups, part = thread / layer.groups;
  const int parts = threads / layer.groups;
  const int first_chunk = (int64_t)layer.chunks * group / layer.groups;
  const int last_chunk = (int64_t)layer.chunks * (group + 1) / layer.groups;
  const int64_t first = vectors * part / parts, last = vectors * (part + 1) / parts;
  const int64_t tiles = (last - first + layer.vectors - 1) / layer.vectors;
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t from = first + (last - first) * t / tiles;
    const int count = first + (last - first) * (t + 1) / tiles - from;
    const int64_t start = from * layer.lanes;
    for (int block = 0; block * layer.block_rows < layer.tile_rows; block++) {
      const int begin = block * layer.block_rows;
      const int end = std::min(begin + layer.block_rows, layer.tile_rows);
      produce(layer, count, start, begin, end, tile);
      multiply(layer, count, start, block, first_chunk, last_chunk, tile);
    }
  }
}

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

constexpr int SPINS = 5000;  // some 50 us: the next run may follow, and waking takes as long

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; spins++)
      spins < SPINS ? pause() : std::this_thread::yield();
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> round_{0};
};

constexpr std::align_val_t LINE{64};

struct Freed {
  void operator()(float* p) const { ::operator delete[](p, LINE); }
};

class Threads {
 public:
  explicit Threads(int count) : count_(count), barrier_(count), tiles_(count) {
    try {
      for (int t = 1; t < count; t++) others_.emplace_back([this, t] { follow(t); });
    } catch (...) {
      end();
      throw;
    }
  }

  ~Threads() { end(); }

  void run(const Layer* layers, int number) {
    size_t size = 0;
    for (int i = 0; i < number; i++)
      size = std::max(size, (size_t)layers[i].block_rows * layers[i].vectors * LANES + LANES);
    if (size > size_) {
      for (auto& tile : tiles_) tile.reset(new (LINE) float[size]);
      size_ = size;
    }
    number_ = number;
    tell(layers);
    go(0);
  }

 private:
  void end() {
    tell(nullptr);
    for (auto& other : others_) other.join();
  }

  void tell(const Layer* layers) {
    {
      std::lock_guard<std::mutex> guard(lock_);
      layers_ = layers;
      round_.fetch_add(1, std::memory_order_release);
    }
    begin_.notify_all();
  }

  void follow(int thread) {
    for (unsigned seen = 0;;) {
      for (int i = 0; i < SPINS && round_.load(std::memory_order_acquire) == seen; i++) pause();
      {
        std::unique_lock<std::mutex> guard(lock_);
        begin_.wait(guard, [&] { return round_.load(std::memory_order_relaxed) != seen; });
      }
      seen++;
      if (layers_ == nullptr) return;
      go(thread);
    }
  }

  void go(int thread) {
    const Layer* layers = layers_;
    for (int i = 0, number = number_; i < number; i++) {
      work(layers[i], thread, count_, tiles_[thread].get());
      barrier_.wait();
    }
  }

  const int count_;
  Barrier barrier_;
  std::vector<std::unique_ptr<float[], Freed>> tiles_;
  size_t size_ = 0;
  std::vector<std::thread> others_;
  std::mutex lock_;
  std::condition_variable begin_;
  const Layer* layers_ = nullptr;
  int number_ = 0;
  std::atomic<unsigned> round_{0};
};

}  // namespace

extern "C" {

int lanes() { return LANES; }

int max_vectors() { return MAX_VECTORS; }

int layer_size() { return sizeof(Layer); }

int pair_size() { return sizeof(Pair); }

int chunk() { return CHUNK; }

// Null where the threads could not be started.
void* start_threads(int count) {
  try {
    return new Threads(count);
  } catch (...) {
    return nullptr;
  }
}

void end_threads(void* threads) { delete static_cast<Threads*>(threads); }

// False where there was no memory for the tiles.
bool run(void* threads, const Layer* layers, int number) {
  try {
    static_cast<Threads*>(threads)->run(layers, number);
    return true;
  } catch (...) {
    return false;
  }
}
}
