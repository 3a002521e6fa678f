// The passes that use kernel values as they are: kernel_sum and sign_forms.
#include <algorithm>
#include <cmath>

#include "cuda/tiles.cuh"
#include "cuda/values.cuh"
#include "random.h"

namespace fastmmd::cuda {
namespace {

constexpr int64_t most_blocks = 768;  // of which each keeps sums of its own
constexpr int wide = 8;               // columns of a thread where there are many

bool is_gaussian(const Problem& problem) {
  return std::all_of(problem.terms, problem.terms + problem.num_terms,
                     [](const Term& t) { return t.family == Family::gaussian; });
}

// use(element type), and for what runs use(element type, whether all terms are Gaussians).
template <class Use>
auto with_type(const Problem& problem, const Use& use) {
  return problem.dtype == Dtype::float64 ? use(double()) : use(float());
}

template <class T, class Use>
void with_tiles(const Problem& problem, const Use& use) {
  if (is_gaussian(problem)) use(ValueTiles<T, true>());
  else use(ValueTiles<T, false>());
}

// Rows and norms of the samples, and the kernel.
template <class T>
Points<T> points_of(const Problem& problem, const Launch& launch, bool shift, Arena& arena) {
  // 16-bit rows are read as float32, whatever made them.
  if (bytes(launch.operand) != sizeof(T)) throw Error(int(cudaErrorInvalidValue));
  Points<T> points = lay_out<T>(problem, launch, {shift, false, false, 0}, arena);
  points.estimator = Estimator::cross;
  points.pairs = {true, true, 0, 0, 0};
  return points;
}

// ---- kernel_sum ----

constexpr int adding_threads = 256;

template <class T>
struct SumArgs {
  Points<T> points;
  const T* v;  // [m, columns]
  T* sums;     // [parts][n, columns], of parts of the rows of y
  int64_t columns, parts;
};

// One block a tile row of x and part of y.
template <class Tiles, int columns>
__global__ void __launch_bounds__(Tiles::threads, Tiles::P::blocks)
    kernel_sum_kernel(const __grid_constant__ SumArgs<typename Tiles::T> args) {
  using T = typename Tiles::T;
  constexpr int tile = Tiles::tile, width = Tiles::template width<columns>;
  __shared__ typename Tiles::Room room;
  char* const work = dynamic_shared();
  T* const stage = reinterpret_cast<T*>(work + Tiles::work_bytes(columns));
  T* const v = reinterpret_cast<T*>(work);
  const Points<T>& points = args.points;
  const Rows& rows = points.rows;
  const int64_t blocks = tiles_of_rows(rows.n, tile), tiles = tiles_of_rows(rows.m, tile);
  const int64_t part = int64_t(blockIdx.x) / blocks, block = int64_t(blockIdx.x) % blocks;
  const int first = int(part * tiles / args.parts), end = int((part + 1) * tiles / args.parts);
  const int64_t i0 = block * tile;
  T* const sums = args.sums + (part * rows.n + i0) * args.columns;
  Tiles::begin(points, room);
  for (int t = first; t < end; ++t) {
    const int64_t j0 = int64_t(t) * tile;
    const Tile at{i0, rows.first(1) + j0};
    Tiles::make(points, at, room, work, stage);
    const int I = existing(rows, at.I, tile), J = existing(rows, at.J, tile);
    for (int64_t c0 = 0; c0 < args.columns; c0 += width) {
      for (int e = threadIdx.x; e < tile * width; e += Tiles::threads) {
        const int j = e / width;
        const int64_t c = c0 + e % width;
        v[e] = j < J && c < args.columns ? args.v[(j0 + j) * args.columns + c] : T(0);
      }
      __syncthreads();
      T own[Tiles::rows][columns];
      Tiles::template multiply<columns>(stage, v, own);
      // Sums of tiles are added up in memory: each element by the thread that alone knows it.
#pragma unroll
      for (int r = 0; r < Tiles::rows; ++r)
#pragma unroll
        for (int c = 0; c < columns; ++c) {
          const int i = Tiles::row(r);
          const int64_t column = c0 + Tiles::template column<columns>(c);
          if (i >= I || column >= args.columns) continue;
          T& to = sums[i * args.columns + column];
          to = t == first ? own[r][c] : to + own[r][c];
        }
      __syncthreads();
    }
  }
}

template <class T>
__global__ void __launch_bounds__(adding_threads)
    add_parts_kernel(const T* sums, int64_t parts, int64_t count, T* out) {
  const int64_t at = int64_t(blockIdx.x) * adding_threads + threadIdx.x;
  if (at >= count) return;
  double sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += double(sums[part * count + at]);
  out[at] = T(sum);
}

template <class T>
class KernelSum {
 public:
  KernelSum(const KernelSumArgs& args, const Launch& launch)
      : args_(args), launch_(launch), arena_(args.workspace) {
    points_ = points_of<T>(args, launch, false, arena_);
    using Tiles = ValueTiles<T, true>;
    const int64_t count = args.x.rows * args.columns;
    blocks_ = tiles_of_rows(args.x.rows, Tiles::tile);
    // Few tile rows of x are shared by cutting y, too, into parts, in so much memory.
    constexpr int64_t room = int64_t(1) << 22;
    parts_ = std::min({tiles_of_rows(args.y.rows, Tiles::tile), most_blocks / blocks_,
                       room / std::max<int64_t>(count, 1)});
    parts_ = std::max<int64_t>(parts_, 1);
    sums_ = parts_ > 1 ? arena_.template take<T>(parts_ * count) : static_cast<T*>(args.out);
  }

