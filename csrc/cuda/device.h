// What this build and this machine offer of CUDA. Nothing here waits for a device.
#pragma once

#include <utility>

namespace fastmmd::cuda {

int driver_version();   // newest CUDA the driver serves, 1000 * major + 10 * minor; 0 = no driver
int runtime_version();  // CUDA the module was built with, in the same form
int device_count();     // devices that can be used; 0 also where the driver is absent or too old

// Of one device; these throw Error where there is none of this number.
std::pair<int, int> compute_capability(int device);
int shared_bytes(int device);  // that a thread block may have
int l2_bytes(int device);
int multiprocessors(int device);

}  // namespace fastmmd::cuda
