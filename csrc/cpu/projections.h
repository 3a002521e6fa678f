// Points and frequencies of random features, from rows in memory to tiles of projections.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/points.h"
#include "random_features.h"

namespace fastmmd::cpu {

// Rows in blocks of one size.
struct Rows {
  int64_t rows, block, unit, lanes;

  int64_t blocks() const { return round_up(rows, block) / block; }
  int64_t padded() const { return round_up(rows, unit); }
  Block at(int64_t b) const {
    const int64_t first = b * block, count = std::min(block, rows - first);
    return {first, first, int(count), int(round_up(count, unit) / lanes), 0};
  }
};

// Points and frequencies as the tiles read them.
template <class T>
class Projections {
 public:
  // `all`: points are packed once, for whoever needs them; else each thread packs a block. The same
  // of frequencies, unless each is met but once, by a single block of points.
  Projections(const FeatureArgs& given, bool all, bool with_features)
      : args(given),
        tiles(tile_kernels<T>()),
        arena(given.workspace),
        team(given.interrupted, given.interrupted_context),
        all_(all),
        features_kept_(all && with_features) {
    const int64_t n = args.x.rows, F = args.frequencies.rows, unit = tiles.row_unit;
    structured = args.transforms.signs || args.transforms.width;
    const int64_t rows = structured ? args.transforms.width : rows_of_tile;
    int64_t columns = tile_bytes / (rows * int64_t(sizeof(T))) / 96 * 96;
    columns = std::clamp<int64_t>(columns, 96, columns_of_tile);
    frequencies = {F, round_up(std::min(rows, structured ? rows : F), unit), unit, tiles.lanes};
    points = {n, round_up(std::min(columns, n), unit), unit, tiles.lanes};
    panels = {round_up(args.d, tiles.lanes) / tiles.lanes, tiles.panel_vectors};
    const double work = double(n) * double(F) * double(args.d + 40);
    threads = std::max(1, int(std::min<double>(args.threads, work / 2e6 + 1)));

    const int64_t width = panels.vectors * tiles.lanes, d = args.d;
    rates.fill(args.rates, args.rates ? args.num_rates : 0, double(std::numeric_limits<T>::max()));
    rounded_ = arena.take<double>(d);
    zeros_ = arena.take<double>(d);
    weights = arena.take<T>(points.padded());
    radii = arena.take<T>(structured ? F : 0);
    met_once_ = points.blocks() == 1;
    packed_ = arena.take<T>(structured || met_once_ ? 0 : frequencies.padded() * width);
    columns_ = arena.take<T>(all ? points.padded() * d : 0);
    features_ = arena.take<T>(features_kept_ ? points.padded() * width : 0);
    for (int t = 0; t < threads; ++t) {
      Room r;
      r.tile = arena.take<T>(frequencies.block * points.block);
      r.features = arena.take<T>(features_kept_ ? 0 : points.block * width);
      r.columns = arena.take<T>(all ? 0 : points.block * d);
      r.frequencies = arena.take<T>(structured || !met_once_ ? 0 : frequencies.block * width);
      r.butterflies =
          arena.take<T>(structured ? args.transforms.width * tiles.panel_vectors * tiles.lanes : 0);
      if (t == 0) room_ = r;
      if (t == 1) stride_ = reinterpret_cast<char*>(r.tile) - reinterpret_cast<char*>(room_.tile);
    }
  }

  struct Room {
    T *tile, *features, *columns, *frequencies, *butterflies;
  };

  Room room(int rank) const {
    Room r = room_;
    for (T** piece : {&r.tile, &r.features, &r.columns, &r.frequencies, &r.butterflies})
      *piece = reinterpret_cast<T*>(reinterpret_cast<char*>(*piece) + rank * stride_);
    return r;
  }

