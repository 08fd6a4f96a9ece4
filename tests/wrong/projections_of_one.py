"""Wrong: every projection gets the adapter of the first."""

from tmem import reference


def lora_decode_multi_(y, x, a, bt, row_slot, rank, scale):
    for one in y:
        reference.lora_decode_(one, x, a[0], bt[0][..., : one.shape[1]], row_slot, rank, scale)
