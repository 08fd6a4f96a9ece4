// A vector of 64 bytes where registers are shorter: two halves, each of which may be two again. GCC keeps a vector type that is
// longer than a register in memory, and stores and loads it for every operation.
#pragma once
#include <type_traits>
#include <utility>

#define TMEM_INLINE_MEMBER inline __attribute__((always_inline))
#define TMEM_INLINE static TMEM_INLINE_MEMBER

namespace {

template <class H>
struct Two {
  H lo, hi;
  template <class G>
  TMEM_INLINE_MEMBER explicit operator Two<G>() const {  // the same bits
    return {(G)lo, (G)hi};
  }
};

template <class V>
struct Lane {
  using type = std::remove_reference_t<decltype(std::declval<V&>()[0])>;
};
template <class H>
struct Lane<Two<H>> : Lane<H> {};

template <class H>
TMEM_INLINE Two<H> two(H lo, H hi) {
  return {lo, hi};
}

#define TMEM_BY_HALVES(op)                                 \
  template <class H>                                       \
  TMEM_INLINE auto operator op(Two<H> x, Two<H> y) {       \
    return two(x.lo op y.lo, x.hi op y.hi);                \
  }                                                        \
  template <class H, class S>                              \
  TMEM_INLINE auto operator op(Two<H> x, S y) {            \
    const auto z = (typename Lane<H>::type)y;              \
    return two(x.lo op z, x.hi op z);                      \
  }                                                        \
  template <class H, class S>                              \
  TMEM_INLINE auto operator op(S x, Two<H> y) {            \
    const auto z = (typename Lane<H>::type)x;              \
    return two(z op y.lo, z op y.hi);                      \
  }
#define TMEM_BY_HALVES_IN_PLACE(op)                        \
  template <class H, class Y>                              \
  TMEM_INLINE Two<H>& operator op##=(Two<H>& x, Y y) {     \
    return x = x op y;                                     \
  }
TMEM_BY_HALVES(+)
TMEM_BY_HALVES(-)
TMEM_BY_HALVES(*)
TMEM_BY_HALVES(/)
TMEM_BY_HALVES(&)
TMEM_BY_HALVES(|)
TMEM_BY_HALVES(<<)
TMEM_BY_HALVES(>>)
TMEM_BY_HALVES(<)
TMEM_BY_HALVES(>)
TMEM_BY_HALVES(>=)
TMEM_BY_HALVES(!=)
TMEM_BY_HALVES_IN_PLACE(+)
TMEM_BY_HALVES_IN_PLACE(*)
#undef TMEM_BY_HALVES
#undef TMEM_BY_HALVES_IN_PLACE

template <class H>
TMEM_INLINE Two<H> operator-(Two<H> x) {
  return {-x.lo, -x.hi};
}
template <class H>
TMEM_INLINE Two<H> operator~(Two<H> x) {
  return {~x.lo, ~x.hi};
}

// x, in registers from here on: of halves GCC would read what several products share from memory again for each.
template <class V>
TMEM_INLINE V held(V x) {
#ifdef __x86_64__
  if constexpr (sizeof x < 64) asm("" : "+x"(x));
#endif
  return x;
}
template <class H>
TMEM_INLINE Two<H> held(Two<H> x) {
  return {held(x.lo), held(x.hi)};
}

}  // namespace
