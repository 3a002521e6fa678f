// The instructions on fragments, tiles and boxes: ldmatrix, mma, wgmma, TMA.
#include <vector>

#include "cuda/ptx.cuh"

namespace fastmmd::cuda::ptx {
namespace {

using emulation::fail;

// --- a warp --------------------------------------------------------------------------------------

struct Ldmatrix {
  uint32_t* r;
  const char* row;
};

template <bool trans>
void load_matrices(void** lanes, uint32_t) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t m[8][8];
    for (int row = 0; row < 8; ++row)
      std::memcpy(m[row], static_cast<Ldmatrix*>(lanes[8 * matrix + row])->row, 16);
    for (int lane = 0; lane < 32; ++lane) {
      const int outer = lane / 4, inner = lane % 4 * 2;
      const uint32_t low = trans ? m[inner][outer] : m[outer][inner];
      const uint32_t high = trans ? m[inner + 1][outer] : m[outer][inner + 1];
      static_cast<Ldmatrix*>(lanes[lane])->r[matrix] = low | high << 16;
    }
  }
}

struct Tf32 {
  static constexpr int k = 8, bytes = 4;
  static float value(const char* p) {
    uint32_t bits;
    std::memcpy(&bits, p, 4);
    return tf32_value(bits);
  }
};
struct Bf16 {
  static constexpr int k = 16, bytes = 2;
  static float value(const char* p) {
    uint16_t bits;
    std::memcpy(&bits, p, 2);
    return bf16_value(bits);
  }
};
struct Half {
  static constexpr int k = 16, bytes = 2;
  static float value(const char* p) {
    uint16_t bits;
    std::memcpy(&bits, p, 2);
    return half_value(bits);
  }
};

// Adds a lane's four registers of A to the 16 x k matrix. A register holds 32 bits of a row.
template <class Type>
void place_a(const uint32_t* a, int lane, float* matrix) {
  constexpr int each = 4 / Type::bytes;
  for (int i = 0; i < 4; ++i)
    for (int e = 0; e < each; ++e) {
      const int row = lane / 4 + i % 2 * 8, column = (lane % 4 + i / 2 * 4) * each + e;
      matrix[row * Type::k + column] =
          Type::value(reinterpret_cast<const char*>(a + i) + e * Type::bytes);
    }
}

struct Mma {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};

template <class Type>
void multiply(void** lanes, uint32_t) {
  constexpr int k = Type::k, each = 4 / Type::bytes;
  float a[16 * k], b[k][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& mine = *static_cast<Mma*>(lanes[lane]);
    place_a<Type>(mine.a, lane, a);
    for (int i = 0; i < 2; ++i)
      for (int e = 0; e < each; ++e)
        b[(lane % 4 + i * 4) * each + e][lane / 4] =
            Type::value(reinterpret_cast<const char*>(mine.b + i) + e * Type::bytes);
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float& c = static_cast<Mma*>(lanes[lane])->c[i];
      double sum = c;
      for (int l = 0; l < k; ++l) sum += double(a[row * k + l]) * b[l][column];
      c = static_cast<float>(sum);
    }
  }
}

template <class Type>
void mma(const char* what, float* c, const uint32_t* a, const uint32_t* b) {
  Mma mine{c, a, b};
  emulation::meet_warp(~0u, what, &mine, multiply<Type>);
}

// --- a warpgroup ---------------------------------------------------------------------------------

// XOR of the 16-byte chunk's number (bits 4 to 6) with the row's (bits 7 to 9).
uint32_t swizzle(uint32_t address) { return address ^ (address >> 3 & 0x70); }

struct Descriptor {
  uint32_t start, leading, stride;

  explicit Descriptor(uint64_t bits)
      : start(uint32_t(bits & 0x3fff) << 4),
        leading(uint32_t(bits >> 16 & 0x3fff) << 4),
        stride(uint32_t(bits >> 32 & 0x3fff) << 4) {
    if (bits >> 62 != 1 || (bits >> 49 & 7))
      fail("wgmma: a descriptor without 128-byte swizzle or with a base offset: %#llx",
           static_cast<unsigned long long>(bits));
  }
  // Byte `k` (below 32) along K of row `mn`.
  const char* k_major(int mn, int k) const {
    return at(start + uint32_t(mn / 8) * stride + uint32_t(mn % 8 * 128 + k));
  }
  // Row `k` along K, 16-bit element `mn` of it.
  const char* mn_major(int mn, int k) const {
    return at(start + uint32_t(mn / 64) * leading + uint32_t(k / 8) * stride +
              uint32_t(k % 8 * 128 + mn % 64 * 2));
  }

