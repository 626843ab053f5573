// The Python module ftwt.runtime._native: builds a network operation by operation, and runs it.
// Programs were checked before (ftwt/runtime/check.py); here only what would corrupt memory is
// checked again: sizes of arrays and ranges of indices.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <map>
#include <stdexcept>

#include "convolution.h"
#include "network.h"
#include "steps.h"

namespace nb = nanobind;
using namespace ftwt;

namespace {

template <typename T>
using Array = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;

Activation activation(const std::string& name) {
  static const std::map<std::string, Activation> known = {
      {"none", Activation::none}, {"relu", Activation::relu}, {"relu6", Activation::relu6},
      {"silu", Activation::silu}, {"hardswish", Activation::hardswish}, {"sigmoid", Activation::sigmoid},
      {"hardsigmoid", Activation::hardsigmoid}, {"leaky_relu", Activation::leaky_relu}, {"elu", Activation::elu},
      {"gelu", Activation::gelu}, {"tanh", Activation::tanh}};
  const auto found = known.find(name);
  if (found == known.end()) throw std::invalid_argument("unknown activation " + name);
  return found->second;
}

Algorithm algorithm(const std::string& name) {
  if (name == "auto") return Algorithm::automatic;
  if (name == "direct") return Algorithm::direct;
  if (name == "winograd") return Algorithm::winograd;
  if (name == "dot") return Algorithm::dot;
  throw std::invalid_argument("algorithm=" + name + ": use auto, direct, winograd or dot");
}

Type type(const std::string& name) {
  if (name == "f32") return Type::f32;
  if (name == "u8") return Type::u8;
  if (name == "s8") return Type::s8;
  throw std::invalid_argument("unknown type " + name);
}

// One operation's fields, by name.
class Fields {
 public:
  explicit Fields(const nb::dict& fields) : fields_(fields) {}

  template <typename T>
  T get(const char* name) const { return nb::cast<T>(fields_[name]); }

  std::optional<int> maybe(const char* name) const {
    nb::object value = fields_[name];
    return value.is_none() ? std::nullopt : std::optional<int>(nb::cast<int>(value));
  }

  bool has(const char* name) const { return fields_.contains(name) && !nb::object(fields_[name]).is_none(); }

  // The name of a constant, which steps may share.
  std::string constant(const char* name) const {
    if (!fields_.contains("names")) return "";
    const auto names = nb::cast<nb::dict>(fields_["names"]);
    return names.contains(name) ? nb::cast<std::string>(names[name]) : "";
  }

  template <typename T>
  const T* array(const char* name, int64_t size) {
    Array<T> a = nb::cast<Array<T>>(fields_[name]);
    if (static_cast<int64_t>(a.size()) != size)
      throw std::invalid_argument(std::string(name) + " has " + std::to_string(a.size()) + " values, not " + std::to_string(size));
    const T* data = a.data();
    kept_.push_back(nb::cast(a));
    return data;
  }

 private:
  const nb::dict& fields_;
  std::vector<nb::object> kept_;  // arrays that are being read
};

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("not a valid operation: ") + what);
}

class PyNetwork {
 public:
  PyNetwork(const std::vector<std::array<int, 3>>& maps, const std::vector<int>& gates, int output, int threads,
            const std::string& isa, const std::string& how, const std::vector<std::string>& types,
            const std::vector<float>& scales) : algorithm_(algorithm(how)) {
    if (threads < 1 || threads > 256) throw std::invalid_argument("threads=" + std::to_string(threads) + ": use 1 to 256");
    std::vector<Shape> shapes;
    for (const auto& [c, h, w] : maps) {
      require(c > 0 && h > 0 && w > 0, "an empty map");
      shapes.push_back({c, h, w});
    }
    for (const int g : gates) require(g > 0, "an empty gate");
    require(!shapes.empty() && output >= 0 && output < static_cast<int>(shapes.size()), "no output");
    require(types.size() == scales.size() && (types.empty() || types.size() == shapes.size()), "a type and a scale for each map");
    std::vector<Type> kinds;
    for (const std::string& name : types) kinds.push_back(type(name));
    for (size_t m = 0; m < kinds.size(); ++m)
      require(kinds[m] == Type::f32 ? scales[m] == 1.0f : scales[m] > 0.0f && 1.0f / scales[m] > 0.0f, "the scale of a map");
    require(kinds.empty() || (kinds[0] == Type::f32 && kinds[output] == Type::f32), "input and output are f32");
    net_ = std::make_unique<Network>(std::move(shapes), gates, output, threads, isa, std::move(kinds), scales);
  }

  void add(const nb::dict& fields) {
    Fields f(fields);
    const std::string kind = f.get<std::string>("operation");
    net_->add(make(kind, f));
    ++steps_;
  }

