// decode: one row at a time through its own adapter, bound by the bytes of the factors. Two launches: `down` sums slices
// of the width into planes, `up` adds the planes in order and expands. The slices depend on the width alone, so a row's
// bits do not depend on its neighbours.
#include "kernels.cuh"
#include "run.cuh"
#include "vec.cuh"

namespace tmem::cuda {

namespace {

constexpr int THREADS = 128;
static_assert(MOST_RANKS <= THREADS, "`up` sums one rank a thread");
constexpr int64_t SLICE = THREADS * 8;  // elements one block covers, eight a thread
constexpr int GROUP = 8;                // ranks whose loads are in flight together

// The rank a slot computes with: 0 for none, and for one that is freed, out of range or above the stored ranks.
__device__ __forceinline__ int32_t known_rank(const Decode& a, int32_t slot) {
  const int32_t rank = slot >= 0 && slot < a.slots ? a.rank[slot] : 0;
  return rank > 0 && rank <= a.ranks ? rank : 0;
}

// Σ_i x[i]·y[i] in order.
__device__ __forceinline__ float dot(const float (&x)[8], const float (&y)[8]) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 8; i++) sum = fmaf(x[i], y[i], sum);
  return sum;
}

// sum += z·y.
__device__ __forceinline__ void add(float z, const float (&y)[8], float (&sum)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i++) sum[i] = fmaf(z, y[i], sum[i]);
}

// Row `first + j` of GROUP rows of a factor; those past the last are the last again, and nobody uses them.
template <class F>
__device__ __forceinline__ void load_group(const F* f, int64_t stride, int32_t first, int32_t rank, Whole<F> (&out)[GROUP]) {
#pragma unroll
  for (int j = 0; j < GROUP; j++) out[j].load(f + min(first + j, rank - 1) * stride);
}

// planes[slice, row, j] = Σ over one slice of x[row, d]·a[slot, j, d]: per thread in order, then a tree over the block.
template <class X, class F, bool WIDE>
__global__ void __launch_bounds__(THREADS) down(const Decode a) {
  const int64_t row = blockIdx.x, slice = blockIdx.y, d = slice * SLICE + threadIdx.x * 8;
  const int32_t slot = a.row_slot[row], rank = known_rank(a, slot);
  if (rank == 0) return;
  const int64_t n = a.width - d;
  const X* from = static_cast<const X*>(a.x) + row * a.x_stride + d;
  const F* f = static_cast<const F*>(a.a.data) + slot * a.a.slot_stride + d;
  __shared__ float warps[THREADS / 32][GROUP];
  for (int32_t first = 0; first < rank; first += GROUP) {
    float sum[GROUP], x[8], y[8];
    if (WIDE && n >= 8) {
      Whole<X> line;
      Whole<F> group[GROUP];
      line.load(from);
      load_group(f, a.a.rank_stride, first, rank, group);
      line.widen(x);
#pragma unroll
      for (int j = 0; j < GROUP; j++) {
        group[j].widen(y);
        sum[j] = dot(x, y);
      }
    } else {
      load8<false>(from, n, x);
#pragma unroll
      for (int j = 0; j < GROUP; j++) {
        load8<false>(f + (first + j) * a.a.rank_stride, first + j < rank ? n : 0, y);
        sum[j] = dot(x, y);
      }
    }
#pragma unroll
    for (int j = 0; j < GROUP; j++)
#pragma unroll
      for (int step = 16; step; step >>= 1) sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], step);
    if (threadIdx.x % 32 == 0)
#pragma unroll
      for (int j = 0; j < GROUP; j++) warps[threadIdx.x / 32][j] = sum[j];
    __syncthreads();
    if (threadIdx.x < GROUP && first + static_cast<int32_t>(threadIdx.x) < rank) {
      float total = 0.f;
#pragma unroll
      for (int w = 0; w < THREADS / 32; w++) total += warps[w][threadIdx.x];
      a.planes[(slice * a.rows + row) * a.ranks + first + threadIdx.x] = total;
    }
    __syncthreads();
  }
}

