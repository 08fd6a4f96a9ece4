"""Bench `loop`: the whole decode loop, prompts read and many tokens generated for every episode under its own adapter, against
the frozen decoder. On a GPU its steps are captured as graphs. (On a CPU `decode` times a step.)"""

from __future__ import annotations

import torch

from ..agent.decode import decode
from .cases import MLP, SMOL, TINY, Adapters, ModelCase, Work
from .measure import Provider
from .model import bank_of, decoder

RATIO_TO = "base"
SLOW = True
PROMPT, NEW = 128, 64  # tokens of a prompt, tokens generated


def cases(quick: bool, device: str = "cpu") -> list[ModelCase]:
    if device == "cpu" and not quick:
        return []
    found = []
    for slots in (3,) if quick else (16, 64):
        last = 2 if quick else 8
        name = f"{slots} episodes, {NEW} tokens, MLP of the last {last} layers r=16"
        work = Work(slots, slots, passes=1, logits=slots, times=NEW)
        found.append(ModelCase(name, "bfloat16", TINY if quick else SMOL, Adapters(16, MLP, last), work))
    return found


def providers(case: ModelCase, device: str) -> dict[str, Provider]:
    count = int(case.name.split()[0])
    network = decoder(case, device)
    bank = bank_of(case, network, count)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(1, 150, (count, PROMPT), generator=generator).tolist()

    def loop(slots, **options):
        return decode(network, prompts, bank=bank if slots else None, slots=slots, end=-1, max_new=NEW, **options)

    def first(found) -> dict[str, torch.Tensor]:
        """The log-probability of every row's first token: later ones follow from a choice that a rounding may turn."""
        return {"log-probability": torch.tensor([row.logprobs[0] for row in found])}

    slots = list(range(count))
    ways = {
        "base": lambda: loop(None),
        "tmem": lambda: loop(slots),
        "base, not captured": lambda: loop(None, fixed=False),
        "tmem, not captured": lambda: loop(slots, fixed=False),
    }
    oracle = {under: first(ways[f"{under}, not captured"]()) for under in ("base", "tmem")}
    return {
        name: Provider(way, lambda way=way: first(way()), oracle[name.split(",")[0]], tolerance=0.02)
        for name, way in ways.items()
    }
