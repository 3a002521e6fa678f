// K(x, y) v.
#include <limits>

#include "core.h"

namespace fastmmd::test {
namespace {

template <class T>
void against_oracle(const Case& c, int64_t columns) {
  const Data<T> data = draw<T>(c);
  const std::vector<T> v = normal<T>(c.m * columns, 9);
  const Exact<Sums<double>> exact = exact_kernel_sum(c, widen(data), widen(v), columns);
  const Sums<T> got = kernel_sum(c, data, v, columns, 1);
  const double eps = std::numeric_limits<T>::epsilon();
  const std::string name = c.name + ", " + std::to_string(columns) + " columns" + type_name<T>();
  check(error(got.out, exact.result.out, exact.magnitude.out, eps) < loose, name + ": sums");
  check(error(got.scales, exact.result.scales, exact.magnitude.scales, eps) < loose,
        name + ": scales");
  check(kernel_sum(c, data, v, columns, 4) == got, name + ": same bits on more threads");
}

}  // namespace

void kernel_sums() {
  for (const Term& t : families(20)) {
    const Case c = {name(t.family), 45, 61, {20}, {t}};
    against_oracle<float>(c, 3);
    against_oracle<double>(c, 3);
  }
  const std::vector<Term> mixture = {term(Family::gaussian, Unit::median, 1),
                                     term(Family::laplacian, Unit::mean, 2, 0.5),
                                     term(Family::energy, Unit::x_median, 0.1)};
  // Panels of v of every width, one point of either sample, many blocks of either.
  for (int64_t columns : {1, 7, 16, 24, 33, 48, 50, 100}) {
    const Case c = {"mixture", 38, 41, {9}, mixture};
    against_oracle<float>(c, columns);
    against_oracle<double>(c, columns);
  }
  for (auto [n, m] :
       {std::pair<int64_t, int64_t>{1, 1}, {1, 300}, {300, 1}, {400, 90}, {90, 400}}) {
    const Case c = {std::to_string(n) + "x" + std::to_string(m), n, m, {25}, mixture};
    against_oracle<float>(c, 5);
    against_oracle<double>(c, 2);
  }
  const std::vector<Term> dot = {term(Family::polynomial, 0.1, 0.7, 3, 1),
                                 term(Family::linear, 0.2)};
  const Case products[] = {
      {"radial x linear", 50, 40, {9, 3}, product({mixture, {term(Family::linear, 1)}})},
      {"dot x cosine", 50, 40, {5, 8}, product({dot, {term(Family::cosine, 1)}})},
      {"three factors", 140, 150, {5, 8, 2}, product({mixture, dot, {term(Family::energy, 0.3)}})}};
  for (const Case& c : products) {
    against_oracle<float>(c, 4);
    against_oracle<double>(c, 4);
  }
}

}  // namespace fastmmd::test
