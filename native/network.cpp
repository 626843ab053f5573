#include "network.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace ftwt {

namespace {

// Maps lie in one block, where the address sanitizer sees no border between them. Under it, each has
// a strip of nobody's memory behind it, and those that are not alive may not be touched.
#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t kFence = 64;
constexpr size_t kLarge = SIZE_MAX, kMostRoom = 0;  // and weights lie apart
#else
constexpr int64_t kFence = 0;
constexpr size_t kLarge = size_t{1} << 17;       // bytes that are worth large pages
constexpr size_t kMostRoom = size_t{1} << 23;    // floats
#endif

constexpr size_t kLargePage = size_t{2} << 20;      // bytes
constexpr int64_t kSlack = 16;                      // a load may reach past the last map's end
constexpr int64_t kPartBytes = int64_t{64} << 20;   // of maps that are worked on at a time
constexpr int64_t kMostBytes = int64_t{1} << 30;    // of maps of samples that threads share
constexpr auto kListen = std::chrono::milliseconds(100);

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
// What a map takes, in floats, whatever it holds.
int64_t floats_of(const Shape& map, Type type) { return round_up(map.size() * size_of(type), 4 * kSlack) / 4 + kSlack; }

}  // namespace

Buffer::~Buffer() { std::free(memory_); }

float* Buffer::need(size_t size) {
  if (size <= size_) return data_;
  std::free(memory_);
  memory_ = nullptr, data_ = nullptr, size_ = 0;
  const size_t page = size * sizeof(float) < kLarge ? 64 : kLargePage;
  const size_t bytes = (size * sizeof(float) + page - 1) / page * page;
  memory_ = std::calloc(bytes + page, 1);  // what nobody touches takes no memory
  if (!memory_) throw std::bad_alloc();
  void* at = memory_;
  size_t left = bytes + page;
  data_ = static_cast<float*>(std::align(page, bytes, at, left));
#if defined(__linux__)
  if (page == kLargePage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
  size_ = bytes / sizeof(float);
  return data_;
}

Network::Network(std::vector<Shape> maps_, std::vector<int> gates_, int output_, int threads, const std::string& isa,
                 std::vector<Type> types_, std::vector<float> scales_)
    : maps(std::move(maps_)), gates(std::move(gates_)), output(output_),
      filters(std::accumulate(gates.begin(), gates.end(), size_t{0})),
      types(types_.empty() ? std::vector<Type>(maps.size(), Type::f32) : std::move(types_)),
      scales(scales_.empty() ? std::vector<float>(maps.size(), 1.0f) : std::move(scales_)),
      kernels(find_kernels(isa)), integers(find_integer_kernels(isa)), workers(threads) {
  scratch_.resize(threads + 1);
  size_t first = 0;
  for (const int gate : gates) first_filter_.push_back(first), first += gate;
  for (const Shape& shape : maps) channels_ += shape.channels;
}

float* Network::room(size_t size) {
  size = static_cast<size_t>(round_up(static_cast<int64_t>(size), 16));
  if (rooms_.empty() || taken_ + size > rooms_.back().size()) {
    const size_t next = rooms_.empty() ? 0 : std::min(2 * rooms_.back().size(), kMostRoom);
    rooms_.emplace_back().need(std::max(size, next)), taken_ = 0;
  }
  return rooms_.back().data() + std::exchange(taken_, taken_ + size);
}

void Network::add(std::unique_ptr<Step> step) {
  if (finished_) throw std::logic_error("a finished network takes no more operations");
  steps_.push_back(std::move(step));
}

// Maps whose lives do not overlap may lie in the same place: each takes the lowest gap that is free
// for as long as it lives.
void Network::finish() {
  const int count = static_cast<int>(maps.size()), steps = static_cast<int>(steps_.size());
  std::vector<int> root(count), born(count, -1), dies(count, -1);
  for (int m = 0; m < count; ++m) root[m] = m;
  positive_.assign(count, 0);
  for (const auto& step : steps_) {
    if (step->aliases >= 0) root[step->writes] = root[step->aliases];
    if (step->writes >= 0) positive_[step->writes] = step->positive || (step->aliases >= 0 && positive_[step->aliases]);
  }
  born[0] = dies[0] = 0;
  for (int s = 0; s < steps; ++s) {
    if (const int w = steps_[s]->writes; w >= 0) {
      int& b = born[root[w]];
      if (b < 0) b = s;
      dies[root[w]] = std::max(dies[root[w]], s);
    }
    for (const int r : steps_[s]->reads) dies[root[r]] = std::max(dies[root[r]], s);
  }
  dies[root[output]] = steps;
  for (int s = 0; s < steps; ++s) {  // a sum in the place of what is added, if that is read no more
    const Step& step = *steps_[s];
    if (step.replaces < 0 || dies[root[step.replaces]] > s || types[step.replaces] != types[step.writes]) continue;
    const int kept = root[step.replaces], gone = root[step.writes];
    // what the step also reads must not be overwritten meanwhile
    if (std::count_if(step.reads.begin(), step.reads.end(), [&](int r) { return root[r] == kept; }) > 1) continue;
    for (int& r : root)
      if (r == gone) r = kept;
    dies[kept] = std::max(dies[kept], dies[gone]);
  }
  offsets_.assign(count, 0);
  struct Placed { int map; int64_t from, to; };
  std::vector<Placed> placed;
  std::vector<int> order;
  for (int m = 0; m < count; ++m)
    if (root[m] == m && born[m] >= 0) order.push_back(m);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return floats_of(maps[a], types[a]) > floats_of(maps[b], types[b]);
  });
  for (const int m : order) {
    const int64_t size = floats_of(maps[m], types[m]) + kFence;
    std::vector<Placed> near;
    for (const Placed& p : placed)
      if (born[p.map] <= dies[m] && born[m] <= dies[p.map]) near.push_back(p);
    std::sort(near.begin(), near.end(), [](const Placed& a, const Placed& b) { return a.from < b.from; });
    int64_t at = 0;
    for (const Placed& p : near) {
      if (p.from >= at + size) break;
      at = std::max(at, p.to);
    }
    offsets_[m] = at;
    placed.push_back({m, at, at + size});
    sample_floats_ = std::max(sample_floats_, at + size);
  }
  for (int m = 0; m < count; ++m) {
    if (root[m] == m && born[m] >= 0) lives_.push_back({m, born[m], dies[m]});
    offsets_[m] = offsets_[root[m]];
  }
  base_.resize(count);
  finished_ = true;
}

