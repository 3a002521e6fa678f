// The drivers of random features: sums of cosines and sines, and what follows from them for points
// and frequencies. A thread owns what it adds to, so there are no locks, and the order of every sum
// depends on sizes alone.
#include "random_features.h"

#include <algorithm>

#include "cpu/projections.h"

namespace fastmmd::cpu {
namespace {

template <class T>
class FeatureSums {
 public:
  explicit FeatureSums(const FeatureSumsArgs& args)
      : args_(args), all_(args, true, false), kinds_(args.moments ? 4 : 2) {
    const int64_t d = args.d;
    parts_ = std::clamp<int64_t>(32 / all_.frequencies.blocks(), 1, all_.points.blocks());
    partial_ = all_.arena.template take<double>((parts_ - 1) * size());
    chunks_ = round_up(args.x.rows, chunk_rows) / chunk_rows;
    sums_ = all_.arena.template take<double>(chunks_ * d);
    largest_ = all_.arena.template take<int64_t>(chunks_);
    transformed_ = all_.arena.template take<double>(
        all_.structured ? all_.threads * args.transforms.width : 0);
  }

  size_t workspace() const { return all_.arena.bytes(); }

  void run() {
    all_.team.run(all_.threads, [this](int rank) { work(rank); });
    if (all_.team.stopped()) throw Interrupted();
  }

 private:
  static constexpr int64_t chunk_rows = 256;

  int64_t size() const { return kinds_ * args_.num_rates * args_.frequencies.rows; }

  void work(int rank) {
    Team& team = all_.team;
    const Rows &points = all_.points, &frequencies = all_.frequencies;
    const int64_t F = frequencies.rows, K = args_.num_rates;
    center(rank);
    all_.prepare(rank, args_.center);
    const auto room = all_.room(rank);
    team.share(summing_, rank, frequencies.blocks() * parts_, [&](int64_t task) {
      const int64_t i = task / parts_, part = task % parts_, count = points.blocks();
      const Block I = frequencies.at(i);
      if (part == 0) shift(i, rank);  // while they are on their way into the cache
      double* sums = of_part(part);
      for (int64_t k = 0; k < kinds_ * K; ++k) std::fill_n(sums + k * F + I.row, I.rows, 0.0);
      const int64_t end = (part + 1) * count / parts_;
      for (int64_t j = part * count / parts_; j < end && team.go_on(rank); ++j) {
        const Block J = points.at(j);
        all_.project(i, J, all_.columns_of(j, room), room);
        all_.tiles.add_rotations(room.tile, int64_t(J.vectors) * all_.tiles.lanes, I.rows,
                                 all_.rates, all_.weights + J.row, args_.moments, sums + I.row, F);
      }
    });
    team.share(adding_, rank, kinds_, [&](int64_t s) {
      for (int64_t part = 1; part < parts_; ++part)
        for (int64_t k = s * K * F; k < (s + 1) * K * F; ++k) of_part(0)[k] += of_part(part)[k];
      double* all = args_.sums + s * K * F;
      for (int64_t k = 0; k < K * F; ++k) all[k] /= double(args_.x.rows);
    });
  }

  double* of_part(int64_t part) const { return part ? partial_ + (part - 1) * size() : args_.sums; }

  // The mean of the points, whose bits do not depend on the number of threads.
  void center(int rank) {
    const int64_t d = args_.d;
    const TileKernels<T>& tiles = all_.tiles;
    all_.team.share(reading_, rank, 1,
                    [&](int64_t) { tiles.read_row(args_.x, args_.dtype, d, args_.center); });
    all_.team.share(chunking_, rank, chunks_, [&](int64_t c) {
      std::fill_n(sums_ + c * d, d, 0.0);
      tiles.add_columns(args_.x, args_.dtype, d, args_.center, c * chunk_rows,
                        std::min(args_.x.rows, (c + 1) * chunk_rows), sums_ + c * d, largest_ + c);
    });
    all_.team.share(centering_, rank, 1, [&](int64_t) {
      for (int64_t c = 1; c < chunks_; ++c)
        for (int64_t k = 0; k < d; ++k) sums_[k] += sums_[c * d + k];
      for (int64_t k = 0; k < d; ++k)  // a number that T holds: what is subtracted is what is said
        args_.center[k] = double(T(args_.center[k] + sums_[k] / double(args_.x.rows)));
    });
  }

