// What the launchers and the kernels of a batched randomized SVD agree on. The formulas: svd_* in tmem/reference.py.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace tmem::svd {

enum Element { E_F32, E_BF16, E_F16 };

// Where a matrix lies; strides in elements.
struct Matrix {
  const void* data;
  int64_t row_stride, column_stride;
};

constexpr int MOST_AT_ONCE = 96;  // matrices of one launch: their places travel as the kernel's argument

// `count` matrices [m,n] of one shape and type; `first` is the place of at[0] in the whole list.
struct Matrices {
  Matrix at[MOST_AT_ONCE];
  int64_t m, n;
  int32_t count, first;
  Element type;
};

// most[first + i] = max |w| of matrix i as bits, 0 before. NaN is larger than infinity.
struct Scan {
  Matrices w;
  unsigned* most;
};

cudaError_t scan(const Scan&, cudaStream_t);

// x [count, rows, columns]
struct Sketch {
  const int64_t* key;
  float* x;
  uint32_t seed[2];
  int64_t count, rows, columns;
};

cudaError_t sketch(const Sketch&, cudaStream_t);

// y = scale·W x, or minus - scale·W x, of every matrix.  x [b,n,l], minus and y [b,m,l], dense; scale [b] or null.
struct Product {
  Matrices w;
  const float *x, *scale, *minus;
  float *y, *planes;  // planes [pieces(m, n), b, m, l]: partial sums, where there are several
  int64_t b, columns;
};

constexpr int64_t TILE_ROWS = 128;  // of a block
// The sums of a product [m,n] are cut into pieces of this length, short where one row of blocks has to fill a GPU: by the
// shape alone, so that a matrix's bits do not depend on its neighbours.
__host__ __device__ __forceinline__ int64_t piece(int64_t m) { return m <= TILE_ROWS ? 512 : 4096; }
__host__ __device__ __forceinline__ int64_t pieces(int64_t m, int64_t n) {
  return n == 0 ? 1 : (n + piece(m) - 1) / piece(m);
}
cudaError_t product(const Product&, cudaStream_t);
cudaError_t product_bf16(const Product&, cudaStream_t);  // its first step, or all of it where there is one piece

constexpr int MOST_GRAMS = 8;  // matrices of one launch of gram: one fills a GPU, and the partial sums stay in its cache

// y = scale²·WᵀW x of every matrix, W read once.  x and y [b,n,l], dense; scale [b].
struct Gram {
  Matrices w;
  const float *x, *scale;
  float *y, *planes;  // planes [ranges(m, n), count, n, l]: partial sums, where there are several
  int64_t columns;
};

// Whether gram takes these matrices on a GPU of this compute capability, a block of which may ask for `shared` bytes; else two
// products do. By the order that takes most bytes, so that a matrix's bits do not depend on how it lies.
bool fits(Element, int64_t n, int64_t columns, int major, int64_t shared);
bool reads_once(Element, int64_t n, int64_t columns);  // the same, of the current GPU
int64_t ranges(int64_t m, int64_t n);
cudaError_t gram(const Gram&, cudaStream_t);

// How the matrices of a launch may be read: 16 bytes at once along rows or columns, or element by element.
constexpr int BY_ROWS = 0, BY_COLUMNS = 1, SCATTERED = 2;

inline int order(const Matrices& w, int64_t element_size) {
  bool rows = true, columns = true;
  for (int32_t i = 0; i < w.count; i++) {
    const Matrix& one = w.at[i];
    const bool aligned = reinterpret_cast<uintptr_t>(one.data) % 16 == 0;
    rows = rows && aligned && one.column_stride == 1 && one.row_stride * element_size % 16 == 0;
    columns = columns && aligned && one.row_stride == 1 && one.column_stride * element_size % 16 == 0;
  }
  return rows ? BY_ROWS : columns ? BY_COLUMNS : SCATTERED;
}

constexpr int64_t MOST_FACTOR = 128, MOST_EIGH = 160, MOST_SMALL = 64;  // columns that fit into shared memory

// inverse [b,l,l] and pivot [b] of g [b,l,l], dense.
struct Factor {
  const float* g;
  float *inverse, *pivot;
  float shift;
  int64_t b, columns;
};

cudaError_t factor(const Factor&, cudaStream_t);

// Singular vectors of a [b,k,k]: u, v [b,k,count], s [b,count]; u null: not wanted.
struct Jacobi {
  const float* a;
  float *u, *s, *v;
  int64_t b, columns, count;
};

cudaError_t jacobi(const Jacobi&, cudaStream_t);

__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widened(__half x) { return __half2float(x); }

}  // namespace tmem::svd
