// SIMD vectors of the instruction set that this translation unit is compiled for, as GCC and Clang
// vector extensions, with the few functions that those lack.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace fastmmd::cpu::FASTMMD_ISA {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
constexpr int side_by_side = 4;
constexpr int tile_rows = 8, tile_vectors = 3;  // 24 accumulators + 3 operands of 32 registers
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
constexpr int side_by_side = 2;
constexpr int tile_rows = 4, tile_vectors = 3;  // 12 accumulators + 3 operands + 1 of 16 registers
#else
constexpr int vector_bytes = 16;
constexpr int side_by_side = 2;
constexpr int tile_rows = 4, tile_vectors = 2;  // 8 accumulators + 2 operands + products of 16
#endif

template <class T>
struct Bits;
template <>
struct Bits<float> {
  using type = int32_t;
};
template <>
struct Bits<double> {
  using type = int64_t;
};

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FASTMMD_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#if !defined(FASTMMD_SHUFFLE)  // GCC before 12
#define FASTMMD_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype((a) < (b)){__VA_ARGS__})
#endif

// Shuffles, whose lane numbers have to be constants.
template <int lanes, class Indices = std::make_integer_sequence<int, lanes>>
struct Lanes;

template <int lanes, int... i>
struct Lanes<lanes, std::integer_sequence<int, i...>> {
  template <int width, class V>
  static FASTMMD_INLINE auto sum(V v) {
    v += FASTMMD_SHUFFLE(v, v, (i + width) % lanes...);
    if constexpr (width > 1) return sum<width / 2>(v);
    else return v[0];
  }

  // Swaps the off-diagonal quarters of every 2s x 2s square.
  template <int s, class V>
  static FASTMMD_INLINE void transpose(V (&rows)[lanes]) {
#pragma GCC unroll 16
    for (int r = 0; r < lanes; ++r) {
      if (r & s) continue;
      const V a = rows[r], b = rows[r + s];
      rows[r] = FASTMMD_SHUFFLE(a, b, (i & s ? lanes + i - s : i)...);
      rows[r + s] = FASTMMD_SHUFFLE(a, b, (i & s ? lanes + i : i + s)...);
    }
    if constexpr (2 * s < lanes) transpose<2 * s>(rows);
  }
};

template <class T, int count>
struct Many;

template <class T>
struct Simd {
  static constexpr int lanes = vector_bytes / int(sizeof(T));
  typedef T V __attribute__((vector_size(vector_bytes)));
  typedef typename Bits<T>::type I __attribute__((vector_size(vector_bytes)));

  static FASTMMD_INLINE V load(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static FASTMMD_INLINE void store(T* p, V v) { std::memcpy(p, &v, sizeof v); }
  // s - 0 is s for every s, so nothing is left of the subtraction; s + 0 is not, for s = -0.
  static FASTMMD_INLINE V broadcast(T s) { return s - V{}; }
  static FASTMMD_INLINE V min(V a, V b) { return a < b ? a : b; }
  // NaN stays NaN.
  static FASTMMD_INLINE V clamp_below(V v, T low) { return v < low ? broadcast(low) : v; }

  static FASTMMD_INLINE T sum(V v) { return Lanes<lanes>::template sum<lanes / 2>(v); }

  // rows[i][j] becomes rows[j][i].
  static FASTMMD_INLINE void transpose(V (&rows)[lanes]) {
    Lanes<lanes>::template transpose<1>(rows);
  }

  static FASTMMD_INLINE bool any_negative(V v) {
#if defined(__AVX512DQ__)
    if constexpr (sizeof(T) == 4) return _mm512_movepi32_mask((__m512i)v) != 0;
    else return _mm512_movepi64_mask((__m512i)v) != 0;
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return _mm256_movemask_ps((__m256)v) != 0;
    else return _mm256_movemask_pd((__m256d)v) != 0;
#else
    T lane[lanes];
    store(lane, v);
    bool any = false;
    for (int i = 0; i < lanes; ++i) any |= lane[i] < 0;
    return any;
#endif
  }

  static FASTMMD_INLINE V sqrt(V v) {
#if defined(__AVX512F__)
    // The masked forms: GCC 12 warns of an uninitialised value inside the plain ones.
    if constexpr (sizeof(T) == 4) return (V)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);
    else return (V)_mm512_maskz_sqrt_pd(0xff, (__m512d)v);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return (V)_mm256_sqrt_ps((__m256)v);
    else return (V)_mm256_sqrt_pd((__m256d)v);
#elif defined(__SSE2__)
    if constexpr (sizeof(T) == 4) return (V)_mm_sqrt_ps((__m128)v);
    else return (V)_mm_sqrt_pd((__m128d)v);
#else
    for (int i = 0; i < lanes; ++i)
      v[i] = sizeof(T) == 4 ? __builtin_sqrtf(v[i]) : __builtin_sqrt(v[i]);
    return v;
#endif
  }

