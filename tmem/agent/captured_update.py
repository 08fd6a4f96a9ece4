"""The step of an online update at fixed addresses: forward, loss of the labels, backward and the optimizer's step of a block.

Everything that a step reads and writes lies in memory allocated once for each extent (rows, tokens, labels), and no value is
read on the host. So on a GPU it is captured as one CUDA graph and replayed. Elsewhere the same function runs step by step. A
block is filled up to its extent with rows that are nobody's and labels that weigh nothing, which reach no slot.

A slot's rows are all in one block. So its gradient is complete when the block's backward ends, it replaces what was there
before, and the slot may be stepped at once.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapters import routes
from ..adapters.attach import Route
from ..adapters.bank import AdapterBank, changed, counts_as_zero, move
from ..models import forward as fw
from ..models.families import FAMILIES
from ..models.masks import Rule
from .graphs import addresses, captured

# Of a step at most, padded tokens · D². With more, arithmetic takes longer than launches, and a graph saves less than the rows
# that fill it up cost. It is an estimate, 2,600 tokens of a 4B model, that no GPU has timed.
WORK = 2**34
KEPT = 32  # extents of a bank, those that came first
LABELS = 16  # of a step, at least


class Block(Protocol):
    """Rows that learn together.

    hidden         [B, T, D], what the layers below the adapted ones make of them
    positions      int64 [B, T]
    seen           the tokens that every token sees, Branches of padded rows
    starts         of each row where it begins among the B · T tokens
    slots          of each row
    lengths        of each row its real tokens, which come first
    rows, columns  of each label: where the state is that predicts it
    targets        of each label: its token
    weights        of each label: what its loss is multiplied with
    """

    hidden: Tensor
    positions: Tensor
    seen: Any
    slots: list[int]
    lengths: list[int]
    rows: list[int]
    columns: list[int]
    targets: list[int]
    weights: list[float]

    @property
    def starts(self) -> list[int]: ...


def label_losses(
    model, hidden: Tensor, positions: Tensor, seen: Rule, start: int, at: Tensor, targets: Tensor, weights: Tensor
) -> Tensor:
    """The loss of every label times its weight [L], of a pass over hidden [B, T, D] from layer `start` on; at: int64 [L], the
    places of the labels' states in the B · T. Routes must serve [L, 1, K] as well, see Route.narrow."""
    hidden = fw.layers(model, hidden, positions, seen, start=start, by_pieces=True, at=at)
    if hidden.is_cpu:  # not by the public function, which reads the values of `targets`: the kernel alone does
        return torch.ops.tmem.token_logp(fw.head(model, hidden), targets)[0] * -weights
    return F.cross_entropy(fw.logits(model, hidden), targets, reduction="none") * weights


def places(block: Block) -> list[int]:
    """Where the labels' states are among all tokens of a block."""
    return [block.starts[row] + column for row, column in zip(block.rows, block.columns)]


def labelled(block: Block) -> list[int]:
    """How many labels every row of a block has; dummies are nobody's."""
    found = Counter(row for row, weight in zip(block.rows, block.weights) if weight)
    return [found[row] for row in range(len(block.slots))]


