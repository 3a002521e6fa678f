#include "lines.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/team.h"
#include "mmd.h"

namespace fastmmd::cpu {
namespace {

template <class T>
class Lines {
 public:
  explicit Lines(const LinesArgs& args)
      : args_(args), count_(args.n + args.m), team_(args.interrupted, args.interrupted_context) {
    threads_ = int(std::min<int64_t>(args.threads, args.lines));
    // One thread sorts about 4000 numbers while a team of them wakes up.
    threads_ = int(std::min<int64_t>(threads_, args.lines * count_ / 4096 + 1));
  }

  size_t workspace() const { return size_t(threads_) * room() + 64; }

  void run() {
    team_.run(threads_, [this](int rank) {
      team_.share(phase_, rank, args_.lines, [&](int64_t line) { sum(line, rank); });
    });
    if (team_.stopped()) throw Interrupted();
  }

 private:
  using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  struct Item {
    Key key;
    uint32_t index;
  };
  static constexpr int bits = 11, passes = (8 * int(sizeof(Key)) + bits - 1) / bits;
  static constexpr Key digits = (Key(1) << bits) - 1;

  size_t room() const {
    return (size_t(2 * count_) * sizeof(Item) + passes * (digits + 1) * sizeof(uint32_t) + 63) /
           64 * 64;
  }

  // Numbers order as these do: negative ones backwards, below the others. -0 is 0.
  static Key key(T value) {
    constexpr Key sign = Key(1) << (8 * sizeof(Key) - 1);
    value += T(0);
    Key k;
    std::memcpy(&k, &value, sizeof k);
    return k & sign ? ~k : k | sign;
  }

  static T number(Key k) {
    constexpr Key sign = Key(1) << (8 * sizeof(Key) - 1);
    k = k & sign ? k & ~sign : ~k;
    T value;
    std::memcpy(&value, &k, sizeof value);
    return value;
  }

  // Sorted by key; equal keys in the order in which they came. By digits from the least, whose
  // counts one pass over the keys makes; a digit that all keys share needs no pass of its own.
  Item* sort(Item* items, Item* others, uint32_t* counts) const {
    if (count_ <= 64) {
      for (int64_t i = 1; i < count_; ++i) {
        const Item item = items[i];
        int64_t at = i;
        for (; at > 0 && items[at - 1].key > item.key; --at) items[at] = items[at - 1];
        items[at] = item;
      }
      return items;
    }
    std::fill_n(counts, passes * (digits + 1), 0u);
    for (int64_t i = 0; i < count_; ++i)
      for (int p = 0; p < passes; ++p)
        ++counts[p * (digits + 1) + (items[i].key >> (p * bits) & digits)];
    for (int p = 0; p < passes; ++p, counts += digits + 1) {
      const int shift = p * bits;
      if (counts[items[0].key >> shift & digits] == uint32_t(count_)) continue;
      uint32_t before = 0;
      for (Key digit = 0; digit <= digits; ++digit) {
        const uint32_t here = counts[digit];
        counts[digit] = before;
        before += here;
      }
      for (int64_t i = 0; i < count_; ++i)
        others[counts[items[i].key >> shift & digits]++] = items[i];
      std::swap(items, others);
    }
    return items;
  }

  double weight(uint32_t index) const {
    if (index < args_.n) return args_.s_weights ? args_.s_weights[index] : 1 / double(args_.n);
    return args_.t_weights ? args_.t_weights[index - args_.n] : 1 / double(args_.m);
  }

  // Masses of the two samples, of points counted where they weigh the same: no sum to round.
  struct Masses {
    double of[2];
    int64_t count[2];
  };
  void add(Masses& masses, uint32_t index) const {
    const bool y = index >= args_.n;
    ++masses.count[y];
    if (y ? args_.t_weights : args_.s_weights) masses.of[y] += weight(index);
    else masses.of[y] = double(masses.count[y]) / double(y ? args_.m : args_.n);
  }

