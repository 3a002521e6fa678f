// The estimators that count few of the pairs: each row against its partners alone, in
// O(rows * partners * d).
#include "cuda/tiles.cuh"

namespace fastmmd::cuda {
namespace {

// A warp takes four rows of one sample at a time, which have most of their partners in common, and
// eight partners in a step: each lane ends with one of the 32 pairs. Gradient weights of a few
// steps are gathered before they are used.
constexpr int rows_of_warp = 4, partners_of_step = 8;
constexpr int warps = 4, threads = 32 * warps;
template <class T>
constexpr int steps_of_batch = sizeof(T) == 8 ? 2 : 4;

template <class T>
struct PairsArgs {
  Points<T> points;
  T* v[2];  // [rows, d] gradients of the samples; null if not wanted
  int64_t d;
  bool half;  // pairs (i, j) stand for (j, i) too, as nobody asks for the gradient of a row
};

// The shared memory of one warp.
template <class T>
struct Room {
  struct alignas(16) Weights {
    T of_row[rows_of_warp];
  };
  static constexpr int batch = steps_of_batch<T> * partners_of_step;

  double* sums;          // [2 terms]
  Segment<T>* segment;   // one whose links are numbered
  Weights* weights;      // [moving factors][batch]
  T *slots, *of_factor;  // [lanes][2 max_chain]; [3][factors][lanes]

  FASTMMD_INLINE static int segment_bytes() { return (int(sizeof(Segment<T>)) + 15) / 16 * 16; }
  FASTMMD_INLINE static int bytes(const Points<T>& points) {
    return 16 * points.num_terms + segment_bytes() +
           points.num_moving * batch * int(sizeof(Weights)) +
           (2 * max_chain + 3 * points.num_factors) * 32 * int(sizeof(T));
  }

  __device__ Room(const Points<T>& points, char* shared) {
    sums = reinterpret_cast<double*>(shared);
    shared += 16 * points.num_terms;
    segment = reinterpret_cast<Segment<T>*>(shared);
    shared += segment_bytes();
    weights = reinterpret_cast<Weights*>(shared);
    slots = reinterpret_cast<T*>(weights + points.num_moving * batch);
    of_factor = slots + 2 * max_chain * 32;
  }
};

// Sum `lane` of 32 sums over all lanes.
template <class T>
__device__ __forceinline__ T sum_of_lane(T (&sums)[32]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int level = 0; level < 5; ++level) {
    const int half = 16 >> level;
    const bool upper = lane & half;
#pragma unroll
    for (int s = 0; s < 16; ++s)
      if (s < half) {
        const T others = upper ? sums[s] : sums[s + half];
        sums[s] = (upper ? sums[s + half] : sums[s]) + __shfl_xor_sync(0xffffffffu, others, half);
      }
  }
  return sums[0];
}

// The partners of a group of rows, numbered: those of its own sample, then the other's.
struct Partners {
  int64_t own, count;             // how many
  int64_t first, first_of_other;  // packed rows

