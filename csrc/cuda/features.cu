// The passes of random features: what comes before and after the tiles of projections.
#include "cuda/features.cuh"

#include <algorithm>
#include <limits>

#include "cuda/structured.cuh"
#include "cuda/tiles.cuh"

namespace fastmmd::cuda {
namespace {

// The rates in their order, and P and Q by it. One block orders, for itself.
constexpr int order_threads = 256;

template <class T>
__global__ void __launch_bounds__(order_threads)
    order_rates_kernel(const double* given, int count, double largest, Rates<T>* rates) {
  __shared__ Rates<T> ordered;
  __shared__ double room[max_rates];
  for (int k = threadIdx.x; k < count; k += order_threads) room[k] = given[k];
  __syncthreads();
  if (threadIdx.x == 0) ordered.fill(room, count, largest);
  __syncthreads();
  load_rates(&ordered, *rates);
}

// [rates][pitch] of [rates][count], with zeros behind.
template <class T>
__global__ void __launch_bounds__(order_threads)
    order_pulls_kernel(const double* p, const double* q, const Rates<T>* rates, int64_t count,
                       int64_t pitch, double scale, T* to_p, T* to_q) {
  const int64_t j = int64_t(blockIdx.x) * order_threads + threadIdx.x, k = blockIdx.y;
  if (j >= pitch) return;
  const int64_t from = rates->place[k] * count + j;
  to_p[k * pitch + j] = j < count ? T(p[from] * scale) : T(0);
  to_q[k * pitch + j] = j < count ? T(q[from] * scale) : T(0);
}

constexpr int pack_threads = 256;

// One warp a row: a point less the centre and its weight, or a frequency and its product with the
// centre.
template <Operand operand, class T>
__global__ void __launch_bounds__(pack_threads)
    pack_features_kernel(Sample x, Dtype dtype, Sample w, const double* center, Points<T> points,
                         double* shifts) {
  using S = Stored<operand>;
  using E = typename S::type;
  const Factor<T>& f = points.factors[0];
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t(blockIdx.x) * (pack_threads / 32) + threadIdx.x / 32;
  const int domain = points.domain(row);
  const int64_t i = row - points.rows.first(domain);
  const bool exists = i < (domain ? w.rows : x.rows);
  const int64_t row_stride = domain ? w.row_stride : x.row_stride;
  const int64_t column_stride = domain ? w.column_stride : x.column_stride;
  E* const z = static_cast<E*>(f.z) + row * f.depth;
  double shift = 0;
#pragma unroll 2
  for (int64_t k = lane; k < f.depth; k += 32) {
    E rounded{};
    if (exists && k < f.d) {
      const int64_t at = i * row_stride + k * column_stride;
      if (domain) {
        const T of_w = static_cast<const T*>(w.data)[at];
        shift += double(of_w) * center[k];
        rounded = S::round(of_w);
      } else {
        rounded = S::round(to_float<T>(x.data, dtype, at) - T(center[k]));
      }
    }
    z[k] = rounded;
  }
  shift = warp_sum(shift);
  if (lane) return;
  if (!domain)
    points.weights[row] = !exists     ? T(0)
                          : x.weights ? T(x.weights[i] * double(x.rows))
                                      : T(1);  // of mean 1
  else if (exists && shifts) shifts[i] = shift;
}

constexpr int finish_threads = 256;

// [kinds][rates in order][pitch] of parts to [kinds][rates][count].
template <class T>
__global__ void __launch_bounds__(finish_threads)
    finish_sums_kernel(const double* partial, int64_t parts, const Rates<T>* rates, int64_t count,
                       int64_t pitch, double scale, double* sums) {
  const int64_t j = int64_t(blockIdx.x) * finish_threads + threadIdx.x;
  const int64_t row = blockIdx.y, k = row % rates->count, kind = row / rates->count;
  if (j >= count) return;
  double sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += partial[(part * gridDim.y + row) * pitch + j];
  sums[(kind * rates->count + rates->place[k]) * count + j] = sum * scale;
}

// What the rows of tiles pull, to the points of a panel.
template <class T>
__global__ void __launch_bounds__(finish_threads)
    add_weights_kernel(const T* parts, int64_t count, int64_t columns, int64_t existing,
                       double scale, double* to) {
  const int64_t i = int64_t(blockIdx.x) * finish_threads + threadIdx.x;
  if (i >= existing) return;
  double sum = 0;
  for (int64_t part = 0; part < count; ++part) sum += double(parts[part * columns + i]);
  to[i] += sum * scale;
}

unsigned blocks_of(int64_t count, int threads) {
  return unsigned(round_up(count, threads) / threads);
}

// What both passes have.
template <class T>
class FeaturePass {
 public:
  FeaturePass(const FeatureArgs& args, const FeatureLaunch& launch)
      : args_(args), launch_(launch), arena_(args.workspace) {
    structured_ = args.transforms.width > 0;
    points_.rows = {args.x.rows, args.frequencies.rows};
    points_.num_factors = 1;
    Factor<T>& f = points_.factors[0];
    f.z = launch.z;
    f.d = int(args.d);
    f.depth = depth(args.d);
    points_.weights = arena_.template take<T>(structured_ ? 0 : points_.rows.first(1));
    rates_ = arena_.template take<Rates<T>>(1);
    pitch_ = structured_ ? args.frequencies.rows : points_.padded() - points_.rows.first(1);
    if (!structured_) {
      if constexpr (sizeof(T) == 8) {
        kernels_ = simt_features<T>();
      } else {
        kernels_ = launch.products == Products::simt  ? simt_features<T>()
                   : launch.products == Products::mma ? mma_features(launch.operand)
                                                      : wgmma_features(launch.operand);
      }
    }
  }

