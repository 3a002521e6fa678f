// The driver of mmd2: batches, and large samples in slices, of what estimate.h does once.
#include "mmd.h"

#include "cpu/estimate.h"

namespace fastmmd::cpu {
namespace {

template <class T>
void offset(T*& pointer, int64_t count) {
  if (pointer) pointer += count;
}

void offset(const void*& pointer, int64_t bytes) {
  if (pointer) pointer = static_cast<const char*>(pointer) + bytes;
}

int64_t element_bytes(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype >= Dtype::float16 ? 2 : 4;
}

// One element of a batch.
Mmd2Args element(Mmd2Args args, int64_t b) {
  for (Sample* s : {&args.x, &args.y}) {
    offset(s->data, b * s->batch_stride * element_bytes(args.dtype));
    offset(s->weights, b * s->rows);
  }
  offset(args.scales, b * args.num_terms);
  args.batch = 1;
  return args;
}

template <class T>
Mmd2Out element(const Mmd2Args& args, Mmd2Out out, int64_t b) {
  const int64_t d = total_width(args);
  auto offset_result = [](void*& p, int64_t count) {
    if (p) p = static_cast<T*>(p) + count;
  };
  offset_result(out.value, b);
  offset_result(out.v_x, b * args.x.rows * d);
  offset_result(out.v_y, b * args.y.rows * d);
  offset(out.v_x_weights, b * args.x.rows);
  offset(out.v_y_weights, b * args.y.rows);
  offset(out.v_scales, b * args.num_terms);
  offset(out.v_coefficients, b * args.num_terms);
  return out;
}

// What a call of run() needs, and how many threads it is worth.
struct Needs {
  int threads;
  size_t workspace;
};

template <class T>
Needs needs(const Mmd2Args& args, const Mmd2Out& out);
template <class T>
void run(const Mmd2Args& args, const Mmd2Out& out);

// Groups of positions know nothing of each other but the bandwidths, so many of them are done in
// slices that stay in cache, as a batch.
template <class T>
class Slices {
 public:
  Slices(const Mmd2Args& args, const Mmd2Out& out) : args_(args), out_(out) {
    const bool grouped = args.estimator == Estimator::linear || args.estimator == Estimator::block;
    if (!grouped) return;
    const int64_t group = args.estimator == Estimator::linear ? 2 : args.size;
    const int64_t least = std::min(args.x.rows, args.y.rows);
    used_ = least / group * group;
    rows_ = std::max<int64_t>(1, target_rows / group) * group;
    count_ = used_ / rows_;
  }

  bool worthwhile() const { return count_ > 1; }

  Needs needs() const {
    Arena arena(nullptr);
    const Mmd2Out out = part(take(arena));
    size_t most = 0;
    if (resolves()) most = cpu::needs<T>(resolving(), {}).workspace;
    most = std::max(most, cpu::needs<T>(slices(0, rows_, count_), out).workspace);
    if (used_ % rows_)
      most = std::max(most, cpu::needs<T>(slices(0, used_ % rows_, 1), out).workspace);
    return {args_.threads, arena.bytes() + most};
  }

  void run() {
    Arena arena(args_.workspace);
    const Sums sums = take(arena);
    char* rest = static_cast<char*>(args_.workspace) + arena.bytes();
    if (resolves()) {
      Mmd2Args all = resolving();
      all.workspace = rest;
      cpu::run<T>(all, {});
    } else {
      for (int t = 0; t < args_.num_terms; ++t)
        args_.scales[t] =
            args_.terms[t].scale / (args_.terms[t].unit == Unit::width ? width(t) : 1);
    }
    for (int t = 0; t < args_.num_terms; ++t) {
      terms_[t] = args_.terms[t];
      terms_[t].unit = Unit::fixed;
      terms_[t].scale = args_.scales[t];
    }

    const int64_t left = used_ % rows_;
    Mmd2Args some = slices(0, rows_, count_);
    some.terms = terms_;
    some.scales = sums.scales;
    some.workspace = rest;
    cpu::run<T>(some, part(sums));
    if (left) {
      Mmd2Args last = slices(count_ * rows_, left, 1);
      last.terms = terms_;
      last.scales = sums.scales;
      last.workspace = rest;
      const Mmd2Out all = part(sums);
      cpu::run<T>(last, element<T>(some, all, count_));
    }
    finish(sums);
  }

 private:
  static constexpr int64_t target_rows = 1024;

  // What the slices give, one after the other.
  struct Sums {
    T* values;
    double *scales, *v_scales, *v_coefficients;
  };

  Sums take(Arena& arena) const {
    const int64_t slices = count_ + 1, terms = slices * args_.num_terms;
    return {arena.take<T>(slices), arena.take<double>(terms), arena.take<double>(terms),
            arena.take<double>(terms)};
  }

  double width(int t) const { return double(args_.widths[args_.terms[t].factor]); }

  bool resolves() const {
    return std::any_of(args_.terms, args_.terms + args_.num_terms, [](const Term& t) {
      return t.unit != Unit::fixed && t.unit != Unit::width;
    });
  }

