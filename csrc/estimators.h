// Which pairs an estimator counts and what their sums are divided by; on either side.
#pragma once

#include "mmd.h"

namespace fastmmd {

// Which pairs (i, j) count, by their positions in their samples. Symmetric in i and j.
struct Pairs {
  bool self_within;  // i = j within a sample
  bool self_across;  // i = j across the samples
  int64_t group;     // i and j of one group of this many, if not 0
  int64_t band;      // |i - j| <= band, if not 0
  int64_t used;      // with groups and bands: i, j < used

  // Of so few pairs squared distances are made from differences, as anyone would who writes them
  // down pair by pair.
  FASTMMD_INLINE bool few() const { return group ? group <= 8 : band && band <= 8; }

  FASTMMD_INLINE bool masked() const { return group || band; }

  // The partners of i are among [first, last).
  FASTMMD_INLINE int64_t first(int64_t i) const {
    return group ? i / group * group : i > band ? i - band : 0;
  }
  FASTMMD_INLINE int64_t last(int64_t i) const {
    if (i >= used) return 0;
    const int64_t end = group ? i / group * group + group : i + band + 1;
    return end < used ? end : used;
  }
};

FASTMMD_INLINE bool is_masked(Estimator e) {
  return e == Estimator::linear || e == Estimator::block || e == Estimator::incomplete;
}

// The diagonal of a lone radial kernel is known, and has no gradient.
inline bool diagonal_is_known(const Mmd2Args& args) {
  return args.num_factors == 1 && geometry(args.terms[0].family) == Geometry::radial;
}

inline bool is_weighted(const Mmd2Args& args) { return args.x.weights || args.y.weights; }

// A shift of all points adds terms to a linear kernel that depend on one of the points alone.
// Every estimator counts them with signs that add up to zero, but for the unbiased one with
// weights, where the weights of the pairs of a point depend on its own: so its gradient to the
// weights feels a shift even where they are equal.
inline bool feels_no_shift(const Mmd2Args& args, const Mmd2Out& out) {
  const bool weights_vary = out.v_x_weights || out.v_y_weights;
  bool linear = args.num_factors == 1;
  for (int t = 0; t < args.num_terms; ++t) linear &= args.terms[t].family == Family::linear;
  return linear && args.estimator != Estimator::cross &&
         !(args.estimator == Estimator::unbiased && (is_weighted(args) || weights_vary));
}

inline Pairs counted_pairs(const Mmd2Args& args) {
  const int64_t least = args.x.rows < args.y.rows ? args.x.rows : args.y.rows;
  switch (args.estimator) {
    case Estimator::biased: return {!diagonal_is_known(args), true, 0, 0, 0};
    case Estimator::linear: return {false, false, 2, 0, least / 2 * 2};
    case Estimator::block: return {false, true, args.size, 0, least / args.size * args.size};
    case Estimator::incomplete: return {false, false, 0, args.size, least};
    default: return {false, true, 0, 0, 0};
  }
}

// What the sums over ordered pairs within and across the samples are divided by.
struct Divisors {
  double within[2], across;
};

// `pairs`: sum_{i != j} a_i a_j of each sample, with weights of mean 1.
FASTMMD_INLINE Divisors divisors(Estimator estimator, int64_t rows_x, int64_t rows_y, int64_t size,
                                 const Pairs& counted, const double (&pairs)[2], double share) {
  const double n = double(rows_x), m = double(rows_y), used = double(counted.used);
  const double width = double(size);
  Divisors by{};
  for (int domain = 0; domain < 2; ++domain) {
    const double rows = domain ? m : n;
    switch (estimator) {
      case Estimator::biased: by.within[domain] = rows * rows; break;
      case Estimator::unbiased: by.within[domain] = pairs[domain]; break;
      case Estimator::linear: by.within[domain] = used; break;
      case Estimator::block: by.within[domain] = used * (width - 1); break;
      case Estimator::incomplete: by.within[domain] = 2 * used * width - width * (width + 1); break;
      default: by.within[domain] = 1 / 0.0;
    }
  }
  switch (estimator) {
    case Estimator::block: by.across = -used * width; break;
    case Estimator::linear:
    case Estimator::incomplete: by.across = -by.within[0]; break;
    case Estimator::cross: by.across = 2 * n * m; break;
    default: by.across = -n * m;
  }
  by.within[0] /= share;
  by.within[1] /= share;
  by.across /= share;
  return by;
}

}  // namespace fastmmd
