"""A whole online update, its steps launched kernel by kernel or captured as CUDA graphs: a part of `make gpu`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from ..agent.captured_update import FixedSteps
from ..agent.config import agent_config
from ..agent.learn import Learned, learn
from ..agent.renderings import BARE
from ..episode import Pair
from .cases import MLP, SMOL, TINY, Adapters, ModelCase, Work
from .measure import Provider, Settings, measured
from .model import bank_of, decoder

RATIO_TO = "launched"
EPOCHS, PAIRS, TOKENS, LABELS = 5, 16, 45, 8  # tokens of a pair and of its answer
LARGE = (
    ("vocab_size", 49152), ("hidden_size", 2560), ("intermediate_size", 9728), ("num_hidden_layers", 4),
    ("num_attention_heads", 20), ("num_key_value_heads", 4),
)  # fmt: skip
"""The last layers of a 4B model, those that the paper adapts."""
TOLERANCE = 0.02  # of losses in bf16, whose products have other rows


class Spelled:
    """A chat of one token a letter."""

    def prompt(self, text: str) -> list[int]:
        return [1 + ord(letter) % 150 for letter in text]

    answer = prompt


def cases(quick: bool) -> list[ModelCase]:
    found = []
    for what, sizes, last, slots in [("tiny", TINY, 2, 2)] if quick else [("135M", SMOL, 8, 1), ("4B", LARGE, 4, 1)]:
        tokens = EPOCHS * slots * PAIRS * TOKENS
        work = Work(tokens, slots, passes=2, layers=last, logits=EPOCHS * slots * PAIRS * LABELS)
        name = f"{slots}x{PAIRS}x{TOKENS} tokens, {EPOCHS} epochs, MLP of the last {last} layers, {what}"
        found.append(ModelCase(name, "float32" if quick else "bfloat16", sizes, Adapters(16, MLP, last), work))
    return found


def providers(case: ModelCase, device: str) -> dict[str, Provider]:
    network = decoder(case, device)
    bank = bank_of(case, network, case.work.slots)
    start = [bank.snapshot(slot) for slot in range(bank.slots)]
    plain = dict(renderings=(BARE,), reverse="", target=0.0)
    config = dataclasses.replace(agent_config("default").learn, epochs=EPOCHS, batch=PAIRS, **plain)
    letters = torch.randint(97, 123, (bank.slots, PAIRS, TOKENS), generator=torch.Generator().manual_seed(1)).tolist()
    told = [["".join(map(chr, pair)) for pair in pairs] for pairs in letters]
    jobs = [(slot, [Pair(text[LABELS:], text[:LABELS]) for text in pairs]) for slot, pairs in enumerate(told)]

    def reset() -> None:
        for slot, snapshot in enumerate(start):
            bank.restore(slot, snapshot)

    def update(fixed: bool) -> list[Learned]:
        return learn(network, bank, jobs, Spelled(), config, fixed=fixed)

    def losses(fixed: bool) -> dict[str, torch.Tensor]:
        reset()
        found = update(fixed)
        if fixed and ((steps := FixedSteps.of(network, bank, bank.first_layer)).failed or not steps.kept):
            raise RuntimeError(f"bench captured, {case.name}: no step was captured.")
        return {"losses": torch.tensor([[one.loss_before, one.loss_after] for one in found])}

    oracle = losses(False)
    return {
        name: Provider(lambda fixed=fixed: update(fixed), lambda fixed=fixed: losses(fixed), oracle, reset, TOLERANCE)
        for name, fixed in (("launched", False), ("captured", True))
    }


def measure_captured(device: str, settings: Settings, watch: Callable[[str, int, int], None], quick: bool = False) -> dict:
    """{"rows": as of `measured`}. Raises RuntimeError where steps cannot be captured."""
    every, found = cases(quick), []
    for done, case in enumerate(every):
        watch(f"captured {case.name}", done, len(every))
        found += measured("captured", case, providers(case, device), RATIO_TO, settings, device)
    return {"rows": found}
