// Data, calls and comparisons.
#include "core.h"

#include <algorithm>
#include <limits>
#include <random>

namespace fastmmd::test {

int64_t Case::d() const {
  int64_t d = 0;
  for (int64_t width : widths) d += width;
  return d;
}

template <class T>
std::vector<T> normal(int64_t count, unsigned seed, double mean) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> draw(float(mean), 1);
  std::vector<T> values(count);
  for (T& v : values) v = T(draw(generator));
  return values;
}

template <class T>
Data<T> draw(const Case& c, unsigned seed) {
  Data<T> data = {normal<T>(c.batch * c.n * c.d(), 2 * seed),
                  normal<T>(c.batch * c.m * c.d(), 2 * seed + 1, 0.5),
                  {},
                  {}};
  if (!c.weighted) return data;
  for (int64_t i = 0; i < c.batch * c.n; ++i)  // zeros among them
    data.x_weights.push_back(double(i % 5) + (c.n < 5));
  for (int64_t i = 0; i < c.batch * c.m; ++i) data.y_weights.push_back(double(1 + i % 3));
  return data;
}

template <class T>
Data<T> element(const Case& c, const Data<T>& data, int64_t b) {
  auto part = [b](const auto& v, int64_t size) {
    return v.empty() ? v
                     : std::decay_t<decltype(v)>(v.begin() + b * size, v.begin() + (b + 1) * size);
  };
  return {part(data.x, c.n * c.d()), part(data.y, c.m * c.d()), part(data.x_weights, c.n),
          part(data.y_weights, c.m)};
}

Case element(Case c) {
  c.batch = 1;
  return c;
}

Term term(Family family, double scale, double coefficient, double p, double q) {
  return {family, Unit::fixed, 0, scale, coefficient, p, q};
}

Term term(Family family, Unit unit, double scale, double coefficient) {
  return {family, unit, 0, scale, coefficient, 0, 0};
}

std::vector<Term> product(const std::vector<std::vector<Term>>& factors) {
  std::vector<Term> terms;
  for (size_t l = 0; l < factors.size(); ++l)
    for (Term t : factors[l]) {
      t.factor = int(l);
      terms.push_back(t);
    }
  return terms;
}

std::vector<Term> families(int64_t d) {
  const double c = 1 / double(d);
  return {term(Family::gaussian, 0.5 * c, 1.5),
          term(Family::laplacian, c, 0.8),
          term(Family::energy, c, 0.3),
          term(Family::inverse_multiquadric, c, 1.2),
          term(Family::rational_quadratic, c, 0.7, 1.5),
          term(Family::matern32, c, 1.1),
          term(Family::matern52, 2 * c, 0.9),
          term(Family::polynomial, c, 0.4, 3, 1),
          term(Family::linear, 2 * c, 0.6),
          term(Family::cosine, 1.5, 0.5)};
}

const char* name(Family family) {
  const char* const names[] = {"gaussian",
                               "laplacian",
                               "energy",
                               "inverse multiquadric",
                               "rational quadratic",
                               "matern 3/2",
                               "matern 5/2",
                               "polynomial",
                               "linear",
                               "cosine"};
  return names[int(family)];
}

const char* name(Estimator estimator) {
  const char* const names[] = {"biased",     "unbiased", "linear", "block",
                               "incomplete", "cross",    "resolve"};
  return names[int(estimator)];
}

bool takes_weights(Estimator e) {
  return e == Estimator::biased || e == Estimator::unbiased || e == Estimator::cross;
}

// ---- calls ----

template <class T>
Problem problem(const Case& c, const Data<T>& data, int threads, double* scales) {
  const int64_t d = c.d();
  return {sizeof(T) == 4 ? Dtype::float32 : Dtype::float64,
          {data.x.data(), c.n, c.n * d, d, 1, c.weighted ? data.x_weights.data() : nullptr},
          {data.y.data(), c.m, c.m * d, d, 1, c.weighted ? data.y_weights.data() : nullptr},
          c.widths.data(),
          int(c.widths.size()),
          c.terms.data(),
          int(c.terms.size()),
          scales,
          nullptr,
          threads,
          nullptr,
          nullptr};
}

template <class T>
Mmd2<T> mmd2(const Case& c, Mmd2Args args, Want want) {
  Mmd2<T> r;
  const double undefined = std::numeric_limits<double>::quiet_NaN();
  const int64_t terms = int64_t(c.terms.size());
  Mmd2Out out = {};
  auto give = [&](auto& v, int64_t count) {
    v.assign(c.batch * count, undefined);
    return v.data();
  };
  args.scales = give(r.scales, terms);
  if (c.estimator != Estimator::resolve) {
    out.value = give(r.value, 1);
    if (want != Want::value) {
      out.v_x = give(r.v_x, c.n * c.d());
      out.v_y = give(r.v_y, c.m * c.d());
    }
    if (want == Want::all) {
      out.v_scales = give(r.v_scales, terms);
      out.v_coefficients = give(r.v_coefficients, terms);
    }
    if (want == Want::all && takes_weights(c.estimator)) {
      out.v_x_weights = give(r.v_x_weights, c.n);
      out.v_y_weights = give(r.v_y_weights, c.m);
    }
  }
  args.workspace = nullptr;
  Workspace workspace(cpu::workspace(args, out));
  args.workspace = workspace.data();
  cpu::mmd2(args, out);
  return r;
}

