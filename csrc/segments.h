// The terms of a kernel, put into the segments that the tile loops evaluate; on either side.
#pragma once

#include "mmd.h"

namespace fastmmd {

// The segments of all factors, those of a factor side by side. Gaussians whose scales double share
// one exponential; scales are compared with a tolerance, as they come from squares of rounded
// bandwidths.
template <class T>
class Kernel {
 public:
  struct Range {
    const Segment<T>* segments;
    int num_segments;
    T near_offset;
  };

  FASTMMD_INLINE const Segment<T>* data() const { return segments_; }

  // Empty again. The constructor does it too, but shared memory of the GPU has none.
  FASTMMD_INLINE void clear() { num_segments_ = 0; }

  // Appends the segments of one factor, whose terms are [first, last).
  FASTMMD_INLINE Range add(const Term* terms, int first, int last, const double* scales) {
    const int begin = num_segments_;
    int order[max_terms];
    bool used[max_terms];
    int gaussians = 0;
    double widest = 0;
    for (int t = first; t < last; ++t)
      if (terms[t].family == Family::gaussian) {
        if (scales[t] > widest) widest = scales[t];
        // By scale and place; NaN has no order, and counts as the least.
        int at = gaussians++;
        for (; at > 0 && key(scales[order[at - 1]]) > key(scales[t]); --at)
          order[at] = order[at - 1];
        order[at] = t;
      }
    for (int o = 0; o < gaussians; ++o) used[o] = false;
    for (int o = 0; o < gaussians; ++o) {
      if (used[o]) continue;
      double scale = scales[order[o]];
      Segment<T>& segment = open(terms[order[o]], scale);
      append(segment, terms, order[o], scale);
      for (int next = o + 1; next < gaussians && segment.length < max_chain; ++next) {
        const double ratio = scales[order[next]] / scale;
        constexpr double tolerance = 0x1p-49;
        if (used[next] || !(ratio >= 2 - tolerance && ratio <= 2 + tolerance)) continue;
        scale *= 2;
        used[next] = true;
        append(segment, terms, order[next], scale);
      }
    }
    for (int t = first; t < last; ++t)
      if (terms[t].family != Family::gaussian)
        append(open(terms[t], scales[t]), terms, t, scales[t]);

    // Distances enter a Gaussian as c D, whose rounding error is that of c (|z_i|^2 + |z_j|^2).
    constexpr double harmless = 16;
    T near_offset = 0;
    if (gaussians == last - first) {
      near_offset = T(1e30);
      if (harmless / widest < 1e30) near_offset = T(harmless / widest);
    }
    return {segments_ + begin, num_segments_ - begin, near_offset};
  }

 private:
  static FASTMMD_INLINE double key(double scale) { return scale != scale ? -1 : scale; }

  // In the range of T with room to spare: a distance of 0 times infinity would be no number.
  static FASTMMD_INLINE T finite(double value) {
    constexpr double most = sizeof(T) == 4 ? 0x1p124 : 0x1p1020;
    return T(value > most ? most : value < -most ? -most : value);
  }

  FASTMMD_INLINE Segment<T>& open(const Term& term, double scale) {
    Segment<T>& segment = segments_[num_segments_++];
    segment.family = term.family;
    dispatch(term.family,
             [&](auto family) { segment.rate = finite(decltype(family)::rate(scale, term.p)); });
    segment.shape = T(term.family == Family::polynomial ? term.q : term.p);
    segment.degree = term.family == Family::polynomial ? int(term.p) : 0;
    segment.length = 0;
    return segment;
  }

  FASTMMD_INLINE void append(Segment<T>& segment, const Term* terms, int t, double scale) {
    const int q = segment.length++;
    double factor = 0;
    dispatch(segment.family,
             [&](auto family) { factor = decltype(family)::slope_factor(scale, terms[t].p); });
    segment.weight[q] = T(terms[t].coefficient);
    segment.slope[q] = finite(terms[t].coefficient * factor);
    segment.term[q] = t;
  }

  Segment<T> segments_[max_terms];
  int num_segments_ = 0;
};

}  // namespace fastmmd
