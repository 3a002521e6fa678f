// Inner products of a tile by products of whole warpgroups, from tiles that TMA brings (sm_90a).
#pragma once

#include "cuda/points.cuh"
#include "cuda/tile.cuh"

namespace fastmmd::cuda {

// A tile of 128 rows and columns by two warpgroups, 64 rows each. Both operands come through a ring
// in shared memory, 128 bytes of each of their rows at a time.
//
// No warp does nothing but load: one thread refills a stage of the ring once all warps have used it
// up. Two thread blocks share a multiprocessor, so that the products of one run while the other is
// busy with kernel values; the ring is as short as that needs. Its first stages lie at the end of
// shared memory, outside what the tile loop stages its weights in (the first one in any case, of
// 16-bit operands the second as well), and are filled for the next tile while that goes on.
//
// A tile needs 64 bytes of rows for each cycle of its products, about twice what the L2 cache gives
// a multiprocessor. The four blocks of a cluster take 2 x 2 tiles, so that each side of a tile is
// that of another one too: a block loads half of either of its sides and sends it to both. A stage
// is refilled once the blocks that receive it have all used it up.
template <Operand operand_, int cluster_ = 1>
class Wgmma {
 public:
  using T = float;
  static constexpr Operand operand = operand_;
  static constexpr int tile = 128;
  static constexpr int threads = 256;
  static constexpr int blocks = 2;
  static constexpr int elements = 64;
  static constexpr bool exact = false;
  static constexpr int oldest = 90;
  static constexpr int run = 64;
  static constexpr bool looks_ahead = true;
  static constexpr int cluster = cluster_;
  static_assert(cluster == 1 || cluster == 4);

 private:
  static constexpr int stages = 3;
  static constexpr int shares = cluster == 4 ? 2 : 1;      // of a side, that blocks load
  static constexpr int senders = 2 * shares - 1;           // blocks that a block has its rows from
  static constexpr int width = 128 / int(bytes(operand));  // features of one stage
  static constexpr int side_bytes = tile * 128, stage_bytes = 2 * side_bytes;
  static constexpr int last_stage = int(
      round_up(tile * stage_stride<T, tile>() * int(sizeof(T)) - (stages - 1) * stage_bytes, 1024));
  static constexpr int barriers = last_stage + stages * stage_bytes;  // where they lie
  static_assert(last_stage >= 0);

 public:
  static constexpr int shared_bytes = barriers + 2 * stages * int(sizeof(uint64_t));

  struct Params {
    TensorMap z;
  };
  static Params params(const Points<T>& points) {
    Params params;
    check(tensor_map_2d(&params.z, points.factors[0].z, int(bytes(operand)), points.padded(),
                        points.factors[0].depth, tile / shares));
    return params;
  }

  static __device__ __forceinline__ int row(int e) {
    return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + e % 4 / 2 * 8;
  }
  static __device__ __forceinline__ int column(int e) {
    return e / 4 * 8 + threadIdx.x % 4 * 2 + e % 2;
  }

  // Before the first tile and a barrier, of the cluster if there is one.
  __device__ __forceinline__ void begin(const Params& params, char* shared) {
    if (threadIdx.x == 0) {
      ptx::prefetch_tensor_map(&params.z);
      for (int s = 0; s < stages; ++s) {
        ptx::mbarrier::init(full(shared, s), 1);
        ptx::mbarrier::init(empty(shared, s), senders * threads / 32);
      }
      ptx::mbarrier::fence_init();
    }
  }

  // All products of the last tile are made. Shared memory is about to be written up to `stage`, so
  // the stages behind that can be filled again, and the others once hand_back() is called.
  template <int stage>
  __device__ __forceinline__ void look_ahead(const Params& params, const Factor<T>& f,
                                             const Tile& next, char* shared) {
    constexpr int clear = (barriers - round_up(stage, 1024)) / stage_bytes;
    const int steps = steps_of(f);
    const int loaded = steps < clear ? steps : clear;
    state_ |= uint32_t(loaded) << loaded_bit;
    give(0, loaded, shared);
    if (threadIdx.x == 0)
#pragma unroll 1
      for (int k = 0; k < loaded; ++k) load(params, next.I, next.J, k, k, shared);
    __syncwarp();  // products are made by whole warps
  }

  // By all threads, before the next tile.
  __device__ __forceinline__ void hand_back(const Factor<T>& f, char* shared) {
    ptx::fence_proxy_async();
    const int steps = steps_of(f), loaded = int(state_ >> loaded_bit);
    if (loaded) give(loaded, steps < stages ? steps : stages, shared);  // not of the first tile
  }

