// What the launchers and the kernels agree on: plain pointers, sizes and strides (in elements), no torch.
#pragma once
#include <cstdint>

namespace tmem {

// Rows [off[g], off[g+1]) belong to slot[g], -1 = none; a slot computes with rank[slot] of the stored ranks.
struct Segments {
  const int32_t* off;
  const int32_t* slot;
  const int32_t* rank;
  int64_t count;
};

// Last dimension contiguous. A shared factor has slot_stride 0.
struct Factor {
  const void* data;
  int64_t slot_stride, rank_stride;
};

struct Shrink {  // z[m,j] = scale[slot] * sum_d v[m,d] * f[slot,j,d]
  Segments seg;
  const void* v;
  int64_t v_stride;
  Factor f;
  const float* scale;
  void* z;  // [rows, ranks], contiguous; every element is written
  int64_t ranks, width;
};

struct Expand {  // o[m,d] += sum_j z[m,j] * f[slot,j,d]
  Segments seg;
  void* o;
  int64_t o_stride;
  const void* z;
  int64_t z_stride;
  Factor f;
  int64_t width;
};

struct Gram {  // g[slot,j,d] += sum over one slot's rows of z[m,j] * v[m,d]
  Segments seg;
  void* g;
  int64_t g_slot_stride, g_rank_stride;
  const void* z;
  int64_t z_stride;
  const void* v;
  int64_t v_stride;
  bool fresh;    // what g holds counts as zero
  bool squares;  // those of what g then holds are summed
};

// Element types. A kernel of a pair takes an activation and a factor: double comes with double alone.
enum Element { F32, BF16, F16, F64, ELEMENTS };

struct Pair {
  Element activation, factor;
};

struct Update {  // one stretch of one row of the bank; scalars ready to use, m and v null for SGD, copy null if none is kept
  void *param, *grad, *m, *v, *copy;
  Element copy_type;  // BF16 or F16
  int64_t count;
  double clip, keep, rate, one_minus_beta1, beta2, one_minus_beta2, root_correction2, eps;
  bool clear;  // the gradient is zeroed
};

// c [rows, columns] = a x, or += if `add`; columns a multiple of 16. Element (i, k) of a lies at k*stride + i if along_rows,
// else at i*stride + k; rows of x [depth, columns] and of c lie x_row and c_row apart.
template <class S>
struct SkinnyOf {
  const S* a;
  int64_t stride;
  bool along_rows;
  const S* x;
  int64_t x_row;
  S* c;
  int64_t c_row;
  int64_t depth, columns;
  bool add;
};
using Skinny = SkinnyOf<float>;

// o[row, h] = sum over visible columns c of softmax(scale q[row, h] . k[row, g, c]) v[row, g, c], g = h / share; strides in
// elements, the width contiguous; o [rows, heads * share, width] contiguous.
struct Attend {
  const void *q, *k, *v;
  void* o;
  int64_t q_row, q_head, k_row, k_head, k_column, v_row, v_head, v_column;
  int64_t heads, share, width;
  double scale;
};

// Texts that share the beginning of a row. Run r of a row is its tokens [runs[r], runs[r + 1]); run 0 is the beginning. Rows are
// those of the tensors or, if `joined`, all in the one row that these have, one behind another. A token sees run 0 and, of its own
// run, itself and what is before it; of these the last `window` alone, if that is not 0. Strides in elements, the width contiguous;
// o [rows, tokens, heads * share, width], dq [rows, heads * share, tokens, width], dk and dv [rows, heads, tokens, width]
// contiguous; lse [rows, heads * share, tokens] in the accumulator's type.
struct AttendBranches {
  const void *q, *k, *v, *grad;  // grad and what is written beside it: backward alone
  void *o, *lse, *dq, *dk, *dv;
  int64_t q_row, q_head, q_token, k_row, k_head, k_token, v_row, v_head, v_token, grad_row, grad_token, grad_head;
  const int32_t* runs;
  int64_t rows, runs_row, count;  // rows of runs, and how many runs each has
  int64_t tokens, heads, share, width, window;
  double scale;
  int64_t longest;  // most columns that a token sees
  bool backward, joined;

