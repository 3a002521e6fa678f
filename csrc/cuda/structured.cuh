// Frequencies that are products of Hadamard matrices and signs: their projections in shared memory.
#pragma once

#include "cuda/features.cuh"

namespace fastmmd::cuda {

template <class T>
struct Structured {
  Sample x;
  Dtype dtype;
  int64_t d;
  const double* center;
  Transforms transforms;
  int64_t count;  // of frequencies
  const Rates<T>* rates;
  // Of sums: points are cut into so many parts.
  int parts;
  bool moments;
  double* partial;  // [parts][kinds][rates][count]
  // Of gradients.
  Pulls<T> pulls;
  T* v_x;
  double* v_weights;  // null if not wanted
};

constexpr int structured_threads = 256, structured_blocks = 2;

// One number in 33 is left out, so that neighbours lie in different banks, and those that are eight
// apart, too.
FASTMMD_INLINE constexpr int64_t padded_width(int64_t width) { return width + width / 32; }

// Points that a thread block transforms at a time.
template <class T>
constexpr int structured_rows(int64_t width) {
  const int64_t rows = (int64_t(40) << 10) / (padded_width(width) * int64_t(sizeof(T)));
  return rows > 16 ? 16 : rows < 1 ? 1 : int(rows);
}

// Of shared memory.
template <class T>
constexpr size_t structured_bytes(int64_t width) {
  return size_t(structured_rows<T>(width) * padded_width(width)) * sizeof(T);
}

// The products of the centre with all frequencies; `room` is [blocks of frequencies][padded_width].
template <class T>
void structured_shifts(const Structured<T>& args, double* room, double* shifts,
                       cudaStream_t stream);
// Block b takes the block of frequencies of number b modulo their number, and one part of the
// points.
template <class T>
void structured_sums(const Structured<T>& args, unsigned blocks, cudaStream_t stream);
template <class T>
void structured_gradients(const Structured<T>& args, cudaStream_t stream);

}  // namespace fastmmd::cuda