  void finish() { net_->finish(); }
  void clock(bool on) {
    net_->revive();
    nb::gil_scoped_release release;
    net_->clock(on);
  }
  std::vector<double> seconds() {
    net_->revive();
    nb::gil_scoped_release release;
    return net_->seconds();
  }

  nb::tuple run(const Array<float>& x, const nb::dict& forced) {
    const Shape &in = net_->maps[0], &out = net_->maps[net_->output];
    if (x.ndim() != 4 || static_cast<int>(x.shape(1)) != in.channels || static_cast<int>(x.shape(2)) != in.height ||
        static_cast<int>(x.shape(3)) != in.width)
      throw std::invalid_argument("the input has another shape than the network's");
    const size_t batch = x.shape(0);
    if (batch > kMostSamples) throw std::invalid_argument("more than " + std::to_string(kMostSamples) + " images at once");
    std::vector<const uint8_t*> given(net_->gates.size(), nullptr);
    for (const auto& [key, value] : forced) {
      const int gate = nb::cast<int>(key);
      const auto mask = nb::cast<Array<uint8_t>>(value);  // the dict keeps it
      if (gate < 0 || gate >= static_cast<int>(given.size()) || mask.size() != batch * net_->gates[gate])
        throw std::invalid_argument("a mask of another shape than its gate's");
      given[gate] = mask.data();
    }
    auto result = fresh<float>({batch, size_t(out.channels), size_t(out.height), size_t(out.width)});
    auto macs = fresh<int64_t>({batch, steps_});
    auto decided = fresh<uint8_t>({batch, net_->filters});
    bool stopped = false;
    size_t odd = batch;
    net_->revive();
    {
      nb::gil_scoped_release release;
      odd = first_not_finite(x.data(), batch, in.size());
      try {
        if (odd == batch)
          net_->run(x.data(), static_cast<int>(batch), given, result.data(), decided.data(), macs.data(), [] {
            nb::gil_scoped_acquire hold;
            return PyErr_CheckSignals() != 0;  // in the main thread, Ctrl-C
          });
      } catch (const Interrupted&) {
        stopped = true;
      }
    }
    if (odd < batch) throw std::domain_error("image " + std::to_string(odd) + " holds a value that is not finite");
    if (stopped) nb::raise_python_error();
    return nb::make_tuple(result, decided, macs);
  }

 private:
  static constexpr size_t kMostSamples = size_t{1} << 24;

