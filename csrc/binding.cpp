// The Python face of the native core: addresses, sizes and strides in, nothing out. Python
// allocates, checks and shapes; binding*.cpp are the only files that know it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "binding.h"

namespace py = pybind11;
using namespace fastmmd;
using namespace py::literals;

namespace {

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
}
