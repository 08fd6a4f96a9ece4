// attend_branches: attention of texts that share the beginning of a row. What a text does not see is not computed: of other texts
// nothing, and of its own what comes later only within a tile of queries. Scores are small products of the queries of all heads
// that share keys, kept whole, so that forward needs one softmax and backward none.
//
// Sums over the width, over keys and over lanes of the softmax begin at the text's own beginning, in blocks of DEPTH: a token's
// bits depend on its text alone, not on where the text stands, what else is in the row, or how long a beginning is shared.
#pragma once
#include "exp.h"
#include "kernels.h"
#include "pieces.h"
#include "skinny.h"

namespace {

TMEM_INLINE int64_t whole(int64_t count) { return (count + 15) / 16 * 16; }  // for skinny's columns

// The columns that the tokens of one run see: those of the beginning, then the run's own.
struct Run {
  int64_t begin, trunk, first, count;

  static TMEM_INLINE_MEMBER Run of(const tmem::AttendBranches& a, int64_t row, int64_t run) {
    const int32_t* runs = a.runs + row * a.runs_row;
    return {runs[0], run ? runs[1] - runs[0] : 0, runs[run], runs[run + 1] - runs[run]};
  }
};

// Tokens [token, token + tokens) of a run for all heads that share keys, row token * share + head; they see columns [begin, end),
// each those of its own window alone.
struct Tile {
  int64_t token, tokens, begin, end, rows, columns;

  static TMEM_INLINE_MEMBER Tile of(const tmem::AttendBranches& a, const Run& r, int64_t token) {
    const int64_t tokens = least(most(1, tmem::QUERIES / a.share), r.count - token), seen = r.trunk + token + 1;
    // A block of the depth begins where it would without a window.
    const int64_t begin = a.window ? most(0, seen - a.window) / tmem::DEPTH * tmem::DEPTH : 0;
    const int64_t end = r.trunk + token + tokens;
    return {token, tokens, begin, end, tokens * a.share, whole(end - begin)};
  }
};

// All of it as numbers of the accumulator's type, S.
template <class S>
struct Scratch {
  int64_t wide, long_;  // width and columns, in whole vectors
  S *q, *s, *o, *totals, *turned_k, *v;
  S *grad = nullptr, *ds = nullptr, *turned_v = nullptr, *dk = nullptr, *dv = nullptr;  // of backward, where v holds k

  Scratch(const tmem::AttendBranches& a, void* memory) : wide(whole(a.width)), long_(whole(a.longest)) {
    S* at = static_cast<S*>(memory);
    const int64_t rows = most(1, tmem::QUERIES / a.share) * a.share;
    const auto take = [&](int64_t count) {
      S* taken = at;
      at += count;
      return taken;
    };
    q = take(rows * wide), o = take(rows * wide), s = take(rows * long_), totals = take(rows);
    turned_k = take(wide * long_), v = take(long_ * wide);
    if (!a.backward) return;
    grad = take(rows * wide), ds = take(rows * long_);
    turned_v = take(wide * long_), dk = take(long_ * wide), dv = take(long_ * wide);
  }
};

int64_t attend_branches_scratch(const tmem::AttendBranches& a) {
  const int64_t rows = most(1, tmem::QUERIES / a.share) * a.share, wide = whole(a.width), long_ = whole(a.longest);
  return rows * (1 + (a.backward ? 3 : 2) * wide + (a.backward ? 2 : 1) * long_) + (a.backward ? 5 : 2) * wide * long_;
}

// Rows next to each other, zeros behind their width.
template <class T, class S>
TMEM_INLINE void pack(const T* from, int64_t stride, int64_t rows, int64_t width, S* to, int64_t wide) {
  constexpr int L = Compute<T>::lanes;
  for (int64_t i = 0; i < rows; i++, from += stride, to += wide) {
    int64_t d = 0;
    for (; d + L <= width; d += L) store(to + d, load(from + d));
    for (; d < wide; d += L) store(to + d, d < width ? load_first(from + d, width - d) : typename Compute<T>::vec{});
  }
}
template <class S>
TMEM_INLINE void turn(const S* from, int64_t rows, int64_t wide, S* to, int64_t stride) {
  for (int64_t first = 0; first < rows; first += 16)
    for (int64_t d = 0; d < wide; d++)
      for (int64_t i = first; i < least(first + 16, rows); i++) to[d * stride + i] = from[i * wide + d];
}

template <class S>
TMEM_INLINE void multiply(const S* a, int64_t stride, bool along_rows, const S* x, int64_t x_row, S* c, int64_t c_row, int64_t rows,
                          int64_t depth, int64_t columns, bool add = false) {
  for (int64_t i = 0; i < rows && !depth && !add; i++) memset(c + i * c_row, 0, columns * sizeof(S));
  skinny(tmem::SkinnyOf<S>{a, stride, along_rows, x, x_row, c, c_row, depth, columns, add}, 0, rows);
}

// 0, 1, 2 ... and which columns from `column` on, counted from the tile's first, a token sees.
template <class S>
struct Seen {
  using vec = typename Compute<S>::vec;
  vec places;
  S first, end;

