// gram: each element of g is summed over the rows of one segment in order, from zero, then added to g, or stored where g is
// fresh; segments follow one another in order. The squares of what a slot's last segment leaves are summed from registers.
#pragma once
#include "kernels.h"
#include "vec.h"

namespace {

TMEM_INLINE void add_squares(f64v* sums, f32v x) {
  float all[16];
  store(all, x);
  for (int k = 0; k < 2; k++) {
    const f64v y = load_double(all + 8 * k);
    sums[k] += y * y;
  }
}
TMEM_INLINE void add_squares(f64v* sums, f64v x) { sums[0] += x * x; }

// squares: 4 sums, or nullptr where they are not asked for.
template <int J, int N, class V>
TMEM_INLINE void gram_block(typename Compute<V>::scalar* g, int64_t g_stride, const typename Compute<V>::scalar* z,
                            int64_t z_stride, const V* v, int64_t v_stride, int64_t rows, int64_t columns,
                            bool fresh, f64v* squares) {
  using vec = typename Compute<V>::vec;
  constexpr int L = Compute<V>::lanes;
  const bool whole = columns >= N * L;  // a block with absent lanes has N = 1
  vec acc[J][N] = {};
  for (int64_t m = 0; m < rows; m++) {
    vec x[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) x[n] = whole ? load(v + m * v_stride + n * L) : load_first(v + m * v_stride, columns);
#pragma GCC unroll 8
    for (int j = 0; j < J; j++) {
      const typename Compute<V>::scalar y = z[m * z_stride + j];
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) acc[j][n] += y * x[n];
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; j++)
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      auto* at = g + j * g_stride + n * L;
      if (!fresh) acc[j][n] = (whole ? load(at) : load_first(at, columns)) + acc[j][n];
      if (whole)
        store(at, acc[j][n]);
      else
        store_first(at, acc[j][n], columns);
    }
  if (!squares) return;
  f64v sums[4] = {};
#pragma GCC unroll 8
  for (int j = 0; j < J; j++)
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) add_squares(sums + n % 2 * 2, acc[j][n]);
  for (int k = 0; k < 4; k++) squares[k] += sums[k];
}

template <int N, class V>
TMEM_INLINE void gram_columns(const tmem::Gram& a, int64_t segment, int64_t d, int64_t columns, bool fresh,
                              f64v* squares) {
  using scalar = typename Compute<V>::scalar;
  const int64_t lo = a.seg.off[segment], rows = a.seg.off[segment + 1] - lo, slot = a.seg.slot[segment];
  const int64_t rank = a.seg.rank[slot];
  scalar* g = static_cast<scalar*>(a.g) + slot * a.g_slot_stride + d;
  const scalar* z = static_cast<const scalar*>(a.z) + lo * a.z_stride;
  const V* v = static_cast<const V*>(a.v) + lo * a.v_stride + d;
  int64_t j = 0;
  for (; j + ROWS <= rank; j += ROWS)
    gram_block<ROWS, N>(g + j * a.g_rank_stride, a.g_rank_stride, z + j, a.z_stride, v, a.v_stride, rows, columns, fresh,
                     squares);
  for (; j < rank; j++)
    gram_block<1, N>(g + j * a.g_rank_stride, a.g_rank_stride, z + j, a.z_stride, v, a.v_stride, rows, columns, fresh,
                     squares);
}

template <class V>
double gram(const tmem::Gram& a, const int64_t* segments, int64_t count, int64_t first, int64_t end) {
  constexpr int L = Compute<V>::lanes;
  f64v squares[4] = {};
  for (int64_t i = 0; i < count; i++) {
    const bool fresh = a.fresh && i == 0;
    f64v* summed = a.squares && i == count - 1 ? squares : nullptr;
    int64_t d = first;
    for (; d + ACROSS * L <= end; d += ACROSS * L) gram_columns<ACROSS, V>(a, segments[i], d, ACROSS * L, fresh, summed);
    for (; d < end; d += L) gram_columns<1, V>(a, segments[i], d, end - d, fresh, summed);
  }
  return sum((squares[0] + squares[2]) + (squares[1] + squares[3]));
}

}  // namespace
