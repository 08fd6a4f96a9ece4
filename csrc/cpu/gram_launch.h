// What the launchers of gram share: their arguments, who owns which columns of which slot, and the squares they leave.
#pragma once
#include <algorithm>
#include <vector>

#include "launch.h"

namespace tmem {

constexpr int64_t SQUARED = 16;  // columns of an entry of squares: see tmem/reference.py

inline void check_z(const char* op, const Tensor& z, const Tensor& activation) {
  check_dtype(op, "z", z, accumulator(activation));
  check_dim(op, "z", z, 2);
  check_size(op, "z", z, 0, activation.size(0));
}

inline Descriptor check_gram(const char* op, const Tensor& z, const char* name, const Tensor& v, const Tensor& seg_off,
                             const Tensor& seg_slot, const Tensor& rank) {
  check_activation(op, name, v);
  check_dim(op, name, v, 2);
  check_z(op, z, v);
  return Descriptor(op, seg_off, seg_slot, rank, v.size(0), z.size(1));
}

// [slots, ranks, width], as the gradient of rows z and v is, in any dtype.
inline void check_gradient_sizes(const char* op, const char* name, const Tensor& x, const Tensor& z, const Tensor& v,
                                 int64_t slots) {
  check_dim(op, name, x, 3);
  check_size(op, name, x, 0, slots);
  check_size(op, name, x, 1, z.size(1));
  check_size(op, name, x, 2, v.size(1));
}

inline void check_squares(const char* op, const Tensor& squares, const Tensor& v, int64_t slots) {
  check_dtype(op, "squares", squares, ScalarType::Double);
  check_dim(op, "squares", squares, 2);
  check_size(op, "squares", squares, 0, slots);
  check_size(op, "squares", squares, 1, (v.size(1) + SQUARED - 1) / SQUARED);
}

// Columns [first, first + count) of a slot's gradient: what one task owns.
struct Columns {
  int64_t slot, first, count;
};

// The slots that have rows, and the segments of each in the order of the batch.
class BySlot {
 public:
  explicit BySlot(const Descriptor& descriptor) : start_(descriptor.slots() + 1, 0) {
    const Segments& seg = descriptor.segments();
    const auto has = [&](int64_t i) { return seg.slot[i] >= 0 && seg.off[i] < seg.off[i + 1]; };
    for (int64_t i = 0; i < seg.count; i++)
      if (has(i)) start_[seg.slot[i] + 1]++;
    for (int64_t s = 0; s < descriptor.slots(); s++) {
      if (start_[s + 1]) slots_.push_back(s);
      start_[s + 1] += start_[s];
    }
    segments_.resize(start_.back());
    std::vector<int64_t> next(start_);
    for (int64_t i = 0; i < seg.count; i++)
      if (has(i)) segments_[next[seg.slot[i]]++] = i;
  }
  const std::vector<int64_t>& slots() const { return slots_; }
  const int64_t* of(int64_t slot) const { return segments_.data() + start_[slot]; }
  int64_t count(int64_t slot) const { return start_[slot + 1] - start_[slot]; }

  // Tasks of `each` columns.
  int64_t tasks(int64_t width, int64_t each) const { return (width + each - 1) / each * slots_.size(); }
  Columns task(int64_t i, int64_t width, int64_t each) const {
    const int64_t slots = slots_.size(), first = i / slots * each;
    return {slots_[i % slots], first, std::min(each, width - first)};
  }
  // Rows of a slot on average: what a task costs.
  int64_t rows(int64_t all) const { return all / std::max<int64_t>(1, slots_.size()); }

 private:
  std::vector<int64_t> start_, slots_, segments_;
};

// The sum of the squares in a task's columns goes into the first of the entries of these columns.
inline void store_squares(const Tensor& squares, const Columns& at, double sum) {
  const int64_t stride = squares.stride(1);
  double* to = static_cast<double*>(squares.mutable_data_ptr()) + at.slot * squares.stride(0) + at.first / SQUARED * stride;
  for (int64_t t = 0; t * SQUARED < at.count; t++) to[t * stride] = t ? 0 : sum;
}

}  // namespace tmem