  // Packs all that is shared, the points about `center`. Every rank calls this.
  void prepare(int rank, const double* center) {
    team.share(rounding_, rank, 1, [&](int64_t) {
      for (int64_t k = 0; k < args.d; ++k) {
        rounded_[k] = double(T(center[k]));
        zeros_[k] = 0;
      }
      const double scale = double(args.x.rows);  // mean 1: sums are in the range of a few numbers
      for (int64_t i = 0; i < points.padded(); ++i)
        weights[i] = i >= points.rows ? T(0) : T(args.x.weights ? args.x.weights[i] * scale : 1);
      for (int64_t j = 0; structured && j < frequencies.rows; ++j)
        radii[j] = T(args.transforms.radii[j]);
    });
    const Room r = room(rank);
    const int64_t shared = all_ ? points.blocks() : 0;
    const int64_t given = structured || met_once_ ? 0 : frequencies.blocks();
    team.share(packing_, rank, shared + given, [&](int64_t b) {
      if (b < shared) pack_points(points.at(b), r);
      else pack_frequencies(b - shared, r);
    });
  }

  // The points of a block, in the order that projections read; packed here if not before.
  const T* columns_of(int64_t b, const Room& r) {
    if (all_) return columns_ + points.at(b).row * args.d;
    pack_points(points.at(b), r);
    return r.columns;
  }

  // All points in the order in which products read them.
  const T* features() const { return features_; }

  // The tile of frequencies I and the points J that are packed in `columns`.
  void project(int64_t i, const Block& J, const T* columns, const Room& r) const {
    const Block I = frequencies.at(i);
    if (structured) {
      tiles.project(J, columns, args.d, signs(i), args.transforms.width, radii + I.row, I.rows,
                    r.butterflies, r.tile);
      return;
    }
    if (met_once_) pack_frequencies(i, r);
    const Packed w = packed(i, r);
    Plan<T> plan{};
    plan.padded_rows = w.rows;
    Factor<T> f = factor();
    f.features = w.data;
    f.columns = const_cast<T*>(columns);
    Block at_0 = J, here = I;
    at_0.row = 0;
    here.row = w.row;
    tiles.statistics(plan, f, here, at_0, r.tile);
  }

  // Where the frequencies of a block that has been projected lie, in the order of products.
  struct Packed {
    T* data;
    int64_t rows, row;  // in all, and the first
  };
  Packed packed(int64_t i, const Room& r) const {
    if (met_once_) return {r.frequencies, frequencies.block, 0};
    return {packed_, frequencies.padded(), frequencies.at(i).row};
  }

  const int8_t* signs(int64_t i) const {
    return args.transforms.signs + i * 3 * args.transforms.width;
  }

  const FeatureArgs args;
  const TileKernels<T>& tiles;
  Arena arena;
  Team team;
  bool structured;
  Rows frequencies, points;
  Panels panels;
  int threads;
  Rates<T> rates;
  T *weights, *radii;

 private:
  // A tile, the points that it reads and what is added up over it stay in the L2 cache.
  static constexpr int64_t rows_of_tile = 128, columns_of_tile = 384, tile_bytes = 1 << 19;

  Factor<T> factor() const {
    Factor<T> f{};
    f.d = args.d;
    f.geometry = Geometry::dot;
    f.feature_panels = panels;
    f.scale = 1;
    return f;
  }

  void pack_points(const Block& block, const Room& r) {
    Plan<T> plan{};
    Factor<T> f = factor();
    f.mean = rounded_;
    Block to = block;
    if (features_kept_) {
      plan.padded_rows = points.padded();
      f.features = features_;
      f.columns = columns_;
    } else {
      plan.padded_rows = int64_t(block.vectors) * tiles.lanes;
      f.features = r.features;
      f.columns = all_ ? columns_ + block.row * args.d : r.columns;
      to.row = 0;
    }
    tiles.pack(plan, f, args.x, args.dtype, to);
  }

  void pack_frequencies(int64_t i, const Room& r) const {
    const Packed to = packed(i, r);
    Block block = frequencies.at(i);
    block.row = to.row;
    Plan<T> plan{};
    plan.padded_rows = to.rows;
    Factor<T> f = factor();
    f.mean = zeros_;
    f.features = to.data;
    tiles.pack_features(plan, f, args.frequencies, sizeof(T) == 8 ? Dtype::float64 : Dtype::float32,
                        block);
  }

  bool all_, features_kept_, met_once_;
  double *rounded_, *zeros_;
  T *columns_, *features_, *packed_;
  Room room_;
  ptrdiff_t stride_ = 0;
  Phase rounding_, packing_;
};

}  // namespace fastmmd::cpu
