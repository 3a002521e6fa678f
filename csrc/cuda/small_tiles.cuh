// The second launch for small samples: R rows against all, see small.cuh.
#pragma once

#include "cuda/small_resolve.cuh"

namespace fastmmd::cuda {

// What the warps of a block tell each other beside rows.
template <int R>
struct SmallTold {
  Segment<float> segments[small_terms];
  SmallResolved resolved;
  SmallRowSums<R> row_sums;
};

// The shared memory of small_tiles_kernel.
template <int R>
struct SmallRoom {
  static constexpr int room_floats = product_threads<R> * 16, norm_floats = product_threads<R> * 4;
  static constexpr size_t told_bytes = (sizeof(SmallTold<R>) + 15) / 16 * 16;
  SmallTold<R>& told;
  float* room;       // [shares][4][columns] what threads have summed up
  float* norm_room;  // [shares][padded]; then [R] the sums of gradient weights
  float* w;          // [padded][R] distances, gradient weights
  float* partial;    // [padded][R] products, of the block's columns; in a cluster others read it
  float* norms;      // [padded] likewise
  float* weights;    // [padded]

  __device__ SmallRoom(char* shared, int padded, int cluster)
      : told(*reinterpret_cast<SmallTold<R>*>(shared)) {
    room = reinterpret_cast<float*>(shared + told_bytes);
    norm_room = room + room_floats;
    w = norm_room + norm_floats;
    partial = cluster > 1 ? w + padded * R : w;
    norms = partial + padded * R;
    weights = norms + padded;
  }
  static constexpr size_t bytes(int padded, bool shares) {
    const size_t rows = size_t(padded) * (R * (shares ? 2 : 1) + 2);
    return told_bytes + (room_floats + norm_floats + rows) * sizeof(float);
  }
};

// All threads of the blocks that share the products of a tile.
__device__ __forceinline__ void small_meet(const Small& s) {
  if (s.cluster > 1) ptx::cluster_sync();
  else __syncthreads();
}

// What these blocks have at this place, added up in the order of their ranks.
__device__ __forceinline__ float small_total(const float* own, int cluster) {
  if (cluster == 1) return *own;
  float of[max_cluster], total = 0;
#pragma unroll
  for (int rank = 0; rank < max_cluster; ++rank)
    if (rank < cluster) of[rank] = ptx::load_cluster(own, rank);
#pragma unroll
  for (int rank = 0; rank < max_cluster; ++rank)
    if (rank < cluster) total += of[rank];
  return total;
}
__device__ __forceinline__ float4 small_total(const float4* own, int cluster) {
  if (cluster == 1) return *own;
  float4 of[max_cluster], total{0, 0, 0, 0};
#pragma unroll
  for (int rank = 0; rank < max_cluster; ++rank)
    if (rank < cluster) of[rank] = ptx::load_cluster(own, rank);
#pragma unroll
  for (int rank = 0; rank < max_cluster; ++rank) {
    if (rank >= cluster) continue;
    total.x += of[rank].x, total.y += of[rank].y;
    total.z += of[rank].z, total.w += of[rank].w;
  }
  return total;
}

// add(n, a, b) for n = 0, 1, ... count - 1: R floats from `rows`, of which all threads of a warp
// read the same, and four from `own`, of which the next `ahead` are on their way meanwhile. Zeros
// fill up the last round.
template <int R, int ahead, class Add>
__device__ __forceinline__ void small_loop(int count, const float* rows, int64_t rows_step,
                                           const float* own, int64_t own_step, const Add& add) {
  float4 next[ahead];
  auto fetch = [&](int n) {
#pragma unroll
    for (int u = 0; u < ahead; ++u, own += own_step) {
      next[u] = {0, 0, 0, 0};
      if (n + u < count) next[u] = *reinterpret_cast<const float4*>(own);
    }
  };
  fetch(0);
#pragma unroll 1
  for (int n = 0; n < count; n += ahead) {
    float4 b[ahead];
#pragma unroll
    for (int u = 0; u < ahead; ++u) b[u] = next[u];
    fetch(n + ahead);
#pragma unroll
    for (int u = 0; u < ahead; ++u, rows += rows_step) {
      float a[R] = {};
      if (n + u < count)
#pragma unroll
        for (int r = 0; r < R; r += 4) {
          const float4 four = *reinterpret_cast<const float4*>(rows + r);
          a[r] = four.x, a[r + 1] = four.y, a[r + 2] = four.z, a[r + 3] = four.w;
        }
      add(n + u, a, b[u]);
    }
  }
}

// use(r, c, sum over shares of sum[r]'s element c), r a row of the block and c one of `columns`
// columns. Each share's threads hold four columns each. By the product threads.
template <int R, class Use>
__device__ __forceinline__ void add_shares(const float4 (&sum)[R], int share, int shares, int four,
                                           int columns, float* room, const Use& use) {
#pragma unroll
  for (int r = 0; r < R; r += 4) {
    if (r) ptx::named_barrier_sync(products_barrier, product_threads<R>);
    if (share < shares)
#pragma unroll
      for (int h = 0; h < 4; ++h)
        *reinterpret_cast<float4*>(room + (share * 4 + h) * columns + four) = sum[r + h];
    ptx::named_barrier_sync(products_barrier, product_threads<R>);
#pragma unroll 1
    for (int e = threadIdx.x; e < 4 * columns; e += product_threads<R>) {
      const int h = e / columns, c = e - h * columns;
      float total = 0;
#pragma unroll 4
      for (int of = 0; of < shares; ++of) total += room[(of * 4 + h) * columns + c];
      use(r + h, c, total);
    }
  }
}

// partial[j][r] = <z_I+r, z_j> over columns [begin, end), with the norms; or, from differences,
// |z_I+r - z_j|^2.
template <int R, bool differences>
__device__ __forceinline__ void small_products(const Small& s, int64_t b, int I, int begin, int end,
                                               const SmallRoom<R>& rooms) {
  const SmallResolved& resolved = rooms.told.resolved;
  const int fours = s.padded / 4, shares = product_threads<R> / fours;
  const int share = int(threadIdx.x) / fours, j = (int(threadIdx.x) - share * fours) * 4;
  const float* const columns = s.columns + (b * s.width + begin + share) * s.padded;
  const int64_t step = int64_t(shares) * s.padded;
  float4 sum[R], norm{0, 0, 0, 0};
#pragma unroll
  for (int r = 0; r < R; ++r) sum[r] = {0, 0, 0, 0};
  if (share < shares)
    // The block's own rows are a part of all, and come from the L1 cache.
    small_loop<R, differences ? 1 : small_ahead<R>>(
        (end - begin - share + shares - 1) / shares, columns + I, step, columns + j, step,
        [&](int n, const float (&a)[R], const float4& of_j) {
          if constexpr (differences) {
            float scale = 1;
            if (!resolved.plain) {
              const int column = min(begin + share + n * shares, end - 1);
              scale =
                  ldexpf(1, s.exponent[b * s.slices + column / small_columns] - resolved.exponent);
            }
#pragma unroll
            for (int r = 0; r < R; ++r) {
              const float4 D{(a[r] - of_j.x) * scale, (a[r] - of_j.y) * scale,
                             (a[r] - of_j.z) * scale, (a[r] - of_j.w) * scale};
              sum[r].x = fmaf(D.x, D.x, sum[r].x);
              sum[r].y = fmaf(D.y, D.y, sum[r].y);
              sum[r].z = fmaf(D.z, D.z, sum[r].z);
              sum[r].w = fmaf(D.w, D.w, sum[r].w);
            }
          } else {
#pragma unroll
            for (int r = 0; r < R; ++r) multiply_add(sum[r], a[r], of_j);
            norm.x = fmaf(of_j.x, of_j.x, norm.x);
            norm.y = fmaf(of_j.y, of_j.y, norm.y);
            norm.z = fmaf(of_j.z, of_j.z, norm.z);
            norm.w = fmaf(of_j.w, of_j.w, norm.w);
          }
        });
  if (!differences && share < shares)
    *reinterpret_cast<float4*>(rooms.norm_room + share * s.padded + j) = norm;
  add_shares<R>(sum, share, shares, j, s.padded, rooms.room,
                [&](int r, int c, float total) { rooms.partial[c * R + r] = total; });
  if (!differences)
#pragma unroll 1
    for (int i = threadIdx.x; i < s.padded; i += product_threads<R>) {
      float total = 0;
#pragma unroll 4
      for (int of = 0; of < shares; ++of) total += rooms.norm_room[of * s.padded + i];
      rooms.norms[i] = total;
    }
}

// k and its slope. Kernels of one chain of Gaussians alone find it in registers.
template <bool gaussian>
struct SmallEvaluate {
  const Segment<float>* segments;
  int count;
  Chain<true, float> first;

