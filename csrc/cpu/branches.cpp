// Launchers of attend_branches: where every row's texts lie, then one task for each of them and head of k; in backward, where what
// all texts of a row leave of its beginning is added up in their order, one for each row and head of k.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "launch.h"

namespace tmem {

namespace {

// What forward and backward read alike, checked.
struct Texts {
  Tensor q, k, v, runs;
  AttendBranches a = {};
  int64_t rows, width;

  Texts(const char* op, const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& runs_, double scale, int64_t window)
      : q(q_), k(k_), v(v_), runs(runs_) {
    check_activation(op, "q", q);
    check_dim(op, "q", q, 4);
    rows = q.size(0), width = q.size(3);
    const int64_t tokens = q.size(2);
    for (const auto& [name, x] : {std::pair<const char*, const Tensor&>{"k", k}, {"v", v}}) {
      check_dtype(op, name, x, q.scalar_type());
      check_dim(op, name, x, 4);
      check_size(op, name, x, 0, rows);
      check_size(op, name, x, 1, k.size(1));
      check_size(op, name, x, 2, tokens);
      check_size(op, name, x, 3, width);
    }
    const int64_t heads = k.size(1);
    STD_TORCH_CHECK(heads > 0 && q.size(1) > 0 && q.size(1) % heads == 0, op, ": q must have a multiple of k's ", heads,
                    " heads, got ", q.size(1));
    STD_TORCH_CHECK(window >= 0, op, ": window must be 0 (none) or more, got ", window);
    check_dtype(op, "runs", runs, ScalarType::Int);
    check_dim(op, "runs", runs, 2);
    STD_TORCH_CHECK(runs.size(0) == 1 || rows == 1 || runs.size(0) == rows, op, ": runs must have 1 or ", rows, " rows, got ",
                    runs.size(0));
    STD_TORCH_CHECK(runs.size(1) > 1, op, ": runs must have 2 columns or more, got ", runs.size(1));
    q = readable(q), k = readable(k), v = readable(v), runs = torch::stable::contiguous(runs);
    a.q = q.const_data_ptr(), a.k = k.const_data_ptr(), a.v = v.const_data_ptr();
    a.q_row = q.stride(0), a.q_head = q.stride(1), a.q_token = q.stride(2);
    a.k_row = k.stride(0), a.k_head = k.stride(1), a.k_token = k.stride(2);
    a.v_row = v.stride(0), a.v_head = v.stride(1), a.v_token = v.stride(2);
    a.runs = static_cast<const int32_t*>(runs.const_data_ptr());
    a.joined = rows == 1, a.rows = a.joined ? runs.size(0) : rows;
    a.count = runs.size(1) - 1, a.runs_row = runs.size(0) == 1 ? 0 : a.count + 1;
    a.tokens = tokens, a.heads = heads, a.share = q.size(1) / heads, a.width = width, a.window = window, a.scale = scale;
    for (int64_t row = 0; row < runs.size(0); row++) {
      const int32_t* own = a.runs + row * a.runs_row;
      const bool follows = a.joined && row;
      const int64_t before = follows ? own[-1] : 0;
      STD_TORCH_CHECK((follows ? own[0] >= before : own[0] == 0) && own[a.count] <= tokens, op, ": runs must go from ", before,
                      " to at most ", tokens, ", got ", own[0], " to ", own[a.count], " in row ", row);
      for (int64_t r = 0; r < a.count; r++) {
        STD_TORCH_CHECK(own[r] <= own[r + 1], op, ": runs must not decrease, got ", own[r], " then ", own[r + 1], " in row ", row);
        a.longest = std::max<int64_t>(a.longest, own[r + 1] - own[r] + (r ? own[1] - own[0] : 0));
      }
    }
  }

