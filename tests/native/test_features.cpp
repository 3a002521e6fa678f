// Random features: the sums of cosines and sines and their gradients against plain loops, given
// and structured frequencies, threads, and calls that are stopped.
#include "random_features.h"

#include <cmath>
#include <limits>
#include <random>

#include "core.h"

namespace fastmmd::test {
namespace {

struct Shape {
  int64_t n, d, count;
  bool structured = false, weighted = false, moments = true;
};

int64_t width_of(const Shape& s) {
  int64_t width = 32;
  while (width < s.d) width *= 2;
  return width;
}

template <class T>
struct Inputs {
  std::vector<T> x, w;
  std::vector<double> weights, radii, p, q;
  std::vector<int8_t> signs;
  // A chain of two, one of more links than are taken, and lone ones; not in order.
  std::vector<double> rates = {0.4, 0.1, 0.2, 0.05, 0.8, 1.6, 0.4 * std::sqrt(2.0), 0.7};
};

template <class T>
Inputs<T> draw(const Shape& s) {
  Inputs<T> in;
  in.x = normal<T>(s.n * s.d, 1, 3);
  const int64_t width = width_of(s), K = int64_t(in.rates.size());
  if (s.structured) {
    std::mt19937 bits(2);
    in.signs.resize((s.count + width - 1) / width * 3 * width);
    for (int8_t& sign : in.signs) sign = bits() & 1 ? 1 : -1;
    for (double r : normal<double>(s.count, 3)) in.radii.push_back(double(float(r)) / width);
  } else {
    in.w = normal<T>(s.count * s.d, 4);
  }
  if (s.weighted)
    for (double a : normal<double>(s.n, 5)) in.weights.push_back(std::abs(a) / double(s.n));
  in.p = normal<double>(K * s.count, 6);
  in.q = normal<double>(K * s.count, 7);
  return in;
}

// Frequencies as a matrix [count, d].
template <class T>
std::vector<double> matrix(const Shape& s, const Inputs<T>& in) {
  if (!s.structured) return {in.w.begin(), in.w.end()};
  const int64_t width = width_of(s);
  std::vector<double> all(s.count * s.d);
  for (int64_t k = 0; k < s.d; ++k)
    for (int64_t b = 0; b * width < s.count; ++b) {
      std::vector<double> z(width);
      z[k] = 1;
      for (int64_t stage = 0; stage < 3; ++stage) {
        std::vector<double> to(width);
        for (int64_t r = 0; r < width; ++r)
          for (int64_t c = 0; c < width; ++c)
            to[r] += (__builtin_popcountll(r & c) & 1 ? -1 : 1) * z[c] *
                     in.signs[(b * 3 + stage) * width + c];
        z = to;
      }
      for (int64_t r = 0; r < width && b * width + r < s.count; ++r)
        all[(b * width + r) * s.d + k] = in.radii[b * width + r] * z[r];
    }
  return all;
}

template <class T>
struct Outputs {
  std::vector<double> center, shifts, sums, v_weights;
  std::vector<T> v_x, v_w;
  bool operator==(const Outputs&) const = default;
};

template <class T>
FeatureArgs arguments(const Shape& s, const Inputs<T>& in, int threads) {
  FeatureArgs args{};
  args.dtype = sizeof(T) == 8 ? Dtype::float64 : Dtype::float32;
  args.x = {in.x.data(), s.n, 0, s.d, 1, in.weights.empty() ? nullptr : in.weights.data()};
  args.d = s.d;
  args.frequencies = {in.w.data(), s.count, 0, s.d, 1, nullptr};
  if (s.structured) args.transforms = {in.signs.data(), width_of(s), in.radii.data()};
  args.rates = in.rates.data();
  args.num_rates = int(in.rates.size());
  args.threads = threads;
  return args;
}

template <class T>
Outputs<T> call(const Shape& s, const Inputs<T>& in, int threads) {
  const int64_t K = int64_t(in.rates.size());
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Outputs<T> out = {std::vector<double>(s.d, nan),
                    std::vector<double>(s.count, nan),
                    std::vector<double>((s.moments ? 4 : 2) * K * s.count, nan),
                    std::vector<double>(s.n, nan),
                    std::vector<T>(s.n * s.d, T(nan)),
                    std::vector<T>(s.structured ? 0 : s.count * s.d, T(nan))};
  FeatureSumsArgs forward = {arguments(s, in, threads), out.center.data(), out.shifts.data(),
                             out.sums.data(), s.moments};
  Workspace room(cpu::workspace(forward));
  forward.workspace = room.data();
  cpu::feature_sums(forward);
  FeatureGradientsArgs backward = {arguments(s, in, threads),
                                   out.center.data(),
                                   in.p.data(),
                                   in.q.data(),
                                   out.v_x.data(),
                                   s.structured ? nullptr : out.v_w.data(),
                                   out.v_weights.data()};
  Workspace more(cpu::workspace(backward));
  backward.workspace = more.data();
  cpu::feature_gradients(backward);
  return out;
}

template <class T>
double worst(const std::vector<T>& got, const std::vector<double>& expected) {
  double error = 0, size = 1e-300;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double e = std::abs(double(got[i]) - expected[i]);
    error = e <= error ? error : e;  // NaN, too
    size = std::max(size, std::abs(expected[i]));
  }
  return error / size;
}

template <class T>
void compare(const Shape& s, const Inputs<T>& in, const Outputs<T>& got, const std::string& name) {
  const std::vector<double> w = matrix(s, in);
  const int64_t K = int64_t(in.rates.size()), F = s.count, d = s.d;
  std::vector<double> sums((s.moments ? 4 : 2) * K * F), shifts(F), v_x(s.n * d), v_w(F * d),
      v_weights(s.n);
  for (int64_t j = 0; j < F; ++j)
    for (int64_t k = 0; k < d; ++k) shifts[j] += got.center[k] * w[j * d + k];
  for (int64_t i = 0; i < s.n; ++i)
    for (int64_t j = 0; j < F; ++j) {
      const double a = in.weights.empty() ? 1.0 / double(s.n) : in.weights[i];
      double t = 0, pull = 0;
      for (int64_t k = 0; k < d; ++k) t += (double(in.x[i * d + k]) - got.center[k]) * w[j * d + k];
      for (int64_t k = 0; k < K; ++k) {
        const double c = std::cos(in.rates[k] * t), sine = std::sin(in.rates[k] * t);
        const double p = in.p[k * F + j], q = in.q[k * F + j];
        sums[k * F + j] += a * c;
        sums[(K + k) * F + j] += a * sine;
        if (s.moments) {
          sums[(2 * K + k) * F + j] += a * t * c;
          sums[(3 * K + k) * F + j] += a * t * sine;
        }
        pull += a * in.rates[k] * (p * c - q * sine);
        v_weights[i] += q * c + p * sine;
      }
      for (int64_t k = 0; k < d; ++k) {
        v_x[i * d + k] += pull * w[j * d + k];
        v_w[j * d + k] += pull * (double(in.x[i * d + k]) - got.center[k]);
      }
    }
  // Angles of a hundred lose two digits.
  const double allowed = sizeof(T) == 8 ? 1e-11 : 3e-4;
  check(worst(got.sums, sums) < allowed, name + ": sums");
  check(worst(got.shifts, shifts) < 1e-12, name + ": shifts");
  check(worst(got.v_x, v_x) < allowed, name + ": gradient to points");
  check(worst(got.v_weights, v_weights) < allowed, name + ": gradient to weights");
  if (!s.structured) check(worst(got.v_w, v_w) < allowed, name + ": gradient to frequencies");
}

template <class T>
void each(const Shape& s) {
  const std::string name = "features " + std::to_string(s.n) + " " + std::to_string(s.d) + " " +
                           std::to_string(s.count) + (s.structured ? " structured" : "") +
                           type_name<T>();
  const Inputs<T> in = draw<T>(s);
  const Outputs<T> got = call(s, in, 1);
  compare(s, in, got, name);
  for (int threads : {2, 3}) check(call(s, in, threads) == got, name + ": threads");
}

// Stops at the first question.
bool stop(void* asked) {
  ++*static_cast<int*>(asked);
  return true;
}

}  // namespace

