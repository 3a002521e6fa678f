// The exact lower median of |z_i - z_j|^2 over i < j, or of all n^2 of x, without storing them.
//
// Non-negative floating-point numbers order as their bit patterns do. Each pass over the tiles
// counts, of the distances whose leading bits are known to be those of the median, what the next
// bits are. Counts are integers: the result does not depend on the order of anything. The number
// of passes is fixed, as the host is not to wait for a count.
#include <algorithm>
#include <type_traits>

#include "cuda/simt.cuh"
#include "cuda/tiles.cuh"
#include "cuda/values.cuh"

namespace fastmmd::cuda {
namespace {

constexpr int bins = 2048;
// Counts lie in the room for sums, which nobody uses before the bandwidths are known.
static_assert(sizeof(double) == sizeof(uint64_t) && 3 * sum_rows >= bins + 3);

template <class T>
using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

__device__ inline uint32_t bits_of(float D) { return __float_as_uint(D + 0.0f); }  // -0 becomes 0
__device__ inline uint64_t bits_of(double D) { return uint64_t(__double_as_longlong(D + 0.0)); }
__device__ inline float number_of(uint32_t key) { return __uint_as_float(key); }
__device__ inline double number_of(uint64_t key) { return __longlong_as_double((long long)key); }

// Between passes: the bins, how many distances are NaN, the leading bits of the median, and its
// rank among the distances that have them.
struct Search {
  uint64_t* counts;

  __device__ uint64_t& bin(int b) const { return counts[b]; }
  __device__ uint64_t& undefined() const { return counts[bins]; }
  __device__ uint64_t& prefix() const { return counts[bins + 1]; }
  __device__ uint64_t& rank() const { return counts[bins + 2]; }
};

// The bits [shift, shift + width) of the keys.
struct Digit {
  int shift, width;
};

// The leading bit is the sign.
template <class T>
constexpr int num_digits = sizeof(T) == 4 ? 3 : 6;

template <class T>
Digit digit(int pass) {
  const int left = 8 * int(sizeof(T)) - 1 - 11 * pass;
  return left < 11 ? Digit{0, left} : Digit{left - 11, 11};
}

constexpr int search_threads = 256;

__global__ void __launch_bounds__(search_threads) start_kernel(Search search, uint64_t rank) {
  for (int b = threadIdx.x; b < bins; b += search_threads) search.bin(b) = 0;
  if (threadIdx.x == 0) {
    search.undefined() = search.prefix() = 0;
    search.rank() = rank;
  }
}

__device__ inline void add(uint64_t* to, uint64_t count) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), (unsigned long long)count);
}

// Tiles of which the bins in shared memory, of 32 bits, can hold all pairs.
constexpr int tiles_between_sums = 1 << 19;

template <class P>
constexpr int count_bytes = std::max(P::shared_bytes, P::tile* P::tile* int(sizeof(typename P::T)));

template <class P>
__global__ void __launch_bounds__(P::threads, P::blocks)
    count_kernel(const __grid_constant__ Factor<typename P::T> f, Rows rows, int64_t sides,
                 Search search, Digit digit) {
  using T = typename P::T;
  constexpr int tile = P::tile;
  __shared__ Sides<T, tile> sides_of_tile;
  __shared__ uint32_t shared_bins[bins];
  __shared__ uint32_t undefined;
  char* const shared = dynamic_shared();
  const uint64_t prefix = search.prefix();
  for (int b = threadIdx.x; b < bins; b += P::threads) shared_bins[b] = 0;
  if (threadIdx.x == 0) undefined = 0;
  auto sum_up = [&] {
    __syncthreads();
    for (int b = threadIdx.x; b < bins; b += P::threads) {
      if (shared_bins[b]) add(&search.bin(b), shared_bins[b]);
      shared_bins[b] = 0;
    }
    if (threadIdx.x == 0) {
      if (undefined) add(&search.undefined(), undefined);
      undefined = 0;
    }
  };

  const int64_t tiles = sides * (sides + 1) / 2;
  int since = 0;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const Tile at = pooled_tile(rows, triangle(t), tile);
    const int I = existing(rows, at.I, tile), J = existing(rows, at.J, tile);
    T u[P::elements];
    __syncthreads();
    for (int r = threadIdx.x; r < 2 * tile; r += P::threads)
      sides_of_tile.norms[r >= tile][r % tile] = f.norms[(r < tile ? at.I : at.J) + r % tile];
    P::multiply({}, f, at.I, at.J, shared, u);
    __syncthreads();
    distances<P>(f, at, T(0), sides_of_tile, shared, u);
    // From registers to shared memory, as a loop over registers is code for each; threads read none
    // but their own.
    T* const statistics = reinterpret_cast<T*>(shared) + threadIdx.x;
#pragma unroll
    for (int e = 0; e < P::elements; ++e) statistics[e * P::threads] = u[e];
    // Neighbouring distances often fall into one bin: they are counted together.
    uint32_t run = 0;
    int last = 0;
#pragma unroll 4
    for (int e = 0; e < P::elements; ++e) {
      const int i = P::row(e), j = P::column(e);
      if (i >= I || j >= J || at.I + i >= at.J + j) continue;
      const T D = statistics[e * P::threads];
      if (D != D) {
        undefined = 1;  // how many does not matter
        continue;
      }
      const Key<T> key = bits_of(D);
      if (uint64_t(key >> digit.shift) >> digit.width != prefix) continue;
      const int bin = int(key >> digit.shift) & ((1 << digit.width) - 1);
      if (bin != last) {
        if (run) atomicAdd(&shared_bins[last], run);
        last = bin;
        run = 0;
      }
      ++run;
    }
    if (run) atomicAdd(&shared_bins[last], run);
    if (++since == tiles_between_sums) {
      sum_up();
      since = 0;
    }
  }
  sum_up();
}

