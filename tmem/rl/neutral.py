"""How far training and memory move the model on what has nothing to do with them: ordinary text, and plain questions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..adapters.bank import Snapshot
from ..agent.agent import Agent, first_line
from ..models import forward as fw
from ..words import normalise
from .rows import padded

# Invented, so that no model has read them and no task is made of them.
TEXTS = (
    "The old mill stands at the bend of the river, where the water is slow enough to freeze in a hard winter. Its wheel "
    "has not turned for sixty years, but the stones are still inside, and on open days a volunteer explains how grain "
    "became flour.",
    "To repair a puncture, take the wheel off and lift one side of the tyre over the rim. Pull out the tube, pump it up and "
    "hold it under water: bubbles show where the hole is. Dry it, roughen the spot, spread the glue thinly and wait before "
    "you press on the patch.",
    "Sales fell by four per cent in the second quarter, mostly because two large orders moved into July. Costs were stable. "
    "The board expects the year to end slightly above the last one and leaves the dividend unchanged.",
    "A function returns the first element of a list that satisfies a condition, or nothing if there is none. It reads the list "
    "from the left and stops as soon as it can, so its cost depends on where the element stands.",
)
QUESTIONS = (
    ("What is the capital of France?", "Paris"), ("What is the capital of Italy?", "Rome"),
    ("What is the capital of Japan?", "Tokyo"), ("What is the capital of Egypt?", "Cairo"),
    ("Which planet do we live on?", "Earth"), ("What is the largest planet of the solar system?", "Jupiter"),
    ("How many days are in a week?", "seven|7"), ("How many legs does a spider have?", "eight|8"),
    ("How many minutes are in an hour?", "sixty|60"), ("What is two plus three?", "five|5"),
    ("What is ten minus four?", "six|6"), ("What colour is the sky on a clear day?", "blue"),
    ("What colour is grass?", "green"), ("What is frozen water called?", "ice"),
    ("Which animal barks?", "dog"), ("Which animal says meow?", "cat"),
    ("Who wrote Romeo and Juliet?", "Shakespeare"), ("In which country is the Eiffel Tower?", "France"),
    ("What is the opposite of hot?", "cold"), ("Which month comes after May?", "June"),
)  # fmt: skip


def nll(agent: Agent, delta: Snapshot | None = None) -> float:
    """Nats per token of neutral text under θ0 + Δ; its exponential is the perplexity."""
    logp, targets = _read(agent, delta)
    return -float(logp.gather(-1, targets[:, None]).mean())


def kl(agent: Agent, delta: Snapshot | None) -> float:
    """KL(π_{θ0+Δ} ‖ π_{θ0}) per token of neutral text: a distance to watch, not to train on; a memory that changes nothing
    is none."""
    (base, _), (moved, _) = _read(agent, None), _read(agent, delta)
    return float((moved.exp() * (moved - base)).sum(-1).mean())


def plain(agent: Agent, delta: Snapshot | None = None) -> float:
    """Share of plain questions whose answer contains one of the right ones as whole words."""
    texts = [f"{question} Answer in one word." for question, _ in QUESTIONS]
    with agent.bank.holding([delta] * len(texts)) as slots:
        replies = agent.say(texts, slots, max_new=agent.config.answer.max_new)
        said = [f" {normalise(first_line(r.text))} " for r in replies]
    right = [any(f" {normalise(a)} " in s for a in answers.split("|")) for s, (_, answers) in zip(said, QUESTIONS)]
    return sum(right) / len(right)


@torch.no_grad()
def _read(agent: Agent, delta: Snapshot | None) -> tuple[Tensor, Tensor]:
    """Log-probabilities [tokens, V] of what comes next, and what does."""
    sequences = [agent.chat.plain(text) for text in TEXTS]
    ids = padded(sequences, agent.bank.device)
    rows = [r for r, s in enumerate(sequences) for _ in s[1:]]
    columns = [c for s in sequences for c in range(len(s) - 1)]
    with agent.bank.holding([delta] * len(sequences)) as slots, agent.bank.route(slots, learn=False):
        logp = fw.token_logits(agent.model, ids, rows, columns).float().log_softmax(-1)
    return logp, torch.tensor([t for s in sequences for t in s[1:]], device=agent.bank.device)
