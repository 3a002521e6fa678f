// The pooled sample, from rows in memory to packed, centred and scaled blocks with a kernel whose
// bandwidths are known: what every pass does before its tiles.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <numeric>

#include "cpu/dispatch.h"
#include "cpu/median.h"
#include "cpu/team.h"
#include "segments.h"

namespace fastmmd::cpu {

constexpr int64_t round_up(int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }

inline int64_t total_width(const Problem& problem) {
  int64_t d = 0;
  for (int l = 0; l < problem.num_factors; ++l) d += problem.widths[l];
  return d;
}

// Rows of a block. Each tile re-reads the rows of its two blocks and their gradients, so large
// blocks take less bandwidth, which wide rows and samples beyond the L3 cache ask for; a tile of
// block^2 values has to stay in the L2 cache (384^2 float32: 576 KiB); and a tournament of P blocks
// keeps only P / 2 threads busy, so small samples want small blocks.
inline int64_t block_rows(int64_t rows, int64_t d, size_t element) {
  const int64_t largest = element == 4 ? 384 : 256;
  int64_t block = 32;
  if (rows >= 12288 || (rows >= 3072 && d >= 768)) block = largest;
  else if (rows >= 3072) block = largest / 2;
  else if (rows >= 768) block = 96;
  else if (rows >= 384) block = 64;
  // A tile is not interrupted, and should take a fraction of a second on any processor.
  while (block > 32 && 6.0 * double(block * block) * double(d) > 1e10) block /= 2;
  return block;
}

// The blocks of the pooled rows, and how many threads they are worth.
template <class T>
class Layout {
 public:
  // `block`: rows of every block but the last of each domain; 0 to choose, and cut evenly.
  Layout(const Problem& problem, int64_t block, double work) {
    const TileKernels<T>& k = tile_kernels<T>();
    const int64_t d = total_width(problem);
    rows_[0] = problem.x.rows;
    rows_[1] = problem.y.rows;
    unit_ = k.row_unit;
    lanes_ = k.lanes;
    fixed_ = block / unit_;
    if (fixed_) block = fixed_ * unit_;
    if (!block) block = block_rows(rows_[0] + rows_[1], d, sizeof(T));
    for (int domain = 0; domain < 2; ++domain) {
      units_[domain] = round_up(rows_[domain], unit_) / unit_;
      blocks_[domain] = round_up(units_[domain] * unit_, block) / block;
    }
    padded_rows = (units_[0] + units_[1]) * unit_;
    largest_block = 0;
    if (fixed_) largest_block = std::min(block, std::max(units_[0], units_[1]) * unit_);
    else
      for (int64_t b = 0; b < blocks(); ++b)
        largest_block = std::max<int64_t>(largest_block, int64_t(at(b).vectors) * lanes_);

    // One thread does about 2 million multiply-adds while a team of them wakes up.
    threads_ = int(std::min<double>({double(problem.threads), work / 2e6 + 1, double(blocks())}));
    threads_ = std::max(threads_, 1);
  }

  int64_t blocks() const { return blocks_[0] + blocks_[1]; }
  int64_t blocks(int domain) const { return blocks_[domain]; }
  int64_t rows(int domain) const { return rows_[domain]; }
  int64_t rows_of_block() const { return fixed_ * unit_; }  // where all are of one size
  int64_t first_row(int domain) const { return domain ? units_[0] * unit_ : 0; }
  int64_t end_row(int domain) const { return domain ? padded_rows : units_[0] * unit_; }
  int threads() const { return threads_; }

  Block at(int64_t b) const {
    const int domain = b >= blocks_[0];
    if (domain) b -= blocks_[0];
    const int64_t first = fixed_ ? b * fixed_ : b * units_[domain] / blocks_[domain];
    const int64_t last = fixed_ ? std::min((b + 1) * fixed_, units_[domain])
                                : (b + 1) * units_[domain] / blocks_[domain];
    const int64_t start = first * unit_;
    return {start + first_row(domain), start, int(std::min(last * unit_, rows_[domain]) - start),
            int((last - first) * unit_ / lanes_), domain};
  }

  int64_t padded_rows, largest_block;

