// Random numbers that depend on seed, stream and position alone; on either side.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace fastmmd {

// A stream of random numbers of its own for each vector: splitmix64, whose outputs pass the usual
// batteries of tests (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
// OOPSLA 2014). Any of its numbers can be had without those before it.
class Random {
 public:
  FASTMMD_INLINE Random(uint64_t seed, uint64_t stream) : state_(mix(seed) ^ mix(~stream)) {}

  FASTMMD_INLINE uint64_t number(uint64_t index) const {
    return mix(state_ + (index + 1) * 0x9e3779b97f4a7c15);
  }

  // In [0, bound), uniform but for 2^-64 bound.
  FASTMMD_INLINE uint64_t below(uint64_t index, uint64_t bound) const {
    return uint64_t((static_cast<unsigned __int128>(number(index)) * bound) >> 64);
  }

 private:
  static FASTMMD_INLINE uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  uint64_t state_;
};

}  // namespace fastmmd
