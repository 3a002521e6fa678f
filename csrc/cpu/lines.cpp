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
  static constexpr int bits = 11, top = 8 * int(sizeof(Key)) - bits;  // of a digit, and the highest
  static constexpr Key digits = (Key(1) << bits) - 1;

  size_t room() const {
    return (size_t(2 * count_) * sizeof(Item) + (digits + 1) * sizeof(uint32_t) + 63) / 64 * 64;
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

  // Sorted by key; equal keys in the order in which they came. By the highest digit first, which
  // leaves pieces that fit in a cache, and these by their digits from the lowest on.
  Item* sort(Item* items, Item* others, uint32_t* counts) const {
    if (!scatter(items, others, count_, top, counts)) std::swap(items, others);
    for (int64_t begin = 0, end; begin < count_; begin = end) {
      const Key digit = others[begin].key >> top;
      for (end = begin + 1; end < count_ && others[end].key >> top == digit;) ++end;
      Item *piece = others + begin, *room = items + begin;
      const int64_t size = end - begin;
      if (size <= 32) {
        insert(piece, size);
        continue;
      }
      for (int shift = 0; shift < top; shift += bits)
        if (scatter(piece, room, size, shift, counts)) std::swap(piece, room);
      if (piece != others + begin) std::copy_n(piece, size, others + begin);
    }
    return others;
  }

  static void insert(Item* items, int64_t size) {
    for (int64_t i = 1; i < size; ++i) {
      const Item item = items[i];
      int64_t at = i;
      for (; at > 0 && items[at - 1].key > item.key; --at) items[at] = items[at - 1];
      items[at] = item;
    }
  }

  // By one digit, unless all have the same.
  static bool scatter(const Item* items, Item* to, int64_t size, int shift, uint32_t* counts) {
    std::fill_n(counts, digits + 1, 0u);
    for (int64_t i = 0; i < size; ++i) ++counts[items[i].key >> shift & digits];
    if (counts[items[0].key >> shift & digits] == uint32_t(size)) return false;
    uint32_t before = 0;
    for (Key digit = 0; digit <= digits; ++digit) {
      const uint32_t here = counts[digit];
      counts[digit] = before;
      before += here;
    }
    for (int64_t i = 0; i < size; ++i) to[counts[items[i].key >> shift & digits]++] = items[i];
    return true;
  }

  void sum(int64_t line, int rank) {
    char* base = static_cast<char*>(args_.workspace);
    base += size_t(-reinterpret_cast<uintptr_t>(base)) % 64 + size_t(rank) * room();
    Item* const first = reinterpret_cast<Item*>(base);
    const T* s = static_cast<const T*>(args_.s) + line * args_.n;
    const T* t = static_cast<const T*>(args_.t) + line * args_.m;
    bool sound = true;
    for (int64_t i = 0; i < args_.n; ++i) {
      sound &= s[i] == s[i];
      first[i] = {key(s[i]), uint32_t(i)};
    }
    for (int64_t i = 0; i < args_.m; ++i) {
      sound &= t[i] == t[i];
      first[args_.n + i] = {key(t[i]), uint32_t(args_.n + i)};
    }
    if (!sound) return spoil(line);
    const Item* items =
        sort(first, first + count_, reinterpret_cast<uint32_t*>(first + 2 * count_));
    if (args_.s_weights || args_.t_weights) walk<true>(line, items);
    else walk<false>(line, items);
  }

  // Where the results of a pooled point go: one of two arrays, chosen without a jump, which half
  // of the points would take by surprise.
  template <class U>
  struct Targets {
    U* of[2];
    uint32_t n;
    explicit operator bool() const { return of[0] || of[1]; }
    void fetch(uint32_t index, bool y) const {  // into the cache, to be written
      if (of[y]) __builtin_prefetch(of[y] + index - (y ? n : 0), 1);
    }
    void set(uint32_t index, bool y, U value) const {
      if (of[y]) of[y][index - (y ? n : 0)] = value;
    }
  };
  template <class U>
  Targets<U> targets(void* s, void* t, int64_t line) const {
    return {{s ? static_cast<U*>(s) + line * args_.n : nullptr,
             t ? static_cast<U*>(t) + line * args_.m : nullptr},
            uint32_t(args_.n)};
  }

  static constexpr int64_t ahead = 32;

  template <bool weighted>
  void walk(int64_t line, const Item* items) const {
    const uint32_t n = uint32_t(args_.n);
    const double even[2] = {1 / double(args_.n), 1 / double(args_.m)};
    const double* const weights[2] = {args_.s_weights, args_.t_weights};
    auto weight = [&](uint32_t index, bool y) {
      if (weighted && weights[y]) return weights[y][y ? index - n : index];
      return even[y];
    };
    const Targets<T> v = targets<T>(args_.v_s, args_.v_t, line);
    const Targets<double> v_weight = targets<double>(args_.v_s_weights, args_.v_t_weights, line);
    const double q[2] = {args_.q[0], args_.q[1]};
    const double least = double(number(items[0].key));
    // The sums of weights, and of weights times distances to the number at hand.
    double total[2] = {1, 1}, moment[2] = {};
    if (weighted || v_weight) {
      total[0] = total[1] = 0;
      for (int64_t i = 0; i < count_; ++i) {
        const bool y = items[i].index >= n;
        const double w = weight(items[i].index, y);
        total[y] += w;
        moment[y] += w * (double(number(items[i].key)) - least);
      }
    }
    double value = 0, within[2] = {}, below[2] = {}, here = least;
    int64_t counted[2] = {};
    for (int64_t i = 0, end; i < count_; i = end) {
      double upto[2] = {below[0], below[1]};
      end = i;
      do {
        const bool y = items[end].index >= n;
        if (weighted) {
          upto[y] += weight(items[end].index, y);
        } else {  // counted: no sum to round
          counted[0] += !y;
          counted[1] += y;
        }
      } while (++end < count_ && items[end].key == items[i].key);
      if (!weighted)
        for (int y = 0; y < 2; ++y) upto[y] = double(counted[y]) * even[y];
      if (v || v_weight) {
        // What lies below a number, less what lies above.
        const double side[2] = {below[0] + upto[0] - total[0], below[1] + upto[1] - total[1]};
        const double slope[2] = {2 * (side[1] - q[0] * side[0]), 2 * (side[0] - q[1] * side[1])};
        for (int64_t k = i; k < end; ++k) {
          if (k + ahead < count_) v.fetch(items[k + ahead].index, items[k + ahead].index >= n);
          const uint32_t index = items[k].index;
          const bool y = index >= n;
          v.set(index, y, T(weight(index, y) * slope[y]));
          if (v_weight) v_weight.set(index, y, 2 * (moment[!y] - q[y] * moment[y]));
        }
      }
      if (end == count_) break;
      const double next = double(number(items[end].key)), gap = next - here;
      const double F = upto[0], G = upto[1];
      const double spread[2] = {F * (total[0] - F), G * (total[1] - G)};
      value += 2 * gap * ((F - G) * (F - G) + (1 - q[0]) * spread[0] + (1 - q[1]) * spread[1]);
      for (int y = 0; y < 2; ++y) {
        within[y] += 2 * gap * spread[y];
        moment[y] += gap * (2 * upto[y] - total[y]);
        below[y] = upto[y];
      }
      here = next;
    }
    args_.value[line] = value;
    std::copy_n(within, 2, args_.within + 2 * line);
  }

  // A line with a number that is none.
  void spoil(int64_t line) const {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    args_.value[line] = args_.within[2 * line] = args_.within[2 * line + 1] = nan;
    const Targets<T> v = targets<T>(args_.v_s, args_.v_t, line);
    const Targets<double> v_weight = targets<double>(args_.v_s_weights, args_.v_t_weights, line);
    for (int64_t i = 0; i < count_; ++i) {
      v.set(uint32_t(i), i >= args_.n, T(nan));
      v_weight.set(uint32_t(i), i >= args_.n, nan);
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
