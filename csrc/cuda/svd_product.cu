// svd_product of fp32 matrices: W x for a few columns, fp32 sums. A block takes 128 rows of one matrix and one piece of their
// length; tiles of 32 columns of W and rows of x go through shared memory, the next tile being fetched while one is multiplied.
// However W lies in memory, the sums are made in the same order.
#include "run.cuh"
#include "svd.cuh"

namespace tmem::svd {

namespace {

constexpr int THREADS = 128, ROWS = TILE_ROWS, DEPTH = 32;
template <int L>
constexpr int threads = 8 * L;  // four rows by four columns of the result each
template <int L>
constexpr int fetches = 64 / L;  // runs of 8 elements of a tile that each of them fetches
constexpr int RUN = 8;  // tiles summed by themselves, which halves the digits that are lost

// Which elements of a tile a thread fetches, as runs of 8 that lie side by side in memory, and where they go. By rows:
// neighbours in a row. By columns: 8 rows of a column. Scattered: as by rows.
template <int O, int L>
__device__ __forceinline__ int run_row(int i) {
  return O == BY_COLUMNS ? threadIdx.x % 16 * 8 : threadIdx.x % ROWS;
}
template <int O, int L>
__device__ __forceinline__ int run_column(int i) {
  return O == BY_COLUMNS ? threadIdx.x / 16 + threads<L> / 16 * i : (threadIdx.x / ROWS * fetches<L> + i) * 8;
}

__device__ __forceinline__ void load8(const float* p, float (&out)[8]) {
  const float4 low = *reinterpret_cast<const float4*>(p), high = *reinterpret_cast<const float4*>(p + 4);
  out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
  out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
}

template <int O, int L>
__device__ __forceinline__ void fetch(const Product& a, const Matrix& w, int64_t row, int64_t k, int64_t end,
                                      float (&out)[fetches<L>][8]) {
#pragma unroll
  for (int i = 0; i < fetches<L>; i++) {
    const int64_t r = row + run_row<O, L>(i), c = k + run_column<O, L>(i);
    const float* p = static_cast<const float*>(w.data) + r * w.row_stride + c * w.column_stride;
    const bool whole = O == BY_ROWS ? r < a.w.m && c + 8 <= end : O == BY_COLUMNS ? c < end && r + 8 <= a.w.m : false;
    if (whole) {
      load8(p, out[i]);
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const int64_t rj = O == BY_COLUMNS ? r + j : r, cj = O == BY_COLUMNS ? c : c + j;
        out[i][j] = rj < a.w.m && cj < end ? p[j * (O == BY_COLUMNS ? w.row_stride : w.column_stride)] : 0.f;
      }
    }
  }
}

// L columns of x per block.
template <int O, int L>
__global__ void __launch_bounds__(threads<L>, 512 / threads<L>) multiply(const Product a) {
  alignas(16) __shared__ float ws[DEPTH][ROWS + 4], xs[DEPTH][L];
  const int64_t parts = pieces(a.w.m, a.w.n), matrix = blockIdx.z / parts, part = blockIdx.z % parts;
  const int64_t row = blockIdx.x * static_cast<int64_t>(ROWS), column = blockIdx.y * static_cast<int64_t>(L);
  const int64_t begin = part * piece(a.w.m), end = begin + piece(a.w.m) < a.w.n ? begin + piece(a.w.m) : a.w.n;
  const Matrix w = a.w.at[matrix];
  const int64_t place = a.w.first + matrix;
  const float* x = a.x + place * a.w.n * a.columns;
  const float by = a.scale ? a.scale[place] : 1.f;
  const int mine = threadIdx.x / 32 * 4, rows = threadIdx.x % 32 * 4;
  float next[fetches<L>][8], next_x[4], sum[4][4] = {}, total[4][4] = {};

  const auto fetch_x = [&](int64_t k) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int at = threadIdx.x + i * threads<L>;
      const int64_t r = k + at / L, c = column + at % L;
      next_x[i] = r < end && c < a.columns ? x[r * a.columns + c] * by : 0.f;
    }
  };
  fetch<O, L>(a, w, row, begin, end, next);
  fetch_x(begin);
  int tiles = 0;
  for (int64_t k = begin; k < end; k += DEPTH) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < fetches<L>; i++)