  __device__ int64_t row(int64_t c) const {
    if (c >= count) c = count - 1;
    return c < own ? first + c : first_of_other + c - own;
  }
};

template <Operand operand>
__global__ void __launch_bounds__(threads, operand == Operand::float64 ? 2 : 3)
    pairs_kernel(const __grid_constant__ PairsArgs<typename Stored<operand>::compute> args) {
  using T = typename Stored<operand>::compute;
  using E = typename Stored<operand>::type;
  constexpr int steps = steps_of_batch<T>, batch = Room<T>::batch;
  const Points<T>& points = args.points;
  const Pairs& pairs = points.pairs;
  const Resolved<T>& resolved = *points.resolved;
  const int L = points.num_factors;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int r = lane / partners_of_step;  // of the lane's pair
  const Room<T> room(points, dynamic_shared() + warp * Room<T>::bytes(points));
  __shared__ double room_of_sums[warps];
  auto slot = [&](int which, int l) -> T& { return room.of_factor[(which * L + l) * 32 + lane]; };
  auto others = [&](int l) {  // the values of the other factors
    T k = 1;
    for (int o = 0; o < L; ++o)
      if (o != l) k *= slot(1, o);
    return k;
  };
  for (int t = lane; t < 2 * points.num_terms; t += 32) room.sums[t] = 0;
  Totals totals;

  const int64_t groups = points.padded() / rows_of_warp;
  for (int64_t group = int64_t(blockIdx.x) * warps + warp; group < groups;
       group += int64_t(gridDim.x) * warps) {
    const int64_t row = group * rows_of_warp;
    const int domain = points.domain(row);
    const int64_t start = row - points.rows.first(domain);
    const int64_t rows = domain ? points.rows.m : points.rows.n;
    if (start >= rows) continue;
    const int64_t low = pairs.first(start);
    int64_t high = 0;
    for (int64_t i = start; i < start + rows_of_warp && i < rows; ++i)
      if (pairs.last(i) > high) high = pairs.last(i);
    const int64_t low_of_own = args.half ? start + 1 : low;
    Partners partners;
    partners.own = high > low_of_own ? high - low_of_own : 0;
    partners.count = partners.own + (high > low && !(args.half && domain) ? high - low : 0);
    partners.first = points.rows.first(domain) + low_of_own;
    partners.first_of_other = points.rows.first(!domain) + low;
    T* const v = args.v[domain] ? args.v[domain] + start * args.d : nullptr;

    for (int64_t c0 = 0; c0 < partners.count; c0 += batch) {
      for (int step = 0; step < steps; ++step) {
        const int64_t first = c0 + step * partners_of_step, c = first + lane % partners_of_step;
        if (first >= partners.count) break;
        const bool across = c >= partners.own;
        const int64_t i = start + r;
        const int64_t j = across ? low + c - partners.own : low_of_own + c;
        const bool silent = c >= partners.count || i >= rows || j < pairs.first(i) ||
                            j >= pairs.last(i) ||
                            (across      ? i == j && !pairs.self_across
                             : args.half ? j <= i
                                         : i == j && !pairs.self_within);
        for (int l = 0; l < L; ++l) {
          const Factor<T>& f = points.factors[l];
          const E* const own = static_cast<const E*>(f.z) + row * f.depth + lane;
          const E* other[partners_of_step];
#pragma unroll
          for (int b = 0; b < partners_of_step; ++b)
            other[b] = static_cast<const E*>(f.z) + partners.row(first + b) * f.depth + lane;
          T u[32];
#pragma unroll
          for (int e = 0; e < 32; ++e) u[e] = 0;
          auto sum_up = [&](const auto& add) {
#pragma unroll 1
            for (int64_t k = 0; k < f.depth; k += 32) {
              T a[rows_of_warp], b[partners_of_step];
#pragma unroll
              for (int e = 0; e < rows_of_warp; ++e) a[e] = value_of(own[e * f.depth + k]);
#pragma unroll
              for (int e = 0; e < partners_of_step; ++e) b[e] = value_of(other[e][k]);
#pragma unroll
              for (int e = 0; e < 32; ++e)
                add(u[e], a[e / partners_of_step], b[e % partners_of_step]);
            }
          };
          if (f.geometry == Geometry::radial)
            sum_up([](T& sum, T a, T b) {
              const T difference = a - b;
              sum += difference * difference;
            });
          else sum_up([](T& sum, T a, T b) { sum += a * b; });
          T statistic = sum_of_lane(u);
          if (f.geometry != Geometry::radial)
            statistic += f.norms[row + r] + f.norms[partners.row(first + lane % partners_of_step)];
          if (silent) statistic = 0;  // a pair that does not count must not overflow
          T k = 0, dk = 0;
          const auto& kernel = resolved.kernel[l];
          for (int s = 0; s < kernel.num_segments; ++s)
            dispatch(kernel.segments[s].family, [&](auto family) {
              decltype(family)::template grad<DeviceMath<T>>(statistic, kernel.segments[s], k, dk);
            });
          slot(0, l) = statistic;
          slot(1, l) = k;
          slot(2, l) = dk;
        }

        const double C = 1 / (across ? resolved.by.across : resolved.by.within[domain]);
        const double copies = args.half ? 2 : 1;
        if (!silent) totals.add(domain, across ? !domain : domain, copies * double(others(-1)));
        for (int l = 0; points.num_terms && l < L; ++l) {
          const T weight = silent ? T(0) : T(copies * C) * others(l);
          const auto& kernel = resolved.kernel[l];
          T* const v_w = room.slots + lane * 2 * max_chain;
          T* const v_c = v_w + max_chain;
          for (int s = 0; s < kernel.num_segments; ++s) {
            const Segment<T>& segment = kernel.segments[s];
            __syncwarp();
            if (lane == 0) {
              *room.segment = segment;
              for (int q = 0; q < segment.length; ++q) room.segment->term[q] = q;
            }
            for (int q = 0; q < 2 * max_chain; ++q) v_w[q] = 0;
            __syncwarp();
            dispatch(segment.family, [&](auto family) {
              decltype(family)::template terms<DeviceMath<T>>(slot(0, l), *room.segment, weight,
                                                              v_w, v_c);
            });
            for (int q = 0; q < segment.length; ++q) {
              const double w = warp_sum(double(v_w[q])), c = warp_sum(double(v_c[q]));
              if (lane == 0) {
                room.sums[segment.term[q]] += w;
                room.sums[points.num_terms + segment.term[q]] += c;
              }
            }
          }
        }
        for (int l = 0; v && l < points.num_moving; ++l) {
          const bool radial = points.factors[l].geometry == Geometry::radial;
          const T slope = T((radial ? -4 : 2) * C * double(resolved.gain));
          room.weights[l * batch + step * partners_of_step + lane % partners_of_step].of_row[r] =
              silent ? T(0) : slope * others(l) * slot(2, l);
        }
      }

      if (!v) continue;
      __syncwarp();
      const int64_t left = partners.count - c0;
      const int used = left < batch ? int(left) : batch;
      for (int l = 0; l < points.num_moving; ++l) {
        const Factor<T>& f = points.factors[l];
        const E* const z = static_cast<const E*>(f.z);
        const bool radial = f.geometry == Geometry::radial;
        for (int64_t k = lane; k < f.d; k += 32) {
          T sum[rows_of_warp], own[rows_of_warp];
          T* const to = v + f.column + k;
#pragma unroll
          for (int e = 0; e < rows_of_warp; ++e) {
            own[e] = radial           ? value_of(z[(row + e) * f.depth + k])
                     : f.feels_centre ? T(-points.centre(l, k))
                                      : T(0);
            sum[e] = c0 && start + e < rows ? to[e * args.d] : T(0);
          }
#pragma unroll 4
          for (int c = 0; c < used; ++c) {
            const T other = value_of(z[partners.row(c0 + c) * f.depth + k]);
            const auto g = room.weights[l * batch + c];
#pragma unroll
            for (int e = 0; e < rows_of_warp; ++e) sum[e] += g.of_row[e] * (other - own[e]);
          }
#pragma unroll
          for (int e = 0; e < rows_of_warp; ++e)
            if (start + e < rows) to[e * args.d] = sum[e];
        }
      }
      __syncwarp();
    }
    if (v && !partners.count)
      for (int64_t e = 0; e < rows_of_warp && start + e < rows; ++e)
        for (int64_t k = lane; k < args.d; k += 32) v[e * args.d + k] = 0;
  }

  double* const sums = points.sums + int64_t(blockIdx.x) * points.row_of_sums();
  totals.template write<threads>(room_of_sums, sums);
  __syncthreads();
  for (int t = threadIdx.x; t < 2 * points.num_terms; t += threads)
    for (int w = 0; w < warps; ++w)
      sums[3 + t] += Room<T>(points, dynamic_shared() + w * Room<T>::bytes(points)).sums[t];
}

// In the layout of the pass that has begun.
template <class T>
void run(const Mmd2Args& args, const Mmd2Out& out, const Launch& launch) {
  Arena arena(args.workspace);
  const Points<T> points = lay_out<T>(args, out, launch, arena);
  int64_t d = 0;
  for (int l = 0; l < points.num_factors; ++l) d += points.factors[l].d;
  T* const v[2] = {static_cast<T*>(out.v_x), static_cast<T*>(out.v_y)};
  const PairsArgs<T> pairs{points, {v[0], v[1]}, d, !v[0] && !v[1]};
  const int64_t blocks = points.padded() / (rows_of_warp * warps);
  with_operand(launch.operand, [&](auto operand) {
    // What is stored as float32 is read as such.
    constexpr bool plain = std::is_same_v<typename Stored<operand>::type, float>;
    constexpr Operand read = plain ? Operand::float32 : operand();
    if constexpr (std::is_same_v<typename Stored<operand>::compute, T>)
      check(fastmmd::cuda::launch(pairs_kernel<read>, dim3(grid_of(blocks, 8, launch)),
                                  dim3(threads), size_t(warps * Room<T>::bytes(points)),
                                  static_cast<cudaStream_t>(launch.stream), pairs));
  });
}

}  // namespace

void Mmd2::pairs() const {
  const DeviceGuard guard(launch_.device);
  if (args_.dtype == Dtype::float64) run<double>(args_, out_, launch_);
  else run<float>(args_, out_, launch_);
}

}  // namespace fastmmd::cuda