  size_t workspace() const { return arena_.bytes(); }

  void run() const {
    prepare(args_, launch_, points_, 0, 1.0);
    const int64_t count = args_.x.rows * args_.columns;
    if (!count) return;
    const cudaStream_t stream = static_cast<cudaStream_t>(launch_.stream);
    const SumArgs<T> args{points_, static_cast<const T*>(args_.v), sums_, args_.columns, parts_};
    with_tiles<T>(args_, [&](auto tiles) {
      using Tiles = decltype(tiles);
      auto go = [&](auto columns) {
        check(fastmmd::cuda::launch(kernel_sum_kernel<Tiles, columns>,
                                    dim3(unsigned(blocks_ * parts_)), dim3(Tiles::threads),
                                    size_t(Tiles::work_bytes(columns) + Tiles::stage_bytes), stream,
                                    args));
      };
      if (args_.columns <= 2 * Tiles::side) go(std::integral_constant<int, 1>());
      else go(std::integral_constant<int, wide>());
    });
    if (parts_ > 1)
      check(fastmmd::cuda::launch(
          add_parts_kernel<T>, dim3(unsigned(tiles_of_rows(count, adding_threads))),
          dim3(adding_threads), 0, stream, sums_, parts_, count, static_cast<T*>(args_.out)));
  }

