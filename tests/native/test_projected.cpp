// The MMD behind a learned map against loops over the map and the definition of the MMD.
#include "projected.h"

#include <limits>

#include "core.h"

namespace fastmmd::test {
namespace {

template <class T>
struct Map {
  int64_t d, p;
  std::vector<T> weight, bias;
  Activation activation;
};

template <class T>
struct Projected {
  std::vector<T> value, v_x, v_y, v_weight, v_bias;
  bool operator==(const Projected&) const = default;
};

template <class T>
Projected<T> run(const Case& c, const Data<T>& data, const Map<T>& map, int threads,
                 bool gradients = true) {
  const auto size = [](int64_t rows, int64_t columns) { return size_t(rows * columns); };
  Projected<T> got{std::vector<T>(1), std::vector<T>(size(c.n, map.d)),
                   std::vector<T>(size(c.m, map.d)), std::vector<T>(size(map.p, map.d)),
                   std::vector<T>(size_t(map.p))};
  std::vector<double> scales(c.terms.size());
  ProjectedArgs args{};
  static_cast<Problem&>(args.images) = problem(c, data, threads, scales.data());
  args.images.batch = 1;
  args.images.estimator = c.estimator;
  args.x = {data.x.data(), c.n, 0, map.d, 1, nullptr};
  args.y = {data.y.data(), c.m, 0, map.d, 1, nullptr};
  args.d = map.d;
  args.weight = {map.weight.data(), map.p, 0, map.d, 1, nullptr};
  args.bias = map.bias.data();
  args.activation = map.activation;
  ProjectedOut out{};
  out.images.value = got.value.data();
  if (gradients) {
    out.v_x = got.v_x.data();
    out.v_y = got.v_y.data();
    out.v_weight = got.v_weight.data();
    out.v_bias = got.v_bias.data();
  }
  args.images.workspace = nullptr;
  Workspace room(cpu::workspace(args, out));
  args.images.workspace = room.data();
  cpu::projected_mmd2(args, out);
  return got;
}

double value(Activation activation, double h) {
  if (activation == Activation::relu) return h > 0 ? h : 0;
  if (activation == Activation::tanh) return std::tanh(h);
  if (activation == Activation::gelu) return h / 2 * (1 + std::erf(h / std::sqrt(2)));
  return h;
}

double slope(Activation activation, double h) {
  if (activation == Activation::relu) return h > 0;
  if (activation == Activation::none) return 1;
  const double step = 1e-5;
  return (value(activation, h + step) - value(activation, h - step)) / (2 * step);
}

template <class T>
void against_loops(int64_t n, int64_t m, int64_t d, int64_t p, Activation activation) {
  const Case c = {std::to_string(n) + ", " + std::to_string(m) + " by " + std::to_string(d) +
                      " to " + std::to_string(p) + type_name<T>(),
                  n,
                  m,
                  {p},
                  {term(Family::gaussian, Unit::mean, 1.0)}};
  const Data<T> data = {normal<T>(n * d, 1), normal<T>(m * d, 2, 0.5), {}, {}};
  Map<T> map = {d, p, normal<T>(p * d, 3), normal<T>(p, 4), activation};
  for (T& w : map.weight) w /= 16;

  Data<double> images, before;
  for (int s = 0; s < 2; ++s) {
    const std::vector<T>& z = s ? data.y : data.x;
    for (int64_t i = 0; i < (s ? m : n); ++i)
      for (int64_t j = 0; j < p; ++j) {
        double h = double(map.bias[size_t(j)]);
        for (int64_t k = 0; k < d; ++k)
          h += double(z[size_t(i * d + k)]) * double(map.weight[size_t(j * d + k)]);
        (s ? before.y : before.x).push_back(h);
        (s ? images.y : images.x).push_back(value(activation, h));
      }
  }
  const Exact<Mmd2<double>> exact = exact_mmd2(c, images);
  Projected<double> expected{exact.result.value,
                             {},
                             {},
                             std::vector<double>(map.weight.size()),
                             std::vector<double>(size_t(p))};
  double largest = 0;  // what single products of the sums come to
  for (int s = 0; s < 2; ++s) {
    const std::vector<T>& z = s ? data.y : data.x;
    const std::vector<double>&h = s ? before.y : before.x,
          &v = s ? exact.result.v_y : exact.result.v_x;
    std::vector<double>& v_z = s ? expected.v_y : expected.v_x;
    v_z.resize(z.size());
    for (int64_t i = 0; i < (s ? m : n); ++i)
      for (int64_t j = 0; j < p; ++j) {
        const double g = v[size_t(i * p + j)] * slope(activation, h[size_t(i * p + j)]);
        largest = std::max(largest, std::abs(g));
        expected.v_bias[size_t(j)] += g;
        for (int64_t k = 0; k < d; ++k) {
          v_z[size_t(i * d + k)] += g * double(map.weight[size_t(j * d + k)]);
          expected.v_weight[size_t(j * d + k)] += g * double(z[size_t(i * d + k)]);
        }
      }
  }
  on_every_instruction_set([&] {
    const Projected<T> got = run(c, data, map, 1);
    // The slopes above are good to 1e-10.
    const double near = (sizeof(T) == 8 ? 1e-9 : 2e-5) * (largest + 1e-3);
    auto close = [&](const std::vector<T>& of, const std::vector<double>& to) {
      double worst = 0;
      for (size_t i = 0; i < of.size(); ++i)
        worst = std::max(worst, std::abs(double(of[i]) - to[i]));
      return worst <= near * std::sqrt(double(n + m + p));
    };
    check(std::abs(double(got.value[0]) - expected.value[0]) < (sizeof(T) == 8 ? 1e-12 : 1e-5),
          c.name + ": value");
    check(close(got.v_x, expected.v_x) && close(got.v_y, expected.v_y), c.name + ": points");
    check(close(got.v_weight, expected.v_weight) && close(got.v_bias, expected.v_bias),
          c.name + ": map");
    check(run(c, data, map, 1, false).value == got.value, c.name + ": the value alone");
    check(run(c, data, map, 3) == got, c.name + ": same bits on more threads");
  });
}

}  // namespace

void learned_maps() {
  for (Activation a : {Activation::none, Activation::relu, Activation::tanh, Activation::gelu}) {
    against_loops<float>(1, 1, 3, 2, a);
    against_loops<float>(37, 20, 70, 33, a);
    against_loops<double>(37, 20, 70, 33, a);
  }
  // More than one block of points, slice of features and chunk of what is summed.
  against_loops<float>(200, 130, 500, 300, Activation::relu);
  against_loops<double>(200, 130, 230, 70, Activation::none);
}

}  // namespace fastmmd::test
