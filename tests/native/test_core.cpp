// The native core by itself, against plain loops in double precision: what the sanitizers run.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "mmd.h"

using namespace fastmmd;

namespace {

int passed = 0, failed = 0;

void check(bool ok, const std::string& what) {
  ok ? ++passed : ++failed;
  if (!ok) std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

std::vector<float> normal(int64_t count, unsigned seed, float mean = 0) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> draw(mean, 1);
  std::vector<float> values(count);
  for (float& v : values) v = draw(generator);
  return values;
}

struct Case {
  int64_t n, m, d;
  std::vector<Term> terms;
  bool unbiased, weighted, all_gradients;
  std::string name;
};

template <class T>
struct Result {
  T value;
  std::vector<T> v_x, v_y;
  std::vector<double> v_x_weights, v_y_weights, v_scales, v_coefficients, scales;
  bool operator==(const Result&) const = default;
};

template <class T>
Result<T> run(const Case& c, const std::vector<T>& x, const std::vector<T>& y,
              const std::vector<double>& w_x, const std::vector<double>& w_y, int threads,
              bool gradient = true) {
  Result<T> r;
  const size_t terms = c.terms.size();
  r.scales.resize(terms);
  Mmd2Out out = {&r.value, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, r.scales.data()};
  if (gradient) {
    r.v_x.resize(c.n * c.d);
    r.v_y.resize(c.m * c.d);
    out.v_x = r.v_x.data();
    out.v_y = r.v_y.data();
  }
  if (gradient && c.all_gradients) {
    r.v_x_weights.resize(c.n);
    r.v_y_weights.resize(c.m);
    r.v_scales.resize(terms);
    r.v_coefficients.resize(terms);
    out.v_x_weights = r.v_x_weights.data();
    out.v_y_weights = r.v_y_weights.data();
    out.v_scales = r.v_scales.data();
    out.v_coefficients = r.v_coefficients.data();
  }
  const Dtype dtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
  // Exactly as many bytes as promised, so that a sanitizer sees one too many.
  std::vector<char> workspace(cpu::mmd2_workspace(c.n, c.m, c.d, dtype, threads));
  const Mmd2Args args = {dtype,
                         {x.data(), c.n, c.d, 1, c.weighted ? w_x.data() : nullptr},
                         {y.data(), c.m, c.d, 1, c.weighted ? w_y.data() : nullptr},
                         c.d,
                         c.terms.data(),
                         int(terms),
                         c.unbiased,
                         workspace.data(),
                         threads,
                         nullptr,
                         nullptr};
  cpu::mmd2(args, out);
  return r;
}

double phi(Family family, double t) {
  if (family == Family::gaussian) return std::exp(-t);
  return family == Family::laplacian ? std::exp(-std::sqrt(t)) : -std::sqrt(t);
}

double slope(Family family, double t) {
  if (family == Family::gaussian) return -std::exp(-t);
  if (t == 0) return 0;
  const double outer = family == Family::laplacian ? std::exp(-std::sqrt(t)) : 1;
  return -outer / (2 * std::sqrt(t));
}

// The definition, pair by pair.
template <class T>
Result<double> oracle(const Case& c, const std::vector<T>& x, const std::vector<T>& y,
                      const std::vector<double>& w_x, const std::vector<double>& w_y) {
  const int64_t rows = c.n + c.m;
  std::vector<double> a(rows), D(rows * rows);
  double sum[2] = {}, squares[2] = {};
  for (int64_t i = 0; i < rows; ++i)
    sum[i >= c.n] += a[i] = !c.weighted ? 1 : i < c.n ? w_x[i] : w_y[i - c.n];
  for (int64_t i = 0; i < rows; ++i) {
    a[i] /= sum[i >= c.n];
    squares[i >= c.n] += a[i] * a[i];
  }
  auto z = [&](int64_t i, int64_t k) {
    return double(i < c.n ? x[i * c.d + k] : y[(i - c.n) * c.d + k]);
  };
  std::vector<double> upper;
  double mean = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < rows; ++j) {
      for (int64_t k = 0; k < c.d; ++k) D[i * rows + j] += std::pow(z(i, k) - z(j, k), 2);
      mean += D[i * rows + j] / double(rows * (rows - 1));
      if (i < j) upper.push_back(D[i * rows + j]);
    }
  std::sort(upper.begin(), upper.end());

