// The definitions, pair by pair.
#include <algorithm>

#include "core.h"

namespace fastmmd::test {

double phi(const Term& term, double t) {
  const double q3 = std::sqrt(3 * t), q5 = std::sqrt(5 * t);
  switch (term.family) {
    case Family::gaussian: return std::exp(-t);
    case Family::laplacian: return std::exp(-std::sqrt(t));
    case Family::energy: return -std::sqrt(t);
    case Family::inverse_multiquadric: return 1 / std::sqrt(1 + t);
    case Family::rational_quadratic: return std::pow(1 + t / term.p, -term.p);
    case Family::matern32: return (1 + q3) * std::exp(-q3);
    case Family::matern52: return (1 + q5 + q5 * q5 / 3) * std::exp(-q5);
    case Family::polynomial: return std::pow(t + term.q, term.p);
    default: return t;
  }
}

// phi', which is taken as 0 where it is infinite.
double slope(const Term& term, double t) {
  switch (term.family) {
    case Family::gaussian: return -std::exp(-t);
    case Family::laplacian: return t == 0 ? 0 : -std::exp(-std::sqrt(t)) / (2 * std::sqrt(t));
    case Family::energy: return t == 0 ? 0 : -1 / (2 * std::sqrt(t));
    case Family::inverse_multiquadric: return -0.5 * std::pow(1 + t, -1.5);
    case Family::rational_quadratic: return -std::pow(1 + t / term.p, -term.p - 1);
    case Family::matern32: return -1.5 * std::exp(-std::sqrt(3 * t));
    case Family::matern52: return -5.0 / 6 * (1 + std::sqrt(5 * t)) * std::exp(-std::sqrt(5 * t));
    case Family::polynomial: return term.p * std::pow(t + term.q, term.p - 1);
    default: return 1;
  }
}

namespace {

// The pooled points and the kernel of one pair of samples.
class Pooled {
 public:
  Pooled(const Case& c, const Data<double>& data)
      : case_(c), data_(data), rows(c.n + c.m), d(c.d()) {
    for (const Term& t : c.terms) {
      units.push_back(unit(t));
      scales.push_back(units.back() == 0 ? 0 : t.scale / units.back());
    }
    phi.resize(c.terms.size());
    slope.resize(c.terms.size());
    u.resize(c.widths.size());
    values.resize(c.widths.size());
    slopes.resize(c.widths.size());
  }

  int domain(int64_t i) const { return i >= case_.n; }
  int64_t position(int64_t i) const { return i < case_.n ? i : i - case_.n; }
  const double* row(int64_t i) const {
    return domain(i) ? &data_.y[(i - case_.n) * d] : &data_.x[i * d];
  }

  // The kernel of rows i and j, and all that it is made of.
  double kernel(int64_t i, int64_t j) {
    int64_t column = 0;
    for (size_t l = 0; l < case_.widths.size(); ++l) {
      u[l] = statistic(i, j, column, int(l));
      values[l] = slopes[l] = 0;
      column += case_.widths[l];
    }
    for (size_t t = 0; t < case_.terms.size(); ++t) {
      const Term& term = case_.terms[t];
      const int l = term.factor;
      phi[t] = test::phi(term, scales[t] * u[l]);
      slope[t] = test::slope(term, scales[t] * u[l]);
      values[l] += term.coefficient * phi[t];
      slopes[l] += term.coefficient * scales[t] * slope[t];
    }
    double k = 1;
    for (double value : values) k *= value;
    return k;
  }

  double others(size_t l) const {
    double k = 1;
    for (size_t o = 0; o < values.size(); ++o) k *= o == l ? 1 : values[o];
    return k;
  }

