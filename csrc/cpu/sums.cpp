// The drivers of the passes that use kernel values as they are: kernel_sum and sign_forms.
#include "cpu/points.h"
#include "cpu/schedule.h"
#include "mmd.h"
#include "random.h"

namespace fastmmd::cpu {
namespace {

// out = K(x, y) v. Each block of x is done by one thread, so nothing is shared.
template <class T>
class KernelSum {
 public:
  explicit KernelSum(const KernelSumArgs& args) : args_(args), points_(args, wants(args)) {
    const Layout<T>& layout = points_.layout;
    panels_ = {round_up(args.columns, points_.tiles.lanes) / points_.tiles.lanes,
               points_.tiles.panel_vectors};
    rows_ = layout.end_row(1) - layout.first_row(1);
    v_ = points_.arena.template take<T>(rows_ * panels_.vectors * points_.tiles.lanes);
    // Few blocks of x are shared by cutting y, too, into parts whose sums are added in order.
    parts_ = std::clamp<int64_t>(16 / layout.blocks(0), 1, layout.blocks(1));
    partial_ = points_.arena.template take<T>((parts_ - 1) * args.x.rows * args.columns);
  }

  size_t workspace() const { return points_.arena.bytes(); }

  void run() {
    points_.set_weights(0);
    points_.set_weights(1);
    points_.team.run(points_.layout.threads(), [this](int rank) { work(rank); });
    if (points_.team.stopped()) throw Interrupted();
  }

 private:
  static typename Points<T>::Wants wants(const KernelSumArgs& args) {
    const int64_t n = args.x.rows, m = args.y.rows, d = total_width(args);
    // Blocks of x are what threads share, so a few points of x want small ones.
    const int64_t block =
        std::min(block_rows(n + m, d, sizeof(T)), std::max<int64_t>(32, round_up(n / 16, 32)));
    return {false, false, false, 0, block, double(n) * double(m) * double(d + args.columns + 8)};
  }

  void work(int rank) {
    points_.prepare(rank);
    const Layout<T>& layout = points_.layout;
    const int64_t first = layout.blocks(0), blocks = layout.blocks(), columns = args_.columns;
    points_.team.share(packing_, rank, blocks - first,
                       [&](int64_t b) { pack(layout.at(first + b)); });
    const Scratch<T> scratch = points_.scratch(rank);
    points_.team.share(summing_, rank, first * parts_, [&](int64_t task) {
      const Block I = layout.at(task / parts_);
      const int64_t part = task % parts_, count = blocks - first;
      T* out = sums_of(part) + I.start * columns;
      std::memset(out, 0, size_t(I.rows) * columns * sizeof(T));
      const int64_t end = first + (part + 1) * count / parts_;
      for (int64_t j = first + part * count / parts_; j < end && points_.team.go_on(rank); ++j) {
        const Block J = layout.at(j);
        points_.tiles.values(points_.plan, I, J, scratch);
        points_.tiles.multiply(I, J, scratch, panels_, v_, rows_, J.row - layout.first_row(1), out,
                               columns);
      }
    });
    points_.team.share(adding_, rank, parts_ > 1 ? first : 0, [&](int64_t i) {
      const Block I = layout.at(i);
      T* out = sums_of(0) + I.start * columns;
      for (int64_t part = 1; part < parts_; ++part)
        for (int64_t k = 0; k < I.rows * columns; ++k)
          out[k] += sums_of(part)[I.start * columns + k];
    });
  }

  T* sums_of(int64_t part) const {
    return part ? partial_ + (part - 1) * args_.x.rows * args_.columns : static_cast<T*>(args_.out);
  }

  void pack(const Block& J) {
    const int64_t lanes = points_.tiles.lanes, columns = args_.columns;
    const int64_t padded = int64_t(J.vectors) * lanes;
    for (int64_t p = 0; p < panels_.count(); ++p) {
      const int64_t first = panels_.first(p) * lanes, width = panels_.width(p) * lanes;
      T* out = v_ + rows_ * first + (J.row - points_.layout.first_row(1)) * width;
      std::fill_n(out, padded * width, T(0));
      for (int64_t j = 0; j < J.rows; ++j)
        std::copy_n(static_cast<const T*>(args_.v) + (J.start + j) * columns + first,
                    std::min(width, columns - first), out + j * width);
    }
  }

