#include "cuda/device.h"

#include <cuda_runtime_api.h>

namespace fastmmd::cuda {

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

}  // namespace fastmmd::cuda