 protected:
  cudaStream_t stream() const { return static_cast<cudaStream_t>(launch_.stream); }
  // Weights have mean 1.
  double per_point() const { return 1 / double(args_.x.rows); }

  int64_t resident(int blocks) const {
    int processors = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, launch_.device));
    return int64_t(processors) * blocks;
  }

  void order_rates() const {
    check(fastmmd::cuda::launch(order_rates_kernel<T>, dim3(1), dim3(order_threads), 0, stream(),
                                args_.rates, args_.num_rates, double(std::numeric_limits<T>::max()),
                                rates_));
  }

  void pack(const double* center, double* shifts) const {
    with_operand(launch_.operand, [&](auto operand) {
      if constexpr (operand == Operand::float16) check(cudaErrorInvalidValue);
      else if constexpr (std::is_same_v<typename Stored<operand>::compute, T>)
        check(fastmmd::cuda::launch(pack_features_kernel<operand, T>,
                                    dim3(unsigned(points_.padded() / (pack_threads / 32))),
                                    dim3(pack_threads), 0, stream(), args_.x, args_.dtype,
                                    args_.frequencies, center, points_, shifts));
    });
  }

  FeatureTiles<T> tiles(int64_t row, int64_t rows, int64_t column, int64_t columns) const {
    FeatureTiles<T> tiles{};
    tiles.tiles.points = points_;
    tiles.tiles.row = row;
    tiles.tiles.rows = rows;
    tiles.tiles.column = column;
    tiles.tiles.columns = columns;
    tiles.rates = rates_;
    return tiles;
  }

  Structured<T> structured(const double* center) const {
    Structured<T> all{};
    all.x = args_.x;
    all.dtype = args_.dtype;
    all.d = args_.d;
    all.center = center;
    all.transforms = args_.transforms;
    all.count = args_.frequencies.rows;
    all.rates = rates_;
    return all;
  }

  const FeatureArgs args_;
  const FeatureLaunch launch_;
  Arena arena_;
  bool structured_;
  Points<T> points_{};
  Rates<T>* rates_;
  int64_t pitch_;  // of numbers by frequency, on the device
  FeatureKernels<T> kernels_{};
};