  static size_t first_not_finite(const float* x, size_t batch, int64_t size) {
    for (size_t sample = 0; sample < batch; ++sample, x += size) {
      uint32_t odd = 0;
      for (int64_t i = 0; i < size; ++i) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        odd |= (bits & 0x7f800000u) == 0x7f800000u;
      }
      if (odd) return sample;
    }
    return batch;
  }

  template <typename T>
  static nb::ndarray<nb::numpy, T> fresh(const std::vector<size_t>& shape) {
    size_t size = 1;
    for (const size_t n : shape) size *= n;
    T* data = new T[size > 0 ? size : 1];
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), owner);
  }

  int map(const Fields& f, const char* name) const {
    const int index = f.get<int>(name);
    require(index >= 0 && index < static_cast<int>(net_->maps.size()), name);
    return index;
  }

  int gate(int index) const {
    require(index >= 0 && index < static_cast<int>(net_->gates.size()), "a mask");
    return index;
  }

  bool same(int a, int b) const {
    const Shape &x = net_->maps[a], &y = net_->maps[b];
    return x.channels == y.channels && x.height == y.height && x.width == y.width;
  }

  Type type_of(int map) const { return net_->types[map]; }
  bool is_float(int map) const { return type_of(map) == Type::f32; }
  bool alike(int a, int b) const { return type_of(a) == type_of(b) && net_->scales[a] == net_->scales[b]; }

  // What eight bits can be turned into on the way to eight bits.
  static void require_plain(Activation act) {
    require(act == Activation::none || act == Activation::relu || act == Activation::relu6 ||
                act == Activation::leaky_relu || act == Activation::hardswish, "an activation of eight bits");
  }

  std::unique_ptr<Step> make(const std::string& kind, Fields& f) {
    Network& net = *net_;
    if (kind == "Conv" || kind == "QConv") return convolution(f, kind == "QConv");
    if (kind == "Predict") return predict(f);
    if (kind == "Fixed") {
      const int mask = gate(f.get<int>("mask"));
      return make_fixed(net, mask, f.array<uint8_t>("value", net.gates[mask]));
    }
    if (kind == "Gather") return gather(f);
    if (kind == "Combine") {
      const int a = map(f, "a"), b = map(f, "b"), out = map(f, "out");
      require(same(a, out) && net.maps[b].channels == net.maps[a].channels &&
                  (same(a, b) || net.maps[b].positions() == 1), "shapes of a sum or product");
      const bool product = f.get<std::string>("kind") == "mul";
      const Activation act = activation(f.get<std::string>("act"));
      if (is_float(a) && is_float(b) && is_float(out)) return make_combine(net, a, b, out, product, act);
      require(!is_float(a) && !is_float(b) && !is_float(out) && !product, "a sum of eight bits");
      require_plain(act);
      return make_integer_sum(net, a, b, out, act);
    }
    const int x = map(f, "x"), out = map(f, "out"), channels = net.maps[x].channels;
    if (kind == "Pool") {
      require(net.maps[out].channels == channels, "channels of a pool");
      Window w{};
      const auto kernel = f.get<std::array<int, 2>>("kernel"), stride = f.get<std::array<int, 2>>("stride"),
                 padding = f.get<std::array<int, 2>>("padding");
      w.kernel_h = kernel[0], w.kernel_w = kernel[1], w.stride_h = stride[0], w.stride_w = stride[1];
      w.pad_h = padding[0], w.pad_w = padding[1];
      require(w.kernel_h > 0 && w.kernel_w > 0 && w.stride_h > 0 && w.stride_w > 0 && w.pad_h >= 0 && w.pad_w >= 0, "a pool's window");
      w.maximum = f.get<std::string>("kind") == "max";
      w.include_padding = f.get<bool>("include_padding"), w.adaptive = f.get<bool>("adaptive");
      if (is_float(x)) {
        require(is_float(out), "the type of a pool");
        return make_pool(net, x, out, w);
      }
      const bool global = w.adaptive && net.maps[out].positions() == 1;
      require((w.maximum && alike(x, out)) || (global && is_float(out)), "the type of a pool");
      return make_integer_pool(net, x, out, w);
    }
    if (kind == "Flatten") {
      require(net.maps[out].size() == net.maps[x].size() && net.maps[out].channels == net.maps[x].size() && alike(x, out), "a flattened map");
      return make_flatten(x, out);
    }
    require(same(x, out), "shapes in and out");
    if (kind == "Quantize" || kind == "Dequantize") {
      require(is_float(x) == (kind == "Quantize") && is_float(out) != is_float(x), "types in and out");
      return make_convert(net, x, out);
    }
    require(alike(x, out), "types in and out");
    if (kind == "Silence") {
      const int mask = gate(f.get<int>("mask"));
      require(net.gates[mask] == channels, "channels of a mask");
      return make_silence(x, out, mask);
    }
    require(is_float(x), "a map of floats");
    if (kind == "Affine")
      return make_affine(net, x, out, f.array<float>("scale", channels), f.array<float>("shift", channels),
                         activation(f.get<std::string>("act")));
    if (kind == "Activate") return make_activate(net, x, out, activation(f.get<std::string>("act")));
    throw std::invalid_argument("unknown operation " + kind);
  }

  std::unique_ptr<Step> convolution(Fields& f, bool quantised) {
    ConvolutionSpec c;
    c.x = map(f, "x"), c.out = map(f, "out");
    const Shape &in = net_->maps[c.x], &out = net_->maps[c.out];
    require(is_float(c.x) != quantised && (quantised || is_float(c.out)), "types of a convolution");
    const auto weight = nb::cast<nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>>(f.get<nb::object>("weight"));
    c.groups = f.get<int>("groups");
    require(weight.ndim() == 4 && c.groups > 0 && in.channels % c.groups == 0 && out.channels % c.groups == 0, "groups");
    c.kernel = {static_cast<int>(weight.shape(2)), static_cast<int>(weight.shape(3))};
    const int64_t size = static_cast<int64_t>(out.channels) * (in.channels / c.groups) * c.kernel[0] * c.kernel[1];
    const int8_t* integers = quantised ? f.array<int8_t>("weight", size) : nullptr;
    if (!quantised) c.weight = f.array<float>("weight", size);
    c.name = f.constant("weight");
    c.bias = f.array<float>("bias", out.channels);
    c.stride = f.get<std::array<int, 2>>("stride"), c.dilation = f.get<std::array<int, 2>>("dilation");
    c.padding = f.get<std::array<int, 4>>("padding");
    for (int side = 0; side < 2; ++side) {
      require(c.stride[side] > 0 && c.dilation[side] > 0 && c.padding[side] >= 0 && c.padding[side + 2] >= 0, "a convolution's geometry");
      const int length = (side ? in.width : in.height) + c.padding[side] + c.padding[side + 2];
      const int outs = side ? out.width : out.height;
      require((outs - 1) * c.stride[side] + (c.kernel[side] - 1) * c.dilation[side] + 1 <= length, "a convolution's output size");
    }
    c.act = activation(f.get<std::string>("act")), c.post = activation(f.get<std::string>("post"));
    c.mask = f.maybe("mask"), c.after = f.maybe("after"), c.add = f.maybe("add");
    for (const auto& mask : {c.mask, c.after})
      if (mask) require(net_->gates[gate(*mask)] == out.channels, "channels of a mask");
    if (c.add) require(*c.add >= 0 && *c.add < static_cast<int>(net_->maps.size()) && same(*c.add, c.out), "what is added");
    c.algorithm = algorithm_;
    if (quantised) {
      require_plain(c.act), require_plain(c.post);
      require(size / out.channels <= INT32_MAX / (255 * 127), "the inputs of a filter");
      return make_integer_convolution(*net_, c, integers, f.array<float>("scale", out.channels));
    }
    require(!c.add || is_float(*c.add), "the type of what is added");
    return make_convolution(*net_, c);
  }

  std::unique_ptr<Step> predict(Fields& f) {
    PredictSpec p;
    p.features = f.get<std::vector<int>>("features");
    for (const int x : p.features) {
      require(x >= 0 && x < static_cast<int>(net_->maps.size()) && net_->maps[x].positions() == 1 && is_float(x), "a predictor's features");
      p.width += net_->maps[x].channels;
    }
    p.mask = gate(f.get<int>("mask"));
    const int filters = net_->gates[p.mask];
    if (f.has("reduce")) {
      const auto reduce = nb::cast<Array<float>>(f.get<nb::object>("reduce"));
      require(reduce.ndim() == 2 && reduce.shape(0) > 0, "a predictor's first matrix");
      p.rank = static_cast<int>(reduce.shape(0));
      p.reduce = f.array<float>("reduce", static_cast<int64_t>(p.rank) * p.width);
    }
    p.weight = f.array<float>("weight", static_cast<int64_t>(filters) * (p.rank ? p.rank : p.width));
    p.weight_name = f.constant("weight"), p.reduce_name = f.constant("reduce");
    p.bias = f.array<float>("bias", filters);
    p.threshold = f.get<float>("threshold"), p.softmax = f.get<bool>("softmax");
    return make_predict(*net_, p);
  }

  std::unique_ptr<Step> gather(Fields& f) {
    const auto xs = f.get<std::vector<int>>("xs");
    const int out = map(f, "out");
    int channels = 0;
    for (const int x : xs) {
      require(x >= 0 && x < static_cast<int>(net_->maps.size()) && net_->maps[x].positions() == net_->maps[out].positions() && alike(x, out), "what is gathered");
      channels += net_->maps[x].channels;
    }
    const int32_t* index = f.array<int32_t>("index", net_->maps[out].channels);
    std::vector<int32_t> list(index, index + net_->maps[out].channels);
    for (const int32_t i : list) require(i >= -1 && i < channels, "an index");
    return make_gather(*net_, xs, out, std::move(list));
  }

  const Algorithm algorithm_;
  std::unique_ptr<Network> net_;
  size_t steps_ = 0;
};

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // an engine may well be alive when the interpreter ends
  m.doc() = "Native engine of ftwt: runs a program on the CPU, and only what its masks leave of it.";
  m.def("isas", &available_isas, "Instruction sets that this machine runs, best first.");
