#include "cuda/small_tiles.cuh"

#include <algorithm>

namespace fastmmd::cuda {
namespace {

// What all of z may be, in bytes, for each thread block to read it: an SM reads about 64 bytes a
// cycle from the L2 cache.
constexpr int64_t small_most_bytes = 1 << 19;

bool has_gram(const Small& s) {
  return int64_t(s.padded) * s.width * int64_t(sizeof(float)) > small_most_bytes;
}

// Of a thread block. Of many rows more are taken at a time, as all blocks together read z as often
// as there are blocks.
int rows_of(const Small& s) { return has_gram(s) ? 16 : s.count() <= 256 ? 4 : 8; }

// Blocks that make the same products only read z more often: as many as take all that the L2 cache
// gives. Those that are handed the products do not read more than their share.
int64_t blocks_of(const Small& s) { return has_gram(s) ? 128 : 64; }

int gram_tiles(const Small& s) {
  const int side = int(round_up(s.padded, gram_tile) / gram_tile);
  return side * (side + 1) / 2;
}

Small lay_out_small(const Mmd2Args& args, const Mmd2Out& out, Arena& arena) {
  Small s{};
  s.rows = {args.x.rows, args.y.rows};
  s.d = int(args.widths[0]);
  s.padded = int(round_up(s.rows.n + s.rows.m, 16));
  s.width = int(round_up(s.d, small_columns));
  s.slices = s.width / small_columns;
  const int64_t rows = rows_of(s);
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
    chunks = std::clamp<int64_t>(blocks_of(s) / (s.tiles * batch), 1, round_up(s.width, 32) / 32);
  s.chunk = int(round_up((s.width + chunks - 1) / chunks, 4));
  s.z = arena.take<float>(batch * s.padded * s.width);
  s.columns = arena.take<float>(batch * s.padded * s.width);
  if (has_gram(s)) {
    constexpr int64_t blocks = 128, most = 16;
    s.splits = int(std::clamp<int64_t>(blocks / (gram_tiles(s) * batch), 1, most));
    s.gram = arena.take<float>(batch * s.splits * s.padded * s.padded);
    s.gram_norms = arena.take<float>(batch * s.splits * s.padded);
  }
  s.spread = arena.take<double>(batch * s.slices);
  s.largest = arena.take<double>(batch * s.slices);
  s.exponent = arena.take<int>(batch * s.slices);
  s.parts = arena.take<double>(batch * s.tiles * 3);
  if (out.v_x_weights || out.v_y_weights) s.potentials = arena.take<double>(batch * s.padded);
  s.arrived = arena.take<unsigned>(batch);
  return s;
}

// use(integral_constant of the rows of a thread block).
template <class Use>
auto with_rows(const Small& s, const Use& use) {
  const int rows = rows_of(s);
  return rows == 4   ? use(std::integral_constant<int, 4>{})
         : rows == 8 ? use(std::integral_constant<int, 8>{})
                     : use(std::integral_constant<int, 16>{});
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
  const Small s = lay_out_small(args_, out_, arena);
  const size_t shared = with_rows(s, [&](auto R) { return SmallRoom<R>::bytes(s.padded); });
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
  const unsigned batch = unsigned(args_.batch);
  if (s.splits)
    check(fastmmd::cuda::launch(small_gram_kernel,
                                dim3(unsigned(gram_tiles(s)), unsigned(s.splits), batch),
                                dim3(gram_threads), 0, stream, s));
  const unsigned chunks = unsigned((s.width + s.chunk - 1) / s.chunk);
  with_rows(s, [&](auto R) {
    const dim3 tiles(unsigned(s.tiles), chunks, batch), block(small_threads<R>);
    const size_t bytes = SmallRoom<R>::bytes(s.padded);
    check(
        gaussian
            ? fastmmd::cuda::launch(small_tiles_kernel<R, true>, tiles, block, bytes, stream, s)
            : fastmmd::cuda::launch(small_tiles_kernel<R, false>, tiles, block, bytes, stream, s));
  });
}

}  // namespace fastmmd::cuda
