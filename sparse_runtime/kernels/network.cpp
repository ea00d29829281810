// Runs tasks one after another on threads of its own; each has a fixed part of every task.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "step.h"

namespace {

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
  explicit Threads(int count) : count_(count), barrier_(count), scratch_(count) {
    try {
      for (int t = 1; t < count; t++) others_.emplace_back([this, t] { follow(t); });
    } catch (...) {
      end();
      throw;
    }
  }

  ~Threads() { end(); }

  // scratch: floats that each thread has for itself.
  void run(const Task* tasks, int number, size_t scratch) {
    if (scratch > size_) {
      for (auto& own : scratch_) own.reset(new (LINE) float[scratch]);
      size_ = scratch;
    }
    number_ = number;
    tell(tasks);
    go(0);
  }

 private:
  void end() {
    tell(nullptr);
    for (auto& other : others_) other.join();
  }

  void tell(const Task* tasks) {
    {
      std::lock_guard<std::mutex> guard(lock_);
      tasks_ = tasks;
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
      if (tasks_ == nullptr) return;
      go(thread);
    }
  }

  void go(int thread) {
    const Task* tasks = tasks_;
    for (int i = 0, number = number_; i < number; i++) {
      const Task& task = tasks[i];
      task.run(task.op, {thread, count_, scratch_[thread].get()});
      if (task.wait) barrier_.wait();
    }
  }

  const int count_;
  Barrier barrier_;
  std::vector<std::unique_ptr<float[], Freed>> scratch_;
  size_t size_ = 0;
  std::vector<std::thread> others_;
  std::mutex lock_;
  std::condition_variable begin_;
  const Task* tasks_ = nullptr;
  int number_ = 0;
  std::atomic<unsigned> round_{0};
};

}  // namespace

extern "C" {

int lanes() { return LANES; }

int max_vectors() { return MAX_VECTORS; }

int task_size() { return sizeof(Task); }

// Null where the threads could not be started.
void* start_threads(int count) {
  try {
    return new Threads(count);
  } catch (...) {
    return nullptr;
  }
}

void end_threads(void* threads) { delete static_cast<Threads*>(threads); }

// False where there was no memory for what threads have for themselves.
bool run(void* threads, const Task* tasks, int number, size_t scratch) {
  try {
    static_cast<Threads*>(threads)->run(tasks, number, scratch);
    return true;
  } catch (...) {
    return false;
  }
}
}
