// Python face of the CUDA module: addresses of the device, sizes and a stream in, nothing out.
// Python allocates, checks and shapes. Launches that are refused raise RuntimeError.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "arguments.h"
#include "cuda/device.h"
#include "cuda/features.h"
#include "cuda/mmd.h"
#include "cuda/small.h"

namespace fastmmd::cuda {
size_t fused_workspace(const Mmd2Args& args, const Mmd2Out& out, const Launch& launch);
}

namespace py = pybind11;
using namespace fastmmd;
using namespace py::literals;

namespace {

using Addresses = std::vector<uintptr_t>;
using WithoutGil = py::call_guard<py::gil_scoped_release>;

cuda::Launch launch_of(uintptr_t scales, uintptr_t coefficients, int products, int operand,
                       const Addresses& z, const Widths& widths, uintptr_t stream, int device) {
  require(products >= 0 && products <= 3, "products must be 0 to 3");
  require(operand >= 0 && operand < cuda::num_operands, "operand must be 0 to 5");
  require(z.size() == widths.size(), "there must be one z for each width");
  require(device >= 0, "device must not be negative");
  cuda::Launch launch{pointer<double>(scales),
                      pointer<double>(coefficients),
                      cuda::Products(products),
                      cuda::Operand(operand),
                      {},
                      pointer<void>(stream),
                      device};
  std::transform(z.begin(), z.end(), launch.z, [](uintptr_t address) {
    require(address % 16 == 0, "z must be aligned to 16 bytes");
    return pointer<void>(address);
  });
  return launch;
}

Problem problem_of(const Sample& x, const Sample& y, int dtype, const Widths& widths,
                   const Terms& terms, const cuda::Launch& launch, uintptr_t resolved) {
  const bool wide = launch.operand == cuda::Operand::float64;
  require(wide == (Dtype(dtype) == Dtype::float64), "float64 is the operand of float64 alone");
  return problem(x, y, dtype, widths, terms, resolved, 0);
}

// What a pass points to; it is not copied.
struct Kept {
  Widths widths;
  Terms terms;
};

class Mmd2 {
 public:
  Mmd2(uintptr_t x, uintptr_t y, int64_t n, int64_t m, const Strides& x_strides,
       const Strides& y_strides, int64_t batch, int dtype, uintptr_t x_weights, uintptr_t y_weights,
       Widths widths, const Lists& factors, const Lists& families, uintptr_t scales,
       uintptr_t coefficients, const std::vector<double>& shapes, const Lists& units, int estimator,
       int64_t size, int constant_factors, uintptr_t value, uintptr_t v_x, uintptr_t v_y,
       uintptr_t v_x_weights, uintptr_t v_y_weights, uintptr_t v_scales, uintptr_t v_coefficients,
       uintptr_t resolved, int products, int operand, const Addresses& z, uintptr_t stream,
       int device)
      : kept_{std::move(widths), Terms(factors, families, 0, 0, shapes, units)},
        launch_(
            launch_of(scales, coefficients, products, operand, z, kept_.widths, stream, device)),
        args_(mmd2_args(
            problem_of(sample(x, n, x_strides, x_weights), sample(y, m, y_strides, y_weights),
                       dtype, kept_.widths, kept_.terms, launch_, resolved),
            batch, estimator, size, constant_factors)),
        out_(mmd2_out(value, v_x, v_y, v_x_weights, v_y_weights, v_scales, v_coefficients)) {}

  Mmd2(const Mmd2&) = delete;

  cuda::Mmd2 pass() const { return {args_, out_, launch_}; }

  // Of the road that takes the pass as a whole, or of the general one.
  size_t workspace() const { return pass().workspace(); }
  size_t small_workspace() const { return cuda::small_workspace(args_, out_); }
  size_t fused_workspace() const {  // it goes on behind that of the general one
    return workspace() + cuda::fused_workspace(args_, out_, launch_);
  }

  void set_workspace(uintptr_t workspace) { args_.workspace = pointer<void>(workspace); }

