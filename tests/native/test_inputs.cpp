// Samples of every kind: formats, degenerate and extreme values.
#include <algorithm>
#include <cstring>
#include <limits>

#include "core.h"

namespace fastmmd::test {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// Values that both formats hold exactly, and their bits.
uint16_t encode(float& f, Dtype dtype) {
  f = std::round(f * 8) / 8;
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t exponent = (bits >> 23) & 255;
  if (dtype == Dtype::bfloat16 || exponent == 0) return uint16_t(bits >> 16);
  return uint16_t((bits >> 16 & 0x8000) | (exponent - 112) << 10 | (bits >> 13 & 0x3ff));
}

void half_precision() {
  const Case kernels[] = {{"gaussian", 40, 30, {21}, {term(Family::gaussian, Unit::mean, 1)}},
                          {"product",
                           40,
                           30,
                           {16, 5},
                           product({{term(Family::laplacian, 1)}, {term(Family::linear, 1)}})}};
  for (const Case& c : kernels)
    for (Dtype dtype : {Dtype::float16, Dtype::bfloat16}) {
      Data<float> data = draw<float>(c);
      std::vector<uint16_t> x, y;
      for (float& f : data.x) x.push_back(encode(f, dtype));
      for (float& f : data.y) y.push_back(encode(f, dtype));
      Mmd2Args args = {problem(c, data, 2, nullptr), 1, c.estimator, 0};
      args.dtype = dtype;
      args.x.data = x.data();
      args.y.data = y.data();
      check(mmd2<float>(c, args) == mmd2(c, data, 1), "half inputs give the bits of their values");
    }
}

// Column-major, every other row backwards, and one row repeated.
template <class T>
void strides() {
  for (const Term& t : {term(Family::laplacian, Unit::mean, 2),
                        term(Family::polynomial, 0.1, 1, 2, 1), term(Family::cosine, 1)}) {
    const Case c = {"strides", 37, 50, {12, 7}, product({{t}, {t}})};
    const int64_t d = c.d();
    Data<T> data = draw<T>(c);
    const std::vector<T> row(data.y.begin(), data.y.begin() + d);
    std::vector<T> turned(c.n * d), spread(2 * c.n * d);
    for (int64_t i = 0; i < c.n; ++i)
      for (int64_t k = 0; k < d; ++k) {
        turned[k * c.n + i] = data.x[i * d + k];
        spread[2 * (c.n - 1 - i) * d + k] = data.x[i * d + k];
      }
    for (int64_t i = 0; i < c.m * d; ++i) data.y[i] = row[i % d];
    const Mmd2<T> expected = mmd2(c, data, 1);
    Mmd2Args args = {problem(c, data, 1, nullptr), 1, c.estimator, 0};
    args.y = {row.data(), c.m, 0, 0, 1, nullptr};
    args.x = {turned.data(), c.n, 0, 1, c.n, nullptr};
    check(mmd2<T>(c, args) == expected, "columns of x side by side");
    args.x = {&spread[2 * (c.n - 1) * d], c.n, 0, -2 * d, 1, nullptr};
    check(mmd2<T>(c, args) == expected, "rows of x the wrong way round");
  }
}

template <class V>
bool all_zero(const V& v) {
  return std::all_of(v.begin(), v.end(), [](auto e) { return e == 0; });
}

// One point for all rows: no rounding is to be seen.
template <class T>
void equal_points() {
  std::vector<Term> kernels = families(9);
  for (Unit unit : {Unit::mean, Unit::median, Unit::x_median})
    kernels.push_back(term(Family::gaussian, unit, 1));
  for (const Term& t : kernels)
    for (auto [estimator, size] : {std::pair<Estimator, int64_t>{Estimator::biased, 0},
                                   {Estimator::unbiased, 0},
                                   {Estimator::linear, 0},
                                   {Estimator::block, 4},
                                   {Estimator::incomplete, 3}})
      for (bool weighted : {false, true}) {
        if (weighted && !takes_weights(estimator)) continue;
        const Case c = {"equal points", 50, 41, {9}, {t}, estimator, size, weighted};
        Data<T> data = draw<T>(c);
        std::fill(data.x.begin(), data.x.end(), T(0.1));
        std::fill(data.y.begin(), data.y.end(), T(0.1));
        const Mmd2<T> r = mmd2(c, data, 2);
        const std::string what = std::string("equal points, ") + name(t.family) + ", " +
                                 name(estimator) + (weighted ? " weighted" : "") + type_name<T>();
        check(all_zero(r.value) && all_zero(r.v_x_weights) && all_zero(r.v_y_weights) &&
                  all_zero(r.v_scales) && all_zero(r.v_coefficients),
              what + " give 0");
        // Weights of pairs of one sample, and of two, are not the same in the unbiased estimate:
        // inner products have a slope where the value is 0.
        if (weighted && estimator == Estimator::unbiased && geometry(t.family) == Geometry::dot)
          compare(r, exact_mmd2(c, widen(data)), what);
        else check(all_zero(r.v_x) && all_zero(r.v_y), what + " have no gradient");
      }
}

template <class T>
void one_row() {
  for (const Term& t : families(5))
    for (auto [n, m] : {std::pair<int64_t, int64_t>{1, 1}, {1, 30}, {30, 1}})
      for (Estimator estimator : {Estimator::biased, Estimator::cross})
        for (bool weighted : {false, true}) {
          const Case c = {"one row", n, m, {5}, {t}, estimator, 0, weighted};
          const Data<T> data = draw<T>(c);
          compare(mmd2(c, data, 2), exact_mmd2(c, widen(data)),
                  std::string(name(t.family)) + " " + std::to_string(n) + "x" + std::to_string(m) +
                      type_name<T>());
        }
}

// Rows of zeros, for which the cosine is 0, and columns of zeros.
template <class T>
void zeros() {
  for (const Term& t : families(6)) {
    const Case c = {std::string(name(t.family)) + " with zeros" + type_name<T>(), 34, 21, {6}, {t}};
    Data<T> data = draw<T>(c);
    for (int64_t i = 0; i < c.n; ++i) data.x[i * 6 + 2] = 0;
    for (int64_t i = 0; i < c.m; ++i) data.y[i * 6 + 2] = 0;
    for (int64_t k = 0; k < 6; ++k) data.x[6 * 3 + k] = data.x[6 * 4 + k] = data.y[6 * 20 + k] = 0;
    compare(mmd2(c, data, 1), exact_mmd2(c, widen(data)), c.name);
  }
}

bool none_finite(const auto& v) {
  return std::none_of(v.begin(), v.end(), [](auto e) { return std::isfinite(e); });
}

// NaN with various payloads, and infinity.
void undefined_values() {
  std::vector<Term> kernels = families(9);
  for (Unit unit : {Unit::mean, Unit::median})
    for (Family family : {Family::gaussian, Family::laplacian, Family::energy})
      kernels.push_back(term(family, unit, 1));
  const auto permutation = Scheme::permutation;
  for (const Term& t : kernels)
    for (uint32_t bits : {0x7fc00000u, 0x7fc00001u, 0x7fc00181u, 0x7fffffffu, 0x7f800000u}) {
      const Case c = {name(t.family), 50, 40, {9}, {t}};
      Data<float> data = draw<float>(c);
      std::memcpy(&data.x[7], &bits, 4);
      const bool nan = bits != 0x7f800000u;
      const std::string what = std::string(nan ? "NaN, " : "inf, ") + c.name;
      const Mmd2<float> r = mmd2(c, data, 2);
      check(none_finite(r.value), what + ": value");
      // The slope of a linear kernel knows the other points alone, column by column.
      if (nan && t.family != Family::linear)
        check(none_finite(r.v_x) && none_finite(r.v_y), what + ": gradient");
      const std::vector<float> v(c.m, 1.0f);
      const Sums<float> sums = kernel_sum(c, data, v, 1, 1);
      check(!std::isfinite(sums.out[0]) || (!nan && sums.out[0] == 0), what + ": kernel sum");
      const Forms forms = sign_forms(c, data, permutation, 1, 20, 2);
      check(none_finite(forms.forms), what + ": forms");
    }
  // In v.
  const Case c = {"v", 20, 30, {4}, {term(Family::gaussian, 1)}};
  std::vector<double> v = normal<double>(2 * c.m, 4);
  v[1] = std::numeric_limits<double>::quiet_NaN();
  const Sums<double> sums = kernel_sum(c, draw<double>(c), v, 2, 1);
  bool apart = true;
  for (int64_t i = 0; i < c.n; ++i)
    apart &= std::isfinite(sums.out[2 * i]) && std::isnan(sums.out[2 * i + 1]);
  check(apart, "NaN stays in its column of v");
}

std::vector<float> scaled(const std::vector<float>& v, int e) {
  std::vector<float> s;
  for (float f : v) s.push_back(std::ldexp(f, e));
  return s;
}

}  // namespace

