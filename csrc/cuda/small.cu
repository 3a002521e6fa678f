#include "cuda/small_tiles.cuh"

#include <algorithm>

namespace fastmmd::cuda {
namespace {

// Of z, in bytes, that every thread block reads by itself: an SM gets about 64 bytes a cycle from
// the L2 cache, and an exchange through a cluster takes about a thousand cycles.
constexpr int64_t most_read_by_all = 64 << 10;

// What decides how the work is dealt out, beside its sizes.
struct SmallDevice {
  bool clusters;
  size_t shared;  // bytes that a thread block may have

  explicit SmallDevice(int device) {
    int major = 0, most = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    clusters = major >= 9;
    shared = size_t(most);
  }
};

// use(integral_constant of the rows of a thread block).
template <class Use>
auto with_rows(const Small& s, const Use& use) {
  return s.tile == 4   ? use(std::integral_constant<int, 4>{})
         : s.tile == 8 ? use(std::integral_constant<int, 8>{})
                       : use(std::integral_constant<int, 16>{});
}

size_t shared_bytes(const Small& s) {
  return with_rows(s, [&](auto R) { return SmallRoom<R>::bytes(s.padded, s.cluster > 1); });
}

// Tiles, chunks and clusters. The more rows a tile has, the less often all of z is read; the fewer,
// the more thread blocks there are. Those that share the products of a tile do no work twice, and
// there are as many as a large GPU holds at a time; those that make the same products only read z
// more often, and there are as many as take all that the L2 cache gives.
void deal_out(Small& s, const SmallDevice& device, int64_t batch) {
  const bool clusters =
      device.clusters && int64_t(s.padded) * s.width * int64_t(sizeof(float)) > most_read_by_all;
  const int most_tiles = clusters ? 32 : 64;
  const int64_t blocks = clusters ? 128 : 64;
  for (s.tile = 4; s.tile < 16 && s.count() > s.tile * most_tiles; s.tile *= 2) {
  }
  for (;; s.tile /= 2) {
    s.tiles = (s.count() + s.tile - 1) / s.tile;
    int64_t most = std::clamp<int64_t>(blocks / (s.tiles * batch), 1, (s.width + 31) / 32);
    if (clusters) most = std::min<int64_t>(most, max_cluster);
    else if (!s.out.v_x && !s.out.v_y) most = 1;
    s.chunks = int(most);
    // A power of two, as the GPU's groups of multiprocessors are filled by those.
    while (clusters && (s.chunks & (s.chunks - 1))) s.chunks &= s.chunks - 1;
    s.cluster = clusters ? s.chunks : 1;
    if (s.tile == 4 || shared_bytes(s) <= device.shared) break;
  }
  s.chunk = int(round_up((s.width + s.chunks - 1) / s.chunks, 4));
}

Small lay_out_small(const Mmd2Args& args, const Mmd2Out& out, Arena& arena) {
  Small s{};
  s.rows = {args.x.rows, args.y.rows};
  s.d = int(args.widths[0]);
  s.padded = int(round_up(s.rows.n + s.rows.m, 16));
  s.width = int(round_up(s.d, small_columns));
  s.slices = s.width / small_columns;
  s.x = args.x;
  s.y = args.y;
  s.estimator = args.estimator;
  s.pairs = counted_pairs(args);
  s.share = args.share;
  s.num_terms = args.num_terms;
  s.unit = args.terms[0].unit;
  for (int t = 0; t < args.num_terms; ++t) {
    s.family[t] = uint8_t(args.terms[t].family);
    s.p[t] = args.terms[t].p;
  }
  s.scales = args.scales;
  s.out = out;

  const int64_t batch = args.batch;
  s.z = arena.take<float>(batch * s.padded * s.width);
  s.columns = arena.take<float>(batch * s.padded * s.width);
  s.spread = arena.take<double>(batch * s.slices);
  s.largest = arena.take<double>(batch * s.slices);
  s.exponent = arena.take<int>(batch * s.slices);
  s.parts = arena.take<double>(batch * s.most_tiles() * 3);
  if (out.v_x_weights || out.v_y_weights) s.potentials = arena.take<double>(batch * s.padded);
  s.arrived = arena.take<unsigned>(batch);
  return s;
}

}  // namespace

size_t small_workspace(const Mmd2Args& args, const Mmd2Out& out) {
  Arena arena(nullptr);
  lay_out_small(args, out, arena);
  return arena.bytes();
}

bool Mmd2::takes_small() const {
  const int64_t count = args_.x.rows + args_.y.rows;
  const Estimator e = args_.estimator;
  const bool known = e == Estimator::biased || e == Estimator::unbiased || e == Estimator::cross;
  if (count > small_rows || args_.dtype == Dtype::float64 || !known || out_.v_scales ||
      args_.num_factors != 1 || args_.constant_factors || args_.num_terms > small_terms ||
      args_.batch > 65535 || args_.widths[0] > INT32_MAX / 2)
    return false;
  const Unit unit = args_.terms[0].unit;
  if (unit != Unit::fixed && unit != Unit::mean && unit != Unit::width) return false;
  for (int t = 0; t < args_.num_terms; ++t)
    if (args_.terms[t].unit != unit || geometry(args_.terms[t].family) != Geometry::radial)
      return false;
  Arena arena(nullptr);
  Small s = lay_out_small(args_, out_, arena);
  const SmallDevice device(launch_.device);
  deal_out(s, device, args_.batch);
  return shared_bytes(s) <= device.shared;
}

void Mmd2::small() const {
  const DeviceGuard guard(launch_.device);
  const cudaStream_t stream = static_cast<cudaStream_t>(launch_.stream);
  Arena arena(args_.workspace);
  Small s = lay_out_small(args_, out_, arena);
  deal_out(s, SmallDevice(launch_.device), args_.batch);
  s.given_scales = launch_.given_scales;
  s.coefficients = launch_.coefficients;

  const dim3 grid(unsigned(s.slices), unsigned(args_.batch));
  const size_t shared = size_t(s.padded) * slice_stride * sizeof(float);
  auto centre = [&](auto kernel) {
    check(fastmmd::cuda::launch(kernel, grid, dim3(slice_threads), shared, stream, s));
  };
  switch (args_.dtype) {
    case Dtype::float16: centre(small_columns_kernel<Dtype::float16>); break;
    case Dtype::bfloat16: centre(small_columns_kernel<Dtype::bfloat16>); break;
    default: centre(small_columns_kernel<Dtype::float32>);
  }
  const bool gaussian = std::all_of(args_.terms, args_.terms + args_.num_terms,
                                    [](const Term& t) { return t.family == Family::gaussian; });
  const dim3 tiles(unsigned(s.tiles * s.chunks), unsigned(args_.batch));
  with_rows(s, [&](auto R) {
    auto multiply = [&](auto kernel) {
      check(launch_cluster(kernel, tiles, dim3(small_threads<R>), shared_bytes(s), stream,
                           unsigned(s.cluster), s));
    };
    gaussian ? multiply(small_tiles_kernel<R, true>) : multiply(small_tiles_kernel<R, false>);
  });
}

}  // namespace fastmmd::cuda
