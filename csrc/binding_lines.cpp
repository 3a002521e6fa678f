// The Python face of the pass over lines.
#include <pybind11/pybind11.h>

#include "binding.h"
#include "lines.h"

namespace py = pybind11;
using namespace py::literals;

namespace fastmmd {
namespace {

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

}  // namespace

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

}  // namespace fastmmd