  T* v_of(int64_t line, uint32_t index) const {
    if (index < args_.n)
      return args_.v_s ? static_cast<T*>(args_.v_s) + line * args_.n + index : nullptr;
    return args_.v_t ? static_cast<T*>(args_.v_t) + line * args_.m + (index - args_.n) : nullptr;
  }

  double* v_weight_of(int64_t line, uint32_t index) const {
    if (index < args_.n)
      return args_.v_s_weights ? args_.v_s_weights + line * args_.n + index : nullptr;
    return args_.v_t_weights ? args_.v_t_weights + line * args_.m + (index - args_.n) : nullptr;
  }

  void sum(int64_t line, int rank) {
    char* base = static_cast<char*>(args_.workspace);
    base += size_t(-reinterpret_cast<uintptr_t>(base)) % 64 + size_t(rank) * room();
    Item* const first = reinterpret_cast<Item*>(base);
    const T* s = static_cast<const T*>(args_.s) + line * args_.n;
    const T* t = static_cast<const T*>(args_.t) + line * args_.m;
    bool sound = true;
    for (int64_t i = 0; i < count_; ++i) {
      const T value = i < args_.n ? s[i] : t[i - args_.n];
      sound &= value == value;
      first[i] = {key(value), uint32_t(i)};
    }
    if (!sound) return spoil(line);
    const Item* items =
        sort(first, first + count_, reinterpret_cast<uint32_t*>(first + 2 * count_));

    Masses total{};
    double moment[2] = {};  // sum of weight times distance to the least number
    const bool weigh = args_.v_s_weights || args_.v_t_weights;
    const double least = double(number(items[0].key));
    for (int64_t i = 0; i < count_; ++i) {
      add(total, items[i].index);
      if (weigh)
        moment[items[i].index >= args_.n] +=
            weight(items[i].index) * (double(number(items[i].key)) - least);
    }
    double value = 0, within[2] = {};
    Masses before{};
    for (int64_t i = 0, end; i < count_; i = end) {
      Masses after = before;
      for (end = i; end < count_ && items[end].key == items[i].key; ++end)
        add(after, items[end].index);
      // Of the points on either side: what lies below, less what lies above.
      const double side[2] = {before.of[0] + after.of[0] - total.of[0],
                              before.of[1] + after.of[1] - total.of[1]};
      for (int64_t k = i; k < end; ++k) {
        const uint32_t index = items[k].index;
        const bool y = index >= args_.n;
        if (T* v = v_of(line, index)) *v = T(2 * weight(index) * (side[!y] - args_.q[y] * side[y]));
        if (double* v = v_weight_of(line, index)) *v = 2 * (moment[!y] - args_.q[y] * moment[y]);
      }
      before = after;
      if (end == count_) break;
      const double gap = double(number(items[end].key)) - double(number(items[i].key));
      const double F = before.of[0], G = before.of[1];
      const double spread[2] = {F * (total.of[0] - F), G * (total.of[1] - G)};
      value += 2 * gap *
               ((F - G) * (F - G) + (1 - args_.q[0]) * spread[0] + (1 - args_.q[1]) * spread[1]);
      for (int y = 0; y < 2; ++y) {
        within[y] += 2 * gap * spread[y];
        moment[y] += gap * (2 * before.of[y] - total.of[y]);
      }
    }
    args_.value[line] = value;
    std::copy_n(within, 2, args_.within + 2 * line);
  }

  // A line with a number that is none.
  void spoil(int64_t line) const {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    args_.value[line] = args_.within[2 * line] = args_.within[2 * line + 1] = nan;
    for (int64_t i = 0; i < count_; ++i) {
      if (T* v = v_of(line, uint32_t(i))) *v = T(nan);
      if (double* v = v_weight_of(line, uint32_t(i))) *v = nan;
    }
  }

  const LinesArgs args_;
  const int64_t count_;
  Team team_;
  int threads_;
  Phase phase_;
};

}  // namespace

size_t workspace(const LinesArgs& args) {
  return args.wide ? Lines<double>(args).workspace() : Lines<float>(args).workspace();
}

void lines(const LinesArgs& args) {
  if (args.wide) Lines<double>(args).run();
  else Lines<float>(args).run();
}

}  // namespace fastmmd::cpu