  static TMEM_INLINE_MEMBER Seen of(const tmem::AttendBranches& a, const Run& r, const Tile& t, int64_t token) {
    S counted[Compute<S>::lanes];
    for (int i = 0; i < Compute<S>::lanes; i++) counted[i] = i;
    const int64_t seen = r.trunk + t.token + token + 1;
    return {load(counted), S((a.window ? most(0, seen - a.window) : 0) - t.begin), S(seen - t.begin)};
  }
  TMEM_INLINE_MEMBER vec or_else(int64_t column, vec x, vec other) const {
    const vec at = places + S(column);
    return choose((at >= first) & (at < end), x, other);
  }
};

// s [columns], of whole vectors, becomes e^(scale s - most), 0 where it is not seen; returns the sum, and log Σ e^(scale s).
template <class S>
TMEM_INLINE S softmax(S* s, int64_t columns, const Seen<S>& seen, S scale, S* lse) {
  using vec = typename Compute<S>::vec;
  constexpr int L = Compute<S>::lanes;
  const vec none = vec{} - S(__builtin_inf());
  vec top = none, total = {};
  for (int64_t c = 0; c < columns; c += L) {
    const vec x = seen.or_else(c, load(s + c) * scale, none);
    store(s + c, x);
    top = choose(x > top, x, top);
  }
  S tops[L];
  store(tops, top);
  S highest = tops[0];
  for (int i = 1; i < L; i++) highest = tops[i] > highest ? tops[i] : highest;
  for (int64_t c = 0; c < columns; c += L) {
    const vec e = seen.or_else(c, exp_of(load(s + c) - highest), vec{});
    store(s + c, e);
    total += e;
  }
  const S all = sum(total);
  *lse = highest + S(__builtin_log(double(all)));
  return all;
}

// What the tokens of a run read, for one head of k: the row's beginning, then the run itself.
template <class T, class S>
TMEM_INLINE void pack_run(const T* from, int64_t stride, const Run& r, int64_t width, S* to, int64_t wide) {
  pack(from + r.begin * stride, stride, r.trunk, width, to, wide);
  pack(from + r.first * stride, stride, r.count, width, to + r.trunk * wide, wide);
}

template <class T>
void attend_branches(const tmem::AttendBranches& a, int64_t texts, int64_t head, int64_t run, void* memory) {
  using S = typename Compute<T>::scalar;
  const Run r = Run::of(a, texts, run);
  const Scratch<S> w(a, memory);
  const int64_t row = a.row_of_tensors(texts);
  const T* q = static_cast<const T*>(a.q) + row * a.q_row + head * a.share * a.q_head;
  const T* k = static_cast<const T*>(a.k) + row * a.k_row + head * a.k_head;
  const T* v = static_cast<const T*>(a.v) + row * a.v_row + head * a.v_head;
  const int64_t heads = a.heads * a.share;
  pack_run(k, a.k_token, r, a.width, w.v, w.wide);  // until it is turned
  turn(w.v, r.trunk + r.count, w.wide, w.turned_k, w.long_);
  pack_run(v, a.v_token, r, a.width, w.v, w.wide);
  Tile t = Tile::of(a, r, 0);
  for (; t.tokens; t = Tile::of(a, r, t.token + t.tokens)) {
    for (int64_t i = 0; i < t.tokens; i++)
      pack(q + (r.first + t.token + i) * a.q_token, a.q_head, a.share, a.width, w.q + i * a.share * w.wide, w.wide);
    multiply(w.q, w.wide, false, w.turned_k + t.begin, w.long_, w.s, w.long_, t.rows, a.width, t.columns);
    for (int64_t i = 0; i < t.tokens; i++) {
      const Seen<S> seen = Seen<S>::of(a, r, t, i);
      for (int64_t h = 0; h < a.share; h++) {
        const int64_t one = i * a.share + h, at = r.first + t.token + i;
        S* lse = static_cast<S*>(a.lse) + (row * heads + head * a.share + h) * a.tokens + at;
        w.totals[one] = softmax(w.s + one * w.long_, t.columns, seen, S(a.scale), lse);
      }
    }
    multiply(w.s, w.long_, false, w.v + t.begin * w.wide, w.wide, w.o, w.wide, t.rows, t.end - t.begin, w.wide);
    for (int64_t i = 0; i < t.tokens; i++)
      for (int64_t h = 0; h < a.share; h++) {
        const int64_t one = i * a.share + h, at = row * a.tokens + r.first + t.token + i;
        T* o = static_cast<T*>(a.o) + (at * heads + head * a.share + h) * a.width;
        each<T>(a.width, TMEM_EACH { store_some(o + d, load(w.o + one * w.wide + d) / w.totals[one], left); });
      }
  }
}

// With P = softmax and dP = dO Vᵀ: dV = Pᵀ dO, dS = scale P ∘ (dP - rowsum(dO ∘ O)), dQ = dS K, dK = dSᵀ Q.
template <class T>
void attend_branches_backward(const tmem::AttendBranches& a, int64_t texts, int64_t head, void* memory) {
  using S = typename Compute<T>::scalar;
  using vec = typename Compute<T>::vec;
  constexpr int L = Compute<T>::lanes;
  const Scratch<S> w(a, memory);
  const int64_t row = a.row_of_tensors(texts);
  const int64_t heads = a.heads * a.share, first_head = head * a.share, size = a.tokens * a.width;
  const T* q = static_cast<const T*>(a.q) + row * a.q_row + first_head * a.q_head;
  const T* k = static_cast<const T*>(a.k) + row * a.k_row + head * a.k_head;
  const T* v = static_cast<const T*>(a.v) + row * a.v_row + head * a.v_head;
  const T* grad = static_cast<const T*>(a.grad) + row * a.grad_row + first_head * a.grad_head;
  const T* o = static_cast<const T*>(a.o) + (row * a.tokens * heads + first_head) * a.width;
  const S* lse = static_cast<const S*>(a.lse) + (row * heads + first_head) * a.tokens;
  T* dq = static_cast<T*>(a.dq) + (row * heads + first_head) * size;
  T *dk = static_cast<T*>(a.dk) + (row * a.heads + head) * size, *dv = static_cast<T*>(a.dv) + (row * a.heads + head) * size;
  const Run trunk = Run::of(a, texts, 0);
  const auto keep = [&](int64_t from, int64_t to, int64_t count) {  // columns of scratch, to tokens of dk and dv
    for (int64_t i = 0; i < count; i++)
      each<T>(a.width, TMEM_EACH {
        store_some(dk + (to + i) * a.width + d, load(w.dk + (from + i) * w.wide + d), left);
        store_some(dv + (to + i) * a.width + d, load(w.dv + (from + i) * w.wide + d), left);
      });
  };
  for (int64_t run = 0; run < a.count; run++) {
    const Run r = Run::of(a, texts, run);
    const int64_t own = r.trunk * w.wide, added = r.count * w.wide;
    // The beginning's columns stay, and what is added to them, from the first run, which is the beginning itself.
    memset(w.dk + own, 0, added * sizeof(S)), memset(w.dv + own, 0, added * sizeof(S));
    pack(v + r.first * a.v_token, a.v_token, r.count, a.width, w.v + own, w.wide);
    turn(w.v + own, r.count, w.wide, w.turned_v + r.trunk, w.long_);
    pack(k + r.first * a.k_token, a.k_token, r.count, a.width, w.v + own, w.wide);
    turn(w.v + own, r.count, w.wide, w.turned_k + r.trunk, w.long_);
    Tile t = Tile::of(a, r, 0);
    for (; t.tokens; t = Tile::of(a, r, t.token + t.tokens)) {
      const int64_t depth = t.end - t.begin;
      for (int64_t i = 0; i < t.tokens; i++) {
        const int64_t at = r.first + t.token + i, one = i * a.share * w.wide;
        pack(q + at * a.q_token, a.q_head, a.share, a.width, w.q + one, w.wide);
        pack(grad + at * a.grad_token, a.grad_head, a.share, a.width, w.grad + one, w.wide);
      }
      multiply(w.q, w.wide, false, w.turned_k + t.begin, w.long_, w.s, w.long_, t.rows, a.width, t.columns);
      multiply(w.grad, w.wide, false, w.turned_v + t.begin, w.long_, w.ds, w.long_, t.rows, a.width, t.columns);
      for (int64_t i = 0; i < t.tokens; i++) {
        const Seen<S> seen = Seen<S>::of(a, r, t, i);
        for (int64_t h = 0; h < a.share; h++) {
          const int64_t one = i * a.share + h, at = r.first + t.token + i;
          vec dots = {};
          each<T>(a.width, TMEM_EACH {
            dots += load(w.grad + one * w.wide + d) * load_some(o + (at * heads + h) * a.width + d, left);
          });
          const S dot = sum(dots), shift = lse[h * a.tokens + at], scale = S(a.scale);
          S *p = w.s + one * w.long_, *ds = w.ds + one * w.long_;
          for (int64_t c = 0; c < t.columns; c += L) {
            const vec e = seen.or_else(c, exp_of(load(p + c) * scale - shift), vec{});
            store(p + c, e);
            store(ds + c, seen.or_else(c, e * (load(ds + c) - dot) * scale, vec{}));
          }
        }
      }
      multiply(w.ds, w.long_, false, w.v + t.begin * w.wide, w.wide, w.o, w.wide, t.rows, depth, w.wide);
      multiply(w.ds, w.long_, true, w.q, w.wide, w.dk + t.begin * w.wide, w.wide, depth, t.rows, w.wide, true);
      multiply(w.s, w.long_, true, w.grad, w.wide, w.dv + t.begin * w.wide, w.wide, depth, t.rows, w.wide, true);
      for (int64_t i = 0; i < t.tokens; i++)
        for (int64_t h = 0; h < a.share; h++) {
          const S* from = w.o + (i * a.share + h) * w.wide;
          T* to = dq + h * size + (r.first + t.token + i) * a.width;
          each<T>(a.width, TMEM_EACH { store_some(to + d, load(from + d), left); });
        }
    }
    if (run) keep(r.trunk, r.first, r.count);
  }
  keep(0, trunk.begin, trunk.count);
  // Padding has no gradient.
  const int64_t end = a.padding(texts), bytes = (a.padding_end(texts) - end) * a.width * sizeof(T);
  if (!bytes) return;
  memset(dk + end * a.width, 0, bytes), memset(dv + end * a.width, 0, bytes);
  for (int64_t h = 0; h < a.share; h++) memset(dq + h * size + end * a.width, 0, bytes);
}

}  // namespace
