"""Texts that begin alike as one row of a pass: the beginning, computed once, then what continues it, branch after branch."""

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
    layout: list[Tensor] = []
    if any(len(row.branches) > 1 for row in rows):
        layout = [padded(x, bank.device) for x in zip(*(row.layout() for row in rows))]
    ids = padded([row.ids for row in rows], bank.device)
    return policy.logits(ids, places, list(itertools.chain(*columns)), *layout)


def padded(sequences: Sequence[list[int]], device) -> Tensor:
    """Token ids int64 [len(sequences), longest], zeros to the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in sequences], batch_first=True).to(device)