 private:
  const KernelSumArgs args_;
  const Launch launch_;
  Arena arena_;
  Points<T> points_;
  int64_t blocks_, parts_;
  T* sums_;
};

// ---- sign_forms ----

constexpr int word = 64;  // vectors whose signs at a point are the bits of one number

// How the signs of all vectors are drawn: [words][padded] of them, a bit for each vector.
struct Drawing {
  Rows rows;
  Scheme scheme;
  uint64_t seed;
  int64_t vectors;  // count + 1; the first is the one of the samples as given
  uint64_t* signs;
  uint32_t* order;  // [warps][n + m]
  int64_t warps;
};

constexpr int drawing_threads = 128;

// One thread a word. The signs of the wild bootstrap; of permutations, where they start from.
__global__ void __launch_bounds__(drawing_threads) start_signs_kernel(Drawing drawing) {
  const int64_t row = int64_t(blockIdx.x) * drawing_threads + threadIdx.x;
  const Rows& rows = drawing.rows;
  if (row >= rows.padded()) return;
  const int domain = row >= rows.first(1);
  const int64_t i = row - rows.first(domain), p = blockIdx.y;
  uint64_t bits = 0;
  if (i < (domain ? rows.m : rows.n))
    for (int b = 0; b < word && p * word + b < drawing.vectors; ++b) {
      const int64_t vector = p * word + b;
      bool plus = domain == 0;
      if (vector && drawing.scheme == Scheme::permutation) plus = rows.n > rows.m;
      else if (vector)
        plus ^= !(Random(drawing.seed, uint64_t(vector)).number(uint64_t(i / 64)) >> i % 64 & 1);
      bits |= uint64_t(plus) << b;
    }
  drawing.signs[p * rows.padded() + row] = bits;
}

// A random choice of n points, by drawing the smaller of the two parts: the swaps of Fisher and
// Yates. One warp a vector, which swaps as many places at a time as none of which is another's.
__global__ void __launch_bounds__(drawing_threads) permute_kernel(Drawing drawing) {
  const Rows& rows = drawing.rows;
  const int lane = threadIdx.x % 32;
  const int64_t warp = (int64_t(blockIdx.x) * drawing_threads + threadIdx.x) / 32;
  if (warp >= drawing.warps) return;
  const int64_t total = rows.n + rows.m, least = rows.n < rows.m ? rows.n : rows.m;
  uint32_t* const order = drawing.order + warp * total;
  for (int64_t vector = 1 + warp; vector < drawing.vectors; vector += drawing.warps) {
    const Random random(drawing.seed, uint64_t(vector));
    uint64_t* const signs = drawing.signs + vector / word * rows.padded();
    const unsigned long long bit = 1ull << vector % word;
    for (int64_t i = lane; i < total; i += 32) order[i] = uint32_t(i);
    __syncwarp();
    for (int64_t first = 0; first < least;) {
      const int64_t i = first + lane;
      const bool exists = i < least;
      const int64_t other =
          exists ? i + int64_t(random.below(uint64_t(i), uint64_t(total - i))) : i;
      // A place that an earlier lane swaps waits for it.
      bool waits = !exists;
      for (int earlier = 0; earlier < 31; ++earlier) {
        const int64_t its = __shfl_sync(0xffffffffu, other, earlier);
        waits |= earlier < lane && (its == other || its == i);
      }
      const unsigned waiting = __ballot_sync(0xffffffffu, waits);
      const int ready = waiting ? __ffs(int(waiting)) - 1 : 32;
      if (lane < ready) {
        const uint32_t chosen = order[other];
        order[other] = order[i];
        order[i] = chosen;
        const int64_t row = chosen < rows.n ? chosen : rows.first(1) + chosen - rows.n;
        auto* const to = reinterpret_cast<unsigned long long*>(signs + row);
        if (rows.n > rows.m) atomicAnd(to, ~bit);
        else atomicOr(to, bit);
      }
      __syncwarp();
      first += ready;
    }
  }
}

template <class T>
struct FormArgs {
  Points<T> points;
  const uint64_t* signs;
  int64_t words;
  T plus, minus;   // the vectors' values, scaled
  double* sums;    // [blocks][3][words * word] forms, linear, diagonal
  double* totals;  // [blocks][2]
};

// What the blocks do with the vectors is what kernel_sum does, but for the last product, with the
// vector on the other side.
template <class Tiles>
__global__ void __launch_bounds__(Tiles::threads, Tiles::P::blocks)
    sign_forms_kernel(const __grid_constant__ FormArgs<typename Tiles::T> args) {
  using T = typename Tiles::T;
  constexpr int tile = Tiles::tile, stride = Tiles::stride, side = Tiles::side;
  static_assert(Tiles::template width<wide> == word && Tiles::threads >= word &&
                Tiles::threads >= tile);
  __shared__ typename Tiles::Room room;
  __shared__ T row_sums[tile], diagonal[tile];
  __shared__ T parts[Tiles::num_warps][3][word];
  __shared__ double room_of_sums[Tiles::num_warps];
  char* const work = dynamic_shared();
  T* const stage = reinterpret_cast<T*>(work + Tiles::work_bytes(wide));
  T* const v = reinterpret_cast<T*>(work);
  const Points<T>& points = args.points;
  const Rows& rows = points.rows;
  const int64_t padded = points.padded(), vectors = args.words * word;
  double* const sums = args.sums + int64_t(blockIdx.x) * 3 * vectors;
  // Each is added to by the thread that has made it zero.
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int64_t b = threadIdx.x; b < 3 * vectors; b += Tiles::threads) sums[b] = 0;
  double total = 0, trace = 0;
  Tiles::begin(points, room);
  const int64_t sides = pooled_sides(rows, tile), tiles = sides * (sides + 1) / 2;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const Tile at = pooled_tile(rows, triangle(t), tile);
    const bool own = at.I == at.J;
    const double copies = own ? 1 : 2;
    Tiles::make(points, at, room, work, stage);
    if (threadIdx.x < tile) {
      diagonal[threadIdx.x] = 0;
      if (own) {
        T& k = stage[threadIdx.x * stride + threadIdx.x];
        diagonal[threadIdx.x] = k;
        k = 0;
      }
    }
    __syncthreads();
    if (threadIdx.x < tile) {
      T sum = 0;
      for (int j = 0; j < tile; ++j) sum += stage[j * stride + threadIdx.x];
      row_sums[threadIdx.x] = sum;
      total += copies * double(sum);
      trace += double(diagonal[threadIdx.x]);
    }
    for (int64_t p = 0; p < args.words; ++p) {
      const uint64_t* const signs = args.signs + p * padded;
      for (int e = threadIdx.x; e < tile * word; e += Tiles::threads)
        v[e] = signs[at.J + e / word] >> e % word & 1 ? args.plus : args.minus;
      __syncthreads();
      T products[Tiles::rows][wide];
      Tiles::template multiply<wide>(stage, v, products);
      T forms[wide] = {}, linear[wide] = {}, diagonals[wide] = {};
#pragma unroll
      for (int r = 0; r < Tiles::rows; ++r) {
        const int i = Tiles::row(r);
        const uint64_t bits = signs[at.I + i];
        // 1' K v_J for the one side of the tile, v_I' K 1 for the other.
        const T of_row = own ? T(0) : row_sums[i], of_self = diagonal[i];
#pragma unroll
        for (int c = 0; c < wide; ++c) {
          const T value = bits >> Tiles::template column<wide>(c) & 1 ? args.plus : args.minus;
          forms[c] += value * products[r][c];
          linear[c] += products[r][c] + value * of_row;
          diagonals[c] += value * of_self;
        }
      }
#pragma unroll
      for (int c = 0; c < wide; ++c) {
        for (int o = side; o < 32; o *= 2) {
          forms[c] += __shfl_xor_sync(0xffffffffu, forms[c], o);
          linear[c] += __shfl_xor_sync(0xffffffffu, linear[c], o);
          diagonals[c] += __shfl_xor_sync(0xffffffffu, diagonals[c], o);
        }
        if (lane < side) {
          const int column = Tiles::template column<wide>(c);
          parts[warp][0][column] = forms[c];
          parts[warp][1][column] = linear[c];
          parts[warp][2][column] = diagonals[c];
        }
      }
      __syncthreads();
      if (threadIdx.x < word)
        for (int which = 0; which < 3; ++which) {
          double sum = 0;
          for (int w = 0; w < Tiles::num_warps; ++w) sum += double(parts[w][which][threadIdx.x]);
          sums[which * vectors + p * word + threadIdx.x] += which ? sum : copies * sum;
        }
    }
  }
  total = block_sum<Tiles::threads>(total, room_of_sums);
  trace = block_sum<Tiles::threads>(trace, room_of_sums);
  if (threadIdx.x == 0) {
    args.totals[2 * blockIdx.x] = total;
    args.totals[2 * blockIdx.x + 1] = trace;
  }
}

