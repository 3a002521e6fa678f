// What the tests of the native core share: data, calls with workspaces of exactly the promised
// size, and the definitions as plain loops in double precision.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "mmd.h"

namespace fastmmd::test {

// Counts a check, and says which one failed.
void check(bool ok, const std::string& what);

// A group of tests: `everywhere` runs once per instruction set.
struct Group {
  const char* name;
  void (*run)();
  bool everywhere = true;
};

// Runs a check under every instruction set of this machine: what it is compared with is made once.
void on_every_instruction_set(const std::function<void()>& run);

void families_and_estimators();
void products();
void units();
void batches();
void kernel_sums();
void sign_vectors();
void distribution_of_sign_vectors();
void forms_of_sign_vectors();
void formats_of_inputs();
void degenerate_inputs();
void near_duplicates();
void scales_of_data();
void concurrent_calls();
void interruptions();
void workspaces();
void lines();
void learned_maps();
void random_features();
void numbers_that_are_none_among_features();
void interrupted_features();

// ---- cases ----

// Two samples and a kernel, without the data.
struct Case {
  std::string name;
  int64_t n, m;
  std::vector<int64_t> widths;
  std::vector<Term> terms;
  Estimator estimator = Estimator::biased;
  int64_t size = 0;
  bool weighted = false;
  int64_t batch = 1;

  int64_t d() const;
};

template <class T>
struct Data {
  std::vector<T> x, y;
  std::vector<double> x_weights, y_weights;
};

// Normal numbers that every T holds exactly.
template <class T>
std::vector<T> normal(int64_t count, unsigned seed, double mean = 0);

template <class T>
Data<T> draw(const Case& c, unsigned seed = 1);

// The data of one element of a batch, and the case that goes with it.
template <class T>
Data<T> element(const Case& c, const Data<T>& data, int64_t b);
Case element(Case c);

Term term(Family family, double scale, double coefficient = 1, double p = 0, double q = 0);
Term term(Family family, Unit unit, double scale, double coefficient = 1);

// The same terms as a later factor of a product.
std::vector<Term> product(const std::vector<std::vector<Term>>& factors);

// One term of every family, of a width that makes something of normal data with d features.
std::vector<Term> families(int64_t d);
const char* name(Family family);
const char* name(Estimator estimator);
bool takes_weights(Estimator estimator);

template <class T>
const char* type_name() {
  return sizeof(T) == 4 ? " float32" : " float64";
}

// ---- calls ----

// Memory that starts off alignment, ends where it was promised to, and holds NaN.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : bytes_(bytes + 1, char(0xff)) {}
  void* data() { return bytes_.data() + 1; }

 private:
  std::vector<char> bytes_;
};

template <class T>
Problem problem(const Case& c, const Data<T>& data, int threads, double* scales);

template <class T>
struct Mmd2 {
  std::vector<T> value, v_x, v_y;
  std::vector<double> v_x_weights, v_y_weights, v_scales, v_coefficients, scales;
  bool operator==(const Mmd2&) const = default;
};

enum class Want { value, points, all };

template <class T>
Mmd2<T> mmd2(const Case& c, const Data<T>& data, int threads, Want want = Want::all);
// The same with arguments of one's own for the pointers and sizes of the case.
template <class T>
Mmd2<T> mmd2(const Case& c, Mmd2Args args, Want want = Want::all);

template <class T>
struct Sums {
  std::vector<T> out;
  std::vector<double> scales;
  bool operator==(const Sums&) const = default;
};

template <class T>
Sums<T> kernel_sum(const Case& c, const Data<T>& data, const std::vector<T>& v, int64_t columns,
                   int threads);

struct Forms {
  std::vector<double> forms, linear, diagonal, totals, scales;
  bool operator==(const Forms&) const = default;
};

template <class T>
Forms sign_forms(const Case& c, const Data<T>& data, Scheme scheme, uint64_t seed, int64_t count,
                 int threads);

// ---- the definitions ----

// A result, and for each number in it the sum of the magnitudes it is made of: what rounding is
// measured against.
template <class R>
struct Exact {
  R result, magnitude;
};

Exact<Mmd2<double>> exact_mmd2(const Case& c, const Data<double>& data);
Exact<Sums<double>> exact_kernel_sum(const Case& c, const Data<double>& data,
                                     const std::vector<double>& v, int64_t columns);

// One vector of values on the pooled sample after the other.
using Vectors = std::vector<std::vector<double>>;
Exact<Forms> exact_forms(const Case& c, const Data<double>& data, const Vectors& vectors);

double phi(const Term& term, double t);
double slope(const Term& term, double t);

// ---- comparisons ----

template <class T>
std::vector<double> widen(const std::vector<T>& v) {
  return {v.begin(), v.end()};
}

template <class T>
Data<double> widen(const Data<T>& data) {
  return {widen(data.x), widen(data.y), data.x_weights, data.y_weights};
}

// The worst error in units of eps times the largest magnitude.
template <class T>
double error(const std::vector<T>& got, const std::vector<double>& expected,
             const std::vector<double>& magnitude, double eps);

// Checks every number of a result. Loose on purpose, at a few thousand roundings: the tolerance
// rule proper is applied by the Python tests.
template <class T>
void compare(const Mmd2<T>& got, const Exact<Mmd2<double>>& expected, const std::string& name);

constexpr double loose = 2000;

}  // namespace fastmmd::test
