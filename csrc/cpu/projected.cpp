// The driver of the MMD behind a learned map: the products around the pass of mmd.cpp. What is
// written by a task, and the order of every sum, depends on sizes alone.
#include "projected.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/points.h"

namespace fastmmd::cpu {
namespace {

template <class T>
struct Activated {
  T value, slope;
};

template <class T>
Activated<T> activated(Activation activation, T h) {
  switch (activation) {
    case Activation::none: break;
    case Activation::relu: return h <= 0 ? Activated<T>{0, 0} : Activated<T>{h, 1};  // NaN stays
    case Activation::tanh: {
      const T t = std::tanh(h);
      return {t, 1 - t * t};
    }
    case Activation::gelu: {
      constexpr T root_half = T(0.70710678118654752440), density = T(0.39894228040143267794);
      const T below = T(0.5) * std::erfc(-root_half * h);
      return {h * below, below + h * density * std::exp(T(-0.5) * h * h)};
    }
  }
  return {h, 1};
}

template <class T>
class Projected {
 public:
  Projected(const ProjectedArgs& args, const ProjectedOut& out)
      : args_(args),
        out_(out),
        tiles_(tile_kernels<T>()),
        arena_(args.images.workspace),
        team_(args.images.interrupted, args.images.interrupted_context),
        p_(args.weight.rows),
        d_(args.d),
        padded_p_(round_up(p_, tiles_.row_unit)),
        panels_{round_up(d_, tiles_.lanes) / tiles_.lanes, tiles_.panel_vectors} {
    rows_[0] = args.x.rows;
    rows_[1] = args.y.rows;
    // Two blocks of each sample at least: a team packs them.
    points_of_block_ = round_up(std::max(rows_[0], rows_[1]), 2 * tiles_.row_unit) / 2;
    points_of_block_ = std::min(points_of_block_, most_points);
    for (int domain = 0; domain < 2; ++domain) {
      first_[domain] = padded_;
      padded_ += round_up(rows_[domain], tiles_.row_unit);
      blocks_[domain] = round_up(rows_[domain], points_of_block_) / points_of_block_;
    }
    const double work = double(padded_) * double(p_) * double(d_);
    threads_ = int(std::clamp<double>(work / 2e6 + 1, 1, args.images.threads));
    const int64_t width = panels_.vectors * tiles_.lanes;
    zeros_ = arena_.take<double>(d_);
    weight_ = arena_.take<T>(padded_p_ * width);
    points_ = arena_.take<T>(padded_ * width);
    columns_ = arena_.take<T>(padded_ * d_);
    images_ = arena_.take<T>(padded_ * p_);
    const int64_t pulls = out.any() ? padded_ * p_ : 0;
    pulls_ = arena_.take<T>(pulls);
    turned_ = arena_.take<T>(pulls ? padded_p_ * padded_ : 0);
    slopes_ = args.activation == Activation::none || !pulls ? nullptr : arena_.take<T>(pulls);
    room_ = arena_.take<T>(threads_ * room);
  }

  size_t workspace() const { return arena_.bytes() + cpu::workspace(images().args, images().out); }

  void run() {
    std::fill_n(zeros_, d_, 0.0);
    team_.run(threads_, [this](int rank) {
      pack(rank);
      team_.share(projecting_, rank, weight_blocks() * (blocks_[0] + blocks_[1]), [&](int64_t t) {
        project(t % weight_blocks(), point_block(t / weight_blocks()), room_ + rank * room);
      });
    });
    check();
    const Images all = images();
    mmd2(all.args, all.out);
    if (!out_.any()) return;
    team_.run(threads_, [this](int rank) { go_back(rank); });
    check();
  }

 private:
  // A tile of products, its points and its rows of W stay in the L2 cache, chunk by chunk of
  // features; and a small map has tasks for a few threads.
  static constexpr int64_t most_points = 96, rows_of_block = 32;
  static constexpr int64_t room = most_points * rows_of_block;
  static constexpr int64_t summed_at_once = 256;
  static constexpr int64_t panels_of_slice = 8;

  struct Images {
    Mmd2Args args;
    Mmd2Out out;
  };

