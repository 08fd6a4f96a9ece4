// svd_product of bf16 matrices, on tensor cores. W is bf16 as it is; x, in fp32, is the sum of two bf16 numbers up to 2^-17 of
// itself, so that two products give nearly the fp32 result. Tiles, pieces and the order of sums as in svd_product.cu. In
// shared memory two neighbours along the depth share a word, which is what mma takes.
#include "mma.cuh"
#include "run.cuh"
#include "svd.cuh"

namespace tmem::svd {

namespace {

constexpr int THREADS = 128, ROWS = TILE_ROWS, DEPTH = 32, WORDS = DEPTH / 2;
constexpr int RUN = 8;             // tiles summed by themselves
constexpr int PAD = 8;             // words between rows of shared memory, so that a warp's reads meet every bank once
constexpr int PAIRS = WORDS / 8;  // pairs of columns, 8 rows each, that a thread fetches of W by columns

__device__ __forceinline__ uint32_t bits(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }
__device__ __forceinline__ uint32_t word(uint32_t low, uint32_t high) { return low | high << 16; }

// What a thread fetches of a tile of W. By columns: 8 rows of PAIRS pairs of columns; else: a row's WORDS words.
template <int O>
struct Fetched {
  uint32_t w[WORDS];

  __device__ __forceinline__ static int row() { return O == BY_COLUMNS ? threadIdx.x % 16 * 8 : threadIdx.x; }
  __device__ __forceinline__ static int pair(int i) { return threadIdx.x / 16 + 8 * i; }

  __device__ __forceinline__ void fetch(const Product& a, const Matrix& w_, int64_t first, int64_t k, int64_t end) {
    const __nv_bfloat16* data = static_cast<const __nv_bfloat16*>(w_.data);
    const int64_t r = first + row();
    const auto one = [&](int64_t i, int64_t j) {
      return i < a.w.m && j < end ? bits(data[i * w_.row_stride + j * w_.column_stride]) : 0u;
    };
    if (O == BY_COLUMNS) {
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        const int64_t c = k + 2 * pair(i);
        if (r + 8 <= a.w.m && c + 2 <= end) {
          const uint4 even = *reinterpret_cast<const uint4*>(data + r + c * w_.column_stride);
          const uint4 odd = *reinterpret_cast<const uint4*>(data + r + (c + 1) * w_.column_stride);
          const uint32_t e[4] = {even.x, even.y, even.z, even.w}, o[4] = {odd.x, odd.y, odd.z, odd.w};
#pragma unroll
          for (int j = 0; j < 4; j++) {
            w[8 * i + 2 * j] = word(e[j] & 0xffff, o[j] & 0xffff);
            w[8 * i + 2 * j + 1] = word(e[j] >> 16, o[j] >> 16);
          }
        } else {
#pragma unroll
          for (int j = 0; j < 8; j++) w[8 * i + j] = word(one(r + j, c), one(r + j, c + 1));
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < WORDS; i += 4) {
        const int64_t c = k + 2 * i;
        if (O == BY_ROWS && r < a.w.m && c + 8 <= end) {
          const uint4 four = *reinterpret_cast<const uint4*>(data + r * w_.row_stride + c);
          w[i] = four.x, w[i + 1] = four.y, w[i + 2] = four.z, w[i + 3] = four.w;
        } else {
#pragma unroll
          for (int j = 0; j < 4; j++) w[i + j] = word(one(r, c + 2 * j), one(r, c + 2 * j + 1));
        }
      }
    }
  }

