// What the Python faces of both backends share: lists and sizes, checked, as the core takes them.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "mmd.h"
#include "random_features.h"

namespace fastmmd {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

using Strides = std::vector<int64_t>;
using Widths = std::vector<int64_t>;
using Lists = std::vector<int>;

static_assert(max_terms == 128 && max_factors == 8, "the messages below say so");

// A std::invalid_argument is a ValueError in Python.
inline void require(bool sound, const char* message) {
  if (!sound) throw std::invalid_argument(message);
}

// The kernel as Python lists it. Scales and coefficients are read where they are given; those on a
// device are not.
struct Terms {
  Terms(const Lists& factors, const Lists& families, uintptr_t scales, uintptr_t coefficients,
        const std::vector<double>& shapes, const Lists& units)
      : count(int(families.size())) {
    const size_t size = families.size();
    require(size > 0 && size <= size_t(max_terms) && units.size() == size &&
                factors.size() == size && shapes.size() == 2 * size,
            "factors, families, shapes and units need one entry a term, two for shapes, and at"
            " most 128 of them");
    for (size_t t = 0; t < size; ++t) {
      require(families[t] >= 0 && families[t] < num_families && units[t] >= 0 && units[t] <= 4,
              "families must be 0 to 9 and units 0 to 4");
      const Unit unit = Unit(units[t]);
      require(geometry(Family(families[t])) == Geometry::radial || unit == Unit::fixed ||
                  unit == Unit::width,
              "distances are the unit of radial families alone");
      terms[t] = {Family(families[t]), Unit(units[t]),   factors[t], 0, 1,
                  shapes[2 * t],       shapes[2 * t + 1]};
      if (scales) terms[t].scale = pointer<double>(scales)[t];
      if (coefficients) terms[t].coefficient = pointer<double>(coefficients)[t];
    }
  }

  Term terms[max_terms];
  int count;
};

// Terms of which only units and number matter; one for each factor at least.
inline Terms any_terms(const Widths& widths, Lists units = {int(Unit::fixed)}) {
  const int count = int(std::max(units.size(), widths.size()));
  units.resize(count, int(Unit::fixed));
  Lists factors(count, int(widths.size()) - 1);
  for (size_t l = 0; l < widths.size(); ++l) factors[l] = int(l);
  return Terms(factors, Lists(count, 0), 0, 0, std::vector<double>(2 * count), units);
}

inline Sample sample(uintptr_t data, int64_t rows, const Strides& strides, uintptr_t weights = 0) {
  require(strides.size() == 2 || strides.size() == 3, "strides must be of 2 or 3 dimensions");
  const size_t last = strides.size() - 1;
  return {pointer<void>(data), rows,          last == 2 ? strides[0] : 0,
          strides[last - 1],   strides[last], pointer<double>(weights)};
}

// Points to widths and terms.
inline Problem problem(const Sample& x, const Sample& y, int dtype, const Widths& widths,
                       const Terms& kernel, uintptr_t resolved, uintptr_t workspace,
                       int threads = 1) {
  require(dtype >= 0 && dtype <= 3, "dtype must be 0, 1, 2 or 3");
  require(x.rows >= 1 && y.rows >= 1, "n and m must be positive");
  require(threads >= 1, "threads must be positive");
  require(!widths.empty() && widths.size() <= size_t(max_factors), "there must be 1 to 8 widths");
  for (int64_t width : widths) require(width >= 1, "widths must be positive");
  const Term* const terms = kernel.terms;
  for (int t = 0; t < kernel.count; ++t) {
    const int before = t ? terms[t - 1].factor : 0, factor = terms[t].factor;
    require(factor >= before && factor <= before + 1 && factor < int(widths.size()) &&
                (t != 0 || factor == 0) &&
                (t == 0 || factor != before ||
                 geometry(terms[t].family) == geometry(terms[t - 1].family)),
            "factors must count up from 0, with terms of one geometry each");
  }
  require(terms[kernel.count - 1].factor + 1 == int(widths.size()), "every factor needs a term");
  return {Dtype(dtype),
          x,
          y,
          widths.data(),
          int(widths.size()),
          terms,
          kernel.count,
          pointer<double>(resolved),
          pointer<void>(workspace),
          threads,
          nullptr,
          nullptr};
}

inline Mmd2Args mmd2_args(const Problem& problem, int64_t batch, int estimator, int64_t size,
                          int constant_factors = 0) {
  require(batch >= 1, "batch must be positive");
  require(estimator >= 0 && estimator <= 6, "estimator must be 0 to 6");
  const int64_t least = std::min(problem.x.rows, problem.y.rows);
  const Estimator e = Estimator(estimator);
  require((e != Estimator::linear || least >= 2) &&
              (e != Estimator::block || (size >= 2 && size <= least)) &&
              (e != Estimator::incomplete || (size >= 1 && size < least)),
          "size does not fit the estimator and the samples");
  require(constant_factors >= 0 && constant_factors < problem.num_factors,
          "constant_factors must leave one that is not");
  return {problem, batch, e, size, constant_factors};
}

inline Mmd2Out mmd2_out(uintptr_t value, uintptr_t v_x, uintptr_t v_y, uintptr_t v_x_weights,
                        uintptr_t v_y_weights, uintptr_t v_scales, uintptr_t v_coefficients) {
  return {pointer<void>(value),           pointer<void>(v_x),           pointer<void>(v_y),
          pointer<double>(v_x_weights),   pointer<double>(v_y_weights), pointer<double>(v_scales),
          pointer<double>(v_coefficients)};
}

inline KernelSumArgs kernel_sum_args(const Problem& problem, uintptr_t v, int64_t p,
                                     uintptr_t out) {
  require(p >= 1, "p must be positive");
  return {problem, pointer<void>(v), p, pointer<void>(out)};
}

inline SignFormsArgs sign_forms_args(const Problem& problem, int scheme, uint64_t seed,
                                     int64_t count, uintptr_t forms, uintptr_t linear,
                                     uintptr_t diagonal, uintptr_t totals) {
  require(scheme == 0 || scheme == 1, "scheme must be 0 or 1");
  require(scheme == 0 || problem.x.rows == problem.y.rows, "the wild bootstrap needs n = m");
  require(count >= 0, "count must not be negative");
  return {problem,
          Scheme(scheme),
          seed,
          count,
          pointer<double>(forms),
          pointer<double>(linear),
          pointer<double>(diagonal),
          pointer<double>(totals)};
}

// Signs, their width and radii; a width of 0 says that the frequencies are given.
struct Frequencies {
  uintptr_t data = 0;
  int64_t count = 0;
  const Strides& strides;
  uintptr_t signs = 0;
  int64_t width = 0;
  uintptr_t radii = 0;
};

inline FeatureArgs feature_args(const Sample& x, int64_t d, int dtype, const Frequencies& w,
                                uintptr_t rates, int num_rates, uintptr_t workspace, int threads) {
  require(dtype >= 0 && dtype <= 3, "dtype must be 0, 1, 2 or 3");
  require(x.rows >= 1 && d >= 1 && w.count >= 1, "n, d and the frequencies must be positive");
  require(num_rates >= 1 && num_rates <= max_rates, "there must be 1 to 128 rates");
  require(threads >= 1, "threads must be positive");
  require(w.width == 0 || (w.width >= 32 && (w.width & (w.width - 1)) == 0 && w.width >= d),
          "width must be a power of two, not less than 32 and d");
  return {Dtype(dtype),
          x,
          d,
          sample(w.data, w.count, w.strides),
          {pointer<int8_t>(w.signs), w.width, pointer<double>(w.radii)},
          pointer<double>(rates),
          num_rates,
          pointer<void>(workspace),
          threads,
          nullptr,
          nullptr};
}

}  // namespace fastmmd
