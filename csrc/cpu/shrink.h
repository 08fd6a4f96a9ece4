// shrink: dot products along the width, ROWS x RANKS of them at a time. Every dot product is summed in the same order
// (lane by lane, then the tree in `sum`) whatever block it falls into.
#pragma once
#include "kernels.h"
#include "vec.h"

namespace {

template <int M, int N, class V, class F>
TMEM_INLINE void dot_block(const V* v, int64_t v_stride, const F* f, int64_t f_stride, int64_t width,
                           typename Compute<V>::scalar scale, typename Compute<V>::scalar* z, int64_t z_stride) {
  using vec = typename Compute<V>::vec;
  constexpr int L = Compute<V>::lanes;
  vec acc[M][N] = {};
  int64_t d = 0;
  for (; d + L <= width; d += L) {
    vec y[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) y[n] = held(load(f + n * f_stride + d));
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const vec x = held(load(v + m * v_stride + d));
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) acc[m][n] += x * y[n];
    }
  }
  if (d < width) {
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const vec x = load_first(v + m * v_stride + d, width - d);
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) acc[m][n] += x * load_first(f + n * f_stride + d, width - d);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) z[m * z_stride + n] = sum(acc[m][n]) * scale;
}

template <int M, class V, class F>
TMEM_INLINE void shrink_rows(const tmem::Shrink& a, int64_t row, int64_t slot) {
  using scalar = typename Compute<V>::scalar;
  const V* v = static_cast<const V*>(a.v) + row * a.v_stride;
  const F* f = static_cast<const F*>(a.f.data) + slot * a.f.slot_stride;
  scalar* z = static_cast<scalar*>(a.z) + row * a.ranks;
  const int64_t rank = a.seg.rank[slot];
  const scalar scale = a.scale[slot];
  constexpr int N = M == 1 ? (SUMS < 16 ? SUMS : 8) : DOT_ACROSS;  // enough independent sums to hide the latency of an addition
  int64_t j = 0;
  for (; j + N <= rank; j += N)
    dot_block<M, N>(v, a.v_stride, f + j * a.f.rank_stride, a.f.rank_stride, a.width, scale, z + j, a.ranks);
  for (; j < rank; j++)
    dot_block<M, 1>(v, a.v_stride, f + j * a.f.rank_stride, a.f.rank_stride, a.width, scale, z + j, a.ranks);
  for (int m = 0; m < M; m++)
    for (int64_t k = rank; k < a.ranks; k++) z[m * a.ranks + k] = 0;
}

template <class V, class F>
void shrink(const tmem::Shrink& a, int64_t first, int64_t end) {
  using scalar = typename Compute<V>::scalar;
  for (int64_t g = 0; g < a.seg.count; g++) {
    const int64_t lo = most(a.seg.off[g], first), hi = least(a.seg.off[g + 1], end), slot = a.seg.slot[g];
    if (lo >= hi) continue;
    if (slot < 0) {
      memset(static_cast<scalar*>(a.z) + lo * a.ranks, 0, (hi - lo) * a.ranks * sizeof(scalar));
      continue;
    }
    int64_t row = lo;
    for (; row + DOT_ROWS <= hi; row += DOT_ROWS) shrink_rows<DOT_ROWS, V, F>(a, row, slot);
    for (; row < hi; row++) shrink_rows<1, V, F>(a, row, slot);
  }
}

}  // namespace