void Network::run(const float* x, int batch, const std::vector<const uint8_t*>& given, float* out, uint8_t* masks,
                  int64_t* macs, const std::function<bool()>& stop) {
  if (!finished_) throw std::logic_error("finish the network before running it");
  std::unique_lock lock(*mutex_, std::defer_lock);
  while (!lock.try_lock_for(kListen))
    if (stop()) throw Interrupted{};
  stop_ = stop, stopped_ = false, unheard_ = 0, listened_ = std::chrono::steady_clock::now();
  const int64_t bytes = sample_floats_ * static_cast<int64_t>(sizeof(float)) + static_cast<int64_t>(channels_);
  const int64_t shared = std::clamp<int64_t>(kMostBytes / bytes, 1, workers.count());
  const int most = static_cast<int>(std::clamp<int64_t>(kPartBytes / bytes, shared, std::max<int64_t>(shared, 64)));
  const size_t steps = steps_.size();
  std::memset(macs, 0, sizeof(int64_t) * steps * batch);
  for (int first = 0; first < batch; first += most) {
    const int part = std::min(most, batch - first);
    forced.assign(gates.size(), nullptr);
    for (size_t g = 0; g < gates.size(); ++g)
      if (given[g]) forced[g] = given[g] + static_cast<size_t>(first) * gates[g];
    macs_ = macs + first * steps, masks_ = masks + first * filters;
    run_part(x + first * maps[0].size(), part, out + first * maps[output].size());
  }
}

void Network::run_part(const float* x, int batch, float* out) {
  float* memory = memory_.need(static_cast<size_t>(sample_floats_) * batch);
  activity_bytes_.resize(channels_ * batch);
  activities_.resize(maps.size() * batch);
  fence(static_cast<int>(steps_.size()), batch);  // a run that was interrupted left some closed
  uint8_t* bytes = activity_bytes_.data();
  for (int sample = 0; sample < batch; ++sample)
    for (size_t m = 0; m < maps.size(); ++m) {
      activities_[sample * maps.size() + m] = {true, bytes};
      bytes += maps[m].channels;
    }
  std::memset(masks_, 1, filters * batch);
  for (size_t m = 0; m < maps.size(); ++m) base_[m] = memory + offsets_[m];

  const int64_t size = maps[0].size();
  for (int sample = 0; sample < batch; ++sample)
    std::memcpy(map(0, sample), x + sample * size, sizeof(float) * size);
  for (size_t s = 0; s < steps_.size(); ++s) {
    fence(static_cast<int>(s), batch);
    pulse(0, steps_[s]->work * batch);
    if (seconds_.empty()) {
      steps_[s]->run(*this, batch, static_cast<int>(s));
      continue;
    }
    const auto start = std::chrono::steady_clock::now();
    steps_[s]->run(*this, batch, static_cast<int>(s));
    seconds_[s] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  fence(static_cast<int>(steps_.size()), batch);
  const Shape& shape = maps[output];
  for (int sample = 0; sample < batch; ++sample) {
    const Activity& active = activity(output, sample);
    const float* from = map(output, sample);
    float* to = out + sample * shape.size();
    const int64_t plane = shape.positions();
    for (int c = 0; c < shape.channels; ++c) {
      if (active.all || active.channels[c]) std::memcpy(to + c * plane, from + c * plane, sizeof(float) * plane);
      else std::memset(to + c * plane, 0, sizeof(float) * plane);
    }
  }
}

void Network::listen() {
  unheard_ = 0;
  const auto now = std::chrono::steady_clock::now();
  if (now - listened_ < kListen) return;
  listened_ = now;
  if (!stop_()) return;
  stopped_ = true;
  throw Interrupted{};
}

// What is alive at a step may be touched, and nothing else; new maps start as rubbish.
void Network::fence([[maybe_unused]] int step, [[maybe_unused]] int batch) {
#if defined(__SANITIZE_ADDRESS__)
  const size_t bytes = sizeof(float) * sample_floats_ * batch;
  if (step == static_cast<int>(steps_.size())) return ASAN_UNPOISON_MEMORY_REGION(memory_.data(), bytes);
  ASAN_POISON_MEMORY_REGION(memory_.data(), bytes);
  for (const Life& life : lives_)
    for (int sample = 0; sample < batch && life.born <= step && step <= life.dies; ++sample) {
      ASAN_UNPOISON_MEMORY_REGION(map(life.map, sample), sizeof(float) * floats_of(maps[life.map], types[life.map]));
      if (life.born == step && life.map) std::memset(map(life.map, sample), 0xff, sizeof(float) * floats_of(maps[life.map], types[life.map]));
    }
#endif
}

}  // namespace ftwt
