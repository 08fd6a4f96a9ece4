"""Which keys a query sees. The mask of a text of T tokens would have T² entries, so it is a rule, of which rows are made."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

GROUP = 16  # columns of keys and values that attention sees together, see forward.KVCache


@dataclass(frozen=True)
class Branches:
    """Texts that share the beginning of a row: a token sees what precedes it on branch 0, the trunk, and on its own branch.

    numbers  int64 [1 or B, T]: the branch of every token
    before   int64 [B, 1]: the tokens are preceded by others, of which row b's first before[b] are seen; None: by none
    padded   the columns in which those stand
    """

    numbers: Tensor
    before: Tensor | None = None
    padded: int = 0

    def rows(self, start: int, stop: int) -> Tensor:
        """bool [1 or B, 1, stop - start, padded + stop]: what tokens `start` to `stop` see; none sees a column behind these."""
        keys, queries = self.numbers[:, None, None, :stop], self.numbers[:, None, start:stop, None]
        new = ((keys == 0) | (keys == queries)).tril(start)
        if self.before is None:
            return new
        old = torch.arange(self.padded, device=self.before.device) < self.before
        rows = max(len(old), len(new))
        return torch.cat([part.expand(rows, 1, stop - start, -1) for part in (old[:, None, None], new)], -1)

    @property
    def runs(self) -> Tensor | None:
        """int32 [1 or B, N+1], as ops.attend_branches takes them: where in a row the trunk ends, and each of its branches. None
        where tokens of a branch do not stand side by side, the trunk's first, or where others precede them."""
        rows = None if self.before is not None else [_ends(row) for row in self.numbers.tolist()]
        if rows is None or None in rows:
            return None
        longest = max(map(len, rows), default=2)
        return torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows], dtype=torch.int32).view(-1, longest)


def _ends(numbers: list[int]) -> list[int] | None:
    """Where the runs of a row end, from 0 and the trunk's on. What follows the branches and is on none of them is padding."""
    groups = [(number, len(list(group))) for number, group in groupby(numbers)]
    if len(groups) > 1 and groups[-1][0] == 0:
        groups.pop()
    if not groups or groups[0][0]:
        groups.insert(0, (0, 0))
    if len({number for number, _ in groups}) < len(groups):
        return None
    ends = [0]
    for _, length in groups:
        ends.append(ends[-1] + length)
    return ends


def causal(length: int, device: torch.device | str = "cpu") -> Tensor:
    """bool [1, 1, length, length], True where a query (row) sees a key (column).

    Right padding needs nothing more: a real token never looks at a later pad.
    """
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def band(length: int, before: int, window: int, like: Tensor) -> Tensor:
    """[length, before + length] of `like`'s dtype, to be added to scores: 0 where query i sees key j - before, else -inf.

    It sees the last `window` keys, itself among them.
    """
    query = before + torch.arange(length, device=like.device)[:, None]
    behind = query - torch.arange(before + length, device=like.device)
    return like.new_zeros(behind.shape).masked_fill_((behind < 0) | (behind >= window), float("-inf"))


def bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """`mask` (bool) to be added to scores: 0 where a query sees a key, else -inf."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def windowed(mask: Tensor, window: int | None) -> Tensor:
    """`mask` bool [..., columns] with the last `window` True columns of every query alone; None: as it is."""
    if window is None or mask.shape[-1] <= window:
        return mask
    seen = mask.cumsum(-1, dtype=torch.int32)  # up to a column
    return mask & (seen > seen[..., -1:] - window)


def shown(length: int) -> int:
    """How many columns attention sees when `length` are written: whole groups."""
    return -(-length // GROUP) * GROUP
