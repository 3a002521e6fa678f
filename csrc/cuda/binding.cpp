// Python face of the CUDA module.
#include <pybind11/pybind11.h>

#include "cuda/device.h"

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA side of fastmmd. Imports without a driver.";
  m.def("driver_version", &fastmmd::cuda::driver_version,
        "CUDA version the driver serves as 1000 * major + 10 * minor; 0 without a driver.");
  m.def("runtime_version", &fastmmd::cuda::runtime_version,
        "CUDA version this module was built with, in the same form.");
  m.def("device_count", &fastmmd::cuda::device_count, "Number of usable CUDA devices.");
  m.def(
      "architectures", [] { return FASTMMD_CUDA_ARCHS; },
      "Architectures this module holds code for, e.g. \"80 90a 120-ptx\".");
}
