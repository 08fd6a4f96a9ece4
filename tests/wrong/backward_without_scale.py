"""Wrong: dz lacks the scale, which forward has."""

from tmem import reference


def lora_backward_(g, z, dy, bt, seg_off, seg_slot, rank, scale):
    return reference.lora_backward_(g, z, dy, bt, seg_off, seg_slot, rank, scale / scale)
