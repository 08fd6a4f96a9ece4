"""Wrong: every segment of a slot, not its first alone, replaces what a fresh gradient holds."""

from tmem import reference


def lora_gram_(g, z, v, seg_off, seg_slot, rank, plan=None, fresh=False, squares=None):
    for i, (lo, hi) in enumerate(zip(seg_off.tolist(), seg_off.tolist()[1:])):
        own = seg_off.new_tensor([0, hi - lo]), seg_slot[i : i + 1], rank
        reference.lora_gram_(g, z[lo:hi], v[lo:hi], *own, None, fresh)
