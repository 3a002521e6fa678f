// Distances on lines against all pairs.
#include "lines.h"

#include <cstring>
#include <limits>
#include <memory>

#include "core.h"

namespace fastmmd::test {
namespace {

struct Lines {
  std::vector<double> value, within, v_s, v_t, v_s_weights, v_t_weights;
  bool operator==(const Lines&) const = default;
};

struct LinesCase {
  int64_t lines, n, m;
  bool weighted;
  double q[2];
};

template <class T>
Lines run(const LinesCase& c, const std::vector<T>& s, const std::vector<T>& t,
          const std::vector<double>& a, const std::vector<double>& b, int threads) {
  const auto size = [&](int64_t rows) { return size_t(c.lines * rows); };
  std::vector<T> v_s(size(c.n)), v_t(size(c.m));
  Lines got{std::vector<double>(size(1)),   std::vector<double>(size(2)),  {}, {},
            std::vector<double>(size(c.n)), std::vector<double>(size(c.m))};
  LinesArgs args{};
  args.wide = sizeof(T) == 8;
  args.s = s.data();
  args.t = t.data();
  args.lines = c.lines;
  args.n = c.n;
  args.m = c.m;
  if (c.weighted) args.s_weights = a.data(), args.t_weights = b.data();
  args.q[0] = c.q[0];
  args.q[1] = c.q[1];
  args.value = got.value.data();
  args.within = got.within.data();
  args.v_s = v_s.data();
  args.v_t = v_t.data();
  args.v_s_weights = got.v_s_weights.data();
  args.v_t_weights = got.v_t_weights.data();
  args.threads = threads;
  const std::unique_ptr<char[]> room(new char[cpu::workspace(args)]);
  args.workspace = room.get();
  cpu::lines(args);
  got.v_s.assign(v_s.begin(), v_s.end());
  got.v_t.assign(v_t.begin(), v_t.end());
  return got;
}

double sign(double x) { return double(x > 0) - double(x < 0); }

template <class T>
void against_pairs(const LinesCase& c, bool ties) {
  std::vector<T> s = normal<T>(c.lines * c.n, 3), t = normal<T>(c.lines * c.m, 4);
  if (ties)
    for (std::vector<T>* z : {&s, &t})
      for (T& x : *z) x = std::round(x);
  std::vector<double> a(size_t(c.n), 1.0 / double(c.n)), b(size_t(c.m), 1.0 / double(c.m));
  if (c.weighted)
    for (std::vector<double>* w : {&a, &b}) {
      double sum = 0;
      for (size_t i = 0; i < w->size(); ++i) sum += (*w)[i] = double(1 + i % 5);
      for (double& share : *w) share /= sum;
    }
  const Lines got = run(c, s, t, a, b, 1);
  Lines exact{{},
              {},
              std::vector<double>(s.size()),
              std::vector<double>(t.size()),
              std::vector<double>(s.size()),
              std::vector<double>(t.size())};
  for (int64_t line = 0; line < c.lines; ++line) {
    const T* x[2] = {s.data() + line * c.n, t.data() + line * c.m};
    const std::vector<double>* w[2] = {&a, &b};
    std::vector<double>* v[2] = {&exact.v_s, &exact.v_t};
    std::vector<double>* v_w[2] = {&exact.v_s_weights, &exact.v_t_weights};
    const int64_t rows[2] = {c.n, c.m};
    long double sums[3] = {};
    for (int p = 0; p < 2; ++p)
      for (int o = 0; o < 2; ++o)
        for (int64_t i = 0; i < rows[p]; ++i)
          for (int64_t j = 0; j < rows[o]; ++j) {
            const double difference = double(x[p][i]) - double(x[o][j]);
            const double pair = (*w[p])[size_t(i)] * (*w[o])[size_t(j)];
            const double factor = p == o ? -c.q[p] : 1;
            sums[p == o ? p : 2] += pair * std::abs(difference);
            (*v[p])[size_t(line * rows[p] + i)] += 2 * factor * pair * sign(difference);
            (*v_w[p])[size_t(line * rows[p] + i)] +=
                2 * factor * (*w[o])[size_t(j)] * std::abs(difference);
          }
    exact.value.push_back(double(sums[2] - c.q[0] * sums[0] - c.q[1] * sums[1]));
    exact.within.insert(exact.within.end(), {double(sums[0]), double(sums[1])});
  }
  const std::string name = std::to_string(c.lines) + " lines, " + std::to_string(c.n) + " and " +
                           std::to_string(c.m) + (ties ? ", ties" : "") + type_name<T>();
  // The pairs are added up one by one, and the scan adds up distances from end to end.
  const double near = sizeof(T) == 8 ? 1e-11 : 1e-5;
  auto close = [&](const std::vector<double>& of, const std::vector<double>& to) {
    double largest = 1e-300, worst = 0;  // values may cancel, sums within do not
    for (double x : to) largest = std::max(largest, std::abs(x));
    if (&to == &exact.value)
      for (double x : exact.within) largest = std::max(largest, std::abs(x));
    for (size_t i = 0; i < of.size(); ++i) worst = std::max(worst, std::abs(of[i] - to[i]));
    return worst <= near * std::max(largest, 1.0 / double(c.n + c.m));
  };
  check(close(got.value, exact.value), name + ": values");
  check(close(got.within, exact.within), name + ": sums within");
  check(close(got.v_s, exact.v_s) && close(got.v_t, exact.v_t), name + ": gradients");
  check(close(got.v_s_weights, exact.v_s_weights) && close(got.v_t_weights, exact.v_t_weights),
        name + ": gradients to weights");
  check(run(c, s, t, a, b, 3) == got, name + ": same bits on more threads");
}

}  // namespace

void lines() {
  for (bool ties : {false, true})
    for (bool weighted : {false, true})
      for (auto [n, m] :
           {std::pair<int64_t, int64_t>{1, 1}, {1, 40}, {33, 2}, {150, 90}, {700, 900}}) {
        const LinesCase c = {5, n, m, weighted, {1, 1.25}};
        against_pairs<float>(c, ties);
        against_pairs<double>(c, ties);
      }
  const LinesCase c = {2, 60, 50, false, {1, 1}};
  std::vector<float> s = normal<float>(120, 1), t = normal<float>(100, 2);
  s[7] = std::numeric_limits<float>::quiet_NaN();
  const Lines got = run(c, s, t, {}, {}, 1);
  check(std::isnan(got.value[0]) && std::isnan(got.v_t[3]), "no number among numbers");
  check(!std::isnan(got.value[1]) && !std::isnan(got.v_t[53]), "numbers on another line");
}

}  // namespace fastmmd::test
