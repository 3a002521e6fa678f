// From rows in memory to packed, centred and scaled rows with a kernel whose bandwidths are known.
#include "cuda/points.cuh"

namespace fastmmd::cuda {

TermList term_list(const Problem& problem) {
  TermList list{};
  list.count = problem.num_terms;
  for (int t = 0; t < problem.num_terms; ++t) {
    const Term& term = problem.terms[t];
    list.family[t] = uint8_t(term.family);
    list.unit[t] = uint8_t(term.unit);
    list.factor[t] = uint8_t(term.factor);
    list.p[t] = term.p;
    list.q[t] = term.q;
  }
  return list;
}

const char* Error::what() const noexcept { return cudaGetErrorString(cudaError_t(code)); }

void check(cudaError_t status) {
  if (status != cudaSuccess) {
    cudaGetLastError();  // what was said once is not to be said by the next call
    throw Error(int(status));
  }
}

DeviceGuard::DeviceGuard(int device) : before_(device), device_(device) {
  check(cudaGetDevice(&before_));
  if (before_ != device_) check(cudaSetDevice(device_));
}

DeviceGuard::~DeviceGuard() {
  if (before_ != device_) cudaSetDevice(before_);
}

namespace {

// The columns of one factor of both samples.
struct Columns {
  Sample x, y;
  Dtype dtype;
  int64_t column;

  // Relative to nothing, as a double: exact for every type of sample.
  __device__ double at(int domain, int64_t i, int64_t k) const {
    const Sample& s = domain ? y : x;
    return to_float<double>(s.data, dtype, i * s.row_stride + (column + k) * s.column_stride);
  }
};

struct Chunks {
  int64_t of[2];

