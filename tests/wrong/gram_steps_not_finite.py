"""Wrong: an element whose gradient is not finite steps like any other."""

import torch

from tmem import reference


def lora_gram_step_(param, m, v, step, hyper, z, dy, seg_off, seg_slot, rank, plan=None, copy=None, squares=None):
    g, r = torch.zeros_like(param), rank.tolist()
    reference.lora_gram_(g, z, dy, seg_off, seg_slot, rank, plan, True, squares)
    for s in {s for s, n in zip(seg_slot.tolist(), seg_off.diff().tolist()) if s >= 0 and n}:
        parts = [None if x is None else x[s, : r[s]] for x in (param, m, v)]
        reference._move(parts[0], g[s, : r[s]], *parts[1:], int(step[s]) + 1, hyper[s])
        if copy is not None:
            copy[s, : r[s]] = parts[0]