struct FormResults {
  double *forms, *linear, *diagonal, *totals;
};

// Sums of blocks, in order: one thread a vector, and the first for the totals.
__global__ void __launch_bounds__(drawing_threads)
    finish_forms_kernel(const double* sums, const double* totals, int64_t blocks, int64_t vectors,
                        int64_t wanted, double scale, FormResults out) {
  const int64_t b = int64_t(blockIdx.x) * drawing_threads + threadIdx.x;
  if (b < wanted) {
    double sum[3] = {};
    for (int64_t block = 0; block < blocks; ++block)
      for (int which = 0; which < 3; ++which) sum[which] += sums[(3 * block + which) * vectors + b];
    out.forms[b] = sum[0] * scale * scale;
    out.linear[b] = sum[1] * scale;
    out.diagonal[b] = sum[2] * scale;
  }
  if (b < 2) {
    double sum = 0;
    for (int64_t block = 0; block < blocks; ++block) sum += totals[2 * block + b];
    out.totals[b] = sum;
  }
}

template <class T>
class SignForms {
 public:
  SignForms(const SignFormsArgs& args, const Launch& launch)
      : args_(args), launch_(launch), arena_(args.workspace) {
    // The MMDs that the forms are made into do not feel a shift if the kernel is linear.
    const bool linear = args.num_factors == 1 &&
                        std::all_of(args.terms, args.terms + args.num_terms,
                                    [](const Term& t) { return t.family == Family::linear; });
    points_ = points_of<T>(args, launch, linear, arena_);
    const int64_t total = args.x.rows + args.y.rows;
    words_ = (args.count + 1 + word - 1) / word;
    sides_ = pooled_sides(points_.rows, ValueTiles<T, true>::tile);
    blocks_ = std::min(most_blocks, sides_ * (sides_ + 1) / 2);
    drawing_ = {points_.rows, args.scheme, args.seed, args.count + 1, nullptr, nullptr, 0};
    drawing_.signs = arena_.template take<uint64_t>(words_ * points_.padded());
    if (args.scheme == Scheme::permutation) {
      // As much memory as the signs, or 32 MB if that is more.
      drawing_.warps = std::max(args.count / 32, (int64_t(1) << 23) / total);
      drawing_.warps = std::min(std::max<int64_t>(drawing_.warps, 1), args.count);
      drawing_.order = arena_.template take<uint32_t>(drawing_.warps * total);
    }
    sums_ = arena_.template take<double>(blocks_ * 3 * words_ * word);
    totals_ = arena_.template take<double>(blocks_ * 2);
  }