void formats_of_inputs() {
  half_precision();
  strides<float>();
  strides<double>();
}

void degenerate_inputs() {
  equal_points<float>();
  equal_points<double>();
  one_row<float>();
  one_row<double>();
  zeros<float>();
  zeros<double>();
  undefined_values();
}

// Pairs closer than the rounding of their inner product, for kernels with a kink at 0. (The
// gradient of a smooth kernel goes to 0 with the distance, below the rounding of the sums it is
// made from.)
void near_duplicates() {
  for (Family family : {Family::laplacian, Family::energy})
    for (float step : {1e-3f, 1e-5f, 1e-7f})
      for (bool factors : {false, true}) {
        Case c = {"near", 60, 60, {8}, {term(family, 1)}};
        if (factors) c.widths = {3, 5}, c.terms = product({c.terms, {term(Family::gaussian, 0.1)}});
        Data<float> data = draw<float>(c);
        data.y = data.x;
        for (int64_t i = 0; i < c.m; ++i) data.y[i * 8] = data.x[i * 8] + step;
        const Mmd2<float> r = mmd2(c, data, 2);
        const std::vector<double> exact = exact_mmd2(c, widen(data)).result.v_x;
        double worst = 0, largest = 0;
        for (size_t i = 0; i < exact.size(); ++i) {
          worst = std::max(worst, std::abs(double(r.v_x[i]) - exact[i]));
          largest = std::max(largest, std::abs(exact[i]));
        }
        check(worst < (step < 1e-4f ? 2e-4 : 2e-3) * largest,
              std::string("gradient of near duplicates, ") + name(family) + ", step " +
                  std::to_string(step) + (factors ? ", product: " : ": ") +
                  std::to_string(worst / largest));
      }
}