  void shift(int64_t i, int rank) {
    const Block I = all_.frequencies.at(i);
    double* to = args_.shifts + I.row;
    if (all_.structured) {
      const int64_t width = args_.transforms.width;
      double* z = transformed_ + rank * width;
      std::copy_n(args_.center, args_.d, z);
      std::fill(z + args_.d, z + width, 0.0);
      for (int64_t s = 0; s < 3; ++s) {
        for (int64_t r = 0; r < width; ++r) z[r] *= all_.signs(i)[s * width + r];
        for (int64_t h = 1; h < width; h *= 2)
          for (int64_t base = 0; base < width; base += 2 * h)
            for (int64_t r = base; r < base + h; ++r) {
              const double a = z[r], b = z[r + h];
              z[r] = a + b;
              z[r + h] = a - b;
            }
      }
      for (int64_t j = 0; j < I.rows; ++j) to[j] = double(all_.radii[I.row + j]) * z[j];
      return;
    }
    all_.tiles.inner_products(args_.frequencies, sizeof(T) == 8 ? Dtype::float64 : Dtype::float32,
                              args_.d, args_.center, I.row, I.rows, to);
  }

  const FeatureSumsArgs args_;
  Projections<T> all_;
  int64_t kinds_, parts_, chunks_;
  double *partial_, *sums_, *transformed_;
  int64_t* largest_;
  Phase reading_, chunking_, centering_, summing_, adding_;
};

template <class T>
class FeatureGradients {
 public:
  explicit FeatureGradients(const FeatureGradientsArgs& args)
      : args_(args), all_(args, args.v_frequencies, args.v_frequencies) {
    const int64_t n = args.x.rows, F = args.frequencies.rows, d = args.d;
    Arena& arena = all_.arena;
    p_ = arena.template take<T>(F * args.num_rates);
    q_ = arena.template take<T>(F * args.num_rates);
    const int64_t points = all_.points.blocks(), frequencies = all_.frequencies.blocks();
    // Few blocks are shared by cutting what is summed over into parts that are added in order.
    parts_of_x_ = args.v_x ? std::clamp<int64_t>(16 / points, 1, frequencies) : 1;
    parts_of_w_ = args.v_frequencies ? std::clamp<int64_t>(16 / frequencies, 1, points) : 1;
    partial_x_ = arena.template take<T>((parts_of_x_ - 1) * n * d);
    partial_weights_ = arena.template take<double>(args.v_weights ? (parts_of_x_ - 1) * n : 0);
    partial_w_ = arena.template take<T>((parts_of_w_ - 1) * F * d);
    column_sums_ = arena.template take<T>(all_.threads * all_.points.block);
    slopes_ = arena.template take<T>(
        all_.structured && args.v_x ? all_.threads * all_.points.block * d : 0);
  }

  size_t workspace() const { return all_.arena.bytes(); }

  void run() {
    all_.team.run(all_.threads, [this](int rank) { work(rank); });
    if (all_.team.stopped()) throw Interrupted();
  }

 private:
  void work(int rank) {
    Team& team = all_.team;
    const int64_t F = args_.frequencies.rows, K = args_.num_rates, d = args_.d, n = args_.x.rows;
    const double scale = 1 / double(n);  // as weights have mean 1
    team.share(ordering_, rank, K, [&](int64_t k) {
      const int64_t of = all_.rates.place[k] * F;
      for (int64_t j = 0; j < F; ++j) {
        p_[j * K + k] = T(args_.p[of + j] * scale);
        q_[j * K + k] = T(args_.q[of + j] * scale);
      }
    });
    all_.prepare(rank, args_.center);
    const auto room = all_.room(rank);
    const int64_t points = all_.points.blocks(), frequencies = all_.frequencies.blocks();
    const int64_t tasks = args_.v_x ? points * parts_of_x_ : 0;
    team.share(going_back_, rank, tasks + (args_.v_frequencies ? frequencies * parts_of_w_ : 0),
               [&](int64_t task) {
                 if (task < tasks) to_points(task / parts_of_x_, task % parts_of_x_, rank, room);
                 else
                   to_frequencies((task - tasks) / parts_of_w_, (task - tasks) % parts_of_w_, rank,
                                  room);
               });
    add(adding_x_, rank, points_of(0), partial_x_, args_.v_x ? n : 0, d, parts_of_x_);
    add(adding_weights_, rank, args_.v_weights, partial_weights_, args_.v_weights ? n : 0, 1,
        parts_of_x_);
    add(adding_w_, rank, frequencies_of(0), partial_w_, args_.v_frequencies ? F : 0, d,
        parts_of_w_);
  }

  // The gradient weights of the frequencies I and points J over their projections.
  void rotate(int64_t i, const Block& J, const T* columns, T* column_sums,
              const typename Projections<T>::Room& room) {
    const Block I = all_.frequencies.at(i);
    const int64_t K = args_.num_rates;
    all_.project(i, J, columns, room);
    all_.tiles.rotate(room.tile, int64_t(J.vectors) * all_.tiles.lanes, I.rows, all_.rates,
                      all_.weights + J.row, p_ + I.row * K, q_ + I.row * K, column_sums);
  }