void random_features() {
  for (bool structured : {false, true}) {
    for (Shape s : {Shape{1, 1, 1}, Shape{2, 3, 5}, Shape{50, 33, 140}, Shape{420, 17, 40}}) {
      s.structured = structured;
      s.weighted = s.n > 2;
      s.moments = s.n != 50;
      each<float>(s);
      each<double>(s);
    }
  }
}

void numbers_that_are_none_among_features() {
  const Shape s = {40, 5, 30};
  for (float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
    Inputs<float> in = draw<float>(s);
    in.x[17] = bad;
    const Outputs<float> got = call(s, in, 2);
    bool finite = true, none = true;
    for (size_t k = 0; k < in.rates.size() * s.count; ++k) {
      finite &= std::isfinite(got.sums[k]);
      none &= std::isnan(got.sums[k]);
    }
    if (bad == 1e30f) check(finite, "cosines of huge angles are finite");
    else check(none, "what is no number makes no number");
  }
}

void interrupted_features() {
  const Shape s = {4000, 64, 2048};
  const Inputs<float> in = draw<float>(s);
  const int64_t K = int64_t(in.rates.size());
  std::vector<double> center(s.d), shifts(s.count), sums(4 * K * s.count);
  FeatureSumsArgs args = {arguments(s, in, 2), center.data(), shifts.data(), sums.data(), true};
  int asked = 0;
  args.interrupted = stop;
  args.interrupted_context = &asked;
  Workspace room(cpu::workspace(args));
  args.workspace = room.data();
  bool stopped = false;
  try {
    cpu::feature_sums(args);
  } catch (const Interrupted&) {
    stopped = true;
  }
  // A machine fast enough to finish before the first question is no failure.
  check(stopped == (asked > 0), "interrupted sums of features stop");
}

}  // namespace fastmmd::test