  Result<double> r;
  r.value = 0;
  r.v_x.resize(c.n * c.d);
  r.v_y.resize(c.m * c.d);
  const size_t terms = c.terms.size();
  r.v_scales.resize(terms);
  r.v_coefficients.resize(terms);
  std::vector<double> units;
  for (const Term& term : c.terms) {
    units.push_back(term.unit == Unit::fixed  ? 1
                    : term.unit == Unit::mean ? mean
                                              : upper[(upper.size() - 1) / 2]);
    r.scales.push_back(term.scale / units.back());
  }
  double within[2] = {};
  std::vector<double> h(rows);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < rows; ++j) {
      const bool cross = (i < c.n) != (j < c.n);
      if (c.unbiased && i == j) continue;
      const double q = c.unbiased ? 1 / (1 - squares[i >= c.n]) : 1;
      const double C = cross ? -1 : q;
      double k = 0, dk = 0;
      for (size_t t = 0; t < terms; ++t) {
        const double scale = r.scales[t], w = c.terms[t].coefficient, d2 = D[i * rows + j];
        const double p = phi(c.terms[t].family, scale * d2);
        const double s = slope(c.terms[t].family, scale * d2);
        k += w * p;
        dk += w * scale * s;
        r.v_coefficients[t] += C * a[i] * a[j] * p;
        r.v_scales[t] += C * a[i] * a[j] * w * d2 * s / units[t];
      }
      r.value += C * a[i] * a[j] * k;
      h[i] += 2 * C * a[j] * k;
      if (!cross) within[i >= c.n] += C * a[i] * a[j] * k;
      double* v = i < c.n ? &r.v_x[i * c.d] : &r.v_y[(i - c.n) * c.d];
      for (int64_t l = 0; l < c.d; ++l) v[l] += 4 * C * a[i] * a[j] * dk * (z(i, l) - z(j, l));
    }
  for (int64_t i = 0; i < rows; ++i)
    if (c.unbiased) h[i] += 2 * a[i] * within[i >= c.n] / (1 - squares[i >= c.n]);
  double mean_h[2] = {};
  for (int64_t i = 0; i < rows; ++i) mean_h[i >= c.n] += a[i] * h[i];
  for (int64_t i = 0; i < rows; ++i)
    (i < c.n ? r.v_x_weights : r.v_y_weights).push_back((h[i] - mean_h[i >= c.n]) / sum[i >= c.n]);
  return r;
}

template <class A, class B>
double distance(const std::vector<A>& a, const std::vector<B>& b) {
  double worst = 0, scale = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, std::abs(double(a[i]) - double(b[i])));
    scale = std::max(scale, std::abs(double(b[i])));
  }
  return scale > 0 ? worst / scale : worst;
}

template <class T>
void compare(const Case& c) {
  const auto raw_x = normal(c.n * c.d, 1), raw_y = normal(c.m * c.d, 2, 0.5f);
  const std::vector<T> x(raw_x.begin(), raw_x.end()), y(raw_y.begin(), raw_y.end());
  std::vector<double> w_x(c.n), w_y(c.m);
  for (int64_t i = 0; i < c.n; ++i) w_x[i] = double(i % 5) + (c.n < 5);
  for (int64_t i = 0; i < c.m; ++i) w_y[i] = double(1 + i % 3);

  const Result<T> one = run(c, x, y, w_x, w_y, 1);
  const Result<double> exact = oracle(c, x, y, w_x, w_y);
  // Loose on purpose: the tolerance rule proper is applied by the Python tests.
  const double eps = std::numeric_limits<T>::epsilon(), loose = 2000 * eps;
  const std::string name = c.name + (sizeof(T) == 4 ? " float32" : " float64");
  check(std::abs(double(one.value) - exact.value) < loose, name + ": value");
  check(distance(one.v_x, exact.v_x) < loose, name + ": v_x");
  check(distance(one.v_y, exact.v_y) < loose, name + ": v_y");
  check(distance(one.scales, exact.scales) < loose, name + ": scales");
  if (c.all_gradients) {
    check(distance(one.v_x_weights, exact.v_x_weights) < 10 * loose, name + ": v_x_weights");
    check(distance(one.v_y_weights, exact.v_y_weights) < 10 * loose, name + ": v_y_weights");
    check(distance(one.v_scales, exact.v_scales) < 10 * loose, name + ": v_scales");
    check(distance(one.v_coefficients, exact.v_coefficients) < 10 * loose,
          name + ": v_coefficients");
  }
  for (int threads : {2, 3, 4})
    check(run(c, x, y, w_x, w_y, threads) == one, name + ": same bits on more threads");
  check(std::abs(double(run(c, x, y, w_x, w_y, 2, false).value) - double(one.value)) < 8 * eps,
        name + ": value alone");
}

