// Sines and cosines of vectors.
#pragma once

#include "cpu/simd.h"
#include "random_features.h"

namespace fastmmd::cpu::FASTMMD_ISA {
namespace {

template <class T>
struct Angles {
  static constexpr bool single = sizeof(T) == 4;
#if defined(__FMA__)
  static constexpr bool fused = true;
#else
  static constexpr bool fused = false;
#endif
  // Beyond this, the multiple of pi / 2 has too many bits for the reduction below.
  static constexpr T largest = single ? (fused ? T(1 << 20) : T(1 << 13)) : T(1 << 20);
};

// sin(x) and cos(x) for |x| <= Angles<T>::largest, absolute error about one unit in the last place
// of 1; NaN stays NaN.
//
// x = n pi / 2 + r with |r| <= pi / 4, by parts of pi / 2 of which n times the first are exact
// (with fused multiply-adds, the differences are). Both series are evaluated, and the last two bits
// of n say which is which and of what sign. n is made by adding a number so large that the sum is
// rounded to an integer.
template <class T, int count>
FASTMMD_INLINE void sincos(const Many<T, count>& x, Many<T, count>& sine, Many<T, count>& cosine) {
  using M = Many<T, count>;
  using V = typename M::V;
  using I = typename M::I;
  constexpr bool single = sizeof(T) == 4;
  constexpr T magic = single ? T(12582912) : T(6755399441055744);
  const M shifted = magic + T(0.63661977236758134308) * x;
  const M n = M::each([&](int u) { return shifted.part[u] - magic; });
  M r;
  if constexpr (!single) {
    r = x - T(1.57079632673412561417e+00) * n;
    r -= T(6.07710050630396597660e-11) * n;
    r -= T(2.02226624879595063154e-21) * n;
  } else if constexpr (Angles<T>::fused) {
    r = x - T(1.57079637050628662109375f) * n;
    r -= T(-4.37113900018624283e-8) * n;
    r -= T(-1.71512489e-15) * n;
  } else {
    r = x - T(1.5703125) * n;
    r -= T(4.837512969970703125e-4) * n;
    r -= T(7.54978995489188216e-8) * n;
  }
  M s, c;
  sincos_series<T>(r, s, c);
  constexpr int sign = 8 * int(sizeof(T)) - 2;
#pragma GCC unroll 8
  for (int u = 0; u < count; ++u) {
    const I quarter = I(shifted.part[u]);
    const I odd = (quarter & 1) != 0;
    const I of_sine = (quarter & 2) << sign, of_cosine = ((quarter + 1) & 2) << sign;
    sine.part[u] = V(I(odd ? c.part[u] : s.part[u]) ^ of_sine);
    cosine.part[u] = V(I(odd ? s.part[u] : c.part[u]) ^ of_cosine);
  }
}

// The same of rate * x, whatever it is, one number at a time; in float64, where float32 has no
// room.
template <class T, int count>
__attribute__((noinline)) void sincos_of_any(T rate, const Many<T, count>& x, Many<T, count>& sine,
                                             Many<T, count>& cosine) {
  for (int u = 0; u < count; ++u)
    for (int i = 0; i < Simd<T>::lanes; ++i) {
      const double angle = double(rate) * double(x.part[u][i]);
      sine.part[u][i] = T(__builtin_sin(angle));
      cosine.part[u][i] = T(__builtin_cos(angle));
    }
}

}  // namespace
}  // namespace fastmmd::cpu::FASTMMD_ISA
