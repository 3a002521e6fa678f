// The Python face of random features.
#include <pybind11/stl.h>

#include "binding.h"
#include "random_features.h"

namespace py = pybind11;
using namespace py::literals;

namespace fastmmd {
namespace {

// Signs, their width and radii; a width of 0 says that the frequencies are given.
struct Frequencies {
  uintptr_t data = 0;
  int64_t count = 0;
  const Strides& strides;
  uintptr_t signs = 0;
  int64_t width = 0;
  uintptr_t radii = 0;
};

FeatureArgs feature_args(const Sample& x, int64_t d, int dtype, const Frequencies& w,
                         uintptr_t rates, int num_rates, uintptr_t workspace, int threads) {
  require(dtype >= 0 && dtype <= 3, "dtype must be 0, 1, 2 or 3");
  require(x.rows >= 1 && d >= 1 && w.count >= 1, "n, d and the frequencies must be positive");
  require(num_rates >= 1 && num_rates <= max_rates, "there must be 1 to 128 rates");
  require(threads >= 1, "threads must be positive");
  require(w.width == 0 || (w.width >= 32 && (w.width & (w.width - 1)) == 0 && w.width >= d),
          "width must be a power of two, not less than 32 and d");
  return {Dtype(dtype),
          x,
          d,
          sample(w.data, w.count, w.strides),
          {pointer<int8_t>(w.signs), w.width, pointer<double>(w.radii)},
          pointer<double>(rates),
          num_rates,
          pointer<void>(workspace),
          threads,
          nullptr,
          nullptr};
}

void feature_sums(uintptr_t x, int64_t n, int64_t d, const Strides& x_strides, int dtype,
                  uintptr_t weights, uintptr_t frequencies, int64_t count,
                  const Strides& frequency_strides, uintptr_t signs, int64_t width, uintptr_t radii,
                  uintptr_t rates, int num_rates, bool moments, uintptr_t center, uintptr_t shifts,
                  uintptr_t sums, uintptr_t workspace, int threads) {
  FeatureSumsArgs args = {feature_args(sample(x, n, x_strides, weights), d, dtype,
                                       {frequencies, count, frequency_strides, signs, width, radii},
                                       rates, num_rates, workspace, threads),
                          pointer<double>(center), pointer<double>(shifts), pointer<double>(sums),
                          moments};
  release_and(args, [&] { cpu::feature_sums(args); });
}

size_t feature_sums_workspace(int64_t n, int64_t d, int dtype, int64_t count, int64_t width,
                              int num_rates, bool moments, int threads) {
  const Strides strides(2);
  return cpu::workspace(
      FeatureSumsArgs{feature_args(sample(0, n, strides), d, dtype,
                                   {0, count, strides, 0, width, 0}, 0, num_rates, 0, threads),
                      nullptr, nullptr, nullptr, moments});
}

void feature_gradients(uintptr_t x, int64_t n, int64_t d, const Strides& x_strides, int dtype,
                       uintptr_t weights, uintptr_t frequencies, int64_t count,
                       const Strides& frequency_strides, uintptr_t signs, int64_t width,
                       uintptr_t radii, uintptr_t rates, int num_rates, uintptr_t center,
                       uintptr_t p, uintptr_t q, uintptr_t v_x, uintptr_t v_frequencies,
                       uintptr_t v_weights, uintptr_t workspace, int threads) {
  require(width == 0 || !v_frequencies, "only frequencies that are given have a gradient");
  require(v_x || !v_weights, "v_weights is made with v_x");
  FeatureGradientsArgs args = {
      feature_args(sample(x, n, x_strides, weights), d, dtype,
                   {frequencies, count, frequency_strides, signs, width, radii}, rates, num_rates,
                   workspace, threads),
      pointer<double>(center),
      pointer<double>(p),
      pointer<double>(q),
      pointer<void>(v_x),
      pointer<void>(v_frequencies),
      pointer<double>(v_weights)};
  release_and(args, [&] { cpu::feature_gradients(args); });
}

size_t feature_gradients_workspace(int64_t n, int64_t d, int dtype, int64_t count, int64_t width,
                                   int num_rates, bool for_x, bool for_frequencies, int threads) {
  const Strides strides(2);
  double any[1];
  return cpu::workspace(
      FeatureGradientsArgs{feature_args(sample(0, n, strides), d, dtype,
                                        {0, count, strides, 0, width, 0}, 0, num_rates, 0, threads),
                           nullptr, nullptr, nullptr, for_x ? any : nullptr,
                           for_frequencies ? any : nullptr, for_x ? any : nullptr});
}

}  // namespace

void bind_features(py::module_& m) {
  m.def("feature_sums", &feature_sums, "x"_a, "n"_a, "d"_a, "x_strides"_a, "dtype"_a, "weights"_a,
        "frequencies"_a, "count"_a, "frequency_strides"_a, "signs"_a, "width"_a, "radii"_a,
        "rates"_a, "num_rates"_a, "moments"_a, "center"_a, "shifts"_a, "sums"_a, "workspace"_a,
        "threads"_a);
  m.def("feature_sums_workspace", &feature_sums_workspace, "n"_a, "d"_a, "dtype"_a, "count"_a,
        "width"_a, "num_rates"_a, "moments"_a, "threads"_a);
  m.def("feature_gradients", &feature_gradients, "x"_a, "n"_a, "d"_a, "x_strides"_a, "dtype"_a,
        "weights"_a, "frequencies"_a, "count"_a, "frequency_strides"_a, "signs"_a, "width"_a,
        "radii"_a, "rates"_a, "num_rates"_a, "center"_a, "p"_a, "q"_a, "v_x"_a, "v_frequencies"_a,
        "v_weights"_a, "workspace"_a, "threads"_a);
  m.def("feature_gradients_workspace", &feature_gradients_workspace, "n"_a, "d"_a, "dtype"_a,
        "count"_a, "width"_a, "num_rates"_a, "for_x"_a, "for_frequencies"_a, "threads"_a);
}

}  // namespace fastmmd