class Extent(NamedTuple):
    """What a step is captured for."""

    rows: int
    length: int
    labels: int

    @classmethod
    def of(cls, block: Block) -> Extent:
        """Labels go by powers of two, rows by quarters of the power above. The length stays, and with it the bits."""
        rows, labels = len(block.slots), len(block.targets)
        part = max(1, _power(rows) // 4)
        return cls(-(-rows // part) * part, block.hidden.shape[1], max(LABELS, _power(labels)))


def _power(count: int) -> int:
    """The least power of two that is no less."""
    return 1 << (count - 1).bit_length()


class Step:
    """One step over blocks of an extent, of which it has the inputs, and `losses` [labels]. At first they are nobody's.

    start   the first layer that is computed
    like    the states of a block
    record  what makes a function that does again all that a given one does; None: the function itself
    """

    def __init__(
        self, model, bank: AdapterBank, extent: Extent, start: int, like: Tensor, record: Callable[[Callable], Callable] | None
    ):
        rows, length, labels = extent
        self.model, self.bank, self.extent, self.start = model, bank, extent, start

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=like.device)

        self.hidden = zeros(rows, length, like.shape[2], dtype=like.dtype)
        self.positions, self.branches = (zeros(rows, length, dtype=torch.int64) for _ in range(2))
        self.off, self.slot = zeros(2 * rows + 1, dtype=torch.int32), zeros(2 * rows, dtype=torch.int32)
        self.label_off, self.label_slot = zeros(rows + 2, dtype=torch.int32), zeros(rows + 1, dtype=torch.int32)
        self.at, self.targets = (zeros(labels, dtype=torch.int64) for _ in range(2))
        self.weights = zeros(labels, dtype=torch.float32)
        self.moving = zeros(bank.slots, dtype=torch.bool)
        self.losses = zeros(labels, dtype=torch.promote_types(like.dtype, torch.float32))
        self.route = Route(bank, [-1] * rows, learn=True, lengths=None)
        self._segments([], [], [])
        self.run = self._run if record is None else record(self._run)

    def take(self, block: Block, moves: bool) -> None:
        """Have a block as input. moves: its slots are stepped."""
        rows, spare = len(block.slots), self.extent.labels - len(block.targets)
        self.hidden[:rows], self.positions[:rows], self.branches[:rows] = block.hidden, block.positions, block.seen.numbers
        self._segments(block.slots, block.lengths, labelled(block))
        _put(self.at, [*places(block), *[0] * spare])
        _put(self.targets, [*block.targets, *[0] * spare])
        _put(self.weights, [*block.weights, *[0.0] * spare])
        stepped = set(block.slots) if moves else ()
        _put(self.moving, [slot in stepped for slot in range(self.bank.slots)])

    def _segments(self, slots: Sequence[int], lengths: Sequence[int], counts: Sequence[int]) -> None:
        """Real tokens of every row, then its padding; nobody's rows are padding alone. counts: labels of every row."""
        rows, length, labels = self.extent
        spare = rows - len(slots)
        own = [n for real in (*lengths, *[0] * spare) for n in (real, length - real)]
        _put(self.off, [0, *itertools.accumulate(own)])
        _put(self.slot, [named for slot in (*slots, *[-1] * spare) for named in (slot, -1)])
        _put(self.label_off, [0, *itertools.accumulate((*counts, *[0] * spare)), labels])
        _put(self.label_slot, [*slots, *[-1] * (spare + 1)])

    @torch.enable_grad()
    def _run(self) -> None:
        self.route.lay(self.hidden.shape[:-1], self.off, self.slot)
        self.route.lay(torch.Size((self.extent.labels, 1)), self.label_off, self.label_slot)
        with routes.alone([self.route]):
            inputs = self.hidden, self.positions, fw.Branches(self.branches)
            losses = label_losses(self.model, *inputs, self.start, self.at, self.targets, self.weights)
            losses.sum().backward()
        self.losses.copy_(losses.detach())
        move(self.bank, self.moving)


def _put(tensor: Tensor, values: Sequence[int] | Sequence[float]) -> None:
    tensor.copy_(torch.tensor(values, dtype=tensor.dtype), non_blocking=True)  # from memory that is copied before this returns


class FixedSteps:
    """The steps at fixed addresses of a bank. One runs at a time, as graphs of one pool must.

    What is no step of theirs is launched kernel by kernel: blocks of more than WORK, extents beyond the first KEPT, and what
    comes after a capture that failed.
    """

    def __init__(self, model, bank: AdapterBank, start: int, where: tuple):
        self.model, self.bank, self.start, self.addresses = model, bank, start, where
        self.kept: dict[Extent, Step] = {}
        self.failed = False
        self._record, self._lock = recorder(bank.device), threading.Lock()

    @classmethod
    def of(cls, model, bank: AdapterBank, start: int) -> FixedSteps:
        """Those kept with the bank; made anew when the weights have moved."""
        where, kept = (start, *addresses(model, bank)), vars(bank)
        before = kept.get("_update_steps")
        if before is None or before.addresses != where:
            kept["_update_steps"] = cls(model, bank, start, where)
            kept["_update_steps"].failed = before is not None and before.failed
        return kept["_update_steps"]

    def __call__(self, block: Block, tenants: Route, moves: bool) -> list[float] | None:
        """Step the block's slots, if it `moves` them, and give the loss of every label times its weight, from before.

        None: the block is to be launched kernel by kernel. tenants: see AdapterBank.hold. Raises RuntimeError where a slot was
        given to somebody else meanwhile.
        """
        slots, bank = sorted(set(block.slots)), self.bank
        with self._lock:
            step = self._step(block)
            if step is None:
                return None
            step.take(block, moves)
            with bank.lock:
                tenants.alive()
                if not counts_as_zero(bank, slots):  # but is to be added to
                    return None
                changed(bank, slots if moves else ())
                step.run()
            return step.losses[: len(block.targets)].tolist()

    def _step(self, block: Block) -> Step | None:
        extent = Extent.of(block)
        if extent.rows * extent.length * block.hidden.shape[2] ** 2 > WORK:
            return None
        if extent not in self.kept and len(self.kept) < KEPT and not self.failed:
            try:
                self.kept[extent] = Step(self.model, self.bank, extent, self.start, block.hidden, self._record)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                self.failed = True
                why = str(error).partition("\n")[0]
                warnings.warn(f"learn: a step could not be captured ({why}); no more are, updates go on slower.", stacklevel=2)
        return self.kept.get(extent)


def recorder(device: torch.device) -> Callable[[Callable], Callable] | None:
    """What records the steps of a bank on this device: on a GPU as graphs that share one pool of memory."""
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], None]) -> Callable[[], None]:
        with torch.cuda.device(device):
            return captured(run, pool).replay

    return record


def fits(model, bank: AdapterBank) -> bool:
    """Whether steps at fixed addresses do what the others do. They do not where the host chooses (experts), in training
    (dropout, checkpoints), under autocast or other routes, and where a backward reaches more than the bank."""
    return not (
        FAMILIES[model.config.model_type].experts
        or model.training
        or torch._C._is_any_autocast_enabled()
        or routes.opened()
        or any(p.requires_grad for p in model.parameters())
    )