 private:
  int64_t rows_[2], units_[2], blocks_[2], unit_, lanes_, fixed_;
  int threads_;
};

// Hands out pieces of the workspace; with no workspace it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {
    offset_ = base ? size_t(-reinterpret_cast<uintptr_t>(base)) % line : line;
  }

  template <class U>
  U* take(int64_t count) {
    U* piece = base_ ? reinterpret_cast<U*>(base_ + offset_) : nullptr;
    offset_ += round_up(count * int64_t(sizeof(U)), line);
    return piece;
  }

  size_t bytes() const { return offset_; }

  static constexpr int64_t line = 64;

 private:
  char* base_;
  size_t offset_;
};

// One factor of the kernel on the pooled sample: statistics of its columns, and its packed rows.
template <class T>
class FactorPoints {
 public:
  Factor<T> factor{};
  int exponent = 0;  // rows are scaled by 2^-exponent
  bool all_equal = false;

  // The workspace of the factor whose first column is `column`.
  void set(const Problem& problem, int64_t column, int l, const Layout<T>& layout, bool centred,
           bool gradients, bool packed, Arena& arena) {
    const TileKernels<T>& k = tile_kernels<T>();
    const int64_t d = problem.widths[l];
    problem_ = &problem;
    layout_ = &layout;
    factor.d = d;
    factor.column = column;
    factor.feature_panels = {round_up(d, k.lanes) / k.lanes, k.panel_vectors};
    int first = 0;
    while (first < problem.num_terms && problem.terms[first].factor < l) ++first;
    int last = first;
    while (last < problem.num_terms && problem.terms[last].factor == l) ++last;
    factor.first_term = first;
    factor.num_terms = last - first;
    factor.geometry = first < last ? geometry(problem.terms[first].family) : Geometry::radial;
    centred_ = centred || factor.geometry == Geometry::radial;
    for (int domain = 0; domain < 2; ++domain)
      chunks_[domain] = round_up(layout.rows(domain), chunk_rows) / chunk_rows;

    const int64_t rows = packed ? layout.padded_rows : 0;
    packed_ = packed;
    factor.features = arena.take<T>(rows * factor.feature_panels.vectors * k.lanes);
    factor.columns = arena.take<T>(rows * d);
    factor.norms = arena.take<T>(rows);
    factor.pulls = arena.take<double>(gradients ? layout.padded_rows : 0);
    mean_ = arena.take<double>(d);
    factor.mean = mean_;
    origin_ = arena.take<double>(d);
    partial_ = arena.take<double>(chunks() * d);
    largest_ = arena.take<int64_t>(chunks());
    squares_ = arena.take<double>(packed ? 0 : chunks());
  }

  Sample sample(int domain) const {
    Sample s = domain ? problem_->y : problem_->x;
    const bool wide = problem_->dtype == Dtype::float64, half = problem_->dtype >= Dtype::float16;
    s.data = static_cast<const char*>(s.data) + factor.column * s.column_stride *
                                                    (wide   ? 8
                                                     : half ? 2
                                                            : 4);
    return s;
  }

  bool wants(Unit unit) const {
    const Term* first = problem_->terms + factor.first_term;
    return std::any_of(first, first + factor.num_terms,
                       [unit](const Term& t) { return t.unit == unit; });
  }

  // The pooled mean, summed in chunks of rows whose order is fixed, and the scale of the data. Rows
  // are taken relative to the first one, so that equal rows are exactly at their mean.
  void center(Team& team, int rank) {
    const TileKernels<T>& tiles = tile_kernels<T>();
    const int64_t d = factor.d, chunks = this->chunks();
    const Dtype dtype = problem_->dtype;
    team.share(reading_, rank, 1, [&](int64_t) { tiles.read_row(sample(0), dtype, d, origin_); });
    team.share(summing_, rank, chunks, [&](int64_t c) {
      double* sums = partial_ + c * d;
      std::fill_n(sums, d, 0.0);
      const Chunk chunk = this->chunk(c);
      tiles.add_columns(sample(chunk.domain), dtype, d, origin_, chunk.begin, chunk.end, sums,
                        largest_ + c);
    });
    const double rows = double(layout_->rows(0) + layout_->rows(1));
    constexpr int64_t slice = 512;
    const int64_t slices = round_up(d, slice) / slice;
    team.share(centering_, rank, slices + 1, [&](int64_t s) {
      if (s == slices) return choose_scale(*std::max_element(largest_, largest_ + chunks));
      const int64_t begin = s * slice, end = std::min(d, begin + slice);
      for (int64_t c = 1; c < chunks; ++c)
        for (int64_t k = begin; k < end; ++k) partial_[k] += partial_[c * d + k];
      for (int64_t k = begin; k < end; ++k)
        mean_[k] = centred_ ? origin_[k] + partial_[k] / rows : 0;
    });
    team.share(squaring_, rank, packed_ || !wants(Unit::mean) ? 0 : chunks, [&](int64_t c) {
      const Chunk chunk = this->chunk(c);
      squares_[c] = tiles.squares(sample(chunk.domain), dtype, d, mean_, double(factor.scale),
                                  chunk.begin, chunk.end);
    });
  }

  // mean_{i != j} |z_i - z_j|^2 = (2 N sum |z_i|^2 - 2 |sum z_i|^2) / (N (N - 1)), in O(N d).
  double mean_distance() const {
    const double rows = double(layout_->rows(0) + layout_->rows(1));
    if (!packed_)  // about the mean itself
      return 2 * std::accumulate(squares_, squares_ + chunks(), 0.0) / (rows - 1);
    double norms = 0, lost = 0, center = 0;
    for (int64_t i = 0; i < layout_->padded_rows; ++i) {  // compensated: one row may be far out
      const double norm = double(factor.norms[i]) - lost, sum = norms + norm;
      lost = sum - norms - norm;
      norms = sum;
    }
    for (int64_t k = 0; k < factor.d; ++k) {
      // What rounding the mean has left of the sum of the centred rows.
      const double shift = double(T(mean_[k])) - origin_[k];
      const double sum = (partial_[k] - rows * shift) * double(factor.scale);
      center += sum * sum;
    }
    return (2 * rows * norms - 2 * center) / (rows * (rows - 1));
  }

  // The medians that are wanted; every rank calls this.
  template <class CountsAt>
  void find_medians(Team& team, int rank, const Plan<T>& plan, const Scratch<T>& scratch,
                    const CountsAt& counts_at) {
    // Once the team is stopped, others may still be packing what the mean is taken of.
    const bool first = rank == 0 && !team.stopped();
    for (Unit unit : {Unit::median, Unit::x_median}) {
      if (!wants(unit)) continue;
      const bool all = unit == Unit::x_median;
      median_[all].run(
          team, rank, tile_kernels<T>(), plan, factor, all ? layout_->blocks(0) : layout_->blocks(),
          all, first ? mean_distance() : 0, scratch, [this](int64_t b) { return layout_->at(b); },
          counts_at);
    }
  }

  // What the scales of a term are divided by, of the scaled rows.
  double unit(Unit unit) const {
    switch (unit) {
      case Unit::fixed: return std::ldexp(1.0, -2 * exponent_of_statistic());
      case Unit::mean: return mean_distance();
      case Unit::median: return median_[0].answer();
      case Unit::x_median: return median_[1].answer();
      case Unit::width: return double(factor.d) * std::ldexp(1.0, -2 * exponent_of_statistic());
    }
    return 0;
  }

  // u of the rows as given is 2^(2 this) times u of the scaled rows.
  int exponent_of_statistic() const { return factor.geometry == Geometry::cosine ? 0 : exponent; }

 private:
  static constexpr int64_t chunk_rows = 256;  // of the column sums

  int64_t chunks() const { return chunks_[0] + chunks_[1]; }

  struct Chunk {
    int domain;
    int64_t begin, end;
  };
  Chunk chunk(int64_t c) const {
    const int domain = c >= chunks_[0];
    const int64_t begin = (c - (domain ? chunks_[0] : 0)) * chunk_rows;
    return {domain, begin, std::min(begin + chunk_rows, layout_->rows(domain))};
  }

  void choose_scale(int64_t bits) {
    double largest;
    std::memcpy(&largest, &bits, sizeof largest);
    all_equal = largest == 0;
    if (!centred_) {
      double offset = 0;
      for (int64_t k = 0; k < factor.d; ++k) offset = std::max(offset, std::abs(origin_[k]));
      largest += offset;
    }
    // Just as much as brings the squares of all rows, and their differences', into the range of T:
    // bandwidths are scaled with them, and have a range of their own.
    constexpr int margin = sizeof(T) == 4 ? 40 : 400;
    const int size = largest == 0 || !std::isfinite(largest) ? 0 : std::ilogb(largest);
    exponent = size > margin ? size - margin : size < -margin ? size + margin : 0;
    factor.scale = T(std::ldexp(1.0, -exponent));
  }

