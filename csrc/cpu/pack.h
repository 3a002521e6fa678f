// Samples to packed rows, and gradients of packed rows to gradients of samples.
#pragma once

#include <type_traits>

#include "cpu/simd.h"
#include "cpu/source.h"
#include "cpu/tile.h"

namespace fastmmd::cpu::FASTMMD_ISA {
namespace {

// Features summed before the tile is touched: a streamed panel of them stays in the L1 cache, and a
// sum of partial sums loses fewer digits than one long one.
constexpr int64_t chunk_features = 192;

template <class T>
struct Packing {
  using S = Simd<T>;
  using V = typename S::V;
  static constexpr int lanes = S::lanes;

  // ---- layout ----

  static T* feature_row(const Plan<T>& plan, const Factor<T>& f, int64_t p, int64_t row) {
    const Panels& panels = f.feature_panels;
    return f.features + (plan.padded_rows * panels.first(p) + row * panels.width(p)) * lanes;
  }

  static int64_t panel_features(const Factor<T>& f, int64_t p) {
    const int64_t left = f.d - f.feature_panels.first(p) * lanes;
    const int64_t width = f.feature_panels.width(p) * lanes;
    return left < width ? left : width;
  }

  static Panels row_panels(const Block& block) { return {block.vectors, tile_vectors}; }

  static T* column_panel(const Factor<T>& f, const Block& block, int64_t q) {
    return f.columns + (block.row + row_panels(block).first(q) * lanes) * f.d;
  }

  // Chunks of features are whole panels.
  static int64_t panels_per_chunk() { return chunk_features / (tile_vectors * lanes); }
  static int64_t chunks(const Factor<T>& f) {
    return (f.feature_panels.count() + panels_per_chunk() - 1) / panels_per_chunk();
  }
  static int64_t chunk_panel(const Factor<T>& f, int64_t c) {
    const int64_t p = c * panels_per_chunk();
    return p < f.feature_panels.count() ? p : f.feature_panels.count();
  }
  static int64_t chunk_begin(const Factor<T>& f, int64_t c) {
    const int64_t p = chunk_panel(f, c);
    return p < f.feature_panels.count() ? f.feature_panels.first(p) * lanes : f.d;
  }

  // ---- packing ----

  static void pack_features(const Plan<T>& plan, const Factor<T>& f, const Sample& x, Dtype dtype,
                            const Block& block) {
    const FlushSubnormals flush;
    const T scale = f.scale;
    const Panels& panels = f.feature_panels;
    const int64_t padded = int64_t(block.vectors) * lanes;
    for (int64_t p = 0; p < panels.count(); ++p) {
      const int64_t k0 = panels.first(p) * lanes;
      const int64_t width = panels.width(p) * lanes;
      const int64_t features = panel_features(f, p);
      const double* mean = f.mean + k0;
      with_source(x, dtype, [&](auto data) {
        int64_t i = 0;
        if constexpr (std::is_same_v<decltype(data), const T*>)
          if (x.row_stride == 1 && x.column_stride != 1)
            for (; i + lanes <= block.rows; i += lanes)
              turn(data + block.start + i + k0 * x.column_stride, x.column_stride, features, mean,
                   scale, feature_row(plan, f, p, block.row + i), width);
        for (; i < padded; ++i) {
          T* out = feature_row(plan, f, p, block.row + i);
          int64_t k = 0;
          if (i < block.rows) {
            auto row = data + (block.start + i) * x.row_stride + k0 * x.column_stride;
            for_columns(row, x.column_stride, 0, features,
                        [&](int64_t c, auto v) { out[c] = (T(v) - T(mean[c])) * scale; });
            k = features;
          }
          for (; k < width; ++k) out[k] = 0;
        }
      });
    }
  }

  // As many rows as a vector has lanes, which lie across the memory: read along it, and turned.
  static FASTMMD_INLINE void turn(const T* data, int64_t stride, int64_t features,
                                  const double* mean, T scale, T* out, int64_t width) {
    for (int64_t k = 0; k < width; k += lanes) {
      V square[lanes];
      for (int c = 0; c < lanes; ++c) {
        square[c] = V{};
        if (k + c < features)
          square[c] = (S::load(data + (k + c) * stride) - T(mean[k + c])) * scale;
      }
      S::transpose(square);
      for (int r = 0; r < lanes; ++r) S::store(out + r * width + k, square[r]);
    }
  }

