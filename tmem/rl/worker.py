"""A worker: the model of a training run on another machine, which generates what the run asks of it.

It keeps θ0 and nothing else. Every request brings the Δ of its slots, so none depends on those before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..adapters.attach import find_sites
from ..adapters.bank import AdapterBank
from ..agent.decode import Generation, decode
from ..models import forward as fw
from ..models.experts import prepare
from ..models.lora import fingerprint
from ..models.merge import Beside, Merged, place
from .low_rank import TARGETS
from .wire import Request, Theta, request_in, theta_in, version_of

MOST_NEW = 1 << 16  # tokens of a generation


class Outdated(ValueError):
    """A request for another θ0 than the worker has."""


class Worker:
    """A model as it came, under the θ0 that `take` puts on it and a bank of `slots` rows. One thread at a time.

    bits: of the model's weights, where they are few. Raises ValueError for a model that tmem cannot run or adapt.
    """

    def __init__(self, model: nn.Module, slots: int, bits: str | None = None):
        self.model, self.slots, self.bits = model, slots, bits
        self.base = fingerprint(model)
        self.layers: dict[str, nn.Module] = {site.name: site.module for site in find_sites(model, TARGETS, None)}
        fw.parts(model)
        prepare(model)
        model.requires_grad_(False)
        self.places: dict[str, Merged | Beside] = {}
        self.rank = 0  # of the adapter; 0: there is none yet
        self.bank: AdapterBank | None = None
        self.sizes: Any = None  # of the bank
        self.theta = ""  # the version of θ0; "": there is none

    def take(self, content: bytes) -> str:
        """Go on with the θ0 of a file, see `wire.theta_bytes`; returns its version.

        Raises ValueError for a file that is damaged or over another model.
        """
        found = theta_in(content)
        self._fits(found)
        self.theta = ""
        self.places = self.places or {name: place(self.model, m, found.lora.rank) for name, m in self.layers.items()}
        self.rank = found.lora.rank
        with torch.no_grad():
            for name, held in self.places.items():
                held.put(*(factor.to(self.device) for factor in found.lora.pairs[name]), found.lora.scale)
        self._lay_under(found)
        self.theta = version_of(content)
        return self.theta

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _fits(self, found: Theta) -> None:
        """Raises ValueError unless θ0 is over this model and changes what the last one changed."""
        lora = found.lora
        if (lora.base, lora.bits) != (self.base, self.bits):
            raise ValueError(
                f"θ0 is over a model with the fingerprint {lora.base}, bits {lora.bits or 'none'}; this worker's has "
                f"{self.base}, {self.bits or 'none'}. Start the worker with the --model and --bits of the training run."
            )
        if self.bits and self.rank not in (0, lora.rank):  # what lies beside weights in few bits has the rank it began with
            raise ValueError(f"θ0 has rank {lora.rank}, the one before it had {self.rank}; start the worker anew.")
        sizes = {name: ((lora.rank, m.in_features), (m.out_features, lora.rank)) for name, m in self.layers.items()}
        if {name: (tuple(a.shape), tuple(b.shape)) for name, (a, b) in lora.pairs.items()} != sizes:
            raise ValueError("θ0 does not have the shape of an adapter over all linear layers of this worker's model.")

    def _lay_under(self, found: Theta) -> None:
        """Have a bank of these sizes and this A under the model."""
        if found.bank != self.sizes:
            if self.bank is not None:
                self.bank.detach()
            self.bank, self.sizes = None, None
            self.bank = AdapterBank(self.model, self.slots, init="random", optimizer="sgd", **found.bank)
            self.sizes = found.bank
        assert self.bank is not None
        shapes = [f.shape for f in self.bank.factors]
        if [f.shape for f in found.factors] != shapes:
            raise ValueError("θ0 does not have A of every layer under the bank.")
        if self.bank.subspace != found.subspace:
            self.bank.take(found.factors)
        if self.bank.subspace != found.subspace:
            raise ValueError(f"θ0 is for the subspace {found.subspace:.8}, this bank has {self.bank.subspace:.8}.")

    def generate(self, content: bytes) -> list[Generation]:
        """What a request asks for, see `wire.request_bytes`. Raises Outdated, or ValueError for what is no request."""
        request = request_in(content, "" if self.bank is None else self.bank.subspace)
        if self.bank is None or request.theta != self.theta:
            raise Outdated(f"this worker has version {self.theta or 'none'} of θ0, not {request.theta:.40}; send that one.")
        self._sound(request, self.bank)
        out: list[Generation | None] = [None] * len(request.prompts)
        for mine in _parts(request, self.slots):
            rows = [None if request.slots is None or request.slots[i] < 0 else request.rows[request.slots[i]] for i in mine]
            with self.bank.holding(rows) as slots:
                found = decode(
                    self.model, [request.prompts[i] for i in mine], bank=self.bank,
                    slots=None if request.slots is None else slots, end=frozenset(request.end), max_new=request.max_new,
                    temperature=request.temperature, top_p=request.top_p,
                    **{name: _some(getattr(request, name), mine) for name in ("begins", "keys", "ranks")},
                )  # fmt: skip
            for i, generation in zip(mine, found):
                out[i] = generation
        return [g for g in out if g is not None]

    def _sound(self, request: Request, bank: AdapterBank) -> None:
        """Raises ValueError for numbers that a model cannot have."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        if any(not 0 <= token < vocabulary for prompt in request.prompts for token in prompt):
            raise ValueError(f"request: prompts: expected token ids of 0 to {vocabulary - 1}.")
        if not 1 <= request.max_new <= MOST_NEW or request.temperature < 0.0 or not 0.0 < request.top_p <= 1.0:
            raise ValueError(f"request: expected max_new of 1 to {MOST_NEW}, temperature from 0 and top_p of 0 to 1.")
        if any(not 0 <= rank < vocabulary for rank in request.ranks or ()):
            raise ValueError(f"request: ranks: expected 0 to {vocabulary - 1}.")
        if any(row.param.shape != bank.param.shape[1:] or not 1 <= row.rank <= bank.max_rank for row in request.rows):
            size = bank.param.shape[1]
            raise ValueError(f"request: rows: expected {size} numbers each, of rank 1 to {bank.max_rank}.")


def _parts(request: Request, slots: int) -> Iterator[list[int]]:
    """The prompts whose rows have room at once, by number. Those without a Δ come with the first."""
    each = request.slots or [-1] * len(request.prompts)
    for first in range(0, max(1, len(request.rows)), slots):
        yield [i for i, slot in enumerate(each) if (0 if slot < 0 else slot // slots * slots) == first]


def _some(values: list | None, which: list[int]) -> Any:
    return None if values is None else [values[i] for i in which]
