// Everything on eight-bit maps that does not multiply by a matrix. Included by integer_impl.h.

namespace integers {

static void blend(const Blend& b) {
  for (int64_t i = 0; i < b.n; i += kLanes) {
    const int count = static_cast<int>(min<int64_t>(kLanes, b.n - i));
    V v = load_values(b.a, i, count);
    if (b.b.at) v = v + load_values(b.b, i, count);
    if (b.act != Activation::none) v = activate(b.act, v);
    store_values(b.out, i, v, count);
  }
}

template <typename Byte>
static void planes_of(const IntegerPlanes& p) {
  for (int i = 0; i < p.count; ++i) {
    const int c = p.channels[i];
    const Byte* x = reinterpret_cast<const Byte*>(p.input) + static_cast<int64_t>(c) * p.positions;
    if (p.maximum) {
      Byte best = x[0];
      for (int k = 1; k < p.positions; ++k) best = max(best, x[k]);
      if (p.out.type == Type::f32) static_cast<float*>(p.out.at)[c] = static_cast<float>(best) * p.scale;
      else static_cast<Byte*>(p.out.at)[c] = best;
    } else {
      int64_t sum = 0;
      for (int from = 0; from < p.positions; from += 1 << 16) {
        const int to = min(p.positions, from + (1 << 16));
        int32_t some = 0;
        for (int k = from; k < to; ++k) some += x[k];
        sum += some;
      }
      static_cast<float*>(p.out.at)[c] = static_cast<float>(sum) * p.scale;
    }
  }
}

static void planes(const IntegerPlanes& p) {
  if (p.type == Type::u8) planes_of<uint8_t>(p);
  else planes_of<int8_t>(p);
}

// Of `count` windows of `size`, each `step` after the one before.
template <int Step, typename Byte>
static void across_line(const Byte* line, int count, int size, int step, Byte* out) {
  const int s = Step ? Step : step;
  for (int x = 0; x < count; ++x) out[x] = line[static_cast<int64_t>(x) * s];
  for (int k = 1; k < size; ++k)
    for (int x = 0; x < count; ++x) out[x] = max(out[x], line[static_cast<int64_t>(x) * s + k]);
}

template <typename Byte>
static void pool_of(const IntegerPooling& p) {
  const Window& w = p.window;
  const Byte* x = reinterpret_cast<const Byte*>(p.x);
  Byte* line = reinterpret_cast<Byte*>(p.line);
  constexpr Byte least = std::numeric_limits<Byte>::min();
  const int pad = w.adaptive ? 0 : w.pad_w;
  // what a window reads beyond the row never wins
  std::memset(line, static_cast<uint8_t>(least), integer_line(w));
  for (int y = p.first_row; y < p.last_row; ++y) {
    int from, to;
    if (w.adaptive) {
      from = static_cast<int>(static_cast<int64_t>(y) * w.height / w.out_height);
      to = static_cast<int>((static_cast<int64_t>(y + 1) * w.height + w.out_height - 1) / w.out_height);
    } else {
      const int64_t start = static_cast<int64_t>(y) * w.stride_h - w.pad_h;
      from = static_cast<int>(max<int64_t>(start, 0)), to = static_cast<int>(min<int64_t>(start + w.kernel_h, w.height));
    }
    Byte* inner = line + pad;
    std::memcpy(inner, x + static_cast<int64_t>(from) * w.width, w.width);
    for (int r = from + 1; r < to; ++r) {
      const Byte* row = x + static_cast<int64_t>(r) * w.width;
      for (int k = 0; k < w.width; ++k) inner[k] = max(inner[k], row[k]);
    }
    Byte* out = reinterpret_cast<Byte*>(p.out) + static_cast<int64_t>(y) * w.out_width;
    if (w.adaptive) {
      for (int k = 0; k < w.out_width; ++k) {
        const int first = static_cast<int>(static_cast<int64_t>(k) * w.width / w.out_width);
        const int last = static_cast<int>((static_cast<int64_t>(k + 1) * w.width + w.out_width - 1) / w.out_width);
        Byte best = inner[first];
        for (int i = first + 1; i < last; ++i) best = max(best, inner[i]);
        out[k] = best;
      }
    } else if (w.stride_w == 1) {
      across_line<1>(line, w.out_width, w.kernel_w, 1, out);
    } else if (w.stride_w == 2) {
      across_line<2>(line, w.out_width, w.kernel_w, 2, out);
    } else {
      across_line<0>(line, w.out_width, w.kernel_w, w.stride_w, out);
    }
  }
}

static void pool(const IntegerPooling& p) {
  if (p.type == Type::u8) pool_of<uint8_t>(p);
  else pool_of<int8_t>(p);
}

}  // namespace integers
