// Vectors of 64 bytes in the compiler's own vector extension: the lane order, hence every sum, is the same whatever the
// instruction set splits them into. Included only by isa.cpp, once per instruction set; all of it is file-local.
#pragma once
#include <cstdint>
#include <cstring>

#define TMEM_INLINE static inline __attribute__((always_inline))

namespace {

struct bf16 {
  uint16_t bits;
};

typedef float f32v __attribute__((vector_size(64)));
typedef double f64v __attribute__((vector_size(64)));
typedef int32_t i32v __attribute__((vector_size(64)));
typedef int64_t i64v __attribute__((vector_size(64)));
typedef uint32_t u32v __attribute__((vector_size(64)));
typedef uint16_t u16h __attribute__((vector_size(32)));

// How an element is computed with: bf16 and float in float, double in double.
template <class T>
struct Compute {
  using scalar = float;
  using vec = f32v;
  static constexpr int lanes = 16;
};
template <>
struct Compute<double> {
  using scalar = double;
  using vec = f64v;
  static constexpr int lanes = 8;
};

TMEM_INLINE f32v load(const float* p) {
  f32v x;
  memcpy(&x, p, sizeof x);
  return x;
}
TMEM_INLINE f64v load(const double* p) {
  f64v x;
  memcpy(&x, p, sizeof x);
  return x;
}
TMEM_INLINE f32v load(const bf16* p) {
  u16h half;
  memcpy(&half, p, sizeof half);
  return (f32v)(__builtin_convertvector(half, u32v) << 16);
}

TMEM_INLINE void store(float* p, f32v x) { memcpy(p, &x, sizeof x); }
TMEM_INLINE void store(double* p, f64v x) { memcpy(p, &x, sizeof x); }
// To nearest, ties to even; NaN becomes the quiet NaN 0x7fc0.
TMEM_INLINE void store(bf16* p, f32v x) {
  const u32v bits = (u32v)x;
  const u32v rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const u32v nan = (u32v)(x != x);
  const u16h half = __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), u16h);
  memcpy(p, &half, sizeof half);
}

// The last n < lanes elements of a row: absent lanes are zero and are not stored.
template <class T>
TMEM_INLINE typename Compute<T>::vec load_first(const T* p, int64_t n) {
  T full[Compute<T>::lanes] = {};
  memcpy(full, p, n * sizeof(T));
  return load(full);
}
template <class T>
TMEM_INLINE void store_first(T* p, typename Compute<T>::vec x, int64_t n) {
  T full[Compute<T>::lanes];
  store(full, x);
  memcpy(p, full, n * sizeof(T));
}

// Sum of the lanes, always as a tree that adds the upper half to the lower half.
#ifdef __clang__
#define TMEM_SHUFFLE32(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#define TMEM_SHUFFLE64(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define TMEM_SHUFFLE32(x, ...) __builtin_shuffle(x, (i32v){__VA_ARGS__})
#define TMEM_SHUFFLE64(x, ...) __builtin_shuffle(x, (i64v){__VA_ARGS__})
#endif
TMEM_INLINE float sum(f32v x) {
  x += TMEM_SHUFFLE32(x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  x += TMEM_SHUFFLE32(x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  x += TMEM_SHUFFLE32(x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return x[0] + x[1];
}
TMEM_INLINE double sum(f64v x) {
  x += TMEM_SHUFFLE64(x, 4, 5, 6, 7, 0, 1, 2, 3);
  x += TMEM_SHUFFLE64(x, 2, 3, 0, 1, 6, 7, 4, 5);
  return x[0] + x[1];
}

TMEM_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
TMEM_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace
