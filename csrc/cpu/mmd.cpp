// The driver: lays out the workspace, resolves bandwidths, and plays the tiles with a team of
// threads. Everything is a function of the inputs and the instruction set alone; the number of
// threads only decides who does what.
#include "mmd.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "cpu/dispatch.h"
#include "cpu/median.h"
#include "cpu/segments.h"
#include "cpu/team.h"

namespace fastmmd::cpu {
namespace {

constexpr int64_t chunk_rows = 256;  // of the column sums

constexpr int64_t round_up(int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }

// Rows of a block. Each tile re-reads the rows of its two blocks and their gradients, so large
// blocks take less bandwidth, which wide rows and samples beyond the L3 cache ask for; a tile of
// block^2 values has to stay in the L2 cache (384^2 float32: 576 KiB); and a tournament of P blocks
// keeps only P / 2 threads busy, so small samples want small blocks.
int64_t block_rows(int64_t rows, int64_t d, size_t element) {
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

template <class T>
class Layout {
 public:
  Layout(int64_t n, int64_t m, int64_t d, int threads, const TileKernels<T>& k) {
    const int64_t block = block_rows(n + m, d, sizeof(T));
    rows_[0] = n;
    rows_[1] = m;
    unit_ = k.row_unit;
    lanes_ = k.lanes;
    for (int domain = 0; domain < 2; ++domain) {
      units_[domain] = round_up(rows_[domain], unit_) / unit_;
      blocks_[domain] = round_up(units_[domain] * unit_, block) / block;
    }
    padded_rows = (units_[0] + units_[1]) * unit_;
    feature_panels = {round_up(d, lanes_) / lanes_, k.panel_vectors};
    largest_block = 0;
    for (int64_t b = 0; b < blocks(); ++b)
      largest_block = std::max<int64_t>(largest_block, int64_t(at(b).vectors) * lanes_);

    // One thread does about 2 million multiply-adds while a team of them wakes up.
    const double work = double(n + m) * double(n + m) * double(d + 8);
    threads_ = int(std::min<double>({double(threads), work / 2e6 + 1, double(blocks())}));
    threads_ = std::max(threads_, 1);
  }

  int64_t blocks() const { return blocks_[0] + blocks_[1]; }
  int64_t first_row(int domain) const { return domain ? units_[0] * unit_ : 0; }
  int64_t end_row(int domain) const { return domain ? padded_rows : units_[0] * unit_; }
  int threads() const { return threads_; }

  Block at(int64_t b) const {
    const int domain = b >= blocks_[0];
    if (domain) b -= blocks_[0];
    const int64_t first = b * units_[domain] / blocks_[domain];
    const int64_t last = (b + 1) * units_[domain] / blocks_[domain];
    const int64_t start = first * unit_;
    return {start + first_row(domain), start, int(std::min(last * unit_, rows_[domain]) - start),
            int((last - first) * unit_ / lanes_), domain};
  }

  int64_t padded_rows, largest_block;
  Panels feature_panels;

 private:
  int64_t rows_[2], units_[2], blocks_[2], unit_, lanes_;
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

 private:
  static constexpr int64_t line = 64;
  char* base_;
  size_t offset_;
};

template <class T>
struct Memory {
  Memory(void* workspace, const Layout<T>& layout, int64_t n, int64_t m, int64_t d, int lanes)
      : arena(workspace) {
    chunks[0] = round_up(n, chunk_rows) / chunk_rows;
    chunks[1] = round_up(m, chunk_rows) / chunk_rows;
    features = arena.take<T>(layout.padded_rows * layout.feature_panels.vectors * lanes);
    columns = arena.take<T>(layout.padded_rows * d);
    norms = arena.take<T>(layout.padded_rows);
    weights = arena.take<T>(layout.padded_rows);
    pulls = arena.take<double>(layout.padded_rows);
    potentials = arena.take<double>(layout.padded_rows);
    mean = arena.take<double>(d);
    origin = arena.take<double>(d);
    partial = arena.take<double>((chunks[0] + chunks[1]) * d);
    largest = arena.take<int64_t>(chunks[0] + chunks[1]);
    sums = arena.take<double>(layout.blocks() * (2 + 2 * max_terms));
    rounds = arena.take<std::atomic<int64_t>>(layout.blocks());
    for (int t = 0; t < layout.threads(); ++t) {
      const int64_t block = layout.largest_block;
      Scratch<T> s;
      s.tile = arena.take<T>(block * block);
      s.weights = arena.take<T>(block);
      s.near_distances = arena.take<T>(block);
      s.column_pulls = arena.take<T>(block);
      s.column_sums = arena.take<T>(block);
      s.near = arena.take<int>(block);
      s.terms = arena.take<T>(2 * max_terms * lanes);
      typename Median<T>::Counts* c = arena.take<typename Median<T>::Counts>(1);
      if (t == 0) scratch0 = s, counts0 = c;
      if (t == 1) stride = reinterpret_cast<char*>(s.tile) - reinterpret_cast<char*>(scratch0.tile);
    }
  }

  template <class U>
  U* of_thread(U* first, int rank) const {
    return reinterpret_cast<U*>(reinterpret_cast<char*>(first) + rank * stride);
  }

  Scratch<T> scratch(int rank) const {
    Scratch<T> s;
    s.tile = of_thread(scratch0.tile, rank);
    s.weights = of_thread(scratch0.weights, rank);
    s.near_distances = of_thread(scratch0.near_distances, rank);
    s.column_pulls = of_thread(scratch0.column_pulls, rank);
    s.column_sums = of_thread(scratch0.column_sums, rank);
    s.near = of_thread(scratch0.near, rank);
    s.terms = of_thread(scratch0.terms, rank);
    return s;
  }

  Arena arena;
  int64_t chunks[2];
  T *features, *columns, *norms, *weights;
  double *pulls, *potentials, *mean, *origin, *partial, *sums;
  int64_t* largest;
  std::atomic<int64_t>* rounds;
  Scratch<T> scratch0;
  typename Median<T>::Counts* counts0;
  ptrdiff_t stride = 0;
};

template <class T>
class Mmd2 {
 public:
  Mmd2(const Mmd2Args& args, const Mmd2Out& out)
      : args_(args),
        out_(out),
        tiles_(tile_kernels<T>()),
        layout_(args.x.rows, args.y.rows, args.d, args.threads, tiles_),
        memory_(args.workspace, layout_, args.x.rows, args.y.rows, args.d, tiles_.lanes),
        team_(args.interrupted, args.interrupted_context),
        tournament_(layout_.blocks()) {
    plan_.d = args.d;
    plan_.padded_rows = layout_.padded_rows;
    plan_.lanes = tiles_.lanes;
    plan_.feature_panels = layout_.feature_panels;
    plan_.mean = memory_.mean;
    plan_.features = memory_.features;
    plan_.columns = memory_.columns;
    plan_.norms = memory_.norms;
    plan_.weights = memory_.weights;
    plan_.v[0] = static_cast<T*>(out.v_x);
    plan_.v[1] = static_cast<T*>(out.v_y);
    plan_.pulls = out.v_x || out.v_y ? memory_.pulls : nullptr;
    plan_.potentials = out.v_x_weights || out.v_y_weights ? memory_.potentials : nullptr;
    plan_.num_terms = out.v_scales ? args.num_terms : 0;
    plan_.near_offset = 0;
    row_of_sums_ = 2 + 2 * plan_.num_terms;
  }

  void run() {
    weights(args_.x, 0);
    weights(args_.y, 1);
    team_.run(layout_.threads(), [this](int rank) { work(rank); });
    if (team_.stopped()) throw Interrupted();
    combine();
  }

 private:
  const Sample& sample(int domain) const { return domain ? args_.y : args_.x; }

  // Weights with mean one, their sum and the sum of their squares.
  void weights(const Sample& x, int domain) {
    T* a = memory_.weights + layout_.first_row(domain);
    const int64_t padded = layout_.end_row(domain) - layout_.first_row(domain);
    const double rows = double(x.rows);
    double sum = rows, squares = 0, pairs = 0;
    if (x.weights) {
      sum = 0;
      for (int64_t i = 0; i < x.rows; ++i) sum += x.weights[i];
    }
    for (int64_t i = 0; i < x.rows; ++i) {
      const double w = x.weights ? x.weights[i] / sum * rows : 1;
      a[i] = T(w);
      squares += w * w;
      pairs += w * (rows - w);  // sum_{i != j} w_i w_j, which rows^2 - squares may cancel to
    }
    for (int64_t i = x.rows; i < padded; ++i) a[i] = 0;
    weight_sum_[domain] = sum;
    within_[domain] = args_.unbiased ? pairs : rows * rows;
    squares_[domain] = squares;
  }

  void work(int rank) {
    const int64_t blocks = layout_.blocks();
    center(rank);
    team_.share(packing_, rank, blocks, [&](int64_t b) {
      const Block block = layout_.at(b);
      tiles_.pack(plan_, sample(block.domain), args_.dtype, block);
      const int64_t padded = int64_t(block.vectors) * tiles_.lanes;
      if (plan_.pulls) std::fill_n(plan_.pulls + block.row, padded, 0.0);
      if (plan_.potentials) std::fill_n(plan_.potentials + block.row, padded, 0.0);
      std::fill_n(memory_.sums + b * row_of_sums_, row_of_sums_, 0.0);
      new (memory_.rounds + b) std::atomic<int64_t>(0);
    });
    const Scratch<T> scratch = memory_.scratch(rank);
    double median = 0;
    if (wants(Unit::median))
      median = median_.run(
          team_, rank, tiles_, plan_, blocks, scratch, [this](int64_t b) { return layout_.at(b); },
          [this](int r) ->
          typename Median<T>::Counts& { return *memory_.of_thread(memory_.counts0, r); });
    team_.share(resolving_, rank, 1, [&](int64_t) { resolve(median); });
    tournament_.run(team_, rank, playing_, memory_.rounds, [&](int64_t i, int64_t j) {
      const Block I = layout_.at(i), J = layout_.at(j);
      const double C = I.domain == J.domain ? 1 / within_[I.domain]
                                            : -1 / (double(args_.x.rows) * double(args_.y.rows));
      tiles_.tile(plan_, I, J, C, scratch, memory_.sums + i * row_of_sums_);
    });
    if (plan_.pulls)
      team_.share(finishing_, rank, blocks, [&](int64_t b) {
        if (plan_.v[layout_.at(b).domain]) tiles_.finish(plan_, layout_.at(b));
      });
  }

  // The pooled mean, summed in chunks of rows whose order is fixed, and the scale of the data. Rows
  // are taken relative to the first one, so that equal rows are exactly at their mean.
  void center(int rank) {
    const int64_t d = args_.d, chunks = memory_.chunks[0] + memory_.chunks[1];
    team_.share(reading_, rank, 1,
                [&](int64_t) { tiles_.read_row(args_.x, args_.dtype, d, memory_.origin); });
    team_.share(summing_, rank, chunks, [&](int64_t c) {
      double* sums = memory_.partial + c * d;
      std::fill_n(sums, d, 0.0);
      const int domain = c >= memory_.chunks[0];
      const int64_t begin = (c - (domain ? memory_.chunks[0] : 0)) * chunk_rows;
      const int64_t end = std::min(begin + chunk_rows, sample(domain).rows);
      tiles_.add_columns(sample(domain), args_.dtype, d, memory_.origin, begin, end, sums,
                         memory_.largest + c);
    });
    const double rows = double(args_.x.rows + args_.y.rows);
    constexpr int64_t slice = 512;
    const int64_t slices = round_up(d, slice) / slice;
    team_.share(centering_, rank, slices + 1, [&](int64_t s) {
      if (s == slices)
        return choose_scale(*std::max_element(memory_.largest, memory_.largest + chunks));
      const int64_t begin = s * slice, end = std::min(d, begin + slice);
      for (int64_t c = 1; c < chunks; ++c)
        for (int64_t k = begin; k < end; ++k) memory_.partial[k] += memory_.partial[c * d + k];
      for (int64_t k = begin; k < end; ++k)
        memory_.mean[k] = memory_.origin[k] + memory_.partial[k] / rows;
    });
  }

  void choose_scale(int64_t bits) {
    double largest;
    std::memcpy(&largest, &bits, sizeof largest);
    all_equal_ = largest == 0;
    // Beyond these bounds the scale itself would leave the range of T.
    constexpr int bound = sizeof(T) == 4 ? 120 : 500;
    exponent_ =
        all_equal_ || !std::isfinite(largest) ? 0 : std::clamp(std::ilogb(largest), -bound, bound);
    plan_.scale = T(std::ldexp(1.0, -exponent_));
  }

  bool wants(Unit unit) const {
    return std::any_of(args_.terms, args_.terms + args_.num_terms,
                       [unit](const Term& t) { return t.unit == unit; });
  }

  // mean_{i != j} |z_i - z_j|^2 = (2 N sum |z_i|^2 - 2 |sum z_i|^2) / (N (N - 1)), in O(N d).
  double mean_distance() const {
    const double rows = double(args_.x.rows + args_.y.rows);
    double norms = 0, lost = 0, center = 0;
    for (int64_t i = 0; i < layout_.padded_rows; ++i) {  // compensated: one row may be far out
      const double norm = double(memory_.norms[i]) - lost, sum = norms + norm;
      lost = sum - norms - norm;
      norms = sum;
    }
    for (int64_t k = 0; k < args_.d; ++k) {
      // What rounding the mean has left of the sum of the centred rows.
      const double shift = double(T(memory_.mean[k])) - memory_.origin[k];
      const double sum = (memory_.partial[k] - rows * shift) * double(plan_.scale);
      center += sum * sum;
    }
    return (2 * rows * norms - 2 * center) / (rows * (rows - 1));
  }

  // Bandwidths, in units of the scaled rows.
  void resolve(double median) {
    const double mean = wants(Unit::mean) ? mean_distance() : 0;
    double scales[max_terms];
    for (int t = 0; t < args_.num_terms; ++t) {
      const Term& term = args_.terms[t];
      units_[t] = term.unit == Unit::fixed  ? std::ldexp(1.0, -2 * exponent_)
                  : term.unit == Unit::mean ? mean
                                            : median;
      scales[t] = units_[t] == 0 ? 0 : term.scale / units_[t];
      out_.scales[t] =
          term.unit == Unit::fixed ? term.scale : std::ldexp(scales[t], -2 * exponent_);
    }
    kernel_.set(args_.terms, args_.num_terms, scales);
    plan_.segments = kernel_.segments();
    plan_.num_segments = kernel_.num_segments();
    plan_.near_offset = kernel_.near_offset;
  }

  // Block sums to value, and what the chain rule adds for weights and terms.
  void combine() {
    const double n = double(args_.x.rows), m = double(args_.y.rows);
    double at_zero = 0;
    for (int t = 0; t < args_.num_terms; ++t)
      at_zero += args_.terms[t].coefficient * value_at_zero(args_.terms[t].family);

    double within[2] = {}, cross = 0;
    for (int64_t b = 0; b < layout_.blocks(); ++b) {
      within[layout_.at(b).domain] += memory_.sums[b * row_of_sums_];
      cross += memory_.sums[b * row_of_sums_ + 1];
    }
    for (int domain = 0; domain < 2; ++domain) {
      if (!args_.unbiased) within[domain] += at_zero * squares_[domain];
      within[domain] /= within_[domain];
    }
    // Weighted sums of equal numbers round; the MMD of equal points is 0 all the same.
    const double value = all_equal_ ? 0 : within[0] + within[1] - cross / (n * m);
    if (args_.dtype == Dtype::float64) *static_cast<double*>(out_.value) = value;
    else *static_cast<float*>(out_.value) = float(value);

    if (out_.v_x_weights) weight_gradient(0, at_zero, within[0], out_.v_x_weights);
    if (out_.v_y_weights) weight_gradient(1, at_zero, within[1], out_.v_y_weights);
    if (out_.v_scales) term_gradients();
  }

  // With b = a / rows the normalised weights: d value / d w_i = (h_i - sum_j b_j h_j) / sum w,
  // where h = d value / d b.
  void weight_gradient(int domain, double at_zero, double within, double* v) const {
    const int64_t rows = sample(domain).rows;
    const int64_t row = layout_.first_row(domain);
    const double own =
        2 / double(rows) *
        (args_.unbiased ? within * double(rows) * double(rows) / within_[domain] : at_zero);
    double mean = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const double a = double(memory_.weights[row + i]);
      v[i] = double(rows) * memory_.potentials[row + i] + own * a;
      mean += a * v[i] / double(rows);
    }
    for (int64_t i = 0; i < rows; ++i) v[i] = all_equal_ ? 0 : (v[i] - mean) / weight_sum_[domain];
  }

  void term_gradients() const {
    for (int t = 0; t < args_.num_terms; ++t) {
      const Term& term = args_.terms[t];
      double v_w = 0, v_c = 0;
      for (int64_t b = 0; b < layout_.blocks(); ++b) {
        v_w += memory_.sums[b * row_of_sums_ + 2 + t];
        v_c += memory_.sums[b * row_of_sums_ + 2 + args_.num_terms + t];
      }
      if (!args_.unbiased)
        for (int domain = 0; domain < 2; ++domain)
          v_w += value_at_zero(term.family) * squares_[domain] / within_[domain];
      out_.v_coefficients[t] = all_equal_ ? 0 : v_w;
      out_.v_scales[t] = units_[t] == 0 ? 0 : term.coefficient * v_c / units_[t];
    }
  }

  const Mmd2Args& args_;
  const Mmd2Out& out_;
  const TileKernels<T>& tiles_;
  const Layout<T> layout_;
  const Memory<T> memory_;
  Team team_;
  const Tournament tournament_;
  Median<T> median_;
  Kernel<T> kernel_;
  Plan<T> plan_;
  int row_of_sums_;
  Phase reading_, summing_, centering_, packing_, resolving_, playing_, finishing_;
  double weight_sum_[2];     // of the weights as given
  double squares_[2];        // sum a_i^2, a with mean one
  double within_[2];         // what the within-domain sum is divided by
  double units_[max_terms];  // of the scaled distances
  int exponent_ = 0;         // rows are scaled by 2^-exponent
  bool all_equal_ = false;
};

}  // namespace

size_t mmd2_workspace(int64_t n, int64_t m, int64_t d, Dtype dtype, int threads) {
  auto bytes = [&](auto zero) {
    using T = decltype(zero);
    const TileKernels<T>& k = tile_kernels<T>();
    const Layout<T> layout(n, m, d, threads, k);
    return Memory<T>(nullptr, layout, n, m, d, k.lanes).arena.bytes();
  };
  return dtype == Dtype::float64 ? bytes(double{}) : bytes(float{});
}

void mmd2(const Mmd2Args& args, const Mmd2Out& out) {
  if (args.dtype == Dtype::float64) Mmd2<double>(args, out).run();
  else Mmd2<float>(args, out).run();
}

}  // namespace fastmmd::cpu
