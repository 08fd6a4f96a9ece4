// Launcher of lora_gram_step_: gram and the optimizer's step of what it has just summed, which stays in the cache.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <vector>

#include "gram_launch.h"
#include "step_launch.h"

namespace tmem {

constexpr int64_t BLOCK = 64;      // columns that gram sums at once
constexpr int64_t HELD = 1 << 15;  // numbers of a gradient between gram and step
constexpr int64_t STEP = 16;       // multiply-adds that the step of an element is worth

// One stretch of a row whose gradient lies in u.grad; an element whose gradient is not finite stays as it is.
static void step_finite(Element element, Update u, int64_t size) {
  const auto finite = [&](int64_t i) {
    return std::isfinite(element == F64 ? static_cast<const double*>(u.grad)[i] : static_cast<const float*>(u.grad)[i]);
  };
  const auto onward = [](void* x, int64_t bytes) -> void* { return x ? static_cast<char*>(x) + bytes : nullptr; };
  const int64_t count = u.count;
  for (int64_t i = 0; i < count; i++) {
    if (!finite(i)) continue;
    Update one = u;
    one.count = 1;
    for (void** x : {&one.param, &one.grad, &one.m, &one.v}) *x = onward(*x, i * size);
    one.copy = onward(u.copy, 2 * i);
    kernels().update[element](one);
  }
}

// Columns of a task. The step reads memory in runs of as many, the longer the faster; their gradient must stay in the cache,
// and all threads must have some.
static int64_t columns_of(int64_t slots, int64_t ranks, int64_t width) {
  const int64_t threads = torch::stable::get_num_threads();
  int64_t columns = std::max(BLOCK, HELD / std::max<int64_t>(1, ranks) / BLOCK * BLOCK);
  while (columns > BLOCK && slots * ((width + columns - 1) / columns) < 2 * threads)
    columns = (columns / 2 + BLOCK - 1) / BLOCK * BLOCK;
  return columns;
}

void lora_gram_step_(const Tensor& param, std::optional<Tensor> m, std::optional<Tensor> v, const Tensor& step,
                     const Tensor& hyper, const Tensor& z, const Tensor& dy, const Tensor& seg_off,
                     const Tensor& seg_slot, const Tensor& rank, std::optional<Tensor>, std::optional<Tensor> copy,
                     std::optional<Tensor> squares) {
  const char* op = "lora_gram_step_";
  const Descriptor descriptor = check_gram(op, z, "dy", dy, seg_off, seg_slot, rank);
  const Segments& seg = descriptor.segments();
  const auto check = [&](const char* name, const Tensor& x) {
    check_dtype(op, name, x, accumulator(dy));
    check_gradient_sizes(op, name, x, z, dy, descriptor.slots());
  };
  check("param", param);
  check_pair(op, m, v);
  if (m) check("m", *m), check("v", *v);
  if (copy) {
    check_half(op, "copy", *copy);
    check_gradient_sizes(op, "copy", *copy, z, dy, descriptor.slots());
  }
  check_column(op, "step", step, ScalarType::Int, descriptor.slots());
  check_hyper(op, hyper, descriptor.slots());
  if (squares) check_squares(op, *squares, dy, descriptor.slots());

  const BySlot by(descriptor);
  std::vector<Update> updates(descriptor.slots());
  for (const int64_t s : by.slots()) {
    const Hyper h = hyper_of(hyper, s);
    STD_TORCH_CHECK(!(h.clip > 0), op, ": hyper of slot ", s, " asks for a clip, which is of the norm of a whole row; got ",
                    h.clip);
    const int32_t t = static_cast<const int32_t*>(step.const_data_ptr())[s * step.stride(0)] + 1;
    updates[s] = m ? adam_scalars(h, 0, t) : sgd_scalars(h, 0);
    updates[s].copy_type = copy ? element_of(*copy) : BF16;
  }

  Written p(param), first(m ? *m : param), second(v ? *v : param), third(copy ? *copy : param);
  const Tensor rows = readable(z), lines = readable(dy);
  const Element element = element_of(param);
  const int64_t size = param.element_size(), ranks = z.size(1), width = dy.size(1);
  const int64_t each = columns_of(by.slots().size(), ranks, width);
  const int64_t stride = each + 16;  // of a rank's gradient: those of a power of two would share few places of the cache
  const auto kernel = kernels().gram[element_of(dy)];
  const auto at = [](const Tensor& x, const Columns& columns, int64_t j) -> void* {
    const int64_t i = columns.slot * x.stride(0) + j * x.stride(1) + columns.first;
    return static_cast<char*>(x.mutable_data_ptr()) + i * x.element_size();
  };
  torch::stable::parallel_for(
      0, by.tasks(width, each), grain((by.rows(dy.size(0)) + STEP) * ranks * each), [&](int64_t begin, int64_t end) {
        std::vector<char> gradient(ranks * stride * size);
        for (int64_t task = begin; task < end; task++) {
          const Columns columns = by.task(task, width, each);
          const Gram a = {seg, gradient.data(), 0, stride, rows.const_data_ptr(), rows.stride(0),
                          static_cast<const char*>(lines.const_data_ptr()) + columns.first * lines.element_size(),
                          lines.stride(0), true, true};
          const int64_t mine = seg.rank[columns.slot];
          const double sum = kernel(a, by.of(columns.slot), by.count(columns.slot), 0, columns.count);
          if (squares) store_squares(*squares, columns, sum);
          for (int64_t j = 0; j < mine; j++) {
            Update u = updates[columns.slot];
            u.count = columns.count;
            u.grad = gradient.data() + j * stride * size;
            u.param = at(p.rows(), columns, j);
            u.m = m ? at(first.rows(), columns, j) : nullptr;
            u.v = v ? at(second.rows(), columns, j) : nullptr;
            u.copy = copy ? at(third.rows(), columns, j) : nullptr;
            if (std::isfinite(sum))
              kernels().update[element](u);
            else
              step_finite(element, u, size);
          }
        }
      });
  p.finish();
  if (m) first.finish(), second.finish();
  if (copy) third.finish();
}

STABLE_TORCH_LIBRARY_IMPL(tmem, CPU, m) { m.impl("lora_gram_step_", TORCH_BOX(&lora_gram_step_)); }

}  // namespace tmem
