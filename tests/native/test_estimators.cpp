// mmd2 with one factor: all families and estimators, and the same bits on any number of threads.
#include <array>

#include "core.h"

namespace fastmmd::test {
namespace {

// The oracle's slopes are those of its values.
void oracle_slopes() {
  for (const Term& t : families(4))
    for (double at : {0.03, 0.7, 5.0}) {
      const double step = 1e-5;
      const double difference = (phi(t, at + step) - phi(t, at - step)) / (2 * step);
      check(std::abs(slope(t, at) - difference) < 1e-7 * (1 + std::abs(difference)),
            std::string("slope of ") + name(t.family));
    }
}

template <class T>
void against_oracle(const Case& c) {
  const Data<T> data = draw<T>(c);
  const Exact<Mmd2<double>> exact = exact_mmd2(c, widen(data));
  const std::string name = c.name + type_name<T>();
  on_every_instruction_set([&] {
    compare(mmd2(c, data, 1), exact, name);
    compare(mmd2(c, data, 1, Want::points), exact, name + ", points alone");
    compare(mmd2(c, data, 1, Want::value), exact, name + ", value alone");
  });
}

void against_oracle_of_both(const Case& c) {
  against_oracle<float>(c);
  against_oracle<double>(c);
}

template <class T>
void same_bits(const Case& c) {
  const Data<T> data = draw<T>(c);
  on_every_instruction_set([&] {
    check(mmd2(c, data, 3) == mmd2(c, data, 1), c.name + type_name<T>() + ": same bits on threads");
  });
}

// One case of each estimator, or all that differ in anything else than the kernel.
std::vector<Case> estimators(const Case& like, bool all) {
  std::vector<Case> cases;
  const int64_t least = std::min(like.n, like.m);
  auto add = [&](Estimator estimator, int64_t size, bool weighted) {
    Case c = like;
    c.estimator = estimator;
    c.size = size;
    c.weighted = weighted;
    c.name += std::string(", ") + name(estimator) + " " + std::to_string(size) +
              (weighted ? " weighted" : "");
    cases.push_back(c);
  };
  for (bool weighted : {true, false}) {
    if (!all && !weighted) continue;
    add(Estimator::biased, 0, weighted);
    add(Estimator::unbiased, 0, weighted);
    add(Estimator::cross, 0, weighted);
  }
  add(Estimator::linear, 0, false);
  // Groups and bands within one block of rows and across some, that fit and that do not.
  for (int64_t size : {2, 7, 32, 45})
    if (size <= least && (all || size == 7)) add(Estimator::block, size, false);
  for (int64_t size : {1, 9, 40, 46})
    if (size < least && (all || size == 9)) add(Estimator::incomplete, size, false);
  if (all && least > 1) {
    add(Estimator::block, least, false);
    add(Estimator::incomplete, least - 1, false);
  }
  return cases;
}

Case shaped(int64_t n, int64_t m, int64_t d, const std::vector<Term>& terms,
            const std::string& kernel) {
  return {kernel + " " + std::to_string(n) + "x" + std::to_string(m) + "x" + std::to_string(d),
          n,
          m,
          {d},
          terms};
}

}  // namespace

void families_and_estimators() {
  oracle_slopes();

  // Scales that double, and one that does not: chains of Gaussians.
  const auto bank = [](double c) {
    return std::vector<Term>{
        term(Family::gaussian, Unit::mean, 4 * c), term(Family::gaussian, Unit::mean, c, 0.5),
        term(Family::gaussian, Unit::mean, 0.5 * c, 2), term(Family::gaussian, Unit::mean, 2 * c),
        term(Family::gaussian, Unit::mean, 0.3 * c)};
  };
  // The radial families, and those of inner products, of one kernel.
  const std::vector<Term> every = families(20);
  const std::vector<Term> radial(every.begin(), every.begin() + 7);
  const std::vector<Term> dot = {term(Family::polynomial, 0.04, 0.2, 2, 0.5),
                                 term(Family::linear, 0.1),
                                 term(Family::polynomial, 0.01, 1, 1, 0)};

  for (const Term& t : every)
    for (const Case& c : estimators(shaped(47, 52, 20, {t}, name(t.family)), false))
      against_oracle_of_both(c);
  for (const auto& [terms, kernel] : {std::pair{radial, "radial"}, {dot, "dot"}})
    for (const Case& c : estimators(shaped(70, 49, 20, terms, kernel), true))
      against_oracle_of_both(c);
  for (auto [n, m, d] : {std::array<int64_t, 3>{2, 2, 1}, {3, 2, 5}, {2, 65, 3}, {24, 20, 400}})
    for (const auto& [terms, kernel] : {std::pair{radial, "radial"}, {dot, "dot"}})
      for (const Case& c : estimators(shaped(n, m, d, terms, kernel), true))
        against_oracle_of_both(c);
  // More than one block of rows.
  for (const auto& [terms, kernel] : {std::pair{bank(1), "bank"}, {dot, "dot"}})
    for (Estimator estimator : {Estimator::biased, Estimator::unbiased}) {
      Case c = shaped(230, 130, 17, terms, kernel);
      c.estimator = estimator;
      against_oracle_of_both(c);
    }

  // Enough work that the core takes more than one thread.
  for (const Term& t : every) {
    Case c = shaped(230, 190, 24, {t}, name(t.family));
    c.estimator = Estimator::unbiased;
    c.weighted = true;
    same_bits<float>(c);
    same_bits<double>(c);
  }
  for (auto [estimator, size] : {std::pair<Estimator, int64_t>{Estimator::biased, 0},
                                 {Estimator::cross, 0},
                                 {Estimator::linear, 0},
                                 {Estimator::block, 7},
                                 {Estimator::block, 90},
                                 {Estimator::block, 300},
                                 {Estimator::incomplete, 3},
                                 {Estimator::incomplete, 100},
                                 {Estimator::incomplete, 600}})
    for (const auto& [terms, kernel] : {std::pair{bank(1), "bank"}, {dot, "dot"}}) {
      Case c = shaped(takes_weights(estimator) ? 240 : 900, takes_weights(estimator) ? 200 : 700,
                      24, terms, kernel);
      c.estimator = estimator;
      c.size = size;
      c.name += std::string(", ") + name(estimator) + " " + std::to_string(size);
      same_bits<float>(c);
    }
}

}  // namespace fastmmd::test
