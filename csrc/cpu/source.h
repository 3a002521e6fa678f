// Reading samples: any element type, any strides.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/tile.h"

namespace fastmmd::cpu::FASTMMD_ISA {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline float convert(float v) { return v; }
inline double convert(double v) { return v; }
inline float convert(BFloat h) { return from_bits(uint32_t(h.bits) << 16); }

inline float convert(Half h) {
  const uint32_t magnitude = h.bits & 0x7fffu;
  // By way of integers, as a float32 subnormal could be flushed to zero on the way.
  const float subnormal = float(int32_t(magnitude)) * 0x1p-24f;
  const float normal = from_bits((magnitude << 13) + 0x38000000u);  // 112 more on the exponent
  const float special = from_bits((magnitude << 13) | 0x7f800000u);
  const float f = magnitude < 0x400u ? subnormal : magnitude < 0x7c00u ? normal : special;
  return h.bits & 0x8000u ? -f : f;
}

// Calls use(pointer) with the data as elements of their type.
template <class Use>
FASTMMD_INLINE void with_source(const Sample& x, Dtype dtype, Use&& use) {
  switch (dtype) {
    case Dtype::float32: return use(static_cast<const float*>(x.data));
    case Dtype::float64: return use(static_cast<const double*>(x.data));
    case Dtype::float16: return use(static_cast<const Half*>(x.data));
    case Dtype::bfloat16: return use(static_cast<const BFloat*>(x.data));
  }
}

// Calls use(k, element) for columns [begin, end) of a row, in a loop that vectorises where the
// elements are contiguous.
template <class Source, class Use>
FASTMMD_INLINE void for_columns(const Source* row, int64_t stride, int64_t begin, int64_t end,
                                Use&& use) {
  if (stride == 1)
    for (int64_t k = begin; k < end; ++k) use(k, convert(row[k]));
  else
    for (int64_t k = begin; k < end; ++k) use(k, convert(row[k * stride]));
}

void read_row(const Sample& x, Dtype dtype, int64_t d, double* row) {
  with_source(x, dtype, [&](auto data) {
    for_columns(data, x.column_stride, 0, d, [&](int64_t k, auto v) { row[k] = double(v); });
  });
}

void add_columns(const Sample& x, Dtype dtype, int64_t d, const double* origin, int64_t begin,
                 int64_t end, double* sums, int64_t* largest) {
  int64_t most = 0;
  with_source(x, dtype, [&](auto data) {
    for (int64_t i = begin; i < end; ++i)
      for_columns(data + i * x.row_stride, x.column_stride, 0, d, [&](int64_t k, auto v) {
        const double difference = double(v) - origin[k];
        sums[k] += difference;
        int64_t bits;
        std::memcpy(&bits, &difference, sizeof bits);
        bits &= INT64_MAX;  // without the sign: ordered as the magnitudes are
        most = bits > most ? bits : most;
      });
  });
  *largest = most;
}

// out[i] = <x_i, c> for rows [begin, begin + rows), in an order that no stride changes: side by
// side, as one sum would be a chain.
void inner_products(const Sample& x, Dtype dtype, int64_t d, const double* c, int64_t begin,
                    int64_t rows, double* out) {
  constexpr int sums = 8, together = 16;
  with_source(x, dtype, [&](auto data) {
    data += begin * x.row_stride;
    int64_t i = 0;
    if (x.row_stride == 1)
      for (; i + together <= rows; i += together) {
        double part[sums][together] = {};
        for (int64_t k = 0; k < d; ++k) {
          const auto* column = data + i + k * x.column_stride;
          for (int u = 0; u < together; ++u) part[k % sums][u] += c[k] * double(convert(column[u]));
        }
        for (int u = 0; u < together; ++u) {
          out[i + u] = 0;
          for (int s = 0; s < sums; ++s) out[i + u] += part[s][u];
        }
      }
    for (; i < rows; ++i) {
      double part[sums] = {};
      auto add = [&](auto stride) {
        const auto* row = data + i * x.row_stride;
        int64_t k = 0;
        for (; k + sums <= d; k += sums)
          for (int s = 0; s < sums; ++s)
            part[s] += c[k + s] * double(convert(row[(k + s) * stride]));
        for (int s = 0; k < d; ++k, ++s) part[s] += c[k] * double(convert(row[k * stride]));
      };
      if (x.column_stride == 1) add(std::integral_constant<int64_t, 1>{});
      else add(x.column_stride);
      out[i] = 0;
      for (double sum : part) out[i] += sum;
    }
  });
}

double squares(const Sample& x, Dtype dtype, int64_t d, const double* mean, double scale,
               int64_t begin, int64_t end) {
  double sum = 0;
  with_source(x, dtype, [&](auto data) {
    for (int64_t i = begin; i < end; ++i) {
      double row[8] = {};  // side by side, as one sum would be a chain
      for_columns(data + i * x.row_stride, x.column_stride, 0, d, [&](int64_t k, auto v) {
        const double z = scale * (double(v) - mean[k]);
        row[k % 8] += z * z;
      });
      for (double part : row) sum += part;
    }
  });
  return sum;
}

}  // namespace
}  // namespace fastmmd::cpu::FASTMMD_ISA
