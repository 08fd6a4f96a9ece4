// bank_copy_: rows copied within every matrix, or set to zero, in one launch; 16 bytes at once where rows allow it.
#include "kernels.cuh"
#include "run.cuh"

namespace tmem::cuda {

namespace {

constexpr int THREADS = 256;
constexpr int64_t PIECE = THREADS * 16 * 4;  // bytes one block takes

__global__ void __launch_bounds__(THREADS) copy_rows(const Copy a) {
  const int64_t matrix = blockIdx.z, pair = blockIdx.y, bytes = a.bytes[matrix], stride = a.stride[matrix];
  const int64_t source = a.source[pair], target = a.target[pair];
  if (target < 0 || target >= a.rows || source < -1 || source >= a.rows) return;
  char* to = a.data[matrix] + target * stride;
  const char* from = a.data[matrix] + source * stride;
  const bool zero = source == -1, wide = reinterpret_cast<uintptr_t>(a.data[matrix]) % 16 == 0 && stride % 16 == 0;
  const int64_t begin = blockIdx.x * PIECE, end = begin + PIECE < bytes ? begin + PIECE : bytes;
  for (int64_t i = begin + threadIdx.x * 16; i < end; i += THREADS * 16) {
    if (wide && i + 16 <= end) {
      *reinterpret_cast<uint4*>(to + i) = zero ? make_uint4(0, 0, 0, 0) : *reinterpret_cast<const uint4*>(from + i);
    } else {
      for (int64_t k = i; k < end && k < i + 16; k++) to[k] = zero ? 0 : from[k];
    }
  }
}

}  // namespace

cudaError_t copy(const Copy& a, cudaStream_t stream) {
  int64_t longest = 0;
  for (int64_t i = 0; i < a.matrices; i++) longest = a.bytes[i] > longest ? a.bytes[i] : longest;
  if (longest == 0 || a.count == 0) return cudaSuccess;
  return run(copy_rows, dim3((longest + PIECE - 1) / PIECE, a.count, a.matrices), THREADS, stream, a);
}

}  // namespace tmem::cuda
