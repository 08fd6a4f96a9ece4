"""Bench `update`: one online update the plain way, and with what saves work: a trunk that runs once, logits at labels only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import forward as fw
from .cases import MLP, SMOL, TINY, Adapters, ModelCase, Work
from .measure import Provider
from .model import bank_of, decoder

RATIO_TO = "plain"
SLOW = True
EPOCHS, PAIRS, TOKENS, LABELS = 5, 16, 45, 8


def cases(quick: bool, device: str = "cpu") -> list[ModelCase]:
    sizes, last, pairs = (TINY, 2, 4) if quick else (SMOL, 8, PAIRS)
    name = f"{EPOCHS} epochs, {pairs}x{TOKENS} tokens, last {last} layers"
    tokens = pairs * fw.bucket(TOKENS)
    work = Work(EPOCHS * tokens, 1, passes=2, layers=last, logits=EPOCHS * pairs * LABELS)
    return [ModelCase(name, "float32", sizes, Adapters(16, MLP, last), work)]


class _Update:
    """One slot that learns `PAIRS` sequences, LABELS labels at the end of each.

    once        the trunk below the adapted layers runs once per update, else in every epoch
    everywhere  logits at every position, else at labels alone
    """

    def __init__(self, case: ModelCase, device: str):
        self.pairs = 4 if case.sizes == TINY else PAIRS
        self.network = decoder(case, device)
        self.bank = bank_of(case, self.network, 1)
        self.start = self.bank.snapshot(0)
        self.bank.configure(0, lr=1e-3)
        ids = torch.randint(1, 150, (self.pairs, TOKENS), generator=torch.Generator().manual_seed(1))
        self.batch = fw.pad(ids.tolist(), fw.bucket(TOKENS), device=device)
        length = self.batch.shape[1]
        self.positions = torch.arange(length, device=device)[None]
        self.targets = ids[:, -LABELS:].to(device)
        self.labelled = torch.arange(TOKENS - LABELS - 1, TOKENS - 1, device=device)
        self.bank.detach()

    def reset(self) -> None:
        self.bank.restore(0, self.start)

    @torch.no_grad()
    def trunk(self) -> Tensor:
        embedded = fw.embed(self.network, self.batch)
        return fw.layers(self.network, embedded, self.positions, None, stop=self.bank.first_layer)

    def loss(self, hidden: Tensor, everywhere: bool) -> Tensor:
        with self.bank.route([0] * self.pairs, lengths=[TOKENS] * self.pairs):
            hidden = fw.layers(self.network, hidden, self.positions, None, start=self.bank.first_layer)
            if everywhere:
                logits = fw.logits(self.network, hidden)[:, self.labelled]
            else:
                logits = fw.logits(self.network, hidden[:, self.labelled])
            value = F.cross_entropy(logits.flatten(0, 1), self.targets.flatten())
            value.backward()
        return value.detach()

    def run(self, once: bool, everywhere: bool) -> None:
        self.bank.attach()
        try:
            hidden = self.trunk() if once else None
            for _ in range(EPOCHS):
                self.loss(hidden if once else self.trunk(), everywhere)
                self.bank.step([0])
        finally:
            self.bank.detach()

    def gradient(self, everywhere: bool) -> dict[str, Tensor]:
        self.bank.attach()
        self.reset()
        try:
            return {"loss": self.loss(self.trunk(), everywhere)[None], "db": self.bank.grad[0].clone()}
        finally:
            self.reset()
            self.bank.detach()


def providers(case: ModelCase, device: str) -> dict[str, Provider]:
    update = _Update(case, device)
    oracle = update.gradient(everywhere=True)

    def provider(once: bool, everywhere: bool) -> Provider:
        return Provider(
            lambda: update.run(once, everywhere), lambda: update.gradient(everywhere), oracle, update.reset, tolerance=1e-4
        )

    return {
        "plain": provider(once=False, everywhere=True),
        "trunk once": provider(once=True, everywhere=True),
        "logits at labels": provider(once=False, everywhere=False),
        "tmem: both": provider(once=True, everywhere=False),
    }
