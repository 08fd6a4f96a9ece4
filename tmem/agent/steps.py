"""The steps of decoding, one token a row: on a cache that loses rows (`Growing`), or at fixed addresses (`Lent`, `Steps`).

At fixed addresses everything that a step reads and writes lies in memory allocated once, so that on a GPU it is captured as one
CUDA graph and replayed. Elsewhere the same function runs step by step. A graph keeps the addresses of the weights it was
captured with: once they lie elsewhere it is made anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from ..adapters.attach import Route
from ..adapters.bank import AdapterBank
from ..adapters.routes import alone
from ..models import forward as fw
from .prefill import routed

ROOM = 0.25  # of a GPU's memory: what the keys and values of captured steps of one bank, or model, may take

captures: dict[tuple, int] = {}
"""How often a step was captured, by (rows, columns, dtype): once each for a bank, or a model without one, as long as there is
room for all, the weights stay where they are and one thread decodes."""


def bucket(rows: int) -> int:
    """Rows of the step that `rows` rows run in: powers of two, at least 4."""
    return max(fw.ROWS, 1 << (rows - 1).bit_length())


def outdate(model) -> None:
    """To be called when the model's weights are about to lie elsewhere: nothing captured before is replayed again."""
    model._weights_published = object()


def _addresses(model, bank: AdapterBank | None) -> tuple:
    """Where everything lies that a step reads and does not own."""
    tensors = [*model.parameters(), *model.buffers()]
    if bank is not None:
        tensors += [bank.param, bank.rank, bank.scale]
        tensors += [x for site in bank.sites for x in (site.a, site.a_copy, site.bt_copy) if x is not None]
    return vars(model).get("_weights_published"), *((x.data_ptr(), x.dtype, x.shape) for x in tensors)


def _make_room(kept: dict[tuple, Steps], need: int, device: torch.device) -> None:
    if device.type == "cuda":
        room = ROOM * torch.cuda.get_device_properties(device).total_memory
        while kept and need + sum(steps.cache.memory.nbytes for steps in list(kept.values())) > room:
            kept.pop(next(iter(kept)), None)


class _Columns:
    """Keys and values [B, heads, columns, head_dim] of every layer; a step writes in row r the column at[r]."""

    def __init__(self, model, rows: int, columns: int, at: Tensor, like: Tensor):
        self.memory, self.at = like.new_zeros(self.shape(model, rows, columns)), at
        self.rows = torch.arange(rows, device=like.device)

    @staticmethod
    def shape(model, rows: int, columns: int) -> tuple[int, ...]:
        """[layers, 2, rows, heads, columns, head_dim]"""
        config = model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return config.num_hidden_layers, 2, rows, config.num_key_value_heads, columns, size

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        keys, values = self.memory[layer_idx]
        keys[self.rows, :, self.at] = key[:, :, 0]
        values[self.rows, :, self.at] = value[:, :, 0]
        return keys, values


