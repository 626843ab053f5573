// A few threads that share the work of one operation after the other.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace ftwt {

// The caller is worker 0. Between operations the others spin for a moment, since the next piece of
// work is microseconds away; when a run is over they go to sleep.
class Workers {
 public:
  explicit Workers(int count);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int count() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls task(i, worker) once for each i in [0, n), and returns when all have returned. What a task
  // throws (no memory left) is thrown here, the last of them if several do.
  template <typename Task>
  void share(int n, const Task& task) {
    if (threads_.empty() || n <= 1) {
      for (int i = 0; i < n; ++i) task(i, 0);
    } else {
      share(n, &task, [](const void* t, int i, int worker) { (*static_cast<const Task*>(t))(i, worker); });
    }
  }

 private:
  using Call = void (*)(const void* task, int index, int worker);

  void share(int n, const void* task, Call call);
  void loop(int worker);
  void work(int worker);

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const void* task_ = nullptr;
  Call call_ = nullptr;
  std::exception_ptr error_;
  std::atomic<int> next_{0}, size_{0}, busy_{0}, asleep_{0};
  std::atomic<unsigned> round_{0};
  std::atomic<bool> stop_{false}, caller_asleep_{false};
};

}  // namespace ftwt