// The bin that holds the rank; at the last digit, the median. One block.
template <class T>
__global__ void __launch_bounds__(search_threads)
    narrow_kernel(Search search, Digit digit, double* median) {
  constexpr int share = bins / search_threads;
  __shared__ uint64_t sums[search_threads];
  uint64_t own[share], sum = 0;
#pragma unroll
  for (int b = 0; b < share; ++b) {
    own[b] = search.bin(threadIdx.x * share + b);
    search.bin(threadIdx.x * share + b) = 0;
    sum += own[b];
  }
  sums[threadIdx.x] = sum;
  const uint64_t rank = search.rank(), prefix = search.prefix();
  __syncthreads();
  uint64_t below = 0;
  for (int t = 0; t < int(threadIdx.x); ++t) below += sums[t];
  // In no thread, if distances are NaN and the rank is beyond the others.
#pragma unroll
  for (int b = 0; b < share; ++b) {
    if (below <= rank && rank < below + own[b]) {
      const uint64_t found = prefix << digit.width | uint64_t(threadIdx.x * share + b);
      search.prefix() = found;
      search.rank() = rank - below;
      if (digit.shift == 0) *median = double(number_of(Key<T>(found)));
    }
    below += own[b];
  }
  if (digit.shift == 0) {
    __syncthreads();
    if (threadIdx.x == 0 && search.undefined()) *median = nan("");
  }
}

__global__ void zero_kernel(double* median) { *median = 0; }

template <Operand operand, class T>
void find(const Factor<T>& f, Rows rows, bool all, void* room, const Launch& launch) {
  using P = Simt<operand, 64, sizeof(T) == 8 ? 4 : 8>;
  const cudaStream_t stream = static_cast<cudaStream_t>(launch.stream);
  if (all) rows.m = 0;
  const uint64_t n = uint64_t(rows.n + rows.m), pairs = n * (n - 1) / 2;
  uint64_t rank = (pairs - 1) / 2;
  double* const median = f.median + all;
  if (all) {  // the zeros of the diagonal come first, then every pair twice
    const uint64_t middle = (n * n - 1) / 2;
    if (middle < n) return check(fastmmd::cuda::launch(zero_kernel, 1, 1, 0, stream, median));
    rank = (middle - n) / 2;
  }
  const Search search{static_cast<uint64_t*>(room)};
  check(fastmmd::cuda::launch(start_kernel, 1, search_threads, 0, stream, search, rank));
  const int64_t sides = pooled_sides(rows, P::tile);
  const unsigned blocks = grid_of(sides * (sides + 1) / 2, P::blocks, launch);
  for (int pass = 0; pass < num_digits<T>; ++pass) {
    const Digit digit = cuda::digit<T>(pass);
    check(fastmmd::cuda::launch(count_kernel<P>, blocks, P::threads, count_bytes<P>, stream, f,
                                rows, sides, search, digit));
    check(fastmmd::cuda::launch(narrow_kernel<T>, 1, search_threads, 0, stream, search, digit,
                                median));
  }
}

}  // namespace

template <class T>
void find_medians(const Problem& problem, const Launch& launch, const Points<T>& points) {
  for (int l = 0; l < points.num_factors; ++l) {
    const Factor<T>& f = points.factors[l];
    for (Unit unit : {Unit::median, Unit::x_median}) {
      bool wanted = false;
      for (int t = f.first_term; t < f.first_term + f.num_terms; ++t)
        wanted |= problem.terms[t].unit == unit;
      if (!wanted) continue;
      with_operand(launch.operand, [&](auto operand) {
        // What is stored as float32 is read as such.
        constexpr bool plain = std::is_same_v<typename Stored<operand>::type, float>;
        constexpr Operand read = plain ? Operand::float32 : operand();
        if constexpr (std::is_same_v<typename Stored<operand>::compute, T>)
          find<read>(f, points.rows, unit == Unit::x_median, points.sums, launch);
      });
    }
  }
}

template void find_medians(const Problem&, const Launch&, const Points<float>&);
template void find_medians(const Problem&, const Launch&, const Points<double>&);

}  // namespace fastmmd::cuda
