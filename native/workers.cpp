#include "workers.h"

#include <chrono>

#if !defined(_WIN32)
#include <pthread.h>
#endif

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

// How many forks lead from the process that loaded this module to this one.
std::atomic<unsigned> forks{0};
#if !defined(_WIN32)
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { ++forks; });
#endif

}  // namespace

Workers::Workers(int count) : count_(count), born_(forks), crew_(std::make_unique<Crew>(count)) {}

// What the parent's threads wait on cannot be taken apart without them: the child leaves it lie.
Workers::~Workers() {
  if (born_ != forks) static_cast<void>(crew_.release());
}

bool Workers::revive() {
  if (born_ == forks) return false;
  static_cast<void>(crew_.release());
  crew_ = std::make_unique<Crew>(count_);
  born_ = forks;
  return true;
}

Crew::Crew(int count) {
  for (int worker = 1; worker < count; ++worker)
    threads_.emplace_back([this, worker] { loop(worker); });
}

Crew::~Crew() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    ++round_;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

// Who is about to sleep says so and looks again; who has news tells it and then looks for sleepers. So
// the lock is taken only where somebody sleeps.
void Crew::share(int n, const void* task, Call call) {
  task_ = task, call_ = call, error_ = nullptr;
  size_.store(n, std::memory_order_relaxed);
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
  round_.fetch_add(1);
  if (asleep_.load()) {
    std::lock_guard lock(mutex_);
    wake_.notify_all();
  }
  work(0);
  // Not to yield: on a busy machine that may cost a whole time slice.
  for (int spins = 0; busy_.load(); ++spins) {
    if (spins < kSpins) {
      relax();
      continue;
    }
    std::unique_lock lock(mutex_);
    caller_asleep_ = true;
    done_.wait(lock, [&] { return busy_.load() == 0; });
    caller_asleep_ = false;
  }
  if (error_) std::rethrow_exception(error_);
}

void Crew::work(int worker) {
  const int n = size_.load(std::memory_order_relaxed);
  try {
    for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n;) call_(task_, i, worker);
  } catch (...) {
    std::lock_guard lock(mutex_);
    error_ = std::current_exception();
  }
}

void Crew::loop(int worker) {
  for (unsigned seen = 0;;) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    for (int spins = 0; round_.load() == seen; ++spins) {
      relax();
      if (spins % 64 || std::chrono::steady_clock::now() < until) continue;
      std::unique_lock lock(mutex_);
      ++asleep_;
      wake_.wait(lock, [&] { return round_.load() != seen; });
      --asleep_;
    }
    seen = round_.load();
    if (stop_) return;
    work(worker);
    if (busy_.fetch_sub(1) == 1 && caller_asleep_.load()) {
      std::lock_guard lock(mutex_);
      done_.notify_one();
    }
  }
}

}  // namespace ftwt
