// svd_scan: max |w| of every matrix of a list in one launch. The largest of the bits of |w| is the largest |w|, and the
// largest of integers is the same in any order.
#include "run.cuh"
#include "svd.cuh"

namespace tmem::svd {

namespace {

constexpr int THREADS = 256;
constexpr int64_t PIECE = THREADS * 32;  // elements one block looks at

template <class T>
__global__ void __launch_bounds__(THREADS) largest(const Scan a) {
  const Matrix w = a.w.at[blockIdx.y];
  // The inner dimension is the one whose elements lie side by side.
  const bool turned = w.row_stride < w.column_stride;
  const int64_t inner = turned ? a.w.m : a.w.n, size = a.w.m * a.w.n;
  const int64_t along = turned ? w.row_stride : w.column_stride, across = turned ? w.column_stride : w.row_stride;
  const int64_t end = (blockIdx.x + 1) * PIECE < size ? (blockIdx.x + 1) * PIECE : size;
  unsigned most = 0;
#pragma unroll 8
  for (int64_t i = blockIdx.x * PIECE + threadIdx.x; i < end; i += THREADS) {
    const float x = widened(static_cast<const T*>(w.data)[i / inner * across + i % inner * along]);
    const unsigned bits = __float_as_uint(x) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
#pragma unroll
  for (int step = 16; step; step >>= 1) {
    const unsigned other = __shfl_xor_sync(0xffffffffu, most, step);
    most = other > most ? other : most;
  }
  if (threadIdx.x % 32 == 0) atomicMax(a.most + a.w.first + blockIdx.y, most);
}

}  // namespace

cudaError_t scan(const Scan& a, cudaStream_t stream) {
  const int64_t pieces = (a.w.m * a.w.n + PIECE - 1) / PIECE;
  if (pieces == 0 || a.w.count == 0) return cudaSuccess;
  const dim3 grid(pieces, a.w.count);
  const auto kernel = a.w.type == E_F32 ? largest<float> : a.w.type == E_BF16 ? largest<__nv_bfloat16> : largest<__half>;
  return cuda::run(kernel, grid, THREADS, stream, a);
}

}  // namespace tmem::svd