  void panel(int64_t row, int64_t rows, int64_t column, int64_t columns, const Addresses& w,
             uintptr_t workspace) const {
    const cuda::Rows packed{args_.x.rows, args_.y.rows};
    auto of_one_domain = [&](int64_t first, int64_t count) {
      const int64_t end = first < packed.first(1) ? packed.first(1) : packed.padded();
      return first >= 0 && count > 0 && first % cuda::block_rows == 0 &&
             count % cuda::block_rows == 0 && first + count <= end;
    };
    require(of_one_domain(row, rows) && of_one_domain(column, columns),
            "a panel must be whole blocks of rows of one sample each");
    require(row == column ? rows == columns : row + rows <= column,
            "a panel must be on the diagonal or above it");
    require(w.size() <= size_t(max_factors), "there must be at most 8 w");
    cuda::Panel panel{row, rows, column, columns, {}};
    std::transform(w.begin(), w.end(), panel.w, pointer<void>);
    pass().panel(panel, pointer<void>(workspace));
  }

 private:
  const Kept kept_;
  const cuda::Launch launch_;
  Mmd2Args args_;
  const Mmd2Out out_;
};

// A pass of one launch: made with where its workspace is to be, or asked how many bytes it takes.
struct KernelSum {
  KernelSum(uintptr_t x, uintptr_t y, int64_t n, int64_t m, const Strides& x_strides,
            const Strides& y_strides, int dtype, uintptr_t v, int64_t p, Widths widths,
            const Lists& factors, const Lists& families, uintptr_t scales, uintptr_t coefficients,
            const std::vector<double>& shapes, const Lists& units, uintptr_t out,
            uintptr_t resolved, int products, int operand, const Addresses& z, uintptr_t stream,
            int device)
      : kept{std::move(widths), Terms(factors, families, 0, 0, shapes, units)},
        launch(launch_of(scales, coefficients, products, operand, z, kept.widths, stream, device)),
        args(kernel_sum_args(problem_of(sample(x, n, x_strides), sample(y, m, y_strides), dtype,
                                        kept.widths, kept.terms, launch, resolved),
                             v, p, out)) {}

  KernelSum(const KernelSum&) = delete;

  const Kept kept;
  const cuda::Launch launch;
  const KernelSumArgs args;
};

struct SignForms {
  SignForms(uintptr_t x, uintptr_t y, int64_t n, int64_t m, const Strides& x_strides,
            const Strides& y_strides, int dtype, Widths widths, const Lists& factors,
            const Lists& families, uintptr_t scales, uintptr_t coefficients,
            const std::vector<double>& shapes, const Lists& units, int scheme, uint64_t seed,
            int64_t count, uintptr_t forms, uintptr_t linear, uintptr_t diagonal, uintptr_t totals,
            uintptr_t resolved, int products, int operand, const Addresses& z, uintptr_t stream,
            int device)
      : kept{std::move(widths), Terms(factors, families, 0, 0, shapes, units)},
        launch(launch_of(scales, coefficients, products, operand, z, kept.widths, stream, device)),
        args(sign_forms_args(problem_of(sample(x, n, x_strides), sample(y, m, y_strides), dtype,
                                        kept.widths, kept.terms, launch, resolved),
                             scheme, seed, count, forms, linear, diagonal, totals)) {}

  SignForms(const SignForms&) = delete;

