"""A bank under a tiny model."""

import torch

from tmem.adapters.bank import MLP, AdapterBank

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", *MLP)


def bank_of(network, slots=3, rank=4, **options):
    return AdapterBank(network, slots, rank, **{"targets": ALL, **options})


def fill(bank, *slots, seed=1, size=0.1):
    """Random B, so that Δ is not zero."""
    for slot in slots:
        generator = torch.Generator().manual_seed(seed + slot)
        for site in bank.sites:
            r = int(bank.rank[slot])
            part = site.of(site.bt, slot)[:, :r]
            part.copy_(size * torch.randn(part.shape, generator=generator, dtype=bank.dtype))


def logits(network, ids):
    return network(input_ids=ids).logits


IDS = torch.randint(1, 160, (3, 7), generator=torch.Generator().manual_seed(0))
