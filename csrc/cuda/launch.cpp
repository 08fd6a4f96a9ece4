// Launchers of the CUDA kernels: tensors checked before a pointer is taken. Values on the device are not read, which would
// wait for it: the kernels bound what they index by themselves.
#include <optional>
#include <vector>

#include "kernels.cuh"
#include "launch.cuh"

namespace tmem {

static void check_column(const char* op, const char* name, const Tensor& x, const Tensor& like, ScalarType dtype,
                         int64_t size) {
  check_tensor(op, name, x, like, 1);
  check_dtype(op, name, x, dtype);
  check_size(op, name, x, 0, size);
}

static cuda::Type type_of(const char* op, const char* name, const Tensor& x) {
  const ScalarType t = x.scalar_type();
  STD_TORCH_CHECK(t == ScalarType::Float || t == ScalarType::BFloat16 || t == ScalarType::Half, op, ": ", name,
                  " must be Float, BFloat16 or Half on a GPU, got ", torch::headeronly::toString(t));
  return t == ScalarType::BFloat16 ? cuda::BF16 : t == ScalarType::Half ? cuda::F16 : cuda::F32;
}

static void check_factor(const char* op, const char* name, const Tensor& f, const Tensor& like, int64_t slots,
                         int64_t ranks, int64_t width) {
  check_tensor(op, name, f, like, 3);
  check_factor(op, name, f, slots, ranks, width);
  type_of(op, name, f);
}

static cuda::Factor factor(const char* op, const char* name, const Tensor& f) {
  return {f.const_data_ptr(), type_of(op, name, f), f.size(0) == 1 ? 0 : f.stride(0), f.stride(1)};
}

void lora_decode_(const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& bt, const Tensor& row_slot,
                  const Tensor& rank, const Tensor& scale) {
  const char* op = "lora_decode_";
  check_tensor(op, "y", y, y, 2);
  check_tensor(op, "x", x, y, 2);
  check_tensor(op, "a", a, y, 3);
  const int64_t rows = y.size(0), slots = rank.numel(), ranks = a.size(1), width = x.size(1), outputs = y.size(1);
  check_size(op, "x", x, 0, rows);
  check_dtype(op, "x", x, y.scalar_type());
  STD_TORCH_CHECK(ranks <= cuda::MOST_RANKS, op, ": the CUDA kernel holds stored ranks up to ", cuda::MOST_RANKS,
                  ", got ", ranks, "; use a smaller rank");
  check_factor(op, "a", a, y, slots, ranks, width);
  check_factor(op, "bt", bt, y, slots, ranks, outputs);
  check_size(op, "bt", bt, 0, slots);
  check_column(op, "row_slot", row_slot, y, ScalarType::Int, rows);
  check_column(op, "rank", rank, y, ScalarType::Int, slots);
  check_column(op, "scale", scale, y, ScalarType::Float, slots);

  const OnDevice device(op, y);
  Written written(y);
  const Tensor lines = readable(x), down = readable(a), up = readable(bt);
  const Tensor names = readable(row_slot), ranks_of = readable(rank), scales = readable(scale);
  const Tensor planes = torch::stable::new_empty(y, {cuda::slices(width), rows, ranks}, ScalarType::Float);
  cuda::Decode d = {};
  d.x = lines.const_data_ptr(), d.x_stride = lines.stride(0);
  d.y = written.rows().mutable_data_ptr(), d.y_stride = written.rows().stride(0);
  d.type = type_of(op, "y", y), d.a = factor(op, "a", down), d.bt = factor(op, "bt", up);
  d.row_slot = read<int32_t>(names), d.rank = read<int32_t>(ranks_of), d.scale = read<float>(scales);
  d.planes = static_cast<float*>(planes.mutable_data_ptr());
  d.rows = rows, d.slots = slots, d.ranks = ranks, d.width = width, d.outputs = outputs;
  check(op, cuda::decode(d, device.stream));
  written.finish();
}

Tensor bank_step_(const Tensor& param, const Tensor& grad, std::optional<Tensor> m, std::optional<Tensor> v,
                  const Tensor& step, const Tensor& hyper, const Tensor& active, std::optional<Tensor> copy, bool clear,
                  std::optional<Tensor> squares) {
  const char* op = "bank_step_";
  check_tensor(op, "param", param, param, 2);
  const int64_t rows = param.size(0), width = param.size(1);
  STD_TORCH_CHECK(m.has_value() == v.has_value(), op, ": give both m and v (AdamW) or neither (SGD), got only ",
                  m ? "m" : "v");
  const auto check_bank = [&](const char* name, const Tensor& x, ScalarType dtype) {
    check_tensor(op, name, x, param, 2);
    check_dtype(op, name, x, dtype);
    check_size(op, name, x, 0, rows);
    check_size(op, name, x, 1, width);
  };
  check_bank("param", param, ScalarType::Float);
  check_bank("grad", grad, ScalarType::Float);
  if (m) check_bank("m", *m, ScalarType::Float), check_bank("v", *v, ScalarType::Float);
  const bool half = copy && copy->scalar_type() == ScalarType::Half;
  if (copy) check_bank("copy", *copy, half ? ScalarType::Half : ScalarType::BFloat16);
  if (squares) {
    check_tensor(op, "squares", *squares, param, 2);
    check_dtype(op, "squares", *squares, ScalarType::Double);
    check_size(op, "squares", *squares, 0, rows);
  }
  check_column(op, "step", step, param, ScalarType::Int, rows);
  check_column(op, "active", active, param, ScalarType::Bool, rows);
  check_tensor(op, "hyper", hyper, param, 2);
  const bool in_double = hyper.scalar_type() == ScalarType::Double;
  check_dtype(op, "hyper", hyper, in_double ? ScalarType::Double : ScalarType::Float);
  check_size(op, "hyper", hyper, 0, rows);
  check_size(op, "hyper", hyper, 1, 6);

  const OnDevice device(op, param);
  Written p(param), g(grad), first(m ? *m : param), second(v ? *v : param), third(copy ? *copy : param);
  const auto at = [](const Written& x) { return static_cast<float*>(x.rows().mutable_data_ptr()); };
  const Tensor settings = readable(hyper), flags = torch::stable::contiguous(active);
  Tensor count = torch::stable::contiguous(step);
  const Tensor norms = torch::stable::new_empty(param, {rows}, ScalarType::Float);
  const int64_t sums = squares ? squares->size(1) : cuda::stretches(width);
  const Tensor partial = squares ? torch::stable::contiguous(*squares)
                                 : torch::stable::new_empty(param, {rows, sums}, ScalarType::Double);
  const Tensor come = torch::stable::new_zeros(param, {2}, ScalarType::Int);
  const Tensor scalars =
      torch::stable::new_empty(param, {rows, static_cast<int64_t>(sizeof(cuda::Scalars))}, ScalarType::Byte);
  cuda::Step s = {};
  s.param = at(p), s.param_stride = p.rows().stride(0);
  s.grad = at(g), s.grad_stride = g.rows().stride(0);
  if (m) s.m = at(first), s.m_stride = first.rows().stride(0), s.v = at(second), s.v_stride = second.rows().stride(0);
  if (copy)
    s.copy = third.rows().mutable_data_ptr(), s.copy_stride = third.rows().stride(0);
  s.copy_type = half ? cuda::F16 : cuda::BF16;
  s.step = static_cast<int32_t*>(count.mutable_data_ptr());
  s.hyper = settings.const_data_ptr(), s.hyper_stride = settings.stride(0), s.hyper_double = in_double;
  s.clear = clear;
  s.active = read<bool>(flags);
  s.norm = static_cast<float*>(norms.mutable_data_ptr());
  s.summed = squares.has_value(), s.sums = sums;
  s.partial = static_cast<double*>(partial.mutable_data_ptr());
  s.come = static_cast<int32_t*>(come.mutable_data_ptr());
  s.scalars = static_cast<cuda::Scalars*>(scalars.mutable_data_ptr());
  s.rows = rows, s.width = width;
  check(op, cuda::step(s, device.stream));
  p.finish(), g.finish();
  if (m) first.finish(), second.finish();
  if (copy) third.finish();
  if (count.get() != step.get()) {
    Tensor whole = step;
    torch::stable::copy_(whole, count);
  }
  return norms;
}

void bank_copy_(const std::vector<Tensor>& matrices, const Tensor& source, const Tensor& target) {
  const char* op = "bank_copy_";
  STD_TORCH_CHECK(!matrices.empty(), op, ": matrices must hold at least one tensor, got none");
  const Tensor& like = matrices[0];
  const int64_t rows = like.dim() ? like.size(0) : 0, count = source.numel();
  for (const Tensor& matrix : matrices) {
    STD_TORCH_CHECK(here(matrix, like), op, ": matrices must all be on the GPU of the first");
    STD_TORCH_CHECK(matrix.dim() >= 1 && matrix.size(0) == rows, op, ": matrices must have ", rows, " rows each");
  }
  check_column(op, "source", source, like, ScalarType::Int, count);
  check_column(op, "target", target, like, ScalarType::Int, count);
  STD_TORCH_CHECK(count <= 65535, op, ": at most 65535 rows at once, got ", count);

  const OnDevice device(op, like);
  const Tensor from = readable(source), to = readable(target);
  for (size_t first = 0; first < matrices.size(); first += cuda::MOST_MATRICES) {
    cuda::Copy c = {};
    c.source = read<int32_t>(from), c.target = read<int32_t>(to), c.rows = rows, c.count = count;
    std::vector<Tensor> dense;  // with the rows of each matrix as one run of bytes
    for (size_t i = first; i < matrices.size() && c.matrices < cuda::MOST_MATRICES; i++, c.matrices++) {
      const Tensor& matrix = matrices[i];
      int64_t run = 1;
      bool whole = true;
      for (int64_t dim = matrix.dim() - 1; dim > 0; run *= matrix.size(dim--))
        whole = whole && (matrix.size(dim) <= 1 || matrix.stride(dim) == run);
      dense.push_back(whole ? matrix : torch::stable::contiguous(matrix));
      c.data[c.matrices] = static_cast<char*>(dense.back().mutable_data_ptr());
      c.bytes[c.matrices] = run * matrix.element_size();
      c.stride[c.matrices] = dense.back().stride(0) * matrix.element_size();
    }
    check(op, cuda::copy(c, device.stream));
    for (size_t i = 0; i < dense.size(); i++)
      if (dense[i].get() != matrices[first + i].get()) {
        Tensor matrix = matrices[first + i];
        torch::stable::copy_(matrix, dense[i]);
      }
  }
}

STABLE_TORCH_LIBRARY_IMPL(tmem, TMEM_KEY, m) {
  m.impl("lora_decode_", TORCH_BOX(&lora_decode_));
  m.impl("bank_step_", TORCH_BOX(&bank_step_));
  m.impl("bank_copy_", TORCH_BOX(&bank_copy_));
}

}  // namespace tmem