  const Kept kept;
  const cuda::Launch launch;
  const SignFormsArgs args;
};

template <class Pass>
size_t workspace(const Pass& pass) {
  return cuda::workspace(pass.args, pass.launch);
}

void run_kernel_sum(const KernelSum& pass, uintptr_t workspace) {
  KernelSumArgs args = pass.args;
  args.workspace = pointer<void>(workspace);
  cuda::kernel_sum(args, pass.launch);
}

void run_sign_forms(const SignForms& pass, uintptr_t workspace) {
  SignFormsArgs args = pass.args;
  args.workspace = pointer<void>(workspace);
  cuda::sign_forms(args, pass.launch);
}

cuda::FeatureLaunch feature_launch(const FeatureArgs& args, int products, int operand, uintptr_t z,
                                   uintptr_t stream, int device) {
  require(products >= 0 && products <= 2, "products must be 0, 1 or 2");
  require(operand >= 0 && operand < cuda::num_operands && operand != int(cuda::Operand::float16),
          "operand must be 0, 1, 3, 4 or 5");
  require((cuda::Operand(operand) == cuda::Operand::float64) == (args.dtype == Dtype::float64),
          "float64 is the operand of float64 alone");
  require(z % 16 == 0, "z must be aligned to 16 bytes");
  require(device >= 0, "device must not be negative");
  return {cuda::Products(products), cuda::Operand(operand), pointer<void>(z), pointer<void>(stream),
          device};
}

struct FeatureSums {
  FeatureSums(uintptr_t x, int64_t n, int64_t d, const Strides& x_strides, int dtype,
              uintptr_t weights, uintptr_t frequencies, int64_t count,
              const Strides& frequency_strides, uintptr_t signs, int64_t width, uintptr_t radii,
              uintptr_t rates, int num_rates, bool moments, uintptr_t center, uintptr_t shifts,
              uintptr_t sums, int products, int operand, uintptr_t z, uintptr_t stream, int device)
      : args{feature_args(sample(x, n, x_strides, weights), d, dtype,
                          {frequencies, count, frequency_strides, signs, width, radii}, rates,
                          num_rates, 0, 1),
             pointer<double>(center), pointer<double>(shifts), pointer<double>(sums), moments},
        launch(feature_launch(args, products, operand, z, stream, device)) {}

  size_t workspace() const { return cuda::workspace(args, launch); }
  void run(uintptr_t workspace) {
    args.workspace = pointer<void>(workspace);
    cuda::feature_sums(args, launch);
  }

  FeatureSumsArgs args;
  const cuda::FeatureLaunch launch;
};

struct FeatureGradients {
  FeatureGradients(uintptr_t x, int64_t n, int64_t d, const Strides& x_strides, int dtype,
                   uintptr_t weights, uintptr_t frequencies, int64_t count,
                   const Strides& frequency_strides, uintptr_t signs, int64_t width,
                   uintptr_t radii, uintptr_t rates, int num_rates, uintptr_t center, uintptr_t p,
                   uintptr_t q, uintptr_t v_x, uintptr_t v_weights, int products, int operand,
                   uintptr_t z, uintptr_t stream, int device)
      : args{feature_args(sample(x, n, x_strides, weights), d, dtype,
                          {frequencies, count, frequency_strides, signs, width, radii}, rates,
                          num_rates, 0, 1),
             pointer<double>(center),
             pointer<double>(p),
             pointer<double>(q),
             pointer<void>(v_x),
             nullptr,
             pointer<double>(v_weights)},
        launch(feature_launch(args, products, operand, z, stream, device)) {}

  cuda::FeatureGradients pass() const { return {args, launch}; }

  size_t workspace(int64_t rows, int64_t columns) const { return pass().workspace(rows, columns); }
  void set_workspace(uintptr_t workspace) { args.workspace = pointer<void>(workspace); }
  void begin() const { pass().begin(); }
  void panel(int64_t row, int64_t rows, int64_t column, int64_t columns, uintptr_t w) const {
    const cuda::Rows packed{args.x.rows, args.frequencies.rows};
    auto whole = [](int64_t first, int64_t count, int64_t begin, int64_t end) {
      return first >= begin && count > 0 && first % cuda::block_rows == 0 &&
             count % cuda::block_rows == 0 && first + count <= end;
    };
    require(whole(row, rows, packed.first(1), packed.padded()) &&
                whole(column, columns, 0, packed.first(1)),
            "a panel must be whole blocks of frequencies and of points");
    pass().panel(row, rows, column, columns, pointer<void>(w));
  }
  void all() const {
    require(args.transforms.width > 0, "given frequencies come in panels");
    pass().all();
  }