  explicit Chunks(const Rows& rows)
      : of{round_up(rows.n, chunk_rows) / chunk_rows, round_up(rows.m, chunk_rows) / chunk_rows} {}
  FASTMMD_INLINE int64_t count() const { return of[0] + of[1]; }
};

int64_t slices(int64_t d) { return round_up(d, slice_columns) / slice_columns; }

constexpr int column_threads = slice_columns * 8;

// Sums of 32 columns over a chunk of rows, relative to the first row of x, so that equal rows are
// exactly at their mean; and the largest magnitude among the differences.
template <class T>
__global__ void __launch_bounds__(column_threads)
    columns_kernel(Columns columns, Rows rows, Chunks chunks, Factor<T> f) {
  const int lane = threadIdx.x % slice_columns, group = threadIdx.x / slice_columns;
  const int64_t c = blockIdx.y, k = int64_t(blockIdx.x) * slice_columns + lane;
  const int domain = c >= chunks.of[0];
  const int64_t begin = (domain ? c - chunks.of[0] : c) * chunk_rows;
  const int64_t count = domain ? rows.m : rows.n;
  const int64_t end = begin + chunk_rows < count ? begin + chunk_rows : count;
  double sum = 0, largest = 0;
  if (k < f.d) {
    const double origin = columns.at(0, 0, k);
    for (int64_t i = begin + group; i < end; i += column_threads / slice_columns) {
      const double difference = columns.at(domain, i, k) - origin;
      sum += difference;
      largest = larger(largest, fabs(difference));
    }
  }
  __shared__ double sums[column_threads], sizes[column_threads];
  sums[threadIdx.x] = sum;
  sizes[threadIdx.x] = largest;
  __syncthreads();
  if (group) return;
  for (int g = 1; g < column_threads / slice_columns; ++g) {
    sum += sums[g * slice_columns + lane];
    largest = larger(largest, sizes[g * slice_columns + lane]);
  }
  if (k < f.d) f.partial[c * f.d + k] = sum;
  for (int other = 16; other; other /= 2) {
    largest = larger(largest, __shfl_xor_sync(0xffffffffu, largest, other));
  }
  if (lane == 0) f.largest[c * gridDim.x + blockIdx.x] = largest;
}

// How many powers of two the rows are scaled down by. Just as much as brings the squares of all
// rows, and their differences', into the range of T: bandwidths are scaled with them, and have a
// range of their own. float16 has so little range that rows are always brought to its middle.
template <class T>
__device__ int exponent_of(double largest, Operand operand) {
  if (!(largest > 0) || largest > 1.7e308) return 0;
  const int size = ilogb(largest);
  if (operand == Operand::float16) return size - 7;
  constexpr int margin = sizeof(T) == 4 ? 40 : 400;
  return size > margin ? size - margin : size < -margin ? size + margin : 0;
}

constexpr int mean_threads = 128;

// The pooled mean, by one thread a column; the last block chooses the scale.
template <class T>
__global__ void __launch_bounds__(mean_threads)
    means_kernel(Columns columns, Rows rows, Chunks chunks, Factor<T> f, int64_t slices,
                 Operand operand, int l, Resolved<T>* resolved) {
  if (blockIdx.x + 1 < gridDim.x) {
    const int64_t k = int64_t(blockIdx.x) * mean_threads + threadIdx.x;
    if (k >= f.d) return;
    double sum = 0;
    for (int64_t c = 0; c < chunks.count(); ++c) sum += f.partial[c * f.d + k];
    f.mean[k] = columns.at(0, 0, k) + sum / double(rows.n + rows.m);
    return;
  }
  double largest = 0, offset = 0;
  for (int64_t c = threadIdx.x; c < chunks.count() * slices; c += mean_threads)
    largest = larger(largest, f.largest[c]);
  if (f.feels_centre)
    for (int64_t k = threadIdx.x; k < f.d; k += mean_threads) {
      offset = larger(offset, fabs(columns.at(0, 0, k)));
    }
  __shared__ double sizes[mean_threads], offsets[mean_threads];
  sizes[threadIdx.x] = largest;
  offsets[threadIdx.x] = offset;
  __syncthreads();
  if (threadIdx.x) return;
  for (int t = 1; t < mean_threads; ++t) {
    largest = larger(largest, sizes[t]);
    offset = larger(offset, offsets[t]);
  }
  resolved->equal[l] = largest == 0;
  resolved->exponent[l] = exponent_of<T>(largest + offset, operand);
}

constexpr int pack_threads = 256;

// One warp a row: the sum of |x_i|^2 and the largest 1 / |x_i|^2 over the rows of a block.
template <class T>
__global__ void __launch_bounds__(pack_threads)
    lengths_kernel(Columns columns, Points<T> points, int l) {
  const Factor<T>& f = points.factors[l];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  double sum = 0, nearest = 0;
  for (int r = warp; r < pack_rows; r += pack_threads / 32) {
    const int64_t row = int64_t(blockIdx.x) * pack_rows + r;
    const int domain = points.domain(row);
    const int64_t i = row - points.rows.first(domain);
    if (i >= (domain ? points.rows.m : points.rows.n)) continue;
    double square = 0;
    for (int64_t k = lane; k < f.d; k += 32) {
      const double x = columns.at(domain, i, k);
      square += x * x;
    }
    square = warp_sum(square);
    if (lane == 0) sum += square;
    nearest = larger(nearest, 1 / square);
  }
  __shared__ double room[pack_threads / 32];
  sum = block_sum<pack_threads>(sum, room);
  nearest = block_largest<pack_threads>(nearest, room);
  if (threadIdx.x == 0) {
    f.lengths[blockIdx.x] = sum;
    f.lengths[gridDim.x + blockIdx.x] = nearest;
  }
}

// What the centre is of the mean. Where the result does not feel it, all of it. Else the rows have
// to be about where their mean is, and none much nearer to 0: rows less it leave products, of any
// operand, less to round, and no row loses by the difference. A cosine's rows are about as long as
// the root of their mean square, whose inverse takes the mean into the sphere.
template <class T>
__device__ double of_mean(const Points<T>& points, int l, double scale, double* room) {
  const Factor<T>& f = points.factors[l];
  if (!f.feels_centre) return scale;
  double far = 0, square = 0, nearest = 0;
  for (int k = threadIdx.x; k < f.d; k += pack_threads) far += f.mean[k] * f.mean[k];
  for (unsigned b = threadIdx.x; b < gridDim.x; b += pack_threads) {
    square += f.lengths[b];
    nearest = larger(nearest, f.lengths[gridDim.x + b]);
  }
  far = block_sum<pack_threads>(far, room);
  square = block_sum<pack_threads>(square, room) / double(points.rows.n + points.rows.m);
  nearest = block_largest<pack_threads>(nearest, room);
  if (!(far > 0.8 * square && far * nearest < 4)) return 0;  // so where there is a NaN
  return f.geometry == Geometry::cosine ? 1 / sqrt(square) : scale;
}

// One warp a row: z = x 2^-exponent - c rounded (cosine: x / |x| - c), its norm or what stands for
// it, and the distance to the mean.
template <Operand operand, class T>
__global__ void __launch_bounds__(pack_threads)
    pack_kernel(Columns columns, Points<T> points, int l, bool weighted) {
  using S = Stored<operand>;
  using E = typename S::type;
  const Factor<T>& f = points.factors[l];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const double scale = ldexp(1.0, -points.resolved->exponent[l]);
  const int64_t first = int64_t(blockIdx.x) * pack_rows;
  __shared__ double room[pack_threads / 32];
  const double centre = of_mean(points, l, scale, room);
  if (blockIdx.x == 0 && threadIdx.x == 0) points.resolved->of_mean[l] = centre;
  double spread = 0, longest = 0;
  for (int r = warp; r < pack_rows; r += pack_threads / 32) {
    const int64_t row = first + r;
    const int domain = points.domain(row);
    const int64_t i = row - points.rows.first(domain);
    const bool exists = i < (domain ? points.rows.m : points.rows.n);
    E* z = static_cast<E*>(f.z) + row * f.depth;
    double inverse = 1;  // of the length that the row is divided by
    if (f.geometry == Geometry::cosine) {
      double square = 0;
      if (exists)
        for (int64_t k = lane; k < f.d; k += 32) {
          const double scaled = columns.at(domain, i, k) * scale;
          square += scaled * scaled;
        }
      square = warp_sum(square);
      inverse = square == 0 ? 0 : 1 / sqrt(square);
    }
    T norm = 0;
    double along = 0;
#pragma unroll 2
    for (int64_t k = lane; k < f.depth; k += 32) {
      E rounded{};
      if (exists && k < f.d) {
        const double x = columns.at(domain, i, k), away = (x - f.mean[k]) * scale;
        const double c = points.centre(l, k, centre), z_k = x * scale * inverse - c;
        rounded = S::round(T(z_k));
        spread += away * away;
        along += c * (z_k + c / 2);
      }
      z[k] = rounded;
      const T seen = multiplied<operand>(rounded);
      norm += seen * seen;
    }
    norm = warp_sum(norm);
    if (f.geometry != Geometry::radial) norm = f.feels_centre ? T(warp_sum(along)) : T(0);
    longest = larger(longest, double(norm));
    if (lane == 0) {
      f.norms[row] = norm;
      if (f.pulls) f.pulls[row] = 0;
      if (l == 0) {
        if (!weighted) points.weights[row] = exists ? T(1) : T(0);
        if (points.potentials) points.potentials[row] = 0;
      }
    }
  }
  spread = block_sum<pack_threads>(spread, room);
  longest = block_largest<pack_threads>(longest, room);
  if (threadIdx.x == 0) {
    f.spread[blockIdx.x] = spread;
    f.spread[gridDim.x + blockIdx.x] = longest;
  }
}

constexpr int resolve_threads = 1024;

// Everything that is one number: masses of the weights, units, scales, segments. One block.
template <class T>
__global__ void __launch_bounds__(resolve_threads)
    resolve_kernel(Sample x, Sample y, Points<T> points, TermList list, const double* given,
                   const double* coefficients, double* scales, int64_t size, double share) {
  __shared__ double room[32];
  Resolved<T>& resolved = *points.resolved;
  double sums[2], squares[2], pairs[2];
  for (int domain = 0; domain < 2; ++domain) {
    const double* w = domain ? y.weights : x.weights;
    const int64_t rows = domain ? points.rows.m : points.rows.n, first = points.rows.first(domain);
    const int64_t end = domain ? points.padded() : points.rows.first(1);
    sums[domain] = squares[domain] = double(rows);
    pairs[domain] = double(rows) * (double(rows) - 1);
    if (!w) {
      if (x.weights || y.weights)
        for (int64_t i = threadIdx.x; i < end - first; i += resolve_threads)
          points.weights[first + i] = i < rows ? T(1) : T(0);
      continue;
    }
    double sum = 0;
    for (int64_t i = threadIdx.x; i < rows; i += resolve_threads) sum += w[i];
    sum = block_sum<resolve_threads>(sum, room);
    double square = 0, pair = 0;
    for (int64_t i = threadIdx.x; i < end - first; i += resolve_threads) {
      const double a = i < rows ? w[i] / sum * double(rows) : 0;
      points.weights[first + i] = T(a);
      square += a * a;
      pair += a * (double(rows) - a);
    }
    sums[domain] = sum;
    squares[domain] = block_sum<resolve_threads>(square, room);
    pairs[domain] = block_sum<resolve_threads>(pair, room);
  }
  __shared__ double spreads[max_factors], longest[max_factors];
  const int64_t packs = points.padded() / pack_rows;
  for (int l = 0; l < points.num_factors; ++l) {
    const double* const of_packs = points.factors[l].spread;
    double spread = 0, most = 0;
    for (int64_t b = threadIdx.x; b < packs; b += resolve_threads) {
      spread += of_packs[b];
      most = larger(most, of_packs[packs + b]);
    }
    spread = block_sum<resolve_threads>(spread, room);
    most = block_largest<resolve_threads>(most, room);
    if (threadIdx.x == 0) {
      spreads[l] = spread;
      longest[l] = most;
    }
  }
  __syncthreads();
  for (int64_t c = threadIdx.x; c < int64_t(sum_rows) * points.row_of_sums(); c += resolve_threads)
    points.sums[c] = 0;
  // Terms side by side, then segments by one thread: in shared memory, as every step waits for the
  // one before.
  __shared__ Term terms[max_terms];
  __shared__ double unit_scales[max_terms], slopes[max_terms];
  __shared__ double built_room[(sizeof(Kernel<T>) + sizeof(double) - 1) / sizeof(double)];
  Kernel<T>& built = *reinterpret_cast<Kernel<T>*>(built_room);
  if (const int t = threadIdx.x; t < list.count) {
    const int l = list.factor[t];
    const Factor<T>& f = points.factors[l];
    // u of the rows as given is 4^exponent times u of the scaled rows.
    const int exponent = f.geometry == Geometry::cosine ? 0 : resolved.exponent[l];
    const double one = ldexp(1.0, -2 * exponent);
    double unit = one;
    switch (Unit(list.unit[t])) {
      case Unit::fixed: break;
      case Unit::mean:  // (2 N sum |z|^2 - 2 |sum z|^2) / (N (N - 1)) about the mean itself
        unit = 2 * spreads[l] / (double(points.rows.n + points.rows.m) - 1);
        break;
      case Unit::median: unit = f.median[0]; break;
      case Unit::x_median: unit = f.median[1]; break;
      case Unit::width: unit = double(f.d) * one; break;
    }
    terms[t] = {Family(list.family[t]), Unit(list.unit[t]), l,        given[t],
                coefficients[t],        list.p[t],          list.q[t]};
    const double scale = unit == 0 ? 0 : given[t] / unit;
    unit_scales[t] = scale;
    scales[t] = Unit(list.unit[t]) == Unit::fixed ? given[t] : ldexp(scale, -2 * exponent);
    double slope = 0;
    dispatch(Family(list.family[t]),
             [&](auto family) { slope = decltype(family)::slope_factor(scale, list.p[t]); });
    slopes[t] = fabs(coefficients[t] * slope);
    resolved.terms[t] = terms[t];
    resolved.scales[t] = scale;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    resolved.by =
        divisors(points.estimator, points.rows.n, points.rows.m, size, points.pairs, pairs, share);
    for (int domain = 0; domain < 2; ++domain) {
      resolved.sum[domain] = sums[domain];
      resolved.squares[domain] = squares[domain];
      resolved.pairs[domain] = pairs[domain];
    }
    built.clear();
    double steepest = 0;
    bool all_equal = true;
    for (int l = 0; l < points.num_factors; ++l) {
      const Factor<T>& f = points.factors[l];
      const int last = f.first_term + f.num_terms;
      all_equal = all_equal && resolved.equal[l];
      double sum = 0;  // of all terms at once
      for (int t = f.first_term; t < last; ++t) sum += slopes[t];
      steepest = fmax(steepest, sum);
      typename Kernel<T>::Range range = built.add(terms, f.first_term, last, unit_scales);
      range.segments = resolved.segments.data() + (range.segments - built.data());
      // Where no two rows are long enough for it, nobody needs to look for near pairs.
      if (2 * longest[l] <= double(range.near_offset)) range.near_offset = T(HUGE_VAL);
      resolved.kernel[l] = range;
    }
    resolved.all_equal = all_equal;
    // Of the order of n m, over the steepest slope.
    const double size_of_weights = 4 * steepest / (double(points.rows.n) * double(points.rows.m));
    const bool usual = size_of_weights > 1e-300 && size_of_weights < 1e300;
    const int gain = usual ? -ilogb(size_of_weights) : 0;
    resolved.gain = T(ldexp(1.0, gain > 100 ? 100 : gain < -100 ? -100 : gain));
  }
  __syncthreads();
  static_assert(sizeof(Kernel<T>) % sizeof(uint32_t) == 0);
  const uint32_t* const from = reinterpret_cast<const uint32_t*>(&built);
  uint32_t* const to = reinterpret_cast<uint32_t*>(&resolved.segments);
  for (int w = threadIdx.x; w < int(sizeof(Kernel<T>) / sizeof(uint32_t)); w += resolve_threads)
    to[w] = from[w];
}

}  // namespace

template <class T>
Points<T> lay_out(const Problem& problem, const Launch& launch, const Wants& wants, Arena& arena) {
  Points<T> points{};
  points.rows = {problem.x.rows, problem.y.rows};
  points.num_factors = points.num_moving = problem.num_factors;
  points.num_terms = wants.terms;
  const int64_t padded = points.rows.padded();
  const int64_t chunks = Chunks(points.rows).count();
  int64_t column = 0;
  int t = 0;
  for (int l = 0; l < problem.num_factors; ++l) {
    Factor<T>& f = points.factors[l];
    f.z = launch.z[l];
    f.d = int(problem.widths[l]);
    f.depth = depth(f.d);
    f.column = column;
    column += f.d;
    f.first_term = t;
    while (t < problem.num_terms && problem.terms[t].factor == l) ++t;
    f.num_terms = t - f.first_term;
    f.geometry = f.num_terms ? geometry(problem.terms[f.first_term].family) : Geometry::radial;
    f.feels_centre = !wants.shift && f.geometry != Geometry::radial;
    f.norms = arena.take<T>(padded);
    f.pulls = wants.gradients ? arena.take<double>(padded) : nullptr;
    f.mean = arena.take<double>(f.d);
    f.partial = arena.take<double>(chunks * f.d);
    f.largest = arena.take<double>(chunks * slices(f.d));
    f.spread = arena.take<double>(2 * (padded / pack_rows));
    f.median = arena.take<double>(2);
    f.lengths = f.feels_centre ? arena.take<double>(2 * (padded / pack_rows)) : nullptr;
  }
  points.weights = arena.take<T>(padded);
  points.potentials = wants.potentials ? arena.take<double>(padded) : nullptr;
  points.resolved = arena.take<Resolved<T>>(1);
  points.sums = arena.take<double>(int64_t(sum_rows) * points.row_of_sums());
  return points;
}

template <class T>
void prepare(const Problem& problem, const Launch& launch, const Points<T>& points, int64_t size,
             double share) {
  const cudaStream_t stream = static_cast<cudaStream_t>(launch.stream);
  const Chunks chunks(points.rows);
  const bool weighted = problem.x.weights || problem.y.weights;
  for (int l = 0; l < points.num_factors; ++l) {
    const Factor<T>& f = points.factors[l];
    const Columns columns{problem.x, problem.y, problem.dtype, f.column};
    const dim3 grid(unsigned(slices(f.d)), unsigned(chunks.count()));
    check(fastmmd::cuda::launch(columns_kernel<T>, grid, dim3(column_threads), 0, stream, columns,
                                points.rows, chunks, f));
    const unsigned means = unsigned(round_up(f.d, mean_threads) / mean_threads) + 1;
    check(fastmmd::cuda::launch(means_kernel<T>, dim3(means), dim3(mean_threads), 0, stream,
                                columns, points.rows, chunks, f, slices(f.d), launch.operand, l,
                                points.resolved));
    const dim3 packs(unsigned(points.padded() / pack_rows));
    if (f.feels_centre)
      check(fastmmd::cuda::launch(lengths_kernel<T>, packs, dim3(pack_threads), 0, stream, columns,
                                  points, l));
    with_operand(launch.operand, [&](auto operand) {
      if constexpr (std::is_same_v<typename Stored<operand>::compute, T>)
        check(fastmmd::cuda::launch(pack_kernel<operand, T>, packs, dim3(pack_threads), 0, stream,
                                    columns, points, l, weighted));
    });
  }
  find_medians<T>(problem, launch, points);
  static_assert(2 * sizeof(Sample) + sizeof(Points<T>) + sizeof(TermList) + 64 <= 4096,
                "parameters of a kernel are 4 KiB at most, before CUDA 12.1");
  check(fastmmd::cuda::launch(resolve_kernel<T>, dim3(1), dim3(resolve_threads), 0, stream,
                              problem.x, problem.y, points, term_list(problem), launch.given_scales,
                              launch.coefficients, problem.scales, size, share));
}

template Points<float> lay_out(const Problem&, const Launch&, const Wants&, Arena&);
template Points<double> lay_out(const Problem&, const Launch&, const Wants&, Arena&);
template void prepare(const Problem&, const Launch&, const Points<float>&, int64_t, double);
template void prepare(const Problem&, const Launch&, const Points<double>&, int64_t, double);

}  // namespace fastmmd::cuda
