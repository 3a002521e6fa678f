// Inner products of a tile by multiply-adds of each thread, in float32 or float64, on any GPU.
#pragma once

#include "cuda/tile.cuh"

namespace fastmmd::cuda {

// A tile of `tile_` rows and columns by a square of threads, each with R x R elements. Threads own
// groups of up to four neighbouring rows and columns, so that what a warp reads of shared memory
// is read as vectors without conflicts.
template <Operand operand_, int tile_, int R>
struct Simt {
  static constexpr Operand operand = operand_;
  using E = typename Stored<operand>::type;
  using T = typename Stored<operand>::compute;
  static constexpr int tile = tile_;
  static constexpr int side = tile / R;
  static constexpr int threads = side * side;
  static constexpr int blocks = R == 8 ? 4 : 2;  // registers allow no more
  static constexpr int elements = R * R;
  static constexpr bool exact = true;
  static constexpr int oldest = 75;

  struct Params {};
  static Params params(const Points<T>&) { return {}; }

  static constexpr int group = R < 4 ? R : 4;
  static constexpr int step = R < 4 ? 16 : 8;  // features at a time
  static constexpr int piece = 64;             // features of a sum
  static constexpr int stride = tile + 4;
  static constexpr int shared_bytes = 2 * 2 * step * stride * int(sizeof(T));

  static __device__ __forceinline__ int position(int thread, int r) {
    return r / group * (side * group) + thread * group + r % group;
  }
  static __device__ __forceinline__ int row(int e) { return position(threadIdx.x / side, e / R); }
  static __device__ __forceinline__ int column(int e) {
    return position(threadIdx.x % side, e % R);
  }

  static __device__ __forceinline__ void multiply(const Params&, const Factor<T>& f, int64_t I,
                                                  int64_t J, char* shared, T (&u)[elements]) {
    contract(f, I, J, shared, u, [](T& sum, T a, T b) { sum += a * b; });
  }

  static __device__ __forceinline__ void differences(const Factor<T>& f, int64_t I, int64_t J,
                                                     char* shared, T (&u)[elements]) {
    contract(f, I, J, shared, u, [](T& sum, T a, T b) {
      const T difference = a - b;
      sum += difference * difference;
    });
  }

 private:
  static constexpr int vector = 16 / int(sizeof(E));
  struct alignas(16) Vector {
    E e[vector];
  };
  static constexpr int vectors = 2 * tile * step / vector;  // of both sides, of one step
  static constexpr int loads = vectors / threads;
  static_assert(vectors % threads == 0 && tile % (side * group) == 0);

  // u[e] = sum_k of add(z_ik, z_jk), piece by piece, as the rounding of long sums adds up. Two
  // buffers: one is filled while the other is used up.
  template <class Add>
  static __device__ __forceinline__ void contract(const Factor<T>& f, int64_t I, int64_t J,
                                                  char* shared, T (&u)[elements], const Add& add) {
    T* const rooms = reinterpret_cast<T*>(shared);
    const E* const z = static_cast<const E*>(f.z);
    Vector next[loads];
    auto fetch = [&](int64_t k) {
#pragma unroll
      for (int l = 0; l < loads; ++l) {
        const int v = threadIdx.x + l * threads, r = v / (step / vector);
        const int64_t row = r < tile ? I + r : J + r - tile;
        next[l] =
            *reinterpret_cast<const Vector*>(z + row * f.depth + k + v % (step / vector) * vector);
      }
    };
    auto put = [&](T* room) {
#pragma unroll
      for (int l = 0; l < loads; ++l) {
        const int v = threadIdx.x + l * threads, r = v / (step / vector);
        const int k = v % (step / vector) * vector, second = r >= tile;
#pragma unroll
        for (int c = 0; c < vector; ++c)
          room[(second * step + k + c) * stride + r % tile] = value_of(next[l].e[c]);
      }
    };
    T part[elements];
#pragma unroll
    for (int e = 0; e < elements; ++e) u[e] = part[e] = 0;
    fetch(0);
    int which = 0;
    for (int64_t k = 0; k < f.depth; k += step, which ^= 1) {
      T* const room = rooms + which * 2 * step * stride;
      put(room);
      __syncthreads();
      if (k + step < f.depth) fetch(k + step);
#pragma unroll
      for (int s = 0; s < step; ++s) {
        T a[R], b[R];
#pragma unroll
        for (int r = 0; r < R; ++r) {
          a[r] = room[s * stride + position(threadIdx.x / side, r)];
          b[r] = room[(step + s) * stride + position(threadIdx.x % side, r)];
        }
#pragma unroll
        for (int e = 0; e < elements; ++e) add(part[e], a[e / R], b[e % R]);
      }
      if ((k + step) % piece && k + step < f.depth) continue;
#pragma unroll
      for (int e = 0; e < elements; ++e) {
        u[e] += part[e];
        part[e] = 0;
      }
    }
  }
};

using SimtFloat = Simt<Operand::float32, 64, 8>;
using SimtDouble = Simt<Operand::float64, 64, 4>;
// Where a tile of statistics has to lie beside the stage, in the 64 KiB of the least GPU.
using SimtDoubleStaged = Simt<Operand::float64, 32, 2>;

}  // namespace fastmmd::cuda
