// svd_gram of bf16 and fp16 matrices on Hopper: scale²·Wᵀ W x, W read once. A cluster holds 32 rows of W in shared memory, each
// block a slice of the columns; T = W x is added up over the cluster, and each block adds Wᵀ T to its slice of the result, in
// registers, while the next rows are on their way. Clusters share out the rows; their results are added in order. Both products
// as in svd_product_bf16.cu: bf16 numbers and pairs of them, short sums in the tensor cores, the rest in fp32.
#include "cluster.cuh"
#include "run.cuh"
#include "split.cuh"
#include "svd.cuh"

namespace tmem::svd {

namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32, ROWS = 32, STEP = WARPS * 16;
constexpr int WIDEST = 512;  // columns of W of a block
constexpr int64_t MOST_BLOCKS = 8, MOST_RANGES = 16, LEAST_ROWS = 256;

// How a matrix is shared out, by its shape alone: `blocks` slices of `width` columns, `ranges` of `rows` rows.
struct Shares {
  int64_t blocks, width, ranges, rows;
};

__host__ __device__ __forceinline__ int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

__host__ __device__ __forceinline__ Shares shares(int64_t m, int64_t n) {
  Shares s = {1, 0, 0, 0};
  while (s.blocks < MOST_BLOCKS && s.blocks * WIDEST < n) s.blocks *= 2;
  s.width = up((n + s.blocks - 1) / s.blocks, STEP);
  s.rows = up((m + MOST_RANGES - 1) / MOST_RANGES, ROWS);
  if (s.rows < LEAST_ROWS) s.rows = LEAST_ROWS;
  s.ranges = m ? (m + s.rows - 1) / s.rows : 1;
  return s;
}

// In shared memory: two slabs of W, the warps' parts of T, the block's part of T twice, T in two parts. A slab's lines are
// rows of W, or columns where these lie side by side; words hold two neighbours of a line. Words between the lines let a warp
// meet every bank once, along a line and across.
template <int O>
constexpr int LINE = (O == BY_COLUMNS ? ROWS : WIDEST) / 2 + 4;
template <int O>
constexpr int SLAB = LINE<O> * (O == BY_COLUMNS ? WIDEST : ROWS);
template <int L>
constexpr int PARTS = ROWS * L;
template <int L>
constexpr int SPLIT = ROWS / 2 * (L + 8);
template <int O, int L>
constexpr int WORDS = 2 * SLAB<O> + (WARPS + 2) * PARTS<L> + 2 * SPLIT<L>;
template <int L>
constexpr int MOST_WORDS = WORDS<BY_COLUMNS, L> > WORDS<BY_ROWS, L> ? WORDS<BY_COLUMNS, L> : WORDS<BY_ROWS, L>;

#if defined(TMEM_EMULATED) || __CUDA_ARCH__ >= 900

constexpr int TILES = WIDEST / STEP;  // of 16 columns of W, of a warp

// 16 lines from `line` on are the rows of a tile, 8 words from `word` on its depth.
template <int O>
__device__ __forceinline__ void along(const uint32_t* slab, int line, int word, uint32_t (&a)[4]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const uint32_t* at = slab + (line + g) * LINE<O> + word + t;
  a[0] = at[0], a[1] = at[8 * LINE<O>], a[2] = at[4], a[3] = at[8 * LINE<O> + 4];
}

// 16 lines are the depth, 8 words the rows of a tile: the two of word g are its rows g and g+8.
template <int O>
__device__ __forceinline__ void across(const uint32_t* slab, int line, int word, uint32_t (&a)[4]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const uint32_t* at = slab + (line + 2 * t) * LINE<O> + word + g;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const uint32_t even = at[8 * i * LINE<O>], odd = at[(8 * i + 1) * LINE<O>];
    a[2 * i] = (even & 0xffffu) | odd << 16, a[2 * i + 1] = even >> 16 | (odd & 0xffff0000u);
  }
}