  static void pack(const Plan<T>& plan, const Factor<T>& f, const Sample& x, Dtype dtype,
                   const Block& block) {
    const FlushSubnormals flush;
    const Panels& panels = f.feature_panels;
    pack_features(plan, f, x, dtype, block);
    if (f.geometry == Geometry::cosine) normalise(plan, f, block);

    const Panels rows = row_panels(block);
    for (int64_t q = 0; q < rows.count(); ++q) {
      const int64_t width = rows.width(q) * lanes;
      T* panel = column_panel(f, block, q);
      for (int64_t v = 0; v < rows.width(q); ++v) {
        const int64_t row = block.row + (rows.first(q) + v) * lanes;
        for (int64_t p = 0; p < panels.count(); ++p) {
          const int64_t stride = panels.width(p) * lanes;
          for (int64_t u = 0; u < panels.width(p); ++u) {
            const T* in = feature_row(plan, f, p, row) + u * lanes;
            V square[lanes];
#pragma GCC unroll 16
            for (int r = 0; r < lanes; ++r) square[r] = S::load(in + r * stride);
            S::transpose(square);
            const int64_t k0 = (panels.first(p) + u) * lanes;
            const int64_t left = f.d - k0 < lanes ? f.d - k0 : lanes;
            T* out = panel + k0 * width + v * lanes;
            for (int64_t k = 0; k < left; ++k) S::store(out + k * width, square[k]);
          }
        }
      }
      if (f.geometry != Geometry::radial) continue;
      // Summed in the order of the inner products, so that equal rows have distance 0 exactly.
      for (int64_t v = 0; v < rows.width(q); ++v) {
        V norm{};
        for (int64_t c = 0; c < chunks(f); ++c) {
          V sum{};
          for (int64_t k = chunk_begin(f, c); k < chunk_begin(f, c + 1); ++k) {
            const V z = S::load(panel + k * width + v * lanes);
            sum += z * z;
          }
          norm = c ? norm + sum : sum;
        }
        S::store(f.norms + block.row + (rows.first(q) + v) * lanes, norm);
      }
    }
  }

  // Rows to norm 1; a row of zeros stays one.
  static void normalise(const Plan<T>& plan, const Factor<T>& f, const Block& block) {
    for (int64_t i = 0; i < int64_t(block.vectors) * lanes; ++i) {
      double norm = 0;
      for (int64_t p = 0; p < f.feature_panels.count(); ++p) {
        const T* z = feature_row(plan, f, p, block.row + i);
        for (int64_t k = 0; k < panel_features(f, p); ++k) norm += double(z[k]) * double(z[k]);
      }
      const double inverse = norm == 0 ? 0 : 1 / __builtin_sqrt(norm);
      f.norms[block.row + i] = T(inverse);
      for (int64_t p = 0; p < f.feature_panels.count(); ++p) {
        T* z = feature_row(plan, f, p, block.row + i);
        for (int64_t k = 0; k < panel_features(f, p); ++k) z[k] = T(double(z[k]) * inverse);
      }
    }
  }

  // With v_i = sum_j g_ij z_j, G the gradient weights, to the gradient of the row as it was given.
  static void finish(const Plan<T>& plan, const Factor<T>& f, const Block& block) {
    for (int64_t i = 0; i < block.rows; ++i) {
      T* v = plan.v[block.domain] + (block.start + i) * plan.d + f.column;
      T pull = 0, scale = f.scale;  // dz / dx
      if (f.geometry == Geometry::radial) {
        pull = T(f.pulls[block.row + i]);
      } else if (f.geometry == Geometry::cosine) {  // along the sphere only
        scale *= f.norms[block.row + i];
        double along = 0;
        for (int64_t p = 0; p < f.feature_panels.count(); ++p) {
          const T* z = feature_row(plan, f, p, block.row + i);
          const T* to = v + f.feature_panels.first(p) * lanes;
          for (int64_t k = 0; k < panel_features(f, p); ++k) along += double(to[k]) * double(z[k]);
        }
        pull = T(-along);
      }
      for (int64_t p = 0; p < f.feature_panels.count(); ++p) {
        const T* z = feature_row(plan, f, p, block.row + i);
        T* to = v + f.feature_panels.first(p) * lanes;
        for (int64_t k = 0; k < panel_features(f, p); ++k) to[k] = (to[k] + pull * z[k]) * scale;
      }
    }
  }
};

}  // namespace
}  // namespace fastmmd::cpu::FASTMMD_ISA
