// A few threads that share the work of one operation after the other.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace ftwt {

// The caller is worker 0. Between operations the others spin for a moment, since the next piece of
// work is microseconds away; when a run is over they go to sleep.
class Workers {
 public:
  using Task = std::function<void(int index, int worker)>;

  explicit Workers(int count);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int count() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls task(i, worker) once for each i in [0, n), and returns when all have returned. What a task
  // throws (no memory left) is thrown here, the last of them if several do.
  void share(int n, const Task& task);

 private:
  void loop(int worker);
  void work(int worker);

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const Task* task_ = nullptr;
  std::exception_ptr error_;
  std::atomic<int> next_{0}, size_{0}, busy_{0};
  std::atomic<unsigned> round_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace ftwt
