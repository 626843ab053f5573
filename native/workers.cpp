#include "workers.h"

#include <chrono>

namespace ftwt {

namespace {

constexpr auto kSpin = std::chrono::microseconds(200);
constexpr int kSpins = 1 << 15;  // about as long

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

Workers::Workers(int count) {
  for (int worker = 1; worker < count; ++worker)
    threads_.emplace_back([this, worker] { loop(worker); });
}

Workers::~Workers() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    ++round_;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Workers::share(int n, const Task& task) {
  if (threads_.empty() || n <= 1) {
    for (int i = 0; i < n; ++i) task(i, 0);
    return;
  }
  task_ = &task, error_ = nullptr;
  size_.store(n, std::memory_order_relaxed);
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
  {
    std::lock_guard lock(mutex_);  // a worker about to sleep must not miss the round
    round_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  work(0);
  // Not to yield: on a busy machine that may cost a whole time slice.
  for (int spins = 0; busy_.load(std::memory_order_acquire); ++spins) {
    if (spins < kSpins) {
      relax();
      continue;
    }
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return busy_.load(std::memory_order_acquire) == 0; });
  }
  if (error_) std::rethrow_exception(error_);
}

void Workers::work(int worker) {
  const int n = size_.load(std::memory_order_relaxed);
  try {
    for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n;) (*task_)(i, worker);
  } catch (...) {
    std::lock_guard lock(mutex_);
    error_ = std::current_exception();
  }
}

void Workers::loop(int worker) {
  for (unsigned seen = 0;;) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    for (int spins = 0; round_.load(std::memory_order_acquire) == seen; ++spins) {
      relax();
      if (spins % 64 || std::chrono::steady_clock::now() < until) continue;
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
    }
    seen = round_.load(std::memory_order_acquire);
    if (stop_) return;
    work(worker);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard lock(mutex_);  // the caller may be about to sleep
      done_.notify_one();
    }
  }
}

}  // namespace ftwt
