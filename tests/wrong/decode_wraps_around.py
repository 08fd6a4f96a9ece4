"""Wrong: -1, which means no slot, indexes the last one."""

from tmem import reference


def lora_decode_(y, x, a, bt, row_slot, rank, scale):
    reference.lora_decode_(y, x, a, bt, row_slot % rank.shape[0], rank, scale)