  int64_t row_of_tensors(int64_t row) const { return joined ? 0 : row; }
  // What is behind a row's last run, up to the next row.
  int64_t padding(int64_t row) const { return runs[row * runs_row + count]; }
  int64_t padding_end(int64_t row) const { return joined && row + 1 < rows ? runs[(row + 1) * runs_row] : tokens; }
};
// Tokens times `share` that are computed together.
constexpr int64_t QUERIES = 96;

struct Product {  // y[m,n] = sum over k of x[m,k] w[n,k], + bias[n] if given; y [rows, outputs] contiguous
  const void *x, *w, *bias;
  void* y;
  int64_t x_row, w_row, rows, outputs, depth;
};

// h = residual + sum, n = h (mean(h²) + eps)^-1/2 (plus + weight); the sum is normed by `before` first, if given. before and
// weight in the accumulator's type; h and n [rows, width] contiguous.
struct TokenNorm {
  const void *residual, *before, *weight;
  void *h, *n;
  int64_t residual_row, width;
  double eps, plus;
};

struct TokenGlu {  // o [rows, width] contiguous
  void* o;
  int64_t width;
  bool gelu;
};

// Strides in elements, the size contiguous; cos, sin and the weights, which may be null, in the accumulator's type; out
// [rows, heads, size] contiguous. A row's k and v go to its column of keys and values.
struct TokenRope {
  const void *q, *k, *v, *cos, *sin, *q_weight, *k_weight;
  const int64_t* at;
  void *out, *keys, *values;
  int64_t q_row, k_row, v_row, cos_row, sin_row;
  int64_t key_row, key_head, key_column, value_row, value_head, value_column;
  int64_t heads, groups, columns, size;
  double eps, plus;
};

// Elements next to each other. f = silu or, with `gelu`, GELU by tanh.
struct GatedProduct {  // o = f(gate) up; backward d_gate = grad up f'(gate), d_up = grad f(gate)
  const void *gate, *up, *grad;
  void *o, *d_gate, *d_up;
  bool gelu;
};

// Contiguous rows. With `plus` 0, x (mean(x^2) + eps)^-1/2 is rounded before the product.
struct RmsNorm {  // y = x (mean(x^2) + eps)^-1/2 (plus + weight); backward dx of dy
  const void *x, *weight, *dy;
  void *y, *dx;
  int64_t width;
  double eps, plus;
};

// Rows of `width` logits, next to each other, and one of these a row; logp, lse, entropy and grad in the accumulator's type.
struct TokenLogp {  // logp = log softmax(logits)[id], lse = log Σ e^logits; backward out [rows, width] of grad
  const void *logits, *grad;
  const int64_t* ids;
  void *logp, *lse, *entropy, *out;  // backward reads lse
  int64_t logits_row, width;
};

// Heads with their width contiguous and even; strides in elements.
struct Rotate {  // o = x cos + (-x2, x1) sin; back: its transpose
  const void *x, *cos, *sin;
  void* o;
  int64_t x_row, x_token, x_head, o_row, o_token, o_head, cos_row, cos_token, sin_row, sin_token;
  int64_t tokens, heads, width;
  bool back;
};

constexpr int64_t DEPTH = 128;  // terms that are summed before the sum goes to memory

enum Weight { W_F32, W_BF16, W_F16, WEIGHTS };

// One set of kernels, compiled for one instruction set. Rows, and columns of g, are the caller's to share out: the bits
// of an output do not depend on how.
struct Kernels {
  const char* instructions;
  void (*shrink[ELEMENTS][ELEMENTS])(const Shrink&, int64_t first_row, int64_t end_row);
  void (*expand[ELEMENTS][ELEMENTS])(const Expand&, int64_t first_row, int64_t end_row);
  // One slot's segments, of which there is one; gives the sum of the squares, if it is asked for.
  double (*gram[ELEMENTS])(const Gram&, const int64_t* segments, int64_t count, int64_t first_column, int64_t end_column);
  double (*sum_of_squares[ELEMENTS])(const void* x, int64_t count);
  void (*update[ELEMENTS])(const Update&);
  void (*attend[ELEMENTS])(const Attend&, int64_t row, int64_t head, const int32_t* columns, int64_t count, void* scratch);
  // One run for one head of k, in forward; all runs for one in backward. scratch: see branches.h
  void (*attend_branches[ELEMENTS])(const AttendBranches&, int64_t row, int64_t head, int64_t run, void* scratch);
  void (*attend_branches_backward[ELEMENTS])(const AttendBranches&, int64_t row, int64_t head, void* scratch);
  int64_t (*attend_branches_scratch)(const AttendBranches&);  // how many numbers of the accumulator's type
  void (*product[ELEMENTS])(const Product&, int64_t first_output, int64_t end_output);
  void (*skinny)(const Skinny&, int64_t first_row, int64_t end_row);
  void (*widen[WEIGHTS])(const void* from, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns, float* out);
  float (*magnitude[WEIGHTS])(const void* from, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns);
  void (*token_norm[ELEMENTS])(const TokenNorm&, int64_t row, const void* sum);
  void (*token_glu[ELEMENTS])(const TokenGlu&, int64_t row, const void* gate, const void* up);
  void (*token_rope[ELEMENTS][ELEMENTS])(const TokenRope&, int64_t row, void* scratch);  // of q, k and v; of the cache
  void (*gated_product[ELEMENTS])(const GatedProduct&, int64_t first, int64_t end);  // first of whole vectors of 16
  void (*gated_product_backward[ELEMENTS])(const GatedProduct&, int64_t first, int64_t end);
  void (*rms_norm[ELEMENTS])(const RmsNorm&, int64_t first_row, int64_t end_row);
  // dw, of the accumulator's type, null or added to: the rows' sum, in order.
  void (*rms_norm_backward[ELEMENTS])(const RmsNorm&, int64_t first_row, int64_t end_row, void* dw);
  void (*token_logp[ELEMENTS])(const TokenLogp&, int64_t row);
  void (*token_logp_backward[ELEMENTS])(const TokenLogp&, int64_t row);
  void (*rotate[ELEMENTS])(const Rotate&, int64_t first_token, int64_t end_token);
};

const Kernels& kernels();  // the best set this processor runs

}  // namespace tmem
