// svd_product of bf16 and fp16 matrices, on tensor cores: W and x as bf16 numbers and pairs of them (split.cuh). Tiles, pieces
// and the order of sums as in svd_product.cu. In shared memory two neighbours along the depth share a word, as mma takes it.
#include "run.cuh"
#include "split.cuh"
#include "svd.cuh"

namespace tmem::svd {

namespace {

constexpr int THREADS = 128, ROWS = TILE_ROWS, DEPTH = 32, WORDS = DEPTH / 2, STEPS = WORDS / 8;
constexpr int PAD = 8;             // words between rows of shared memory, so that a warp's reads meet every bank once
constexpr int PAIRS = WORDS / 8;  // pairs of columns, 8 rows each, that a thread fetches of W by columns

__device__ __forceinline__ uint32_t word(uint32_t low, uint32_t high) { return low | high << 16; }

// What a thread fetches of a tile of W. By columns: 8 rows of PAIRS pairs of columns; else: a row's WORDS words.
template <int O>
struct Fetched {
  uint32_t w[WORDS];

  __device__ __forceinline__ static int row() { return O == BY_COLUMNS ? threadIdx.x % 16 * 8 : threadIdx.x; }
  __device__ __forceinline__ static int pair(int i) { return threadIdx.x / 16 + 8 * i; }

  __device__ __forceinline__ void fetch(const Product& a, const Matrix& w_, int64_t first, int64_t k, int64_t end) {
    const uint16_t* data = static_cast<const uint16_t*>(w_.data);
    const int64_t r = first + row();
    const auto one = [&](int64_t i, int64_t j) {
      return i < a.w.m && j < end ? data[i * w_.row_stride + j * w_.column_stride] : 0u;
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
template <class T, int O, int L>
__global__ void __launch_bounds__(THREADS, L == 16 ? 4 : 3) multiply_bf16(const Product a) {
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
  float next_x[MINE][2], total[2][COLUMNS][4] = {};

  const auto fetch_x = [&](int64_t k) {
    const float* tile = x + k * a.columns + column;
    const int rows = end - k < DEPTH ? end - k : DEPTH, columns = a.columns - column < L ? a.columns - column : L;
    const int c = threadIdx.x % L;
#pragma unroll
    for (int i = 0; i < MINE; i++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int r = (threadIdx.x + i * THREADS) / L * 2 + j;
        next_x[i][j] = r < rows && c < columns ? tile[r * static_cast<int>(a.columns) + c] * by : 0.f;
      }
  };
  next.fetch(a, w, row, begin, end);
  fetch_x(begin);
  for (int64_t k = begin; k < end; k += DEPTH) {
    __syncthreads();
    next.store(ws);
#pragma unroll
    for (int i = 0; i < MINE; i++) {
      const int at = threadIdx.x + i * THREADS;
      split(next_x[i][0], next_x[i][1], high[at / L][at % L], low[at / L][at % L]);
    }
    __syncthreads();
    if (k + DEPTH < end) {
      next.fetch(a, w, row, k + DEPTH, end);
      fetch_x(k + DEPTH);
    }
    // 16 columns of W are summed by themselves: tensor cores cut digits off a long sum.
#pragma unroll 1
    for (int d = 0; d < STEPS; d++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int r = first + 16 * i + g, k = 8 * d + t;
        const uint32_t words[4] = {ws[k][r], ws[k][r + 8], ws[k + 4][r], ws[k + 4][r + 8]};
        const Left<T> left(words);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
          const int c = 8 * j + g;
          const uint32_t h[2] = {high[k][c], high[k + 4][c]}, l[2] = {low[k][c], low[k + 4][c]};
          float sum[4] = {};
          left.multiply(sum, h, l);
#pragma unroll
          for (int n = 0; n < 4; n++) total[i][j][n] += sum[n];
        }
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

template <class T, int O>
cudaError_t run_multiply(const Product& a, cudaStream_t stream) {
  const int wide = a.columns > 16 ? 32 : 16;
  const dim3 grid((a.w.m + ROWS - 1) / ROWS, (a.columns + wide - 1) / wide, a.w.count * pieces(a.w.m, a.w.n));
  return cuda::run(wide == 32 ? multiply_bf16<T, O, 32> : multiply_bf16<T, O, 16>, grid, THREADS, stream, a);
}

template <class T>
cudaError_t run_order(const Product& a, cudaStream_t stream) {
  const int lies = order(a.w, 2);
  if (lies == BY_ROWS) return run_multiply<T, BY_ROWS>(a, stream);
  return lies == BY_COLUMNS ? run_multiply<T, BY_COLUMNS>(a, stream) : run_multiply<T, SCATTERED>(a, stream);
}

}  // namespace

cudaError_t product_bf16(const Product& a, cudaStream_t stream) {
  return a.w.type == E_BF16 ? run_order<__nv_bfloat16>(a, stream) : run_order<__half>(a, stream);
}

}  // namespace tmem::svd