 private:
  static const char* at(uint32_t address) {
    const char* pointer = emulation::shared_pointer(swizzle(address));
    emulation::reads(pointer, 2);
    return pointer;
  }
};

struct Operands {
  float* d;
  uint64_t a, b;
  const uint32_t* registers;
  int n;
  bool accumulate, mn_major_b;
};

struct Product {
  std::vector<float*> d;
  uint64_t a, b;
  std::vector<float> registers;  // A as a 64 x k matrix, if it came from there
  int n;
  bool accumulate, mn_major_b;
};

template <class Type>
void perform(const Product& p) {
  constexpr int k = Type::k;
  std::vector<float> a = p.registers, b(size_t(p.n) * k);
  if (a.empty()) {
    const Descriptor from(p.a);
    a.resize(64 * k);
    for (int i = 0; i < 64; ++i)
      for (int l = 0; l < k; ++l) a[i * k + l] = Type::value(from.k_major(i, l * Type::bytes));
  }
  const Descriptor from(p.b);
  for (int j = 0; j < p.n; ++j)
    for (int l = 0; l < k; ++l)
      b[size_t(j) * k + l] =
          Type::value(p.mn_major_b ? from.mn_major(j, l) : from.k_major(j, l * Type::bytes));
  for (int t = 0; t < 128; ++t) {
    for (int e = 0; e < p.n / 2; ++e) {
      const int row = t / 32 * 16 + t % 32 / 4 + e % 4 / 2 * 8,
                column = e / 4 * 8 + t % 4 * 2 + e % 2;
      double sum = p.accumulate ? p.d[t][e] : 0.0;
      for (int l = 0; l < k; ++l) sum += double(a[row * k + l]) * b[size_t(column) * k + l];
      p.d[t][e] = static_cast<float>(sum);
    }
  }
}

template <class Type>
void issue(void** threads) {
  const Operands& first = *static_cast<Operands*>(threads[0]);
  Product p{{}, first.a, first.b, {}, first.n, first.accumulate, first.mn_major_b};
  if (first.registers) p.registers.resize(64 * Type::k);
  for (int t = 0; t < 128; ++t) {
    const Operands& mine = *static_cast<Operands*>(threads[t]);
    if (mine.a != p.a || mine.b != p.b || mine.accumulate != p.accumulate)
      fail("wgmma: thread %d of the warpgroup has another descriptor or scale", t);
    p.d.push_back(mine.d);
    if (mine.registers)
      place_a<Type>(mine.registers, t % 32, p.registers.data() + t / 32 * 16 * Type::k);
  }
  emulation::Warpgroup& group = emulation::warpgroup();
  if (!group.fenced) fail("wgmma: no wgmma.fence since the last wait");
  group.issued.push_back([p] { perform<Type>(p); });
}

// --- TMA -----------------------------------------------------------------------------------------

struct Map {
  const char* data;
  int64_t rows, columns;
  int element_bytes, box_rows;
  uint64_t magic;
};
static_assert(sizeof(Map) <= sizeof(TensorMap));
constexpr uint64_t map_magic = 0x7E4503A9D1C2B687;

}  // namespace

void ldmatrix4(uint32_t (&r)[4], const void* shared_row) {
  emulation::check_aligned(shared_row, 16, "ldmatrix");
  emulation::reads(shared_row, 16);
  Ldmatrix mine{r, static_cast<const char*>(shared_row)};
  emulation::meet_warp(~0u, "ldmatrix", &mine, load_matrices<false>);
}
void ldmatrix4_trans(uint32_t (&r)[4], const void* shared_row) {
  emulation::check_aligned(shared_row, 16, "ldmatrix.trans");
  emulation::reads(shared_row, 16);
  Ldmatrix mine{r, static_cast<const char*>(shared_row)};
  emulation::meet_warp(~0u, "ldmatrix.trans", &mine, load_matrices<true>);
}

