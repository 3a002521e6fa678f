// Segments of a kernel in shared memory or registers, and what they make of a statistic.
#pragma once

#include "cuda/points.cuh"

namespace fastmmd::cuda {

// The segments of one factor in shared memory; terms gathers what they say of terms by link.
template <class T>
struct Segments {
  Segment<T> segment[max_terms];
  uint8_t order[max_terms][max_chain];
  int count;

  // Called by all threads of the block, which synchronise before they read.
  __device__ void load(const typename Kernel<T>::Range& range) {
    if (threadIdx.x == 0) count = range.num_segments;
    for (int s = threadIdx.x; s < range.num_segments; s += blockDim.x) {
      segment[s] = range.segments[s];
      for (int q = 0; q < segment[s].length; ++q) {
        order[s][q] = uint8_t(segment[s].term[q]);
        segment[s].term[q] = q;
      }
    }
  }
};

// k and its slope at u. A lone chain of Gaussians, by far the most common kernel, is kept in
// registers by those that evaluate many pairs.
template <bool gaussian, class T>
struct Evaluate {
  const Segments<T>& segments;
  const Segment<T> first;
  const bool lone;

  __device__ explicit Evaluate(const Segments<T>& s)
      : segments(s), first(s.segment[0]), lone(s.count == 1) {}

  __device__ __forceinline__ void operator()(T u, T& k, T& dk) const {
    using Math = DeviceMath<T>;
    k = dk = 0;
    if constexpr (gaussian) {
      Gaussian::grad<Math>(u, first, k, dk);
      if (!lone)
        for (int s = 1; s < segments.count; ++s)
          Gaussian::grad<Math>(u, segments.segment[s], k, dk);
    } else {
      for (int s = 0; s < segments.count; ++s)
        dispatch(segments.segment[s].family, [&](auto family) {
          decltype(family)::template grad<Math>(u, segments.segment[s], k, dk);
        });
    }
  }
};

// Adds a chain of Gaussians to k and, times `factor`, to its slope. Links that it has not weigh 0,
// so that nothing branches. `exact`: as exact as T is; else D is, and 2^-20 of k.
template <bool exact, class T>
struct Chain {
  T rate, weight[max_chain], slope[max_chain];

  __device__ __forceinline__ Chain(const Segment<T>& s, T factor)
      : rate(exact ? -s.rate : T(-1.4426950408889634) * s.rate) {
#pragma unroll
    for (int q = 0; q < max_chain; ++q) {
      weight[q] = q < s.length ? s.weight[q] : T(0);
      slope[q] = q < s.length ? factor * s.slope[q] : T(0);
    }
  }

  __device__ __forceinline__ void operator()(T D, T& k, T& dk) const {
    T e = first(D);
    k += weight[0] * e;
    dk += slope[0] * e;
#pragma unroll
    for (int q = 1; q < max_chain; ++q) {
      e *= e;
      k += weight[q] * e;
      dk += slope[q] * e;
    }
  }

  // The value of a pair of weight a added to the sum; its gradient weight. Three multiplications
  // less, for as many registers: w_0 e + w_1 e^2 + w_2 e^4 + ... is made as
  // e (w_0 + e (w_1 + e^2 (w_2 + ..., which never makes the last link's power.
  __device__ __forceinline__ T weigh(T D, T a, T& sum) const {
    T power[max_chain - 1];
    power[0] = first(D);
#pragma unroll
    for (int q = 1; q < max_chain - 1; ++q) power[q] = power[q - 1] * power[q - 1];
    T k = weight[max_chain - 1], dk = slope[max_chain - 1];
#pragma unroll
    for (int q = max_chain - 2; q >= 0; --q) {
      k = k * power[q] + weight[q];
      dk = dk * power[q] + slope[q];
    }
    a *= power[0];
    sum += a * k;
    return a * dk;
  }

 private:
  __device__ __forceinline__ T first(T D) const {
    if constexpr (exact) return DeviceMath<T>::exp(rate * D);
    else return ptx::exp2_approx(rate * D);
  }
};

}  // namespace fastmmd::cuda
