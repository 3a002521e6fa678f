// One pass of the native core at a size, on one thread, for a tool that counts instructions.
//
//     counters N D     value and gradients of five Gaussians at the mean bandwidth, n = m = N
//
// What is counted is counted_pass alone: not the making of the samples, not the start.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "mmd.h"
#include "random.h"

namespace {

using namespace fastmmd;

struct Pass {
  Mmd2Args args{};
  Mmd2Out out{};
};

}  // namespace

// By this name the tool finds it.
extern "C" __attribute__((noinline, visibility("default"))) void counted_pass(const void* pass) {
  const auto& p = *static_cast<const Pass*>(pass);
  fastmmd::cpu::mmd2(p.args, p.out);
}

int main(int count, char** words) {
  if (count != 3) return std::fprintf(stderr, "usage: counters N D\n"), 2;
  const int64_t n = std::atoll(words[1]), d = std::atoll(words[2]);
  // The tool knows no AVX-512.
  if (!cpu::instruction_set_available("avx2")) return std::fprintf(stderr, "no AVX2 here\n"), 3;
  cpu::use_instruction_set("avx2");

  std::vector<float> z(size_t(2 * n * d)), gradient(z.size());
  const Random random(1, 0);
  uint64_t drawn = 0;
  for (float& value : z) {  // the sum of four uniform numbers, nearly normal
    double sum = -2;
    for (int i = 0; i < 4; ++i) sum += double(random.number(drawn++) >> 11) * 0x1p-53;
    value = float(sum);
  }
  const double multipliers[] = {0.25, 0.5, 1, 2, 4};
  std::vector<Term> terms;
  for (double m : multipliers) terms.push_back({Family::gaussian, Unit::mean, 0, 1 / m, 1.0, 0, 0});
  std::vector<double> scales(terms.size());
  float value = 0;

  Pass pass;
  Mmd2Args& args = pass.args;
  args.dtype = Dtype::float32;
  args.x = {z.data(), n, n * d, d, 1, nullptr};
  args.y = {z.data() + n * d, n, n * d, d, 1, nullptr};
  args.widths = &d;
  args.num_factors = 1;
  args.terms = terms.data();
  args.num_terms = int(terms.size());
  args.scales = scales.data();
  args.threads = 1;
  args.batch = 1;
  args.estimator = Estimator::biased;
  pass.out.value = &value;
  pass.out.v_x = gradient.data();
  pass.out.v_y = gradient.data() + n * d;
  std::vector<char> workspace(cpu::workspace(args, pass.out));
  args.workspace = workspace.data();
  counted_pass(&pass);
  std::printf("%.6g %zu\n", double(value), workspace.size());
}
