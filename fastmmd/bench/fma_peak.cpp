// The rate of fused multiply-adds that this machine reaches when nothing else binds: independent
// accumulators in registers, no memory. Prints GFLOP/s (an FMA counts as two) for the type and the
// number of threads given; compiled with the flags of the instruction set that is asked about.
//
//   fma_peak [float|double] [threads] [seconds]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int bytes = 64;
#elif defined(__AVX2__)
constexpr int bytes = 32;
#else
constexpr int bytes = 16;
#endif

template <class T>
double run(double seconds) {
  typedef T V __attribute__((vector_size(bytes)));
  // Enough chains to hide four or five cycles of latency on two units, few enough for registers.
  constexpr int chains = 12;
  V acc[chains];
  V a = V{} + T(0.999999), b = V{} + T(1e-6);
  asm volatile("" : "+m"(a), "+m"(b));  // unknown to the compiler
  for (V& v : acc) v = V{} + T(1);
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  double best = 0;
  do {  // the best of short slices: a slice that was interrupted does not count
    constexpr int rounds = 200000;
    const auto start = Clock::now();
    for (int i = 0; i < rounds; ++i)
#pragma GCC unroll 16
      for (int c = 0; c < chains; ++c) acc[c] = acc[c] * a + b;
    const double t = std::chrono::duration<double>(Clock::now() - start).count();
    const double rate = 2.0 * rounds * chains * (bytes / sizeof(T)) / t;
    if (rate > best) best = rate;
  } while (std::chrono::duration<double>(Clock::now() - begin).count() < seconds);
  V sum{};
  for (V& v : acc) sum += v;
  asm volatile("" : : "m"(sum));
  return best;
}

int main(int argc, char** argv) {
  const bool is_double = argc > 1 && std::strcmp(argv[1], "double") == 0;
  const int threads = argc > 2 ? std::atoi(argv[2]) : 1;
  const double seconds = argc > 3 ? std::atof(argv[3]) : 0.5;
  std::vector<double> rate(threads);
  std::vector<std::thread> team;
  for (int t = 0; t < threads; ++t)
    team.emplace_back([&, t] { rate[t] = is_double ? run<double>(seconds) : run<float>(seconds); });
  double total = 0;
  for (int t = 0; t < threads; ++t) {
    team[t].join();
    total += rate[t];
  }
  std::printf("%.1f\n", total / 1e9);
}
