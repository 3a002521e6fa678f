// Kernel families: one small struct each, read by the CPU and by the CUDA compiler.
//
// A kernel is a sum of terms of one statistic u of a pair of points,
//
//     k(u) = sum_t w_t phi_t(c_t u),
//
// with scale c_t and coefficient w_t. Radial families look at the squared distance u = |x - y|^2,
// the others at the inner product u = <x, y>, for the cosine that of the rows divided by their
// norms. Terms that share work travel together in a Segment. A family gives `rate` and
// `slope_factor`, for whoever fills a segment on the host, and three functions of one u (a scalar
// on the GPU, a SIMD vector on the CPU):
//
//     eval   k  += sum_t w_t phi(c_t u)
//     grad   the same, and dk += sum_t w_t c_t phi'(c_t u), the slope in u
//     terms  per term, with t = c_t u and a the weight of the pair: v_w[t] += a phi(t) and
//            v_c[t] += a t phi'(t), the slope in log c
//
// `Math` names the vector type V and supplies exp, log1p and sqrt for it. The numeric trap is r =
// 0: the slope of some kernels in r = sqrt(D) is unbounded there and is taken as 0
// (Math::over_positive).
#pragma once

#if defined(__CUDACC__)
#define FASTMMD_INLINE __host__ __device__ __forceinline__
#else
#define FASTMMD_INLINE inline __attribute__((always_inline))
#endif

namespace fastmmd {

enum class Family : int {
  gaussian = 0,
  laplacian = 1,
  energy = 2,
  inverse_multiquadric = 3,
  rational_quadratic = 4,
  matern32 = 5,
  matern52 = 6,
  polynomial = 7,
  linear = 8,
  cosine = 9,
};
constexpr int num_families = 10;

// What a family looks at: |x - y|^2, <x, y>, or <x, y> / (|x| |y|).
enum class Geometry : int { radial = 0, dot = 1, cosine = 2 };

FASTMMD_INLINE constexpr Geometry geometry(Family family) {
  return family == Family::cosine       ? Geometry::cosine
         : family >= Family::polynomial ? Geometry::dot
                                        : Geometry::radial;
}

// Squaring doubles the relative error: after four squarings a fresh exponential is cheaper than
// the lost digits.
constexpr int max_chain = 5;

// Up to max_chain terms of one family. For a Gaussian chain, link q has scale c 2^q, so that one
// exponential serves all links; other families have a single link.
template <class T>
struct Segment {
  Family family;
  int length;
  T rate;               // what the family multiplies u or sqrt(u) by, for link 0
  T shape;              // rational quadratic: alpha. Polynomial: coef0.
  int degree;           // polynomial
  T weight[max_chain];  // w_q
  T slope[max_chain];   // factor of the family's slope, with w_q in it
  int term[max_chain];  // where the caller listed this link
};

struct Gaussian {  // phi(t) = exp(-t)
  static constexpr bool radial = true;

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
    V t = s.rate * D;
    V e = Math::exp(-t);
    for (int q = 0; q < s.length; ++q) {
      if (q) e *= e, t += t;
      v_w[s.term[q]] += a * e;
      v_c[s.term[q]] -= a * (t * e);
    }
  }

  static FASTMMD_INLINE double rate(double c, double) { return c; }
  static FASTMMD_INLINE double slope_factor(double c, double) { return -c; }
};

struct Laplacian {  // phi(t) = exp(-sqrt(t)), that is exp(-r / s) with c = 1 / s^2
  static constexpr bool radial = true;

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
    const V root = s.rate * Math::sqrt(D);
    const V e = a * Math::exp(-root);
    v_w[s.term[0]] += e;
    v_c[s.term[0]] -= T(0.5) * (root * e);
  }

  static FASTMMD_INLINE double rate(double c, double) { return __builtin_sqrt(c); }
  static FASTMMD_INLINE double slope_factor(double c, double) { return -0.5 * __builtin_sqrt(c); }
};

