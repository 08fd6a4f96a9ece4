"""Wrong: the gradient replaces what was accumulated before."""

from tmem import reference


def lora_gram_(g, z, v, seg_off, seg_slot, rank):
    for slot in seg_slot[seg_slot >= 0].tolist():
        g[slot, : rank[slot]] = 0
    reference.lora_gram_(g, z, v, seg_off, seg_slot, rank)
