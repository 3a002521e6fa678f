// The terms of a kernel, put into the segments that the tile loop evaluates.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "mmd.h"

namespace fastmmd::cpu {

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

  // Appends the segments of one factor, whose terms are [first, last).
  Range add(const Term* terms, int first, int last, const double* scales) {
    const int begin = num_segments_;
    int order[max_terms];
    int gaussians = 0;
    double widest = 0;
    for (int t = first; t < last; ++t)
      if (terms[t].family == Family::gaussian) {
        order[gaussians++] = t;
        widest = std::max(widest, scales[t]);
      }
    // NaN has no order, which sorting needs.
    auto key = [&](int t) { return std::isnan(scales[t]) ? -1 : scales[t]; };
    std::sort(order, order + gaussians,
              [&](int a, int b) { return key(a) != key(b) ? key(a) < key(b) : a < b; });
    bool used[max_terms] = {};
    for (int o = 0; o < gaussians; ++o) {
      if (used[o]) continue;
      double scale = scales[order[o]];
      Segment<T>& segment = open(terms[order[o]], scale);
      append(segment, terms, order[o], scale);
      for (int next = o + 1; next < gaussians && segment.length < max_chain; ++next) {
        const double ratio = scales[order[next]] / scale;
        constexpr double tolerance = 8 * std::numeric_limits<double>::epsilon();
        if (used[next] || !(std::abs(ratio - 2) <= tolerance)) continue;
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
    const T near_offset = gaussians == last - first ? T(std::min(harmless / widest, 1e30)) : T(0);
    return {segments_ + begin, num_segments_ - begin, near_offset};
  }

 private:
  // In the range of T with room to spare: a distance of 0 times infinity would be no number.
  static T finite(double value) {
    constexpr double most = double(std::numeric_limits<T>::max()) / 16;
    return T(value > most ? most : value < -most ? -most : value);
  }

  Segment<T>& open(const Term& term, double scale) {
    Segment<T>& segment = segments_[num_segments_++];
    segment.family = term.family;
    dispatch(term.family,
             [&](auto family) { segment.rate = finite(decltype(family)::rate(scale, term.p)); });
    segment.shape = T(term.family == Family::polynomial ? term.q : term.p);
    segment.degree = term.family == Family::polynomial ? int(term.p) : 0;
    segment.length = 0;
    return segment;
  }

  void append(Segment<T>& segment, const Term* terms, int t, double scale) {
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

}  // namespace fastmmd::cpu
