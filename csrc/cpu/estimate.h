// The MMD of one pair of samples: which tiles there are, who plays them, and what their sums come
// to. Everything is a function of the inputs and the instruction set alone; the number of threads
// only decides who does what.
#pragma once

#include "cpu/points.h"
#include "cpu/schedule.h"
#include "mmd.h"

namespace fastmmd::cpu {

template <class T>
class Mmd2 {
 public:
  Mmd2(const Mmd2Args& args, const Mmd2Out& out)
      : args_(args), out_(out), points_(args, wants(args, out)) {
    points_.plan.v[0] = static_cast<T*>(out.v_x);
    points_.plan.v[1] = static_cast<T*>(out.v_y);
    points_.plan.pairs = counted_pairs(args);
    points_.plan.num_moving -= args.constant_factors;
  }

  size_t workspace() const { return points_.arena.bytes(); }

  void run() {
    for (int domain = 0; domain < 2; ++domain) masses_[domain] = points_.set_weights(domain);
    by_ = divisors(args_.estimator, args_.x.rows, args_.y.rows, args_.size, points_.plan.pairs,
                   {masses_[0].pairs, masses_[1].pairs}, args_.share);
    points_.team.run(points_.layout.threads(), [this](int rank) { work(rank); });
    if (points_.team.stopped()) throw Interrupted();
    if (args_.estimator != Estimator::resolve) combine();
  }

  // One element of a batch is worth this many threads.
  int threads() const { return points_.layout.threads(); }

 private:
  using Wants = typename Points<T>::Wants;

  static int64_t reach(const Mmd2Args& args) {  // of the pairs of a masked estimator
    return args.estimator == Estimator::linear ? 2 : args.size;
  }

  static Wants wants(const Mmd2Args& args, const Mmd2Out& out) {
    const double rows = double(args.x.rows + args.y.rows), d = double(total_width(args));
    int64_t block = 0;
    double pairs = rows * rows;
    if (is_masked(args.estimator)) {
      block = reach(args) <= 64 ? 32 : reach(args) <= 256 ? 64 : reach(args) <= 1024 ? 96 : 192;
      pairs = rows * double(2 * (block + reach(args)));
    }
    const bool resolve = args.estimator == Estimator::resolve;
    const bool medians = std::any_of(args.terms, args.terms + args.num_terms, [](const Term& t) {
      return t.unit == Unit::median || t.unit == Unit::x_median;
    });
    return {feels_no_shift(args, out),
            out.v_x || out.v_y,
            out.v_x_weights || out.v_y_weights,
            out.v_scales ? args.num_terms : 0,
            block,
            (resolve && !medians ? rows : pairs) * (d + 8),
            !resolve || medians};
  }

  void work(int rank) {
    points_.prepare(rank);
    if (args_.estimator == Estimator::resolve) return;
    const Scratch<T> scratch = points_.scratch(rank);
    const Layout<T>& layout = points_.layout;
    auto play = [&](int64_t i, int64_t j) {
      const Block I = layout.at(i), J = layout.at(j);
      if (I.domain == J.domain && args_.estimator == Estimator::cross) return;
      if (!may_meet(I, J)) return;
      const double C = 1 / (I.domain == J.domain ? by_.within[I.domain] : by_.across);
      points_.tiles.tile(points_.plan, I, J, C, scratch, points_.sums + i * points_.row_of_sums);
    };
    auto play_all = [&](const auto& schedule) {
      play_games(schedule, points_.team, rank, playing_, points_.rounds, play);
    };
    if (is_masked(args_.estimator)) {
      const int64_t block = layout.rows_of_block();
      const int64_t blocks = round_up(points_.plan.pairs.used, block) / block;
      play_all(Neighbours(blocks, layout.blocks(0), neighbours(block)));
    } else {
      play_all(Tournament(layout.blocks()));
    }
    if (!out_.v_x && !out_.v_y) return;
    points_.team.share(finishing_, rank, layout.blocks(), [&](int64_t b) {
      const Block block = layout.at(b);
      if (!points_.plan.v[block.domain]) return;
      for (int l = 0; l < points_.plan.num_moving; ++l)
        points_.tiles.finish(points_.plan, points_.plan.factors[l], block);
      if (gradient_vanishes())
        std::memset(points_.plan.v[block.domain] + block.start * points_.plan.d, 0,
                    size_t(block.rows) * points_.plan.d * sizeof(T));
    });
  }

