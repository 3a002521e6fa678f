// The Python face of the native core: addresses, sizes and strides in, nothing out. Python
// allocates, checks and shapes; this file is the only one that knows it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "mmd.h"

namespace py = pybind11;
using namespace fastmmd;

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

void mmd2(uintptr_t x, uintptr_t y, int64_t n, int64_t m, int64_t d,
          std::pair<int64_t, int64_t> x_strides, std::pair<int64_t, int64_t> y_strides, int dtype,
          uintptr_t x_weights, uintptr_t y_weights, const std::vector<int>& families,
          uintptr_t scales, uintptr_t coefficients, const std::vector<double>& shapes,
          const std::vector<int>& units, bool unbiased, uintptr_t value, uintptr_t v_x,
          uintptr_t v_y, uintptr_t v_x_weights, uintptr_t v_y_weights, uintptr_t v_scales,
          uintptr_t v_coefficients, uintptr_t resolved, uintptr_t workspace, int threads) {
  const size_t count = families.size();
  if (count == 0 || count > size_t(max_terms) || units.size() != count || shapes.size() != count)
    throw py::value_error("families, shapes and units need one entry a term, at most " +
                          std::to_string(max_terms) + " of them");
  if (dtype < 0 || dtype > 3) throw py::value_error("dtype must be 0, 1, 2 or 3");
  if (n < 1 || m < 1 || d < 1) throw py::value_error("n, m and d must be positive");
  for (size_t t = 0; t < count; ++t)
    if (families[t] < 0 || families[t] > 2 || units[t] < 0 || units[t] > 2)
      throw py::value_error("families and units must be 0, 1 or 2");
  Term terms[max_terms];
  for (size_t t = 0; t < count; ++t)
    terms[t] = {Family(families[t]), Unit(units[t]), pointer<double>(scales)[t],
                pointer<double>(coefficients)[t]};
  const Mmd2Args args = {
      Dtype(dtype),
      {pointer<void>(x), n, x_strides.first, x_strides.second, pointer<double>(x_weights)},
      {pointer<void>(y), m, y_strides.first, y_strides.second, pointer<double>(y_weights)},
      d,
      terms,
      int(count),
      unbiased,
      pointer<void>(workspace),
      threads,
      interrupted,
      nullptr};
  const Mmd2Out out = {pointer<void>(value),
                       pointer<void>(v_x),
                       pointer<void>(v_y),
                       pointer<double>(v_x_weights),
                       pointer<double>(v_y_weights),
                       pointer<double>(v_scales),
                       pointer<double>(v_coefficients),
                       pointer<double>(resolved)};
  bool stopped = false;
  {
    const py::gil_scoped_release release;
    try {
      cpu::mmd2(args, out);
    } catch (const Interrupted&) {
      stopped = true;
    }
  }
  if (stopped) throw py::error_already_set();
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
  module.def("mmd2", &mmd2, py::arg("x"), py::arg("y"), py::arg("n"), py::arg("m"), py::arg("d"),
             py::arg("x_strides"), py::arg("y_strides"), py::arg("dtype"), py::arg("x_weights"),
             py::arg("y_weights"), py::arg("families"), py::arg("scales"), py::arg("coefficients"),
             py::arg("shapes"), py::arg("units"), py::arg("unbiased"), py::arg("value"),
             py::arg("v_x"), py::arg("v_y"), py::arg("v_x_weights"), py::arg("v_y_weights"),
             py::arg("v_scales"), py::arg("v_coefficients"), py::arg("resolved"),
             py::arg("workspace"), py::arg("threads"));
  module.def(
      "mmd2_workspace",
      [](int64_t n, int64_t m, int64_t d, int dtype, int threads) {
        return cpu::mmd2_workspace(n, m, d, Dtype(dtype), threads);
      },
      py::arg("n"), py::arg("m"), py::arg("d"), py::arg("dtype"), py::arg("threads"));
  module.def("instruction_set", &cpu::instruction_set);
  module.def("instruction_sets", &instruction_sets);
  module.def("use_instruction_set", &use_instruction_set, py::arg("name"));
  module.def("build_info", &build_info);
}
