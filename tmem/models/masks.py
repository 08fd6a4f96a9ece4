"""Which keys a query sees. The mask of a text of T tokens would have T² entries, so it is a rule, of which rows are made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 16  # columns of keys and values that attention sees together, see forward.KVCache


@dataclass(frozen=True)
class Branches:
    """Texts that share the beginning of a row: a token sees what precedes it on branch 0, the trunk, and on its own branch.

    numbers  int64 [1 or B, T]: the branch of every token, from 1 on, each side by side; 0 on the trunk, which comes first, and
             in padding behind the branches
    before   int64 [B, 1]: the tokens are preceded by others, of which row b's first before[b] are seen; None: by none
    padded   the columns in which those stand
    most     branches of a row at most; None: as many as there are tokens
    """

    numbers: Tensor
    before: Tensor | None = None
    padded: int = 0
    most: int | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        """bool [1 or B, 1, stop - start, padded + stop]: what tokens `start` to `stop` see; none sees a column behind these."""
        keys, queries = self.numbers[:, None, None, :stop], self.numbers[:, None, start:stop, None]
        new = ((keys == 0) | (keys == queries)).tril(start)
        if self.before is None:
            return new
        old = torch.arange(self.padded, device=self.before.device) < self.before
        rows = max(len(old), len(new))
        return torch.cat([part.expand(rows, 1, stop - start, -1) for part in (old[:, None, None], new)], -1)

    @classmethod
    def counted(cls, numbers: Tensor) -> Branches:
        """Those of a pass that may read values: how many there are."""
        return cls(numbers, most=int(numbers.max()) if numbers.numel() and not numbers.is_cuda else None)

    @property
    def runs(self) -> Tensor | None:
        """int32 [1 or B, N+1], as ops.attend_branches takes them: where in a row the trunk ends, and each of its branches. None
        where others precede the tokens. No value is read on the host."""
        if self.before is not None:
            return None
        rows, length = self.numbers.shape
        at = torch.arange(length, device=self.numbers.device)
        end = torch.where(self.numbers != 0, at + 1, 0).amax(-1, keepdim=True) if length else self.numbers.new_zeros(rows, 1)
        end = torch.where(end == 0, length, end)  # what is on no branch and follows them is padding
        begins = torch.where(self.numbers.diff(dim=-1) != 0, at[1:], length)
        trunk = torch.where(self.numbers[:, :1] != 0, 0, length)
        found = torch.cat([trunk, begins, torch.full_like(end, length)], 1).sort(-1).values.minimum(end)
        found = torch.cat([torch.zeros_like(end), found], 1).to(torch.int32)
        return found if self.most is None else found[:, : self.most + 2]


@dataclass(frozen=True)
class Joined:
    """Rows of branches one behind another in a batch of one, where each takes no more room than it has tokens: a token sees
    those of its own row, as with Branches. In passes by pieces alone.

    runs  int32 [R, N+1], as ops.attend_branches takes them
    """

    runs: Tensor

    @classmethod
    def of(cls, numbers: list[list[int]]) -> Joined:
        """From the branch of every token, row by row."""
        ends, at = [], 0
        for row in numbers:
            branches = Counter(row)
            own = [at, *(at := at + branches[number] for number in range(max(row, default=0) + 1))]
            ends.append(own)
        most = max(map(len, ends))
        return cls(torch.tensor([own + [own[-1]] * (most - len(own)) for own in ends], dtype=torch.int32))

    def only(self, rows: list[int]) -> Joined:
        """Some of the rows, one behind another again."""
        runs = self.runs[rows]
        lengths = runs[:, -1] - runs[:, 0]
        return Joined((runs - runs[:, :1] + (lengths.cumsum(0) - lengths)[:, None]).to(torch.int32))


Rule = Branches | Joined


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