template <class T>
class SumsPass : FeaturePass<T> {
  using Base = FeaturePass<T>;
  using Base::args_, Base::arena_, Base::kernels_, Base::pitch_, Base::points_, Base::rates_;

 public:
  SumsPass(const FeatureSumsArgs& args, const FeatureLaunch& launch)
      : Base(args, launch), sums_(args) {
    const int64_t n = args.x.rows, F = args.frequencies.rows;
    if (this->structured_) {
      const int64_t width = args.transforms.width, rows = structured_rows<T>(width);
      bands_ = (F + width - 1) / width;
      room_ = arena_.template take<double>(bands_ * padded_width(width));
      choose_parts(this->resident(structured_blocks), (n + rows - 1) / rows, 1);
    } else {
      bands_ = pitch_ / kernels_.shape.tile;
      choose_parts(this->resident(kernels_.shape.blocks),
                   points_.rows.first(1) / kernels_.shape.tile, kernels_.shape.groups);
    }
    partial_ = arena_.template take<double>(parts_ * groups_ * numbers());
  }

  size_t workspace() const { return arena_.bytes(); }

  void run() const {
    this->order_rates();
    const unsigned blocks = unsigned(bands_ * parts_);
    if (this->structured_) {
      Structured<T> all = this->structured(sums_.center);
      all.parts = parts_;
      all.moments = sums_.moments;
      all.partial = partial_;
      structured_shifts(all, room_, sums_.shifts, this->stream());
      structured_sums(all, blocks, this->stream());
    } else {
      this->pack(sums_.center, sums_.shifts);
      FeatureTiles<T> tiles = this->tiles(points_.rows.first(1), pitch_, 0, points_.rows.first(1));
      tiles.parts = parts_;
      tiles.moments = sums_.moments;
      tiles.partial = partial_;
      kernels_.sums(tiles, blocks, this->launch_);
    }
    check(fastmmd::cuda::launch(finish_sums_kernel<T>,
                                dim3(blocks_of(args_.frequencies.rows, finish_threads),
                                     unsigned(kinds(sums_.moments) * args_.num_rates)),
                                dim3(finish_threads), 0, this->stream(), partial_,
                                int64_t(parts_) * groups_, rates_, args_.frequencies.rows, pitch_,
                                this->per_point(), sums_.sums));
  }

 private:
  static constexpr int64_t most_bytes = int64_t(32) << 20;  // of partial sums

  int64_t numbers() const { return kinds(sums_.moments) * args_.num_rates * pitch_; }

  // How many blocks share the points of a band: as many as leave the least of the device idle.
  void choose_parts(int64_t resident, int64_t steps, int groups) {
    groups_ = groups;
    const int64_t room = most_bytes / (groups * numbers() * int64_t(sizeof(double)));
    const int64_t enough = 4 * resident / bands_ + 1;
    const int64_t most = std::max<int64_t>(std::min({room, steps, enough}), 1);
    double best = 0;
    for (int64_t parts = 1; parts <= most; ++parts) {
      const int64_t rounds = (bands_ * parts + resident - 1) / resident;
      const int64_t longest = (steps + parts - 1) / parts * rounds;  // of one multiprocessor
      const double busy = double(bands_ * steps) / double(longest * resident);
      if (busy > 1.02 * best) {
        best = busy;
        parts_ = int(parts);
      }
    }
  }

  const FeatureSumsArgs sums_;
  int64_t bands_;
  int parts_ = 1, groups_ = 1;
  double *partial_, *room_ = nullptr;
};

template <class T>
class GradientsPass : FeaturePass<T> {
  using Base = FeaturePass<T>;
  using Base::args_, Base::arena_, Base::kernels_, Base::pitch_, Base::points_, Base::rates_;

