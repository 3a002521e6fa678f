// The terms of a kernel, put into the segments that the tile loop evaluates.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "mmd.h"

namespace fastmmd::cpu {

// Terms as segments. Gaussians whose scales double share one exponential; scales are compared with
// a tolerance, as they come from squares of rounded bandwidths.
template <class T>
class Kernel {
 public:
  void set(const Term* terms, int num_terms, const double* scales) {
    int order[max_terms];
    int gaussians = 0;
    double widest = 0;
    for (int t = 0; t < num_terms; ++t)
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
      Segment<T>& segment = open(Family::gaussian, scale);
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
    for (int t = 0; t < num_terms; ++t)
      if (terms[t].family != Family::gaussian)
        append(open(terms[t].family, std::sqrt(scales[t])), terms, t, scales[t]);

    // Distances enter a Gaussian as c D, whose rounding error is that of c (|z_i|^2 + |z_j|^2).
    constexpr double harmless = 16;
    if (gaussians == num_terms) near_offset = T(std::min(harmless / widest, 1e30));
  }

  const Segment<T>* segments() const { return segments_; }
  int num_segments() const { return num_segments_; }
  T near_offset = 0;

 private:
  Segment<T>& open(Family family, double rate) {
    Segment<T>& segment = segments_[num_segments_++];
    segment.family = family;
    segment.rate = T(rate);
    segment.length = 0;
    return segment;
  }

  void append(Segment<T>& segment, const Term* terms, int t, double scale) {
    const int q = segment.length++;
    double factor = 0;
    dispatch(segment.family, [&](auto family) { factor = decltype(family)::slope_factor(scale); });
    segment.weight[q] = T(terms[t].coefficient);
    segment.slope[q] = T(terms[t].coefficient * factor);
    segment.term[q] = t;
  }

  Segment<T> segments_[max_terms];
  int num_segments_ = 0;
};

}  // namespace fastmmd::cpu
