// The road of small samples: two launches for value and gradients.
#pragma once

#include "cuda/mmd.h"

namespace fastmmd::cuda {

// Bytes of Mmd2Args::workspace for Mmd2::small(), of the whole batch.
size_t small_workspace(const Mmd2Args& args, const Mmd2Out& out);

}  // namespace fastmmd::cuda