  // The slope of the statistic of factor l in column k (of all) of row i, and its parts' size.
  double derivative(int64_t i, int64_t j, size_t l, int64_t first, int64_t k, double& size) const {
    const double a = row(i)[k], b = row(j)[k];
    switch (of_factor(int(l))) {
      case Geometry::radial: size = std::abs(a) + std::abs(b); return 2 * (a - b);
      case Geometry::dot: size = std::abs(b); return b;
      case Geometry::cosine: break;
    }
    const double p = inner(i, i, first, int(l)), q = inner(j, j, first, int(l));
    size = p == 0 ? 0 : 1 / std::sqrt(p);
    return p == 0 || q == 0 ? 0 : b / std::sqrt(p * q) - u[l] * a / p;
  }

  Geometry of_factor(int l) const {
    for (const Term& t : case_.terms)
      if (t.factor == l) return geometry(t.family);
    return Geometry::radial;
  }

 private:
  const Case& case_;
  const Data<double>& data_;

 public:
  const int64_t rows, d;
  std::vector<double> units, scales;      // of terms
  std::vector<double> phi, slope;         // of terms, of the last pair
  std::vector<double> u, values, slopes;  // of factors, of the last pair

 private:
  double inner(int64_t i, int64_t j, int64_t first, int l) const {
    double sum = 0;
    for (int64_t k = first; k < first + case_.widths[l]; ++k) sum += row(i)[k] * row(j)[k];
    return sum;
  }

  double distance(int64_t i, int64_t j, int64_t first, int l) const {
    double sum = 0;
    for (int64_t k = first; k < first + case_.widths[l]; ++k) {
      const double step = row(i)[k] - row(j)[k];
      sum += step * step;
    }
    return sum;
  }

  double statistic(int64_t i, int64_t j, int64_t first, int l) const {
    if (of_factor(l) == Geometry::radial) return distance(i, j, first, l);
    const double product = inner(i, j, first, l);
    if (of_factor(l) == Geometry::dot) return product;
    const double norms = inner(i, i, first, l) * inner(j, j, first, l);
    return norms == 0 ? 0 : product / std::sqrt(norms);
  }

