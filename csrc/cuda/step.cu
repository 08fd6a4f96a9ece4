// bank_step_: one optimizer step of every active row in one launch of three parts, between which all blocks meet. Warps sum
// the squares of stretches of the gradients, where gram has not left their sums; blocks add the stretches of a row in order and make its scalars; blocks move
// the rows. A stretch's bounds depend on the width alone, and so do the bits of a row. An idle row costs glances at its flag.
#include "kernels.cuh"
#include "run.cuh"
#include "vec.cuh"

namespace tmem::cuda {

namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int64_t LINE = 32 * 8;             // elements a warp takes at once, eight a thread
constexpr int64_t STRETCH = 8 * LINE;        // whose squares one warp sums
constexpr int64_t PIECE = THREADS * 8;       // elements one block moves at once

// Sum over the block: a tree within each warp, then the warps in order. Valid in thread 0.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double warps[WARPS];
#pragma unroll
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  if (threadIdx.x == 0)
    for (int w = 0; w < WARPS; w++) x += warps[w];
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

// Every block has come to the meeting, and sees what the others wrote before it.
__device__ __forceinline__ void meet(int32_t* come) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(come, 1);
    for (int64_t tries = 0; atomicAdd(come, 0) < static_cast<int32_t>(gridDim.x); tries++) {
      __nanosleep(50);
      if (tries > 100000000) __trap();  // some 10 seconds: an error instead of a GPU that hangs
    }
    __threadfence();
  }
  __syncthreads();
}

// Σ grad² of one stretch: per thread in order, then a tree over the warp. Valid in all its threads.
template <bool WIDE>
__device__ __forceinline__ double squares(const Step& a, int64_t row, int64_t stretch) {
  const int64_t d = stretch * STRETCH + threadIdx.x % 32 * 8;
  const float* g = a.grad + row * a.grad_stride + d;
  double sum = 0;
  if (WIDE && d + STRETCH - LINE + 8 <= a.width) {
    Whole<float> line[STRETCH / LINE];
#pragma unroll
    for (int i = 0; i < STRETCH / LINE; i++) line[i].load(g + i * LINE);
#pragma unroll
    for (int i = 0; i < STRETCH / LINE; i++) {
      float x[8];
      line[i].widen(x);
#pragma unroll
      for (int k = 0; k < 8; k++) sum += static_cast<double>(x[k]) * x[k];
    }
  } else {
    for (int i = 0; i < STRETCH / LINE; i++) {
      float x[8];
      load8<WIDE>(g + i * LINE, a.width - d - i * LINE, x);
#pragma unroll
      for (int k = 0; k < 8; k++) sum += static_cast<double>(x[k]) * x[k];
    }
  }
#pragma unroll
  for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

// g = clip·grad; grad = 0 if clear; SGD: p = keep·p - rate·g;
// AdamW: m += (1-β1)(g - m); v = β2·v + (1-β2)g²; p = keep·p - rate·m / (√v/root_correction2 + eps)
template <bool WIDE>
__device__ __forceinline__ void move(const Step& a, const Scalars& s, int64_t row, int64_t piece) {
  const int64_t d = piece * PIECE + threadIdx.x * 8, n = a.width - d;
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
    const int64_t to = row * a.copy_stride + d;
    if (a.copy && a.copy_type == F16)
      store8<WIDE>(static_cast<__half*>(a.copy) + to, n, p);
    else if (a.copy)
      store8<WIDE>(static_cast<__nv_bfloat16*>(a.copy) + to, n, p);
  }
  if (a.clear) store8<WIDE>(grad, n, zero);
}

// Written by another block.
__device__ __forceinline__ Scalars scalars_of(const Step& a, int64_t row) {
  const Scalars& at_row = a.scalars[row];
  Scalars s;
  s.clip = __ldcg(&at_row.clip), s.keep = __ldcg(&at_row.keep), s.rate = __ldcg(&at_row.rate);
  s.one_minus_beta1 = __ldcg(&at_row.one_minus_beta1), s.beta2 = __ldcg(&at_row.beta2);
  s.one_minus_beta2 = __ldcg(&at_row.one_minus_beta2), s.root_correction2 = __ldcg(&at_row.root_correction2);
  s.eps = __ldcg(&at_row.eps), s.live = __ldcg(&at_row.live);
  return s;
}

// The smallest k >= 0 for which (before + k) mod count = mine.
__device__ __forceinline__ int64_t after(int64_t before, int64_t mine, int64_t count) {
  return (count + mine - before % count) % count;
}

// The first row from `row` on that has a flag, or `rows` when there are no more.
__device__ __forceinline__ int64_t next_active(const Step& a, int64_t row) {
  while (row < a.rows && !a.active[row]) row++;
  return row;
}

template <bool WIDE>
__global__ void __launch_bounds__(THREADS, 3) walk(const Step a) {
  const int64_t pieces = (a.width + PIECE - 1) / PIECE, blocks = gridDim.x;
  const int64_t warp = threadIdx.x / 32 * blocks + blockIdx.x;
  int64_t turn = 0;  // active rows before `row`: each begins where the one before left off, so that all blocks have as much
  if (!a.summed) {
    for (int64_t row = next_active(a, 0); row < a.rows; row = next_active(a, row + 1), turn++)
      for (int64_t k = after(turn * a.sums, warp, WARPS * blocks); k < a.sums; k += WARPS * blocks) {
        const double sum = squares<WIDE>(a, row, k);
        if (threadIdx.x % 32 == 0) a.partial[row * a.sums + k] = sum;
      }
    meet(a.come);
  }
  turn = 0;
  for (int64_t row = next_active(a, 0); row < a.rows; row = next_active(a, row + 1), turn++) {
    if (turn % blocks != blockIdx.x) continue;
    double sum = 0;
    for (int64_t k = threadIdx.x; k < a.sums; k += THREADS) sum += __ldcg(&a.partial[row * a.sums + k]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) make_scalars(a, row, sum);
  }
  if (blockIdx.x == 0)
    for (int64_t row = threadIdx.x; row < a.rows; row += THREADS)
      if (!a.active[row]) a.norm[row] = 0.f;
  meet(a.come + 1);
  turn = 0;
  for (int64_t row = next_active(a, 0); row < a.rows; row = next_active(a, row + 1), turn++) {
    const Scalars s = scalars_of(a, row);
    for (int64_t k = after(turn * pieces, blockIdx.x, blocks); k < pieces; k += blocks) move<WIDE>(a, s, row, k);
  }
}

}  // namespace

int64_t stretches(int64_t width) { return (width + STRETCH - 1) / STRETCH; }

cudaError_t step(const Step& a, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  const int64_t pieces = a.rows * ((a.width + PIECE - 1) / PIECE);
  const bool wide = aligned(a.param, a.param_stride) && aligned(a.grad, a.grad_stride) && aligned(a.m, a.m_stride) &&
                    aligned(a.v, a.v_stride) && aligned(static_cast<const __half*>(a.copy), a.copy_stride);
  return run_together(wide ? walk<true> : walk<false>, pieces > 0 ? pieces : 1, THREADS, stream, a);
}

}  // namespace tmem::cuda