// Starts the copy of rows row.. and columns column..column+width of W, zero beyond m and n.
template <int O>
__device__ __forceinline__ void fetch(const Gram& a, const Matrix& w, int64_t row, int64_t column, int width,
                                      uint32_t* slab) {
  const uint16_t* data = static_cast<const uint16_t*>(w.data);
  const auto at = [&](int64_t r, int64_t c) { return data + r * w.row_stride + c * w.column_stride; };
  const auto bytes = [](int64_t left) { return left >= 8 ? 16 : left > 0 ? static_cast<int>(2 * left) : 0; };
  if (O == BY_COLUMNS) {
    const int eight = threadIdx.x % (ROWS / 8) * 8;
    const int64_t r = row + eight;
    for (int i = threadIdx.x / (ROWS / 8); i < width; i += THREADS / (ROWS / 8)) {
      const int64_t c = column + i;
      const int some = c < a.w.n ? bytes(a.w.m - r) : 0;
      copy16(slab + i * LINE<O> + eight / 2, some ? at(r, c) : data, some);
    }
  } else if (O == BY_ROWS) {
    for (int i = threadIdx.x / 32; i < ROWS; i += WARPS)
      for (int j = threadIdx.x % 32 * 8; j < width; j += 32 * 8) {
        const int64_t r = row + i, c = column + j;
        const int some = r < a.w.m ? bytes(a.w.n - c) : 0;
        copy16(slab + i * LINE<O> + j / 2, some ? at(r, c) : data, some);
      }
  } else {
    for (int i = threadIdx.x / 32; i < ROWS; i += WARPS)
      for (int j = threadIdx.x % 32 * 2; j < width; j += 32 * 2) {
        const int64_t r = row + i, c = column + j;
        const uint32_t left = r < a.w.m && c < a.w.n ? *at(r, c) : 0;
        const uint32_t right = r < a.w.m && c + 1 < a.w.n ? *at(r, c + 1) : 0;
        slab[i * LINE<O> + j / 2] = left | right << 16;
      }
  }
}

// L columns of x per cluster; a warp takes the same columns of W in both products.
template <class T, int O, int L>
__device__ __forceinline__ void both_products(const Gram& a, float* room) {
  constexpr int COLUMNS = L / 8;
  const Shares s = shares(a.w.m, a.w.n);
  const int rank = blockIdx.x % s.blocks, range = blockIdx.x / s.blocks, tiles = s.width / STEP;
  const int64_t slice = rank * s.width, column = blockIdx.y * static_cast<int64_t>(L);
  const int64_t begin = range * s.rows, end = begin + s.rows < a.w.m ? begin + s.rows : a.w.m;
  const Matrix w = a.w.at[blockIdx.z];
  const int64_t place = a.w.first + blockIdx.z;
  const float by = a.scale[place];
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int first = warp * tiles * 16;  // column of the slice
  uint32_t* slabs = reinterpret_cast<uint32_t*>(room);
  float *parts = room + 2 * SLAB<O>, *mine = parts + WARPS * PARTS<L>;
  uint32_t *high = reinterpret_cast<uint32_t*>(mine + 2 * PARTS<L>), *low = high + SPLIT<L>;

  if (begin < end) fetch<O>(a, w, begin, slice, s.width, slabs);
  uint32_t x_high[TILES][COLUMNS][2], x_low[TILES][COLUMNS][2];
  float total[TILES][COLUMNS][4] = {};
  const float* x = a.x + place * a.w.n * a.columns;
#pragma unroll
  for (int i = 0; i < TILES; i++)
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
#pragma unroll
      for (int d = 0; d < 2; d++) {
        const int64_t r = slice + first + 16 * i + 8 * d + 2 * t, c = column + 8 * j + g;
        const bool here = i < tiles && c < a.columns;
        const float p = here && r < a.w.n ? x[r * a.columns + c] * by : 0.f;
        const float q = here && r + 1 < a.w.n ? x[(r + 1) * a.columns + c] * by : 0.f;
        split(p, q, x_high[i][j][d], x_low[i][j][d]);
      }

  int turn = 0;
  for (int64_t row = begin; row < end; row += ROWS, turn ^= 1) {
    wait_for_copies();
    __syncthreads();  // and nobody reads the other slab any more
    const uint32_t* slab = slabs + turn * SLAB<O>;
    if (row + ROWS < end) fetch<O>(a, w, row + ROWS, slice, s.width, slabs + (turn ^ 1) * SLAB<O>);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float sum[COLUMNS][4] = {};
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        if (tile >= tiles) break;
        const int c = first + 16 * tile;
        uint32_t words[4];
        O == BY_COLUMNS ? across<O>(slab, c, 8 * i, words) : along<O>(slab, 16 * i, c / 2, words);
        const Left<T> left(words);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) left.multiply(sum[j], x_high[tile][j], x_low[tile][j]);
      }
#pragma unroll
      for (int j = 0; j < COLUMNS; j++)
#pragma unroll
        for (int n = 0; n < 4; n++) {
          const int r = 16 * i + (O == BY_COLUMNS ? 2 * g + n / 2 : g + n / 2 * 8);
          parts[warp * PARTS<L> + r * L + 8 * j + 2 * t + n % 2] = sum[j][n];
        }
    }
    __syncthreads();
    float* part = mine + turn * PARTS<L>;  // of two: a block may still read the one before
    for (int i = threadIdx.x; i < PARTS<L>; i += THREADS) {
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < WARPS; j++) sum += parts[j * PARTS<L> + i];
      part[i] = sum;
    }
    cluster_barrier();
    for (int i = threadIdx.x; i < PARTS<L> / 2; i += THREADS) {
      const int pair = i / L, c = i % L;
      float even = 0.f, odd = 0.f;
      for (int block = 0; block < s.blocks; block++) {
        even += of_block(part + 2 * pair * L + c, block);
        odd += of_block(part + (2 * pair + 1) * L + c, block);
      }
      split(even * by, odd * by, high[pair * (L + 8) + c], low[pair * (L + 8) + c]);
    }
    __syncthreads();
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      if (tile >= tiles) break;
      const int c = first + 16 * tile;
      float sum[COLUMNS][4] = {};
