// token_logp: the log-probability of one token a row, and the entropy, of logits; and their gradient. A row's sums run over the
// vocabulary lane by lane: its bits depend on that row alone.
#pragma once
#include "exp.h"
#include "kernels.h"
#include "pieces.h"

namespace {

// Below are minus infinity alone, whose e^y exp_of gives as a small number, and no NaN.
template <class S>
constexpr S LEAST = -S(sizeof(S) == 8 ? __DBL_MAX__ : __FLT_MAX__);

// The next vector of a row, or of its end: `other` behind it.
template <class T>
TMEM_INLINE typename Compute<T>::vec load_or(const T* p, int64_t left, typename Compute<T>::scalar other) {
  constexpr int L = Compute<T>::lanes;
  if (left >= L) return load(p);
  typename Compute<T>::scalar few[L];
  store(few, load_first(p, left));
  for (int64_t i = left; i < L; i++) few[i] = other;
  return load(few);
}

// With y = x - max x: log Σ e^x = max x + log Σ e^y, and -Σ p log p = log Σ e^y - Σ y e^y / Σ e^y, where 0 log 0 = 0. Sums go
// on in blocks, as rounding grows with their length.
template <class T>
void token_logp(const tmem::TokenLogp& a, int64_t row) {
  using S = typename Compute<T>::scalar;
  using vec = typename Compute<T>::vec;
  constexpr int L = Compute<T>::lanes;
  constexpr int64_t BLOCK = 64 * L;
  constexpr S NONE = -__builtin_inf();
  const T* x = static_cast<const T*>(a.logits) + row * a.logits_row;
  vec top = vec{} + NONE, total = {}, times = {};
  each<T>(a.width, TMEM_EACH {
    const vec v = load_or(x + d, left, NONE);
    top = choose((v > top) | (v != v), v, top);
  });
  S tops[L];
  store(tops, top);
  S highest = tops[0];
  for (S one : tops) highest = one > highest || one != one ? one : highest;
  for (int64_t begin = 0; begin < a.width; begin += BLOCK) {
    vec sums = {}, products = {};
    each<T>(least(BLOCK, a.width - begin), TMEM_EACH {
      const vec y = load_or(x + begin + d, left, NONE) - highest;
      const vec e = choose(y != y, y, exp_of(y));  // NaN stays one
      const auto never = y < LEAST<S>;
      sums += choose(never, vec{}, e);
      products += choose(never, vec{}, e * y);
    });
    total += sums, times += products;
  }
  const S all = sum(total), rest = S(__builtin_log(double(all)));
  static_cast<S*>(a.lse)[row] = highest + rest;
  static_cast<S*>(a.logp)[row] = S(get_one(x + a.ids[row])) - (highest + rest);
  static_cast<S*>(a.entropy)[row] = rest - sum(times) / all;
}

// grad (onehot(id) - softmax)
template <class T>
void token_logp_backward(const tmem::TokenLogp& a, int64_t row) {
  using S = typename Compute<T>::scalar;
  const T* x = static_cast<const T*>(a.logits) + row * a.logits_row;
  T* out = static_cast<T*>(a.out) + row * a.width;
  const S grad = static_cast<const S*>(a.grad)[row], lse = static_cast<const S*>(a.lse)[row];
  using vec = typename Compute<T>::vec;
  each<T>(a.width, TMEM_EACH {
    const vec y = load_some(x + d, left) - lse, p = choose(y != y, y, exp_of(y));
    store_some(out + d, choose(y < LEAST<S>, vec{}, p) * -grad, left);
  });
  const int64_t id = a.ids[row];
  put_one(out + id, S(grad - grad * S(__builtin_exp(S(get_one(x + id)) - lse))));
}

}  // namespace
