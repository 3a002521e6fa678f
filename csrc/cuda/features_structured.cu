#include "cuda/structured.cuh"

namespace fastmmd::cuda {
namespace {

constexpr int threads = structured_threads;

__device__ __forceinline__ int place(int i) { return i + i / 32; }

// Rows of 2^log_width numbers, padded, for all threads of a block.
template <class T>
struct Butterflies {
  T* rows;
  int count, log_width;

  __device__ int width() const { return 1 << log_width; }
  __device__ T& at(int row, int i) const {
    return rows[row * int(padded_width(width())) + place(i)];
  }

  // Rows become H D rows, for D of these signs. All threads call it after a barrier, and leave
  // after one.
  __device__ void transform(const int8_t* signs) const {
    for (int h = 0; h < log_width;) {
      const int left = log_width - h, levels = left < 3 ? left : 3;
      const int8_t* const of_pass = h ? nullptr : signs;
      if (levels == 3) pass<3>(h, of_pass);
      else if (levels == 2) pass<2>(h, of_pass);
      else pass<1>(h, of_pass);
      __syncthreads();
      h += levels;
    }
  }

 private:
  // Butterflies of numbers 2^h apart, 2^(h + 1) and so on, in registers.
  template <int levels>
  __device__ __forceinline__ void pass(int h, const int8_t* signs) const {
    constexpr int radix = 1 << levels;
    const int of_row = log_width - levels;
    for (int u = threadIdx.x; u < count << of_row; u += threads) {
      const int row = u >> of_row, t = u & ((1 << of_row) - 1);
      const int base = (t >> h) << (h + levels) | (t & ((1 << h) - 1));
      T v[radix];
#pragma unroll
      for (int q = 0; q < radix; ++q) {
        v[q] = at(row, base + (q << h));
        if (signs) v[q] *= T(signs[base + (q << h)]);
      }
#pragma unroll
      for (int half = 1; half < radix; half *= 2)
#pragma unroll
        for (int q = 0; q < radix; ++q)
          if (!(q & half)) {
            const T a = v[q], b = v[q + half];
            v[q] = a + b;
            v[q + half] = a - b;
          }
#pragma unroll
      for (int q = 0; q < radix; ++q) at(row, base + (q << h)) = v[q];
    }
  }
};

__device__ __forceinline__ int log_of(int64_t width) { return 63 - __clzll(width); }

// A few points, and what is done with them.
template <class T>
struct Work {
  const Structured<T>& args;
  Butterflies<T> all;
  T* weights;  // of the points, with mean 1

  __device__ int64_t width() const { return args.transforms.width; }
  __device__ const int8_t* signs(int64_t band, int which) const {
    return args.transforms.signs + (band * 3 + which) * width();
  }
  // Frequencies of a band.
  __device__ int frequencies(int64_t band) const {
    const int64_t left = args.count - band * width();
    return int(left < width() ? left : width());
  }

