// CUDA's words for a CPU: the threads of a block are fibers, which take turns at its barriers.
//
// Between two barriers the threads run one after the other, so that a kernel which needs a barrier
// and has none reads what its first thread has not yet, or has already overwritten.
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

using uchar = unsigned char;
using uint = unsigned int;
struct dim3 {
  int x, y, z;
};
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T x, y, z, w;
};
using int4 = Four<int>;
using float4 = Four<float>;
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct alignas(8) int2 {
  int x, y;
};
inline int2 make_int2(int x, int y) { return {x, y}; }

template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}
#define CUDART_INF_F std::numeric_limits<float>::infinity()

// Their sums and products are rounded one by one; the compiler must not join them (-ffp-contract).
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

inline int __dp4a(int a, int b, int total) {
  for (int i = 0; i < 32; i += 8) total += (int8_t)(a >> i) * (int8_t)(b >> i);
  return total;
}

inline int __byte_perm(uint low, uint high, uint order) {
  uint64_t bytes = ((uint64_t)high << 32) | low;
  uint result = 0;
  for (int i = 0; i < 4; ++i) result |= (uint)(uchar)(bytes >> (order >> 4 * i & 7) * 8) << 8 * i;
  return (int)result;
}

#define __global__
#define __launch_bounds__(n)
#define __restrict__
#define __shared__ static  // one block runs at a time

static dim3 threadIdx, blockIdx;

namespace gpu {
constexpr size_t kStack = 128 * 1024;
static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
static std::vector<bool> is_done;
static std::vector<char> stacks;
static int current;
static void (*body)();

static void run() {
  body();
  is_done[current] = true;
}

// Returns whether all threads came to every barrier together.
static bool launch(void (*kernel)(), int blocks, int threads) {
  body = kernel;
  stacks.resize(kStack * threads);
  fibers.resize(threads);
  for (int block = 0; block < blocks; ++block) {
    blockIdx = {block, 0, 0};
    is_done.assign(threads, false);
    for (int i = 0; i < threads; ++i) {
      getcontext(&fibers[i]);
      fibers[i].uc_stack = {&stacks[kStack * i], 0, kStack};
      fibers[i].uc_link = &scheduler;
      makecontext(&fibers[i], run, 0);
    }
    for (bool goes_on = true; goes_on;) {
      for (current = 0; current < threads; ++current) {
        threadIdx = {current, 0, 0};
        swapcontext(&scheduler, &fibers[current]);
      }
      for (int i = 1; i < threads; ++i)
        if (is_done[i] != is_done[0]) return false;
      goes_on = !is_done[0];
    }
  }
  return true;
}
}  // namespace gpu

inline void __syncthreads() {
  int self = gpu::current;
  swapcontext(&gpu::fibers[self], &gpu::scheduler);
  threadIdx = {self, 0, 0};
}
