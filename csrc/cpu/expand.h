// expand: each output vector is summed over j = 0, 1, ... from zero, then added to o and rounded once.
#pragma once
#include "kernels.h"
#include "vec.h"

namespace {

constexpr int64_t EXPAND_TILE = 256;  // columns whose 16 factor rows stay in the first-level cache over all rows

template <int M, int N, class O, class F>
TMEM_INLINE void expand_block(O* o, int64_t o_stride, const typename Compute<O>::scalar* z, int64_t z_stride,
                              const F* f, int64_t f_stride, int64_t rank, int64_t columns) {
  using vec = typename Compute<O>::vec;
  constexpr int L = Compute<O>::lanes;
  const bool whole = columns >= N * L;  // a block with absent lanes has N = 1
  vec acc[M][N] = {};
  for (int64_t j = 0; j < rank; j++) {
    vec y[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++)
      y[n] = whole ? load(f + j * f_stride + n * L) : load_first(f + j * f_stride, columns);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const typename Compute<O>::scalar x = z[m * z_stride + j];
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) acc[m][n] += x * y[n];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      O* at = o + m * o_stride + n * L;
      if (whole)
        store(at, load(at) + acc[m][n]);
      else
        store_first(at, load_first(at, columns) + acc[m][n], columns);
    }
}

template <int M, int N, class O, class F>
TMEM_INLINE void expand_rows(const tmem::Expand& a, int64_t row, int64_t slot, int64_t lo, int64_t hi) {
  using scalar = typename Compute<O>::scalar;
  constexpr int L = Compute<O>::lanes;
  O* o = static_cast<O*>(a.o) + row * a.o_stride;
  const scalar* z = static_cast<const scalar*>(a.z) + row * a.z_stride;
  const F* f = static_cast<const F*>(a.f.data) + slot * a.f.slot_stride;
  const int64_t rank = a.seg.rank[slot];
  int64_t d = lo;
  for (; d + N * L <= hi; d += N * L)
    expand_block<M, N>(o + d, a.o_stride, z, a.z_stride, f + d, a.f.rank_stride, rank, N * L);
  for (; d < hi; d += L)
    expand_block<M, 1>(o + d, a.o_stride, z, a.z_stride, f + d, a.f.rank_stride, rank, hi - d);
}

template <class O, class F>
void expand(const tmem::Expand& a, int64_t first, int64_t end) {
  for (int64_t g = 0; g < a.seg.count; g++) {
    const int64_t from = most(a.seg.off[g], first), to = least(a.seg.off[g + 1], end), slot = a.seg.slot[g];
    if (slot < 0 || from >= to) continue;
    for (int64_t lo = 0; lo < a.width; lo += EXPAND_TILE) {
      const int64_t hi = least(lo + EXPAND_TILE, a.width);
      int64_t row = from;
      for (; row + ROWS <= to; row += ROWS) expand_rows<ROWS, ACROSS, O, F>(a, row, slot, lo, hi);
      // A single row comes from memory, which few streams of many columns serve badly. Many need more sums at once.
      for (; row < to; row++)
        if (SUMS < 16 || a.seg.rank[slot] <= 16)
          expand_rows<1, (SUMS < 4 ? SUMS : 4), O, F>(a, row, slot, lo, hi);
        else
          expand_rows<1, 8, O, F>(a, row, slot, lo, hi);
    }
  }
}

}  // namespace
