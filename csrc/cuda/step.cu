// bank_step_: one optimizer step of every active row in one launch. Blocks walk the rows together. A row's squares are
// summed stretch by stretch; the last block to arrive adds the stretches in order and makes the row's scalars; a few rows
// later, when its gradient is still in the second-level cache, the row is moved. Who arrives last decides who adds, never
// in which order. An idle row costs a glance at its flag.
#include "kernels.cuh"
#include "run.cuh"
#include "vec.cuh"

namespace tmem::cuda {

namespace {

constexpr int THREADS = 256;
constexpr int PARTS = 2;                             // runs of eight elements a thread
constexpr int64_t STRETCH = THREADS * PARTS * 8;     // elements one block takes at once

// Sum over the block: a tree within each warp, then the warps in order. Valid in thread 0.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double warps[THREADS / 32];
#pragma unroll
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  if (threadIdx.x == 0)
    for (int w = 0; w < THREADS / 32; w++) x += warps[w];
  __syncthreads();
  return x;
}

__device__ __forceinline__ double hyper_at(const Step& a, int64_t row, int column) {
  const int64_t i = row * a.hyper_stride + column;
  return a.hyper_double ? static_cast<const double*>(a.hyper)[i] : static_cast<const float*>(a.hyper)[i];
}

// The columns of hyper are lr, beta1, beta2, eps, weight_decay, clip.
__device__ __forceinline__ void make_scalars(const Step& a, int64_t row, double square) {
  const double norm = sqrt(square);
  Scalars s = {};
  const float narrow = static_cast<float>(norm);
  a.norm[row] = narrow;
  s.live = isfinite(narrow);
  if (s.live) {
    const int32_t t = ++a.step[row];
    const double lr = hyper_at(a, row, 0), beta1 = hyper_at(a, row, 1), beta2 = hyper_at(a, row, 2);
    const double clip = hyper_at(a, row, 5);
    s.clip = clip > 0 ? fmin(1.0, clip / (norm + 1e-6)) : 1.0;
    s.keep = 1 - lr * hyper_at(a, row, 4);
    s.rate = a.m ? lr / (1 - pow(beta1, t)) : lr;
    s.one_minus_beta1 = 1 - beta1;
    s.beta2 = beta2;
    s.one_minus_beta2 = 1 - beta2;
    s.root_correction2 = sqrt(1 - pow(beta2, t));
    s.eps = hyper_at(a, row, 3);
  }
  a.scalars[row] = s;
}

template <bool WIDE>
__device__ __forceinline__ void sum_squares(const Step& a, int64_t row, int64_t stretch, int64_t count) {
  const float* g = a.grad + row * a.grad_stride;
  double sum = 0;
#pragma unroll
  for (int part = 0; part < PARTS; part++) {
    const int64_t d = stretch * STRETCH + (part * THREADS + threadIdx.x) * 8;
    float x[8];
    load8<WIDE>(g + d, a.width - d, x);
#pragma unroll
    for (int i = 0; i < 8; i++) sum += static_cast<double>(x[i]) * x[i];
  }
  sum = block_sum(sum);
  __shared__ int last;
  if (threadIdx.x == 0) {
    a.partial[row * count + stretch] = sum;
    __threadfence();
    last = atomicAdd(&a.arrived[row], 1) == count - 1;
  }
  __syncthreads();
  const bool mine = last;
  __syncthreads();
  if (!mine) return;
  __threadfence();
  sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += THREADS) sum += __ldcg(&a.partial[row * count + i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    make_scalars(a, row, sum);
    __threadfence();
    atomicExch(&a.arrived[a.rows + row], 1);
  }
}

// Until the row's scalars are there. They come: every block takes its part of a row's squares before it moves the row.
__device__ __forceinline__ void wait_for(const Step& a, int64_t row) {
  if (threadIdx.x == 0) {
    for (int64_t tries = 0; atomicAdd(&a.arrived[a.rows + row], 0) == 0; tries++) {
      __nanosleep(100);
      if (tries > 100000000) __trap();  // some 10 seconds: an error instead of a GPU that hangs
    }
    __threadfence();
  }
  __syncthreads();
}

// g = clip·grad; grad = 0; SGD: p = keep·p - rate·g;
// AdamW: m += (1-β1)(g - m); v = β2·v + (1-β2)g²; p = keep·p - rate·m / (√v/root_correction2 + eps)
template <bool WIDE>
__device__ __forceinline__ void move(const Step& a, int64_t row, int64_t stretch) {
  const Scalars& at_row = a.scalars[row];
  Scalars s;
  s.clip = __ldcg(&at_row.clip), s.keep = __ldcg(&at_row.keep), s.rate = __ldcg(&at_row.rate);
  s.one_minus_beta1 = __ldcg(&at_row.one_minus_beta1), s.beta2 = __ldcg(&at_row.beta2);
  s.one_minus_beta2 = __ldcg(&at_row.one_minus_beta2), s.root_correction2 = __ldcg(&at_row.root_correction2);
  s.eps = __ldcg(&at_row.eps), s.live = __ldcg(&at_row.live);
  for (int part = 0; part < PARTS; part++) {
    const int64_t d = stretch * STRETCH + (part * THREADS + threadIdx.x) * 8, n = a.width - d;
    if (n <= 0) return;
    float *at = a.param + row * a.param_stride + d, *grad = a.grad + row * a.grad_stride + d;
    const float zero[8] = {};
    if (s.live) {
      float p[8], g[8];
      load8<WIDE>(at, n, p);
      load8<WIDE>(grad, n, g);
      if (a.m) {
        float *first = a.m + row * a.m_stride + d, *second = a.v + row * a.v_stride + d, m[8], v[8];
        load8<WIDE>(first, n, m);
        load8<WIDE>(second, n, v);
#pragma unroll
        for (int i = 0; i < 8; i++) {
          g[i] *= s.clip;
          m[i] += s.one_minus_beta1 * (g[i] - m[i]);
          v[i] = s.beta2 * v[i] + s.one_minus_beta2 * (g[i] * g[i]);
          p[i] = s.keep * p[i] - s.rate * (m[i] / (sqrtf(v[i]) / s.root_correction2 + s.eps));
        }
        store8<WIDE>(first, n, m);
        store8<WIDE>(second, n, v);
      } else {
#pragma unroll
        for (int i = 0; i < 8; i++) p[i] = s.keep * p[i] - s.rate * (s.clip * g[i]);
      }
      store8<WIDE>(at, n, p);
      if (a.copy) store8<WIDE>(a.copy + row * a.copy_stride + d, n, p);
    }
    store8<WIDE>(grad, n, zero);
  }
}

// The rows from `first` on that have a flag: the n-th of them in order, or `rows` when there are no more.
__device__ __forceinline__ int64_t next_active(const Step& a, int64_t row) {
  while (row < a.rows && !a.active[row]) row++;
  return row;
}

template <bool WIDE>
__global__ void __launch_bounds__(THREADS, 3) walk(const Step a) {
  const int64_t count = (a.width + STRETCH - 1) / STRETCH, blocks = gridDim.x;
  // Rows between a row's squares and its move: two rounds of all blocks, so that none waits long.
  const int64_t lag = 2 * blocks / count + 1;
  int64_t behind = next_active(a, 0), turn = 0, moved = 0;
  for (int64_t row = next_active(a, 0); row < a.rows || behind < a.rows; turn++) {
    if (row < a.rows) {
      // Stretch k of the turn-th row is block (turn·count + k) mod blocks: rows share out evenly whatever their length.
      for (int64_t k = (blocks + blockIdx.x - turn * count % blocks) % blocks; k < count; k += blocks)
        sum_squares<WIDE>(a, row, k, count);
      row = next_active(a, row + 1);
    }
    if (turn >= lag || row >= a.rows) {
      wait_for(a, behind);
      for (int64_t k = (blocks + blockIdx.x - moved * count % blocks) % blocks; k < count; k += blocks)
        move<WIDE>(a, behind, k);
      behind = next_active(a, behind + 1);
      moved++;
    }
  }
  if (blockIdx.x == 0)
    for (int64_t row = threadIdx.x; row < a.rows; row += THREADS)
      if (!a.active[row]) a.norm[row] = 0.f;
}

}  // namespace

int64_t stretches(int64_t width) { return (width + STRETCH - 1) / STRETCH; }

cudaError_t step(const Step& a, cudaStream_t stream) {
  if (a.rows == 0 || a.width == 0) return cudaSuccess;
  const bool wide = aligned(a.param, a.param_stride) && aligned(a.grad, a.grad_stride) && aligned(a.m, a.m_stride) &&
                    aligned(a.v, a.v_stride) && aligned(a.copy, a.copy_stride);
  return run_together(wide ? walk<true> : walk<false>, a.rows * stretches(a.width), THREADS, stream, a);
}

}  // namespace tmem::cuda
