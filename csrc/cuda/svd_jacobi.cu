// svd_eigh and svd_small: one-sided Jacobi (Hestenes), a block for each matrix, in shared memory. Rotations of pairs of columns
// make all columns of A V orthogonal; their lengths are the singular values, to high relative accuracy. A sweep meets every
// pair once, in rounds of disjoint pairs (Brent & Luk 1985), a warp for each pair. Of a symmetric positive matrix, V holds
// eigenvectors and the lengths are the eigenvalues.
#include "run.cuh"
#include "svd.cuh"

namespace tmem::svd {

namespace {

constexpr int THREADS = 1024, WARPS = THREADS / 32, MOST_SWEEPS = 24;
constexpr int EACH = 6;  // elements of a column that a thread holds
static_assert(MOST_EIGH <= 32 * EACH && MOST_SMALL <= 32 * EACH, "a warp holds a column");
constexpr float TOLERANCE = 5e-7f;  // cosine of the angle between two columns that count as orthogonal
constexpr float SHORTEST = 8.7e-19f;  // 2^-60 of the largest entry: columns whose squares lose digits, which count as zero in U

__device__ __forceinline__ float over_warp(float x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

__device__ __forceinline__ float dot(const float* x, const float* y, int size, int lane) {
  float sum = 0.f;
  for (int i = lane; i < size; i += 32) sum = fmaf(x[i], y[i], sum);
  return over_warp(sum);
}

// A column in registers: element `lane` + 32 i in place i, zero past its end.
__device__ __forceinline__ void load(const float* column, int size, int lane, float (&out)[EACH]) {
#pragma unroll
  for (int i = 0; i < EACH; i++) out[i] = lane + 32 * i < size ? column[lane + 32 * i] : 0.f;
}

// x, y = c·x - s·y, s·x + c·y, from registers into the columns they came from.
__device__ __forceinline__ void rotate(const float (&x)[EACH], const float (&y)[EACH], float c, float s, int size, int lane,
                                       float* x_column, float* y_column) {
#pragma unroll
  for (int i = 0; i < EACH; i++)
    if (lane + 32 * i < size) {
      x_column[lane + 32 * i] = fmaf(c, x[i], -s * y[i]);
      y_column[lane + 32 * i] = fmaf(s, x[i], c * y[i]);
    }
}

__device__ __forceinline__ unsigned bits_of(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// Player i of round r of a tournament of `even` players: the first stays, the others move on by one.
__device__ __forceinline__ int player(int i, int round, int even) {
  const int moved = i - 1 + round;
  return i == 0 ? 0 : 1 + (moved < even - 1 ? moved : moved - (even - 1));
}

__global__ void __launch_bounds__(THREADS, 1) diagonalise(const Jacobi a) {
  ROOM(room);
  const int k = a.columns, lead = k | 1, t = threadIdx.x, warp = t / 32, lane = t % 32, count = a.count;
  float *work = room, *v = work + k * lead, *size = v + k * lead;  // columns one after another; lengths of columns
  int *order = reinterpret_cast<int*>(size + k), *turned = order + k;  // order[place] = column
  const float* in = a.a + blockIdx.x * static_cast<int64_t>(k) * k;
  // By the power of two that brings the largest entry near 1, so that no square overflows: its exponent is in the bits.
  unsigned* most = reinterpret_cast<unsigned*>(turned);
  if (t == 0) *most = 0;
  __syncthreads();
  unsigned largest = 0;
  for (int i = t; i < k * k; i += THREADS) largest = bits_of(in[i]) > largest ? bits_of(in[i]) : largest;
  atomicMax(most, largest);
  __syncthreads();
  const unsigned e = *most >> 23, exponent = e < 1 ? 1 : e > 253 ? 253 : e;  // neither power leaves the range
  const float down = __uint_as_float((254 - exponent) << 23), up = __uint_as_float(exponent << 23);
  __syncthreads();
  for (int i = t; i < k * k; i += THREADS) {
    work[i % k * lead + i / k] = in[i] * down;
    v[i % k * lead + i / k] = i % k == i / k ? 1.f : 0.f;
  }
  const int even = k + k % 2;
  for (int sweep = 0; sweep < MOST_SWEEPS; sweep++) {
    if (t == 0) *turned = 0;
    __syncthreads();
    for (int round = 0; round < even - 1; round++) {
      for (int pair = warp; pair < even / 2; pair += WARPS) {
        const int i = player(pair, round, even), j = player(even - 1 - pair, round, even);
        const int p = i < j ? i : j, q = i < j ? j : i;
        if (q >= k) continue;  // the one without a partner
        float x[EACH], y[EACH], xx = 0.f, yy = 0.f, xy = 0.f;
        load(work + p * lead, k, lane, x), load(work + q * lead, k, lane, y);
#pragma unroll
        for (int e = 0; e < EACH; e++) xx = fmaf(x[e], x[e], xx), yy = fmaf(y[e], y[e], yy), xy = fmaf(x[e], y[e], xy);
#pragma unroll
        for (int step = 16; step; step >>= 1) {  // three sums side by side: a shuffle's latency is paid once
          xx += __shfl_xor_sync(0xffffffffu, xx, step);
          yy += __shfl_xor_sync(0xffffffffu, yy, step);
          xy += __shfl_xor_sync(0xffffffffu, xy, step);
        }
        if (!(fabsf(xy) > TOLERANCE * sqrtf(xx) * sqrtf(yy))) continue;
        const float zeta = (yy - xx) / (2.f * xy);
        const float tangent = fabsf(zeta) > 1e9f ? 0.5f / zeta  // whose square would overflow
                                                 : copysignf(1.f, zeta) / (fabsf(zeta) + sqrtf(fmaf(zeta, zeta, 1.f)));
        const float c = 1.f / sqrtf(fmaf(tangent, tangent, 1.f)), s = c * tangent;
        rotate(x, y, c, s, k, lane, work + p * lead, work + q * lead);
        load(v + p * lead, k, lane, x), load(v + q * lead, k, lane, y);
        rotate(x, y, c, s, k, lane, v + p * lead, v + q * lead);
        if (lane == 0) *turned = 1;
      }
      __syncthreads();
    }
    const bool done = *turned == 0;
    __syncthreads();
    if (done) break;
  }
  for (int column = warp; column < k; column += WARPS) {
    // Hundreds of rotations, each rounded, leave V's columns longer or shorter by some units in the last place, and those of
    // A V with them.
    const float turned_length = sqrtf(dot(v + column * lead, v + column * lead, k, lane));
    for (int i = lane; i < k; i += 32) {
      v[column * lead + i] /= turned_length;
      work[column * lead + i] /= turned_length;
    }
    __syncwarp();
    const float length = sqrtf(dot(work + column * lead, work + column * lead, k, lane));
    if (lane == 0) size[column] = length;
  }
  __syncthreads();
  // Descending, equal ones by column. By the bits of the lengths, which order NaN too, as the largest: every place is taken.
  for (int column = t; column < k; column += THREADS) {
    const unsigned mine = bits_of(size[column]);
    int place = 0;
    for (int i = 0; i < k; i++) place += bits_of(size[i]) > mine || (bits_of(size[i]) == mine && i < column);
    order[place] = column;
  }
  __syncthreads();
  if (a.u) {
    for (int column = warp; column < k; column += WARPS)
      for (int i = lane; i < k; i += 32) work[column * lead + i] *= size[column] < SHORTEST ? 0.f : 1.f / size[column];
    __syncthreads();
    // What is zero becomes the unit vector least covered by the columns before it, made orthogonal to them twice.
    for (int place = 0; place < k && warp == 0; place++) {
      float* x = work + order[place] * lead;
      if (!(size[order[place]] < SHORTEST)) continue;
      float best = 2.f;
      int which = 0;
      for (int i = lane; i < k; i += 32) {
        float covered = 0.f;
        for (int c = 0; c < place; c++) covered = fmaf(work[order[c] * lead + i], work[order[c] * lead + i], covered);
        if (covered < best) best = covered, which = i;
      }
#pragma unroll
      for (int step = 16; step; step >>= 1) {
        const float other = __shfl_xor_sync(0xffffffffu, best, step);
        const int place_of = __shfl_xor_sync(0xffffffffu, which, step);
        if (other < best || (other == best && place_of < which)) best = other, which = place_of;
      }
      for (int i = lane; i < k; i += 32) x[i] = i == which ? 1.f : 0.f;
      __syncwarp();
      for (int pass = 0; pass < 2; pass++)
        for (int c = 0; c < place; c++) {
          const float* y = work + order[c] * lead;
          const float along = dot(x, y, k, lane);
          for (int i = lane; i < k; i += 32) x[i] = fmaf(-along, y[i], x[i]);
          __syncwarp();
        }
      const float length = sqrtf(dot(x, x, k, lane));
      for (int i = lane; i < k; i += 32) x[i] /= length;
      __syncwarp();
    }
    __syncthreads();
  }
  const int64_t out = blockIdx.x * static_cast<int64_t>(k) * count;
  for (int i = t; i < k * count; i += THREADS) {
    const int row = i / count, column = order[i % count];
    a.v[out + i] = v[column * lead + row];
    if (a.u) a.u[out + i] = work[column * lead + row];
  }
  if (t < count) a.s[blockIdx.x * static_cast<int64_t>(count) + t] = size[order[t]] * up;
}

}  // namespace

cudaError_t jacobi(const Jacobi& a, cudaStream_t stream) {
  if (a.b == 0 || a.columns == 0) return cudaSuccess;
  const int64_t k = a.columns;
  const size_t bytes = (2 * k * (k | 1) + 2 * k + 1) * sizeof(float);
  return cuda::run_with_room(diagonalise, dim3(a.b), THREADS, bytes, stream, a);
}

}  // namespace tmem::svd