  const Problem* problem_;
  const Layout<T>* layout_;
  bool centred_, packed_;
  int64_t chunks_[2];
  double *mean_, *origin_, *partial_, *squares_;
  int64_t* largest_;
  Median<T> median_[2];
  Phase reading_, summing_, centering_, squaring_;
};

// The points of a pass, and the room that its threads work in.
template <class T>
class Points {
 public:
  struct Wants {
    bool centred;     // whether the result does not feel a shift of all points, whatever the kernel
    bool gradients;   // of the points
    bool potentials;  // of the weights
    int terms;        // whose gradients are wanted: all, or 0
    int64_t block;    // rows of a block, 0 to choose
    double work;      // multiply-adds, in all
    bool packed = true;  // if not, only what the mean distance needs is done
  };

  Points(const Problem& given, const Wants& wants)
      : problem(given),
        tiles(tile_kernels<T>()),
        layout(problem, wants.block, wants.work),
        arena(problem.workspace),
        team(problem.interrupted, problem.interrupted_context) {
    const int64_t block = layout.largest_block;
    const int L = problem.num_factors;
    int64_t column = 0;
    for (int l = 0; l < L; ++l) {
      factor_points_[l].set(problem, column, l, layout, wants.centred, wants.gradients,
                            wants.packed, arena);
      column += problem.widths[l];
    }
    plan.d = column;
    plan.padded_rows = layout.padded_rows;
    plan.lanes = tiles.lanes;
    plan.pairs = {};
    plan.factors = factors_;
    plan.num_factors = plan.num_moving = L;
    plan.num_terms = wants.terms;
    plan.v[0] = plan.v[1] = nullptr;
    plan.weights = arena.take<T>(layout.padded_rows);
    plan.potentials = wants.potentials ? arena.take<double>(layout.padded_rows) : nullptr;
    gradients_ = wants.gradients;
    packed_ = wants.packed;
    row_of_sums = 2 + 2 * wants.terms;
    sums = arena.take<double>(layout.blocks() * row_of_sums);
    rounds = arena.take<std::atomic<int64_t>>(layout.blocks());
    for (int t = 0; t < layout.threads(); ++t) {
      Scratch<T> s;
      s.tile = block * block;
      s.block = block;
      s.tiles = arena.take<T>(L * block * block);
      s.weights = arena.take<T>(block);
      s.near_distances = arena.take<T>(block);
      s.column_pulls = arena.take<T>(L * block);
      s.column_sums = arena.take<T>(block);
      s.values = arena.take<T>(L > 1 ? L * block : 0);
      s.slopes = arena.take<T>(L > 1 ? L * block : 0);
      s.others = arena.take<T>(L > 1 ? block : 0);
      s.near = arena.take<int>(block);
      s.terms = arena.take<T>(2 * max_terms * tiles.lanes);
      typename Median<T>::Counts* c = arena.take<typename Median<T>::Counts>(1);
      if (t == 0) scratch_ = s, counts_ = c;
      if (t == 1)
        stride_ = reinterpret_cast<char*>(s.tiles) - reinterpret_cast<char*>(scratch_.tiles);
    }
  }

  Points(const Points&) = delete;

  // A piece of `first`, the one of rank 0, for another rank.
  template <class U>
  U* of_thread(U* first, int rank) const {
    return reinterpret_cast<U*>(reinterpret_cast<char*>(first) + rank * stride_);
  }

  Scratch<T> scratch(int rank) const {
    Scratch<T> s = scratch_;
    for (T** piece : {&s.tiles, &s.weights, &s.near_distances, &s.column_pulls, &s.column_sums,
                      &s.values, &s.slopes, &s.others, &s.terms})
      *piece = of_thread(*piece, rank);
    s.near = of_thread(s.near, rank);
    return s;
  }