 public:
  GradientsPass(const FeatureGradientsArgs& args, const FeatureLaunch& launch)
      : Base(args, launch), gradients_(args) {
    const int64_t size = args.num_rates * pitch_;
    p_ = arena_.template take<T>(size);
    q_ = arena_.template take<T>(size);
    base_ = arena_.bytes();
  }

  size_t workspace(int64_t rows, int64_t columns) const {
    if (!rows || !gradients_.v_weights) return base_;
    return base_ + size_t(rows / kernels_.shape.tile * columns) * sizeof(T);
  }

  void begin() const {
    this->order_rates();
    check(fastmmd::cuda::launch(order_pulls_kernel<T>,
                                dim3(blocks_of(pitch_, order_threads), unsigned(args_.num_rates)),
                                dim3(order_threads), 0, this->stream(), gradients_.p, gradients_.q,
                                rates_, args_.frequencies.rows, pitch_, this->per_point(), p_, q_));
    if (!this->structured_) this->pack(gradients_.center, nullptr);
  }

  void panel(int64_t row, int64_t rows, int64_t column, int64_t columns, void* w) const {
    FeatureTiles<T> tiles = this->tiles(row, rows, column, columns);
    tiles.tiles.w[0] = w;
    tiles.pulls = {p_, q_, pitch_};
    if (gradients_.v_weights)
      tiles.weight_parts = reinterpret_cast<T*>(static_cast<char*>(args_.workspace) + base_);
    const TileShape& shape = kernels_.shape;
    const int64_t count = tiles_of(tiles.tiles, shape.tile);
    kernels_.slopes(tiles, unsigned(std::min(count, this->resident(shape.blocks))), this->launch_);
    const int64_t existing = std::min(columns, args_.x.rows - column);
    if (gradients_.v_weights)
      check(fastmmd::cuda::launch(add_weights_kernel<T>, dim3(blocks_of(existing, finish_threads)),
                                  dim3(finish_threads), 0, this->stream(), tiles.weight_parts,
                                  rows / shape.tile, columns, existing, double(args_.x.rows),
                                  gradients_.v_weights + column));
  }

  void all() const {
    begin();
    Structured<T> all = this->structured(gradients_.center);
    all.pulls = {p_, q_, pitch_};
    all.v_x = static_cast<T*>(gradients_.v_x);
    all.v_weights = gradients_.v_weights;
    structured_gradients(all, this->stream());
  }

 private:
  const FeatureGradientsArgs gradients_;
  T *p_, *q_;
  size_t base_;
};

// use(the pass in its type), on its device.
template <template <class> class Pass, class Args, class Use>
auto with_pass(const Args& args, const FeatureLaunch& launch, const Use& use) {
  const DeviceGuard guard(launch.device);
  if (args.dtype == Dtype::float64) return use(Pass<double>(args, launch));
  return use(Pass<float>(args, launch));
}

}  // namespace

size_t workspace(const FeatureSumsArgs& args, const FeatureLaunch& launch) {
  return with_pass<SumsPass>(args, launch, [](const auto& pass) { return pass.workspace(); });
}
void feature_sums(const FeatureSumsArgs& args, const FeatureLaunch& launch) {
  with_pass<SumsPass>(args, launch, [](const auto& pass) { pass.run(); });
}

size_t FeatureGradients::workspace(int64_t rows, int64_t columns) const {
  return with_pass<GradientsPass>(args_, launch_,
                                  [&](const auto& pass) { return pass.workspace(rows, columns); });
}
void FeatureGradients::begin() const {
  with_pass<GradientsPass>(args_, launch_, [](const auto& pass) { pass.begin(); });
}
void FeatureGradients::panel(int64_t row, int64_t rows, int64_t column, int64_t columns,
                             void* w) const {
  with_pass<GradientsPass>(args_, launch_,
                           [&](const auto& pass) { pass.panel(row, rows, column, columns, w); });
}
void FeatureGradients::all() const {
  with_pass<GradientsPass>(args_, launch_, [](const auto& pass) { pass.all(); });
}

}  // namespace fastmmd::cuda