void half_precision() {
  Case c{40, 30, 21, {{Family::gaussian, Unit::mean, 1, 1}}, false, false, false, "half"};
  const auto x = normal(c.n * c.d, 3), y = normal(c.m * c.d, 4);
  for (Dtype dtype : {Dtype::float16, Dtype::bfloat16}) {
    // Values that both formats hold exactly.
    std::vector<float> fx(x.size()), fy(y.size());
    std::vector<uint16_t> hx(x.size()), hy(y.size());
    auto encode = [&](const std::vector<float>& in, std::vector<float>& f,
                      std::vector<uint16_t>& h) {
      for (size_t i = 0; i < in.size(); ++i) {
        f[i] = std::round(in[i] * 8) / 8;
        uint32_t bits;
        std::memcpy(&bits, &f[i], 4);
        const uint32_t exponent = (bits >> 23) & 255;
        h[i] =
            dtype == Dtype::bfloat16 ? uint16_t(bits >> 16)
            : exponent == 0
                ? uint16_t(bits >> 16)
                : uint16_t((bits >> 16 & 0x8000) | (exponent - 112) << 10 | (bits >> 13 & 0x3ff));
      }
    };
    encode(x, fx, hx);
    encode(y, fy, hy);
    const Result<float> expected = run(c, fx, fy, {}, {}, 1);
    Result<float> r;
    r.v_x.resize(x.size());
    r.v_y.resize(y.size());
    r.scales.resize(1);
    std::vector<char> workspace(cpu::mmd2_workspace(c.n, c.m, c.d, dtype, 2));
    cpu::mmd2({dtype,
               {hx.data(), c.n, c.d, 1, nullptr},
               {hy.data(), c.m, c.d, 1, nullptr},
               c.d,
               c.terms.data(),
               1,
               false,
               workspace.data(),
               2,
               nullptr,
               nullptr},
              {&r.value, r.v_x.data(), r.v_y.data(), nullptr, nullptr, nullptr, nullptr,
               r.scales.data()});
    check(r == expected, "half inputs give the bits of their float32 values");
  }
}

// Column-major and broadcast inputs.
void strides() {
  Case c{37, 50, 19, {{Family::laplacian, Unit::mean, 2, 1}}, false, false, false, "strides"};
  const auto x = normal(c.n * c.d, 5), row = normal(c.d, 6);
  std::vector<float> turned(x.size()), repeated(c.m * c.d);
  for (int64_t i = 0; i < c.n; ++i)
    for (int64_t k = 0; k < c.d; ++k) turned[k * c.n + i] = x[i * c.d + k];
  for (int64_t i = 0; i < c.m * c.d; ++i) repeated[i] = row[i % c.d];
  const Result<float> expected = run(c, x, repeated, {}, {}, 1);
  Result<float> r = expected;
  std::vector<char> workspace(cpu::mmd2_workspace(c.n, c.m, c.d, Dtype::float32, 1));
  cpu::mmd2(
      {Dtype::float32,
       {turned.data(), c.n, 1, c.n, nullptr},
       {row.data(), c.m, 0, 1, nullptr},
       c.d,
       c.terms.data(),
       1,
       false,
       workspace.data(),
       1,
       nullptr,
       nullptr},
      {&r.value, r.v_x.data(), r.v_y.data(), nullptr, nullptr, nullptr, nullptr, r.scales.data()});
  check(r == expected, "strides do not change a bit");
}