  double unit(const Term& t) const {
    if (t.unit == Unit::fixed) return 1;
    if (t.unit == Unit::width) return double(case_.widths[t.factor]);
    int64_t first = 0;
    for (int l = 0; l < t.factor; ++l) first += case_.widths[l];
    std::vector<double> all;
    const bool x_alone = t.unit == Unit::x_median;
    const int64_t last = x_alone ? case_.n : rows;
    double sum = 0;
    for (int64_t i = 0; i < last; ++i)
      for (int64_t j = x_alone ? 0 : i + 1; j < last; ++j) {
        all.push_back(distance(i, j, first, t.factor));
        sum += all.back();
      }
    if (t.unit == Unit::mean) return sum / double(all.size());
    std::sort(all.begin(), all.end());
    return all[(all.size() - 1) / 2];
  }
};

// What a_i a_j k_ij is multiplied by in the estimate; `squares`: sum a_i^2 of each domain.
double coefficient(const Case& c, const Pooled& z, int64_t i, int64_t j, const double* squares) {
  const bool within = z.domain(i) == z.domain(j);
  const int64_t p = z.position(i), q = z.position(j), least = std::min(c.n, c.m);
  const double size = double(c.size);
  switch (c.estimator) {
    case Estimator::biased: return within ? 1 : -1;
    case Estimator::unbiased: return i == j ? 0 : within ? 1 / (1 - squares[z.domain(i)]) : -1;
    case Estimator::linear: {
      const int64_t groups = least / 2;
      if (p == q || p / 2 != q / 2 || p / 2 >= groups) return 0;
      return (within ? 1 : -1) / (2 * double(groups));
    }
    case Estimator::block: {
      const int64_t groups = least / c.size;
      if (i == j || p / c.size != q / c.size || p / c.size >= groups) return 0;
      return within ? 1 / (double(groups) * size * (size - 1))
                    : -1 / (double(groups) * size * size);
    }
    case Estimator::incomplete: {
      double pairs = 0;
      for (int64_t r = 1; r <= c.size; ++r) pairs += double(least - r);
      if (p == q || std::abs(p - q) > c.size || std::max(p, q) >= least) return 0;
      return (within ? 1 : -1) / (2 * pairs);
    }
    case Estimator::cross: return within ? 0 : 0.5;
    case Estimator::resolve: break;
  }
  return 0;
}

// Both sums at once: of the numbers and of their magnitudes.
struct Both {
  double &sum, &magnitude;
  void operator+=(double v) const { add(v, std::abs(v)); }
  void add(double v, double size) const {
    sum += v;
    magnitude += size;
  }
};

Exact<Mmd2<double>> exact_element(const Case& c, const Data<double>& data) {
  Pooled z(c, data);
  Exact<Mmd2<double>> e;
  e.result.scales = e.magnitude.scales = z.scales;
  if (c.estimator == Estimator::resolve) return e;

  std::vector<double> a(z.rows);
  double sum[2] = {}, squares[2] = {};
  for (int64_t i = 0; i < z.rows; ++i) {
    const std::vector<double>& weights = z.domain(i) ? data.y_weights : data.x_weights;
    const bool has = c.weighted && takes_weights(c.estimator);
    a[i] = has ? weights[z.position(i)] : 1;
    sum[z.domain(i)] += a[i];
  }
  for (int64_t i = 0; i < z.rows; ++i) {
    if (takes_weights(c.estimator)) a[i] /= sum[z.domain(i)];
    squares[z.domain(i)] += a[i] * a[i];
  }

  for (Mmd2<double>* r : {&e.result, &e.magnitude}) {
    r->value.resize(1);
    r->v_x.resize(c.n * z.d);
    r->v_y.resize(c.m * z.d);
    r->v_scales.resize(c.terms.size());
    r->v_coefficients.resize(c.terms.size());
  }
  std::vector<double> h(z.rows), h_magnitude(z.rows);
  double within[2] = {}, within_magnitude[2] = {};
  for (int64_t i = 0; i < z.rows; ++i)
    for (int64_t j = 0; j < z.rows; ++j) {
      const double C = coefficient(c, z, i, j, squares);
      if (C == 0) continue;
      const double k = z.kernel(i, j), w = C * a[i] * a[j];
      Both{e.result.value[0], e.magnitude.value[0]} += w * k;
      Both{h[i], h_magnitude[i]} += 2 * C * a[j] * k;
      if (z.domain(i) == z.domain(j))
        Both{within[z.domain(i)], within_magnitude[z.domain(i)]} += w * k;
      for (size_t t = 0; t < c.terms.size(); ++t) {
        const size_t l = size_t(c.terms[t].factor);
        const double others = w * z.others(l);
        Both{e.result.v_coefficients[t], e.magnitude.v_coefficients[t]} += others * z.phi[t];
        if (z.units[t] != 0)
          Both{e.result.v_scales[t], e.magnitude.v_scales[t]} +=
              others * c.terms[t].coefficient * z.u[l] * z.slope[t] / z.units[t];
      }
      const bool y = z.domain(i);
      const int64_t at = z.position(i) * z.d;
      int64_t first = 0;
      for (size_t l = 0; l < c.widths.size(); ++l) {
        const double g = 2 * w * z.others(l) * z.slopes[l];
        for (int64_t k = first; k < first + c.widths[l]; ++k) {
          double size;
          const double v = z.derivative(i, j, l, first, k, size);
          Both{(y ? e.result.v_y : e.result.v_x)[at + k],
               (y ? e.magnitude.v_y : e.magnitude.v_x)[at + k]}
              .add(g * v, std::abs(g) * size);
        }
        first += c.widths[l];
      }
    }
  if (!takes_weights(c.estimator)) return e;

  double mean[2] = {}, mean_magnitude[2] = {};
  for (int64_t i = 0; i < z.rows; ++i) {
    const int own = z.domain(i);
    if (c.estimator == Estimator::unbiased) {
      h[i] += 2 * a[i] * within[own] / (1 - squares[own]);
      h_magnitude[i] += 2 * a[i] * within_magnitude[own] / (1 - squares[own]);
    }
    mean[own] += a[i] * h[i];
    mean_magnitude[own] += a[i] * h_magnitude[i];
  }
  for (int64_t i = 0; i < z.rows; ++i) {
    const int own = z.domain(i);
    (own ? e.result.v_y_weights : e.result.v_x_weights).push_back((h[i] - mean[own]) / sum[own]);
    (own ? e.magnitude.v_y_weights : e.magnitude.v_x_weights)
        .push_back((h_magnitude[i] + mean_magnitude[own]) / sum[own]);
  }
  return e;
}

void append(Mmd2<double>& to, const Mmd2<double>& from) {
  using R = Mmd2<double>;
  for (auto part : {&R::value, &R::v_x, &R::v_y, &R::v_x_weights, &R::v_y_weights, &R::v_scales,
                    &R::v_coefficients, &R::scales})
    (to.*part).insert((to.*part).end(), (from.*part).begin(), (from.*part).end());
}

}  // namespace

Exact<Mmd2<double>> exact_mmd2(const Case& c, const Data<double>& data) {
  Exact<Mmd2<double>> all;
  for (int64_t b = 0; b < c.batch; ++b) {
    const Exact<Mmd2<double>> one = exact_element(element(c), element(c, data, b));
    append(all.result, one.result);
    append(all.magnitude, one.magnitude);
  }
  return all;
}

Exact<Sums<double>> exact_kernel_sum(const Case& c, const Data<double>& data,
                                     const std::vector<double>& v, int64_t columns) {
  Pooled z(c, data);
  const std::vector<double> zeros(c.n * columns);
  Exact<Sums<double>> e = {{zeros, z.scales}, {zeros, z.scales}};
  for (int64_t i = 0; i < c.n; ++i)
    for (int64_t j = 0; j < c.m; ++j) {
      const double k = z.kernel(i, c.n + j);
      for (int64_t p = 0; p < columns; ++p)
        Both{e.result.out[i * columns + p], e.magnitude.out[i * columns + p]} +=
            k * v[j * columns + p];
    }
  return e;
}

Exact<Forms> exact_forms(const Case& c, const Data<double>& data, const Vectors& vectors) {
  Pooled z(c, data);
  std::vector<double> K(z.rows * z.rows), r(z.rows), r_magnitude(z.rows), kappa(z.rows);
  const std::vector<double> zeros(vectors.size()), two(2);
  Exact<Forms> e = {{zeros, zeros, zeros, two, z.scales}, {zeros, zeros, zeros, two, z.scales}};
  for (int64_t i = 0; i < z.rows; ++i) {
    for (int64_t j = 0; j < z.rows; ++j) {
      const double k = z.kernel(i, j);
      if (i == j) kappa[i] = k;
      else Both{r[i], r_magnitude[i]} += K[i * z.rows + j] = k;
    }
    Both{e.result.totals[0], e.magnitude.totals[0]}.add(r[i], r_magnitude[i]);
    Both{e.result.totals[1], e.magnitude.totals[1]} += kappa[i];
  }
  for (size_t b = 0; b < vectors.size(); ++b) {
    const std::vector<double>& v = vectors[b];
    for (int64_t i = 0; i < z.rows; ++i) {
      for (int64_t j = 0; j < z.rows; ++j)
        Both{e.result.forms[b], e.magnitude.forms[b]} += v[i] * K[i * z.rows + j] * v[j];
      Both{e.result.linear[b], e.magnitude.linear[b]}.add(v[i] * r[i],
                                                          std::abs(v[i]) * r_magnitude[i]);
      Both{e.result.diagonal[b], e.magnitude.diagonal[b]} += v[i] * kappa[i];
    }
  }
  return e;
}

}  // namespace fastmmd::test
