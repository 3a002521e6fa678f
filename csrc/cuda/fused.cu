#include "cuda/fused.cuh"

#include <algorithm>

#include "cuda/tiles.cuh"

namespace fastmmd::cuda {
namespace {

constexpr int add_threads = 256;

// The sums of all splits, in their order: one warp a row.
__global__ void __launch_bounds__(add_threads) add_splits_kernel(FusedArgs args) {
  const Points<float>& points = args.points;
  const Factor<float>& f = points.factors[0];
  const int64_t row = int64_t(blockIdx.x) * (add_threads / 32) + threadIdx.x / 32;
  const int domain = points.domain(row), lane = threadIdx.x % 32;
  const int64_t i = row - points.rows.first(domain);
  if (!args.v[domain] || i >= (domain ? points.rows.m : points.rows.n)) return;
  for (int k = lane; k < f.d; k += 32) {
    float sum = 0;
    for (int64_t split = 0; split < args.splits; ++split)
      sum += args.rows[(split * points.padded() + row) * f.depth + k];
    args.v[domain][i * f.d + k] = sum;
  }
  if (lane) return;
  double pull = 0;
  for (int64_t split = 0; split < args.splits; ++split)
    pull += double(args.pulls[split * points.padded() + row]);
  f.pulls[row] = pull;
}

// How the road is taken: a function of sizes, of what is wanted and of the device.
struct Plan {
  bool taken;
  int64_t splits;
  int stages, blocks;  // blocks of one multiprocessor
};

bool is_gaussian(const Mmd2Args& args) {
  return std::all_of(args.terms, args.terms + args.num_terms,
                     [](const Term& t) { return t.family == Family::gaussian; });
}

// use(shape, gaussian) with the types that the operand and the width ask for.
template <class Use>
void with_shape(const Mmd2Args& args, Operand operand, const Use& use) {
  auto run = [&](auto op) {
    constexpr Operand o = decltype(op)::value;
    auto of_width = [&](auto shape) {
      is_gaussian(args) ? use(shape, std::true_type{}) : use(shape, std::false_type{});
    };
    depth(args.widths[0]) <= 128 ? of_width(Fused<o, 128>{}) : of_width(Fused<o, 256>{});
  };
  switch (operand) {
    case Operand::tf32: return run(std::integral_constant<Operand, Operand::tf32>{});
    case Operand::tf32x3: return run(std::integral_constant<Operand, Operand::tf32x3>{});
    case Operand::bfloat16: return run(std::integral_constant<Operand, Operand::bfloat16>{});
    case Operand::float16: return run(std::integral_constant<Operand, Operand::float16>{});
    default: return;
  }
}

// The number of splits of the columns, for which all multiprocessors are busy for the shortest
// time. Each costs its block about as much as `overhead` tiles, and memory: where there are row
// blocks enough for all, the samples are large, and partial gradients of theirs too.
int64_t choose_splits(int64_t row_blocks, int64_t tiles, int64_t slots) {
  constexpr int64_t overhead = 3;
  const int64_t most = std::clamp<int64_t>(2 * slots / row_blocks, 1, 32);
  int64_t best = 1, shortest = 0;
  for (int64_t splits = 1; splits <= std::min(most, tiles); ++splits) {
    const int64_t rounds = (row_blocks * splits + slots - 1) / slots;
    const int64_t time = rounds * ((tiles + splits - 1) / splits + overhead);
    if (splits == 1 || time < shortest) {
      best = splits;
      shortest = time;
    }
  }
  return best;
}

int attribute(cudaDeviceAttr which, const Launch& launch) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, launch.device));
  return value;
}

Plan plan(const Mmd2Args& args, const Mmd2Out& out, const Launch& launch) {
  Plan plan{};
  const bool asked = (out.v_x || out.v_y) && !out.v_x_weights && !out.v_y_weights &&
                     !out.v_scales && !args.constant_factors;
  const bool known = args.num_factors == 1 && args.dtype != Dtype::float64 &&
                     !is_masked(args.estimator) && args.estimator != Estimator::resolve &&
                     geometry(args.terms[0].family) != Geometry::cosine &&
                     args.widths[0] <= fused_width;
  if (!asked || !known || launch.products == Products::simt ||
      attribute(cudaDevAttrComputeCapabilityMajor, launch) < 8)
    return plan;
  const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, launch);
  with_shape(args, launch.operand, [&](auto shape, auto gaussian) {
    using P = decltype(shape);
    constexpr int reserved = 1024, fixed = sizeof(Segments<float>) + 256;
    for (int blocks = P::blocks(gaussian); blocks && !plan.taken; --blocks)
      for (int stages = 2; stages && !plan.taken; --stages)
        if (blocks * (P::shared_bytes(stages) + fixed + reserved) <= most + reserved)
          plan = {true, 1, stages, blocks};
    const int64_t padded = Rows{args.x.rows, args.y.rows}.padded();
    if (plan.taken)
      plan.splits =
          choose_splits(padded / P::rows, padded / P::columns,
                        int64_t(attribute(cudaDevAttrMultiProcessorCount, launch)) * plan.blocks);
  });
  return plan;
}

// What comes after the points of the pass in its workspace.
void take(FusedArgs& args, int64_t depth, Arena& arena) {
  if (args.splits == 1) return;
  args.rows = arena.take<float>(args.splits * args.points.padded() * depth);
  args.pulls = arena.take<float>(args.splits * args.points.padded());
}

}  // namespace

size_t fused_workspace(const Mmd2Args& args, const Mmd2Out& out, const Launch& launch) {
  FusedArgs fused{};
  fused.points.rows = {args.x.rows, args.y.rows};
  const Plan chosen = plan(args, out, launch);
  fused.splits = chosen.taken ? chosen.splits : 1;
  Arena arena(nullptr);
  take(fused, depth(args.widths[0]), arena);
  return arena.bytes();
}

bool Mmd2::takes_fused() const { return plan(args_, out_, launch_).taken; }

void Mmd2::fused() const {
  const DeviceGuard guard(launch_.device);
  begin();
  const Plan chosen = plan(args_, out_, launch_);
  Arena arena(args_.workspace);
  FusedArgs fused{};
  fused.points = lay_out<float>(args_, out_, launch_, arena);
  fused.splits = chosen.splits;
  fused.stages = chosen.stages;
  fused.v[0] = static_cast<float*>(out_.v_x);
  fused.v[1] = static_cast<float*>(out_.v_y);
  take(fused, fused.points.factors[0].depth, arena);
  const cudaStream_t stream = static_cast<cudaStream_t>(launch_.stream);
  const int64_t padded = fused.points.padded();
  with_shape(args_, launch_.operand, [&](auto shape, auto gaussian) {
    using P = decltype(shape);
    check(fastmmd::cuda::launch(
        fused_kernel<P, gaussian>,
        dim3(grid_of(padded / P::rows * chosen.splits, chosen.blocks, launch_)), dim3(P::threads),
        size_t(P::shared_bytes(chosen.stages)), stream, fused));
  });
  if (chosen.splits > 1)
    check(fastmmd::cuda::launch(add_splits_kernel, dim3(unsigned(padded / (add_threads / 32))),
                                dim3(add_threads), 0, stream, fused));
  finish();
}

}  // namespace fastmmd::cuda
