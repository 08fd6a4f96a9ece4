// Products of a matrix with a few columns, c += a x, and what makes other matrices readable for them. Every element of c is
// summed over the depth in blocks of DEPTH, one after another inside a block and one block after another, whatever tile it
// falls into: its bits do not depend on how rows are shared out.
#pragma once
#include "kernels.h"
#include "vec.h"

namespace {

// Times one vector or, of the most registers, two: half to three quarters of all.
constexpr int TILE_ROWS = VECTORS >= 32 ? 12 : VECTORS >= 8 ? 6 : 2;

template <int M, int N, bool ALONG_ROWS, class S>
TMEM_INLINE void skinny_tile(const tmem::SkinnyOf<S>& s, int64_t row, int64_t column, int64_t first, int64_t end) {
  using vec = typename Compute<S>::vec;
  constexpr int L = Compute<S>::lanes;
  const S* a = s.a + (ALONG_ROWS ? row + first * s.stride : row * s.stride + first);
  const S* x = s.x + first * s.x_row + column;
  vec acc[M][N] = {};
  for (int64_t k = first; k < end; k++) {
    vec y[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) y[n] = load(x + L * n);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      const S one = ALONG_ROWS ? a[m] : a[m * s.stride];
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) acc[m][n] += one * y[n];
    }
    a += ALONG_ROWS ? s.stride : 1;
    x += s.x_row;
  }
  S* c = s.c + row * s.c_row + column;
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
      S* to = c + m * s.c_row + L * n;
      store(to, first == 0 && !s.add ? acc[m][n] : load(to) + acc[m][n]);
    }
}

template <int M, bool ALONG_ROWS, class S>
TMEM_INLINE void skinny_rows(const tmem::SkinnyOf<S>& s, int64_t row, int64_t first, int64_t end) {
  constexpr int L = Compute<S>::lanes;
  int64_t column = 0;
  for (; VECTORS >= 32 && column + 2 * L <= s.columns; column += 2 * L)
    skinny_tile<M, 2, ALONG_ROWS>(s, row, column, first, end);
  for (; column < s.columns; column += L) skinny_tile<M, 1, ALONG_ROWS>(s, row, column, first, end);
}

template <bool ALONG_ROWS, class S>
TMEM_INLINE void skinny_block(const tmem::SkinnyOf<S>& s, int64_t row, int64_t rows, int64_t first, int64_t end) {
  const int64_t stop = row + rows;
  for (; row + TILE_ROWS <= stop; row += TILE_ROWS) skinny_rows<TILE_ROWS, ALONG_ROWS>(s, row, first, end);
  for (; row + ROWS <= stop; row += ROWS) skinny_rows<ROWS, ALONG_ROWS>(s, row, first, end);
  for (; row < stop; row++) skinny_rows<1, ALONG_ROWS>(s, row, first, end);
}

template <class S>
void skinny(const tmem::SkinnyOf<S>& s, int64_t row, int64_t end_row) {
  if (s.along_rows) {  // a block of the depth is read in full before the next
    for (int64_t k = 0; k < s.depth; k += tmem::DEPTH)
      skinny_block<true>(s, row, end_row - row, k, least(k + tmem::DEPTH, s.depth));
  } else {  // rows are read from end to end
    for (; row < end_row; row += TILE_ROWS)
      for (int64_t k = 0; k < s.depth; k += tmem::DEPTH)
        skinny_block<false>(s, row, least(TILE_ROWS, end_row - row), k, least(k + tmem::DEPTH, s.depth));
  }
}

// out [rows, columns], contiguous, from strides in elements.
template <class W>
void widen(const void* from, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns, float* out) {
  for (int64_t i = 0; i < rows; i++) {
    const W* p = static_cast<const W*>(from) + i * row_stride;
    float* to = out + i * columns;
    W few[16] = {};
    int64_t j = 0;
    if (column_stride == 1)
      for (; j + 16 <= columns; j += 16) store(to + j, load(p + j));
    for (; j < columns; j += 16) {
      const int64_t n = least(16, columns - j);
      for (int64_t k = 0; k < n; k++) few[k] = p[(j + k) * column_stride];
      store_first(to + j, load(few), n);
    }
  }
}

// The largest magnitude. Bits of a float without its sign grow with it: infinity is above all numbers, NaN above infinity.
template <class W, class Bits>
float magnitude(const void* from, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns) {
  const Bits mask = static_cast<Bits>(~Bits{0}) >> 1;
  Bits most = 0;
  for (int64_t i = 0; i < rows; i++) {
    const Bits* p = static_cast<const Bits*>(from) + i * row_stride;
    if (column_stride == 1)
      for (int64_t j = 0; j < columns; j++) most = most > (p[j] & mask) ? most : p[j] & mask;
    else
      for (int64_t j = 0; j < columns; j++) most = most > (p[j * column_stride] & mask) ? most : p[j * column_stride] & mask;
  }
  W few[16] = {};
  memcpy(few, &most, sizeof most);
  float all[16];
  store(all, load(few));
  return all[0];
}

}  // namespace