  // num / den where den > 0, 0 where it is 0; NaN in den stays NaN.
  static FASTMMD_INLINE V over_positive(V num, V den) { return den == 0 ? V{} : num / den; }

  static FASTMMD_INLINE V exp(V x) { return Many<T, 1>::exp({{x}}).part[0]; }

  // log(1 + u) for u >= 0, relative error a few units in the last place.
  //
  // 1 + u = x + e, x rounded and e / x the first term of what that leaves out. x = 2^n m with
  // sqrt(1/2) <= m < sqrt(2), and log(m) = 2 atanh(s) = 2 (s + s^3/3 + s^5/5 + ...),
  // s = (m - 1) / (m + 1), |s| < 0.172. Infinity and NaN stay what they are.
  static FASTMMD_INLINE V log1p(V u) {
    constexpr bool single = sizeof(T) == 4;
    constexpr int exponent = single ? 23 : 52, bias = single ? 127 : 1023;
    constexpr typename Bits<T>::type one = typename Bits<T>::type(bias) << exponent;
    constexpr T ln2 = T(0.69314718055994530942), root2 = T(1.41421356237309504880);
    constexpr T largest = single ? T(3.40282346638528859812e38) : T(1.79769313486231570815e308);
    const V x = 1 + u;
    const I bits = I(x);
    constexpr typename Bits<T>::type fraction = (typename Bits<T>::type(1) << exponent) - 1;
    const V mantissa = V((bits & fraction) | one);
    const I above = mantissa > root2;
    const V m = above ? T(0.5) * mantissa : mantissa;
    const I n = (bits >> exponent) - bias - above;  // `above` is -1 where it holds
    const V count = __builtin_convertvector(n, V);
    const V s = (m - 1) / (m + 1), z = s * s;
    V series = T(1.0 / (single ? 11 : 23)) + V{};
#pragma GCC unroll 16
    for (int k = single ? 9 : 21; k >= 3; k -= 2) series = T(1.0) / k + z * series;
    const V left_out = (u - (x - 1)) / x;
    const V result = ln2 * count + (2 * s + (2 * s * (z * series) + left_out));
    return x <= largest ? result : x;
  }
};

// Several vectors that go through each step together. A kernel value is one long chain of dependent
// instructions; the scheduler of a core holds about three such chains when they come one after the
// other, and as many as are written side by side.
template <class T, int count>
struct Many {
  using S = Simd<T>;
  using V = typename S::V;
  using I = typename S::I;
  V part[count];

  template <class Step>
  static FASTMMD_INLINE Many each(Step&& step) {
    Many m;
#pragma GCC unroll 8
    for (int u = 0; u < count; ++u) m.part[u] = step(u);
    return m;
  }

  static FASTMMD_INLINE Many load(const T* p) {
    return each([=](int u) { return S::load(p + u * S::lanes); });
  }
  FASTMMD_INLINE void store(T* p) const {
#pragma GCC unroll 8
    for (int u = 0; u < count; ++u) S::store(p + u * S::lanes, part[u]);
  }