void concurrent_calls() {
  Case c{90, 70, 33, {{Family::gaussian, Unit::median, 1, 1}}, true, false, false, "concurrent"};
  const auto x = normal(c.n * c.d, 7), y = normal(c.m * c.d, 8);
  const Result<float> expected = run(c, x, y, {}, {}, 2);
  bool same[3];
  std::vector<std::thread> callers;
  for (bool& ok : same) callers.emplace_back([&] { ok = run(c, x, y, {}, {}, 2) == expected; });
  for (std::thread& caller : callers) caller.join();
  check(same[0] && same[1] && same[2], "concurrent calls");
}

void interruption() {
  Case c{3000, 3000, 200, {{Family::gaussian, Unit::mean, 1, 1}}, false, false, false, "stop"};
  const auto x = normal(c.n * c.d, 9);
  std::vector<char> workspace(cpu::mmd2_workspace(c.n, c.m, c.d, Dtype::float32, 2));
  std::vector<float> v(c.n * c.d);
  float value;
  double scale;
  int asked = 0;
  bool stopped = false;
  try {
    cpu::mmd2({Dtype::float32,
               {x.data(), c.n, c.d, 1, nullptr},
               {x.data(), c.m, c.d, 1, nullptr},
               c.d,
               c.terms.data(),
               1,
               false,
               workspace.data(),
               2,
               [](void* count) { return ++*static_cast<int*>(count) > 0; },
               &asked},
              {&value, v.data(), nullptr, nullptr, nullptr, nullptr, nullptr, &scale});
  } catch (const Interrupted&) {
    stopped = true;
  }
  // A machine fast enough to finish before the first question is no failure.
  check(stopped == (asked > 0), "an interrupted call stops");
}

void undefined_values() {
  for (Family family : {Family::gaussian, Family::laplacian, Family::energy})
    for (Unit unit : {Unit::fixed, Unit::mean, Unit::median}) {
      const Case c{50, 40, 9, {{family, unit, 1, 1}}, false, false, false, "nan"};
      // NaN with various payloads, and infinity.
      for (uint32_t bits : {0x7fc00000u, 0x7fc00001u, 0x7fc00181u, 0x7fffffffu, 0x7f800000u}) {
        auto x = normal(c.n * c.d, 10);
        std::memcpy(&x[7], &bits, 4);
        const Result<float> r = run(c, x, normal(c.m * c.d, 11), {}, {}, 2);
        check(std::isnan(r.value), "NaN in, NaN out");
        check(std::all_of(r.v_x.begin(), r.v_x.end(), [](float v) { return std::isnan(v); }),
              "NaN in, NaN gradient");
      }
    }
}

template <class T>
void equal_points() {
  for (Unit unit : {Unit::fixed, Unit::mean, Unit::median})
    for (bool weighted : {false, true}) {
      const Case c{50, 41, 9, {{Family::gaussian, unit, 1, 1}}, false, weighted, true, "equal"};
      const std::vector<T> x(c.n * c.d, T(0.1)), y(c.m * c.d, T(0.1));
      const auto w = normal(c.n, 12);
      std::vector<double> weights;
      for (float v : w) weights.push_back(std::abs(v));
      const Result<T> r = run(c, x, y, weights, weights, 2);
      auto zero = [](const auto& v) {
        return std::all_of(v.begin(), v.end(), [](auto e) { return e == 0; });
      };
      check(r.value == 0 && zero(r.v_x) && zero(r.v_y) && zero(r.v_x_weights) && zero(r.v_scales) &&
                zero(r.v_coefficients),
            "equal points give 0");
    }
}

