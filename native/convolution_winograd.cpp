// 3x3 convolutions by Winograd's F(2x2, 3x3): weights transformed once, tiles shared out.
#include "convolution_step.h"

#include <algorithm>

namespace ftwt {

namespace {

constexpr int64_t kPatchFloats = int64_t{1} << 17;  // of patches at a time: 512 KiB, half of L2

class WinogradConvolution : public Convolution {
 public:
  WinogradConvolution(Network& net, const ConvolutionSpec& spec)
      : Convolution(net, spec), rows_((out_.height + 1) / 2), columns_((out_.width + 1) / 2) {
    const int64_t pairs = static_cast<int64_t>(out_.channels) * in_.channels;
    weights_ = keep(net, "winograd", static_cast<size_t>(pairs) * 16, [&](float* u) {
      for (int64_t pair = 0; pair < pairs; ++pair) transform(spec.weight + pair * 9, u + pair * 16);
    });
    if (spec.algorithm == Algorithm::automatic && pairs <= 64 * 64)
      direct_ = make_direct(net, spec);
  }

  void compute(Network& net, std::vector<Job>& jobs) const override {
    // with threads, one sharing out of tiles is quicker than two, of inputs and then of outputs
    if (direct_ && net.workers.count() == 1 && few(jobs)) return direct_->compute(net, jobs);
    // rows of tiles whose patches fit the cache, and enough such blocks to share out
    const int workers = net.workers.count(), batch = static_cast<int>(jobs.size());
    const int64_t most = kPatchFloats / (static_cast<int64_t>(in_.channels) * columns_ * 16);
    const int fits = static_cast<int>(std::clamp<int64_t>(most, 1, rows_));
    const int wanted = workers > 1 && batch < 4 * workers ? 4 * workers / batch : 1;
    const int largest = std::clamp(static_cast<int>(static_cast<int64_t>(rows_) * columns_ / kFewTiles), 1, rows_);  // number of blocks worth while
    const int blocks = std::max((rows_ + fits - 1) / fits, std::min(wanted, largest));
    // weights of more than 1 MiB are read once for all samples, and by one worker each
    const bool share_weights = work / out_.positions() * 16 / 9 > int64_t{1} << 18 && blocks == 1 && (batch > 1 || workers > 1);
    if (blocks * batch >= workers && !share_weights) {
      net.workers.share(blocks * batch, [&](int i, int worker) {
        const Job& job = jobs[i / blocks];
        const int first = share_of(rows_, i % blocks, blocks), last = share_of(rows_, i % blocks + 1, blocks);
        if (first == last) return;
        const int tiles = (last - first) * columns_;
        const size_t patches = winograd_patches(tiles, static_cast<int>(job.inputs.size()));
        float* scratch = net.scratch(worker).need(
            patches + winograd_padded(last - first, columns_, in_.width + spec_.padding[1]) + winograd_sums(tiles));
        stage(net, job, 0, static_cast<int>(job.inputs.size()), first, last, scratch, scratch + patches);
        const int filters = static_cast<int>(job.filters.size());
        const int64_t each = static_cast<int64_t>(tiles) * 16 * static_cast<int64_t>(job.inputs.size());
        const int some = per_piece(filters, each);
        for (int f = 0; f < filters; f += some) {
          net.pulse(worker, each * some);
          multiply(net, job, f, std::min(filters, f + some), first, last, scratch, scratch + patches);
        }
      });
      return;
    }
    const int tiles = rows_ * columns_;
    in_phases(
        net, jobs, [&](const Job& job) { return winograd_patches(tiles, static_cast<int>(job.inputs.size())); },
        [&](Job* first, int count, float* scratch) {
          const int parts = workers > 1 ? 4 : 1;
          net.workers.share(count * parts, [&](int i, int worker) {
            const Job& job = first[i / parts];
            const int n = static_cast<int>(job.inputs.size()), part = i % parts;
            float* padded = net.scratch(worker).need(winograd_padded(rows_, columns_, in_.width + spec_.padding[1]));
            stage(net, job, share_of(n, part, parts), share_of(n, part + 1, parts), 0, rows_, scratch + job.staged, padded);
          });
        },
        [&](Job* first, int count, float* scratch) {
          const int parts = std::max(1, count > 1 || workers > 1 ? out_.channels / 24 : 1);
          net.workers.share(parts, [&](int part, int worker) {
            float* sums = net.scratch(worker).need(winograd_sums(tiles));
            for (int k = 0; k < count; ++k) {
              const auto [from, to] =
                  filters_between(first[k], share_of(out_.channels, part, parts), share_of(out_.channels, part + 1, parts));
              if (from < to) multiply(net, first[k], from, to, 0, rows_, scratch + first[k].staged, sums);
            }
          });
        });
  }

 private:
  // G g G^T
  static void transform(const float* g, float* u) {
    float half[4][3];
    for (int x = 0; x < 3; ++x) {
      half[0][x] = g[x];
      half[1][x] = (g[x] + g[3 + x] + g[6 + x]) * 0.5f;
      half[2][x] = (g[x] - g[3 + x] + g[6 + x]) * 0.5f;
      half[3][x] = g[6 + x];
    }
    for (int y = 0; y < 4; ++y) {
      const float* h = half[y];
      u[4 * y] = h[0];
      u[4 * y + 1] = (h[0] + h[1] + h[2]) * 0.5f;
      u[4 * y + 2] = (h[0] - h[1] + h[2]) * 0.5f;
      u[4 * y + 3] = h[2];
    }
  }

  void stage(Network& net, const Job& job, int from, int to, int first_row, int last_row, float* patches,
             float* padded) const {
    net.kernels.patches({job.x, in_.height, in_.width, spec_.padding[0], spec_.padding[1], job.inputs.data(),
                         static_cast<int>(job.inputs.size()), from, to, columns_, first_row, last_row, patches, padded});
  }

  void multiply(Network& net, const Job& job, int from, int to, int first_row, int last_row, const float* patches,
                float* sums) const {
    static thread_local std::vector<int64_t> offsets;
    offsets.resize(job.inputs.size());
    for (size_t i = 0; i < offsets.size(); ++i) offsets[i] = static_cast<int64_t>(job.inputs[i]) * 16;
    net.kernels.winograd({patches, static_cast<int>(job.inputs.size()), offsets.data(), weights_,
                          static_cast<int64_t>(in_.channels) * 16, job.filters.data(), from, to, columns_, first_row,
                          last_row, out_.height, out_.width, sums, job.epilogue});
  }

  // Measured: a tile costs about 5 cycles for each input and filter and 0.6 for each pair of them, the
  // same outputs 1.35 for each pair by the plain definition.
  static bool few(const std::vector<Job>& jobs) {
    size_t pairs = 0, sides = 0;
    for (const Job& job : jobs) pairs += job.inputs.size() * job.filters.size(), sides += job.inputs.size() + job.filters.size();
    return 3 * pairs < 20 * sides;
  }

  static constexpr int kFewTiles = 24;  // fewer at a time do not pay for reading the weights

  const int rows_, columns_;  // of tiles
  std::unique_ptr<Convolution> direct_;  // for when few channels are active
  const float* weights_;
};

}  // namespace

std::unique_ptr<Convolution> make_winograd(Network& net, const ConvolutionSpec& spec) {
  return std::make_unique<WinogradConvolution>(net, spec);
}

}  // namespace ftwt
