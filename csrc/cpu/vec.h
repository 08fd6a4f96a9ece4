// Vectors of 64 bytes in the compiler's own vector extension: the lane order, hence every sum, is the same whatever the
// instruction set splits them into. Included only by isa.cpp, once per instruction set; all of it is file-local.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __F16C__
#include <immintrin.h>
#endif

#define TMEM_INLINE_MEMBER inline __attribute__((always_inline))
#define TMEM_INLINE static TMEM_INLINE_MEMBER

namespace {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

typedef float f32v __attribute__((vector_size(64)));
typedef double f64v __attribute__((vector_size(64)));
typedef int32_t i32v __attribute__((vector_size(64)));
typedef int64_t i64v __attribute__((vector_size(64)));
typedef uint32_t u32v __attribute__((vector_size(64)));
typedef uint16_t u16h __attribute__((vector_size(32)));

// How an element is computed with: bf16, f16 and float in float, double in double.
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
#ifdef __AVX512F__
constexpr __mmask16 ALL = 0xffff;  // of the plain intrinsics GCC 12 warns that they begin with what is not initialised
#endif
// Between 32 and 16 bits: GCC 12 takes several instructions for what AVX-512 has one.
TMEM_INLINE u32v longer(u16h x) {
#ifdef __AVX512F__
  return (u32v)_mm512_maskz_cvtepu16_epi32(ALL, (__m256i)x);
#else
  return __builtin_convertvector(x, u32v);
#endif
}
TMEM_INLINE u16h shorter(u32v x) {
#ifdef __AVX512F__
  return (u16h)_mm512_maskz_cvtepi32_epi16(ALL, (__m512i)x);
#else
  return __builtin_convertvector(x, u16h);
#endif
}
TMEM_INLINE f32v load(const bf16* p) {
  u16h half;
  memcpy(&half, p, sizeof half);
  return (f32v)(longer(half) << 16);
}
TMEM_INLINE f32v load(const f16* p) {
#if defined(__AVX512F__)
  return (f32v)_mm512_maskz_cvtph_ps(ALL, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  const __m256 part[2] = {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + 1))};
  f32v x;
  memcpy(&x, part, sizeof x);
  return x;
#else
  u16h half;
  memcpy(&half, p, sizeof half);
  const u32v bits = __builtin_convertvector(half, u32v), size = bits & 0x7fffu, special = (u32v)(size >= 0x7c00u);
  const f32v scaled = (f32v)(size << 13) * 0x1p112f;  // subnormals too
  const u32v infinite = (size << 13) | 0x7f800000u;
  return (f32v)((special & infinite) | (~special & (u32v)scaled) | (bits & 0x8000u) << 16);
#endif
}

TMEM_INLINE void store(float* p, f32v x) { memcpy(p, &x, sizeof x); }
TMEM_INLINE void store(double* p, f64v x) { memcpy(p, &x, sizeof x); }
// The bits of a bf16 in the upper half, and below them what is cut off. To nearest, ties to even; NaN becomes the quiet NaN
// 0x7fc0.
TMEM_INLINE u32v to_bf16(f32v x) {
  const u32v bits = (u32v)x, nan = (u32v)(x != x);
  return (nan & 0x7fc00000u) | (~nan & (bits + 0x7fffu + ((bits >> 16) & 1u)));
}
TMEM_INLINE void store(bf16* p, f32v x) {
  const u16h half = shorter(to_bf16(x) >> 16);
  memcpy(p, &half, sizeof half);
}
// To nearest, ties to even; from 65520 on infinity.
TMEM_INLINE void store(f16* p, f32v x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(ALL, (__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  __m256 part[2];
  memcpy(part, &x, sizeof x);
  for (int i = 0; i < 2; i++)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + i, _mm256_cvtps_ph(part[i], _MM_FROUND_TO_NEAREST_INT));
#else
  const u32v bits = (u32v)x, size = bits & 0x7fffffffu;
  const u32v normal = (size + 0xfffu + ((size >> 13) & 1u) - (112u << 23)) >> 13;
  const u32v small = (u32v)((f32v)size + 0.5f) - 0x3f000000u;  // the last bit of numbers from 0.5 on is the least subnormal
  const u32v below = (u32v)(size < 0x38800000u), above = (u32v)(size >= 0x47800000u), nan = (u32v)(size > 0x7f800000u);
  const u32v finite = (below & small) | (~below & normal);
  const u32v rounded = (nan & 0x7e00u) | (~nan & ((above & 0x7c00u) | (~above & finite)));
  const u16h half = __builtin_convertvector(rounded | (bits >> 16 & 0x8000u), u16h);
  memcpy(p, &half, sizeof half);
#endif
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
// The sums of four vectors, each as the tree of `sum`, in every lane of a quarter.
#ifdef __clang__
#define TMEM_SHUFFLE_TWO(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define TMEM_SHUFFLE_TWO(x, y, ...) __builtin_shuffle(x, y, (i32v){__VA_ARGS__})
#endif
TMEM_INLINE f32v halves(f32v x, f32v y) {
  return TMEM_SHUFFLE_TWO(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         TMEM_SHUFFLE_TWO(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
TMEM_INLINE f32v sums(const f32v x[4]) {
  const f32v ab = halves(x[0], x[1]), cd = halves(x[2], x[3]);
  f32v all = TMEM_SHUFFLE_TWO(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
             TMEM_SHUFFLE_TWO(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  all += TMEM_SHUFFLE32(all, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return all + TMEM_SHUFFLE32(all, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}
// Those of four times four: lane 4 m + n has that of x[m][n].
TMEM_INLINE f32v sums(const f32v x[4][4]) {
  const f32v a = sums(x[0]), b = sums(x[1]), c = sums(x[2]), d = sums(x[3]);
  return TMEM_SHUFFLE_TWO(TMEM_SHUFFLE_TWO(a, b, 0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0),
                          TMEM_SHUFFLE_TWO(c, d, 0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0), 0, 1, 2, 3, 4, 5,
                          6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
}

TMEM_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
TMEM_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace
