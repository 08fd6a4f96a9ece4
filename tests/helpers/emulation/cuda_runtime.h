// As much of CUDA as csrc/cuda uses, on the CPU: what test_cuda.py compiles the kernels against where there is no GPU.
// A thread of a block is a fiber; a block is run by one thread of the CPU, blocks that run together by one each. Threads
// of a warp meet at every shuffle, threads of a block at every barrier; whatever lies between runs one thread after
// another, so a missing barrier shows as a wrong number. It finds no error of memory order between blocks.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

typedef void* cudaStream_t;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid argument" : "no error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

namespace emulation {

// A GPU of three processors: an H100, or of the compute capability and the bytes a block may ask for in TMEM_EMULATED_GPU.
struct Gpu {
  int major = 9, shared = 232448;
  Gpu() {
    if (const char* given = std::getenv("TMEM_EMULATED_GPU")) std::sscanf(given, "%d %d", &major, &shared);
  }
};
inline const Gpu gpu;

}  // namespace emulation

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  const int values[] = {3, emulation::gpu.major, emulation::gpu.shared};
  return *value = values[what], cudaSuccess;
}
template <class K>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, K, int, size_t) {
  return *blocks = 1, cudaSuccess;
}

template <class K>
cudaError_t cudaFuncSetAttribute(K, cudaFuncAttribute, int bytes) {
  return bytes <= emulation::gpu.shared ? cudaSuccess : cudaErrorInvalidValue;
}

namespace emulation {

// Shared memory whose size a launch names: filled with NaN before every block.
inline thread_local std::vector<float> shared;
inline float* room() { return shared.data(); }

// Blocks that run together and read one another's shared memory.
struct Cluster {
  std::vector<std::vector<float>*> shared;
  std::mutex lock;
  std::condition_variable all;
  size_t come = 0;
  long round = 0;
};
inline thread_local Cluster* cluster = nullptr;

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

constexpr size_t STACK = 1 << 16;

// Passes once every one of its members that still runs has come.
struct Meeting {
  int members = 0, come = 0;
  long round = 0;
};

// Begun by a context, and left and gone on with by jumps: swapcontext would call the system every time.
struct Fiber {
  ucontext_t context;
  jmp_buf left;
  bool begun = false, done = false;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  std::vector<double> lanes;
  std::vector<std::array<uint32_t, 6>> words;  // what each thread brings to a product of its warp
  std::vector<std::vector<Copy>> copies;  // that each thread has under way
  Meeting all;
  jmp_buf scheduler;
  size_t current = 0;
  std::function<void()> body;
};

inline thread_local Block* block = nullptr;
inline thread_local std::vector<std::unique_ptr<char[]>> stacks;  // of one block after another

inline void pause() {
  if (!_setjmp(block->fibers[block->current].left)) _longjmp(block->scheduler, 1);
}

inline void go_on(Fiber& fiber) {
  if (_setjmp(block->scheduler)) return;
  if (fiber.begun) _longjmp(fiber.left, 1);
  fiber.begun = true;
  setcontext(&fiber.context);
}

inline void meet(Meeting& meeting) {
  const long round = meeting.round;
  if (++meeting.come == meeting.members) meeting.come = 0, meeting.round++;
  while (meeting.round == round) pause();
}

// Of blocks, each on a thread of the CPU.
inline void meet(Cluster& cluster) {
  std::unique_lock<std::mutex> held(cluster.lock);
  const long round = cluster.round;
  if (++cluster.come == cluster.shared.size())
    cluster.come = 0, cluster.round++, cluster.all.notify_all();
  else
    cluster.all.wait(held, [&] { return cluster.round != round; });
}

inline void leave(Meeting& meeting) {
  if (--meeting.members && meeting.come == meeting.members) meeting.come = 0, meeting.round++;
}

inline void enter() {
  block->body();
  Block* mine = block;
  leave(mine->all);
  leave(mine->warps[mine->current / 32]);
  mine->fibers[mine->current].done = true;
  pause();
}

}  // namespace emulation

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

inline void run_block(unsigned threads, std::function<void()> body) {
  Block mine;
  mine.body = std::move(body);
  mine.fibers = std::vector<Fiber>(threads);
  mine.warps = std::vector<Meeting>((threads + 31) / 32);
  mine.lanes = std::vector<double>(threads);
  mine.words.resize(threads), mine.copies.resize(threads);
  mine.all.members = threads;
  for (unsigned i = 0; i < threads; i++) mine.warps[i / 32].members++;
  block = &mine;
  while (stacks.size() < threads) stacks.emplace_back(new char[STACK]);
  for (unsigned i = 0; i < threads; i++) {
    ucontext_t& context = mine.fibers[i].context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks[i].get();
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, enter, 0);
  }
  for (unsigned running = threads; running;) {
    running = 0;
    for (mine.current = 0; mine.current < threads; mine.current++) {
      if (mine.fibers[mine.current].done) continue;
      threadIdx = dim3(mine.current, 0, 0);
      go_on(mine.fibers[mine.current]);
      running += !mine.fibers[mine.current].done;
    }
  }
  block = nullptr;
}

template <class A>
void start(void (*kernel)(A), dim3 grid, dim3 threads, const A& a, dim3 at) {
  gridDim = grid, blockDim = threads, blockIdx = at;
  run_block(threads.x, [&] { kernel(a); });
}

}  // namespace emulation

template <class A>
cudaError_t cudaLaunchKernel(void (*kernel)(A), dim3 grid, dim3 threads, void** arguments, size_t bytes, cudaStream_t) {
  const A a = *static_cast<A*>(arguments[0]);
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        emulation::shared.assign((bytes + 3) / 4, NAN);
        emulation::start(kernel, grid, threads, a, dim3(x, y, z));
      }
  return cudaSuccess;
}

template <class A>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(A), dim3 grid, dim3 threads, void** arguments, size_t,
                                        cudaStream_t) {
  const A a = *static_cast<A*>(arguments[0]);
  std::vector<std::thread> blocks;
  for (unsigned x = 0; x < grid.x; x++)
    blocks.emplace_back([=] { emulation::start(kernel, grid, threads, a, dim3(x, 0, 0)); });
  for (std::thread& block : blocks) block.join();
  return cudaSuccess;
}

struct cudaLaunchAttribute {
  int id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
constexpr int cudaLaunchAttributeClusterDimension = 4;

// Clusters lie along x.
template <class A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(A), A a) {
  const dim3 grid = config->gridDim, threads = config->blockDim;
  const unsigned size = config->attrs[0].val.clusterDim.x;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned first = 0; first < grid.x; first += size) {
        emulation::Cluster cluster;
        cluster.shared.resize(size);
        const auto run = [&](unsigned rank) {
          emulation::cluster = &cluster, cluster.shared[rank] = &emulation::shared;
          emulation::shared.assign((config->dynamicSmemBytes + 3) / 4, NAN);
          emulation::meet(cluster);
          emulation::start(kernel, grid, threads, a, dim3(first + rank, y, z));
          emulation::meet(cluster);
        };
        std::vector<std::thread> others;
        for (unsigned rank = 1; rank < size; rank++) others.emplace_back(run, rank);
        run(0);
        for (std::thread& other : others) other.join();
      }
  return cudaSuccess;
}

#ifdef TMEM_WITHOUT_BARRIERS  // shows that the tests would see one missing
inline void __syncthreads() {}
#else
inline void __syncthreads() { emulation::meet(emulation::block->all); }
#endif

template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  emulation::Block& block = *emulation::block;
  emulation::Meeting& warp = block.warps[block.current / 32];
  block.lanes[block.current] = x;
  emulation::meet(warp);
  const T other = static_cast<T>(block.lanes[block.current ^ mask]);
  emulation::meet(warp);
  return other;
}

namespace emulation {

// As cluster.cuh has it.
inline void cluster_barrier() {
#ifndef TMEM_WITHOUT_BARRIERS
  meet(block->all);
  if (block->current == 0) meet(*cluster);
  meet(block->all);
#endif
}
inline float of_block(const float* mine, unsigned rank) {
  return (*cluster->shared[rank])[mine - shared.data()];
}
inline void copy16(void* to, const void* from, int bytes) { block->copies[block->current].push_back({to, from, bytes}); }
inline void wait_for_copies() {
  for (const Copy& copy : block->copies[block->current]) {
    std::memset(copy.to, 0, 16);
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
  block->copies[block->current].clear();
}

// As mma.cuh has it.
inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const size_t me = block->current, first = me / 32 * 32, g = me % 32 / 4, t = me % 4;
  block->words[me] = {a[0], a[1], a[2], a[3], b0, b1};
  meet(block->warps[me / 32]);
  const auto half = [](uint32_t word, int high) {
    const uint32_t bits = high ? word & 0xffff0000u : word << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  };
  for (int n = 0; n < 4; n++)
    for (int k = 0; k < 16; k++) {
      const size_t giver = k % 8 / 2, row = first + 4 * g + giver, column = first + 4 * (2 * t + n % 2) + giver;
      const uint32_t left = block->words[row][n / 2 + k / 8 * 2], right = block->words[column][4 + k / 8];
      c[n] = std::fma(half(left, k % 2), half(right, k % 2), c[n]);
    }
  meet(block->warps[me / 32]);
}

}  // namespace emulation

inline void __nanosleep(unsigned) {
  std::this_thread::yield();
  emulation::pause();
}
inline void __trap() {
  std::fputs("a block waited too long\n", stderr);
  std::abort();
}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline int atomicAdd(int* at, int x) { return __atomic_fetch_add(at, x, __ATOMIC_SEQ_CST); }
template <class T>
T __ldcg(const T* at) {
  return *at;
}
inline unsigned atomicMax(unsigned* at, unsigned x) {
  const unsigned before = *at;  // blocks run one after another, unless they run together
  return *at = before > x ? before : x, before;
}
inline void __syncwarp() { emulation::meet(emulation::block->warps[emulation::block->current / 32]); }
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float __int_as_float(int32_t bits) { return __uint_as_float(bits); }
using std::fmin;
using std::isfinite;
using std::min;
using std::pow;