  // Whether any pair of two blocks counts, as far as groups and bands tell.
  bool may_meet(const Block& I, const Block& J) const {
    const Pairs& pairs = points_.plan.pairs;
    if (!pairs.masked()) return true;
    const int64_t last = std::min(I.start + I.rows, pairs.used) - 1;
    return pairs.first(I.start) < J.start + J.rows && J.start < pairs.last(last);
  }

  // How many blocks away a partner may be.
  int64_t neighbours(int64_t block) const {
    const Pairs& pairs = points_.plan.pairs;
    if (pairs.band) return round_up(pairs.band, block) / block;
    if (block % pairs.group == 0) return 0;
    return round_up(pairs.group - 1, block) / block;
  }

  // The MMD of equal points is 0, which sums that round might not come to.
  bool vanishes() const { return args_.estimator != Estimator::cross && points_.all_equal(); }

  // Nor has it a gradient, unless the pairs of a point with its own sample weigh something else
  // than those with the other one, and the kernel has a slope there.
  bool gradient_vanishes() const {
    const bool even = args_.estimator != Estimator::unbiased || !is_weighted(args_);
    return vanishes() &&
           (even || std::all_of(args_.terms, args_.terms + args_.num_terms,
                                [](const Term& t) { return geometry(t.family) != Geometry::dot; }));
  }

  // Block sums to value, and what the chain rule adds for weights and terms.
  void combine() {
    const Layout<T>& layout = points_.layout;
    double at_zero = 0;  // what the tiles have left out of the diagonal
    const bool left_out = args_.estimator == Estimator::biased && diagonal_is_known(args_);
    for (int t = 0; left_out && t < args_.num_terms; ++t)
      at_zero += args_.terms[t].coefficient * value_at_zero(args_.terms[t].family);

    double within[2] = {}, across = 0;
    for (int64_t b = 0; b < layout.blocks(); ++b) {
      within[layout.at(b).domain] += points_.sums[b * points_.row_of_sums];
      across += points_.sums[b * points_.row_of_sums + 1];
    }
    for (int domain = 0; domain < 2; ++domain)
      within[domain] = (within[domain] + at_zero * masses_[domain].squares) / by_.within[domain];
    // Weighted sums of equal numbers round.
    const double value = vanishes() ? 0 : within[0] + within[1] + across / by_.across;
    if (args_.dtype == Dtype::float64) *static_cast<double*>(out_.value) = value;
    else *static_cast<float*>(out_.value) = float(value);

    if (out_.v_x_weights) weight_gradient(0, at_zero, within[0], out_.v_x_weights);
    if (out_.v_y_weights) weight_gradient(1, at_zero, within[1], out_.v_y_weights);
    if (out_.v_scales) term_gradients(left_out);
  }

  // With b = a / rows the normalised weights: d value / d w_i = (h_i - sum_j b_j h_j) / sum w,
  // where h = d value / d b.
  void weight_gradient(int domain, double at_zero, double within, double* v) const {
    const int64_t rows = points_.layout.rows(domain);
    const int64_t row = points_.layout.first_row(domain);
    double own = 2 / double(rows) * at_zero;
    if (args_.estimator == Estimator::unbiased)
      own = 2 * double(rows) * within / by_.within[domain];
    double mean = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const double a = double(points_.plan.weights[row + i]);
      v[i] = double(rows) * points_.plan.potentials[row + i] + own * a;
      mean += a * v[i] / double(rows);
    }
    for (int64_t i = 0; i < rows; ++i) v[i] = vanishes() ? 0 : (v[i] - mean) / masses_[domain].sum;
  }

  void term_gradients(bool left_out) const {
    for (int t = 0; t < args_.num_terms; ++t) {
      const Term& term = args_.terms[t];
      double v_w = 0, v_c = 0;
      for (int64_t b = 0; b < points_.layout.blocks(); ++b) {
        v_w += points_.sums[b * points_.row_of_sums + 2 + t];
        v_c += points_.sums[b * points_.row_of_sums + 2 + args_.num_terms + t];
      }
      for (int domain = 0; left_out && domain < 2; ++domain)
        v_w += value_at_zero(term.family) * masses_[domain].squares / by_.within[domain];
      out_.v_coefficients[t] = vanishes() ? 0 : v_w;
      out_.v_scales[t] = term.scale == 0 || vanishes() ? 0 : term.coefficient * v_c / term.scale;
    }
  }

  const Mmd2Args args_;
  const Mmd2Out out_;
  Points<T> points_;
  typename Points<T>::Masses masses_[2];
  Divisors by_;
  Phase playing_, finishing_;
};

}  // namespace fastmmd::cpu
