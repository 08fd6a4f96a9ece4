"""Wrong: the gradient replaces what was accumulated before."""

from tmem import reference


def lora_backward_(g, z, dy, bt, seg_off, seg_slot, rank, scale):
    g.zero_()
    return reference.lora_backward_(g, z, dy, bt, seg_off, seg_slot, rank, scale)
