// A network as a list of steps over maps in one block of memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "integer.h"
#include "kernels.h"
#include "workers.h"

namespace ftwt {

// Floats that start at a cache line, and grow; many lie in large pages, of which a processor finds more at once.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer();
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(memory_, other.memory_), std::swap(data_, other.data_), std::swap(size_, other.size_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // At least `size` floats, new ones zero; what was there may be lost.
  float* need(size_t size);
  float* data() { return data_; }
  const float* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void* memory_ = nullptr;
  float* data_ = nullptr;
  size_t size_ = 0;
};

struct Shape {
  int channels = 0, height = 0, width = 0;
  int positions() const { return height * width; }
  int64_t size() const { return static_cast<int64_t>(channels) * height * width; }
};

struct Network;

// Thrown by a run that was asked to stop.
struct Interrupted {};

constexpr int64_t kPiece = int64_t{1} << 28;  // multiply-accumulates at a time, so that a run can listen

// How many of n, each of so much work, make a piece; at least one.
inline int per_piece(int n, int64_t each) {
  return static_cast<int>(std::clamp<int64_t>(kPiece / std::max<int64_t>(each, 1), 1, std::max(n, 1)));
}

// One operation, ready to run on a batch. Steps hold no state of a run: that lies in the network.
struct Step {
  virtual ~Step() = default;
  virtual void run(Network& net, int batch, int index) const = 0;
  std::vector<int> reads;
  int writes = -1;     // map, or -1
  int aliases = -1;    // a map whose memory the written one shares
  int replaces = -1;   // a map whose memory the written one may take if nothing reads it later
  bool positive = false;  // no value of the written map is below zero
  int64_t work = 0;       // at most, for one sample: multiply-accumulates or what takes as long
};

// Which channels of a map can be non-zero for one sample. What lies in the others is unspecified.
struct Activity {
  bool all = true;
  uint8_t* channels = nullptr;  // valid unless all
};

// The channels that both masks keep, in order; a null mask keeps all. No branch depends on a mask: they
// are not predictable.
inline void list_channels(int count, const uint8_t* a, const uint8_t* b, std::vector<int32_t>& list) {
  list.resize(count);
  int kept = 0;
  if (!a) std::swap(a, b);
  if (!a) {
    std::iota(list.begin(), list.end(), 0);
    return;
  }
  for (int c = 0; c < count; ++c) {
    list[kept] = c;
    kept += b ? (a[c] != 0) & (b[c] != 0) : a[c] != 0;
  }
  list.resize(kept);
}

struct Network {
  // types and scales: of the maps; none: all are floats.
  Network(std::vector<Shape> maps, std::vector<int> gates, int output, int threads, const std::string& isa,
          std::vector<Type> types = {}, std::vector<float> scales = {});

  void add(std::unique_ptr<Step> step);
  void finish();  // plans the memory; nothing can be added after it

  // Weights as a kernel reads them, made by fill(float*) once for all steps that give the same key.
  template <typename Fill>
  const float* keep(const std::string& key, size_t size, const Fill& fill) {
    const auto [found, fresh] = kept_.try_emplace(key.empty() ? " " + std::to_string(kept_.size()) : key);
    if (fresh) fill(found->second = room(size));
    return found->second;
  }

  // x (batch, map 0), out (batch, output map), masks (batch, filters of all gates), macs (batch,
  // steps); forced[gate] is null or (batch, K). One run at a time. In a long run, `stop` is asked by
  // the calling thread every tenth of a second; once it says yes, Interrupted is thrown.
  void run(const float* x, int batch, const std::vector<const uint8_t*>& forced, float* out, uint8_t* masks,
           int64_t* macs, const std::function<bool()>& stop);

  // To be called before a run, by one thread at a time: makes a forked child's copy fit to run.
  void revive() {
    if (workers.revive()) static_cast<void>(mutex_.release()), mutex_ = std::make_unique<std::timed_mutex>();
  }

  // Seconds that each step took in all runs since `clock(true)`.
  void clock(bool on) {
    std::lock_guard lock(*mutex_);  // a run may be going on in another thread
    seconds_.assign(on ? steps_.size() : 0, 0.0);
  }
  std::vector<double> seconds() {
    std::lock_guard lock(*mutex_);
    return seconds_;
  }

  // For steps.
  float* map(int index, int sample) { return base_[index] + sample * sample_floats_; }
  uint8_t* bytes(int index, int sample) { return reinterpret_cast<uint8_t*>(map(index, sample)); }
  // A map of a sample to read, from a value on; and to write.
  Values values(int index, int sample, int64_t from = 0) {
    return {bytes(index, sample) + from * size_of(types[index]), types[index], scales[index], false};
  }
  Target target(int index, int sample, int64_t from = 0) {
    return {bytes(index, sample) + from * size_of(types[index]), types[index], 1.0f / scales[index]};
  }
  Activity& activity(int index, int sample) { return activities_[static_cast<size_t>(sample) * maps.size() + index]; }
  uint8_t* mask(int gate, int sample) const { return masks_ + sample * filters + first_filter_[gate]; }
  bool positive(int index) const { return positive_[index]; }
  int64_t& macs(int step, int sample) { return macs_[static_cast<size_t>(sample) * steps_.size() + step]; }
  Buffer& scratch(int worker) { return scratch_[worker]; }
  Buffer& shared() { return scratch_.back(); }
  // Before a piece of work: throws Interrupted if the run is to stop.
  void pulse(int worker, int64_t work) {
    if (stopped_.load(std::memory_order_relaxed)) throw Interrupted{};
    if (worker == 0 && (unheard_ += work) >= kPiece / 16) listen();
  }

  const std::vector<Shape> maps;
  const std::vector<int> gates;
  const int output;
  const size_t filters;                // of all gates
  const std::vector<Type> types;       // of the maps
  const std::vector<float> scales;
  const Kernels& kernels;
  const IntegerKernels& integers;
  Workers workers;
  std::vector<const uint8_t*> forced;  // of the present part of the batch

 private:
  struct Life { int map, born, dies; };  // first and last step, of the memory of a map and its aliases

  float* room(size_t size);  // for weights, zero: side by side in few buffers
  void run_part(const float* x, int batch, float* out);
  void listen();
  void fence(int step, int batch);

  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<int64_t> offsets_;       // of the maps in a sample's memory
  std::vector<Life> lives_;
  int64_t sample_floats_ = 0;
  std::vector<uint8_t> positive_;      // maps without a value below zero
  bool finished_ = false;
  std::unique_ptr<std::timed_mutex> mutex_ = std::make_unique<std::timed_mutex>();
  std::map<std::string, float*> kept_;
  std::vector<Buffer> rooms_;
  size_t taken_ = 0;                   // of the last of them
  std::function<bool()> stop_;
  std::atomic<bool> stopped_{false};
  int64_t unheard_ = 0;                // work since the clock was looked at
  std::chrono::steady_clock::time_point listened_{};
  size_t channels_ = 0;                // of all maps
  Buffer memory_;
  std::vector<Buffer> scratch_;        // one for each worker, one shared
  std::vector<float*> base_;
  std::vector<uint8_t> activity_bytes_;
  std::vector<Activity> activities_;
  std::vector<size_t> first_filter_;   // of each gate
  uint8_t* masks_ = nullptr;
  int64_t* macs_ = nullptr;
  std::vector<double> seconds_;        // empty: no clock runs
};

}  // namespace ftwt