  const KernelSumArgs args_;
  Points<T> points_;
  Panels panels_;
  int64_t rows_, parts_;
  T* v_;        // [panels][rows of y, padded][width * lanes]
  T* partial_;  // [parts - 1][n, columns]
  Phase packing_, summing_, adding_;
};

// v_b' K0 v_b for many vectors of two values each, kept as bits.
template <class T>
class SignForms {
 public:
  explicit SignForms(const SignFormsArgs& args) : args_(args), points_(args, wants(args)) {
    const Layout<T>& layout = points_.layout;
    const int lanes = points_.tiles.lanes;
    points_.plan.pairs = {true, true, 0, 0, 0};
    panels_ = {round_up(args.count + 1, lanes) / lanes, points_.tiles.panel_vectors};
    columns_ = panels_.vectors * lanes;
    Arena& arena = points_.arena;
    signs_ = arena.take<uint64_t>(panels_.count() * layout.padded_rows);
    row_sums_ = arena.take<double>(layout.padded_rows);
    diagonal_ = arena.take<double>(layout.padded_rows);
    sums_ = arena.take<double>(layout.blocks() * columns_);
    room_size_ = round_up(2 * layout.largest_block * points_.tiles.panel_vectors * lanes, 64);
    room_ = arena.take<T>(layout.threads() * room_size_);
    order_ = arena.take<uint32_t>(layout.threads() * rows());
  }

  size_t workspace() const { return points_.arena.bytes(); }

  void run() {
    points_.set_weights(0);
    points_.set_weights(1);
    points_.team.run(points_.layout.threads(), [this](int rank) { work(rank); });
    if (points_.team.stopped()) throw Interrupted();
  }

 private:
  static typename Points<T>::Wants wants(const SignFormsArgs& args) {
    const double rows = double(args.x.rows + args.y.rows);
    // The MMDs that the forms are made into do not feel a shift if the kernel is linear.
    const bool linear = args.num_factors == 1 &&
                        std::all_of(args.terms, args.terms + args.num_terms,
                                    [](const Term& t) { return t.family == Family::linear; });
    return {linear, false, false, 0, 0, rows * rows * double(total_width(args) + args.count + 8)};
  }

  int64_t rows() const { return args_.x.rows + args_.y.rows; }

  // The packed row of a pooled point.
  int64_t row_of(int64_t point) const {
    return point < args_.x.rows ? point : points_.layout.first_row(1) + point - args_.x.rows;
  }

  void work(int rank) {
    points_.prepare(rank);
    const Layout<T>& layout = points_.layout;
    points_.team.share(drawing_, rank, panels_.count() + 1, [&](int64_t p) {
      if (p < panels_.count()) return draw(p, rank);
      std::fill_n(row_sums_, layout.padded_rows, 0.0);
      std::fill_n(diagonal_, layout.padded_rows, 0.0);
      std::fill_n(sums_, layout.blocks() * columns_, 0.0);
    });
    const Scratch<T> scratch = points_.scratch(rank);
    T* const room = room_ + rank * room_size_;
    // Vectors are scaled by n, so that one of their values is 1.
    const T minus = T(
        args_.scheme == Scheme::permutation ? -double(args_.x.rows) / double(args_.y.rows) : -1.0);
    play_games(Tournament(layout.blocks()), points_.team, rank, playing_, points_.rounds,
               [&](int64_t i, int64_t j) {
                 const Block I = layout.at(i), J = layout.at(j);
                 points_.tiles.values(points_.plan, I, J, scratch);
                 if (i == j) take_diagonal(I, scratch.tiles);
                 points_.tiles.add_row_sums(I, J, scratch, row_sums_);
                 for (int64_t p = 0; p < panels_.count(); ++p)
                   points_.tiles.add_forms(
                       I, J, scratch, panels_.width(p), signs_ + p * layout.padded_rows, minus,
                       i == j ? 1 : 2, room,
                       sums_ + i * columns_ + panels_.first(p) * points_.tiles.lanes);
               });
    points_.team.share(combining_, rank, panels_.count() + 1,
                       [&](int64_t p) { p < panels_.count() ? combine(p) : total(); });
  }

  void take_diagonal(const Block& I, T* tile) {
    const int64_t ld = int64_t(I.vectors) * points_.tiles.lanes;
    for (int64_t i = 0; i < I.rows; ++i) {
      diagonal_[I.row + i] = double(tile[i * ld + i]);
      tile[i * ld + i] = 0;
    }
  }

  int64_t first_column(int64_t p) const { return panels_.first(p) * points_.tiles.lanes; }
  int64_t last_column(int64_t p) const {
    return std::min(first_column(p) + int64_t(panels_.width(p)) * points_.tiles.lanes,
                    args_.count + 1);
  }