  // Weights with mean one. Before the team starts.
  struct Masses {
    double sum;      // of the weights as given
    double squares;  // sum a_i^2
    double pairs;    // sum_{i != j} a_i a_j, which rows^2 - squares may cancel to
  };
  Masses set_weights(int domain) {
    const Sample& x = domain ? problem.y : problem.x;
    T* a = plan.weights + layout.first_row(domain);
    const int64_t padded = layout.end_row(domain) - layout.first_row(domain);
    const double rows = double(x.rows);
    Masses masses = {rows, 0, 0};
    if (x.weights) {
      masses.sum = 0;
      for (int64_t i = 0; i < x.rows; ++i) masses.sum += x.weights[i];
    }
    for (int64_t i = 0; i < x.rows; ++i) {
      const double w = x.weights ? x.weights[i] / masses.sum * rows : 1;
      a[i] = T(w);
      masses.squares += w * w;
      masses.pairs += w * (rows - w);
    }
    for (int64_t i = x.rows; i < padded; ++i) a[i] = 0;
    return masses;
  }

  // Centres, packs and resolves the bandwidths; every rank calls this.
  void prepare(int rank) {
    for (int l = 0; l < plan.num_factors; ++l) factor_points_[l].center(team, rank);
    team.share(copying_, rank, 1, [&](int64_t) {
      for (int l = 0; l < plan.num_factors; ++l) {
        factors_[l] = factor_points_[l].factor;
        if (!gradients_) factors_[l].pulls = nullptr;
      }
    });
    team.share(packing_, rank, packed_ ? layout.blocks() : 0, [&](int64_t b) {
      const Block block = layout.at(b);
      const int64_t padded = int64_t(block.vectors) * tiles.lanes;
      for (int l = 0; l < plan.num_factors; ++l) {
        tiles.pack(plan, factors_[l], factor_points_[l].sample(block.domain), problem.dtype, block);
        if (gradients_) std::fill_n(factors_[l].pulls + block.row, padded, 0.0);
      }
      if (T* v = plan.v[block.domain])
        std::memset(v + block.start * plan.d, 0, size_t(block.rows) * plan.d * sizeof(T));
      if (plan.potentials) std::fill_n(plan.potentials + block.row, padded, 0.0);
      std::fill_n(sums + b * row_of_sums, row_of_sums, 0.0);
      new (rounds + b) std::atomic<int64_t>(0);
    });
    for (int l = 0; l < plan.num_factors; ++l)
      factor_points_[l].find_medians(
          team, rank, plan, scratch(rank),
          [this](int r) -> typename Median<T>::Counts& { return *of_thread(counts_, r); });
    team.share(resolving_, rank, 1, [&](int64_t) { resolve(); });
  }

  // Whether all points are one point.
  bool all_equal() const {
    return std::all_of(factor_points_, factor_points_ + plan.num_factors,
                       [](const FactorPoints<T>& f) { return f.all_equal; });
  }

  const Problem problem;
  const TileKernels<T>& tiles;
  const Layout<T> layout;
  Arena arena;
  Team team;
  Plan<T> plan;
  int row_of_sums;
  double* sums;  // [blocks, row_of_sums]
  std::atomic<int64_t>* rounds;

 private:
  void resolve() {
    double scales[max_terms];
    for (int l = 0; l < plan.num_factors; ++l) {
      const FactorPoints<T>& points = factor_points_[l];
      const Factor<T>& f = points.factor;
      double units[5];
      for (Unit u : {Unit::fixed, Unit::mean, Unit::median, Unit::x_median, Unit::width})
        units[int(u)] = points.wants(u) ? points.unit(u) : 0;
      const int last = f.first_term + f.num_terms;
      for (int t = f.first_term; t < last; ++t) {
        const Term& term = problem.terms[t];
        const double unit = units[int(term.unit)];
        scales[t] = unit == 0 ? 0 : term.scale / unit;
        problem.scales[t] = term.unit == Unit::fixed
                                ? term.scale
                                : std::ldexp(scales[t], -2 * points.exponent_of_statistic());
      }
      const typename Kernel<T>::Range range =
          kernel_.add(problem.terms, f.first_term, last, scales);
      factors_[l].segments = range.segments;
      factors_[l].num_segments = range.num_segments;
      factors_[l].near_offset = range.near_offset;
    }
  }

  bool gradients_, packed_;
  FactorPoints<T> factor_points_[max_factors];
  Factor<T> factors_[max_factors];
  Kernel<T> kernel_;
  Scratch<T> scratch_;
  typename Median<T>::Counts* counts_;
  ptrdiff_t stride_ = 0;
  Phase copying_, packing_, resolving_;
};

}  // namespace fastmmd::cpu
