// Inner products of a tile by mma.sync: tf32, float32 as three products of tf32, bfloat16, float16.
#pragma once

#include "cuda/tile.cuh"

namespace fastmmd::cuda {

// Fragments of the operands of mma.sync, the same for all types when counted in bytes: rows of 32
// bytes of k, a lane's registers of A being (row g, word t), (g + 8, t), (g, t + 4), (g + 8, t +
// 4), with g = lane / 4 and t = lane % 4, those of B (row g, word t), (g, t + 4).
template <Operand operand>
struct Fragment {
  static constexpr bool split = operand == Operand::tf32x3;
  // A tf32x3 fragment is its upper parts and its lower ones.
  static constexpr int parts = split ? 2 : 1;

  template <int registers>
  struct Of {
    uint32_t r[parts][registers];

    // Three operations for a split: of the lower part the tensor cores cut off the last bit
    // themselves. If x is NaN the lower part is, whatever the upper one has become.
    __device__ __forceinline__ void set(int i, uint32_t bits) {
      if constexpr (split) {
        r[0][i] = __float_as_uint(upper_tf32(__uint_as_float(bits)));
        r[parts - 1][i] = __float_as_uint(__uint_as_float(bits) - __uint_as_float(r[0][i]));
      } else {
        r[0][i] = bits;
      }
    }
  };
  using A = Of<4>;
  using B = Of<2>;

  static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    if constexpr (operand == Operand::bfloat16) ptx::mma_bf16(c, a, b);
    else if constexpr (operand == Operand::float16) ptx::mma_half(c, a, b);
    else ptx::mma_tf32(c, a, b);
  }

  // Whether rows of this many elements, with zeros behind, want the products of two lower parts
  // too: a sum of many terms drowns them in its own rounding.
  static __device__ __forceinline__ bool is_short(int64_t depth) {
    return split && depth <= depth_unit;
  }

  // c[n] += a b[n]; `all`: with the products of two lower parts.
  template <int columns>
  static __device__ __forceinline__ void multiply(float (&c)[columns][4], const A& a,
                                                  const B (&b)[columns], bool all) {
    if constexpr (split) {
      if (all)
#pragma unroll
        for (int n = 0; n < columns; ++n) multiply(c[n], a.r[1], b[n].r[1]);
#pragma unroll
      for (int n = 0; n < columns; ++n) multiply(c[n], a.r[1], b[n].r[0]);
#pragma unroll
      for (int n = 0; n < columns; ++n) multiply(c[n], a.r[0], b[n].r[1]);
    }
#pragma unroll
    for (int n = 0; n < columns; ++n) multiply(c[n], a.r[0], b[n].r[0]);
  }

  template <int columns>
  static __device__ __forceinline__ void add(float (&c)[columns][4],
                                             const float (&sum)[columns][4]) {
#pragma unroll
    for (int n = 0; n < columns; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) c[n][i] += sum[n][i];
  }
};

// Tiles of 128 x 128 by 2 x 4 warps of 64 x 32 each. The rows come to shared memory 64 bytes at a
// time, several steps ahead; the 16-byte chunks of a row change places with its number, so that
// eight rows under each other lie in different banks.
template <Operand operand_>
struct Mma {
  using T = float;
  static constexpr Operand operand = operand_;
  static constexpr int tile = 128, threads = 256, elements = 64;
  static constexpr int blocks = operand == Operand::tf32x3 ? 1 : 2;  // registers allow no more
  static constexpr bool exact = operand == Operand::tf32x3;
  static constexpr int oldest = 80;
  static constexpr int run = 16;

  struct Params {};
  static Params params(const Points<T>&) { return {}; }

  static constexpr int stages = 4, row_bytes = 64, side_bytes = tile * row_bytes;
  static constexpr int shared_bytes = stages * 2 * side_bytes;

  // Element e is register e % 4 of the product of 16 rows and 8 columns number e / 4.
  static __device__ __forceinline__ int row(int e) {
    return threadIdx.x / 128 * 64 + e / 16 * 16 + e % 4 / 2 * 8 + threadIdx.x % 32 / 4;
  }
  static __device__ __forceinline__ int column(int e) {
    return threadIdx.x / 32 % 4 * 32 + e / 4 % 4 * 8 + threadIdx.x % 4 * 2 + e % 2;
  }

