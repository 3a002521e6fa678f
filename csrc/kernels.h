// Kernel families: one small struct each, read by the CPU and by the CUDA compiler.
//
// A kernel is a sum of radial terms of the squared distance D = |x - y|^2,
//
//     k(D) = sum_t w_t phi_t(c_t D),
//
// with scale c_t and coefficient w_t. Terms that share work travel together in a Segment. A family
// gives slope_factor, for whoever fills a segment on the host, and three functions of one D (a
// scalar on the GPU, a SIMD vector on the CPU):
//
//     eval   k  += sum_t w_t phi(c_t D)
//     grad   the same, and dk += sum_t w_t c_t phi'(c_t D), the slope in D
//     terms  per term t: v_w[t] += a phi(c_t D), v_c[t] += a D phi'(c_t D), a the weight of the
//     pair
//
// `Math` names the vector type V and supplies exp and sqrt for it. The numeric trap is r = 0: the
// slope of a kernel in r = sqrt(D) is unbounded there and is taken as 0 (Math::over_positive).
#pragma once

#if defined(__CUDACC__)
#define FASTMMD_INLINE __host__ __device__ __forceinline__
#else
#define FASTMMD_INLINE inline __attribute__((always_inline))
#endif

namespace fastmmd {

enum class Family : int { gaussian = 0, laplacian = 1, energy = 2 };

// Squaring doubles the relative error: after four squarings a fresh exponential is cheaper than
// the lost digits.
constexpr int max_chain = 5;

// Up to max_chain terms of one family. For a Gaussian chain, link q has scale c 2^q, so that one
// exponential serves all links; other families have a single link.
template <class T>
struct Segment {
  Family family;
  int length;
  T rate;               // Gaussian: c of link 0. Laplacian and energy: sqrt(c).
  T weight[max_chain];  // w_q
  T slope[max_chain];   // factor of the family's slope, with w_q in it
  int term[max_chain];  // where the caller listed this link
};

struct Gaussian {  // phi(t) = exp(-t)
  template <class Math, class V, class T>
  static FASTMMD_INLINE void eval(V D, const Segment<T>& s, V& k) {
    V e = Math::exp(-s.rate * D);
    k += s.weight[0] * e;
    for (int q = 1; q < max_chain; ++q) {
      if (q == s.length) break;
      e *= e;
      k += s.weight[q] * e;
    }
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void grad(V D, const Segment<T>& s, V& k, V& dk) {
    V e = Math::exp(-s.rate * D);
    k += s.weight[0] * e;
    dk += s.slope[0] * e;
    for (int q = 1; q < max_chain; ++q) {
      if (q == s.length) break;
      e *= e;
      k += s.weight[q] * e;
      dk += s.slope[q] * e;
    }
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void terms(V D, const Segment<T>& s, V a, V* v_w, V* v_c) {
    V e = Math::exp(-s.rate * D);
    for (int q = 0; q < s.length; ++q) {
      if (q) e *= e;
      v_w[s.term[q]] += a * e;
      v_c[s.term[q]] -= a * D * e;
    }
  }

  static double slope_factor(double c) { return -c; }
};

struct Laplacian {  // phi(t) = exp(-sqrt(t)), that is exp(-r / s) with c = 1 / s^2
  template <class Math, class V, class T>
  static FASTMMD_INLINE void eval(V D, const Segment<T>& s, V& k) {
    k += s.weight[0] * Math::exp(-s.rate * Math::sqrt(D));
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void grad(V D, const Segment<T>& s, V& k, V& dk) {
    V r = Math::sqrt(D);
    V e = Math::exp(-s.rate * r);
    k += s.weight[0] * e;
    dk += Math::over_positive(s.slope[0] * e, r);
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void terms(V D, const Segment<T>& s, V a, V* v_w, V* v_c) {
    V r = Math::sqrt(D);
    V e = Math::exp(-s.rate * r);
    v_w[s.term[0]] += a * e;
    // D phi'(c D) = -r exp(-sqrt(c) r) / (2 sqrt(c))
    v_c[s.term[0]] -= Math::over_positive(a * e * r, (2 * s.rate) - V{});
  }

  static double slope_factor(double c) { return -0.5 * __builtin_sqrt(c); }
};

struct Energy {  // phi(t) = -sqrt(t)
  template <class Math, class V, class T>
  static FASTMMD_INLINE void eval(V D, const Segment<T>& s, V& k) {
    k -= (s.weight[0] * s.rate) * Math::sqrt(D);
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void grad(V D, const Segment<T>& s, V& k, V& dk) {
    V r = Math::sqrt(D);
    k -= (s.weight[0] * s.rate) * r;
    dk += Math::over_positive(s.slope[0] - V{}, r);
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void terms(V D, const Segment<T>& s, V a, V* v_w, V* v_c) {
    V r = Math::sqrt(D);
    v_w[s.term[0]] -= a * s.rate * r;
    v_c[s.term[0]] -= Math::over_positive(a * r, (2 * s.rate) - V{});
  }

  static double slope_factor(double c) { return -0.5 * __builtin_sqrt(c); }
};

// Calls visit(family struct): the only list of families.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable  // visit may be for the host or for the device
#endif
template <class Visit>
FASTMMD_INLINE void dispatch(Family family, Visit&& visit) {
  switch (family) {
    case Family::gaussian: return visit(Gaussian{});
    case Family::laplacian: return visit(Laplacian{});
    case Family::energy: return visit(Energy{});
  }
}

// phi(0): the diagonal of the kernel matrix, which the tile loops leave out.
inline double value_at_zero(Family family) { return family == Family::energy ? 0.0 : 1.0; }

}  // namespace fastmmd