// Data in other units: what does not depend on units does not change a bit.
void scales_of_data() {
  const int64_t d = 20;
  struct Kernel {
    Term term;
    int power;  // of the units, of the value
  };
  const Kernel kernels[] = {{term(Family::gaussian, Unit::mean, 1), 0},
                            {term(Family::matern32, Unit::median, 1), 0},
                            {term(Family::energy, 1), 1},
                            {term(Family::linear, 1), 2},
                            {term(Family::polynomial, 1, 1, 1, 0), 2},
                            {term(Family::cosine, 1), 0}};
  for (const Kernel& kernel : kernels)
    for (int e : {-60, -30, 30, 60}) {
      // The square of an inner product's scale is to be a normal number with room to spare.
      if (kernel.power == 2 && std::abs(e) > 30) continue;
      const Case c = {name(kernel.term.family), 60, 50, {d}, {kernel.term}};
      const Data<float> data = draw<float>(c);
      const Data<float> other = {scaled(data.x, e), scaled(data.y, e), {}, {}};
      const Mmd2<float> one = mmd2(c, data, 1), r = mmd2(c, other, 1);
      const std::string what = c.name + " at scale 2^" + std::to_string(e);
      check(scaled(r.value, -kernel.power * e) == one.value, what + ": value");
      check(scaled(r.v_x, (1 - kernel.power) * e) == one.v_x, what + ": gradient");
    }
}

}  // namespace fastmmd::test
