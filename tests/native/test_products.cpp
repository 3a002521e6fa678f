// mmd2 with a product of factors, each on its own columns.
#include "core.h"

namespace fastmmd::test {

void products() {
  const Term gaussian = term(Family::gaussian, 0.06, 1.5);
  const Term laplacian = term(Family::laplacian, 0.1, 0.8);
  const Term matern = term(Family::matern52, Unit::median, 1.2, 0.5);
  const Term energy = term(Family::energy, 0.2, 0.3);
  const Term polynomial = term(Family::polynomial, 0.1, 0.7, 2, 1);
  const Term linear = term(Family::linear, 0.3, 0.6);
  const Term cosine = term(Family::cosine, 1.5, 0.9);
  const Term mean = term(Family::gaussian, Unit::mean, 2);

  struct Kernel {
    const char* name;
    std::vector<int64_t> widths;
    std::vector<std::vector<Term>> factors;
  };
  const Kernel kernels[] = {
      {"radial x linear", {9, 4}, {{gaussian}, {linear}}},
      {"radial x radial", {5, 20}, {{laplacian}, {mean}}},
      {"mixture x mixture", {17, 3}, {{gaussian, laplacian, mean, energy}, {matern, gaussian}}},
      {"polynomial x cosine", {6, 11}, {{polynomial, linear}, {cosine}}},
      {"linear x linear", {1, 2}, {{linear}, {linear}}},
      {"three factors", {8, 1, 30}, {{mean}, {cosine}, {laplacian, energy}}},
      {"eight factors",
       {2, 3, 4, 5, 6, 7, 8, 9},
       {{gaussian}, {gaussian}, {linear}, {laplacian}, {cosine}, {mean}, {polynomial}, {matern}}},
      {"wide", {300, 7}, {{mean}, {polynomial}}},
  };
  struct Estimate {
    Estimator estimator;
    int64_t size;
    bool weighted;
  };
  const Estimate estimates[] = {{Estimator::biased, 0, true},   {Estimator::biased, 0, false},
                                {Estimator::unbiased, 0, true}, {Estimator::unbiased, 0, false},
                                {Estimator::cross, 0, true},    {Estimator::linear, 0, false},
                                {Estimator::block, 6, false},   {Estimator::incomplete, 5, false}};

  auto against_oracle = [](const Case& c, auto zero) {
    using T = decltype(zero);
    const Data<T> data = draw<T>(c);
    const Exact<Mmd2<double>> exact = exact_mmd2(c, widen(data));
    const std::string name = c.name + type_name<T>();
    on_every_instruction_set([&] {
      compare(mmd2(c, data, 1), exact, name);
      compare(mmd2(c, data, 1, Want::points), exact, name + ", points alone");
      compare(mmd2(c, data, 1, Want::value), exact, name + ", value alone");
    });
  };
  for (const Kernel& kernel : kernels) {
    for (const Estimate& e : estimates) {
      const Case c = {
          std::string(kernel.name) + ", " + name(e.estimator) + (e.weighted ? " weighted" : ""),
          40,
          35,
          kernel.widths,
          product(kernel.factors),
          e.estimator,
          e.size,
          e.weighted};
      against_oracle(c, 0.0f);
      against_oracle(c, 0.0);
    }
    for (const Estimate& e : {estimates[0], estimates[7]}) {
      const int64_t n = e.size ? 800 : 210, m = e.size ? 700 : 250;
      const Case c = {kernel.name, n,      m,         kernel.widths, product(kernel.factors),
                      e.estimator, e.size, e.weighted};
      const Data<float> data = draw<float>(c);
      on_every_instruction_set([&] {
        check(mmd2(c, data, 4) == mmd2(c, data, 1),
              c.name + ", " + name(e.estimator) + ": same bits on more threads");
      });
    }
  }
}

}  // namespace fastmmd::test