  __device__ SmallEvaluate(const Segment<float>* segments, int count)
      : segments(segments), count(count), first(segments[0], 1.0f) {}

  __device__ __forceinline__ void operator()(float D, float& k, float& dk) const {
    using Math = DeviceMath<float>;
    k = dk = 0;
    if constexpr (gaussian) first(D, k, dk);
#pragma unroll 1
    for (int i = gaussian; i < count; ++i)
      if constexpr (gaussian) Gaussian::grad<Math>(D, segments[i], k, dk);
      else
        dispatch(segments[i].family, [&](auto family) {
          decltype(family)::template grad<Math>(D, segments[i], k, dk);
        });
  }
};

template <int R, bool gaussian>
__global__ void __launch_bounds__(small_threads<R>, 1)
    small_tiles_kernel(const __grid_constant__ Small s) {
  static_assert(R % 4 == 0 && 32 % R == 0);
  const SmallRoom<R> rooms(dynamic_shared(), s.padded, s.cluster);
  const SmallResolved& resolved = rooms.told.resolved;
  SmallRowSums<R>& row_sums = rooms.told.row_sums;
  const int64_t b = blockIdx.y;
  const int chunk = int(blockIdx.x) % s.chunks, I = int(blockIdx.x) / s.chunks * R;
  const int count = s.count(), last = I + R < count ? I + R : count;
  const int begin = chunk * s.chunk;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const bool multiplies = threadIdx.x < product_threads<R>, clustered = s.cluster > 1;
  const bool moves = (s.out.v_x && !s.domain(I)) || (s.out.v_y && s.domain(last - 1));
  if (chunk && !moves && !clustered) return;

  // Products are of all columns, or of a cluster's share of them.
  const int first = clustered ? begin : 0;
  const int past = clustered && begin + s.chunk < s.d ? begin + s.chunk : s.d;
  if (!multiplies) small_resolve(s, b, rooms.told.segments, rooms.told.resolved, rooms.weights);
  else small_products<R, false>(s, b, I, first, past, rooms);
  small_meet(s);

  bool again = !resolved.plain;
  if (multiplies) {  // a thread has the same four rows of the block with many others
    constexpr int fours = R / 4, step = product_threads<R> / fours;
    const int four = int(threadIdx.x) % fours * 4;
    const float4 own =
        small_total(reinterpret_cast<const float4*>(rooms.norms + I + four), s.cluster);
#pragma unroll 2
    for (int j = int(threadIdx.x) / fours; j < s.padded; j += step) {
      const float of_j = small_total(rooms.norms + j, s.cluster);
      const float4 dots =
          small_total(reinterpret_cast<const float4*>(rooms.partial + j * R + four), s.cluster);
      auto distance = [&](int i, float of_i, float dot) {
        const float norms = of_i + of_j;
        float D = norms - 2 * dot;
        D = D < 0 || i == j ? 0.0f : D;  // NaN stays
        again |= i != j && D < float(near) * (norms - resolved.near_offset);
        return D;
      };
      const int i = I + four;
      *reinterpret_cast<float4*>(rooms.w + j * R + four) = {
          distance(i, own.x, dots.x), distance(i + 1, own.y, dots.y),
          distance(i + 2, own.z, dots.z), distance(i + 3, own.w, dots.w)};
    }
  }
  // The same in all blocks of a cluster, which have seen the same distances.
  const bool apart = __syncthreads_or(again);
  if (apart) {
    small_meet(s);  // the products have been read
    if (multiplies) small_products<R, true>(s, b, I, first, past, rooms);
    small_meet(s);
    if (multiplies && clustered)
#pragma unroll 1
      for (int at = int(threadIdx.x) * 4; at < s.padded * R; at += product_threads<R> * 4)
        *reinterpret_cast<float4*>(rooms.w + at) =
            small_total(reinterpret_cast<const float4*>(rooms.partial + at), s.cluster);
    __syncthreads();
  }
  // No block ends before the others have read what they want of it.
  if (clustered) ptx::cluster_arrive_relaxed();
  if (chunk && !moves) return ptx::cluster_wait();

  // Elements of w, of which each thread has those of one row.
  const int r = int(threadIdx.x) % R, i = I + r, elements = s.padded * R;
  if (multiplies) {
    double same = 0, across = 0, pull = 0;
    const int domain = s.domain(i);
    const SmallEvaluate<gaussian> evaluate(rooms.told.segments, resolved.num_segments);
    const float a_i = i < count ? rooms.weights[i] : 0.0f;
#pragma unroll(gaussian&& R > 4 ? 4 : 1)
    for (int e = threadIdx.x; e < elements; e += product_threads<R>) {
      const int j = e / R;
      float g = 0;
      if (i < count && j < count && i != j) {
        const bool other = s.domain(j) != domain;
        const float a = rooms.weights[j];
        float k, dk;
        evaluate(rooms.w[e], k, dk);
        g = resolved.slope[other ? 2 : domain] * (a_i * a) * dk;
        (other ? across : same) += double(a * k);
        pull += double(g);
      }
      rooms.w[e] = g;
    }
#pragma unroll
    for (int step = 16; step >= R; step /= 2) {
      same += __shfl_xor_sync(0xffffffffu, same, step);
      across += __shfl_xor_sync(0xffffffffu, across, step);
      pull += __shfl_xor_sync(0xffffffffu, pull, step);
    }
    if (lane < R) {
      row_sums[0][lane][warp] = same;
      row_sums[1][lane][warp] = across;
      row_sums[2][lane][warp] = pull;
    }
  }
  if (clustered) ptx::cluster_wait();
  __syncthreads();
  if (!multiplies) {
    if (chunk == 0) small_finish<R>(s, resolved, b, I, row_sums, rooms.weights);
    return;
  }
  if (!moves) return;

  // v_i = sum_j g_ij z_j - z_i sum_j g_ij, in the units of the rows as given.
  float* const pulls = rooms.norm_room;
  if (threadIdx.x < R) {
    double pull = 0;
#pragma unroll 4
    for (int of = 0; of < product_threads<R> / 32; ++of) pull += row_sums[2][threadIdx.x][of];
    pulls[threadIdx.x] = float(apart ? 0 : pull);
  }
  const float* const z = s.z + b * s.padded * s.width;
  const int end = begin + s.chunk < s.width ? begin + s.chunk : s.width;
  for (int k = begin; k < end; k += small_chunk) {
    const int columns = end - k < small_chunk ? end - k : small_chunk, fours = columns / 4;
    const int most = product_threads<R> / fours, shares = most < count ? most : count;
    const int share = int(threadIdx.x) / fours, four = (int(threadIdx.x) - share * fours) * 4;
    const int terms = (count - share + shares - 1) / shares;
    const float* const from = z + int64_t(share) * s.width + k + four;
    const float* const g = rooms.w + share * R;
    float4 sum[R];
#pragma unroll
    for (int h = 0; h < R; ++h) sum[h] = {0, 0, 0, 0};
    if (share < shares) {
      if (!apart) {
        small_loop<R, small_ahead<R>>(terms, g, shares * R, from, int64_t(shares) * s.width,
                                      [&](int, const float (&g_j)[R], const float4& z_j) {
#pragma unroll
                                        for (int h = 0; h < R; ++h)
                                          multiply_add(sum[h], g_j[h], z_j);
                                      });
      } else {  // near rows may have g without bound: no product but of their difference
        const float* const own = z + int64_t(I) * s.width + k + four;
#pragma unroll
        for (int four_rows = 0; four_rows < R; four_rows += 4)
          small_loop<4, 2>(
              terms, g + four_rows, shares * R, from, int64_t(shares) * s.width,
              [&](int, const float (&g_j)[4], const float4& z_j) {
#pragma unroll
                for (int h = 0; h < 4; ++h) {
                  const float4 z_i =
                      *reinterpret_cast<const float4*>(own + int64_t(four_rows + h) * s.width);
                  multiply_add(sum[four_rows + h], g_j[h],
                               {z_j.x - z_i.x, z_j.y - z_i.y, z_j.z - z_i.z, z_j.w - z_i.w});
                }
              });
      }
    }
    if (k > begin) ptx::named_barrier_sync(products_barrier, product_threads<R>);
    add_shares<R>(sum, share, shares, four, columns, rooms.room, [&](int h, int c, float total) {
      const int row = I + h, column = k + c;
      if (row >= count || column >= s.d) return;
      const int of = s.domain(row);
      float* const v = static_cast<float*>(of ? s.out.v_y : s.out.v_x);
      if (!v) return;
      const int64_t at = (of ? b * s.rows.m + row - s.rows.n : b * s.rows.n + row) * s.d + column;
      float pulled = total - pulls[h] * z[int64_t(row) * s.width + column];
      if (s.estimator != Estimator::cross && resolved.equal) pulled = 0;
      if (resolved.plain) {
        v[at] = pulled * (1 / resolved.gain);
      } else {  // the power of two by itself may be beyond float32
        const int exponent = s.exponent[b * s.slices + column / small_columns];
        v[at] =
            float(ldexp(double(pulled) / double(resolved.gain), exponent - 2 * resolved.exponent));
      }
    });
  }
}

}  // namespace fastmmd::cuda
