// Callers side by side, calls that are stopped, and how much memory they use.
#include <limits>
#include <thread>

#include "core.h"

namespace fastmmd::test {
namespace {

// Says stop the `left`-th time it is asked.
struct Stop {
  int left;
  int asked = 0;
  bool on_the_caller = true;
  std::thread::id caller = std::this_thread::get_id();

  static bool ask(void* context) {
    Stop& stop = *static_cast<Stop*>(context);
    stop.on_the_caller &= std::this_thread::get_id() == stop.caller;
    return ++stop.asked >= stop.left;
  }
};

template <class Call>
void stops(const std::string& name, int left, Problem& problem, const Call& call) {
  Stop stop = {left};
  problem.interrupted = Stop::ask;
  problem.interrupted_context = &stop;
  bool stopped = false;
  try {
    call();
  } catch (const Interrupted&) {
    stopped = true;
  }
  // A machine fast enough to finish before the first question is no failure.
  check(stopped == (stop.asked >= left), name + ": an interrupted call stops");
  check(stop.asked <= left, name + ": and asks no more");
  check(stop.on_the_caller, name + ": the caller's thread is asked");
}

}  // namespace

void concurrent_calls() {
  Case c = {"concurrent", 190, 170, {33}, {term(Family::gaussian, Unit::median, 1)}};
  c.estimator = Estimator::unbiased;
  const Data<float> data = draw<float>(c);
  const std::vector<float> v = normal<float>(2 * c.m, 3);
  const auto permutation = Scheme::permutation;
  const Mmd2<float> mmd2_alone = mmd2(c, data, 2);
  const Sums<float> sum_alone = kernel_sum(c, data, v, 2, 2);
  const Forms forms_alone = sign_forms(c, data, permutation, 5, 100, 2);
  bool same[6];
  std::vector<std::thread> callers;
  for (int i = 0; i < 6; ++i)
    callers.emplace_back([&, i] {
      if (i % 3 == 0) same[i] = mmd2(c, data, 2) == mmd2_alone;
      else if (i % 3 == 1) same[i] = kernel_sum(c, data, v, 2, 2) == sum_alone;
      else same[i] = sign_forms(c, data, permutation, 5, 100, 2) == forms_alone;
    });
  for (std::thread& caller : callers) caller.join();
  for (int i = 0; i < 6; ++i) check(same[i], "concurrent calls, " + std::to_string(i));
}

void interruptions() {
  Case big = {"big", 5000, 5000, {200}, {term(Family::gaussian, Unit::mean, 1)}};
  const Data<float> data = draw<float>(big);
  struct Pass {
    const char* name;
    Unit unit;
    Estimator estimator;
    int64_t size;
  };
  for (const Pass& pass : {Pass{"biased", Unit::mean, Estimator::biased, 0},
                           {"median", Unit::median, Estimator::resolve, 0},
                           {"incomplete", Unit::fixed, Estimator::incomplete, 4000},
                           {"cross", Unit::fixed, Estimator::cross, 0}})
    for (int threads : {1, 2}) {
      Case c = big;
      c.terms[0].unit = pass.unit;
      c.estimator = pass.estimator;
      Mmd2Args args = {problem(c, data, threads, nullptr), 1, pass.estimator, pass.size};
      stops(pass.name, threads, args, [&] { mmd2<float>(c, args, Want::points); });
    }

  // Few large elements, and many small ones.
  Case batch = big;
  batch.batch = 3;
  Mmd2Args args = {problem(batch, data, 2, nullptr), 3, Estimator::biased, 0};
  args.x.batch_stride = args.y.batch_stride = 0;
  stops("large elements", 1, args, [&] { mmd2<float>(batch, args, Want::value); });
  Case small = big;
  small.n = small.m = 30;
  small.batch = 200000;
  for (int threads : {1, 2}) {
    args = {problem(small, data, threads, nullptr), small.batch, Estimator::biased, 0};
    args.x.batch_stride = args.y.batch_stride = 0;
    stops("small elements", 1, args, [&] { mmd2<float>(small, args, Want::value); });
  }

  const std::vector<float> v = normal<float>(100 * big.m, 3);
  std::vector<float> out(100 * big.n);
  double scale;
  for (int threads : {1, 2}) {
    KernelSumArgs sum = {problem(big, data, threads, &scale), v.data(), 100, out.data()};
    Workspace room(cpu::workspace(sum));
    sum.workspace = room.data();
    stops("kernel sum", threads, sum, [&] { cpu::kernel_sum(sum); });
  }
  const int64_t count = 200;
  std::vector<double> forms(3 * (count + 1) + 2);
  for (int threads : {1, 2}) {
    SignFormsArgs sign = {problem(big, data, threads, &scale),
                          Scheme::permutation,
                          1,
                          count,
                          &forms[0],
                          &forms[count + 1],
                          &forms[2 * (count + 1)],
                          &forms[3 * (count + 1)]};
    Workspace room(cpu::workspace(sign));
    sign.workspace = room.data();
    stops("sign forms", threads, sign, [&] { cpu::sign_forms(sign); });
  }
}

// Every call of these tests runs in a Workspace of exactly the promised size, and under a sanitizer
// one byte too many is an error. Here: of what the promise may depend.
void workspaces() {
  Case c = {"workspace", 230, 190, {24}, families(24)};
  c.terms.resize(7);  // of one geometry
  c.weighted = true;
  c.batch = 3;
  for (Estimator estimator : {Estimator::biased, Estimator::linear, Estimator::resolve}) {
    c.estimator = estimator;
    const Data<float> data = draw<float>(c);
    Data<float> other = draw<float>(c, 5);
    for (float& v : other.x) v = std::numeric_limits<float>::quiet_NaN();
    for (int threads : {1, 2, 4, 64}) {
      float any;
      double any_double;
      const Mmd2Out all = {&any, &any, &any, &any_double, &any_double, &any_double, &any_double};
      const Mmd2Args one = {problem(c, data, threads, nullptr), c.batch, estimator, 0};
      const Mmd2Args two = {problem(c, other, threads, nullptr), c.batch, estimator, 0};
      check(cpu::workspace(one, all) == cpu::workspace(two, all), "workspaces know no data");
      Mmd2Out value = {};
      value.value = &any;
      check(cpu::workspace(one, value) <= cpu::workspace(one, all), "fewer outputs take no more");
    }
  }
  // More threads than blocks of rows, or than elements.
  c.estimator = Estimator::biased;
  const Data<float> data = draw<float>(c);
  const Mmd2<float> expected = mmd2(c, data, 1);
  check(mmd2(c, data, 64) == expected, "many threads");
  Case small = c;
  small.n = small.m = 10;
  const Data<float> few = draw<float>(small);
  check(mmd2(small, few, 64) == mmd2(small, few, 1), "more threads than elements");
}

}  // namespace fastmmd::test