  size_t workspace() const { return arena_.bytes(); }

  void run() const {
    const cudaStream_t stream = static_cast<cudaStream_t>(launch_.stream);
    prepare(args_, launch_, points_, 0, 1.0);
    check(fastmmd::cuda::launch(
        start_signs_kernel,
        dim3(unsigned(tiles_of_rows(points_.padded(), drawing_threads)), unsigned(words_)),
        dim3(drawing_threads), 0, stream, drawing_));
    if (drawing_.warps)
      check(fastmmd::cuda::launch(
          permute_kernel, dim3(unsigned(tiles_of_rows(drawing_.warps * 32, drawing_threads))),
          dim3(drawing_threads), 0, stream, drawing_));
    // v = 1/n and -1/m are m and -n, exactly, by n m; all by a power of two near their size.
    const double n = double(args_.x.rows), m = double(args_.y.rows);
    const bool permuted = args_.scheme == Scheme::permutation;
    const double size = permuted ? std::exp2(-std::ilogb(std::max(n, m))) : 1;
    FormArgs<T> args{
        points_, drawing_.signs, words_, T(permuted ? m * size : 1), T(permuted ? -n * size : -1),
        sums_,   totals_};
    unsigned blocks = 0;
    with_tiles<T>(args_, [&](auto tiles) {
      using Tiles = decltype(tiles);
      blocks = std::min(unsigned(blocks_),
                        grid_of(sides_ * (sides_ + 1) / 2, Tiles::P::blocks, launch_));
      check(fastmmd::cuda::launch(sign_forms_kernel<Tiles>, dim3(blocks), dim3(Tiles::threads),
                                  size_t(Tiles::work_bytes(wide) + Tiles::stage_bytes), stream,
                                  args));
    });
    const double scale = permuted ? 1 / (n * m * size) : 1 / n;
    check(fastmmd::cuda::launch(
        finish_forms_kernel, dim3(unsigned(tiles_of_rows(args_.count + 1, drawing_threads))),
        dim3(drawing_threads), 0, stream, sums_, totals_, int64_t(blocks), words_ * word,
        args_.count + 1, scale,
        FormResults{args_.forms, args_.linear, args_.diagonal, args_.totals}));
  }

 private:
  const SignFormsArgs args_;
  const Launch launch_;
  Arena arena_;
  Points<T> points_;
  Drawing drawing_;
  int64_t words_, sides_, blocks_;
  double *sums_, *totals_;
};

}  // namespace

size_t workspace(const KernelSumArgs& args, const Launch& launch) {
  return with_type(args, [&](auto t) { return KernelSum<decltype(t)>(args, launch).workspace(); });
}

void kernel_sum(const KernelSumArgs& args, const Launch& launch) {
  const DeviceGuard guard(launch.device);
  with_type(args, [&](auto t) { KernelSum<decltype(t)>(args, launch).run(); });
}

size_t workspace(const SignFormsArgs& args, const Launch& launch) {
  return with_type(args, [&](auto t) { return SignForms<decltype(t)>(args, launch).workspace(); });
}

void sign_forms(const SignFormsArgs& args, const Launch& launch) {
  const DeviceGuard guard(launch.device);
  with_type(args, [&](auto t) { SignForms<decltype(t)>(args, launch).run(); });
}

}  // namespace fastmmd::cuda