  __device__ __forceinline__ void multiply(const Params& params, const Factor<T>& f, int64_t I,
                                           int64_t J, char* shared, T (&u)[elements]) {
    const int steps = steps_of(f);
    if (threadIdx.x == 0)
#pragma unroll 1
      for (int k = state_ >> loaded_bit; k < steps && k < stages; ++k)
        load(params, I, J, k, k, shared);
    __syncwarp();
    state_ &= (1u << loaded_bit) - 1;
    const char* const lowest = shared + last_stage;
    const uint64_t a = ptx::wgmma::descriptor(lowest + ptx::warpgroup_index() * (side_bytes / 2));
    const uint64_t b = ptx::wgmma::descriptor(lowest + side_bytes);
    // Addresses are in the lower halves, and no sum of them carries.
    auto at = [](uint64_t descriptor, uint32_t bytes) {
      return descriptor >> 32 << 32 | (uint32_t(descriptor) + (bytes >> 4));
    };
    for (int first = 0; first < steps; first += stages)
#pragma unroll
      for (int s = 0; s < stages; ++s) {
        const int k = first + s, before = (s + stages - 1) % stages;
        if (k >= steps) break;
        wait(full(shared, s), s);
        ptx::wgmma::fence();
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const uint32_t bytes = uint32_t((stages - 1 - s) * stage_bytes + 32 * part);
          add_product(u, at(a, bytes), at(b, bytes), k + part > 0);
        }
        ptx::wgmma::commit();
        ptx::wgmma::wait<1>();  // for the last step
        if (k > 0 && k - 1 + stages < steps) {
          give(before, before + 1, shared);
          if (threadIdx.x == 0) load(params, I, J, k - 1 + stages, before, shared);
          __syncwarp();
        }
      }
    ptx::wgmma::wait<0>();
    ptx::wgmma::hold(u);
  }

 private:
  static __device__ __forceinline__ int steps_of(const Factor<T>& f) {
    return int((f.depth + width - 1) / width);
  }
  static __device__ __forceinline__ char* place(char* shared, int s) {
    return shared + last_stage + (stages - 1 - s) * stage_bytes;
  }
  static __device__ __forceinline__ uint64_t* full(char* shared, int s) {
    return reinterpret_cast<uint64_t*>(shared + barriers) + s;
  }
  static __device__ __forceinline__ uint64_t* empty(char* shared, int s) {
    return full(shared, stages + s);
  }

  // The warp has used up stages [first, end), and says so to all that send rows.
  static __device__ __forceinline__ void give(int first, int end, char* shared) {
    __syncwarp();
    if (threadIdx.x % 32 == 0)
      for (int s = first; s < end; ++s) {
        ptx::mbarrier::arrive(empty(shared, s));
        if constexpr (cluster == 4)
#pragma unroll
          for (int other = 1; other <= 2; ++other)
            ptx::mbarrier::arrive_cluster(empty(shared, s), ptx::cluster_rank() ^ other);
      }
    __syncwarp();
  }

  // Waits at a barrier for a phase that no one has waited for yet.
  __device__ __forceinline__ void wait(uint64_t* bar, int number) {
    ptx::mbarrier::wait(bar, state_ >> number & 1);
    state_ ^= 1u << number;
  }

  // Features of step k to stage s, once all have used up what is there.
  __device__ __forceinline__ void load(const Params& params, int64_t I, int64_t J, int k, int s,
                                       char* shared) {
    char* const to = place(shared, s);
    uint64_t* const bar = full(shared, s);
    wait(empty(shared, s), stages + s);
    ptx::mbarrier::arrive_expect(bar, stage_bytes);
    if constexpr (cluster == 1) {
      ptx::tma_load_2d(to, &params.z, bar, k * width, int(I));
      ptx::tma_load_2d(to + side_bytes, &params.z, bar, k * width, int(J));
    } else {
      // Ranks 0 and 1 have the same rows, 0 and 2 the same columns.
      const int rank = int(ptx::cluster_rank()), of_I = rank % 2, of_J = rank / 2;
      constexpr int half = tile / shares;
      ptx::tma_load_2d_multicast(to + of_I * side_bytes / shares, &params.z, bar, k * width,
                                 int(I) + of_I * half, uint16_t(3 << (rank & 2)));
      ptx::tma_load_2d_multicast(to + side_bytes + of_J * side_bytes / shares, &params.z, bar,
                                 k * width, int(J) + of_J * half, uint16_t(5 << (rank & 1)));
    }
  }

  static __device__ __forceinline__ void add_product(T (&u)[elements], uint64_t a, uint64_t b,
                                                     bool accumulate) {
    if constexpr (operand == Operand::bfloat16) ptx::wgmma_bf16<tile>(u, a, b, accumulate);
    else if constexpr (operand == Operand::float16) ptx::wgmma_half<tile>(u, a, b, accumulate);
    else ptx::wgmma_tf32<tile>(u, a, b, accumulate);
  }

  // Parities of the next waits, for full stages and then for empty ones, which all are at first;
  // and how many stages were filled ahead. In one register, as there are none to spare.
  uint32_t state_ = ((1u << stages) - 1) << stages;
  static constexpr int loaded_bit = 2 * stages;
};

}  // namespace fastmmd::cuda
