// svd_scan: max |w| of every matrix of a list in one launch. The largest of the bits of |w| is the largest |w|, and the
// largest of integers is the same in any order.
#include "run.cuh"
#include "svd.cuh"

namespace tmem::svd {

namespace {

constexpr int THREADS = 256, EACH = 8;  // runs of elements that a thread looks at

__device__ __forceinline__ unsigned larger(unsigned most, unsigned bits) {
  bits &= 0x7fffffffu;
  return bits > most ? bits : most;
}

// WIDE: a run is 16 bytes; else one element.
template <class T, bool WIDE>
__global__ void __launch_bounds__(THREADS) largest(const Scan a) {
  constexpr int RUN = WIDE ? 16 / sizeof(T) : 1;
  const Matrix w = a.w.at[blockIdx.y];
  // Lines are rows, or columns where these lie side by side.
  const bool turned = w.row_stride < w.column_stride;
  const int64_t lines = turned ? a.w.n : a.w.m, inner = turned ? a.w.m : a.w.n, runs = (inner + RUN - 1) / RUN;
  const int64_t along = turned ? w.row_stride : w.column_stride, across = turned ? w.column_stride : w.row_stride;
  const int64_t start = blockIdx.x * static_cast<int64_t>(THREADS * EACH) + threadIdx.x;
  int64_t line = start / runs, run = start % runs;
  const int64_t more_lines = THREADS / runs, more_runs = THREADS % runs;
  unsigned most = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int64_t at = run * RUN;
    const T* p = static_cast<const T*>(w.data) + line * across + at * along;
    if (line < lines && WIDE && at + RUN <= inner) {
      alignas(16) T raw[RUN];
      *reinterpret_cast<uint4*>(raw) = *reinterpret_cast<const uint4*>(p);
#pragma unroll
      for (int j = 0; j < RUN; j++) most = larger(most, __float_as_uint(widened(raw[j])));
    } else if (line < lines) {
      for (int j = 0; j < RUN && at + j < inner; j++) most = larger(most, __float_as_uint(widened(p[j * along])));
    }
    line += more_lines, run += more_runs;
    if (run >= runs) run -= runs, line++;
  }
#pragma unroll
  for (int step = 16; step; step >>= 1) {
    const unsigned other = __shfl_xor_sync(0xffffffffu, most, step);
    most = other > most ? other : most;
  }
  if (threadIdx.x % 32 == 0) atomicMax(a.most + a.w.first + blockIdx.y, most);
}

template <class T>
cudaError_t run_order(const Scan& a, cudaStream_t stream) {
  const int lies = order(a.w, sizeof(T));
  int64_t blocks = 0;  // of the matrix that needs most: lines are rows in one and columns in another
  for (int64_t inner : {a.w.m, a.w.n}) {
    const int64_t each = lies == SCATTERED ? 1 : 16 / sizeof(T), runs = (inner + each - 1) / each * (a.w.m * a.w.n / inner);
    const int64_t needed = (runs + THREADS * EACH - 1) / (THREADS * EACH);
    blocks = needed > blocks ? needed : blocks;
  }
  const auto kernel = lies == SCATTERED ? largest<T, false> : largest<T, true>;
  return cuda::run(kernel, dim3(blocks, a.w.count), THREADS, stream, a);
}

}  // namespace

cudaError_t scan(const Scan& a, cudaStream_t stream) {
  if (a.w.m == 0 || a.w.n == 0 || a.w.count == 0) return cudaSuccess;
  return a.w.type == E_F32    ? run_order<float>(a, stream)
         : a.w.type == E_BF16 ? run_order<__nv_bfloat16>(a, stream)
                              : run_order<__half>(a, stream);
}

}  // namespace tmem::svd
