// What one warp of a thread block of small_tiles_kernel does, beside the others: before the
// products are there, everything that is one number; afterwards the sums.
#pragma once

#include "cuda/small.cuh"

namespace fastmmd::cuda {

// What one warp finds out for its block.
struct SmallResolved {
  Divisors by;
  double sum[2], squares[2];  // as in Resolved
  double at_zero;             // what the diagonal of the kernel matrix is
  float slope[3], gain;       // xx, yy, xy: -4 C gain
  float near_offset;
  int exponent, num_segments;
  bool plain;  // all slices are scaled by 1
  bool equal;  // all points are
};

__device__ inline float small_finite(double value) {
  constexpr double most = 0x1p124;
  return float(value > most ? most : value < -most ? -most : value);
}

// Segments as Kernel::add makes them, a lane a term; returns how many.
__device__ inline int small_segments(const Small& s, double scale, double coefficient,
                                     Segment<float>* segments) {
  constexpr unsigned all = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  const bool exists = lane < s.num_terms;
  const Family family = Family(exists ? s.family[lane] : 0);
  const double p = exists ? s.p[lane] : 0;
  const bool gaussian = exists && family == Family::gaussian;

  // Lane o learns the o-th of the Gaussians by scale and place. NaN has no order, and is the least.
  const double key = scale != scale ? -1 : scale;
  int rank = 0;
#pragma unroll 1
  for (int t = 0; t < s.num_terms; ++t) {
    const double other = __shfl_sync(all, key, t);
    const bool counts = __shfl_sync(all, int(gaussian), t);
    rank += counts && (other < key || (other == key && t < lane));
  }
  int term = lane;  // whose rank is mine
  const unsigned gaussians = __ballot_sync(all, gaussian);
  const int num_gaussians = __popc(gaussians);
#pragma unroll 1
  for (int t = 0; t < s.num_terms; ++t) {
    const int of = __shfl_sync(all, gaussian ? rank : -1, t);
    if (of == lane) term = t;
  }
  const double own = __shfl_sync(all, scale, term), weight = __shfl_sync(all, coefficient, term);

  int count = 0, segment = -1, link = 0, length = 0;
  double c = own;
  unsigned left = num_gaussians == 32 ? all : (1u << num_gaussians) - 1;
  while (left) {
    const int first = __ffs(int(left)) - 1;
    double last = __shfl_sync(all, own, first);
    if (lane == first) segment = count;
    left &= ~(1u << first);
    int links = 1;
#pragma unroll 1
    for (unsigned after = left; links < max_chain; ++links) {
      constexpr double tolerance = 0x1p-49;
      const bool doubles = own >= last * (2 - tolerance) && own <= last * (2 + tolerance);
      const unsigned fits = __ballot_sync(all, doubles) & after;
      if (!fits) break;
      const int next = __ffs(int(fits)) - 1;
      last *= 2;
      if (lane == next) segment = count, link = links, c = last;
      left &= ~(1u << next);
      after = left & ~((2u << next) - 1);
    }
    if (lane == first) length = links;
    ++count;
  }
  if (segment >= 0) {
    Segment<float>& to = segments[segment];
    if (link == 0) {
      to.family = Family::gaussian;
      to.length = length;
      to.rate = small_finite(Gaussian::rate(c, 0));
      to.shape = 0;
      to.degree = 0;
    }
    to.weight[link] = float(weight);
    to.slope[link] = small_finite(weight * Gaussian::slope_factor(c, 0));
    to.term[link] = term;
  }

  const bool another = exists && !gaussian;
  const unsigned others = __ballot_sync(all, another);
  if (another) {
    Segment<float>& to = segments[count + __popc(others & ((1u << lane) - 1))];
    double rate = 0, factor = 0;
    dispatch(family, [&](auto f) {
      rate = decltype(f)::rate(scale, p);
      factor = decltype(f)::slope_factor(scale, p);
    });
    to.family = family;
    to.length = 1;
    to.rate = small_finite(rate);
    to.shape = float(p);
    to.degree = 0;
    to.weight[0] = float(coefficient);
    to.slope[0] = small_finite(coefficient * factor);
    to.term[0] = lane;
  }
  return count + __popc(others);
}

// One warp: masses of the weights, unit, scales, segments.
__device__ inline void small_resolve(const Small& s, int64_t b, Segment<float>* segments,
                                     SmallResolved& resolved, float* weights) {
  constexpr unsigned all = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  const bool exists = lane < s.num_terms;
  const double given = exists ? s.given_scales[lane] : 0;
  const double coefficient = exists ? s.coefficients[lane] : 0;
  double spread = 0, largest = 0;
  bool scaled = false;
#pragma unroll 2
  for (int i = lane; i < s.slices; i += 32) {
    spread += s.spread[b * s.slices + i];
    largest = larger(largest, s.largest[b * s.slices + i]);
    scaled |= s.exponent[b * s.slices + i] != 0;
  }
  spread = warp_sum(spread);
  for (int other = 16; other; other /= 2)
    largest = larger(largest, __shfl_xor_sync(all, largest, other));
  scaled = __any_sync(all, scaled);

  double sums[2], squares[2], pairs[2];
  for (int domain = 0; domain < 2; ++domain) {
    const int64_t rows = domain ? s.rows.m : s.rows.n, first = domain ? s.rows.n : 0;
    const double* w = domain ? s.y.weights : s.x.weights;
    sums[domain] = squares[domain] = double(rows);
    pairs[domain] = double(rows) * (double(rows) - 1);
    if (!w) {
#pragma unroll 1
      for (int64_t i = lane; i < rows; i += 32) weights[first + i] = 1;
      continue;
    }
    w += b * rows;
    double sum = 0, square = 0, pair = 0;
#pragma unroll 1
    for (int64_t i = lane; i < rows; i += 32) sum += w[i];
    sum = warp_sum(sum);
#pragma unroll 1
    for (int64_t i = lane; i < rows; i += 32) {
      const double a = w[i] / sum * double(rows);
      weights[first + i] = float(a);
      square += a * a;
      pair += a * (double(rows) - a);
    }
    sums[domain] = sum;
    squares[domain] = warp_sum(square);
    pairs[domain] = warp_sum(pair);
  }

  const int exponent = small_exponent(largest);
  double unit = 1;
  if (s.unit == Unit::width) unit = double(s.d);
  // (2 N sum |z|^2 - 2 |sum z|^2) / (N (N - 1)) about the mean itself
  if (s.unit == Unit::mean) unit = 2 * spread / (double(s.count()) - 1);
  const double resolved_scale = unit == 0 ? 0 : given / unit;  // of the rows as given
  const double scale = ldexp(resolved_scale, 2 * exponent);
  if (blockIdx.x == 0 && exists) s.scales[b * s.num_terms + lane] = resolved_scale;
  const int num_segments = small_segments(s, scale, coefficient, segments);

  double widest = 0, steepest = 0, at_zero = 0;
  bool gaussian = true;
  if (exists) {
    const Family family = Family(s.family[lane]);
    gaussian = family == Family::gaussian;
    if (gaussian && scale > 0) widest = scale;
    dispatch(family, [&](auto f) {
      steepest = fabs(coefficient * decltype(f)::slope_factor(scale, s.p[lane]));
    });
    at_zero = coefficient * value_at_zero(family);
  }
  gaussian = __all_sync(all, gaussian);
  at_zero = warp_sum(at_zero);
  for (int other = 16; other; other /= 2) {
    widest = fmax(widest, __shfl_xor_sync(all, widest, other));
    steepest = fmax(steepest, __shfl_xor_sync(all, steepest, other));
  }
  if (lane) return;
  // As in resolve_kernel.
  const double size = 4 * steepest / (double(s.rows.n) * double(s.rows.m));
  const int power = size > 1e-300 && size < 1e300 ? -ilogb(size) : 0;
  const double gain = ldexp(1.0, power > 100 ? 100 : power < -100 ? -100 : power);
  const Divisors by = divisors(s.estimator, s.rows.n, s.rows.m, 0, s.pairs, pairs, s.share);
  resolved.by = by;
  for (int domain = 0; domain < 2; ++domain) {
    resolved.sum[domain] = sums[domain];
    resolved.squares[domain] = squares[domain];
    resolved.slope[domain] = float(-4 / by.within[domain] * gain);
  }
  resolved.slope[2] = float(-4 / by.across * gain);
  resolved.gain = float(gain);
  resolved.at_zero = at_zero;
  constexpr double harmless = 16;  // as in Kernel::add
  resolved.near_offset = !gaussian                  ? 0
                         : harmless / widest < 1e30 ? float(harmless / widest)
                                                    : 1e30f;
  resolved.exponent = exponent;
  resolved.num_segments = num_segments;
  resolved.plain = !scaled;
  resolved.equal = largest == 0;
}

// Of the rows of a block: sum_j a_j k_ij with j of the row's sample and of the other one, and the
// sum of gradient weights; each warp's.
template <int R>
using SmallRowSums = double[3][R][product_threads<R> / 32];

// One warp: the block's part of the sums and, when all have come, value and gradient to weights.
template <int R>
__device__ inline void small_finish(const Small& s, const SmallResolved& resolved, int64_t b, int I,
                                    const SmallRowSums<R>& row_sums, const float* weights) {
  constexpr unsigned all = 0xffffffffu;
  const int lane = threadIdx.x % 32, count = s.count();
  double part[3] = {};
  if (lane < R && I + lane < count) {
    const int i = I + lane, domain = s.domain(i);
    double sums[2] = {};
#pragma unroll 4
    for (int warp = 0; warp < product_threads<R> / 32; ++warp) {
      sums[0] += row_sums[0][lane][warp];
      sums[1] += row_sums[1][lane][warp];
    }
    const double a = double(weights[i]);
    part[0] = domain ? 0 : a * sums[0];
    part[1] = domain ? a * sums[0] : 0;
    part[2] = a * sums[1];
    if (s.potentials)
      s.potentials[b * s.padded + i] =
          2 * (sums[0] / resolved.by.within[domain] + sums[1] / resolved.by.across);
  }
#pragma unroll
  for (int which = 0; which < 3; ++which) {
    part[which] = warp_sum(part[which]);
    if (lane == 0) s.parts[(b * s.most_tiles() + I / R) * 3 + which] = part[which];
  }
  __threadfence();
  __syncwarp();
  unsigned before = 0;
  if (lane == 0) before = atomicAdd(s.arrived + b, 1u);
  if (__shfl_sync(all, before, 0) + 1 != unsigned(s.tiles)) return;
  __syncwarp();  // what lane 0 has seen, all have
  __threadfence();

  double sums[3] = {};
#pragma unroll 2
  for (int tile = lane; tile < s.tiles; tile += 32)
#pragma unroll
    for (int which = 0; which < 3; ++which)
      sums[which] += __ldcg(s.parts + (b * s.most_tiles() + tile) * 3 + which);
#pragma unroll
  for (int which = 0; which < 3; ++which) sums[which] = warp_sum(sums[which]);
  // As in finish_kernel.
  const bool vanishes = s.estimator != Estimator::cross && resolved.equal;
  const double at_zero = s.estimator == Estimator::biased ? resolved.at_zero : 0;
  double within[2];
#pragma unroll
  for (int domain = 0; domain < 2; ++domain)
    within[domain] =
        (sums[domain] + at_zero * resolved.squares[domain]) / resolved.by.within[domain];
  if (lane == 0)
    static_cast<float*>(s.out.value)[b] =
        float(vanishes ? 0.0 : within[0] + within[1] + sums[2] / resolved.by.across);
#pragma unroll
  for (int domain = 0; domain < 2; ++domain) {
    double* v = domain ? s.out.v_y_weights : s.out.v_x_weights;
    if (!v) continue;
    const int64_t rows = domain ? s.rows.m : s.rows.n, first = domain ? s.rows.n : 0;
    v += b * rows;
    double own = 2 / double(rows) * at_zero;
    if (s.estimator == Estimator::unbiased)
      own = 2 * double(rows) * within[domain] / resolved.by.within[domain];
    double mean = 0;
#pragma unroll 1
    for (int64_t i = lane; i < rows; i += 32) {
      const double a = double(weights[first + i]);
      v[i] = double(rows) * __ldcg(s.potentials + b * s.padded + first + i) + own * a;
      mean += a * v[i] / double(rows);
    }
    mean = warp_sum(mean);
#pragma unroll 1
    for (int64_t i = lane; i < rows; i += 32)
      v[i] = vanishes ? 0 : (v[i] - mean) / resolved.sum[domain];
  }
}

}  // namespace fastmmd::cuda
