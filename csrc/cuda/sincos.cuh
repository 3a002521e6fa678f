// Sines and cosines of angles of any size, and of chains of rates.
#pragma once

#include "cuda/values.cuh"
#include "random_features.h"

namespace fastmmd::cuda {

// Two numbers of which the quarter turn says which is the sine, and of what sign.
template <class T>
__device__ __forceinline__ void turn(int quarters, T s, T c, T& sine, T& cosine) {
  const T first = quarters & 1 ? c : s, second = quarters & 1 ? s : c;
  sine = quarters & 2 ? -first : first;
  cosine = (quarters + 1) & 2 ? -second : second;
}

// x less its multiple of pi / 2, whose number modulo 4 is left in quarters. The parts of pi / 2
// have 53 bits each, so that differences are exact up to 2^52; beyond 2^60 or so the rest is any
// number of the right size. NaN stays NaN.
__device__ __forceinline__ double reduced(double x, int& quarters) {
  quarters = 0;
#pragma unroll 1
  for (int turns = 0; turns < 4; ++turns) {
    const double n = rint(x * 0.63661977236758134308);
    if (n == 0) break;
    x = fma(n, -1.5707963267948966, x);
    x = fma(n, -6.123233995736766e-17, x);
    x = fma(n, 1.4973849048591698e-33, x);
    quarters += int(n - 4 * floor(n * 0.25));
  }
  return x;
}

// sin(rate t) and cos(rate t). `exact`: to about a unit in the last place of 1. Otherwise, for
// angles whose rounding matters more, to 2^-20.
//
// In float32, angles of up to 2^20 are reduced by parts of pi / 2 in fused multiply-adds, n being
// made by adding a number so large that the sum is rounded to an integer; larger ones in float64.
template <bool exact>
__device__ __forceinline__ void sincos_of(float rate, float t, float& sine, float& cosine) {
  const float x = rate * t;
  float r, s, c;
  int quarters;
  if (fabsf(x) <= float(1 << 20)) {
    const float shifted = fmaf(x, 0.636619747f, 12582912.0f), n = shifted - 12582912.0f;
    r = fmaf(n, -1.57079637050628662109375f, x);
    r = fmaf(n, 4.37113900018624283e-8f, r);
    r = fmaf(n, 1.71512489e-15f, r);
    quarters = int(__float_as_uint(shifted));
  } else {
    r = float(reduced(double(rate) * double(t), quarters));
  }
  if constexpr (exact) {
    sincos_series<float>(r, s, c);
  } else {
    s = ptx::sin_approx(r);
    c = ptx::cos_approx(r);
  }
  turn(quarters, s, c, sine, cosine);
}
template <bool exact>
__device__ __forceinline__ void sincos_of(double rate, double t, double& sine, double& cosine) {
  int quarters;
  const double r = reduced(rate * t, quarters);
  double s, c;
  sincos_series<double>(r, s, c);
  turn(quarters, s, c, sine, cosine);
}

// A chain of rates, of which each is twice the one before: use(q, sine, cosine), for its links, of
// `count` angles at a time.
template <bool exact, int count, class T, class Use>
__device__ __forceinline__ void each_link(T rate, int length, const T (&t)[count], const Use& use) {
  T sine[count], cosine[count];
#pragma unroll
  for (int e = 0; e < count; ++e) sincos_of<exact>(rate, t[e], sine[e], cosine[e]);
#pragma unroll
  for (int q = 0; q < longest_chain; ++q) {
    if (q >= length) break;
    if (q)
#pragma unroll
      for (int e = 0; e < count; ++e) double_angle<T>(sine[e], cosine[e]);
    use(q, sine, cosine);
  }
}

}  // namespace fastmmd::cuda
