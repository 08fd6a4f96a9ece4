"""Bench `update`: one online update by the plain way, and with what ARCHITECTURE calls the fast paths of the method."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..models import forward as fw
from .cases import MLP, SMOL, TINY, ModelCase, model_case
from .measure import Provider
from .model import bank_of, decoder

RATIO_TO = "plain"
SLOW = True
EPOCHS, PAIRS, TOKENS, LABELS = 5, 16, 45, 8


def cases(quick: bool, device: str = "cpu") -> list[ModelCase]:
    sizes, last, pairs = (TINY, 2, 4) if quick else (SMOL, 8, PAIRS)
    name = f"{EPOCHS} epochs, {pairs}x{TOKENS} tokens, last {last} layers"
    tokens = pairs * fw.bucket(TOKENS)
    return [
        model_case(name, "float32", 16, MLP, last, sizes, EPOCHS * tokens, 1, passes=2, layers=last,
                   logits=EPOCHS * pairs * LABELS)
    ]  # fmt: skip


def providers(case: ModelCase, device: str) -> dict[str, Provider]:
    """Four arms: the trunk below the adapted layers once per update or in every epoch, logits everywhere or at labels."""
    pairs = 4 if case.sizes == TINY else PAIRS
    network = decoder(case, device)
    bank = bank_of(case, network, 1)
    start = bank.snapshot(0)
    bank.configure(0, lr=1e-3)
    ids = torch.randint(1, 150, (pairs, TOKENS), generator=torch.Generator().manual_seed(1))
    batch = fw.pad(ids.tolist(), fw.bucket(TOKENS), device=device)
    length = batch.shape[1]
    positions, mask = torch.arange(length, device=device)[None], fw.causal_mask(length, device)
    targets = ids[:, -LABELS:].to(device)
    labelled = torch.arange(TOKENS - LABELS - 1, TOKENS - 1, device=device)

    @torch.no_grad()
    def trunk():
        return fw.layers(network, fw.embed(network, batch), positions, mask, stop=bank.first_layer)

    def loss(hidden, everywhere):
        with bank.route([0] * pairs, lengths=[TOKENS] * pairs):
            hidden = fw.layers(network, hidden, positions, mask, start=bank.first_layer)
            if everywhere:
                logits = fw.logits(network, hidden)[:, labelled]
            else:
                logits = fw.logits(network, hidden[:, labelled])
            value = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            value.backward()
        return value.detach()

    def update(once, everywhere):
        bank.attach()
        try:
            hidden = trunk() if once else None
            for _ in range(EPOCHS):
                loss(hidden if once else trunk(), everywhere)
                bank.step([0])
        finally:
            bank.detach()

    def provider(once, everywhere):
        def gradient():
            bank.attach()
            bank.restore(0, start)
            try:
                value = loss(trunk(), everywhere)
                return {"loss": value[None], "db": bank.grad[0].clone()}
            finally:
                bank.restore(0, start)
                bank.detach()

        def results():
            return gradient()

        return gradient, Provider(
            lambda: update(once, everywhere), results, oracle, lambda: bank.restore(0, start), tolerance=1e-4
        )

    bank.detach()
    oracle: dict[str, torch.Tensor] = {}
    gradient, plain = provider(False, True)
    oracle.update(gradient())
    return {
        "plain": plain,
        "trunk once": provider(True, True)[1],
        "logits at labels": provider(False, False)[1],
        "tmem: both": provider(True, False)[1],
    }
