"""Wrong: a slot's segments are summed together before they are added to g, so the bits depend on the calls."""

from tmem import reference


def lora_gram_(g, z, v, seg_off, seg_slot, rank):
    g += reference.lora_gram(z, v, seg_off, seg_slot, rank)
