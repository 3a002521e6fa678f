// Which instruction set runs: the best this machine has, unless FASTMMD_ISA or a call names
// another.
#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/team.h"

namespace fastmmd::cpu {
namespace {

struct Entry {
  const char* name;
  bool (*runnable)();
  Kernels kernels;
};

// Best last.
const Entry table[] = {
    {"baseline", [] { return true; }, {&baseline::float_kernels, &baseline::double_kernels}},
#if FASTMMD_HAVE_AVX2
    {"avx2",
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
     {&avx2::float_kernels, &avx2::double_kernels}},
#endif
#if FASTMMD_HAVE_AVX512
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma");
     },
     {&avx512::float_kernels, &avx512::double_kernels}},
#endif
};

const Entry* find(const char* name) {
  for (const Entry& entry : table)
    if (std::strcmp(entry.name, name) == 0 && entry.runnable()) return &entry;
  return nullptr;
}

const Entry* choose() {
  if (const char* name = std::getenv("FASTMMD_ISA"))
    if (const Entry* entry = find(name)) return entry;
  const Entry* best = table;
  for (const Entry& entry : table)
    if (entry.runnable()) best = &entry;
  return best;
}

std::atomic<const Entry*>& current() {
  static std::atomic<const Entry*> entry{choose()};
  return entry;
}

std::atomic<bool> in_child{false};
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { in_child.store(true, std::memory_order_relaxed); });

}  // namespace

bool forked() { return in_child.load(std::memory_order_relaxed); }

const Kernels& kernels() { return current().load()->kernels; }
const char* instruction_set() { return current().load()->name; }
bool instruction_set_available(const char* name) { return find(name) != nullptr; }
bool use_instruction_set(const char* name) {
  const Entry* entry = find(name);
  if (entry) current().store(entry);
  return entry != nullptr;
}

}  // namespace fastmmd::cpu
