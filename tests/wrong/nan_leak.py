"""Wrong: other slots' rows are masked out before the product, and 0 · NaN is NaN."""

import torch


def lora_gram(z, v, seg_off, seg_slot, rank):
    slot = torch.repeat_interleave(seg_slot.long(), seg_off.diff())
    mask = (slot[:, None] == torch.arange(rank.shape[0])).to(z.dtype)
    return torch.einsum("ms,mj,md->sjd", mask, z, v.to(z.dtype))
