// The packed sample on the device, and what the kernels of a pass share.
#pragma once

#include "cuda/mmd.h"
#include "cuda/runtime.cuh"
#include "segments.h"

namespace fastmmd::cuda {

// What a kernel is given of the terms; scale and coefficient are on the device.
struct TermList {
  int count;
  uint8_t family[max_terms], unit[max_terms], factor[max_terms];
  double p[max_terms], q[max_terms];
};

// One factor of the kernel on the packed sample.
template <class T>
struct Factor {
  void* z;         // [padded_rows, depth], operand type
  int64_t depth;   // d padded
  int64_t column;  // its first column in the samples
  int d;
  Geometry geometry;
  // Whether the result feels where the rows are. Products of centred rows then lack what the norms
  // of both rows add up to, and gradients the centre times the pulls. Not of a radial kernel.
  bool feels_centre;
  int first_term, num_terms;
  T* norms;         // [padded_rows] |z_i|^2. Not radial: <c, z_i> + |c|^2 / 2, or 0
  double* mean;     // [d] of the rows as given
  double* pulls;    // [padded_rows] sum_j of the gradient weights; null if not wanted
  double* partial;  // [chunks, d] sums of columns
  double* largest;  // [chunks, slices] magnitudes
  double* spread;   // [2, pack_blocks] of the scaled rows: sums of |x_i - mean|^2, largest |z_i|^2
  double* median;   // [2] squared distances of the scaled rows: of z, of x with zeros
  double*
      lengths;  // [2, pack_blocks] sums of |x_i|^2, largest 1 / |x_i|^2; null unless feels_centre
};

// What is known only after the rows have been looked at; written by the device.
template <class T>
struct Resolved {
  Divisors by;
  double sum[2];      // of the weights as given
  double squares[2];  // sum a_i^2, of weights with mean 1
  double pairs[2];    // sum_{i != j} a_i a_j
  // Gradient weights are stored multiplied by this power of two, which keeps them in the range of
  // any operand.
  T gain;
  bool all_equal;             // all points are one point
  int exponent[max_factors];  // rows are scaled by 2^-exponent
  // The centre c, taken off the scaled rows (cosine: the rows divided by their lengths), is the
  // mean times this.
  double of_mean[max_factors];
  bool equal[max_factors];  // of the factor's columns
  typename Kernel<T>::Range kernel[max_factors];
  Kernel<T> segments;
  Term terms[max_terms];
  double scales[max_terms];  // of the scaled rows
};

// By value to every kernel of a pass.
template <class T>
struct Points {
  Rows rows;
  int num_factors;
  int num_moving;  // the first so many have gradients to their columns
  Estimator estimator;
  Pairs pairs;
  Factor<T> factors[max_factors];
  T* weights;          // [padded_rows] a_i with mean 1 in each domain; 0 on padding
  double* potentials;  // [padded_rows] 2 C sum_j a_j k_ij; null if not wanted
  Resolved<T>* resolved;
  double* sums;   // [sum_rows, row_of_sums] of thread blocks: xx, yy, xy, v_w, v_c
  int num_terms;  // whose gradients are wanted: all, or 0

