// attend: the new token of a row against its cached keys and values, for the query heads that share a key head. Only the
// columns that the row sees are read. Sums run over the width lane by lane and over the columns in order, so that a row's
// bits depend on what it sees alone.
#pragma once
#include "exp.h"
#include "kernels.h"
#include "vec.h"

namespace {

// Scores of C columns, next to each other in `columns`, for N heads: p[n * stride + c].
template <int N, int C, class T>
TMEM_INLINE void score(const tmem::Attend& a, const T* q, const T* k, const int32_t* columns,
                       typename Compute<T>::scalar* p, int64_t stride) {
  using vec = typename Compute<T>::vec;
  constexpr int L = Compute<T>::lanes;
  vec acc[C][N] = {};
  const T* key[C];
#pragma GCC unroll 4
  for (int c = 0; c < C; c++) key[c] = k + columns[c] * a.k_column;
  int64_t d = 0;
  for (; d + L <= a.width; d += L) {
    vec x[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) x[n] = load(q + n * a.q_head + d);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      const vec y = load(key[c] + d);
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) acc[c][n] += x[n] * y;
    }
  }
  if (d < a.width)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      const vec y = load_first(key[c] + d, a.width - d);
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) acc[c][n] += load_first(q + n * a.q_head + d, a.width - d) * y;
    }
#pragma GCC unroll 4
  for (int c = 0; c < C; c++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) p[n * stride + c] = sum(acc[c][n]) * (typename Compute<T>::scalar)a.scale;
}

// p [count], of whole vectors, becomes e^(p - max p); returns the sum.
template <class T>
TMEM_INLINE typename Compute<T>::scalar exponentials(typename Compute<T>::scalar* p, int64_t count) {
  using vec = typename Compute<T>::vec;
  constexpr int L = Compute<T>::lanes;
  auto top = p[0];
  for (int64_t i = 1; i < count; i++) top = p[i] > top ? p[i] : top;
  vec total = {};
  int64_t i = 0;
  for (; i < count; i += L) {
    if (i + L > count)
      for (int64_t j = count; j < i + L; j++) p[j] = top;  // computed with, then taken out
    store(p + i, exp_of(load(p + i) - top));
    if (i + L > count)
      for (int64_t j = count; j < i + L; j++) p[j] = 0;
    total += load(p + i);
  }
  return sum(total);
}

// o[n, d .. d + V vectors] = sum over columns of p[n, c] v[c] / total[n]
template <int N, int V, class T>
TMEM_INLINE void mix(const tmem::Attend& a, const T* v, T* o, const int32_t* columns, int64_t count,
                     const typename Compute<T>::scalar* p, int64_t stride, const typename Compute<T>::scalar* total,
                     int64_t d) {
  using vec = typename Compute<T>::vec;
  constexpr int L = Compute<T>::lanes;
  vec acc[N][V] = {};
  const int64_t left = a.width - d;
  for (int64_t i = 0; i < count; i++) {
    const T* value = v + columns[i] * a.v_column + d;
#pragma GCC unroll 4
    for (int u = 0; u < V; u++) {
      const vec y = V == 1 && left < L ? load_first(value, left) : load(value + u * L);
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) acc[n][u] += p[n * stride + i] * y;
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; n++)
#pragma GCC unroll 4
    for (int u = 0; u < V; u++) {
      T* to = o + n * a.width + d + u * L;
      if (V == 1 && left < L)
        store_first(to, acc[n][u] / total[n], left);
      else
        store(to, acc[n][u] / total[n]);
    }
}

template <int N, class T>
TMEM_INLINE void attend_heads(const tmem::Attend& a, const T* q, const T* k, const T* v, T* o, const int32_t* columns,
                              int64_t count, typename Compute<T>::scalar* p) {
  constexpr int L = Compute<T>::lanes;
  const int64_t stride = (count + L - 1) / L * L;
  constexpr int TILE = SUMS / N >= 4 ? 4 : SUMS / N >= 2 ? 2 : 1;
  int64_t i = 0;
  for (; i + TILE <= count; i += TILE) score<N, TILE>(a, q, k, columns + i, p + i, stride);
  for (; i < count; i++) score<N, 1>(a, q, k, columns + i, p + i, stride);
  typename Compute<T>::scalar total[N];
  for (int n = 0; n < N; n++) total[n] = exponentials<T>(p + n * stride, count);
  int64_t d = 0;
  for (; d + TILE * L <= a.width; d += TILE * L) mix<N, TILE>(a, v, o, columns, count, p, stride, total, d);
  for (; d < a.width; d += L) mix<N, 1>(a, v, o, columns, count, p, stride, total, d);
}

// One row and key head. scratch: room for min(share, 4) times `count` numbers of whole vectors.
template <class T>
void attend(const tmem::Attend& a, int64_t row, int64_t head, const int32_t* columns, int64_t count, void* scratch) {
  using scalar = typename Compute<T>::scalar;
  const T* k = static_cast<const T*>(a.k) + row * a.k_row + head * a.k_head;
  const T* v = static_cast<const T*>(a.v) + row * a.v_row + head * a.v_head;
  scalar* p = static_cast<scalar*>(scratch);
  for (int64_t n = 0; n < a.share;) {
    const int64_t h = head * a.share + n;
    const T* q = static_cast<const T*>(a.q) + row * a.q_row + h * a.q_head;
    T* o = static_cast<T*>(a.o) + (row * a.heads * a.share + h) * a.width;
    if (count == 0) {
      if (a.width) memset(o, 0, a.width * sizeof(T));  // of no width there may be no memory either
      n += 1;
    } else if (a.share - n >= 4) {
      attend_heads<4>(a, q, k, v, o, columns, count, p);
      n += 4;
    } else if (a.share - n == 3) {
      attend_heads<3>(a, q, k, v, o, columns, count, p);
      n += 3;
    } else if (a.share - n == 2) {
      attend_heads<2>(a, q, k, v, o, columns, count, p);
      n += 2;
    } else {
      attend_heads<1>(a, q, k, v, o, columns, count, p);
      n += 1;
    }
  }
}

}  // namespace
