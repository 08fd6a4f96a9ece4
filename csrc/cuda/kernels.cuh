// What the launchers and the CUDA kernels agree on: plain pointers, sizes and strides (in elements), a stream; no torch.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace tmem::cuda {

enum Type { F32, BF16, F16 };

// Last dimension contiguous. A shared factor has slot_stride 0.
struct Factor {
  const void* data;
  Type type;
  int64_t slot_stride, rank_stride;
};

constexpr int64_t MOST_RANKS = 128;  // stored ranks of a factor that decode takes

// y[m,:] += (scale[slot]·x[m] A[slot]ᵀ) Bt[slot], slot = row_slot[m]; -1 leaves the row alone.
struct Decode {
  const void* x;
  void* y;
  Type type;  // of x and y
  int64_t x_stride, y_stride;
  Factor a, bt;
  const int32_t *row_slot, *rank;
  const float* scale;
  float* planes;  // [slices(width), rows, ranks]: partial sums over slices of the width
  int64_t rows, slots, ranks, width, outputs;
};

int64_t slices(int64_t width);
cudaError_t decode(const Decode&, cudaStream_t);

// Scalars of one row's step, rounded once from fp64.
struct Scalars {
  float clip, keep, rate, one_minus_beta1, beta2, one_minus_beta2, root_correction2, eps;
  int32_t live;  // 0: the gradient's norm is not finite, the row stays
};

// One optimizer step of the active rows; m and v null: SGD; copy null: no copy in 16 bits is kept.
struct Step {
  float *param, *grad, *m, *v;
  void* copy;
  Type copy_type;  // BF16 or F16
  int32_t* step;
  const void* hyper;
  bool hyper_double, clear;  // clear: gradients of active rows are zeroed
  const bool* active;
  float* norm;       // [rows]
  bool summed;       // partial holds the sums: grad is read once
  double* partial;   // [rows, sums]; where not summed, [rows, stretches(width)] to write
  int32_t* come;     // [2], zero: blocks that have come to either meeting
  Scalars* scalars;  // [rows]
  int64_t rows, width, sums;
  int64_t param_stride, grad_stride, m_stride, v_stride, copy_stride, hyper_stride;
};

int64_t stretches(int64_t width);
cudaError_t step(const Step&, cudaStream_t);

constexpr int MOST_MATRICES = 12;  // of one launch of copy

// Row target[i] of every matrix becomes its row source[i], or zero where that is -1. Rows are contiguous bytes.
struct Copy {
  char* data[MOST_MATRICES];
  int64_t bytes[MOST_MATRICES], stride[MOST_MATRICES];  // of a row, in bytes
  const int32_t *source, *target;
  int64_t rows, count, matrices;
};

cudaError_t copy(const Copy&, cudaStream_t);

}  // namespace tmem::cuda
