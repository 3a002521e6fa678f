// The native core by itself: what the sanitizers run. Arguments name the groups to run.
#include <cstdio>
#include <cstring>
#include <string>

#include "core.h"

namespace fastmmd::test {
namespace {

int passed = 0, failed = 0;

const Group groups[] = {
    {"families_and_estimators", families_and_estimators, false},
    {"products", products, false},
    {"units", units},
    {"batches", batches},
    {"kernel_sums", kernel_sums},
    {"sign_vectors", sign_vectors},
    {"distribution_of_sign_vectors", distribution_of_sign_vectors, false},
    {"forms_of_sign_vectors", forms_of_sign_vectors},
    {"formats_of_inputs", formats_of_inputs},
    {"degenerate_inputs", degenerate_inputs},
    {"near_duplicates", near_duplicates},
    {"scales_of_data", scales_of_data},
    {"concurrent_calls", concurrent_calls},
    {"interruptions", interruptions, false},
    {"workspaces", workspaces},
    {"lines", lines, false},
    {"learned_maps", learned_maps, false},
    {"random_features", random_features},
    {"numbers_that_are_none_among_features", numbers_that_are_none_among_features},
    {"interrupted_features", interrupted_features, false},
};

bool wanted(const char* name, int count, char** names) {
  for (int i = 1; i < count; ++i)
    if (std::strcmp(names[i], name) == 0) return true;
  return count <= 1;
}

}  // namespace

void check(bool ok, const std::string& what) {
  ok ? ++passed : ++failed;
  if (!ok) std::fprintf(stderr, "FAILED (%s): %s\n", cpu::instruction_set(), what.c_str());
}

void on_every_instruction_set(const std::function<void()>& run) {
  const std::string before = cpu::instruction_set();
  for (const char* isa : {"baseline", "avx2", "avx512"})
    if (cpu::use_instruction_set(isa)) run();
  cpu::use_instruction_set(before.c_str());
}

int run(int count, char** names) {
  for (const Group& group : groups)
    if (!wanted(group.name, count, names)) continue;
    else if (group.everywhere) on_every_instruction_set(group.run);
    else group.run();
  check(!cpu::use_instruction_set("abacus"), "an unknown instruction set is refused");
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}

}  // namespace fastmmd::test

int main(int count, char** names) { return fastmmd::test::run(count, names); }
