#include "launch.h"

namespace tmem {

Descriptor::Descriptor(const char* op, const Tensor& off, const Tensor& slot, const Tensor& rank, int64_t rows,
                       int64_t ranks) {
  check_dtype(op, "seg_off", off, ScalarType::Int);
  check_dtype(op, "seg_slot", slot, ScalarType::Int);
  check_dtype(op, "rank", rank, ScalarType::Int);
  check_dim(op, "seg_off", off, 1);
  check_dim(op, "seg_slot", slot, 1);
  check_dim(op, "rank", rank, 1);
  const int64_t count = slot.size(0);
  check_size(op, "seg_off", off, 0, count + 1);
  off_ = readable(off), slot_ = readable(slot), rank_ = readable(rank);
  slots_ = rank.size(0);
  segments_ = {static_cast<const int32_t*>(off_.const_data_ptr()), static_cast<const int32_t*>(slot_.const_data_ptr()),
               static_cast<const int32_t*>(rank_.const_data_ptr()), count};
  const Segments& s = segments_;
  STD_TORCH_CHECK(s.off[0] == 0 && s.off[count] == rows, op, ": seg_off must run from 0 to ", rows, " (rows), got ",
                  s.off[0], " to ", s.off[count]);
  for (int64_t g = 0; g < count; g++) {
    STD_TORCH_CHECK(s.off[g] <= s.off[g + 1], op, ": seg_off must not decrease, got ", s.off[g], " then ", s.off[g + 1],
                    " at segment ", g);
    const int32_t named = s.slot[g];
    STD_TORCH_CHECK(named >= -1 && named < slots_, op, ": seg_slot must be in [-1, ", slots_, "), got slot ", named,
                    " at segment ", g);
    if (named < 0) continue;
    STD_TORCH_CHECK(s.rank[named] != 0, op, ": seg_slot names slot ", named, " at segment ", g,
                    ", but that slot is freed (rank 0)");
    STD_TORCH_CHECK(s.rank[named] > 0 && s.rank[named] <= ranks, op, ": rank of slot ", named, " must be in 1..", ranks,
                    " (stored ranks), got ", s.rank[named]);
  }
}

}  // namespace tmem
