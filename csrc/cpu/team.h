// A team of threads that runs one function in phases of shared work.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#if defined(FASTMMD_STD_THREADS)  // ThreadSanitizer cannot see into an OpenMP runtime
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

#include <sched.h>

namespace fastmmd::cpu {

// True in a process forked from one that had loaded this library. Thread pools do not survive a
// fork: the child that uses one hangs, so it runs on one thread (with the same results).
bool forked();

class Wait {  // spins, then yields: the machine may have fewer free cores than threads
 public:
  void once() {
    if (++spins_ < 2048) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else {
      sched_yield();
    }
  }

 private:
  int spins_ = 0;
};

// A count of pieces of work, handed out one by one.
struct Phase {
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int64_t> finished{0};
};

class Team {
 public:
  Team(bool (*interrupted)(void*), void* context)
      : interrupted_(interrupted), context_(context), asked_(Clock::now()) {}

  int size() const { return size_; }
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

  // use(i) for i in [0, count), by whoever is free; returns when all are finished. Nobody waits for
  // a thread that has no piece in hand: on a busy machine one of the team may not be running at
  // all.
  template <class Use>
  void share(Phase& phase, int rank, int64_t count, const Use& use) {
    int64_t i;
    while (go_on(rank) && (i = phase.next.fetch_add(1, std::memory_order_relaxed)) < count) {
      use(i);
      phase.finished.fetch_add(1, std::memory_order_acq_rel);
    }
    wait_for(phase.finished, rank, count);
  }

  // Waits until counter == value; false if the team was stopped meanwhile.
  bool wait_for(const std::atomic<int64_t>& counter, int rank, int64_t value) {
    for (Wait wait; counter.load(std::memory_order_acquire) != value; wait.once())
      if (!go_on(rank)) return false;
    return true;
  }

  // Here everybody waits for everybody.
  void barrier() {
    if (size_ == 1) return;
    const int phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (Wait wait; phase_.load(std::memory_order_acquire) == phase;) wait.once();
  }

  // Asks the caller, a few times a second and on its own thread, whether to go on.
  bool go_on(int rank) {
    if (stopped()) return false;
    if (rank == 0 && interrupted_ && Clock::now() - asked_ > std::chrono::milliseconds(100)) {
      if (interrupted_(context_)) stopped_.store(true, std::memory_order_relaxed);
      asked_ = Clock::now();
    }
    return !stopped();
  }

  // Runs body(rank) on up to `threads` threads, rank 0 on the caller's.
  template <class Body>
  void run(int threads, const Body& body) {
    if (threads <= 1 || forked()) {
      size_ = 1;
      return body(0);
    }
#if defined(FASTMMD_STD_THREADS)
    size_ = threads;
    std::vector<std::thread> others;
    for (int rank = 1; rank < threads; ++rank) others.emplace_back([&, rank] { body(rank); });
    body(0);
    for (std::thread& other : others) other.join();
#elif defined(_OPENMP)
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
      size_ = omp_get_num_threads();
      body(omp_get_thread_num());
    }
#else
    size_ = 1;
    body(0);
#endif
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool (*interrupted_)(void*);
  void* context_;
  Clock::time_point asked_;
  int size_ = 1;
  std::atomic<bool> stopped_{false};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
};

}  // namespace fastmmd::cpu
