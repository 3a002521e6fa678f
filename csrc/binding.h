// What the files that know Python share.
#pragma once

#include <pybind11/pybind11.h>

#include "arguments.h"

namespace fastmmd {

// Lets Ctrl-C stop a long call: Python's handlers run here, with the error left set.
inline bool interrupted(void*) {
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

// A file each adds its functions to the module.
void bind_lines(pybind11::module_& m);
void bind_features(pybind11::module_& m);

}  // namespace fastmmd