  // The vectors of one panel, bit by bit.
  void draw(int64_t p, int rank) {
    uint64_t* words = signs_ + p * points_.layout.padded_rows;
    std::fill_n(words, points_.layout.padded_rows, uint64_t(0));
    for (int64_t b = first_column(p); b < last_column(p); ++b) {
      const uint64_t bit = uint64_t(1) << (b - first_column(p));
      if (b == 0) {
        for (int64_t i = 0; i < args_.x.rows; ++i) words[i] |= bit;
        continue;
      }
      const Random random(args_.seed, uint64_t(b));
      if (args_.scheme == Scheme::permutation) permute(random, bit, words, rank);
      else flip(random, bit, words);
    }
  }

  // A random choice of n points, by drawing the smaller of the two parts.
  void permute(const Random& random, uint64_t bit, uint64_t* words, int rank) {
    const int64_t n = args_.x.rows, m = args_.y.rows;
    uint32_t* order = order_ + rank * rows();
    for (int64_t i = 0; i < rows(); ++i) order[i] = uint32_t(i);
    if (n > m)
      for (int64_t i = 0; i < rows(); ++i) words[row_of(i)] |= bit;
    for (int64_t i = 0; i < std::min(n, m); ++i) {
      std::swap(order[i], order[i + int64_t(random.below(uint64_t(i), uint64_t(rows() - i)))]);
      words[row_of(order[i])] ^= bit;
    }
  }

  void flip(const Random& random, uint64_t bit, uint64_t* words) {
    const int64_t y = points_.layout.first_row(1);
    uint64_t bits = 0;
    for (int64_t i = 0; i < args_.x.rows; ++i, bits >>= 1) {
      if (i % 64 == 0) bits = random.number(uint64_t(i / 64));
      words[bits & 1 ? i : y + i] |= bit;
    }
  }

  void combine(int64_t p) {
    const Layout<T>& layout = points_.layout;
    const double n = double(args_.x.rows);
    const double plus = 1 / n;
    const double minus = args_.scheme == Scheme::permutation ? -1 / double(args_.y.rows) : -1 / n;
    const int64_t first = first_column(p), last = last_column(p);
    for (int64_t b = first; b < last; ++b) {
      double form = 0;
      for (int64_t i = 0; i < layout.blocks(); ++i) form += sums_[i * columns_ + b];
      args_.forms[b] = form / (n * n);
      args_.linear[b] = args_.diagonal[b] = 0;
    }
    const uint64_t* words = signs_ + p * layout.padded_rows;
    for (int64_t i = 0; i < rows(); ++i) {
      const int64_t row = row_of(i);
      for (int64_t b = first; b < last; ++b) {
        const double v = words[row] >> (b - first) & 1 ? plus : minus;
        args_.linear[b] += v * row_sums_[row];
        args_.diagonal[b] += v * diagonal_[row];
      }
    }
  }

  void total() {
    double sums[2] = {};
    for (int64_t i = 0; i < rows(); ++i) {
      sums[0] += row_sums_[row_of(i)];
      sums[1] += diagonal_[row_of(i)];
    }
    std::copy_n(sums, 2, args_.totals);
  }

  const SignFormsArgs args_;
  Points<T> points_;
  Panels panels_;
  int64_t columns_, room_size_;
  uint64_t* signs_;  // [panels][padded_rows] a bit for each column of the panel
  double *row_sums_, *diagonal_;
  double* sums_;  // [blocks][columns]
  T* room_;
  uint32_t* order_;  // [threads][rows]
  Phase drawing_, playing_, combining_;
};

}  // namespace

size_t workspace(const KernelSumArgs& args) {
  return args.dtype == Dtype::float64 ? KernelSum<double>(args).workspace()
                                      : KernelSum<float>(args).workspace();
}

void kernel_sum(const KernelSumArgs& args) {
  if (args.dtype == Dtype::float64) KernelSum<double>(args).run();
  else KernelSum<float>(args).run();
}

size_t workspace(const SignFormsArgs& args) {
  return args.dtype == Dtype::float64 ? SignForms<double>(args).workspace()
                                      : SignForms<float>(args).workspace();
}

void sign_forms(const SignFormsArgs& args) {
  if (args.dtype == Dtype::float64) SignForms<double>(args).run();
  else SignForms<float>(args).run();
}

}  // namespace fastmmd::cpu