  static __device__ __forceinline__ void multiply(const Params&, const Factor<T>& f, int64_t I,
                                                  int64_t J, char* shared, T (&u)[elements]) {
    using F = Fragment<operand>;
    const int lane = threadIdx.x % 32;
    // The rows whose addresses this lane brings to ldmatrix, and whether their second chunk.
    const int a_row = threadIdx.x / 128 * 64 + lane % 16, a_chunk = lane / 16;
    const int b_row = threadIdx.x / 32 % 4 * 32 + lane / 16 * 8 + lane % 8, b_chunk = lane / 8 % 2;
    const bool all = F::is_short(f.depth);
    float (&c)[4][4][4] = reinterpret_cast<float (&)[4][4][4]>(u);
#pragma unroll
    for (int e = 0; e < elements; ++e) u[e] = 0;
    pipeline(f, I, J, shared, [&](const char* z_I, const char* z_J) {
      // The tensor cores cut off what they cannot hold of a sum, so where the accuracy of float32
      // is wanted, long sums are made outside of them.
      [[maybe_unused]] float part[4][4][4] = {};
#pragma unroll
      for (int step = 0; step < row_bytes / 32; ++step) {
        typename F::B b[4];
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
          uint32_t r[4];
          ptx::ldmatrix4(r, z_J + place(b_row + n * 8, 2 * step + b_chunk));
#pragma unroll
          for (int i = 0; i < 4; ++i) b[n + i / 2].set(i % 2, r[i]);
        }
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          uint32_t r[4];
          ptx::ldmatrix4(r, z_I + place(a_row + m * 16, 2 * step + a_chunk));
          typename F::A a;
#pragma unroll
          for (int i = 0; i < 4; ++i) a.set(i, r[i]);
          if constexpr (F::split) F::multiply(part[m], a, b, all);
          else F::multiply(c[m], a, b, all);
        }
      }
      if constexpr (F::split)
#pragma unroll
        for (int m = 0; m < 4; ++m) F::add(c[m], part[m]);
    });
  }

  // For the few tiles with pairs close to each other.
  static __device__ __forceinline__ void differences(const Factor<T>& f, int64_t I, int64_t J,
                                                     char* shared, T (&u)[elements]) {
    static_assert(exact);
#pragma unroll
    for (int e = 0; e < elements; ++e) u[e] = 0;
    pipeline(f, I, J, shared, [&](const char* z_I, const char* z_J) {
#pragma unroll 1
      for (int k = 0; k < row_bytes / 4; ++k) {
        auto at = [&](const char* z, int r) {
          return *reinterpret_cast<const float*>(z + place(r, k / 4) + k % 4 * 4);
        };
        float a[8], b[8];
#pragma unroll
        for (int r = 0; r < 8; ++r) {
          a[r] = at(z_I, row(r / 2 * 16 + r % 2 * 2));
          b[r] = at(z_J, column(r / 2 * 4 + r % 2));
        }
#pragma unroll
        for (int e = 0; e < elements; ++e) {
          const float difference = a[e / 16 * 2 + e % 4 / 2] - b[e / 4 % 4 * 2 + e % 2];
          u[e] += difference * difference;
        }
      }
    });
  }

 private:
  static __device__ __forceinline__ int place(int row, int chunk) {
    return row * row_bytes + (chunk ^ (row / 2 % 4)) * 16;
  }

  // use(rows of I, rows of J) for one piece of the depth after another; all threads call it.
  template <class Use>
  static __device__ __forceinline__ void pipeline(const Factor<T>& f, int64_t I, int64_t J,
                                                  char* shared, const Use& use) {
    // The first half of the threads copies rows of I, the other half rows of J.
    const int64_t pitch = f.depth * int64_t(bytes(operand));
    const int pieces = int(pitch / row_bytes), side = threadIdx.x / (threads / 2);
    const int r = threadIdx.x % (threads / 2) / 4, chunk = threadIdx.x % 4;
    const char* const from =
        static_cast<const char*>(f.z) + ((side ? J : I) + r) * pitch + chunk * 16;
    char* const to = shared + side * side_bytes + place(r, chunk);
    auto fetch = [&](int piece) {
      if (piece < pieces)
#pragma unroll
        for (int rows = 0; rows < tile; rows += threads / 8)
          ptx::cp_async16(to + piece % stages * 2 * side_bytes + rows * row_bytes,
                          from + rows * pitch + int64_t(piece) * row_bytes);
      ptx::cp_async_commit();  // groups are counted, so there is one even with nothing in it
    };
#pragma unroll
    for (int piece = 0; piece < stages - 1; ++piece) fetch(piece);
#pragma unroll 1
    for (int piece = 0; piece < pieces; ++piece) {
      ptx::cp_async_wait<stages - 2>();
      __syncthreads();  // also: nobody reads the room that is filled next
      fetch(piece + stages - 1);
      const char* const z_I = shared + piece % stages * 2 * side_bytes;
      use(z_I, z_I + side_bytes);
    }
  }
};

}  // namespace fastmmd::cuda
