"""Wrong: slots without rows step as well, by a gradient of zero."""

import torch

from tmem import reference


def lora_gram_step_(param, m, v, step, hyper, z, dy, seg_off, seg_slot, rank, plan=None, copy=None, squares=None):
    given = param, m, v, step, hyper
    reference.lora_gram_step_(*given, z, dy, seg_off, seg_slot, rank, plan, copy, squares)
    busy = {s for s, n in zip(seg_slot.tolist(), seg_off.diff().tolist()) if n}
    idle = torch.tensor([s for s in range(len(rank)) if rank[s] and s not in busy], dtype=torch.int32)
    off = torch.arange(len(idle) + 1, dtype=torch.int32)
    nothing = z.new_zeros(len(idle), z.shape[1]), dy.new_zeros(len(idle), dy.shape[1])
    reference.lora_gram_step_(*given, *nothing, off, idle, rank, plan, copy)