// Pairs closer than the rounding of their inner product, for kernels with a kink at 0. (The
// gradient of a smooth kernel goes to 0 with the distance, below the rounding of the sums it is
// made from.)
void near_duplicates() {
  for (Family family : {Family::laplacian, Family::energy})
    for (float step : {1e-3f, 1e-5f, 1e-7f}) {
      Case c{60, 60, 8, {{family, Unit::fixed, 1, 1}}, false, false, false, "near"};
      const auto x = normal(c.n * c.d, 13);
      auto y = x;
      for (int64_t i = 0; i < c.m; ++i) {
        float moved = x[i * c.d] + step;
        y[i * c.d] = moved;
      }
      const Result<float> r = run(c, x, y, {}, {}, 2);
      const Result<double> exact = oracle(c, x, y, {}, {});
      check(distance(r.v_x, exact.v_x) < (step < 1e-4f ? 2e-4 : 2e-3),
            "gradient of near duplicates, family " + std::to_string(int(family)) + ", step " +
                std::to_string(step) + ": " + std::to_string(distance(r.v_x, exact.v_x)));
    }
}

// Data in other units: what does not depend on units does not change a bit.
void scales_of_data() {
  const auto x0 = normal(60 * 20, 14), y0 = normal(50 * 20, 15, 0.5f);
  auto scaled = [&](const std::vector<float>& v, int e) {
    std::vector<float> s;
    for (float f : v) s.push_back(std::ldexp(f, e));
    return s;
  };
  for (int e : {-60, -30, 30, 60}) {
    Case c{60, 50, 20, {{Family::gaussian, Unit::mean, 1, 1}}, false, false, false, "scaled"};
    const Result<float> one = run(c, x0, y0, {}, {}, 1);
    const Result<float> r = run(c, scaled(x0, e), scaled(y0, e), {}, {}, 1);
    check(r.value == one.value, "value at scale 2^" + std::to_string(e));
    check(scaled(r.v_x, e) == one.v_x, "gradient at scale 2^" + std::to_string(e));
    c.terms[0] = {Family::energy, Unit::fixed, 1, 1};
    check(std::ldexp(run(c, scaled(x0, e), scaled(y0, e), {}, {}, 1).value, -e) ==
              run(c, x0, y0, {}, {}, 1).value,
          "energy at scale 2^" + std::to_string(e));
  }
}

}  // namespace

int main() {
  const Term bank[] = {{Family::gaussian, Unit::mean, 4, 1},
                       {Family::gaussian, Unit::mean, 1, 0.5},
                       {Family::gaussian, Unit::mean, 0.5, 2},
                       {Family::gaussian, Unit::mean, 2, 1},
                       {Family::gaussian, Unit::mean, 0.3, 1}};
  const Term mixture[] = {{Family::gaussian, Unit::median, 1, 1},
                          {Family::laplacian, Unit::mean, 2, 0.5},
                          {Family::energy, Unit::fixed, 1, 0.1}};
  std::vector<Case> cases;
  for (auto [n, m, d] :
       {std::array<int64_t, 3>{1, 1, 1}, {2, 3, 5}, {33, 47, 100}, {230, 130, 17}, {40, 24, 600}})
    for (bool unbiased : {false, true})
      for (bool weighted : {false, true}) {
        if (unbiased && n == 1) continue;
        const std::string name = std::to_string(n) + "x" + std::to_string(m) + "x" +
                                 std::to_string(d) + (unbiased ? " unbiased" : " biased") +
                                 (weighted ? " weighted" : "");
        cases.push_back({n,
                         m,
                         d,
                         {std::begin(bank), std::end(bank)},
                         unbiased,
                         weighted,
                         weighted,
                         name + " bank"});
        cases.push_back({n,
                         m,
                         d,
                         {std::begin(mixture), std::end(mixture)},
                         unbiased,
                         weighted,
                         true,
                         name + " mixture"});
        cases.push_back({n,
                         m,
                         d,
                         {{Family::energy, Unit::fixed, 1, 1}},
                         unbiased,
                         weighted,
                         false,
                         name + " energy"});
      }
  for (const char* isa : {"baseline", "avx2", "avx512"}) {
    if (!cpu::use_instruction_set(isa)) continue;
    for (const Case& c : cases) {
      compare<float>(c);
      compare<double>(c);
    }
    half_precision();
    strides();
    concurrent_calls();
    interruption();
    undefined_values();
    equal_points<float>();
    equal_points<double>();
    near_duplicates();
    scales_of_data();
  }
  check(!cpu::use_instruction_set("abacus"), "an unknown instruction set is refused");
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
