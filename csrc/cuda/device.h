// What this build and this machine offer of CUDA.
#pragma once

namespace fastmmd::cuda {

int driver_version();   // newest CUDA the driver serves, 1000 * major + 10 * minor; 0 = no driver
int runtime_version();  // CUDA the module was built with, in the same form
int device_count();     // devices that can be used; 0 also where the driver is absent or too old

}  // namespace fastmmd::cuda