class Steps:
    """One token a row: `rows` rows over `columns` columns of context, each row with its own slot of the bank."""

    def __init__(self, model, bank: AdapterBank | None, rows: int, columns: int):
        weight = next(model.parameters())
        device = weight.device
        self.model, self.bank, self.key = model, bank, (rows, columns, weight.dtype)
        self.ids, self.position = (torch.zeros(rows, 1, dtype=torch.int64, device=device) for _ in range(2))
        self.columns = torch.zeros(rows, dtype=torch.int64, device=device)
        self.mask = torch.zeros(rows, 1, 1, columns, dtype=torch.bool, device=device)
        self.cache = _Columns(model, rows, columns, self.columns, weight)
        self.route = None if bank is None else Route(bank, [-1] * rows, learn=False)
        self.logits: Tensor | None = None
        self.addresses = _addresses(model, bank)
        self._graph: torch.cuda.CUDAGraph | None = None

    @classmethod
    @contextmanager
    def lend(cls, model, bank: AdapterBank | None, rows: int, columns: int) -> Iterator[Steps]:
        """Those kept with the bank, or else with the model, for this block alone; made when first asked for, when all are lent
        to other threads, and when the weights have moved.

        Of a GPU's memory those kept hold ROOM at most, or one of them more than that: those longest unused make room, and are
        captured anew when asked for again.
        """
        key = (bucket(rows), max(512, 1 << (columns - 1).bit_length()))
        kept = vars(model if bank is None else bank).setdefault("_decode_steps", {})
        steps = kept.pop(key, None)
        if steps is None or steps.addresses != _addresses(model, bank):
            weight = next(model.parameters())
            _make_room(kept, math.prod(_Columns.shape(model, *key)) * weight.element_size(), weight.device)
            steps = cls(model, bank, *key)
        try:
            yield steps
        finally:
            _make_room(kept, steps.cache.memory.nbytes, steps.ids.device)
            kept[key] = steps  # at the end: used last

    def begin(self, cache: fw.KVCache, slots: list[int] | None) -> None:
        """Take over the rows of a joined cache."""
        self.cache.memory.zero_()
        for layer, kept in cache._kv.items():
            for part, source in enumerate(kept):
                self.cache.memory[layer, part, : len(source), :, : cache.length] = source[:, :, : cache.length]
        self._take(slots, len(cache.columns))

    def move(self, other: Steps, rows: Tensor, slots: list[int] | None) -> None:
        """Take over `rows` of another one, which has as many columns."""
        self.cache.memory[:, :, : len(rows)] = other.cache.memory[:, :, rows]
        self._take(slots, len(rows))

    def _take(self, slots: list[int] | None, count: int) -> None:
        self.ids.zero_()
        self.position.zero_()
        self.columns.zero_()
        self.mask.zero_()
        self.mask[count:, ..., 0] = True  # a row that serves nothing still attends to something
        if self.route is not None:
            named = self.route.segments(self.ids[..., None]).slot
            named.fill_(-1)
            named[:count] = torch.tensor(slots, dtype=torch.int32, device=named.device)

    def __call__(self, token: Tensor, position: Tensor, visible: Tensor, columns: Tensor) -> Tensor:
        """token, position, columns int64 [n], visible bool [n, columns so far] -> fp32 logits [n, V] of the next token.

        columns: where each row's keys and values go.
        """
        count = len(token)
        self.ids[:count, 0], self.position[:count, 0], self.columns[:count] = token, position, columns
        self.mask[:count, 0, 0, : visible.shape[1]] = visible
        if self.ids.is_cuda:
            if self._graph is None:
                self._capture()
            self._graph.replay()
        else:
            self._run()
        return self.logits[:count]

    def _run(self) -> None:
        # A graph would keep the addresses of the copies that autocast makes of the weights, and lets go of.
        plain = torch.autocast(self.ids.device.type, enabled=False)
        with plain, alone([] if self.route is None else [self.route]):
            hidden = fw.layers(self.model, fw.embed(self.model, self.ids), self.position, self.mask, cache=self.cache)
            self.logits = fw.logits(self.model, hidden[:, 0])

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are compiled and handles made before anything is recorded
            for _ in range(3):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may allocate meanwhile
            self._run()
        self._graph = graph
        captures[self.key] = captures.get(self.key, 0) + 1


class Growing:
    """Steps on a joined cache, whose columns grow and whose rows leave. slots: of the rows, None: no bank."""

    def __init__(self, model, bank: AdapterBank | None, cache: fw.KVCache, slots: list[int] | None):
        self.model, self.bank, self.cache, self.slots = model, bank, cache, slots

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` (int64 indices) alone."""
        self.cache.keep(rows)
        self.slots = self.slots and [self.slots[r] for r in rows.tolist()]

    def __call__(self, token: Tensor, position: Tensor, visible: Tensor, columns: Tensor) -> Tensor:
        """As `Steps.__call__`; the cache itself knows the `columns`."""
        mask = visible[:, None, None, : self.cache.shown(self.cache.length + 1)]
        with routed(self.bank, self.slots):
            embedded = fw.embed(self.model, token[:, None])
            hidden = fw.layers(self.model, embedded, position[:, None], mask, cache=self.cache)[:, 0]
        logits = fw.logits(self.model, hidden)
        self.cache.advance(1)
        return logits


class Lent:
    """`Steps` for as many rows as are left, lent until `until` closes; the rows of a joined cache are taken over."""

    def __init__(self, until: ExitStack, model, bank: AdapterBank | None, cache: fw.KVCache, slots: list[int] | None):
        self.until, self.model, self.bank = until, model, bank
        self.capacity, self.slots = cache.capacity, slots
        self.steps = self._borrowed(len(cache.columns))
        self.steps.begin(cache, slots)

    def _borrowed(self, rows: int) -> Steps:
        return self.until.enter_context(Steps.lend(self.model, self.bank, rows, self.capacity))

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` (int64 indices) alone."""
        self.slots = self.slots and [self.slots[r] for r in rows.tolist()]
        smaller = self._borrowed(len(rows))
        smaller.move(self.steps, rows, self.slots)
        self.steps = smaller

    def __call__(self, token: Tensor, position: Tensor, visible: Tensor, columns: Tensor) -> Tensor:
        return self.steps(token, position, visible, columns)
