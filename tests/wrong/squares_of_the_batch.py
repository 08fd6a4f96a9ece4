"""Wrong: the squares are those of what a call adds, not of the gradient that it leaves."""

from tmem import reference


def lora_gram_(g, z, v, seg_off, seg_slot, rank, plan=None, fresh=False, squares=None):
    reference.lora_gram_(g.clone(), z, v, seg_off, seg_slot, rank, plan, True, squares)
    reference.lora_gram_(g, z, v, seg_off, seg_slot, rank, plan, fresh)
