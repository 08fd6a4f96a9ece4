"""Texts that begin alike as one row of a pass: the beginning, computed once, then what continues it, branch after branch.

Rows under several Δ have layers in common, those below the first adapted one. There the same text is computed once for all Δ.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from ..adapters import routes
from ..adapters.bank import AdapterBank
from ..models.forward import Below
from .policy import Policy

LONGEST = 2048  # tokens of a row of several texts: on a GPU attention between branches is computed and masked
# Of texts that begin alike and go on otherwise: tokens of their row at most, and that each saves at least. A longer row costs
# more in attention than it saves in products.
JOINED, SHARED = 256, 8

Text = TypeVar("Text")


@dataclass
class Row:
    """A trunk and its branches.

        trunk      token ids that all texts of the row begin with
        branches   token ids of what continues it, one list a text
        labels     of every branch the place of its first label; those before it are read and not said

    A row of one text has the same logits as that text alone; of several, each the same up to rounding.
    """

    trunk: list[int]
    branches: list[list[int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Row:
        """Of texts (what is read, what is said)."""
        trunk = os.path.commonprefix([list(read) for read, _ in texts])
        rests = [list(read[len(trunk) :]) for read, _ in texts]
        return cls(trunk, [rest + list(said) for rest, (_, said) in zip(rests, texts)], [len(rest) for rest in rests])

    @property
    def texts(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """(What is read, what is said) of every branch."""
        return [((*self.trunk, *b[:first]), tuple(b[first:])) for b, first in zip(self.branches, self.labels)]

    @property
    def ids(self) -> list[int]:
        return [*self.trunk, *(token for branch in self.branches for token in branch)]

    @property
    def said(self) -> list[int]:
        """The labels of all branches."""
        return [token for branch, first in zip(self.branches, self.labels) for token in branch[first:]]

    def columns(self) -> list[int]:
        """Of every label the column of the token before it, whose logits predict it."""
        out, start = [], len(self.trunk)
        for branch, first in zip(self.branches, self.labels):
            out += [start + k - 1 if k else len(self.trunk) - 1 for k in range(first, len(branch))]
            start += len(branch)
        return out

    def layout(self) -> tuple[list[int], list[int]]:
        """(position in its own text, branch) of every token; the trunk is branch 0."""
        trunk = len(self.trunk)
        positions, numbers = list(range(trunk)), [0] * trunk
        for number, branch in enumerate(self.branches, 1):
            positions += range(trunk, trunk + len(branch))
            numbers += [number] * len(branch)
        return positions, numbers


def grouped(
    texts: Iterable[Text], begins: Callable[[Text], tuple[Hashable, Sequence[int]]], size: Callable[[Text], int]
) -> list[list[Text]]:
    """The texts that share a row. begins: under which Δ a text stands, and its trunk; size: tokens of its branch."""
    rows: list[list[Text]] = []
    open_: dict[Hashable, tuple[list[Text], int]] = {}
    for text in texts:
        under, trunk = begins(text)
        key = (under, *trunk)
        row, used = open_.get(key, ([], len(trunk)))
        if not row or used + size(text) > LONGEST:
            row, used = [], len(trunk)
            rows.append(row)
        row.append(text)
        open_[key] = row, used + size(text)
    return rows


def joined(
    rows: Iterable[list[Text]], under: Callable[[Text], Hashable], prompt: Callable[[Text], Sequence[int]],
    size: Callable[[Text], int],
) -> list[list[Text]]:  # fmt: skip
    """Rows of texts of one prompt each, those of prompts that begin alike put together where that saves tokens.

    under: the Δ of a text; size: tokens that it says.
    """
    out: list[list[Text]] = []
    open_: dict[Hashable, tuple[list[Text], list[int], int]] = {}  # by Δ: a row, how it begins, and its tokens
    for row in rows:
        own, said = list(prompt(row[0])), sum(map(size, row))
        if (begun := open_.get(under(row[0]))) is not None:
            texts, trunk, tokens = begun
            common = os.path.commonprefix([trunk, own])
            # The beginning is there once; what it no longer covers of a prompt is there for each text.
            repeated = ((len(texts) - 1) * (len(trunk) - len(common)), (len(row) - 1) * (len(own) - len(common)))
            saved = len(common) - sum(repeated)
            whole = tokens + len(own) + said - saved
            if whole <= JOINED and saved >= SHARED:
                texts += row
                open_[under(row[0])] = texts, common, whole
                continue
        out.append(list(row))
        open_[under(row[0])] = out[-1], own, len(own) + said
    return out


def logits_of(policy: Policy, bank: AdapterBank, rows: Sequence[Row]) -> Tensor:
    """Logits [labels, V] that predict the labels of the rows, differentiable in θ0."""
    columns = [row.columns() for row in rows]
    for route in routes.here():
        route.narrow([len(found) for found in columns], sum(map(len, columns)))
    places = [r for r, found in enumerate(columns) for _ in found]
    layout: list[Tensor | Below | None] = []
    if any(len(row.branches) > 1 for row in rows):
        layout = [padded(x, bank.device) for x in zip(*(row.layout() for row in rows))]
    if (under_all := below(rows, bank.first_layer, bank.device)) is not None:
        layout = [*(layout or (None, None)), under_all]
    ids = padded([row.ids for row in rows], bank.device)
    return policy.logits(ids, places, list(itertools.chain(*columns)), *layout)


def below(rows: Sequence[Row], layers: int, device) -> Below | None:
    """The rows as the first `layers` compute them, which no Δ reaches: every text once. None where that saves little."""
    texts = list(dict.fromkeys(text for row in rows for text in row.texts))
    if not layers or len(texts) == sum(len(row.branches) for row in rows):
        return None

    def size(text) -> int:
        return len(text[1])

    alike = joined(grouped(texts, lambda text: (None, text[0]), size), lambda _: None, lambda text: text[0], size)
    once = [Row.of(row) for row in alike]
    longest = max(len(row.ids) for row in once)
    if 4 * len(once) * longest > 3 * len(rows) * max(len(row.ids) for row in rows):
        return None
    where = {text: spots for r, row in enumerate(once) for text, spots in zip(row.texts, _columns(row, r * longest))}
    at = []
    for row in rows:
        spots = [where[text] for text in row.texts]
        own, trunk = [len(read) + len(said) for read, said in row.texts], len(row.trunk)
        at.append([*spots[0][:trunk], *(spot for mine, end in zip(spots, own) for spot in mine[trunk:end])])
    positions, branches = (padded(x, device) for x in zip(*(row.layout() for row in once)))
    return Below(padded([row.ids for row in once], device), positions, branches, padded(at, device), layers)


def _columns(row: Row, first: int) -> list[list[int]]:
    """Of every text of a row the columns of its tokens, counted from `first`."""
    trunk, start, out = len(row.trunk), len(row.trunk), []
    for branch in row.branches:
        out.append([first + c for c in (*range(trunk), *range(start, start + len(branch)))])
        start += len(branch)
    return out


def padded(sequences: Sequence[list[int]], device) -> Tensor:
    """Token ids int64 [len(sequences), longest], zeros to the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in sequences], batch_first=True).to(device)
