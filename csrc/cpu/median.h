// The exact lower median of |z_i - z_j|^2 over i < j, or of all N^2 of them, without storing them.
//
// Non-negative floating-point numbers order as their bit patterns do. A pass over the tiles counts
// how many distances fall into each of `bins` equal ranges of bit patterns and so narrows the
// range that holds the wanted rank, until the candidates left are few enough to collect and select
// from. The first range is a guess around the mean, which saves a pass where it is right. Counts
// are integers: the result does not depend on threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/team.h"
#include "cpu/tile.h"

namespace fastmmd::cpu {

template <class T>
class Median {
 public:
  using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  static constexpr int bins = 2048;

  // Scratch of one thread. At the end the bins of rank 0 hold the candidates.
  struct Counts {
    int64_t below;
    int64_t bin[bins];
  };
  static constexpr int64_t capacity = int64_t(sizeof(int64_t)) * bins / int64_t(sizeof(T));

  // Over the rows of the first `blocks` blocks; `all`: over all pairs, (i, i) among them. Every
  // rank of the team calls this, and any may ask for the answer then; NaN if any distance is NaN.
  template <class BlockAt, class CountsAt>
  void run(Team& team, int rank, const TileKernels<T>& kernels, const Plan<T>& plan,
           const Factor<T>& factor, int64_t blocks, bool all, double mean,
           const Scratch<T>& scratch, const BlockAt& block_at, const CountsAt& counts_at) {
    if (rank == 0) start(blocks, all, mean, block_at, counts_at(0));
    team.barrier();
    while (!done_) {
      Counts& counts = counts_at(rank);
      const bool collect = wanted_ <= capacity;
      if (!collect) counts = Counts{};
      const int shift = shift_;
      const Key low = low_, high = high_;
      int64_t index, I = 0, begin = 0;  // tile number `begin` is (I, I)
      while (team.go_on(rank) && (index = next_.fetch_add(1)) < blocks * (blocks + 1) / 2) {
        while (index - begin >= blocks - I) begin += blocks - I++;
        const Block a = block_at(I), b = block_at(I + index - begin);
        kernels.statistics(plan, factor, a, b, scratch.tiles);
        const int64_t ld = int64_t(b.vectors) * plan.lanes;
        for (int64_t i = 0; i < a.rows; ++i)
          for (int64_t j = a.row == b.row ? i + 1 : 0; j < b.rows; ++j) {
            const T D = scratch.tiles[i * ld + j];
            const Key key = bits(D);
            if (D != D) {
              undefined_.store(true, std::memory_order_relaxed);
            } else if (key < low) {
              counts.below += !collect;
            } else if (key <= high) {
              if (collect) candidates_[found_.fetch_add(1)] = D;
              else ++counts.bin[(key - low) >> shift];
            }
          }
      }
      team.barrier();
      if (rank == 0) {
        next_.store(0);
        if (undefined_.load() || team.stopped()) {
          finish(std::numeric_limits<T>::quiet_NaN());
        } else if (collect) {
          T* wanted = candidates_ + rank_ - below_;
          std::nth_element(candidates_, wanted, candidates_ + found_.load());
          finish(*wanted);
        } else {
          for (int r = 1; r < team.size(); ++r) add(counts, counts_at(r));
          narrow(counts);
        }
      }
      team.barrier();
    }
  }

  double answer() const { return answer_; }

 private:
  static Key bits(T D) {
    D = D + T(0);  // -0 becomes 0
    Key key;
    std::memcpy(&key, &D, sizeof key);
    return key;
  }

  static void add(Counts& to, const Counts& from) {
    to.below += from.below;
    for (int b = 0; b < bins; ++b) to.bin[b] += from.bin[b];
  }

  template <class BlockAt>
  void start(int64_t blocks, bool all, double mean, const BlockAt& block_at, Counts& candidates) {
    int64_t rows = 0;
    for (int64_t b = 0; b < blocks; ++b) rows += block_at(b).rows;
    wanted_ = rows * (rows - 1) / 2;
    rank_ = (wanted_ - 1) / 2;
    if (all) {  // the zeros of the diagonal come first, then every pair twice
      const int64_t middle = (rows * rows - 1) / 2;
      if (middle < rows) return finish(0);
      rank_ = (middle - rows) / 2;
    }
    candidates_ = reinterpret_cast<T*>(candidates.bin);
    pairs_ = wanted_;
    set_range(0, bits(std::numeric_limits<T>::infinity()));
    if (wanted_ > capacity && mean > std::numeric_limits<T>::min() && std::isfinite(T(2 * mean)))
      set_range(bits(T(mean / 8)), bits(T(2 * mean)));
  }

  void set_range(Key low, Key high) {
    low_ = low;
    high_ = high;
    shift_ = 0;
    while (((high - low) >> shift_) >= Key(bins)) ++shift_;
  }

  // Keeps the bin that holds the wanted rank, or what lies to one side of a wrong guess.
  void narrow(const Counts& counts) {
    below_ = 0;
    wanted_ = counts.below;
    if (rank_ < wanted_) return set_range(0, low_ - 1);
    below_ = counts.below;
    Key b = 0;
    while (b < Key(bins) && below_ + counts.bin[b] <= rank_) below_ += counts.bin[b++];
    if (b == Key(bins)) {
      wanted_ = pairs_ - below_;
      return set_range(high_ + 1, bits(std::numeric_limits<T>::infinity()));
    }
    wanted_ = counts.bin[b];
    const Key low = low_ + (b << shift_);
    const Key last = low + ((Key(1) << shift_) - 1);
    set_range(low, last < high_ ? last : high_);
    if (low_ == high_) {
      T value;
      std::memcpy(&value, &low_, sizeof value);
      finish(value);
    }
  }

  void finish(T value) {
    answer_ = double(value);
    done_ = true;
  }

  Key low_ = 0, high_ = 0;  // bit patterns between which the wanted distance lies
  int shift_ = 0;
  int64_t rank_ = 0;    // of the wanted distance, counted from 0
  int64_t below_ = 0;   // distances below low_
  int64_t wanted_ = 0;  // distances in [low_, high_]
  int64_t pairs_ = 0;   // all distances
  bool done_ = false;
  double answer_ = 0;
  T* candidates_ = nullptr;
  std::atomic<bool> undefined_{false};
  std::atomic<int64_t> next_{0}, found_{0};
};

}  // namespace fastmmd::cpu
