// What steps do to one channel after the other.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "network.h"

namespace ftwt {

inline bool renews(Activation act) { return act == Activation::sigmoid || act == Activation::hardsigmoid; }

// Until the next call on the same thread.
inline const std::vector<int32_t>& active_channels(Network& net, int map, int sample) {
  static thread_local std::vector<int32_t> list;
  const Activity& active = net.activity(map, sample);
  list_channels(net.maps[map].channels, active.all ? nullptr : active.channels, nullptr, list);
  return list;
}

// A window that knows how large the maps are.
inline Window sized(const Network& net, int x, int out, Window w) {
  w.height = net.maps[x].height, w.width = net.maps[x].width;
  w.out_height = net.maps[out].height, w.out_width = net.maps[out].width;
  return w;
}

inline void copy_activity(Network& net, int from, int to, int sample) {
  const Activity& source = net.activity(from, sample);
  Activity& target = net.activity(to, sample);
  target.all = source.all;
  if (!source.all) std::memcpy(target.channels, source.channels, net.maps[to].channels);
}

// A step that maps each channel on its own: `channel(worker, sample, c)` for the active ones.
template <typename Channel>
void each_channel(Network& net, int batch, int map, bool all, Channel channel) {
  const int channels = net.maps[map].channels;
  const int parts = net.workers.count() > 1 ? std::min(channels, 4 * net.workers.count()) : 1;
  net.workers.share(batch * parts, [&](int i, int worker) {
    const int sample = i / parts, part = i % parts;
    const Activity& active = net.activity(map, sample);
    for (int c = share_of(channels, part, parts); c < share_of(channels, part + 1, parts); ++c)
      if (all || active.all || active.channels[c]) channel(worker, sample, c);
  });
}

}  // namespace ftwt