void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma<Tf32>("mma tf32", c, a, b);
}
void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma<Bf16>("mma bf16", c, a, b);
}
void mma_half(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma<Half>("mma half", c, a, b);
}

void tma_load_2d_multicast(void* shared, const TensorMap* map, uint64_t* bar, int x, int y,
                           uint16_t blocks) {
  Map m;
  std::memcpy(&m, map, sizeof m);
  if (m.magic != map_magic) fail("TMA: this is no tensor map");
  emulation::check_aligned(shared, 1024, "TMA");
  const uint32_t address = emulation::shared_address(shared);
  const uint32_t bytes = uint32_t(m.box_rows) * 128;
  emulation::shared_pointer(address + bytes - 1);
  for (unsigned rank = 0; rank < 16; ++rank) {
    if (!(blocks >> rank & 1)) continue;
    char* const to = emulation::shared_pointer(address, rank);
    std::memset(to, 0xFF, bytes);
    emulation::transfer_later(bar, rank, bytes, [=] {
      const int columns = 128 / m.element_bytes;
      for (int row = 0; row < m.box_rows; ++row) {
        for (int column = 0; column < columns; ++column) {
          const int64_t i = y + int64_t(row), j = x + int64_t(column);
          char* const element = to + swizzle(uint32_t(row * 128 + column * m.element_bytes));
          if (i < 0 || i >= m.rows || j < 0 || j >= m.columns)
            std::memset(element, 0, size_t(m.element_bytes));
          else
            std::memcpy(element, m.data + (i * m.columns + j) * m.element_bytes,
                        size_t(m.element_bytes));
        }
      }
    });
  }
}

namespace wgmma {

void fence() {
  emulation::meet_warpgroup("wgmma.fence", nullptr,
                            [](void**) { emulation::warpgroup().fenced = true; });
}

void commit() {
  emulation::meet_warpgroup("wgmma.commit", nullptr, [](void**) {
    emulation::Warpgroup& group = emulation::warpgroup();
    group.groups.push_back(std::move(group.issued));
    group.issued.clear();
  });
}

void wait_groups(size_t in_flight) {
  emulation::meet_warpgroup_in_order("wgmma.wait", &in_flight, [](void** threads) {
    emulation::Warpgroup& group = emulation::warpgroup();
    while (group.groups.size() > *static_cast<size_t*>(threads[0])) {
      for (const auto& product : group.groups.front()) product();
      group.groups.pop_front();
    }
    group.fenced = false;
  });
}

uint64_t descriptor(const void* shared, uint32_t stride_bytes, uint32_t leading_bytes) {
  return uint64_t(1) << 62 | uint64_t(stride_bytes >> 4) << 32 |
         uint64_t(leading_bytes >> 4) << 16 | shared_address(shared) >> 4;
}

void product(Type type, int n, float* d, uint64_t a, const uint32_t* registers, uint64_t b,
             bool accumulate, bool mn_major_b) {
  Operands mine{d, a, b, registers, n, accumulate, mn_major_b};
  switch (type) {
    case Type::tf32: return emulation::meet_warpgroup("wgmma tf32", &mine, issue<Tf32>);
    case Type::bf16: return emulation::meet_warpgroup("wgmma bf16", &mine, issue<Bf16>);
    case Type::half: return emulation::meet_warpgroup("wgmma half", &mine, issue<Half>);
  }
}

}  // namespace wgmma
}  // namespace fastmmd::cuda::ptx

namespace fastmmd::cuda {

cudaError_t tensor_map_2d(TensorMap* map, const void* data, int element_bytes, int64_t rows,
                          int64_t columns, int box_rows) {
  using namespace ptx;
  if ((element_bytes != 2 && element_bytes != 4) || rows < 1 || columns < 1 ||
      columns * element_bytes % 16 || reinterpret_cast<uintptr_t>(data) % 16 || box_rows < 1 ||
      box_rows > 256)
    return cudaErrorInvalidValue;
  const Map m{static_cast<const char*>(data), rows, columns, element_bytes, box_rows, map_magic};
  std::memcpy(map, &m, sizeof m);
  return cudaSuccess;
}

}  // namespace fastmmd::cuda