  // f(task, scratch) for tasks of a row's whole cost divided by `parts`.
  template <class F>
  void share_out(int64_t tasks, int64_t parts, F f) const {
    const int64_t numbers = kernels().attend_branches_scratch(a);
    const int64_t cost = 2 * a.share * a.tokens * a.longest * width / parts / (a.joined ? a.rows : 1);
    torch::stable::parallel_for(0, tasks, grain(cost), [&](int64_t first, int64_t end) {
      std::vector<char> scratch(numbers * (q.scalar_type() == ScalarType::Double ? 8 : 4));
      for (int64_t task = first; task < end; task++) f(task, scratch.data());
    });
  }
};

}  // namespace

std::tuple<Tensor, Tensor> attend_branches(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& runs, double scale,
                                           int64_t window) {
  Texts texts("attend_branches", q, k, v, runs, scale, window);
  AttendBranches& a = texts.a;
  const int64_t heads = q.size(1), bytes = heads * texts.width * q.element_size();
  const Tensor o = empty({texts.rows, a.tokens, heads, texts.width}, q.scalar_type());
  const Tensor lse = empty({texts.rows, heads, a.tokens}, accumulator(q));
  if (texts.rows == 0 || a.tokens == 0) return {o, lse};
  a.o = o.mutable_data_ptr(), a.lse = lse.mutable_data_ptr();
  const int64_t size = accumulator(q) == ScalarType::Double ? 8 : 4;
  for (int64_t text = 0; text < a.rows; text++) {
    const int64_t row = a.row_of_tensors(text), end = a.padding(text), left = a.padding_end(text) - end;
    if (bytes) std::memset(static_cast<char*>(a.o) + (row * a.tokens + end) * bytes, 0, left * bytes);
    for (int64_t h = 0; h < heads; h++)
      std::memset(static_cast<char*>(a.lse) + ((row * heads + h) * a.tokens + end) * size, 0, left * size);
  }
  const auto kernel = kernels().attend_branches[element_of(q)];
  texts.share_out(a.rows * a.heads * a.count, a.count, [&](int64_t task, void* scratch) {
    kernel(a, task / a.count / a.heads, task / a.count % a.heads, task % a.count, scratch);
  });
  return {o, lse};
}

// dq [B,H,T,D], dk and dv [B,G,T,D] of d_o; o and lse: what attend_branches gave.
std::tuple<Tensor, Tensor, Tensor> attend_branches_backward(const Tensor& d_o, const Tensor& q, const Tensor& k, const Tensor& v,
                                                            const Tensor& o, const Tensor& lse, const Tensor& runs, double scale,
                                                            int64_t window) {
  const char* op = "attend_branches_backward";
  Texts texts(op, q, k, v, runs, scale, window);
  AttendBranches& a = texts.a;
  for (const auto& [name, x] : {std::pair<const char*, const Tensor&>{"d_o", d_o}, {"o", o}}) {
    check_dtype(op, name, x, q.scalar_type());
    check_dim(op, name, x, 4);
    check_size(op, name, x, 0, texts.rows);
    check_size(op, name, x, 1, a.tokens);
    check_size(op, name, x, 2, q.size(1));
    check_size(op, name, x, 3, texts.width);
  }
  check_dtype(op, "lse", lse, accumulator(q));
  check_dim(op, "lse", lse, 3);
  check_size(op, "lse", lse, 0, texts.rows);
  check_size(op, "lse", lse, 1, q.size(1));
  check_size(op, "lse", lse, 2, a.tokens);
  const Tensor grad = readable(d_o), out = torch::stable::contiguous(o), logs = torch::stable::contiguous(lse);
  const Tensor dq = empty({texts.rows, q.size(1), a.tokens, texts.width}, q.scalar_type());
  const Tensor dk = empty({texts.rows, a.heads, a.tokens, texts.width}, q.scalar_type());
  const Tensor dv = empty({texts.rows, a.heads, a.tokens, texts.width}, q.scalar_type());
  if (texts.rows == 0 || a.tokens == 0) return {dq, dk, dv};
  a.backward = true;
  a.grad = grad.const_data_ptr(), a.grad_row = grad.stride(0), a.grad_token = grad.stride(1), a.grad_head = grad.stride(2);
  a.o = const_cast<void*>(out.const_data_ptr()), a.lse = const_cast<void*>(logs.const_data_ptr());  // read only
  a.dq = dq.mutable_data_ptr(), a.dk = dk.mutable_data_ptr(), a.dv = dv.mutable_data_ptr();
  const auto kernel = kernels().attend_branches_backward[element_of(q)];
  texts.share_out(a.rows * a.heads, 1,
                  [&](int64_t task, void* scratch) { kernel(a, task / a.heads, task % a.heads, scratch); });
  return {dq, dk, dv};
}

STABLE_TORCH_LIBRARY_IMPL(tmem, CPU, m) {
  m.impl("attend_branches", TORCH_BOX(&attend_branches));
  m.impl("attend_branches_backward", TORCH_BOX(&attend_branches_backward));
}

}  // namespace tmem