#pragma unroll
      for (int j = 0; j < 8; j++) {
        if (O == BY_COLUMNS)
          ws[run_column<O, L>(i)][run_row<O, L>(i) + j] = next[i][j];
        else
          ws[run_column<O, L>(i) + j][run_row<O, L>(i)] = next[i][j];
      }
#pragma unroll
    for (int i = 0; i < 4; i++) (&xs[0][0])[threadIdx.x + i * threads<L>] = next_x[i];
    __syncthreads();
    if (k + DEPTH < end) {
      fetch<O, L>(a, w, row, k + DEPTH, end, next);
      fetch_x(k + DEPTH);
    }
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
      const float4 down = *reinterpret_cast<const float4*>(&ws[d][rows]);
      const float4 right = *reinterpret_cast<const float4*>(&xs[d][mine]);
      const float r[4] = {down.x, down.y, down.z, down.w}, c[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i][j] = fmaf(r[i], c[j], sum[i][j]);
    }
    if (++tiles % RUN == 0 || k + DEPTH >= end) {
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) total[i][j] += sum[i][j], sum[i][j] = 0.f;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int64_t r = row + rows + i, c = column + mine + j;
      if (r >= a.w.m || c >= a.columns) continue;
      const int64_t at = (place * a.w.m + r) * a.columns + c;
      if (parts > 1)
        a.planes[part * a.b * a.w.m * a.columns + at] = total[i][j];
      else
        a.y[at] = a.minus ? a.minus[at] - total[i][j] : total[i][j];
    }
}

// The partial sums, added in order.
__global__ void __launch_bounds__(THREADS) add_planes(const Product a) {
  const int64_t size = a.w.m * a.columns * a.w.count, from = a.w.first * a.w.m * a.columns;
  const int64_t parts = pieces(a.w.m, a.w.n), plane = a.b * a.w.m * a.columns;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= size) return;
  float total = 0.f;
  for (int64_t part = 0; part < parts; part++) total += a.planes[part * plane + from + i];
  a.y[from + i] = a.minus ? a.minus[from + i] - total : total;
}

template <int O>
cudaError_t run_multiply(const Product& a, cudaStream_t stream) {
  const int wide = a.columns > 16 ? 32 : 16;
  const int64_t parts = pieces(a.w.m, a.w.n);
  const dim3 grid((a.w.m + ROWS - 1) / ROWS, (a.columns + wide - 1) / wide, a.w.count * parts);
  return wide == 32 ? cuda::run(multiply<O, 32>, grid, threads<32>, stream, a)
                    : cuda::run(multiply<O, 16>, grid, threads<16>, stream, a);
}

cudaError_t product_fp32(const Product& a, cudaStream_t stream) {
  const int lies = order(a.w, 4);
  if (lies == BY_ROWS) return run_multiply<BY_ROWS>(a, stream);
  return lies == BY_COLUMNS ? run_multiply<BY_COLUMNS>(a, stream) : run_multiply<SCATTERED>(a, stream);
}

}  // namespace

cudaError_t product(const Product& a, cudaStream_t stream) {
  const int64_t size = a.w.m * a.columns * a.w.count;
  if (size == 0) return cudaSuccess;
  const cudaError_t status = a.w.type == E_F32 ? product_fp32(a, stream) : product_bf16(a, stream);
  if (status != cudaSuccess || pieces(a.w.m, a.w.n) == 1) return status;
  return cuda::run(add_planes, dim3((size + THREADS - 1) / THREADS), THREADS, stream, a);
}

}  // namespace tmem::svd