  __device__ __forceinline__ void store(uint32_t (&ws)[WORDS][ROWS + PAD]) const {
    if (O == BY_COLUMNS) {
#pragma unroll
      for (int i = 0; i < PAIRS; i++)
#pragma unroll
        for (int j = 0; j < 8; j += 4)
          *reinterpret_cast<uint4*>(&ws[pair(i)][row() + j]) =
              make_uint4(w[8 * i + j], w[8 * i + j + 1], w[8 * i + j + 2], w[8 * i + j + 3]);
    } else {
#pragma unroll
      for (int i = 0; i < WORDS; i++) ws[i][row()] = w[i];
    }
  }
};

// L columns of x per block; a warp takes 32 rows.
template <int O, int L>
__global__ void __launch_bounds__(THREADS, 4) multiply_bf16(const Product a) {
  constexpr int MINE = WORDS * L / THREADS, COLUMNS = L / 8;
  alignas(16) __shared__ uint32_t ws[WORDS][ROWS + PAD];
  __shared__ uint32_t high[WORDS][L + PAD], low[WORDS][L + PAD];
  const int64_t parts = pieces(a.w.m, a.w.n), matrix = blockIdx.z / parts, part = blockIdx.z % parts;
  const int64_t row = blockIdx.x * static_cast<int64_t>(ROWS), column = blockIdx.y * static_cast<int64_t>(L);
  const int64_t begin = part * piece(a.w.m), end = begin + piece(a.w.m) < a.w.n ? begin + piece(a.w.m) : a.w.n;
  const Matrix w = a.w.at[matrix];
  const int64_t place = a.w.first + matrix;
  const float* x = a.x + place * a.w.n * a.columns;
  const float by = a.scale ? a.scale[place] : 1.f;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, first = threadIdx.x / 32 * 32;
  Fetched<O> next;
  float next_x[MINE][2], sum[2][COLUMNS][4] = {}, total[2][COLUMNS][4] = {};

  const auto fetch_x = [&](int64_t k) {
#pragma unroll
    for (int i = 0; i < MINE; i++) {
      const int at = threadIdx.x + i * THREADS;
      const int64_t r = k + at / L * 2, c = column + at % L;
#pragma unroll
      for (int j = 0; j < 2; j++) next_x[i][j] = r + j < end && c < a.columns ? x[(r + j) * a.columns + c] * by : 0.f;
    }
  };
  next.fetch(a, w, row, begin, end);
  fetch_x(begin);
  int tiles = 0;
  for (int64_t k = begin; k < end; k += DEPTH) {
    __syncthreads();
    next.store(ws);
#pragma unroll
    for (int i = 0; i < MINE; i++) {
      const int at = threadIdx.x + i * THREADS;
      uint32_t h[2], l[2];
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const __nv_bfloat16 rounded = __float2bfloat16_rn(next_x[i][j]);
        h[j] = bits(rounded), l[j] = bits(__float2bfloat16_rn(next_x[i][j] - __bfloat162float(rounded)));
      }
      high[at / L][at % L] = word(h[0], h[1]), low[at / L][at % L] = word(l[0], l[1]);
    }
    __syncthreads();
    if (k + DEPTH < end) {
      next.fetch(a, w, row, k + DEPTH, end);
      fetch_x(k + DEPTH);
    }
#pragma unroll
    for (int d = 0; d < WORDS; d += 8) {
      uint32_t left[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int r = first + 16 * i + g;
        left[i][0] = ws[d + t][r], left[i][1] = ws[d + t][r + 8];
        left[i][2] = ws[d + t + 4][r], left[i][3] = ws[d + t + 4][r + 8];
      }
#pragma unroll
      for (int j = 0; j < COLUMNS; j++) {
        const int c = 8 * j + g;
#pragma unroll
        for (int i = 0; i < 2; i++) {
          mma(sum[i][j], left[i], low[d + t][c], low[d + t + 4][c]);
          mma(sum[i][j], left[i], high[d + t][c], high[d + t + 4][c]);
        }
      }
    }
    if (++tiles % RUN == 0 || k + DEPTH >= end) {
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
#pragma unroll
          for (int n = 0; n < 4; n++) total[i][j][n] += sum[i][j][n], sum[i][j][n] = 0.f;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
#pragma unroll
      for (int n = 0; n < 4; n++) {
        const int64_t r = row + first + 16 * i + g + n / 2 * 8, c = column + 8 * j + 2 * t + n % 2;
        if (r >= a.w.m || c >= a.columns) continue;
        const int64_t at = (place * a.w.m + r) * a.columns + c;
        if (parts > 1)
          a.planes[part * a.b * a.w.m * a.columns + at] = total[i][j][n];
        else
          a.y[at] = a.minus ? a.minus[at] - total[i][j][n] : total[i][j][n];
      }
}

template <int O>
cudaError_t run_multiply(const Product& a, cudaStream_t stream) {
  const int wide = a.columns > 16 ? 32 : 16;
  const dim3 grid((a.w.m + ROWS - 1) / ROWS, (a.columns + wide - 1) / wide, a.w.count * pieces(a.w.m, a.w.n));
  return cuda::run(wide == 32 ? multiply_bf16<O, 32> : multiply_bf16<O, 16>, grid, THREADS, stream, a);
}

}  // namespace

cudaError_t product_bf16(const Product& a, cudaStream_t stream) {
  const int lies = order(a.w, 2);
  if (lies == BY_ROWS) return run_multiply<BY_ROWS>(a, stream);
  return lies == BY_COLUMNS ? run_multiply<BY_COLUMNS>(a, stream) : run_multiply<SCATTERED>(a, stream);
}

}  // namespace tmem::svd