  // The pass over the images, whose workspace lies behind that of this one.
  Images images() const {
    Images all = {args_.images, out_.images};
    Sample* samples[2] = {&all.args.x, &all.args.y};
    void** gradients[2] = {&all.out.v_x, &all.out.v_y};
    const bool by_all = out_.v_weight || out_.v_bias;
    const bool wanted[2] = {by_all || out_.v_x, by_all || out_.v_y};
    for (int domain = 0; domain < 2; ++domain) {
      Sample& s = *samples[domain];
      s = {images_ + first_[domain] * p_, rows_[domain], 0, p_, 1, s.weights};
      // Where nothing is allocated yet, any address says that it is wanted.
      T* const v = pulls_ ? pulls_ + first_[domain] * p_ : any_;
      *gradients[domain] = wanted[domain] ? v : nullptr;
    }
    if (all.args.workspace)
      all.args.workspace = static_cast<char*>(all.args.workspace) + arena_.bytes();
    return all;
  }

  void check() const {
    if (team_.stopped()) throw Interrupted();
  }

  int64_t weight_blocks() const { return round_up(p_, rows_of_block) / rows_of_block; }
  int64_t slices() const { return round_up(panels_.count(), panels_of_slice) / panels_of_slice; }

  Block block(int64_t first, int64_t rows, int64_t block_rows, int64_t b, int domain) const {
    const int64_t start = b * block_rows, count = std::min(block_rows, rows - start);
    const int64_t vectors = round_up(count, tiles_.row_unit) / tiles_.lanes;
    return {first + start, start, int(count), int(vectors), domain};
  }
  Block weight_block(int64_t b) const { return block(0, p_, rows_of_block, b, 0); }
  Block point_block(int64_t b) const {
    const int domain = b >= blocks_[0];
    return block(first_[domain], rows_[domain], points_of_block_, b - (domain ? blocks_[0] : 0),
                 domain);
  }

  Plan<T> plan(int64_t padded_rows) const {
    Plan<T> plan{};
    plan.padded_rows = padded_rows;
    return plan;
  }
  Factor<T> factor(T* features) const {
    Factor<T> f{};
    f.d = d_;
    f.geometry = Geometry::dot;
    f.feature_panels = panels_;
    f.mean = zeros_;
    f.scale = 1;
    f.features = features;
    f.columns = columns_;
    return f;
  }

  void pack(int rank) {
    const int64_t of_points = blocks_[0] + blocks_[1];
    team_.share(packing_, rank, of_points + weight_blocks(), [&](int64_t b) {
      if (b >= of_points) {
        tiles_.pack_features(plan(padded_p_), factor(weight_), args_.weight, args_.images.dtype,
                             weight_block(b - of_points));
        return;
      }
      const Block J = point_block(b);
      tiles_.pack(plan(padded_), factor(points_), J.domain ? args_.y : args_.x, args_.images.dtype,
                  J);
    });
  }

  // Images, and the slopes of the activation, from a tile of products.
  void project(int64_t b, const Block& J, T* tile) {
    const Block I = weight_block(b);
    tiles_.statistics(plan(padded_p_), factor(weight_), I, J, tile);
    const int64_t ld = int64_t(J.vectors) * tiles_.lanes;
    const T* bias = static_cast<const T*>(args_.bias);
    for (int64_t c = 0; c < J.rows; ++c) {
      T* const to = images_ + (J.row + c) * p_ + I.row;
      for (int64_t r = 0; r < I.rows; ++r) to[r] = tile[r * ld + c] + (bias ? bias[I.row + r] : 0);
      if (args_.activation == Activation::none) continue;
      T* const slopes = slopes_ ? slopes_ + (J.row + c) * p_ + I.row : nullptr;
      for (int64_t r = 0; r < I.rows; ++r) {
        const Activated<T> a = activated(args_.activation, to[r]);
        to[r] = a.value;
        if (slopes) slopes[r] = a.slope;
      }
    }
  }

