"""Decode steps at fixed addresses: everything a step reads and writes lies in memory allocated once, so that on a GPU it is
captured as one CUDA graph and replayed. Elsewhere the same function runs step by step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import forward as fw
from ..attach import Route
from ..bank import AdapterBank

ROOM = 0.25  # of a GPU's memory: what the keys and values of captured steps of one bank, or model, may take

captures: dict[tuple, int] = {}
"""How often a step was captured, by (rows, columns, dtype): once each for a bank, or a model without one, as long as there is
room for all."""


def bucket(rows: int) -> int:
    """Rows of the step that `rows` rows run in: powers of two, at least 4."""
    return max(fw.ROWS, 1 << (rows - 1).bit_length())


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
        self._graph: torch.cuda.CUDAGraph | None = None

    @classmethod
    def of(cls, model, bank: AdapterBank | None, rows: int, columns: int) -> Steps:
        """Those kept with the bank, or else with the model; made when first asked for. Of a GPU's memory they hold ROOM at
        most, or one of them more than that: those longest unused make room, and are captured anew when asked for again."""
        key = (bucket(rows), max(512, 1 << (columns - 1).bit_length()))
        kept = vars(model if bank is None else bank).setdefault("_decode_steps", {})
        if key in kept:
            kept[key] = kept.pop(key)  # to the end: used last
            return kept[key]
        weight = next(model.parameters())
        if weight.is_cuda:
            room = ROOM * torch.cuda.get_device_properties(weight.device).total_memory
            need = math.prod(_Columns.shape(model, *key)) * weight.element_size()
            while kept and need + sum(steps.cache.memory.nbytes for steps in kept.values()) > room:
                del kept[next(iter(kept))]
        kept[key] = cls(model, bank, *key)
        return kept[key]

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
        bank = self.bank
        if bank is not None:
            before, bank.current_route = bank.current_route, self.route
        try:
            hidden = fw.layers(self.model, fw.embed(self.model, self.ids), self.position, self.mask, cache=self.cache)
        finally:
            if bank is not None:
                bank.current_route = before
        self.logits = fw.logits(self.model, hidden[:, 0])

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are compiled and handles made before anything is recorded
            for _ in range(3):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._run()
        captures[self.key] = captures.get(self.key, 0) + 1
