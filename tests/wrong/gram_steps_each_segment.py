"""Wrong: a step for each segment of a slot, where a slot steps once."""

from tmem import reference


def lora_gram_step_(param, m, v, step, hyper, z, dy, seg_off, seg_slot, rank, plan=None, copy=None, squares=None):
    for i in range(len(seg_slot)):
        rows = slice(int(seg_off[i]), int(seg_off[i + 1]))
        off = seg_off[i : i + 2] - seg_off[i]
        segment = z[rows], dy[rows], off, seg_slot[i : i + 1], rank
        reference.lora_gram_step_(param, m, v, step, hyper, *segment, plan, copy, squares)