  void to_points(int64_t j, int64_t part, int rank, const typename Projections<T>::Room& room) {
    const Block J = all_.points.at(j);
    const TileKernels<T>& tiles = all_.tiles;
    const int64_t d = args_.d, count = all_.frequencies.blocks();
    const int64_t ld = int64_t(J.vectors) * tiles.lanes;
    const T* columns = all_.columns_of(j, room);
    T* out = points_of(part) + J.row * d;
    T* const slopes = slopes_ + rank * all_.points.block * d;
    T* const column_sums = args_.v_weights ? column_sums_ + rank * all_.points.block : nullptr;
    double* weights = part ? partial_weights_ + (part - 1) * args_.x.rows : args_.v_weights;
    if (column_sums) std::fill_n(weights + J.row, J.rows, 0.0);
    if (all_.structured) std::fill_n(slopes, ld * d, T(0));
    else std::fill_n(out, J.rows * d, T(0));
    const int64_t end = (part + 1) * count / parts_of_x_;
    for (int64_t i = part * count / parts_of_x_; i < end && all_.team.go_on(rank); ++i) {
      const Block I = all_.frequencies.at(i);
      if (column_sums) std::fill_n(column_sums, ld, T(0));
      rotate(i, J, columns, column_sums, room);
      if (column_sums)
        for (int64_t k = 0; k < J.rows; ++k)
          weights[J.row + k] += double(column_sums[k]) * double(args_.x.rows);
      if (all_.structured) {
        tiles.project_back(J, slopes, d, all_.signs(i), args_.transforms.width, all_.radii + I.row,
                           I.rows, room.butterflies, room.tile);
      } else {
        const auto w = all_.packed(i, room);
        tiles.product(true, room.tile, ld, J.rows, I.rows, all_.panels, 0, all_.panels.count(),
                      w.data, w.rows, w.row, out, d);
      }
    }
    if (all_.structured) tiles.unpack_columns(J, slopes, d, out);
  }

  void to_frequencies(int64_t i, int64_t part, int rank,
                      const typename Projections<T>::Room& room) {
    const Block I = all_.frequencies.at(i);
    const int64_t d = args_.d, count = all_.points.blocks();
    T* out = frequencies_of(part) + I.row * d;
    std::fill_n(out, I.rows * d, T(0));
    Scratch<T> scratch{};
    scratch.tiles = room.tile;
    const int64_t end = (part + 1) * count / parts_of_w_;
    for (int64_t j = part * count / parts_of_w_; j < end && all_.team.go_on(rank); ++j) {
      const Block J = all_.points.at(j);
      rotate(i, J, all_.columns_of(j, room), nullptr, room);
      all_.tiles.multiply(I, J, scratch, all_.panels, all_.features(), all_.points.padded(), J.row,
                          out, d);
    }
  }

  T* points_of(int64_t part) const {
    return part ? partial_x_ + (part - 1) * args_.x.rows * args_.d : static_cast<T*>(args_.v_x);
  }
  T* frequencies_of(int64_t part) const {
    return part ? partial_w_ + (part - 1) * args_.frequencies.rows * args_.d
                : static_cast<T*>(args_.v_frequencies);
  }

  template <class U>
  void add(Phase& phase, int rank, U* out, const U* partial, int64_t rows, int64_t d,
           int64_t parts) {
    constexpr int64_t slice = 256;
    all_.team.share(phase, rank, parts > 1 ? round_up(rows, slice) / slice : 0, [&](int64_t s) {
      const int64_t end = std::min(rows, (s + 1) * slice) * d;
      for (int64_t part = 0; part + 1 < parts; ++part)
        for (int64_t k = s * slice * d; k < end; ++k) out[k] += partial[part * rows * d + k];
    });
  }

  const FeatureGradientsArgs args_;
  Projections<T> all_;
  int64_t parts_of_x_, parts_of_w_;
  T *p_, *q_, *partial_x_, *partial_w_, *column_sums_, *slopes_;
  double* partial_weights_;
  Phase ordering_, going_back_, adding_x_, adding_weights_, adding_w_;
};

template <template <class> class Pass, class Args, class Use>
auto with_type(const Args& args, const Use& use) {
  if (args.dtype != Dtype::float64) {
    Pass<float> pass(args);
    return use(pass);
  }
  Pass<double> pass(args);
  return use(pass);
}

}  // namespace

size_t workspace(const FeatureSumsArgs& args) {
  return with_type<FeatureSums>(args, [](auto& pass) { return pass.workspace(); });
}
size_t workspace(const FeatureGradientsArgs& args) {
  return with_type<FeatureGradients>(args, [](auto& pass) { return pass.workspace(); });
}
void feature_sums(const FeatureSumsArgs& args) {
  with_type<FeatureSums>(args, [](auto& pass) { pass.run(); });
}
void feature_gradients(const FeatureGradientsArgs& args) {
  with_type<FeatureGradients>(args, [](auto& pass) { pass.run(); });
}

}  // namespace fastmmd::cpu
