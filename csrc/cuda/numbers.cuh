// Elements of the caller's tensors, and what the kernel families of kernels.h ask for.
#pragma once

#include "cuda/runtime.cuh"

namespace fastmmd::cuda {

// Element `index` of a tensor of the caller.
template <class T>
__device__ __forceinline__ T to_float(const void* data, Dtype dtype, int64_t index) {
  switch (dtype) {
    case Dtype::float64: return static_cast<T>(static_cast<const double*>(data)[index]);
    case Dtype::float16: return T(from_half(static_cast<const uint16_t*>(data)[index]));
    case Dtype::bfloat16: return T(from_bf16(static_cast<const uint16_t*>(data)[index]));
    default: return T(static_cast<const float*>(data)[index]);
  }
}

template <class T>
struct DeviceMath;

template <>
struct DeviceMath<float> {
  // For x <= 0, within 2 ulp; what would be subnormal is 0. 2^h with h = x log2(e) rounded, and
  // what the rounding left out in first order. The clamp keeps an infinite x from giving inf - inf.
  static __device__ __forceinline__ float exp(float x) {
    x = ptx::max_nan(x, -128.0f);
    const float h = x * 1.44269504f;
    const float e = ptx::exp2_approx(h);
    float rest = fmaf(h, -0.693147182f, x);
    rest = fmaf(h, 1.90465421e-9f, rest);
    return fmaf(e, rest, e);
  }
  static __device__ __forceinline__ float log1p(float x) { return log1pf(x); }
  static __device__ __forceinline__ float sqrt(float x) { return ptx::sqrt_approx(x); }
  static __device__ __forceinline__ float over_positive(float a, float b) {
    return b == 0 ? 0.0f : a / b;
  }
};

template <>
struct DeviceMath<double> {
  static __device__ __forceinline__ double exp(double x) { return ::exp(x); }
  static __device__ __forceinline__ double log1p(double x) { return ::log1p(x); }
  static __device__ __forceinline__ double sqrt(double x) { return ::sqrt(x); }
  static __device__ __forceinline__ double over_positive(double a, double b) {
    return b == 0 ? 0.0 : a / b;
  }
};

}  // namespace fastmmd::cuda
