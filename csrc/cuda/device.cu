#include "cuda/device.h"

#include "cuda/points.cuh"

namespace fastmmd::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

}  // namespace

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // not sticky: the next call in this process must not report it
    return 0;
  }
  return count;
}

std::pair<int, int> compute_capability(int device) {
  return {attribute(cudaDevAttrComputeCapabilityMajor, device),
          attribute(cudaDevAttrComputeCapabilityMinor, device)};
}

int shared_bytes(int device) { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device); }

int l2_bytes(int device) { return attribute(cudaDevAttrL2CacheSize, device); }

int multiprocessors(int device) { return attribute(cudaDevAttrMultiProcessorCount, device); }

}  // namespace fastmmd::cuda
