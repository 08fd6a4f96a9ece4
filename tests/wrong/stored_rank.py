"""Wrong: a slot computes with all stored ranks, not with its own."""

import torch

from tmem import reference


def lora_expand_(o, z, f, seg_off, seg_slot, rank):
    reference.lora_expand_(o, z, f, seg_off, seg_slot, torch.full_like(rank, f.shape[1]))