  Mmd2Args resolving() const {
    Mmd2Args all = args_;
    all.estimator = Estimator::resolve;
    return all;
  }

  Mmd2Args slices(int64_t first, int64_t rows, int64_t count) const {
    Mmd2Args some = args_;
    for (Sample* s : {&some.x, &some.y}) {
      offset(s->data, first * s->row_stride * element_bytes(args_.dtype));
      s->rows = rows;
      s->batch_stride = rows * s->row_stride;
    }
    some.batch = count;
    some.share = args_.share * double(rows) / double(used_);
    return some;
  }

  // Where the slices write.
  Mmd2Out part(const Sums& sums) const {
    Mmd2Out out = out_;
    out.value = sums.values;
    if (out.v_scales) {
      out.v_scales = sums.v_scales;
      out.v_coefficients = sums.v_coefficients;
    }
    return out;
  }

  void finish(const Sums& sums) const {
    const int64_t slices = count_ + (used_ % rows_ != 0), terms = args_.num_terms;
    double value = 0;
    for (int64_t s = 0; s < slices; ++s) value += double(sums.values[s]);
    *static_cast<T*>(out_.value) = T(value);
    for (int64_t t = 0; out_.v_scales && t < terms; ++t) {
      double v_scale = 0, v_coefficient = 0;
      for (int64_t s = 0; s < slices; ++s) {
        v_scale += sums.v_scales[s * terms + t];
        v_coefficient += sums.v_coefficients[s * terms + t];
      }
      const double scale = args_.terms[t].scale;
      const bool fixed = args_.terms[t].unit == Unit::fixed;
      out_.v_scales[t] = fixed ? v_scale : v_scale * (args_.scales[t] / scale);
      out_.v_coefficients[t] = v_coefficient;
    }
    const int64_t d = total_width(args_);
    auto clear = [&](void* v, int64_t rows) {
      if (v) std::memset(static_cast<T*>(v) + used_ * d, 0, size_t(rows - used_) * d * sizeof(T));
    };
    clear(out_.v_x, args_.x.rows);
    clear(out_.v_y, args_.y.rows);
  }

  const Mmd2Args& args_;
  const Mmd2Out& out_;
  int64_t used_ = 0, rows_ = 0, count_ = 0;
  Term terms_[max_terms];
};

// Elements of a batch are done side by side, by one thread each, where there are enough of them or
// they are worth no more than one thread; else one after the other by the team.
template <class T>
int side_by_side(const Mmd2Args& args, const Needs& one) {
  const bool alone = one.threads > 1 && args.batch < 2 * args.threads;
  return alone ? 1 : int(std::min<int64_t>(args.threads, args.batch));
}

template <class T>
Needs needs(const Mmd2Args& args, const Mmd2Out& out) {
  if (args.batch > 1) {
    const Needs one = needs<T>(element(args, 0), out);
    const int threads = side_by_side<T>(args, one);
    return {threads, threads * one.workspace};
  }
  const Slices<T> slices(args, out);
  if (slices.worthwhile()) return slices.needs();
  Mmd2Args counted = args;
  counted.workspace = nullptr;
  const Mmd2<T> mmd2(counted, out);
  return {mmd2.threads(), size_t(round_up(int64_t(mmd2.workspace()), Arena::line))};
}

template <class T>
void run_batch(const Mmd2Args& args, const Mmd2Out& out) {
  const Needs one = needs<T>(element(args, 0), out);
  const int threads = side_by_side<T>(args, one);
  Team team(args.interrupted, args.interrupted_context);
  Phase elements;
  team.run(threads, [&](int rank) {
    struct Asked {
      Team& team;
      int rank;
    } asked = {team, rank};
    team.share(elements, rank, args.batch, [&](int64_t b) {
      Mmd2Args each = element(args, b);
      each.workspace = static_cast<char*>(args.workspace) + rank * one.workspace;
      if (threads > 1) each.threads = 1;
      each.interrupted = [](void* context) {  // whoever may ask the caller tells the others
        const Asked& a = *static_cast<Asked*>(context);
        return !a.team.go_on(a.rank);
      };
      each.interrupted_context = &asked;
      try {
        run<T>(each, element<T>(args, out, b));
      } catch (const Interrupted&) {  // the team has stopped; nothing may be thrown out of it
      }
    });
  });
  if (team.stopped()) throw Interrupted();
}

template <class T>
void run(const Mmd2Args& args, const Mmd2Out& out) {
  if (args.batch > 1) return run_batch<T>(args, out);
  Slices<T> slices(args, out);
  if (slices.worthwhile()) return slices.run();
  Mmd2<T>(args, out).run();
}

}  // namespace

size_t workspace(const Mmd2Args& args, const Mmd2Out& out) {
  return args.dtype == Dtype::float64 ? needs<double>(args, out).workspace
                                      : needs<float>(args, out).workspace;
}

void mmd2(const Mmd2Args& args, const Mmd2Out& out) {
  if (args.dtype == Dtype::float64) run<double>(args, out);
  else run<float>(args, out);
}

}  // namespace fastmmd::cpu