  void go_back(int rank) {
    const bool wanted[2] = {images().out.v_x != nullptr, images().out.v_y != nullptr};
    team_.share(preparing_, rank, blocks_[0] + blocks_[1], [&](int64_t b) {
      const Block J = point_block(b);
      const int64_t rows = wanted[J.domain] ? J.rows : 0,
                    padded = int64_t(J.vectors) * tiles_.lanes;
      T* const v = pulls_ + J.row * p_;
      if (slopes_)
        for (int64_t k = 0; k < rows * p_; ++k) v[k] *= slopes_[J.row * p_ + k];
      for (int64_t i = 0; i < padded; ++i)  // padding takes part in sums
        for (int64_t j = 0; j < p_; ++j)
          turned_[j * padded_ + J.row + i] = i < rows ? v[i * p_ + j] : T(0);
    });
    const int64_t of_points = out_.v_x || out_.v_y ? blocks_[0] + blocks_[1] : 0;
    const int64_t of_weight = out_.v_weight ? weight_blocks() : 0;
    team_.share(going_back_, rank, (of_points + of_weight) * slices(), [&](int64_t task) {
      const int64_t b = task / slices(), s = task % slices();
      if (b < of_points) to_points(point_block(b), s);
      else to_weight(weight_block(b - of_points), s);
    });
    team_.share(adding_, rank, out_.v_bias ? weight_blocks() : 0,
                [&](int64_t b) { to_bias(weight_block(b)); });
  }

  // The columns of `out` that belong to a slice, and what is added to them.
  template <class Add>
  void in_slice(T* out, int64_t rows, int64_t s, const Add& add) const {
    const int64_t begin = s * panels_of_slice;
    const int64_t end = std::min(begin + panels_of_slice, panels_.count());
    const int64_t first = panels_.first(begin) * tiles_.lanes;
    const int64_t last = std::min(d_, panels_.first(end) * tiles_.lanes);
    for (int64_t i = 0; i < rows; ++i) std::fill(out + i * d_ + first, out + i * d_ + last, T(0));
    add(begin, end);
  }

  void to_points(const Block& J, int64_t s) const {
    T* const all = static_cast<T*>(J.domain ? out_.v_y : out_.v_x);
    if (!all) return;
    T* const out = all + J.start * d_;
    in_slice(out, J.rows, s, [&](int64_t begin, int64_t end) {
      for (int64_t j = 0; j < p_; j += summed_at_once)
        tiles_.product(false, pulls_ + J.row * p_ + j, p_, J.rows, std::min(summed_at_once, p_ - j),
                       panels_, begin, end, weight_, padded_p_, j, out, d_);
    });
  }

  void to_weight(const Block& I, int64_t s) const {
    T* const out = static_cast<T*>(out_.v_weight) + I.row * d_;
    in_slice(out, I.rows, s, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < padded_; i += summed_at_once)
        tiles_.product(false, turned_ + I.row * padded_ + i, padded_, I.rows,
                       std::min(summed_at_once, padded_ - i), panels_, begin, end, points_, padded_,
                       i, out, d_);
    });
  }

  void to_bias(const Block& I) const {
    for (int64_t j = I.row; j < I.row + I.rows; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < padded_; ++i) sum += double(turned_[j * padded_ + i]);
      static_cast<T*>(out_.v_bias)[j] = T(sum);
    }
  }

  const ProjectedArgs args_;
  const ProjectedOut out_;
  const TileKernels<T>& tiles_;
  Arena arena_;
  Team team_;
  const int64_t p_, d_, padded_p_;
  const Panels panels_;
  int64_t points_of_block_, rows_[2], first_[2], blocks_[2], padded_ = 0;
  int threads_;
  double* zeros_;
  T *weight_, *points_, *columns_, *images_, *pulls_, *turned_, *slopes_, *room_;
  mutable T any_[1];
  Phase packing_, projecting_, preparing_, going_back_, adding_;
};

}  // namespace

size_t workspace(const ProjectedArgs& args, const ProjectedOut& out) {
  if (args.images.dtype == Dtype::float64) return Projected<double>(args, out).workspace();
  return Projected<float>(args, out).workspace();
}

void projected_mmd2(const ProjectedArgs& args, const ProjectedOut& out) {
  if (args.images.dtype == Dtype::float64) Projected<double>(args, out).run();
  else Projected<float>(args, out).run();
}

}  // namespace fastmmd::cpu
