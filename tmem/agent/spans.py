"""What of a passage is worth a question: its spans, ranked by how probable it is that the writer says them.

A span is one word of the passage or several of a line in a row. With w what stands before it, the passage, the words that ask
for one answer and "A:",

    log P(span) = Σ log p(token | w, tokens before) + log p(line break | w, span).

Spans that begin at one word are prefixes of one branch, so two passes score them all: one over w, one over the branches of the
words that are likeliest to begin an answer. A small model that draws an answer token by token mostly draws what the passage
does not say, or what it drew before. All spans stand in the passage, and no two chosen ones in the same place.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..adapters.bank import AdapterBank
from ..models import forward as fw
from ..models.chat import Chat
from ..models.families import outgrown
from ..words import normalise
from .prefill import Prompts, Read, read, routed
from .sampling import uniforms
from .turns import turn
from .write import ANSWER, ONE, QUESTION, beside

WORDS, TOKENS = 8, 12  # of a span at most
STARTS = 64  # words at which a span may begin: the likeliest
_WORD = re.compile(r"[$£€#]?[^\W_]+(?:[^\w\s]+[^\W_]+)*%?")


@dataclass(frozen=True)
class Span:
    """A span, its place in the passage (characters), its tokens, and of each, then of the line break, the log-probability."""

    text: str
    start: int
    stop: int
    ids: list[int]
    logprobs: list[float]

    @property
    def logp(self) -> float:
        return sum(self.logprobs)


@dataclass(frozen=True)
class Ranked:
    """The spans of one passage, the likeliest first. prompt: what they go on from. then: what stands between one and its
    question, the line break first."""

    prompt: list[int]
    then: list[int]
    spans: list[Span]


@torch.inference_mode()
def ranked(model, bank: AdapterBank | None, chat: Chat, passage: str, slot: int | None) -> Ranked:
    """The spans of a passage as they are under the Δ of `slot` (-1 or None: the model alone).

    Of spans with the same words, apart from case and punctuation, the likeliest stands.
    """
    passage = passage.strip()
    lead = chat.answer(ANSWER)[:-1]
    prompt = chat.prompt(beside(passage, ONE)) + lead
    then = _after(chat, f"{ANSWER} x", f"\n{QUESTION}")
    most = outgrown(model.config)  # a span ends where the keys of the passage would have to be others
    branches = _branches(chat, passage, lead, TOKENS if most is None or len(prompt) > most else min(TOKENS, most - len(prompt)))
    if not branches:
        return Ranked(prompt, then, [])
    with turn():
        ((_, begun),) = read(model, bank, Prompts([prompt], [0], None if slot is None else [slot]))
        first = fw.head(model, begun.last)[0].float().log_softmax(-1)
    likely = sorted(branches, key=lambda branch: -float(first[branch.ids[0]]))[:STARTS]
    with turn():
        after = _after_each(model, bank, slot, begun, len(prompt), likely, then[0])
    best: dict[str, Span] = {}
    for branch, (following, ending) in zip(likely, after):
        logprobs = [float(first[branch.ids[0]]), *following]
        for count, stop in branch.stops:
            span = Span(
                passage[branch.start : stop], branch.start, stop, branch.ids[:count],
                [*logprobs[:count], ending[count - 1]],
            )  # fmt: skip
            key = normalise(span.text)
            if key and (key not in best or best[key].logp < span.logp):
                best[key] = span
    return Ranked(prompt, then, sorted(best.values(), key=lambda span: -span.logp))


def picked(spans: Sequence[Span], count: int, temperature: float = 0.0, key: str = "") -> list[Span]:
    """At most `count` of ranked spans, none of which shares more than half of the shorter one's place with another.

    temperature  0: the likeliest. Above: drawn without replacement, a span in proportion to P(span)^(1/temperature), by noise
                 that depends on `key` alone (Gumbel top-k, arXiv 1903.06059)
    """
    if temperature > 0.0:
        noise = -np.log(-np.log(uniforms(f"{key}/spans", len(spans)).clip(1e-12, 1 - 1e-12)))
        order = np.argsort([-(s.logp / temperature + g) for s, g in zip(spans, noise)], kind="stable")
        spans = [spans[i] for i in order]
    out: list[Span] = []
    for span in spans:
        if len(out) == count:
            break
        if not any(_shared(span, other) for other in out):
            out.append(span)
    return out


def _shared(a: Span, b: Span) -> bool:
    both = min(a.stop, b.stop) - max(a.start, b.start)
    return 2 * both > min(a.stop - a.start, b.stop - b.start)


@dataclass(frozen=True)
class _Branch:
    """What begins at one word: its tokens, and where a span can end: after so many tokens, at this character."""

    start: int
    ids: list[int]
    stops: list[tuple[int, int]]


def _after(chat: Chat, text: str, more: str) -> list[int]:
    """The tokens of `more` behind an answer's `text`."""
    before, whole = chat.answer(text)[:-1], chat.answer(text + more)[:-1]
    return whole[len(before) :] if whole[: len(before)] == before else chat.plain(more)


def _branches(chat: Chat, passage: str, lead: list[int], most: int) -> list[_Branch]:
    """What begins at each word, of `most` tokens at most."""
    words = [found.span() for found in _WORD.finditer(passage)]
    out = []
    for i, (start, _) in enumerate(words):
        ends = {stop for _, stop in words[i : i + WORDS] if "\n" not in passage[start:stop]}
        ids = chat.answer(f"{ANSWER} {passage[start : max(ends)]}")[:-1]
        same, ids = ids[: len(lead)] == lead, ids[len(lead) :][:most]
        if not (same and ids):
            continue
        told = [start + len(chat.text(lead + ids[:count])[len(ANSWER) :].lstrip()) for count in range(1, len(ids) + 1)]
        stops = [(count, stop) for count, stop in enumerate(told, 1) if stop in ends]
        out += [_Branch(start, ids, stops)] if stops else []
    return out


def _after_each(
    model, bank: AdapterBank | None, slot: int | None, begun: Read, before: int, branches: Sequence[_Branch], end: int
) -> list[tuple[list[float], list[float]]]:
    """Of every branch, the log-probabilities of its tokens from the second on, and behind each token that of `end`."""
    device, old = begun.last.device, begun.cache.length
    ids = [token for branch in branches for token in branch.ids]
    sizes = [len(branch.ids) for branch in branches]
    cache = begun.cache.widened(begun.rows, old + len(ids))
    positions = torch.tensor([before + k for size in sizes for k in range(size)], device=device)[None]
    numbers = torch.tensor([number for number, size in enumerate(sizes, 1) for _ in range(size)], device=device)
    mask = fw.Branches(numbers[None], torch.tensor([[before]], device=device), old)
    with routed(bank, None if slot is None else [slot], [len(ids)]):
        hidden = fw.layers(model, fw.embed(model, torch.tensor([ids], device=device)), positions, mask, cache=cache)
    logits = fw.head(model, hidden[0]).float()
    total = logits.logsumexp(-1)
    following = (logits[:-1].gather(1, torch.tensor(ids[1:], device=device)[:, None])[:, 0] - total[:-1]).tolist()
    ending = (logits[:, end] - total).tolist()
    stops = list(itertools.accumulate(sizes))
    return [(following[stop - size : stop - 1], ending[stop - size : stop]) for size, stop in zip(sizes, stops)]
