// Forms of sign vectors: which vectors are drawn, and what is made of them.
#include <algorithm>
#include <limits>
#include <map>

#include "core.h"

namespace fastmmd::test {
namespace {

// The vectors of a call, read off the diagonal forms of points with |z_i|^2 = 2^i, some at a time:
// the same seed gives the same vectors for every kernel. A polynomial kernel is not centred.
template <class T>
Vectors vectors_of(Scheme scheme, int64_t n, int64_t m, uint64_t seed, int64_t count,
                   int threads = 1) {
  constexpr int64_t at_once = sizeof(T) == 4 ? 12 : 32;
  const double minus = scheme == Scheme::permutation ? -1 / double(m) : -1 / double(n);
  Vectors vectors(count + 1, std::vector<double>(n + m, 0));
  for (int64_t first = 0; first < n + m; first += at_once) {
    const int64_t last = std::min(first + at_once, n + m);
    const Case c = {"vectors", n, m, {2}, {term(Family::polynomial, 1, 1, 1, 0)}};
    Data<T> data = {std::vector<T>(2 * n), std::vector<T>(2 * m), {}, {}};
    for (int64_t i = first; i < last; ++i) {
      T* z = i < n ? &data.x[2 * i] : &data.y[2 * (i - n)];
      const int64_t power = i - first;
      z[0] = T(std::ldexp(1.0, int(power / 2)));
      z[1] = power % 2 ? z[0] : 0;
    }
    const Forms forms = sign_forms(c, data, scheme, seed, count, threads);
    const double all = std::ldexp(1.0, int(last - first)) - 1;
    check(forms.totals[1] == all, "points of norms 2^i");
    for (int64_t b = 0; b <= count; ++b) {
      const double sum = (forms.diagonal[b] - minus * all) / (1 / double(n) - minus);
      const uint64_t chosen = uint64_t(std::llround(sum));
      if (std::abs(sum - std::round(sum)) > 1e-3) check(false, "a vector has other values");
      for (int64_t i = first; i < last; ++i)
        vectors[b][i] = chosen >> (i - first) & 1 ? 1 / double(n) : minus;
    }
  }
  return vectors;
}

// Pearson's statistic of equally likely outcomes.
double chi_square(const std::map<std::vector<double>, int64_t>& counts, double outcomes,
                  double draws) {
  const double expected = draws / outcomes;
  double sum = (outcomes - double(counts.size())) * expected;
  for (const auto& [outcome, count] : counts)
    sum += (double(count) - expected) * (double(count) - expected) / expected;
  return sum;
}

double uniformity(Scheme scheme, int64_t n, int64_t m, double outcomes) {
  const int64_t draws = 20000;
  std::map<std::vector<double>, int64_t> counts;
  const Vectors vectors = vectors_of<double>(scheme, n, m, 7, draws);
  for (int64_t b = 1; b <= draws; ++b) ++counts[vectors[b]];
  return chi_square(counts, outcomes, double(draws));
}

void right_vectors(Scheme scheme, int64_t n, int64_t m) {
  const std::string name = (scheme == Scheme::permutation ? "permutations of " : "signs of ") +
                           std::to_string(n) + " and " + std::to_string(m);
  const int64_t count = 150;
  const Vectors vectors = vectors_of<double>(scheme, n, m, 11, count);
  const double plus = 1 / double(n);
  bool as_given = true, sizes = true, opposite = true, different = false;
  for (int64_t i = 0; i < n + m; ++i) as_given &= (vectors[0][i] == plus) == (i < n);
  for (const std::vector<double>& v : vectors) {
    sizes &= std::count(v.begin(), v.end(), plus) == n;
    for (int64_t i = 0; scheme == Scheme::wild_bootstrap && i < n; ++i)
      opposite &= v[i] == -v[n + i];
    different |= v != vectors[0];
  }
  check(as_given, name + ": the first are the labels as given");
  check(sizes, name + ": group sizes");
  check(opposite, name + ": a point and its partner have opposite signs");
  check(different || n + m < 8, name + ": random");
  check(vectors_of<double>(scheme, n, m, 11, count, 4) == vectors, name + ": any threads");
  check(vectors_of<float>(scheme, n, m, 11, count) == vectors, name + ": any type");
  if (n + m >= 8)
    check(vectors_of<double>(scheme, n, m, 12, count) != vectors, name + ": another seed");
}

// Of each position, and of each neighbouring two: no more than five standard deviations off.
void balance(Scheme scheme, int64_t n, int64_t m) {
  const int64_t draws = 2000, rows = scheme == Scheme::permutation ? n + m : n;
  const Vectors vectors = vectors_of<double>(scheme, n, m, 3, draws);
  const double p = double(n) / double(n + m);
  const double pair = scheme == Scheme::permutation ? p * double(n - 1) / double(n + m - 1) : 0.25;
  bool even = true;
  auto near = [&](double count, double chance) {
    return std::abs(count - chance * draws) < 5 * std::sqrt(draws * chance * (1 - chance));
  };
  for (int64_t i = 0; i < rows; ++i) {
    double single = 0, both = 0;
    for (int64_t b = 1; b <= draws; ++b) {
      single += vectors[b][i] > 0;
      both += vectors[b][i] > 0 && vectors[b][(i + 1) % rows] > 0;
    }
    even &= near(single, scheme == Scheme::permutation ? p : 0.5) && near(both, pair);
  }
  check(even, "every point is as often in either group");
}

template <class T>
void against_oracle(const Case& c, Scheme scheme, int64_t count) {
  const uint64_t seed = 0x123456789abcdef0;
  const Data<T> data = draw<T>(c);
  const Forms got = sign_forms(c, data, scheme, seed, count, 1);
  // A lone linear kernel is that of the centred points.
  Data<double> given = widen(data);
  const bool centred = c.widths.size() == 1 && c.terms[0].family == Family::linear;
  for (int64_t k = 0; centred && k < c.d(); ++k) {
    double mean = 0;
    for (auto* rows : {&given.x, &given.y})
      for (size_t i = k; i < rows->size(); i += c.d()) mean += (*rows)[i] / double(c.n + c.m);
    for (auto* rows : {&given.x, &given.y})
      for (size_t i = k; i < rows->size(); i += c.d()) (*rows)[i] -= mean;
  }
  const Exact<Forms> exact =
      exact_forms(c, given, vectors_of<double>(scheme, c.n, c.m, seed, count));
  const double eps = std::numeric_limits<T>::epsilon();
  const std::string name = c.name + (scheme == Scheme::permutation ? ", permutations" : ", signs") +
                           ", " + std::to_string(count) + type_name<T>();
  auto one = [&](std::vector<double> Forms::* part, const char* what) {
    const double e = error(got.*part, exact.result.*part, exact.magnitude.*part, eps);
    check(e < loose, name + ": " + what + " is off by " + std::to_string(e) + " eps");
  };
  one(&Forms::forms, "forms");
  one(&Forms::linear, "linear");
  one(&Forms::diagonal, "diagonal");
  one(&Forms::totals, "totals");
  one(&Forms::scales, "scales");
  check(sign_forms(c, data, scheme, seed, count, 4) == got, name + ": same bits on more threads");
}

template <class T>
void of_kernels() {
  const auto permutation = Scheme::permutation, wild = Scheme::wild_bootstrap;
  for (const Term& t : families(12)) {
    against_oracle<T>({name(t.family), 33, 41, {12}, {t}}, permutation, 40);
    against_oracle<T>({name(t.family), 35, 35, {12}, {t}}, wild, 40);
  }
  const std::vector<Term> mixture = {term(Family::gaussian, Unit::median, 1),
                                     term(Family::laplacian, Unit::mean, 2, 0.5),
                                     term(Family::energy, 0.1)};
  // Panels of every width, in part and full.
  for (int64_t count : {0, 1, 15, 16, 31, 32, 47, 48, 99, 150})
    against_oracle<T>({"mixture", 40, 29, {7}, mixture}, permutation, count);
  for (auto [n, m] : {std::pair<int64_t, int64_t>{1, 1}, {1, 40}, {40, 1}, {260, 170}})
    against_oracle<T>({std::to_string(n) + "x" + std::to_string(m), n, m, {20}, mixture},
                      permutation, 60);
  against_oracle<T>({"200x200", 200, 200, {20}, mixture}, wild, 60);
  against_oracle<T>({"1x1", 1, 1, {3}, mixture}, wild, 5);
  const std::vector<Term> polynomial = {term(Family::polynomial, 0.1, 0.7, 3, 1)};
  const auto three = product({mixture, polynomial, {term(Family::cosine, 1)}});
  const auto linear = product({mixture, {term(Family::linear, 1)}});
  against_oracle<T>({"radial x linear", 50, 40, {9, 3}, linear}, permutation, 70);
  against_oracle<T>({"three factors", 45, 45, {4, 8, 5}, three}, wild, 70);
}

}  // namespace

void sign_vectors() {
  for (auto [n, m] :
       {std::pair<int64_t, int64_t>{1, 1}, {1, 9}, {9, 1}, {20, 20}, {70, 45}, {45, 140}})
    right_vectors(Scheme::permutation, n, m);
  for (int64_t n : {1, 9, 64, 131}) right_vectors(Scheme::wild_bootstrap, n, n);
}

void distribution_of_sign_vectors() {
  // Upper 0.1 % of chi-square with 9 and with 7 degrees of freedom; the seed is fixed.
  for (auto [n, m] : {std::pair<int64_t, int64_t>{2, 3}, {3, 2}})
    check(uniformity(Scheme::permutation, n, m, 10) < 27.88, "permutations are uniform");
  check(uniformity(Scheme::wild_bootstrap, 3, 3, 8) < 24.32, "signs are uniform");
  balance(Scheme::permutation, 40, 25);
  balance(Scheme::wild_bootstrap, 100, 100);
}

void forms_of_sign_vectors() {
  of_kernels<float>();
  of_kernels<double>();
}

}  // namespace fastmmd::test