#if defined(FTWT_COUNT)
  m.def("products", [] {
    static const char* const names[] = {"direct", "idle", "depthwise", "winograd", "dot", "panel", "columns", "integer"};
    nb::dict found;
    for (int kind = 0; kind < static_cast<int>(Product::kinds); ++kind)
      found[names[kind]] = __atomic_exchange_n(&products[kind], int64_t{0}, __ATOMIC_RELAXED);
    return found;
  }, "What kernels multiplied since the last call, by kind.");
#endif
  nb::class_<PyNetwork>(m, "Network")
      .def(nb::init<const std::vector<std::array<int, 3>>&, const std::vector<int>&, int, int, const std::string&,
                    const std::string&, const std::vector<std::string>&, const std::vector<float>&>(),
           nb::arg("maps"), nb::arg("gates"), nb::arg("output"), nb::arg("threads") = 1, nb::arg("isa") = "portable",
           nb::arg("algorithm") = "auto", nb::arg("types") = std::vector<std::string>(),
           nb::arg("scales") = std::vector<float>())
      .def("add", &PyNetwork::add, nb::arg("operation"))
      .def("finish", &PyNetwork::finish)
      .def("clock", &PyNetwork::clock, nb::arg("on"), "Start (or stop) to time each operation.")
      .def("seconds", &PyNetwork::seconds, "Seconds of each operation in all runs since the clock was started.")
      .def("run", &PyNetwork::run, nb::arg("x"), nb::arg("masks"));
}
