// svd_factor: the inverse of the Cholesky factor of an equilibrated Gram matrix, a block for each matrix, in shared memory.
#include "run.cuh"
#include "svd.cuh"

namespace tmem::svd {

namespace {

constexpr int THREADS = 128;
static_assert(MOST_FACTOR <= THREADS, "a thread for every column");

__device__ __forceinline__ bool finite(float x) { return fabsf(x) <= 3.402823466e38f; }

__global__ void __launch_bounds__(THREADS) invert(const Factor a) {
  ROOM(room);
  const int l = a.columns, lead = l + 1, t = threadIdx.x;
  float *r = room, *d = r + l * lead, *least = d + l;  // r [l, lead]; d [l]; least: the smallest pivot, or 0
  const float* g = a.g + blockIdx.x * a.columns * a.columns;
  float* inverse = a.inverse + blockIdx.x * a.columns * a.columns;
  if (t == 0) *least = 1.f + a.shift;
  if (t < l) {
    const float x = g[t * l + t];
    d[t] = x > 0.f && finite(x) ? 1.f / sqrtf(x) : 1.f;
  }
  __syncthreads();
  bool good = true;
  for (int i = t; i < l * l; i += THREADS) {
    const int row = i / l, column = i % l;
    const float x = g[i], scaled = d[row] * x * d[column];
    good = good && finite(x) && (row != column || x > 0.f);
    r[row * lead + column] = (finite(scaled) ? scaled : 0.f) + (row == column ? a.shift : 0.f);
  }
  __syncthreads();
  if (!good) *least = 0.f;
  __syncthreads();
  // Row by row of the upper factor; what is left of the matrix below and to the right is kept up to date.
  for (int j = 0; j < l; j++) {
    const float pivot = r[j * lead + j];
    if (!(pivot > 0.f)) {  // not positive definite: the same value, and so the same way, for every thread
      if (t == 0) *least = 0.f;
      break;
    }
    const float root = sqrtf(pivot);
    __syncthreads();
    if (t == 0 && pivot < *least) *least = pivot;
    if (t < l && t >= j) r[j * lead + t] = t == j ? root : r[j * lead + t] / root;
    __syncthreads();
    const int rest = l - j - 1;
    for (int i = t; i < rest * rest; i += THREADS) {
      const int row = j + 1 + i / rest, column = j + 1 + i % rest;
      if (row <= column) r[row * lead + column] = fmaf(-r[j * lead + row], r[j * lead + column], r[row * lead + column]);
    }
    __syncthreads();
  }
  __syncthreads();
  const bool failed = *least == 0.f;
  if (t == 0) a.pivot[blockIdx.x] = *least;
  // Column t of R⁻¹, from below; only this thread reads it again.
  if (t < l) {
    for (int row = l - 1; row >= 0; row--) {
      float x = row == t ? 1.f : 0.f;
      if (!failed && row <= t) {
        for (int k = row + 1; k <= t; k++) x = fmaf(-r[row * lead + k], inverse[k * l + t], x);
        x /= r[row * lead + row];
      }
      inverse[row * l + t] = row <= t ? x : 0.f;
    }
    for (int row = 0; row <= t; row++) inverse[row * l + t] *= d[row];
  }
}

}  // namespace

cudaError_t factor(const Factor& a, cudaStream_t stream) {
  if (a.b == 0 || a.columns == 0) return cudaSuccess;
  const size_t bytes = (a.columns * (a.columns + 1) + a.columns + 1) * sizeof(float);
  return cuda::run_with_room(invert, dim3(a.b), THREADS, bytes, stream, a);
}

}  // namespace tmem::svd
