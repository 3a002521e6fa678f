// The Python face of the native core: addresses, sizes and strides in, nothing out. Python
// allocates, checks and shapes; this file is the only one that knows it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "lines.h"
#include "projected.h"

namespace py = pybind11;
using namespace fastmmd;
using namespace py::literals;

namespace {

// Lets Ctrl-C stop a long call: Python's handlers run here, with the error left set.
bool interrupted(void*) {
  const pybind11::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

// Runs a pass without the GIL; what Ctrl-C left is raised.
template <class Args, class Run>
void release_and(Args& args, const Run& run) {
  args.interrupted = interrupted;
  bool stopped = false;
  {
    const pybind11::gil_scoped_release release;
    try {
      run();
    } catch (const Interrupted&) {
      stopped = true;
    }
  }
  if (stopped) throw pybind11::error_already_set();
}

void mmd2(uintptr_t x, uintptr_t y, int64_t n, int64_t m, const Strides& x_strides,
          const Strides& y_strides, int64_t batch, int dtype, uintptr_t x_weights,
          uintptr_t y_weights, const Widths& widths, const Lists& factors, const Lists& families,
          uintptr_t scales, uintptr_t coefficients, const std::vector<double>& shapes,
          const Lists& units, int estimator, int64_t size, int constant_factors, uintptr_t value,
          uintptr_t v_x, uintptr_t v_y, uintptr_t v_x_weights, uintptr_t v_y_weights,
          uintptr_t v_scales, uintptr_t v_coefficients, uintptr_t resolved, uintptr_t workspace,
          int threads) {
  const Terms terms(factors, families, scales, coefficients, shapes, units);
  Mmd2Args args =
      mmd2_args(problem(sample(x, n, x_strides, x_weights), sample(y, m, y_strides, y_weights),
                        dtype, widths, terms, resolved, workspace, threads),
                batch, estimator, size, constant_factors);
  const Mmd2Out out = mmd2_out(value, v_x, v_y, v_x_weights, v_y_weights, v_scales, v_coefficients);
  release_and(args, [&] { cpu::mmd2(args, out); });
}

size_t mmd2_workspace(int64_t n, int64_t m, const Widths& widths, int64_t batch, int dtype,
                      int estimator, int64_t size, int threads, const Lists& units) {
  const Terms terms = any_terms(widths, units);
  const Strides strides(2);
  const Mmd2Args args = mmd2_args(
      problem(sample(0, n, strides), sample(0, m, strides), dtype, widths, terms, 0, 0, threads),
      batch, estimator, size);
  double any[1];  // as if everything were wanted
  return cpu::workspace(args, {any, any, any, any, any, any, any});
}

void kernel_sum(uintptr_t x, uintptr_t y, int64_t n, int64_t m, const Strides& x_strides,
                const Strides& y_strides, int dtype, uintptr_t v, int64_t p, const Widths& widths,
                const Lists& factors, const Lists& families, uintptr_t scales,
                uintptr_t coefficients, const std::vector<double>& shapes, const Lists& units,
                uintptr_t out, uintptr_t resolved, uintptr_t workspace, int threads) {
  const Terms terms(factors, families, scales, coefficients, shapes, units);
  KernelSumArgs args = kernel_sum_args(problem(sample(x, n, x_strides), sample(y, m, y_strides),
                                               dtype, widths, terms, resolved, workspace, threads),
                                       v, p, out);
  release_and(args, [&] { cpu::kernel_sum(args); });
}

size_t kernel_sum_workspace(int64_t n, int64_t m, const Widths& widths, int64_t p, int dtype,
                            int threads) {
  const Terms terms = any_terms(widths);
  const Strides strides(2);
  return cpu::workspace(kernel_sum_args(
      problem(sample(0, n, strides), sample(0, m, strides), dtype, widths, terms, 0, 0, threads), 0,
      p, 0));
}

void sign_forms(uintptr_t x, uintptr_t y, int64_t n, int64_t m, const Strides& x_strides,
                const Strides& y_strides, int dtype, const Widths& widths, const Lists& factors,
                const Lists& families, uintptr_t scales, uintptr_t coefficients,
                const std::vector<double>& shapes, const Lists& units, int scheme, uint64_t seed,
                int64_t count, uintptr_t forms, uintptr_t linear, uintptr_t diagonal,
                uintptr_t totals, uintptr_t resolved, uintptr_t workspace, int threads) {
  const Terms terms(factors, families, scales, coefficients, shapes, units);
  SignFormsArgs args = sign_forms_args(problem(sample(x, n, x_strides), sample(y, m, y_strides),
                                               dtype, widths, terms, resolved, workspace, threads),
                                       scheme, seed, count, forms, linear, diagonal, totals);
  release_and(args, [&] { cpu::sign_forms(args); });
}

size_t sign_forms_workspace(int64_t n, int64_t m, const Widths& widths, int64_t count, int dtype,
                            int threads) {
  const Terms terms = any_terms(widths);
  const Strides strides(2);
  return cpu::workspace(sign_forms_args(
      problem(sample(0, n, strides), sample(0, m, strides), dtype, widths, terms, 0, 0, threads), 0,
      0, count, 0, 0, 0, 0));
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const char* name : {"baseline", "avx2", "avx512"})
    if (cpu::instruction_set_available(name)) names.push_back(name);
  return names;
}

void use_instruction_set(const std::string& name) {
  if (!cpu::use_instruction_set(name.c_str()))
    throw py::value_error("instruction set '" + name + "' is not one that this machine can run");
}

py::dict build_info() {
  py::dict info;
  info["version"] = FASTMMD_VERSION;
#if defined(__clang__)
  info["compiler"] = "Clang " __clang_version__;
#else
  info["compiler"] = "GCC " __VERSION__;
#endif
#if defined(_OPENMP)
  info["openmp"] = "yes";
#else
  info["openmp"] = "no";
#endif
  return info;
}

LinesArgs sizes(int64_t lines, int64_t n, int64_t m, bool wide, int threads) {
  require(lines >= 1 && n >= 1 && m >= 1, "lines, n and m must be positive");
  require(n + m < (int64_t(1) << 32), "n + m must be below 2^32");
  require(threads >= 1, "threads must be positive");
  LinesArgs args{};
  args.wide = wide;
  args.lines = lines;
  args.n = n;
  args.m = m;
  args.threads = threads;
  return args;
}

void lines(uintptr_t s, uintptr_t t, int64_t count, int64_t n, int64_t m, bool wide,
           uintptr_t s_weights, uintptr_t t_weights, double q_x, double q_y, uintptr_t value,
           uintptr_t within, uintptr_t v_s, uintptr_t v_t, uintptr_t v_s_weights,
           uintptr_t v_t_weights, uintptr_t workspace, int threads) {
  LinesArgs args = sizes(count, n, m, wide, threads);
  args.s = pointer<void>(s);
  args.t = pointer<void>(t);
  args.s_weights = pointer<double>(s_weights);
  args.t_weights = pointer<double>(t_weights);
  args.q[0] = q_x;
  args.q[1] = q_y;
  args.value = pointer<double>(value);
  args.within = pointer<double>(within);
  args.v_s = pointer<void>(v_s);
  args.v_t = pointer<void>(v_t);
  args.v_s_weights = pointer<double>(v_s_weights);
  args.v_t_weights = pointer<double>(v_t_weights);
  args.workspace = pointer<void>(workspace);
  release_and(args, [&] { cpu::lines(args); });
}

void bind_lines(py::module_& m) {
  m.def(
      "lines_workspace",
      [](int64_t lines, int64_t n, int64_t m, bool wide, int threads) {
        return cpu::workspace(sizes(lines, n, m, wide, threads));
      },
      "Bytes of scratch that lines() works in.", "lines"_a, "n"_a, "m"_a, "wide"_a, "threads"_a);
  m.def("lines", &lines,
        "MMD of the negative distance on each of many lines; see csrc/lines.h. Addresses of\n"
        "contiguous arrays, 0 for what is not there or not wanted.",
        "s"_a, "t"_a, "lines"_a, "n"_a, "m"_a, "wide"_a, "s_weights"_a, "t_weights"_a, "q_x"_a,
        "q_y"_a, "value"_a, "within"_a, "v_s"_a, "v_t"_a, "v_s_weights"_a, "v_t_weights"_a,
        "workspace"_a, "threads"_a);
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

// One element of a batch, whose images have one factor.
ProjectedArgs projected_args(const Sample& x, const Sample& y, int64_t d, int dtype,
                             const Sample& weight, const Widths& width, uintptr_t bias,
                             int activation, const Terms& terms, int estimator, int64_t size,
                             uintptr_t resolved, uintptr_t workspace, int threads) {
  require(dtype == 0 || dtype == 1, "dtype must be 0 or 1");
  require(d >= 1 && weight.rows >= 1, "d and the rows of weight must be positive");
  require(activation >= 0 && activation <= 3, "activation must be 0 to 3");
  const Problem images = problem(x, y, dtype, width, terms, resolved, workspace, threads);
  return {mmd2_args(images, 1, estimator, size),
          x,
          y,
          d,
          weight,
          pointer<void>(bias),
          Activation(activation)};
}

void projected_mmd2(uintptr_t x, uintptr_t y, int64_t n, int64_t m, int64_t d,
                    const Strides& x_strides, const Strides& y_strides, int dtype, uintptr_t weight,
                    int64_t p, const Strides& weight_strides, uintptr_t bias, int activation,
                    uintptr_t x_weights, uintptr_t y_weights, const Lists& factors,
                    const Lists& families, uintptr_t scales, uintptr_t coefficients,
                    const std::vector<double>& shapes, const Lists& units, int estimator,
                    int64_t size, uintptr_t value, uintptr_t v_x, uintptr_t v_y, uintptr_t v_weight,
                    uintptr_t v_bias, uintptr_t v_x_weights, uintptr_t v_y_weights,
                    uintptr_t v_scales, uintptr_t v_coefficients, uintptr_t resolved,
                    uintptr_t workspace, int threads) {
  const Terms terms(factors, families, scales, coefficients, shapes, units);
  const Widths width = {p};
  ProjectedArgs args =
      projected_args(sample(x, n, x_strides, x_weights), sample(y, m, y_strides, y_weights), d,
                     dtype, sample(weight, p, weight_strides), width, bias, activation, terms,
                     estimator, size, resolved, workspace, threads);
  const ProjectedOut out = {
      mmd2_out(value, 0, 0, v_x_weights, v_y_weights, v_scales, v_coefficients), pointer<void>(v_x),
      pointer<void>(v_y), pointer<void>(v_weight), pointer<void>(v_bias)};
  release_and(args.images, [&] { cpu::projected_mmd2(args, out); });
}

size_t projected_mmd2_workspace(int64_t n, int64_t m, int64_t d, int64_t p, int dtype,
                                int activation, int estimator, int64_t size, int threads,
                                const Lists& units) {
  const Widths width = {p};
  const Terms terms = any_terms(width, units);
  const Strides strides(2);
  double any[1];  // as if everything were wanted
  return cpu::workspace(
      projected_args(sample(0, n, strides), sample(0, m, strides), d, dtype, sample(0, p, strides),
                     width, 0, activation, terms, estimator, size, 0, 0, threads),
      {{any, any, any, any, any, any, any}, any, any, any, any});
}

void bind_projected(py::module_& m) {
  m.def("projected_mmd2", &projected_mmd2,
        "MMD of images of a learned map, with its gradients; see csrc/projected.h.", "x"_a, "y"_a,
        "n"_a, "m"_a, "d"_a, "x_strides"_a, "y_strides"_a, "dtype"_a, "weight"_a, "p"_a,
        "weight_strides"_a, "bias"_a, "activation"_a, "x_weights"_a, "y_weights"_a, "factors"_a,
        "families"_a, "scales"_a, "coefficients"_a, "shapes"_a, "units"_a, "estimator"_a, "size"_a,
        "value"_a, "v_x"_a, "v_y"_a, "v_weight"_a, "v_bias"_a, "v_x_weights"_a, "v_y_weights"_a,
        "v_scales"_a, "v_coefficients"_a, "resolved"_a, "workspace"_a, "threads"_a);
  m.def("projected_mmd2_workspace", &projected_mmd2_workspace, "n"_a, "m"_a, "d"_a, "p"_a,
        "dtype"_a, "activation"_a, "estimator"_a, "size"_a, "threads"_a, "units"_a);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  if (const char* name = std::getenv("FASTMMD_ISA"); name && !cpu::instruction_set_available(name))
    throw py::import_error(std::string("FASTMMD_ISA names '") + name +
                           "', which is no instruction set that this machine can run");
  module.doc() = "Native core of fastmmd: see fastmmd.ops for the operators built on it.";
  module.def("mmd2", &mmd2, "x"_a, "y"_a, "n"_a, "m"_a, "x_strides"_a, "y_strides"_a, "batch"_a,
             "dtype"_a, "x_weights"_a, "y_weights"_a, "widths"_a, "factors"_a, "families"_a,
             "scales"_a, "coefficients"_a, "shapes"_a, "units"_a, "estimator"_a, "size"_a,
             "constant_factors"_a, "value"_a, "v_x"_a, "v_y"_a, "v_x_weights"_a, "v_y_weights"_a,
             "v_scales"_a, "v_coefficients"_a, "resolved"_a, "workspace"_a, "threads"_a);
  module.def("mmd2_workspace", &mmd2_workspace, "n"_a, "m"_a, "widths"_a, "batch"_a, "dtype"_a,
             "estimator"_a, "size"_a, "threads"_a, "units"_a);
  module.def("kernel_sum", &kernel_sum, "x"_a, "y"_a, "n"_a, "m"_a, "x_strides"_a, "y_strides"_a,
             "dtype"_a, "v"_a, "p"_a, "widths"_a, "factors"_a, "families"_a, "scales"_a,
             "coefficients"_a, "shapes"_a, "units"_a, "out"_a, "resolved"_a, "workspace"_a,
             "threads"_a);
  module.def("kernel_sum_workspace", &kernel_sum_workspace, "n"_a, "m"_a, "widths"_a, "p"_a,
             "dtype"_a, "threads"_a);
  module.def("sign_forms", &sign_forms, "x"_a, "y"_a, "n"_a, "m"_a, "x_strides"_a, "y_strides"_a,
             "dtype"_a, "widths"_a, "factors"_a, "families"_a, "scales"_a, "coefficients"_a,
             "shapes"_a, "units"_a, "scheme"_a, "seed"_a, "count"_a, "forms"_a, "linear"_a,
             "diagonal"_a, "totals"_a, "resolved"_a, "workspace"_a, "threads"_a);
  module.def("sign_forms_workspace", &sign_forms_workspace, "n"_a, "m"_a, "widths"_a, "count"_a,
             "dtype"_a, "threads"_a);
  module.def("instruction_set", &cpu::instruction_set);
  module.def("instruction_sets", &instruction_sets);
  module.def("use_instruction_set", &use_instruction_set, py::arg("name"));
  module.def("build_info", &build_info);

  bind_lines(module);
  bind_features(module);
  bind_projected(module);
}
