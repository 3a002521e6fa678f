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

#include "estimators.h"
#include "mmd.h"
#include "random_features.h"

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
  int64_t start;  // first row, counted within its domain: the position of the first row
  int rows;       // rows that exist
  int vectors;    // padded rows / lanes
  int domain;     // 0: x, 1: y
};

// The pooled sample as one factor of the kernel sees it.
template <class T>
struct Factor {
  int64_t d;
  int64_t column;  // its first column in the samples
  Geometry geometry;
  Panels feature_panels;
  const double* mean;  // [d], of the rows if the kernel does not feel a shift, else 0
  T scale;             // z = scale (x - mean), a power of two: squares stay within range
  T* features;         // [panels][padded_rows][width * lanes]
  T* columns;          // [blocks][panels][d][width * lanes]
  T* norms;            // [padded_rows] |z_i|^2. Cosine: 1 / |z_i| before rows were divided by it
  double* pulls;       // [padded_rows] sum_j of the gradient weights; null without gradients
  const Segment<T>* segments;
  int num_segments;
  int first_term, num_terms;
  // A kernel as wide as the data does not feel the rounding of D: pairs with |z_i|^2 + |z_j|^2
  // below this are never recomputed.
  T near_offset;
};

template <class T>
struct Plan {
  int64_t d;  // columns of the samples
  int64_t padded_rows;
  int lanes;
  Pairs pairs;
  const Factor<T>* factors;
  int num_factors;
  int num_moving;      // the first so many have gradients to their columns
  T* weights;          // [padded_rows] a_i with mean 1 in each domain; 0 on padding
  double* potentials;  // [padded_rows] 2 C sum_j a_j k_ij; null if not wanted
  T* v[2];             // [rows, d] gradient of each domain; null if not wanted
  int num_terms;       // terms whose gradients are wanted, else 0
};

template <class T>
struct Scratch {
  T* tiles;           // [factors][block, block]: distances, then gradient weights or kernel values
  int64_t tile;       // elements of one tile
  T* weights;         // [block] of one row
  T* near_distances;  // [block] of one row: distances of very near pairs, -1 elsewhere
  T* column_pulls;    // [factors][block]
  T* column_sums;     // [block]
  T* values;          // [factors][block] of one row: kernel values,
  T* slopes;          // [factors][block] their slopes,
  T* others;          // [block] and the weight times the values of the other factors
  int64_t block;
  int* near;  // [block] columns
  T* terms;   // [2, max_terms, lanes]
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
  // out[i] = <x_i, c> for rows [begin, begin + rows), in float64.
  void (*inner_products)(const Sample& x, Dtype dtype, int64_t d, const double* c, int64_t begin,
                         int64_t rows, double* out);
  // sum_ik (scale (x[i, k] - mean[k]))^2 over rows [begin, end).
  double (*squares)(const Sample& x, Dtype dtype, int64_t d, const double* mean, double scale,
                    int64_t begin, int64_t end);
  // Fills features, columns and norms for the rows of a block. x begins at the factor's columns.
  void (*pack)(const Plan<T>&, const Factor<T>&, const Sample& x, Dtype dtype, const Block&);
  // Squared distances or inner products of block I against block J, [rows, J.vectors * lanes].
  // The squared distance of a row to itself is not meant to be read unless self pairs count.
  void (*statistics)(const Plan<T>&, const Factor<T>&, const Block& I, const Block& J, T* tile);
  // The whole work on tile (I, J), which stands for (J, I) too.
  // sums[0] (I and J of one domain) or sums[1] += sum_ij a_i a_j k_ij over ordered pairs;
  // sums[2 + t] += C sum a_i a_j phi_t, sums[2 + num_terms + t] += C sum a_i a_j c_t u phi_t'; in a
  // product, phi_t times the other factors. Gradients are those of C sum_ij a_i a_j k_ij.
  void (*tile)(const Plan<T>&, const Block& I, const Block& J, double C, const Scratch<T>&,
               double* sums);
  // v_i from the products that tile() has added up, the last step of the gradient.
  void (*finish)(const Plan<T>&, const Factor<T>&, const Block&);

  // Kernel values of block I against block J into the first tile of scratch, 0 for padding and,
  // unless they count, self pairs; rows up to a multiple of the register block are written.
  void (*values)(const Plan<T>&, const Block& I, const Block& J, const Scratch<T>&);
  // row_sums[I.row + i] += sum_j K_ij, and for I != J row_sums[J.row + j] += sum_i K_ij, of the
  // values that are in scratch.
  void (*add_row_sums)(const Block& I, const Block& J, const Scratch<T>&, double* row_sums);
  // out[i, k] += sum_j K_ij v[j, k] for the values in scratch; v is packed as features are, with
  // `rows` rows, of which those of J begin at `row`; out begins at the first row of I.
  void (*multiply)(const Block& I, const Block& J, const Scratch<T>&, const Panels& panels,
                   const T* v, int64_t rows, int64_t row, T* out, int64_t columns);
  // sums[b] += sum_ij K_ij v_ib v_jb for the values in scratch and the columns b of a panel of
  // signs: bit b of signs[i] chooses between v_ib = 1 and v_ib = minus, by domain.
  void (*add_forms)(const Block& I, const Block& J, const Scratch<T>&, int width,
                    const uint64_t* signs, T minus, double factor, T* room, double* sums);

  // Of random features; the tiles are projections, their rows frequencies and their columns points.
  // As pack(), but `features` alone.
  void (*pack_features)(const Plan<T>&, const Factor<T>&, const Sample& x, Dtype dtype,
                        const Block&);
  void (*add_rotations)(const T* tile, int64_t ld, int64_t rows, const Rates<T>&, const T* weights,
                        bool moments, double* sums, int64_t stride);
  void (*rotate)(T* tile, int64_t ld, int64_t rows, const Rates<T>&, const T* weights, const T* p,
                 const T* q, T* column_sums);
  void (*product)(bool transposed, const T* G, int64_t ld, int64_t rows, int64_t summed,
                  const Panels&, int64_t begin, int64_t end, const T* v, int64_t v_rows,
                  int64_t v_row, T* out, int64_t columns);
  void (*project)(const Block& J, const T* columns, int64_t d, const int8_t* signs, int64_t width,
                  const T* radii, int64_t rows, T* room, T* tile);
  void (*project_back)(const Block& J, T* columns, int64_t d, const int8_t* signs, int64_t width,
                       const T* radii, int64_t rows, T* room, const T* tile);
  void (*unpack_columns)(const Block& J, const T* columns, int64_t d, T* out);
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