  // Columns of all factors together.
  FASTMMD_INLINE int64_t width() const {
    const Factor<T>& last = factors[num_factors - 1];
    return last.column + last.d;
  }
  FASTMMD_INLINE int row_of_sums() const { return 3 + 2 * num_terms; }
  FASTMMD_INLINE int domain(int64_t row) const { return row >= rows.first(1); }
  FASTMMD_INLINE int64_t padded() const { return rows.padded(); }
  // Column k of the centre of factor l. It is of type T, scaled: far from 0 the difference of a row
  // to it needs no rounding, and rows that are near each other keep their distance.
  __device__ double centre(int l, int64_t k, double of_mean) const {
    return of_mean == 0 ? 0 : double(T(factors[l].mean[k])) * of_mean;
  }
  __device__ double centre(int l, int64_t k) const { return centre(l, k, resolved->of_mean[l]); }
  // Whether the gradients of factor l need the row sums of their weights.
  __device__ bool has_pulls(int l) const {
    return factors[l].geometry == Geometry::radial ||
           (factors[l].feels_centre && resolved->of_mean[l] != 0);
  }
};

constexpr int sum_rows = 1024;   // thread blocks that have a row of `sums` of their own, at most
constexpr int chunk_rows = 256;  // of the column sums
constexpr int slice_columns = 32;
constexpr int pack_rows = 32;  // of one thread block

struct half_t {
  uint16_t bits;
};
struct bfloat16_t {
  uint16_t bits;
};

// How an operand is stored, and computed with.
template <Operand operand>
struct Stored {
  using type = float;
  using compute = float;
  static __device__ float round(float x) { return operand == Operand::tf32 ? round_tf32(x) : x; }
};
template <>
struct Stored<Operand::float64> {
  using type = double;
  using compute = double;
  static __device__ double round(double x) { return x; }
};
template <>
struct Stored<Operand::float16> {
  using type = half_t;
  using compute = float;
  static __device__ half_t round(float x) { return {round_half(x)}; }
};
template <>
struct Stored<Operand::bfloat16> {
  using type = bfloat16_t;
  using compute = float;
  static __device__ bfloat16_t round(float x) { return {round_bf16(x)}; }
};

// Of numbers that are stored as they are computed with.
template <class T>
constexpr Operand exact_operand =
    std::is_same<T, double>::value ? Operand::float64 : Operand::float32;

__device__ inline float value_of(float x) { return x; }
__device__ inline double value_of(double x) { return x; }
__device__ inline float value_of(half_t x) { return from_half(x.bits); }
__device__ inline float value_of(bfloat16_t x) { return from_bf16(x.bits); }

// A float32 number as its parts in tf32: the upper one rounded to nearest, of the lower one what
// the tensor cores do not cut off. Their sum has 23 bits of the number's 24.
__device__ __forceinline__ float upper_tf32(float x) {
  return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
}
__device__ __forceinline__ float lower_tf32(float x) {
  return __uint_as_float(__float_as_uint(x - upper_tf32(x)) & 0xffffe000u);
}

// What products make of an element. The norms of radial kernels are those of the rows that products
// see: they cancel.
template <Operand operand>
__device__ __forceinline__ auto multiplied(typename Stored<operand>::type x) {
  if constexpr (operand == Operand::tf32x3) return upper_tf32(x) + lower_tf32(x);
  else return value_of(x);
}

// use(integral_constant<Operand>) for an operand known at run time.
template <class Use>
void with_operand(Operand operand, Use&& use) {
  switch (operand) {
    case Operand::float32: return use(std::integral_constant<Operand, Operand::float32>{});
    case Operand::float64: return use(std::integral_constant<Operand, Operand::float64>{});
    case Operand::float16: return use(std::integral_constant<Operand, Operand::float16>{});
    case Operand::bfloat16: return use(std::integral_constant<Operand, Operand::bfloat16>{});
    case Operand::tf32: return use(std::integral_constant<Operand, Operand::tf32>{});
    case Operand::tf32x3: return use(std::integral_constant<Operand, Operand::tf32x3>{});
  }
}

// Hands out pieces of the workspace; with no workspace it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class U>
  U* take(int64_t count) {
    U* piece = base_ ? reinterpret_cast<U*>(base_ + offset_) : nullptr;
    offset_ += size_t(round_up(count * int64_t(sizeof(U)), 256));
    return piece;
  }

  size_t bytes() const { return offset_; }

 private:
  char* base_;
  size_t offset_ = 0;
};

TermList term_list(const Problem& problem);

// The layout of a pass in its workspace: the same for the same sizes and wants.
struct Wants {
  bool shift;       // the result does not feel a shift of all points, whatever the kernel
  bool gradients;   // of the points
  bool potentials;  // of the weights
  int terms;        // whose gradients are wanted: all, or 0
};
template <class T>
Points<T> lay_out(const Problem& problem, const Launch& launch, const Wants& wants, Arena& arena);

// That of an MMD, with its pairs and estimator.
template <class T>
Points<T> lay_out(const Mmd2Args& args, const Mmd2Out& out, const Launch& launch, Arena& arena) {
  const Wants wants{feels_no_shift(args, out), out.v_x || out.v_y,
                    out.v_x_weights || out.v_y_weights, out.v_scales ? args.num_terms : 0};
  Points<T> points = lay_out<T>(args, launch, wants, arena);
  points.pairs = counted_pairs(args);
  points.estimator = args.estimator;
  points.num_moving -= args.constant_factors;
  return points;
}

// Prologue: mean, scale, packed rows, norms, weights, bandwidths. The sums of `points` are zero
// afterwards, and pulls and potentials.
template <class T>
void prepare(const Problem& problem, const Launch& launch, const Points<T>& points, int64_t size,
             double share);

// The medians that are wanted, into factor.median; between packing and resolving.
template <class T>
void find_medians(const Problem& problem, const Launch& launch, const Points<T>& points);

// Throws what the last launch left.
void check(cudaError_t status);

// Makes a device current for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;

 private:
  int before_, device_;
};

// Of two magnitudes; NaN before all others.
__device__ inline double larger(double a, double b) { return b > a || b != b ? b : a; }

// ---- sums of a thread block, in an order that is fixed ----

template <class T>
__device__ inline T warp_sum(T value) {
  for (int lane = 16; lane; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

// The sum over a block of `threads` threads, in every thread. All of them call it.
template <int threads, class T>
__device__ inline T block_sum(T value, T* shared) {
  static_assert(threads % 32 == 0 && threads <= 1024);
  value = warp_sum(value);
  __syncthreads();  // the room may still be read
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = 0;
  for (int warp = 0; warp < threads / 32; ++warp) sum += shared[warp];
  return sum;
}

// The largest over a block, likewise.
template <int threads>
__device__ inline double block_largest(double value, double* shared) {
  for (int lane = 16; lane; lane /= 2)
    value = larger(value, __shfl_xor_sync(0xffffffffu, value, lane));
  __syncthreads();  // the room may still be read
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  for (int warp = 0; warp < threads / 32; ++warp) value = larger(value, shared[warp]);
  return value;
}

}  // namespace fastmmd::cuda
