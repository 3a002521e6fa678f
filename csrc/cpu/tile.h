// What one thread does to one tile of the pairwise matrix, and the memory layout it does it on.
//
// The pooled sample, centred and scaled by a power of two, is kept twice, in the two orders that
// the register blocks read:
//
//   features   panels of a few vectors of features, [panel][row][width]: broadcast operand of the
//              inner products, streamed operand of the gradient products
//   columns    per block, panels of a few vectors of rows, [panel][feature][width]: streamed
//              operand of the inner products
//
// Both are read with unit stride from contiguous panels, so no power-of-two row length can make
// cache lines collide. Rows are grouped into blocks that lie within one domain; blocks are padded
// with zero rows, whose weight is zero.
#pragma once

#include <cstdint>

#include "mmd.h"

namespace fastmmd::cpu {

// `vectors` SIMD vectors cut into as few panels as possible, none wider than `widest`, as evenly as
// possible: an even cut keeps every register block busy (4 = 2 + 2, not 3 + 1). Inlined everywhere,
// as the linker would keep one copy for all instruction sets.
struct Panels {
  int64_t vectors;
  int widest;

  FASTMMD_INLINE int64_t count() const { return (vectors + widest - 1) / widest; }
  FASTMMD_INLINE int64_t first(int64_t p) const { return p * vectors / count(); }
  FASTMMD_INLINE int width(int64_t p) const { return int(first(p + 1) - first(p)); }
};

struct Block {
  int64_t row;    // first row, counted over padded rows
  int64_t start;  // first row, counted within its domain
  int rows;       // rows that exist
  int vectors;    // padded rows / lanes
  int domain;     // 0: x, 1: y
};

template <class T>
struct Plan {
  int64_t d;
  int64_t padded_rows;
  int lanes;
  Panels feature_panels;
  const double* mean;  // [d]
  T scale;             // z = scale (x - mean), a power of two: squares stay within range
  T* features;         // [panels][padded_rows][width * lanes]
  T* columns;          // [blocks][panels][d][width * lanes]
  T* norms;            // [padded_rows] |z_i|^2
  T* weights;          // [padded_rows] a_i with mean 1 in each domain; 0 on padding
  double* pulls;       // [padded_rows] sum_j of the gradient weights g_ij; null without gradients
  double* potentials;  // [padded_rows] 2 C sum_j a_j k_ij; null if not wanted
  T* v[2];             // [rows, d] gradient of each domain; null if not wanted
  const Segment<T>* segments;
  int num_segments;
  int num_terms;  // terms whose gradients are wanted, else 0
  // A kernel as wide as the data does not feel the rounding of D: pairs with |z_i|^2 + |z_j|^2
  // below this are never recomputed.
  T near_offset;
};

template <class T>
struct Scratch {
  T* tile;            // [block, block]: distances, then gradient weights
  T* weights;         // [block]
  T* near_distances;  // [block] of one row: distances of very near pairs, -1 elsewhere
  T* column_pulls;    // [block]
  T* column_sums;     // [block]
  int* near;          // [block] columns
  T* terms;           // [2, max_terms, lanes]
};

// The functions of one instruction set.
template <class T>
struct TileKernels {
  int lanes;          // elements of a vector
  int row_unit;       // blocks are padded to a multiple of this
  int panel_vectors;  // widest panel

  // row[k] = x[0, k].
  void (*read_row)(const Sample& x, Dtype dtype, int64_t d, double* row);
  // sums[k] += sum_i (x[i, k] - origin[k]) over rows [begin, end); the bits of the largest
  // magnitude among the differences into *largest.
  void (*add_columns)(const Sample& x, Dtype dtype, int64_t d, const double* origin, int64_t begin,
                      int64_t end, double* sums, int64_t* largest);
  // Fills features, columns, norms and zeroes v for the rows of a block.
  void (*pack)(const Plan<T>&, const Sample& x, Dtype dtype, const Block&);
  // Squared distances of block I against block J into scratch.tile, [rows, J.vectors * lanes];
  // that of a row to itself is not meant to be read.
  void (*distances)(const Plan<T>&, const Block& I, const Block& J, const Scratch<T>&);
  // The whole work on tile (I, J), which stands for (J, I) too, without the pairs i = i.
  // sums[0] (I and J of one domain) or sums[1] += sum_ij a_i a_j k_ij over ordered pairs;
  // sums[2 + t] += C sum a_i a_j phi_t, sums[2 + num_terms + t] += C sum a_i a_j D phi_t'.
  // Gradients are those of C sum_ij a_i a_j k_ij.
  void (*tile)(const Plan<T>&, const Block& I, const Block& J, double C, const Scratch<T>&,
               double* sums);
  // v_i = scale (v_i + pull_i z_i): the last step of the gradient.
  void (*finish)(const Plan<T>&, const Block&);
};

#define FASTMMD_DECLARE_KERNELS(isa)           \
  namespace isa {                              \
  const TileKernels<float>& float_kernels();   \
  const TileKernels<double>& double_kernels(); \
  }
FASTMMD_DECLARE_KERNELS(baseline)
FASTMMD_DECLARE_KERNELS(avx2)
FASTMMD_DECLARE_KERNELS(avx512)
#undef FASTMMD_DECLARE_KERNELS

}  // namespace fastmmd::cpu
