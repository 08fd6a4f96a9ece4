// Vectors of 64 bytes, whatever a register holds: the lane order, hence every sum, is that of every instruction set. Included
// only by isa.cpp, once per instruction set; all of it is file-local.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __F16C__
#include <immintrin.h>
#endif

#include "two.h"

namespace {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

#if defined(__AVX512F__)
constexpr int BYTES = 64, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int BYTES = 32, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int BYTES = 16, REGISTERS = 32;
#else
constexpr int BYTES = 16, REGISTERS = 16;
#endif
// Vectors that all registers hold. A tile of sums takes half of them, the rest is for what it reads: of sums that lie along a row
// it has ROWS times ACROSS vectors, of dot products DOT_ROWS times DOT_ACROSS.
constexpr int VECTORS = REGISTERS * BYTES / 64, SUMS = VECTORS / 2;
constexpr int ROWS = SUMS < 4 ? SUMS : 4, ACROSS = SUMS / ROWS;
constexpr int DOT_ROWS = SUMS < 16 ? 2 : 4, DOT_ACROSS = SUMS / DOT_ROWS;

template <class T, int BYTES_OF = BYTES>
struct Register {
  typedef T type __attribute__((vector_size(BYTES_OF)));
};
// Of 64 bytes, or as many as are asked for.
template <class T, int OF = 64, bool ONE = (OF <= BYTES)>
struct Vector {
  using type = typename Register<T, OF>::type;
};
template <class T, int OF>
struct Vector<T, OF, false> {
  using type = Two<typename Vector<T, OF / 2>::type>;
};

using f32v = Vector<float>::type;
using f64v = Vector<double>::type;
using i32v = Vector<int32_t>::type;
using i64v = Vector<int64_t>::type;
using u32v = Vector<uint32_t>::type;

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

// V from memory and back, register by register.
template <class V>
struct Memory {
  static TMEM_INLINE_MEMBER V get(const void* p) {
    V x;
    memcpy(&x, p, sizeof x);
    return x;
  }
  static TMEM_INLINE_MEMBER void put(void* p, V x) { memcpy(p, &x, sizeof x); }
};
template <class H>
struct Memory<Two<H>> {
  static TMEM_INLINE_MEMBER Two<H> get(const void* p) {
    return {Memory<H>::get(p), Memory<H>::get(static_cast<const char*>(p) + sizeof(H))};
  }
  static TMEM_INLINE_MEMBER void put(void* p, Two<H> x) {
    Memory<H>::put(p, x.lo);
    Memory<H>::put(static_cast<char*>(p) + sizeof(H), x.hi);
  }
};
TMEM_INLINE f32v load(const float* p) { return Memory<f32v>::get(p); }
TMEM_INLINE f64v load(const double* p) { return Memory<f64v>::get(p); }
TMEM_INLINE void store(float* p, f32v x) { Memory<f32v>::put(p, x); }
TMEM_INLINE void store(double* p, f64v x) { Memory<f64v>::put(p, x); }

// 16 numbers of 16 bits from memory, widened, and back, their upper halves cut off.
#if defined(__AVX512F__)
constexpr __mmask16 ALL = 0xffff;  // of the plain intrinsics GCC 12 warns that they begin with what is not initialised
TMEM_INLINE u32v widened(const void* p) {
  return (u32v)_mm512_maskz_cvtepu16_epi32(ALL, _mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
TMEM_INLINE void put_low(void* p, u32v x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(ALL, (__m512i)x));
}
#elif defined(__AVX2__)
TMEM_INLINE u32v widened(const void* p) {
  const __m128i* half = static_cast<const __m128i*>(p);
  using H = Vector<uint32_t, 32>::type;
  return {(H)_mm256_cvtepu16_epi32(_mm_loadu_si128(half)), (H)_mm256_cvtepu16_epi32(_mm_loadu_si128(half + 1))};
}
TMEM_INLINE void put_low(void* p, u32v x) {
  x = x & 0xffffu;
  const __m256i packed = _mm256_packus_epi32((__m256i)x.lo, (__m256i)x.hi);  // by halves of 16 bytes
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
#else
TMEM_INLINE u32v widened(const void* p) {
  uint16_t half[16];
  uint32_t whole[16];
  memcpy(half, p, sizeof half);
  for (int i = 0; i < 16; i++) whole[i] = half[i];
  return Memory<u32v>::get(whole);
}
TMEM_INLINE void put_low(void* p, u32v x) {
  uint16_t half[16];
  uint32_t whole[16];
  Memory<u32v>::put(whole, x);
  for (int i = 0; i < 16; i++) half[i] = static_cast<uint16_t>(whole[i]);
  memcpy(p, half, sizeof half);
}
#endif

TMEM_INLINE f32v load(const bf16* p) { return (f32v)(widened(p) << 16); }
TMEM_INLINE f32v load(const f16* p) {
#if defined(__AVX512F__)
  return (f32v)_mm512_maskz_cvtph_ps(ALL, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  const __m128i* half = reinterpret_cast<const __m128i*>(p);
  using H = Vector<float, 32>::type;
  return {(H)_mm256_cvtph_ps(_mm_loadu_si128(half)), (H)_mm256_cvtph_ps(_mm_loadu_si128(half + 1))};
#else
  const u32v bits = widened(p), size = bits & 0x7fffu, special = (u32v)(size >= 0x7c00u);
  const f32v scaled = (f32v)(size << 13) * 0x1p112f;  // subnormals too
  const u32v infinite = (size << 13) | 0x7f800000u;
  return (f32v)((special & infinite) | (~special & (u32v)scaled) | (bits & 0x8000u) << 16);
#endif
}

// The bits of a bf16 in the upper half, and below them what is cut off. To nearest, ties to even; NaN becomes the quiet NaN
// 0x7fc0.
TMEM_INLINE u32v to_bf16(f32v x) {
  const u32v bits = (u32v)x, nan = (u32v)(x != x);
  return (nan & 0x7fc00000u) | (~nan & (bits + 0x7fffu + ((bits >> 16) & 1u)));
}
TMEM_INLINE void store(bf16* p, f32v x) { put_low(p, to_bf16(x) >> 16); }
// To nearest, ties to even; from 65520 on infinity.
TMEM_INLINE void store(f16* p, f32v x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(ALL, (__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  __m128i* half = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(half, _mm256_cvtps_ph((__m256)x.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(half + 1, _mm256_cvtps_ph((__m256)x.hi, _MM_FROUND_TO_NEAREST_INT));
#else
  const u32v bits = (u32v)x, size = bits & 0x7fffffffu;
  const u32v normal = (size + 0xfffu + ((size >> 13) & 1u) - (112u << 23)) >> 13;
  const u32v small = (u32v)((f32v)size + 0.5f) - 0x3f000000u;  // the last bit of numbers from 0.5 on is the least subnormal
  const u32v below = (u32v)(size < 0x38800000u), above = (u32v)(size >= 0x47800000u), nan = (u32v)(size > 0x7f800000u);
  const u32v finite = (below & small) | (~below & normal);
  const u32v rounded = (nan & 0x7e00u) | (~nan & ((above & 0x7c00u) | (~above & finite)));
  put_low(p, rounded | (bits >> 16 & 0x8000u));
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
// One element.
TMEM_INLINE float get_one(const float* p) { return *p; }
TMEM_INLINE double get_one(const double* p) { return *p; }
TMEM_INLINE void put_one(float* p, float x) { *p = x; }
TMEM_INLINE void put_one(double* p, double x) { *p = x; }
template <class T>
TMEM_INLINE float get_one(const T* p) {
  float all[16];
  store(all, load_first(p, 1));
  return all[0];
}
template <class T>
TMEM_INLINE void put_one(T* p, float x) {
  store_first(p, f32v{} + x, 1);
}
// The next `left` elements, or a whole vector of them.
template <class T>
TMEM_INLINE typename Compute<T>::vec load_some(const T* p, int64_t left) {
  return left < Compute<T>::lanes ? load_first(p, left) : load(p);
}
template <class T>
TMEM_INLINE void store_some(T* p, typename Compute<T>::vec x, int64_t left) {
  left < Compute<T>::lanes ? store_first(p, x, left) : store(p, x);
}

// Each lane as a number of another type, of as many bytes.
template <class G, class V>
struct Converted {
  static TMEM_INLINE_MEMBER G of(V x) { return __builtin_convertvector(x, G); }
};
template <class G, class H>
struct Converted<Two<G>, Two<H>> {
  static TMEM_INLINE_MEMBER Two<G> of(Two<H> x) { return {Converted<G, H>::of(x.lo), Converted<G, H>::of(x.hi)}; }
};
// The next 8 elements in double.
TMEM_INLINE f64v load_double(const float* p) {
#if defined(__AVX512F__)
  return (f64v)_mm512_maskz_cvtps_pd((__mmask8)0xff, _mm256_loadu_ps(p));
#elif defined(__AVX__)
  using H = Vector<double, 32>::type;
  return {(H)_mm256_cvtps_pd(_mm_loadu_ps(p)), (H)_mm256_cvtps_pd(_mm_loadu_ps(p + 4))};
#else
  double x[8];
  for (int i = 0; i < 8; i++) x[i] = p[i];
  return load(x);
#endif
}

// Sum of the lanes, always as a tree that adds the upper half to the lower half.
#ifdef __clang__
#define TMEM_SHUFFLE(x, mask, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#define TMEM_SHUFFLE_TWO(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define TMEM_SHUFFLE(x, mask, ...) __builtin_shuffle(x, (mask){__VA_ARGS__})
#define TMEM_SHUFFLE_TWO(x, y, ...) __builtin_shuffle(x, y, (i32v){__VA_ARGS__})
#endif
using Places32 = Vector<int32_t, BYTES>::type;
using Places64 = Vector<int64_t, BYTES>::type;
TMEM_INLINE float sum(Vector<float, BYTES>::type x) {
#if defined(__AVX512F__)
  x += TMEM_SHUFFLE(x, Places32, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  x += TMEM_SHUFFLE(x, Places32, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  x += TMEM_SHUFFLE(x, Places32, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
#elif defined(__AVX__)
  x += TMEM_SHUFFLE(x, Places32, 4, 5, 6, 7, 0, 1, 2, 3);
  x += TMEM_SHUFFLE(x, Places32, 2, 3, 0, 1, 6, 7, 4, 5);
#else
  x += TMEM_SHUFFLE(x, Places32, 2, 3, 0, 1);
#endif
  return x[0] + x[1];
}
TMEM_INLINE double sum(Vector<double, BYTES>::type x) {
#if defined(__AVX512F__)
  x += TMEM_SHUFFLE(x, Places64, 4, 5, 6, 7, 0, 1, 2, 3);
  x += TMEM_SHUFFLE(x, Places64, 2, 3, 0, 1, 6, 7, 4, 5);
#elif defined(__AVX__)
  x += TMEM_SHUFFLE(x, Places64, 2, 3, 0, 1);
#endif
  return x[0] + x[1];
}
template <class H>
TMEM_INLINE auto sum(Two<H> x) {
  return sum(x.lo + x.hi);
}

#ifdef __AVX512F__
// The sums of four vectors, each as the tree of `sum`, in every lane of a quarter.
TMEM_INLINE f32v halves(f32v x, f32v y) {
  return TMEM_SHUFFLE_TWO(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         TMEM_SHUFFLE_TWO(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
TMEM_INLINE f32v sums(const f32v x[4]) {
  const f32v ab = halves(x[0], x[1]), cd = halves(x[2], x[3]);
  f32v all = TMEM_SHUFFLE_TWO(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
             TMEM_SHUFFLE_TWO(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  all += TMEM_SHUFFLE(all, Places32, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return all + TMEM_SHUFFLE(all, Places32, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}
// Those of four times four: lane 4 m + n has that of x[m][n].
TMEM_INLINE f32v sums(const f32v x[4][4]) {
  const f32v a = sums(x[0]), b = sums(x[1]), c = sums(x[2]), d = sums(x[3]);
  return TMEM_SHUFFLE_TWO(TMEM_SHUFFLE_TWO(a, b, 0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0),
                          TMEM_SHUFFLE_TWO(c, d, 0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0), 0, 1, 2, 3, 4, 5,
                          6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
}
#endif

// Lane by lane x where a comparison gave all ones, y where it gave zeros.
template <class M, class V>
TMEM_INLINE V choose(M which, V x, V y) {
  return (V)((which & (M)x) | (~which & (M)y));
}

TMEM_INLINE float root(float x) { return __builtin_sqrtf(x); }
TMEM_INLINE double root(double x) { return __builtin_sqrt(x); }
TMEM_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
TMEM_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace
