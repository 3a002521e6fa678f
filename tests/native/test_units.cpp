// What scales are divided by.
#include "core.h"

namespace fastmmd::test {
namespace {

const Unit heuristics[] = {Unit::mean, Unit::median, Unit::x_median};

const char* name(Unit unit) {
  const char* const names[] = {"fixed", "mean", "median", "x_median", "width"};
  return names[int(unit)];
}

// Few points, with and without two middle values, and more pairs than are sorted at once.
template <class T>
void against_oracle() {
  for (int64_t n : {1, 2, 3, 4, 5, 12, 150})
    for (int64_t m : {1, 2, 7, 130}) {
      Case c = {"units", n, m, {6}, {term(Family::gaussian, 3)}, Estimator::resolve};
      for (Unit unit : heuristics) c.terms.push_back(term(Family::laplacian, unit, 1.5));
      c.terms.push_back(term(Family::energy, Unit::width, 2));
      const Data<T> data = draw<T>(c);
      compare(mmd2(c, data, 1), exact_mmd2(c, widen(data)),
              "units of " + std::to_string(n) + " and " + std::to_string(m) + type_name<T>());
    }
}

// Of each factor its own; and with gradients, for which units are constants.
template <class T>
void of_factors() {
  for (Unit unit : heuristics) {
    Case c = {std::string("unit ") + name(unit), 45, 38, {5, 9}, {}};
    c.terms = product({{term(Family::gaussian, unit, 0.7), term(Family::matern32, unit, 2)},
                       {term(Family::polynomial, Unit::width, 0.5)}});
    c.terms[2].p = 3;
    c.terms[2].q = 1;
    const Data<T> data = draw<T>(c);
    compare(mmd2(c, data, 1), exact_mmd2(c, widen(data)), c.name + type_name<T>());
  }
}

// Half of the distances are equal, or nearly all of them zero.
void ties() {
  Case c = {"ties", 300, 300, {2}, {}, Estimator::resolve};
  for (Unit unit : heuristics) c.terms.push_back(term(Family::gaussian, unit, 1));
  Data<float> data = draw<float>(c);
  for (int64_t i = 0; i < c.n; ++i) data.x[2 * i] = data.x[2 * i + 1] = float(i % 3);
  for (int64_t i = 0; i < c.m; ++i) data.y[2 * i] = data.y[2 * i + 1] = float(i % 2);
  compare(mmd2(c, data, 2), exact_mmd2(c, widen(data)), "ties");
  for (size_t i = 2; i < data.x.size(); ++i) data.x[i] = 0;
  for (size_t i = 0; i < data.y.size(); ++i) data.y[i] = 0;
  data.x[0] = 1;
  const Mmd2<float> r = mmd2(c, data, 2);
  check(r.scales[1] == 0 && r.scales[2] == 0, "a unit of 0 makes the scale 0");
  c.estimator = Estimator::biased;
  const Mmd2<float> all = mmd2(c, data, 2);
  check(all.v_scales[1] == 0 && all.v_scales[2] == 0, "a unit of 0 has no gradient");
}

// The median is one pass after another with all threads: what they find, all of them must see.
void on_threads() {
  Case c = {"median", 200, 260, {24}, {}, Estimator::resolve};
  for (Unit unit : {Unit::x_median, Unit::median})
    for (bool both : {false, true}) {
      c.terms = {term(Family::gaussian, unit, 1)};
      if (both) c.terms.push_back(term(Family::gaussian, Unit::x_median, 1));
      const Data<float> data = draw<float>(c);
      const Mmd2<float> one = mmd2(c, data, 1);
      bool same = true;
      for (int repeat = 0; repeat < 20; ++repeat) same = same && mmd2(c, data, 4) == one;
      check(same, std::string(name(unit)) + ": same bits on more threads");
    }
}

}  // namespace

void units() {
  against_oracle<float>();
  against_oracle<double>();
  of_factors<float>();
  of_factors<double>();
  ties();
  on_threads();
}

}  // namespace fastmmd::test