template <class T>
Mmd2<T> mmd2(const Case& c, const Data<T>& data, int threads, Want want) {
  return mmd2<T>(c, {problem(c, data, threads, nullptr), c.batch, c.estimator, c.size}, want);
}

template <class T>
Sums<T> kernel_sum(const Case& c, const Data<T>& data, const std::vector<T>& v, int64_t columns,
                   int threads) {
  const T undefined = std::numeric_limits<T>::quiet_NaN();
  Sums<T> r = {std::vector<T>(c.n * columns, undefined), std::vector<double>(c.terms.size())};
  KernelSumArgs args = {problem(c, data, threads, r.scales.data()), v.data(), columns,
                        r.out.data()};
  Workspace workspace(cpu::workspace(args));
  args.workspace = workspace.data();
  cpu::kernel_sum(args);
  return r;
}

template <class T>
Forms sign_forms(const Case& c, const Data<T>& data, Scheme scheme, uint64_t seed, int64_t count,
                 int threads) {
  const std::vector<double> undefined(count + 1, std::numeric_limits<double>::quiet_NaN());
  Forms r = {undefined, undefined, undefined, std::vector<double>(2),
             std::vector<double>(c.terms.size())};
  SignFormsArgs args = {problem(c, data, threads, r.scales.data()),
                        scheme,
                        seed,
                        count,
                        r.forms.data(),
                        r.linear.data(),
                        r.diagonal.data(),
                        r.totals.data()};
  Workspace workspace(cpu::workspace(args));
  args.workspace = workspace.data();
  cpu::sign_forms(args);
  return r;
}

// ---- comparisons ----

template <class T>
double error(const std::vector<T>& got, const std::vector<double>& expected,
             const std::vector<double>& magnitude, double eps) {
  if (got.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double worst = 0, scale = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = std::abs(double(got[i]) - expected[i]);
    worst = difference > worst || std::isnan(difference) ? difference : worst;
    scale = std::max(scale, magnitude[i]);
  }
  return worst == 0 ? 0 : worst / (eps * scale);
}

template <class T>
void compare(const Mmd2<T>& got, const Exact<Mmd2<double>>& expected, const std::string& name) {
  auto one = [&](const auto& of, const auto& part, double eps, const char* what) {
    if (of.empty()) return;
    const double e = error(of, expected.result.*part, expected.magnitude.*part, eps);
    check(e < loose, name + ": " + what + " is off by " + std::to_string(e) + " eps");
  };
  const double eps = std::numeric_limits<T>::epsilon();
  using R = Mmd2<double>;
  one(got.value, &R::value, eps, "value");
  one(got.v_x, &R::v_x, eps, "v_x");
  one(got.v_y, &R::v_y, eps, "v_y");
  one(got.v_x_weights, &R::v_x_weights, eps, "v_x_weights");
  one(got.v_y_weights, &R::v_y_weights, eps, "v_y_weights");
  one(got.v_scales, &R::v_scales, eps, "v_scales");
  one(got.v_coefficients, &R::v_coefficients, eps, "v_coefficients");
  one(got.scales, &R::scales, eps, "scales");
}

#define FASTMMD_INSTANTIATE(T)                                                                \
  template std::vector<T> normal<T>(int64_t, unsigned, double);                               \
  template Data<T> draw<T>(const Case&, unsigned);                                            \
  template Data<T> element<T>(const Case&, const Data<T>&, int64_t);                          \
  template Problem problem<T>(const Case&, const Data<T>&, int, double*);                     \
  template Mmd2<T> mmd2<T>(const Case&, const Data<T>&, int, Want);                           \
  template Mmd2<T> mmd2<T>(const Case&, Mmd2Args, Want);                                      \
  template Sums<T> kernel_sum<T>(const Case&, const Data<T>&, const std::vector<T>&, int64_t, \
                                 int);                                                        \
  template Forms sign_forms<T>(const Case&, const Data<T>&, Scheme, uint64_t, int64_t, int);  \
  template double error<T>(const std::vector<T>&, const std::vector<double>&,                 \
                           const std::vector<double>&, double);                               \
  template void compare<T>(const Mmd2<T>&, const Exact<Mmd2<double>>&, const std::string&);
FASTMMD_INSTANTIATE(float)
FASTMMD_INSTANTIATE(double)
#undef FASTMMD_INSTANTIATE

}  // namespace fastmmd::test
