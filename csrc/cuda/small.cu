#include "cuda/small_tiles.cuh"

#include <algorithm>

namespace fastmmd::cuda {
namespace {

// Rows of a thread block. Of many rows more are taken at a time, as all blocks together read z as
// often as there are blocks.
int small_rows_of(int64_t count) { return count <= 256 ? 4 : 8; }

// What reads z from the L2 cache in the least time: more blocks only read it more often.
constexpr int64_t small_blocks = 64;

Small lay_out_small(const Mmd2Args& args, const Mmd2Out& out, Arena& arena) {
  Small s{};
  s.rows = {args.x.rows, args.y.rows};
  s.d = int(args.widths[0]);
  s.padded = int(round_up(s.rows.n + s.rows.m, 8));
  s.width = int(round_up(s.d, small_columns));
  s.slices = s.width / small_columns;
  const int64_t rows = small_rows_of(s.count());
  s.tiles = int(round_up(s.count(), rows) / rows);
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
  int64_t chunks = 1;
  if (out.v_x || out.v_y)
    chunks = std::clamp<int64_t>(small_blocks / (s.tiles * batch), 1, round_up(s.width, 32) / 32);
  s.chunk = int(round_up((s.width + chunks - 1) / chunks, 4));
  s.z = arena.take<float>(batch * s.padded * s.width);
  s.columns = arena.take<float>(batch * s.padded * s.width);
  s.spread = arena.take<double>(batch * s.slices);
  s.largest = arena.take<double>(batch * s.slices);
  s.exponent = arena.take<int>(batch * s.slices);
  s.parts = arena.take<double>(batch * s.tiles * 3);
  if (out.v_x_weights || out.v_y_weights) s.potentials = arena.take<double>(batch * s.padded);
  s.arrived = arena.take<unsigned>(batch);
  return s;
}

template <int R, bool gaussian>
void launch_tiles_of(const Small& s, int64_t batch, cudaStream_t stream) {
  const unsigned chunks = unsigned((s.width + s.chunk - 1) / s.chunk);
  check(fastmmd::cuda::launch(small_tiles_kernel<R, gaussian>,
                              dim3(unsigned(s.tiles), chunks, unsigned(batch)),
                              dim3(small_threads<R>), SmallRoom<R>::bytes(s.padded), stream, s));
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
      args_.batch > 65535)
    return false;
  const Unit unit = args_.terms[0].unit;
  if (unit != Unit::fixed && unit != Unit::mean && unit != Unit::width) return false;
  for (int t = 0; t < args_.num_terms; ++t)
    if (args_.terms[t].unit != unit || geometry(args_.terms[t].family) != Geometry::radial)
      return false;
  const int padded = int(round_up(count, 8));
  const size_t shared =
      small_rows_of(count) == 4 ? SmallRoom<4>::bytes(padded) : SmallRoom<8>::bytes(padded);
  constexpr size_t reserved = 8 << 10;  // what is not dynamic
  int most = 0;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, launch_.device));
  return shared + reserved <= size_t(most);
}

void Mmd2::small() const {
  const DeviceGuard guard(launch_.device);
  const cudaStream_t stream = static_cast<cudaStream_t>(launch_.stream);
  Arena arena(args_.workspace);
  Small s = lay_out_small(args_, out_, arena);
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
  const int64_t batch = args_.batch;
  if (small_rows_of(s.count()) == 4)
    gaussian ? launch_tiles_of<4, true>(s, batch, stream)
             : launch_tiles_of<4, false>(s, batch, stream);
  else
    gaussian ? launch_tiles_of<8, true>(s, batch, stream)
             : launch_tiles_of<8, false>(s, batch, stream);
}

}  // namespace fastmmd::cuda