#pragma unroll
      for (int d = 0; d < 2; d++) {
        uint32_t words[4];
        O == BY_COLUMNS ? along<O>(slab, c, 8 * d, words) : across<O>(slab, 16 * d, c / 2, words);
        const Left<T> left(words);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
          const int one = (8 * d + t) * (L + 8) + 8 * j + g, other = one + 4 * (L + 8);
          left.multiply(sum[j], {high[one], high[other]}, {low[one], low[other]});
        }
      }
#pragma unroll
      for (int j = 0; j < COLUMNS; j++)
#pragma unroll
        for (int n = 0; n < 4; n++) total[tile][j][n] += sum[j][n];
    }
  }
  float* y = s.ranges > 1 ? a.planes + (range * static_cast<int64_t>(a.w.count) + blockIdx.z) * a.w.n * a.columns
                          : a.y + place * a.w.n * a.columns;
#pragma unroll
  for (int tile = 0; tile < TILES; tile++)
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
#pragma unroll
      for (int n = 0; n < 4; n++) {
        const int64_t r = slice + first + 16 * tile + (O == BY_COLUMNS ? g + n / 2 * 8 : 2 * g + n / 2);
        const int64_t c = column + 8 * j + 2 * t + n % 2;
        if (tile < tiles && r < a.w.n && c < a.columns) y[r * a.columns + c] = total[tile][j][n];
      }
  cluster_barrier();  // shared memory that others read outlives their reading
}

#endif

template <class T, int O, int L>
__global__ void __launch_bounds__(THREADS, L == 16 ? 2 : 1) gram_once(const Gram a) {
#if defined(TMEM_EMULATED) || __CUDA_ARCH__ >= 900
  ROOM(room);
  both_products<T, O, L>(a, room);
#endif
}

// The results of the ranges of rows, added in order.
__global__ void __launch_bounds__(THREADS) add_ranges(const Gram a) {
  const int64_t size = a.w.count * a.w.n * a.columns, ranges = shares(a.w.m, a.w.n).ranges;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= size) return;
  float total = 0.f;
  for (int64_t range = 0; range < ranges; range++) total += a.planes[range * size + i];
  a.y[a.w.first * a.w.n * a.columns + i] = total;
}

template <class T, int O, int L>
cudaError_t run_once(const Gram& a, cudaStream_t stream) {
  const Shares s = shares(a.w.m, a.w.n);
  const dim3 grid(s.blocks * s.ranges, (a.columns + L - 1) / L, a.w.count);
  return cuda::run_in_clusters(gram_once<T, O, L>, grid, s.blocks, THREADS, WORDS<O, L> * 4, stream, a);
}

template <class T, int O>
cudaError_t run_width(const Gram& a, cudaStream_t stream) {
  return a.columns > 16 ? run_once<T, O, 32>(a, stream) : run_once<T, O, 16>(a, stream);
}

template <class T>
cudaError_t run_order(const Gram& a, cudaStream_t stream) {
  const int lies = order(a.w, 2);
  if (lies == BY_ROWS) return run_width<T, BY_ROWS>(a, stream);
  return lies == BY_COLUMNS ? run_width<T, BY_COLUMNS>(a, stream) : run_width<T, SCATTERED>(a, stream);
}

}  // namespace

bool fits(Element type, int64_t n, int64_t columns, int major, int64_t shared) {
  const int64_t words = columns > 16 ? MOST_WORDS<32> : MOST_WORDS<16>;
  return type != E_F32 && n <= MOST_BLOCKS * WIDEST && major >= 9 && 4 * words <= shared;
}

bool reads_once(Element type, int64_t n, int64_t columns) {
  int device, major, shared;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
         fits(type, n, columns, major, shared);
}

int64_t ranges(int64_t m, int64_t n) { return shares(m, n).ranges; }

cudaError_t gram(const Gram& a, cudaStream_t stream) {
  const int64_t size = a.w.count * a.w.n * a.columns;
  if (size == 0) return cudaSuccess;
  const cudaError_t status =
      a.w.type == E_BF16 ? run_order<__nv_bfloat16>(a, stream) : run_order<__half>(a, stream);
  if (status != cudaSuccess || ranges(a.w.m, a.w.n) == 1) return status;
  return cuda::run(add_ranges, dim3((size + THREADS - 1) / THREADS), THREADS, stream, a);
}

}  // namespace tmem::svd