  FeatureGradientsArgs args;
  const cuda::FeatureLaunch launch;
};

template <auto method>
auto of_pass(const Mmd2& mmd2) {
  return (mmd2.pass().*method)();
}

void bind_mmd2(py::module_& m) {
  py::class_<Mmd2>(m, "Mmd2", "The passes of one MMD; see csrc/cuda/mmd.h.")
      .def(py::init<uintptr_t, uintptr_t, int64_t, int64_t, const Strides&, const Strides&, int64_t,
                    int, uintptr_t, uintptr_t, Widths, const Lists&, const Lists&, uintptr_t,
                    uintptr_t, const std::vector<double>&, const Lists&, int, int64_t, int,
                    uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t,
                    uintptr_t, int, int, const Addresses&, uintptr_t, int>(),
           "x"_a, "y"_a, "n"_a, "m"_a, "x_strides"_a, "y_strides"_a, "batch"_a, "dtype"_a,
           "x_weights"_a, "y_weights"_a, "widths"_a, "factors"_a, "families"_a, "scales"_a,
           "coefficients"_a, "shapes"_a, "units"_a, "estimator"_a, "size"_a, "constant_factors"_a,
           "value"_a, "v_x"_a, "v_y"_a, "v_x_weights"_a, "v_y_weights"_a, "v_scales"_a,
           "v_coefficients"_a, "resolved"_a, "products"_a, "operand"_a, "z"_a, "stream"_a,
           "device"_a)
      .def("workspace", &Mmd2::workspace)
      .def("small_workspace", &Mmd2::small_workspace)
      .def("fused_workspace", &Mmd2::fused_workspace)
      .def(
          "panel_workspace",
          [](const Mmd2& self, int64_t rows, int64_t columns) {
            return self.pass().panel_workspace(rows, columns);
          },
          "rows"_a, "columns"_a)
      .def("set_workspace", &Mmd2::set_workspace, "address"_a)
      .def("begin", &of_pass<&cuda::Mmd2::begin>, WithoutGil())
      .def("values", &of_pass<&cuda::Mmd2::values>, WithoutGil())
      .def("panel", &Mmd2::panel, "row"_a, "rows"_a, "column"_a, "columns"_a, "w"_a, "workspace"_a,
           WithoutGil())
      .def("pairs", &of_pass<&cuda::Mmd2::pairs>, WithoutGil())
      .def("finish", &of_pass<&cuda::Mmd2::finish>, WithoutGil())
      .def("takes_small", &of_pass<&cuda::Mmd2::takes_small>)
      .def("small", &of_pass<&cuda::Mmd2::small>, WithoutGil())
      .def("takes_fused", &of_pass<&cuda::Mmd2::takes_fused>)
      .def("fused", &of_pass<&cuda::Mmd2::fused>, WithoutGil());
}

void bind_sums(py::module_& m) {
  py::class_<KernelSum>(m, "KernelSum")
      .def(py::init<uintptr_t, uintptr_t, int64_t, int64_t, const Strides&, const Strides&, int,
                    uintptr_t, int64_t, Widths, const Lists&, const Lists&, uintptr_t, uintptr_t,
                    const std::vector<double>&, const Lists&, uintptr_t, uintptr_t, int, int,
                    const Addresses&, uintptr_t, int>(),
           "x"_a, "y"_a, "n"_a, "m"_a, "x_strides"_a, "y_strides"_a, "dtype"_a, "v"_a, "p"_a,
           "widths"_a, "factors"_a, "families"_a, "scales"_a, "coefficients"_a, "shapes"_a,
           "units"_a, "out"_a, "resolved"_a, "products"_a, "operand"_a, "z"_a, "stream"_a,
           "device"_a)
      .def("workspace", &workspace<KernelSum>)
      .def("run", &run_kernel_sum, "workspace"_a, WithoutGil());
  py::class_<SignForms>(m, "SignForms")
      .def(py::init<uintptr_t, uintptr_t, int64_t, int64_t, const Strides&, const Strides&, int,
                    Widths, const Lists&, const Lists&, uintptr_t, uintptr_t,
                    const std::vector<double>&, const Lists&, int, uint64_t, int64_t, uintptr_t,
                    uintptr_t, uintptr_t, uintptr_t, uintptr_t, int, int, const Addresses&,
                    uintptr_t, int>(),
           "x"_a, "y"_a, "n"_a, "m"_a, "x_strides"_a, "y_strides"_a, "dtype"_a, "widths"_a,
           "factors"_a, "families"_a, "scales"_a, "coefficients"_a, "shapes"_a, "units"_a,
           "scheme"_a, "seed"_a, "count"_a, "forms"_a, "linear"_a, "diagonal"_a, "totals"_a,
           "resolved"_a, "products"_a, "operand"_a, "z"_a, "stream"_a, "device"_a)
      .def("workspace", &workspace<SignForms>)
      .def("run", &run_sign_forms, "workspace"_a, WithoutGil());
}

void bind_features(py::module_& m) {
  py::class_<FeatureSums>(m, "FeatureSums")
      .def(py::init<uintptr_t, int64_t, int64_t, const Strides&, int, uintptr_t, uintptr_t, int64_t,
                    const Strides&, uintptr_t, int64_t, uintptr_t, uintptr_t, int, bool, uintptr_t,
                    uintptr_t, uintptr_t, int, int, uintptr_t, uintptr_t, int>(),
           "x"_a, "n"_a, "d"_a, "x_strides"_a, "dtype"_a, "weights"_a, "frequencies"_a, "count"_a,
           "frequency_strides"_a, "signs"_a, "width"_a, "radii"_a, "rates"_a, "num_rates"_a,
           "moments"_a, "center"_a, "shifts"_a, "sums"_a, "products"_a, "operand"_a, "z"_a,
           "stream"_a, "device"_a)
      .def("workspace", &FeatureSums::workspace)
      .def("run", &FeatureSums::run, "workspace"_a, WithoutGil());
  py::class_<FeatureGradients>(m, "FeatureGradients",
                               "The passes of one gradient; see csrc/cuda/features.h.")
      .def(py::init<uintptr_t, int64_t, int64_t, const Strides&, int, uintptr_t, uintptr_t, int64_t,
                    const Strides&, uintptr_t, int64_t, uintptr_t, uintptr_t, int, uintptr_t,
                    uintptr_t, uintptr_t, uintptr_t, uintptr_t, int, int, uintptr_t, uintptr_t,
                    int>(),
           "x"_a, "n"_a, "d"_a, "x_strides"_a, "dtype"_a, "weights"_a, "frequencies"_a, "count"_a,
           "frequency_strides"_a, "signs"_a, "width"_a, "radii"_a, "rates"_a, "num_rates"_a,
           "center"_a, "p"_a, "q"_a, "v_x"_a, "v_weights"_a, "products"_a, "operand"_a, "z"_a,
           "stream"_a, "device"_a)
      .def("workspace", &FeatureGradients::workspace, "rows"_a = 0, "columns"_a = 0)
      .def("set_workspace", &FeatureGradients::set_workspace, "address"_a)
      .def("begin", &FeatureGradients::begin, WithoutGil())
      .def("panel", &FeatureGradients::panel, "row"_a, "rows"_a, "column"_a, "columns"_a, "w"_a,
           WithoutGil())
      .def("all", &FeatureGradients::all, WithoutGil());
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA side of fastmmd. Imports without a driver.";
  m.def("driver_version", &cuda::driver_version,
        "CUDA version the driver serves as 1000 * major + 10 * minor; 0 without a driver.");
  m.def("runtime_version", &cuda::runtime_version,
        "CUDA version this module was built with, in the same form.");
  m.def("device_count", &cuda::device_count, "Number of usable CUDA devices.");
  m.def(
      "architectures", [] { return FASTMMD_CUDA_ARCHS; },
      "Architectures this module holds code for, e.g. \"80 90a 120-ptx\".");
  m.def("compute_capability", &cuda::compute_capability, "device"_a, "Of a device: major, minor.");
  m.def("shared_bytes", &cuda::shared_bytes, "device"_a, "Shared memory a thread block may have.");
  m.def("l2_bytes", &cuda::l2_bytes, "device"_a, "Size of the L2 cache.");
  m.def("multiprocessors", &cuda::multiprocessors, "device"_a);
  m.attr("BLOCK_ROWS") = cuda::block_rows;
  m.attr("DEPTH_UNIT") = cuda::depth_unit;
  bind_mmd2(m);
  bind_sums(m);
  bind_features(m);
}
