// A few threads that share the work of one operation after the other.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace ftwt {

// The first of the part `part` of `parts` that n are shared out in; that of part + 1 is its end.
inline int share_of(int n, int part, int parts) { return static_cast<int>(static_cast<int64_t>(n) * part / parts); }

// The caller is worker 0. Between operations the others spin for a moment, since the next piece of
// work is microseconds away; when a run is over they go to sleep.
class Crew {
 public:
  explicit Crew(int count);
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  using Call = void (*)(const void* task, int index, int worker);
  void share(int n, const void* task, Call call);

 private:
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

// A crew that survives a fork: the child has none of its threads, and starts others when it runs.
class Workers {
 public:
  explicit Workers(int count);
  ~Workers();

  int count() const { return count_; }

  // Starts the threads anew if this is the child of the process that started them.
  // Returns whether it is.
  bool revive();

  // Calls task(i, worker) once for each i in [0, n), and returns when all have returned. What a task
  // throws (no memory left) is thrown here, the last of them if several do.
  template <typename Task>
  void share(int n, const Task& task) {
    if (count_ == 1 || n <= 1) {
      for (int i = 0; i < n; ++i) task(i, 0);
    } else {
      crew_->share(n, &task, [](const void* t, int i, int worker) { (*static_cast<const Task*>(t))(i, worker); });
    }
  }

 private:
  const int count_;
  unsigned born_;  // after how many forks
  std::unique_ptr<Crew> crew_;
};

}  // namespace ftwt
