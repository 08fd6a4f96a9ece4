"""The steps of decoding, one token a row: in memory that is made as large as it must be (`Growing`), or at fixed addresses
(`Lent`, `Steps`).

At fixed addresses everything that a step reads and writes lies in memory allocated once, so that on a GPU it is captured as one
CUDA graph and replayed. Elsewhere the same function runs step by step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import token
from ..adapters.attach import Route
from ..adapters.bank import AdapterBank
from ..adapters.routes import alone
from ..models import forward as fw
from ..models.experts import fixed_shapes
from .graphs import addresses, captured
from .prefill import routed

Part = tuple[fw.KVCache, Tensor]  # a prefilled cache, and which of its rows (int64 indices)

ROOM = 0.25  # of a GPU's memory: what the keys and values of captured steps of one bank, or model, may take

captures: dict[tuple, int] = {}
"""How often a step was captured, by (rows, columns, dtype): once each for a bank, or a model without one, as long as there is
room for all, the weights stay where they are and one thread decodes."""


def bucket(rows: int) -> int:
    """Rows of the step that `rows` rows run in: powers of two, at least 4."""
    return max(fw.ROWS, 1 << (rows - 1).bit_length())


def extent(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of the `Steps` that so many rows of so many columns run in.

    Columns go by 512, and beyond 4096 by an eighth of the power of two above: a step reads them all, and each is captured anew.
    """
    width = max(512, (1 << (columns - 1).bit_length()) // 8)
    return bucket(rows), -(-columns // width) * width


def _make_room(kept: dict[tuple, Steps], need: int, device: torch.device) -> None:
    if device.type == "cuda":
        room = ROOM * torch.cuda.get_device_properties(device).total_memory
        while kept and need + sum(steps.cache.memory.nbytes for steps in list(kept.values())) > room:
            kept.pop(next(iter(kept)), None)


class _Columns:
    """Keys and values [rows, heads, columns, head_dim] of every layer; a step writes in row r the column at[r].

    Attention sees the first `shown` columns. What is masked must be finite: what nobody has written is zeroed when it is first
    shown, and again where a row served somebody before.
    """

    def __init__(self, model, rows: int, columns: int, like: Tensor):
        self.memory = like.new_empty(self.shape(model, rows, columns))
        self.rows = torch.arange(rows, device=like.device)
        self.at = torch.zeros_like(self.rows)
        self.shown = 0
        self._written = [0] * rows  # columns of each row that were written or zeroed for whom it serves

    @staticmethod
    def shape(model, rows: int, columns: int) -> tuple[int, ...]:
        """[layers, 2, rows, heads, columns, head_dim]"""
        config = model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return config.num_hidden_layers, 2, rows, config.num_key_value_heads, columns, size

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        keys, values = self.memory[layer_idx]
        keys[self.rows, :, self.at] = key[:, :, 0].to(keys.dtype)  # torch.autocast makes them of several kinds
        values[self.rows, :, self.at] = value[:, :, 0].to(values.dtype)
        return self.layer(layer_idx)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """The keys and the values of a layer, as far as they are shown."""
        keys, values = self.memory[index]
        return keys[:, :, : self.shown], values[:, :, : self.shown]

    def show(self, columns: int) -> None:
        """Have attention see so many columns of all rows."""
        for written, alike in itertools.groupby(range(len(self._written)), self._written.__getitem__):
            rows = list(alike)
            if written < columns:
                self.memory[:, :, rows[0] : rows[-1] + 1, :, written:columns] = 0.0
        self._written = [max(written, columns) for written in self._written]
        self.shown = columns

    def move(self, other: _Columns, rows: Sequence[int]) -> None:
        """Have these rows of another one as the first."""
        written = [min(other._written[row], self.memory.shape[4]) for row in rows]
        taken = torch.tensor(rows, dtype=torch.int64, device=self.rows.device)
        self.memory[:, :, : len(rows), :, : max(written)] = other.memory[:, :, taken, :, : max(written)]
        self._written[: len(rows)] = written

    def put(self, places: Sequence[int], part: Part) -> None:
        """Have what was read in these rows."""
        at = torch.tensor(places, dtype=torch.int64, device=self.rows.device)
        cache, rows = part
        for layer in range(len(self.memory)):
            for mine, read in zip(self.memory[layer], cache.layer(layer)):
                mine[at, :, : cache.length] = read[rows, :, : cache.length].to(mine.dtype)
        for place in places:
            self._written[place] = cache.length


@dataclass(frozen=True)
class Spots:
    """What one step computes: of every row the token, its position, the column of its keys and values (int64 [rows] each), its
    slot, and the columns that it sees, bool [rows, columns]. Nobody sees more than the first `shown`. alike: see ops.attend."""

    token: Tensor
    position: Tensor
    column: Tensor
    slots: list[int]
    visible: Tensor
    shown: int
    alike: Tensor | None = None


class Steps:
    """One token a row: `rows` rows over `columns` columns of context, each row with its own slot of the bank."""

    def __init__(self, model, bank: AdapterBank | None, rows: int, columns: int):
        weight = next(model.parameters())
        device = weight.device
        self.model, self.bank, self.key = model, bank, (rows, columns, weight.dtype)
        self.ids, self.position = (torch.zeros(rows, 1, dtype=torch.int64, device=device) for _ in range(2))
        self.mask = torch.zeros(rows, 1, 1, columns, dtype=torch.bool, device=device)
        self.cache = _Columns(model, rows, columns, weight)
        self.cache.show(columns)
        self.route = None if bank is None else Route(bank, [-1] * rows, learn=False)
        self.slots: list[int] | None = None  # those that the route names
        self.logits: Tensor | None = None
        self.addresses = addresses(model, bank)
        self.few = token.fits(model, device)  # kernels a layer
        self._graph: torch.cuda.CUDAGraph | None = None

    @classmethod
    @contextmanager
    def lend(cls, model, bank: AdapterBank | None, rows: int, columns: int) -> Iterator[Steps]:
        """Those kept with the bank, or else with the model, for this block alone; made when first asked for, when all are lent
        to other threads, and when the weights have moved.

        Of a GPU's memory those kept hold ROOM at most, or one of them more than that: those longest unused make room, and are
        captured anew when asked for again.
        """
        key = extent(rows, columns)
        kept = vars(model if bank is None else bank).setdefault("_decode_steps", {})
        steps = kept.pop(key, None)
        if steps is None or steps.addresses != addresses(model, bank):
            weight = next(model.parameters())
            _make_room(kept, math.prod(_Columns.shape(model, *key)) * weight.element_size(), weight.device)
            steps = cls(model, bank, *key)
        try:
            yield steps
        finally:
            _make_room(kept, steps.cache.memory.nbytes, steps.ids.device)
            kept[key] = steps  # at the end: used last

    def __call__(self, spots: Spots) -> Tensor:
        """Logits [rows, V] of the next tokens, fp32."""
        self.ids[:, 0], self.position[:, 0], self.cache.at[:] = spots.token, spots.position, spots.column
        self.mask[:, 0, 0] = spots.visible
        if self.route is not None and self.slots != spots.slots:
            named = self.route.segments(self.ids[..., None]).slot
            named[:] = torch.tensor(spots.slots, dtype=torch.int32, device=named.device)
            self.slots = spots.slots
        if self.ids.is_cuda:
            if self._graph is None:
                self._capture()
            self._graph.replay()
        else:
            self._run()
        return self.logits

    def _run(self) -> None:
        # A graph would keep the addresses of the copies that autocast makes of the weights, and lets go of.
        plain = torch.autocast(self.ids.device.type, enabled=False)
        with plain, fixed_shapes(), alone([] if self.route is None else [self.route]):
            hidden = fw.embed(self.model, self.ids)
            if self.few:
                hidden = token.layers(self.model, hidden, self.position, self.mask, self.cache, self.route)
            else:
                hidden = fw.layers(self.model, hidden, self.position, self.mask, cache=self.cache)[:, 0]
            self.logits = fw.logits(self.model, hidden, normed=self.few)

    def _capture(self) -> None:
        self._graph = captured(self._run)
        captures[self.key] = captures.get(self.key, 0) + 1


class Growing:
    """Steps over exactly the rows and columns that are needed, in memory that is made anew when these change."""

    grows = True

    def __init__(self, model, bank: AdapterBank | None):
        self.model, self.bank = model, bank
        self.rows, self.columns = 0, 0
        self.cache: _Columns | None = None
        self.by_rows = token.fits_rows(model)

    def resize(self, kept: Sequence[int], rows: int, columns: int, like: Tensor | None = None) -> None:
        """Go on with `rows` rows of `columns` columns, first those of now that are `kept`. like: keys of a prompt, at first."""
        like = like if self.cache is None else self.cache.memory
        cache = _Columns(self.model, rows, columns, like)
        if self.cache is not None and kept:
            cache.move(self.cache, kept)
        self.cache, self.rows, self.columns = cache, rows, columns

    def put(self, places: Sequence[int], part: Part) -> None:
        """Rows that served nobody begin with what was read."""
        self.cache.put(places, part)

    def __call__(self, spots: Spots) -> Tensor:
        """Logits [rows, V] of the next tokens, fp32."""
        self.cache.at = spots.column
        self.cache.show(spots.shown)
        mask = spots.visible[:, None, None, : spots.shown]
        with routed(self.bank, None if self.bank is None else spots.slots) as route:
            embedded, position = fw.embed(self.model, spots.token[:, None]), spots.position[:, None]
            if self.by_rows and not _lowered(embedded.dtype):
                with torch.autocast("cpu", enabled=False):
                    where = position, mask, self.cache
                    normed = token.layers(self.model, embedded, *where, route, rows=True, alike=spots.alike)
                    return token.logits(self.model, normed)
            hidden = fw.layers(self.model, embedded, position, mask, cache=self.cache)[:, 0]
        return fw.logits(self.model, hidden)


def _lowered(dtype: torch.dtype) -> bool:
    """Whether torch.autocast asks for another dtype on a CPU than that of the weights."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != dtype


class Lent:
    """`Steps` for as many rows and columns as are needed or more, lent until `until` closes.

    They are all columns that the rows may ever need: with more later, what is held and what takes over would both be there.
    """

    grows = False

    def __init__(self, until: ExitStack, model, bank: AdapterBank | None):
        self.model, self.bank = model, bank
        self.rows, self.columns = 0, 0
        self.steps: Steps | None = None
        self._lent = ExitStack()  # until these steps are given back
        until.callback(lambda: self._lent.close())

    def resize(self, kept: Sequence[int], rows: int, columns: int, like: Tensor | None = None) -> None:
        """As `Growing.resize`; it may be more rows and columns, and the weights say of which kind."""
        with ExitStack() as lent:
            steps = lent.enter_context(Steps.lend(self.model, self.bank, rows, columns))
            if self.steps is not None and kept:
                steps.cache.move(self.steps.cache, kept)
                steps.cache.show(steps.mask.shape[3])
            before, self._lent = self._lent, lent.pop_all()
        before.close()
        self.steps = steps
        self.rows, self.columns = steps.mask.shape[0], steps.mask.shape[3]

    def put(self, places: Sequence[int], part: Part) -> None:
        """As `Growing.put`."""
        self.steps.cache.put(places, part)
        self.steps.cache.show(self.columns)

    def __call__(self, spots: Spots) -> Tensor:
        return self.steps(spots)
