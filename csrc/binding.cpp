// The Python face of the native core: addresses, sizes and strides in, nothing out. Python
// allocates, checks and shapes; this file is the only one that knows it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "mmd.h"

namespace py = pybind11;
using namespace fastmmd;
using namespace py::literals;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Lets Ctrl-C stop a long call: Python's handlers run here, with the error left set.
bool interrupted(void*) {
  const py::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

using Strides = std::vector<int64_t>;
using Lists = std::vector<int>;

// The kernel as Python lists it.
struct Terms {
  Terms(const Lists& factors, const Lists& families, uintptr_t scales, uintptr_t coefficients,
        const std::vector<double>& shapes, const Lists& units)
      : count(int(families.size())) {
    const size_t size = families.size();
    if (size == 0 || size > size_t(max_terms) || units.size() != size || factors.size() != size ||
        shapes.size() != 2 * size)
      throw py::value_error(
          "factors, families, shapes and units need one entry a term, two for "
          "shapes, and at most " +
          std::to_string(max_terms) + " of them");
    for (size_t t = 0; t < size; ++t) {
      if (families[t] < 0 || families[t] >= num_families || units[t] < 0 || units[t] > 4)
        throw py::value_error("families must be 0 to 9 and units 0 to 4");
      const Unit unit = Unit(units[t]);
      if (geometry(Family(families[t])) != Geometry::radial && unit != Unit::fixed &&
          unit != Unit::width)
        throw py::value_error("distances are the unit of radial families alone");
      terms[t] = {Family(families[t]), Unit(units[t]),   factors[t], 0, 1,
                  shapes[2 * t],       shapes[2 * t + 1]};
      if (scales) terms[t].scale = pointer<double>(scales)[t];
      if (coefficients) terms[t].coefficient = pointer<double>(coefficients)[t];
    }
  }

  Term terms[max_terms];
  int count;
};

Sample sample(uintptr_t data, int64_t rows, const Strides& strides, uintptr_t weights = 0) {
  const size_t last = strides.size() - 1;
  return {pointer<void>(data), rows,          last == 2 ? strides[0] : 0,
          strides[last - 1],   strides[last], pointer<double>(weights)};
}

Problem problem(const Sample& x, const Sample& y, int dtype, const std::vector<int64_t>& widths,
                const Terms* terms, uintptr_t resolved, uintptr_t workspace, int threads) {
  if (dtype < 0 || dtype > 3) throw py::value_error("dtype must be 0, 1, 2 or 3");
  if (x.rows < 1 || y.rows < 1) throw py::value_error("n and m must be positive");
  if (threads < 1) throw py::value_error("threads must be positive");
  if (widths.empty() || widths.size() > size_t(max_factors))
    throw py::value_error("there must be 1 to " + std::to_string(max_factors) + " widths");
  for (int64_t width : widths)
    if (width < 1) throw py::value_error("widths must be positive");
  for (int t = 0; t < terms->count; ++t) {
    const int before = t ? terms->terms[t - 1].factor : 0, factor = terms->terms[t].factor;
    if (factor < before || factor > before + 1 || factor >= int(widths.size()) ||
        (t == 0 && factor != 0) ||
        (t && factor == before &&
         geometry(terms->terms[t].family) != geometry(terms->terms[t - 1].family)))
      throw py::value_error("factors must count up from 0, with terms of one geometry each");
  }
  if (terms->terms[terms->count - 1].factor + 1 != int(widths.size()))
    throw py::value_error("every factor needs a term");
  return {Dtype(dtype),
          x,
          y,
          widths.data(),
          int(widths.size()),
          terms->terms,
          terms->count,
          pointer<double>(resolved),
          pointer<void>(workspace),
          threads,
          interrupted,
          nullptr};
}

// Runs without the GIL; what Ctrl-C left is raised.
template <class Run>
void release_and(const Run& run) {
  bool stopped = false;
  {
    const py::gil_scoped_release release;
    try {
      run();
    } catch (const Interrupted&) {
      stopped = true;
    }
  }
  if (stopped) throw py::error_already_set();
}

// Terms of which only units and number matter; one for each factor at least.
Terms any_terms(const std::vector<int64_t>& widths, Lists units = {int(Unit::fixed)}) {
  const int count = int(std::max(units.size(), widths.size()));
  units.resize(count, int(Unit::fixed));
  Lists factors(count, int(widths.size()) - 1);
  for (size_t l = 0; l < widths.size(); ++l) factors[l] = int(l);
  return Terms(factors, Lists(count, 0), 0, 0, std::vector<double>(2 * count), units);
}

Mmd2Args mmd2_args(const Problem& problem, int64_t batch, int estimator, int64_t size,
                   int constant_factors = 0) {
  if (batch < 1) throw py::value_error("batch must be positive");
  if (estimator < 0 || estimator > 6) throw py::value_error("estimator must be 0 to 6");
  const int64_t least = std::min(problem.x.rows, problem.y.rows);
  const Estimator e = Estimator(estimator);
  if ((e == Estimator::linear && least < 2) ||
      (e == Estimator::block && (size < 2 || size > least)) ||
      (e == Estimator::incomplete && (size < 1 || size >= least)))
    throw py::value_error("size does not fit the estimator and the samples");
  if (constant_factors < 0 || constant_factors >= problem.num_factors)
    throw py::value_error("constant_factors must leave one that is not");
  return {problem, batch, e, size, constant_factors};
}

void mmd2(uintptr_t x, uintptr_t y, int64_t n, int64_t m, const Strides& x_strides,
          const Strides& y_strides, int64_t batch, int dtype, uintptr_t x_weights,
          uintptr_t y_weights, const std::vector<int64_t>& widths, const Lists& factors,
          const Lists& families, uintptr_t scales, uintptr_t coefficients,
          const std::vector<double>& shapes, const Lists& units, int estimator, int64_t size,
          int constant_factors, uintptr_t value, uintptr_t v_x, uintptr_t v_y,
          uintptr_t v_x_weights, uintptr_t v_y_weights, uintptr_t v_scales,
          uintptr_t v_coefficients, uintptr_t resolved, uintptr_t workspace, int threads) {
  const Terms terms(factors, families, scales, coefficients, shapes, units);
  const Mmd2Args args =
      mmd2_args(problem(sample(x, n, x_strides, x_weights), sample(y, m, y_strides, y_weights),
                        dtype, widths, &terms, resolved, workspace, threads),
                batch, estimator, size, constant_factors);
  const Mmd2Out out = {
      pointer<void>(value),           pointer<void>(v_x),           pointer<void>(v_y),
      pointer<double>(v_x_weights),   pointer<double>(v_y_weights), pointer<double>(v_scales),
      pointer<double>(v_coefficients)};
  release_and([&] { cpu::mmd2(args, out); });
}

size_t mmd2_workspace(int64_t n, int64_t m, const std::vector<int64_t>& widths, int64_t batch,
                      int dtype, int estimator, int64_t size, int threads, const Lists& units) {
  const Terms terms = any_terms(widths, units);
  const Strides strides(2);
  const Mmd2Args args = mmd2_args(
      problem(sample(0, n, strides), sample(0, m, strides), dtype, widths, &terms, 0, 0, threads),
      batch, estimator, size);
  double any[1];  // as if everything were wanted
  return cpu::workspace(args, {any, any, any, any, any, any, any});
}

void kernel_sum(uintptr_t x, uintptr_t y, int64_t n, int64_t m, const Strides& x_strides,
                const Strides& y_strides, int dtype, uintptr_t v, int64_t p,
                const std::vector<int64_t>& widths, const Lists& factors, const Lists& families,
                uintptr_t scales, uintptr_t coefficients, const std::vector<double>& shapes,
                const Lists& units, uintptr_t out, uintptr_t resolved, uintptr_t workspace,
                int threads) {
  if (p < 1) throw py::value_error("p must be positive");
  const Terms terms(factors, families, scales, coefficients, shapes, units);
  const KernelSumArgs args = {problem(sample(x, n, x_strides), sample(y, m, y_strides), dtype,
                                      widths, &terms, resolved, workspace, threads),
                              pointer<void>(v), p, pointer<void>(out)};
  release_and([&] { cpu::kernel_sum(args); });
}

size_t kernel_sum_workspace(int64_t n, int64_t m, const std::vector<int64_t>& widths, int64_t p,
                            int dtype, int threads) {
  const Terms terms = any_terms(widths);
  const Strides strides(2);
  return cpu::workspace(KernelSumArgs{
      problem(sample(0, n, strides), sample(0, m, strides), dtype, widths, &terms, 0, 0, threads),
      nullptr, p, nullptr});
}

SignFormsArgs sign_forms_args(const Problem& problem, int scheme, uint64_t seed, int64_t count,
                              uintptr_t forms, uintptr_t linear, uintptr_t diagonal,
                              uintptr_t totals) {
  if (scheme < 0 || scheme > 1) throw py::value_error("scheme must be 0 or 1");
  if (scheme == 1 && problem.x.rows != problem.y.rows)
    throw py::value_error("the wild bootstrap needs n = m");
  if (count < 0) throw py::value_error("count must not be negative");
  return {problem,
          Scheme(scheme),
          seed,
          count,
          pointer<double>(forms),
          pointer<double>(linear),
          pointer<double>(diagonal),
          pointer<double>(totals)};
}

void sign_forms(uintptr_t x, uintptr_t y, int64_t n, int64_t m, const Strides& x_strides,
                const Strides& y_strides, int dtype, const std::vector<int64_t>& widths,
                const Lists& factors, const Lists& families, uintptr_t scales,
                uintptr_t coefficients, const std::vector<double>& shapes, const Lists& units,
                int scheme, uint64_t seed, int64_t count, uintptr_t forms, uintptr_t linear,
                uintptr_t diagonal, uintptr_t totals, uintptr_t resolved, uintptr_t workspace,
                int threads) {
  const Terms terms(factors, families, scales, coefficients, shapes, units);
  const SignFormsArgs args =
      sign_forms_args(problem(sample(x, n, x_strides), sample(y, m, y_strides), dtype, widths,
                              &terms, resolved, workspace, threads),
                      scheme, seed, count, forms, linear, diagonal, totals);
  release_and([&] { cpu::sign_forms(args); });
}

size_t sign_forms_workspace(int64_t n, int64_t m, const std::vector<int64_t>& widths, int64_t count,
                            int dtype, int threads) {
  const Terms terms = any_terms(widths);
  const Strides strides(2);
  return cpu::workspace(sign_forms_args(
      problem(sample(0, n, strides), sample(0, m, strides), dtype, widths, &terms, 0, 0, threads),
      0, 0, count, 0, 0, 0, 0));
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
}