struct Energy {  // phi(t) = -sqrt(t)
  static constexpr bool radial = true;

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
    const V root = s.rate * Math::sqrt(D);
    v_w[s.term[0]] -= a * root;
    v_c[s.term[0]] -= T(0.5) * (a * root);
  }

  static FASTMMD_INLINE double rate(double c, double) { return __builtin_sqrt(c); }
  static FASTMMD_INLINE double slope_factor(double c, double) { return -0.5 * __builtin_sqrt(c); }
};

struct InverseMultiquadric {  // phi(t) = (1 + t)^(-1/2)
  static constexpr bool radial = true;

  template <class Math, class V, class T>
  static FASTMMD_INLINE void eval(V D, const Segment<T>& s, V& k) {
    k += s.weight[0] / Math::sqrt(T(1) + s.rate * D);
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void grad(V D, const Segment<T>& s, V& k, V& dk) {
    const V base = T(1) + s.rate * D;
    const V phi = T(1) / Math::sqrt(base);
    k += s.weight[0] * phi;
    dk += s.slope[0] * (phi / base);
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void terms(V D, const Segment<T>& s, V a, V* v_w, V* v_c) {
    const V t = s.rate * D, base = T(1) + t;
    const V phi = a / Math::sqrt(base);
    v_w[s.term[0]] += phi;
    v_c[s.term[0]] -= T(0.5) * (t * (phi / base));
  }

  static FASTMMD_INLINE double rate(double c, double) { return c; }
  static FASTMMD_INLINE double slope_factor(double c, double) { return -0.5 * c; }
};

struct RationalQuadratic {  // phi(t) = (1 + t / alpha)^(-alpha)
  static constexpr bool radial = true;

  template <class Math, class V, class T>
  static FASTMMD_INLINE void eval(V D, const Segment<T>& s, V& k) {
    k += s.weight[0] * Math::exp(-s.shape * Math::log1p(s.rate * D));
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void grad(V D, const Segment<T>& s, V& k, V& dk) {
    const V u = s.rate * D;
    const V phi = Math::exp(-s.shape * Math::log1p(u));
    k += s.weight[0] * phi;
    dk += s.slope[0] * (phi / (T(1) + u));
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void terms(V D, const Segment<T>& s, V a, V* v_w, V* v_c) {
    const V u = s.rate * D;
    const V phi = a * Math::exp(-s.shape * Math::log1p(u));
    v_w[s.term[0]] += phi;
    v_c[s.term[0]] -= s.shape * (u * (phi / (T(1) + u)));
  }

  static FASTMMD_INLINE double rate(double c, double alpha) { return c / alpha; }
  static FASTMMD_INLINE double slope_factor(double c, double) { return -c; }
};

struct Matern32 {  // phi(t) = (1 + q) exp(-q), q = sqrt(3 t)
  static constexpr bool radial = true;

  template <class Math, class V, class T>
  static FASTMMD_INLINE void eval(V D, const Segment<T>& s, V& k) {
    const V q = s.rate * Math::sqrt(D);
    k += s.weight[0] * ((T(1) + q) * Math::exp(-T(1) * q));
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void grad(V D, const Segment<T>& s, V& k, V& dk) {
    const V q = s.rate * Math::sqrt(D);
    const V e = Math::exp(-T(1) * q);
    k += s.weight[0] * ((T(1) + q) * e);
    dk += s.slope[0] * e;
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void terms(V D, const Segment<T>& s, V a, V* v_w, V* v_c) {
    const V q = s.rate * Math::sqrt(D);
    const V e = a * Math::exp(-T(1) * q), qe = q * e;
    v_w[s.term[0]] += e + qe;
    v_c[s.term[0]] -= T(0.5) * (q * qe);
  }

  static FASTMMD_INLINE double rate(double c, double) { return __builtin_sqrt(3 * c); }
  static FASTMMD_INLINE double slope_factor(double c, double) { return -1.5 * c; }
};

// phi(t) = (1 + q + q^2 / 3) exp(-q), q = sqrt(5 t); q^2 by itself could overflow where phi is 0.
struct Matern52 {
  static constexpr bool radial = true;

  template <class Math, class V, class T>
  static FASTMMD_INLINE void eval(V D, const Segment<T>& s, V& k) {
    const V q = s.rate * Math::sqrt(D);
    const V e = Math::exp(-T(1) * q), qe = q * e;
    k += s.weight[0] * (e + qe + T(1.0 / 3) * q * qe);
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void grad(V D, const Segment<T>& s, V& k, V& dk) {
    const V q = s.rate * Math::sqrt(D);
    const V e = Math::exp(-T(1) * q), qe = q * e;
    k += s.weight[0] * (e + qe + T(1.0 / 3) * q * qe);
    dk += s.slope[0] * (e + qe);
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void terms(V D, const Segment<T>& s, V a, V* v_w, V* v_c) {
    const V q = s.rate * Math::sqrt(D);
    const V e = a * Math::exp(-T(1) * q), qe = q * e;
    v_w[s.term[0]] += e + qe + T(1.0 / 3) * q * qe;
    v_c[s.term[0]] -= T(1.0 / 6) * (q * (qe + q * qe));
  }

  static FASTMMD_INLINE double rate(double c, double) { return __builtin_sqrt(5 * c); }
  static FASTMMD_INLINE double slope_factor(double c, double) { return -5.0 / 6 * c; }
};

struct Polynomial {  // phi(t) = (t + coef0)^degree
  static constexpr bool radial = false;

  template <class V, class T>
  static FASTMMD_INLINE V power(V base, int exponent) {
    V result = T(1) + V{};
    for (; exponent; exponent >>= 1, base *= base)
      if (exponent & 1) result *= base;
    return result;
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void eval(V u, const Segment<T>& s, V& k) {
    k += s.weight[0] * power<V, T>(s.shape + s.rate * u, s.degree);
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void grad(V u, const Segment<T>& s, V& k, V& dk) {
    const V base = s.shape + s.rate * u;
    const V slope = power<V, T>(base, s.degree - 1);
    k += s.weight[0] * (slope * base);
    dk += s.slope[0] * slope;
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void terms(V u, const Segment<T>& s, V a, V* v_w, V* v_c) {
    const V base = s.shape + s.rate * u;
    const V slope = a * power<V, T>(base, s.degree - 1);
    v_w[s.term[0]] += slope * base;
    v_c[s.term[0]] += T(s.degree) * (s.rate * u * slope);
  }

  static FASTMMD_INLINE double rate(double c, double) { return c; }
  static FASTMMD_INLINE double slope_factor(double c, double degree) { return degree * c; }
};

struct Linear {  // phi(t) = t; of normalised rows it is the cosine kernel
  static constexpr bool radial = false;

  template <class Math, class V, class T>
  static FASTMMD_INLINE void eval(V u, const Segment<T>& s, V& k) {
    k += s.slope[0] * u;
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void grad(V u, const Segment<T>& s, V& k, V& dk) {
    k += s.slope[0] * u;
    dk += s.slope[0] - V{};
  }

  template <class Math, class V, class T>
  static FASTMMD_INLINE void terms(V u, const Segment<T>& s, V a, V* v_w, V* v_c) {
    v_w[s.term[0]] += s.rate * (a * u);
    v_c[s.term[0]] += s.rate * (a * u);
  }

  static FASTMMD_INLINE double rate(double c, double) { return c; }
  static FASTMMD_INLINE double slope_factor(double c, double) { return c; }
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
    case Family::inverse_multiquadric: return visit(InverseMultiquadric{});
    case Family::rational_quadratic: return visit(RationalQuadratic{});
    case Family::matern32: return visit(Matern32{});
    case Family::matern52: return visit(Matern52{});
    case Family::polynomial: return visit(Polynomial{});
    case Family::linear:
    case Family::cosine: return visit(Linear{});
  }
}

// phi(0) of a radial family: the diagonal of the kernel matrix, which the tile loops leave out.
FASTMMD_INLINE double value_at_zero(Family family) { return family == Family::energy ? 0.0 : 1.0; }

}  // namespace fastmmd