  friend FASTMMD_INLINE Many operator+(const Many& a, const Many& b) {
    return each([&](int u) { return a.part[u] + b.part[u]; });
  }
  friend FASTMMD_INLINE Many operator-(const Many& a, const Many& b) {
    return each([&](int u) { return a.part[u] - b.part[u]; });
  }
  friend FASTMMD_INLINE Many operator*(const Many& a, const Many& b) {
    return each([&](int u) { return a.part[u] * b.part[u]; });
  }
  friend FASTMMD_INLINE Many operator/(const Many& a, const Many& b) {
    return each([&](int u) { return a.part[u] / b.part[u]; });
  }
  friend FASTMMD_INLINE Many operator/(T a, const Many& b) {
    return each([&](int u) { return a / b.part[u]; });
  }
  friend FASTMMD_INLINE Many operator+(T a, const Many& b) {
    return each([&](int u) { return a + b.part[u]; });
  }
  friend FASTMMD_INLINE Many operator-(T a, const Many& b) {
    return each([&](int u) { return a - b.part[u]; });
  }
  friend FASTMMD_INLINE Many operator*(T a, const Many& b) {
    return each([&](int u) { return a * b.part[u]; });
  }
  FASTMMD_INLINE Many& operator+=(const Many& b) { return *this = *this + b; }
  FASTMMD_INLINE Many& operator-=(const Many& b) { return *this = *this - b; }
  FASTMMD_INLINE Many& operator*=(const Many& b) { return *this = *this * b; }

  static FASTMMD_INLINE Many sqrt(const Many& a) {
    return each([&](int u) { return S::sqrt(a.part[u]); });
  }
  static FASTMMD_INLINE Many log1p(const Many& a) {
    return each([&](int u) { return S::log1p(a.part[u]); });
  }
  static FASTMMD_INLINE Many over_positive(const Many& a, const Many& b) {
    return each([&](int u) { return S::over_positive(a.part[u], b.part[u]); });
  }
  FASTMMD_INLINE V sum() const {
    V total = part[0];
#pragma GCC unroll 8
    for (int u = 1; u < count; ++u) total += part[u];
    return total;
  }

  // exp(x) for x <= 0, relative error about one unit in the last place; exp(0) = 1 exactly.
  //
  // x = n ln 2 + r with |r| <= ln(2) / 2, e^r = 1 + r + r^2 Q(r) with Q the minimax polynomial for
  // the relative error. The bits of 2^n are made by adding a number so large that the sum is
  // rounded to an integer, the biased exponent. Arguments are clamped where that is 0, and 2^n with
  // it. 2^n is multiplied, not added to the exponent: NaN has to stay NaN, whatever its bits.
  static FASTMMD_INLINE Many exp(Many x) {
    constexpr bool single = sizeof(T) == 4;
    constexpr T lowest = single ? T(-88) : T(-709);
    constexpr T magic = single ? T(12582912 + 127) : T(6755399441055744 + 1023);
    constexpr T log2_e = T(1.4426950408889634);
    // ln 2 in two parts; the first has so few bits that n times it is exact.
    constexpr T ln2_high = single ? T(0.693359375) : T(0.693147180369123816490);
    constexpr T ln2_low = single ? T(-2.12194440e-4) : T(1.90821492927058770002e-10);
    constexpr int exponent = single ? 23 : 52;
    x = each([&](int u) { return S::clamp_below(x.part[u], lowest); });
    const Many shifted = magic + log2_e * x;
    const Many n = each([&](int u) { return shifted.part[u] - magic; });
    const Many r = x - ln2_high * n - ln2_low * n;
    Many q;
    if constexpr (single) {
      q = T(0.00836871687973) + T(0.00138145986467) * r;
      q = T(0.0416683880453) + q * r;
      q = T(0.166665206317) + q * r;
      q = T(0.499999934478) + q * r;
    } else {
      q = T(2.7630248379211443975e-7) + T(2.5000061602835666699e-8) * r;
      q = T(2.7557586373840163694e-6) + q * r;
      q = T(0.000024801493098906550659) + q * r;
      q = T(0.00019841269506695787687653) + q * r;
      q = T(0.0013888888943630112946) + q * r;
      q = T(0.0083333333334944616641) + q * r;
      q = T(0.04166666666653015859) + q * r;
      q = T(0.16666666666666412523) + q * r;
      q = T(0.50000000000000106271) + q * r;
    }
    const Many p = T(1) + (r + r * (q * r));
    return each([&](int u) { return p.part[u] * V(I(shifted.part[u]) << exponent); });
  }
};

// Subnormal numbers cost a hundred cycles each on some processors and carry nothing: while this
// object lives, they count as zero on x86, whatever the calling thread has set.
class FlushSubnormals {
 public:
#if defined(__SSE2__)
  FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FlushSubnormals() {}
#endif
};

}  // namespace fastmmd::cpu::FASTMMD_ISA