// y[row, d] += Σ_j z[j]·bt[slot, j, d] with z = scale·Σ planes, rounded once. A slot that is named and not known shows as
// NaN.
template <class X, class F, bool WIDE>
__global__ void __launch_bounds__(THREADS) up(const Decode a) {
  const int64_t row = blockIdx.x, d = blockIdx.y * SLICE + threadIdx.x * 8, n = a.outputs - d;
  const int32_t slot = a.row_slot[row], rank = known_rank(a, slot);
  if (slot == -1) return;
  X* at = static_cast<X*>(a.y) + row * a.y_stride + d;
  const F* f = static_cast<const F*>(a.bt.data) + slot * a.bt.slot_stride + d;
  const bool whole = WIDE && n >= 8 && rank > 0;
  Whole<X> line;
  Whole<F> group[GROUP];
  if (whole) {  // on their way while z is summed
    line.load(at);
    load_group(f, a.bt.rank_stride, 0, rank, group);
  }
  __shared__ float z[MOST_RANKS];
  if (static_cast<int32_t>(threadIdx.x) < rank) {
    const float* plane = a.planes + row * a.ranks + threadIdx.x;
    const int64_t count = (a.width + SLICE - 1) / SLICE, apart = a.rows * a.ranks;
    float total = 0.f;
    for (int64_t slice = 0; slice < count; slice += 4) {
      float part[4];
#pragma unroll
      for (int i = 0; i < 4; i++) part[i] = slice + i < count ? plane[(slice + i) * apart] : 0.f;
#pragma unroll
      for (int i = 0; i < 4; i++) total += part[i];
    }
    z[threadIdx.x] = total * a.scale[slot];
  }
  __syncthreads();
  if (n <= 0) return;
  float sum[8], y[8];
#pragma unroll
  for (int i = 0; i < 8; i++) sum[i] = rank ? 0.f : __int_as_float(0x7fc00000);
  if (whole) {
    for (int32_t first = 0; first < rank; first += GROUP) {
      if (first) load_group(f, a.bt.rank_stride, first, rank, group);
#pragma unroll
      for (int j = 0; j < GROUP; j++)
        if (first + j < rank) {
          group[j].widen(y);
          add(z[first + j], y, sum);
        }
    }
    line.widen(y);
  } else {
    for (int32_t j = 0; j < rank; j++) {
      load8<false>(f + j * a.bt.rank_stride, n, y);
      add(z[j], y, sum);
    }
    load8<false>(at, n, y);
  }
#pragma unroll
  for (int i = 0; i < 8; i++) y[i] += sum[i];
  store8<WIDE>(at, n, y);
}

template <class X, class F>
cudaError_t run_down(const Decode& a, cudaStream_t stream) {
  const bool wide = aligned(static_cast<const X*>(a.x), a.x_stride) &&
                    aligned(static_cast<const F*>(a.a.data), a.a.rank_stride, a.a.slot_stride);
  return run(wide ? down<X, F, true> : down<X, F, false>, dim3(a.rows, slices(a.width)), THREADS, stream, a);
}

template <class X, class F>
cudaError_t run_up(const Decode& a, cudaStream_t stream) {
  const bool wide = aligned(static_cast<const X*>(a.y), a.y_stride) &&
                    aligned(static_cast<const F*>(a.bt.data), a.bt.rank_stride, a.bt.slot_stride);
  return run(wide ? up<X, F, true> : up<X, F, false>, dim3(a.rows, slices(a.outputs)), THREADS, stream, a);
}

template <class T>
struct Of {
  using type = T;
};

// work(Of<T>) with the element type that `type` names.
template <class Work>
cudaError_t with(Type type, const Work& work) {
  if (type == BF16) return work(Of<__nv_bfloat16>());
  return type == F16 ? work(Of<__half>()) : work(Of<float>());
}

template <class X>
cudaError_t run_both(const Decode& a, cudaStream_t stream) {
  const cudaError_t status = with(a.a.type, [&](auto f) { return run_down<X, typename decltype(f)::type>(a, stream); });
  if (status != cudaSuccess) return status;
  return with(a.bt.type, [&](auto f) { return run_up<X, typename decltype(f)::type>(a, stream); });
}

}  // namespace

int64_t slices(int64_t width) { return (width + SLICE - 1) / SLICE; }

cudaError_t decode(const Decode& a, cudaStream_t stream) {
  if (a.rows == 0 || a.outputs == 0 || a.ranks == 0 || a.width == 0) return cudaSuccess;
  return with(a.type, [&](auto x) { return run_both<typename decltype(x)::type>(a, stream); });
}

}  // namespace tmem::cuda
