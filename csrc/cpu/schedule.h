// Orders of the tiles (I, J) of a symmetric matrix that need no lock: rounds in which every block
// takes part in at most one game. A game runs when both of its blocks have finished the rounds
// before, so what is added up per block is added in one order, whatever the number of threads.
#pragma once

#include <atomic>
#include <cstdint>

#include "cpu/team.h"

namespace fastmmd::cpu {

struct Game {
  enum Kind { play, rest, none };  // rest: `first` has no partner in this round; none: no entry
  int64_t round, first, second;
  Kind kind;
};

// All pairs (I, J), I <= J, of `blocks` blocks as a round-robin tournament: round 0 holds the pairs
// (I, I), and every block plays once in each later round (one of them rests if their number is
// odd).
class Tournament {
 public:
  explicit Tournament(int64_t blocks) : blocks_(blocks), even_(blocks + blocks % 2) {}

  int64_t games() const { return blocks_ + (even_ - 1) * (even_ / 2); }

  Game game(int64_t index) const {
    if (index < blocks_) return {0, index, index, Game::play};
    const int64_t round = 1 + (index - blocks_) / (even_ / 2);
    const int64_t seat = (index - blocks_) % (even_ / 2);
    const int64_t ring = even_ - 1;  // block `ring` stays, the others move round it
    int64_t a = (round - 1 + seat) % ring;
    int64_t b = seat ? (round - 1 + ring - seat) % ring : ring;
    if (a > b) {
      const int64_t t = a;
      a = b;
      b = t;
    }
    return {round, a, b, b >= blocks_ ? Game::rest : Game::play};
  }

 private:
  int64_t blocks_, even_;
};

// The pairs of two rows of `blocks` blocks each, numbered one row after the other from `second` on,
// whose places in their rows differ by at most `reach`: what estimators that pair neighbours need.
// Rounds: (x_I, x_I) and (y_I, y_I); (x_I, y_I); then for each distance two for pairs within a row,
// by the parity of their place, (x_I, y_J) and (x_J, y_I).
class Neighbours {
 public:
  Neighbours(int64_t blocks, int64_t second, int64_t reach)
      : blocks_(blocks), second_(second), reach_(reach < blocks ? reach : blocks - 1) {}

  int64_t games() const { return blocks_ > 0 ? 2 * blocks_ * (2 + 4 * reach_) : 0; }

  Game game(int64_t index) const {
    const int64_t round = index / (2 * blocks_), seat = index % (2 * blocks_);
    const int64_t row = seat / blocks_, place = seat % blocks_;
    const int64_t self = at(row, place);
    if (round == 0) return {round, self, self, Game::play};
    const Game none = {round, self, self, Game::none}, rest = {round, self, self, Game::rest};
    if (round == 1) return row ? none : Game{round, self, at(1, place), Game::play};
    const int64_t distance = 1 + (round - 2) / 4, kind = (round - 2) % 4;
    if (kind < 2) {  // within a row
      const bool leads = place / distance % 2 == kind;
      if (leads) {
        if (place + distance >= blocks_) return rest;
        return {round, self, at(row, place + distance), Game::play};
      }
      return place >= distance ? none : rest;
    }
    // The lesser place is in row kind - 2, and its seat has the entry.
    const int64_t lesser = kind - 2;
    if (row == lesser) {
      if (place + distance >= blocks_) return rest;
      const int64_t other = at(1 - row, place + distance);
      return row == 0 ? Game{round, self, other, Game::play} : Game{round, other, self, Game::play};
    }
    return place >= distance ? none : rest;
  }

 private:
  int64_t at(int64_t row, int64_t place) const { return row * second_ + place; }

  int64_t blocks_, second_, reach_;
};

// Plays all games with the team: play(I, J). `rounds` [blocks] starts at zero.
template <class Schedule, class Play>
void play_games(const Schedule& schedule, Team& team, int rank, Phase& phase,
                std::atomic<int64_t>* rounds, const Play& play) {
  team.share(phase, rank, schedule.games(), [&](int64_t index) {
    const Game g = schedule.game(index);
    if (g.kind == Game::none) return;
    // Games are handed out in order, so whoever is waited for is already running.
    if (!team.wait_for(rounds[g.first], rank, g.round)) return;
    if (g.kind == Game::play) {
      if (!team.wait_for(rounds[g.second], rank, g.round)) return;
      play(g.first, g.second);
      if (g.second != g.first) rounds[g.second].store(g.round + 1, std::memory_order_release);
    }
    rounds[g.first].store(g.round + 1, std::memory_order_release);
  });
}

}  // namespace fastmmd::cpu