  // The projections of points from `first` on, without radii. By all threads, after a barrier.
  __device__ void project(int64_t first, int64_t band) const {
    const int8_t* const sign = signs(band, 0);
    for (int u = threadIdx.x; u < all.count << all.log_width; u += threads) {
      const int row = u >> all.log_width, k = u & (all.width() - 1);
      const int64_t i = first + row;
      T z = 0;
      if (i < args.x.rows && k < args.d)
        z = T(sign[k]) * (to_float<T>(args.x.data, args.dtype,
                                      i * args.x.row_stride + k * args.x.column_stride) -
                          T(args.center[k]));
      all.at(row, k) = z;
    }
    for (int row = threadIdx.x; row < all.count; row += threads) {
      const int64_t i = first + row;
      weights[row] = i >= args.x.rows ? T(0)
                     : args.x.weights ? T(args.x.weights[i] * double(args.x.rows))
                                      : T(1);
    }
    __syncthreads();
    all.transform(nullptr);
    all.transform(signs(band, 1));
    all.transform(signs(band, 2));
  }
};

constexpr int most_rows = 16;

template <class T>
__global__ void __launch_bounds__(threads)
    structured_shifts_kernel(const __grid_constant__ Structured<T> args, double* room,
                             double* shifts) {
  const int64_t band = blockIdx.x, width = args.transforms.width;
  const Butterflies<double> all{room + band * padded_width(width), 1, log_of(width)};
  const int8_t* const signs = args.transforms.signs + band * 3 * width;
  for (int k = threadIdx.x; k < width; k += threads) all.at(0, k) = k < args.d ? args.center[k] : 0;
  __syncthreads();
  for (int which = 0; which < 3; ++which) all.transform(signs + which * width);
  for (int64_t j = threadIdx.x; j < width && band * width + j < args.count; j += threads)
    shifts[band * width + j] = args.transforms.radii[band * width + j] * all.at(0, int(j));
}

template <class T>
__global__ void __launch_bounds__(threads, structured_blocks)
    structured_sums_kernel(const __grid_constant__ Structured<T> args, int step) {
  __shared__ Rates<T> rates;
  __shared__ T weights[most_rows];
  load_rates(args.rates, rates);
  const Work<T> work{
      args, {reinterpret_cast<T*>(dynamic_shared()), step, log_of(args.transforms.width)}, weights};
  const int64_t bands = (args.count + work.width() - 1) / work.width();
  const int64_t band = blockIdx.x % bands, part = blockIdx.x / bands;
  const int64_t steps = (args.x.rows + step - 1) / step;
  const int64_t begin = part * steps / args.parts, end = (part + 1) * steps / args.parts;
  const int frequencies = work.frequencies(band);
  for (int64_t at = begin; at < end; ++at) {
    __syncthreads();
    work.project(at * step, band);
    for (int j = threadIdx.x; j < frequencies; j += threads) {
      const int64_t frequency = band * work.width() + j;
      const T radius = T(args.transforms.radii[frequency]);
      double* const to =
          args.partial + part * kinds(args.moments) * rates.count * args.count + frequency;
#pragma unroll 1
      for (int c = 0; c < rates.chains; ++c) {
        const int first = rates.first[c], length = rates.first[c + 1] - first;
        ChainSums<true, T> sums;
#pragma unroll 1
        for (int row = 0; row < step; ++row) {
          const T t[1] = {radius * work.all.at(row, j)}, a[1] = {weights[row]};
          sums.add(rates.rate[first], length, args.moments, t, a);
        }
        sums.write(to + first * args.count, rates.count, args.count, length, args.moments,
                   at == begin);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(threads, structured_blocks)
    structured_gradients_kernel(const __grid_constant__ Structured<T> args, int step) {
  __shared__ Rates<T> rates;
  __shared__ T weights[most_rows];
  __shared__ T room[threads / 32];
  __shared__ double pulled[most_rows];
  load_rates(args.rates, rates);
  const Work<T> work{
      args, {reinterpret_cast<T*>(dynamic_shared()), step, log_of(args.transforms.width)}, weights};
  const int64_t bands = (args.count + work.width() - 1) / work.width();
  const int64_t begin = int64_t(blockIdx.x) * step;
  if (int(threadIdx.x) < step) pulled[threadIdx.x] = 0;
  for (int64_t band = 0; band < bands; ++band) {
    __syncthreads();
    work.project(begin, band);
    const int frequencies = work.frequencies(band);
#pragma unroll 1
    for (int row = 0; row < step; ++row) {
      T sum = 0;
#pragma unroll 1
      for (int j = threadIdx.x; j < work.width(); j += threads) {
        T slope[1] = {}, value[1] = {};
        if (j < frequencies) {
          const int64_t frequency = band * work.width() + j;
          const T radius = T(args.transforms.radii[frequency]);
          const T t[1] = {radius * work.all.at(row, j)};
#pragma unroll 1
          for (int c = 0; c < rates.chains; ++c) {
            ChainPulls<true, T> chain;
            chain.load(rates, c, args.pulls, frequency);
            chain.add(t, slope, value);
          }
          slope[0] *= radius * weights[row];
          sum += value[0];
        }
        work.all.at(row, j) = slope[0];
      }
      if (args.v_weights) {
        sum = block_sum<threads>(sum, room);
        if (threadIdx.x == 0) pulled[row] += double(sum);
      }
    }
    __syncthreads();
    // The transposed of the way there.
    work.all.transform(nullptr);
    work.all.transform(work.signs(band, 2));
    work.all.transform(work.signs(band, 1));
    const int8_t* const sign = work.signs(band, 0);
    for (int u = threadIdx.x; u < step << work.all.log_width; u += threads) {
      const int row = u >> work.all.log_width, k = u & (work.all.width() - 1);
      const int64_t i = begin + row;
      if (i >= args.x.rows || k >= args.d) continue;
      T& to = args.v_x[i * args.d + k];
      const T v = T(sign[k]) * work.all.at(row, k);
      to = band ? to + v : v;
    }
  }
  __syncthreads();
  if (args.v_weights && int(threadIdx.x) < step && begin + threadIdx.x < args.x.rows)
    args.v_weights[begin + threadIdx.x] = pulled[threadIdx.x] * double(args.x.rows);
}

}  // namespace

template <class T>
void structured_shifts(const Structured<T>& args, double* room, double* shifts,
                       cudaStream_t stream) {
  const int64_t width = args.transforms.width, bands = (args.count + width - 1) / width;
  check(launch(structured_shifts_kernel<T>, dim3(unsigned(bands)), dim3(threads), 0, stream, args,
               room, shifts));
}

template <class T>
void structured_sums(const Structured<T>& args, unsigned blocks, cudaStream_t stream) {
  check(launch(structured_sums_kernel<T>, dim3(blocks), dim3(threads),
               structured_bytes<T>(args.transforms.width), stream, args,
               structured_rows<T>(args.transforms.width)));
}

template <class T>
void structured_gradients(const Structured<T>& args, cudaStream_t stream) {
  const int step = structured_rows<T>(args.transforms.width);
  check(launch(structured_gradients_kernel<T>, dim3(unsigned((args.x.rows + step - 1) / step)),
               dim3(threads), structured_bytes<T>(args.transforms.width), stream, args, step));
}

template void structured_shifts(const Structured<float>&, double*, double*, cudaStream_t);
template void structured_shifts(const Structured<double>&, double*, double*, cudaStream_t);
template void structured_sums(const Structured<float>&, unsigned, cudaStream_t);
template void structured_sums(const Structured<double>&, unsigned, cudaStream_t);
template void structured_gradients(const Structured<float>&, cudaStream_t);
template void structured_gradients(const Structured<double>&, cudaStream_t);

}  // namespace fastmmd::cuda
