"""The online update: a few gradient steps write question/answer pairs into one slot per episode.

All episodes learn in the same minibatches. A slot's sequences are packed into rows, several to a row, none of which sees
another: most are far shorter than the bucket they would be padded to. What all of them begin with, such as the words before a
question, is computed once a row. Where ops serve the pass on a CPU, rows are joined, one behind another, and nothing is padded.

What each episode gets is what it would get alone, bit for bit: its loss is normalised by its own label count, a row is one
slot's, padded rows share a batch with those of their own bucket only, and those of a slot never split over two batches.
The frozen trunk below the lowest adapted layer runs once per update and rendering (not where it draws dropout anew in every
pass), and once for all slots that are taught the same, such as the rollouts of one episode. Logits exist only at labels.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import routes
from ..adapters.attach import Route
from ..adapters.bank import AdapterBank, Snapshot
from ..episode import Pair
from ..models import forward as fw
from ..models.chat import Chat
from ..models.families import FAMILIES
from ..models.masks import Branches, Joined
from .captured_update import FixedSteps, fits, label_losses, labelled, places
from .config import LearnConfig
from .renderings import rendered
from .turns import turn

MAX_TOKENS = 8192  # in one forward pass, padding among them; bounds activation memory
PACKED = 128  # tokens of a padded row of several sequences: longer ones waste less on padding, more on attention that is masked
TILE = 16  # tokens: products have whole tiles of rows

Minibatches = list[list["_Block"]]


@dataclass(frozen=True)
class Learned:
    """What one update did to one slot: mean answer-token loss (nats), ‖ΔW‖_F, and if it was kept.

    `loss_before` is taken in the first epoch: each minibatch's before its own step, but after those of the minibatches
    before it. `loss_after` is taken when all is done, in the rendering of the first epoch. `tokens`: that gradients were
    taken of, over all epochs.
    """

    loss_before: float
    loss_after: float
    norm: float
    kept: bool
    reason: str = ""
    tokens: int = 0


@dataclass
class _Row:
    """Sequences of one slot, one after another, behind the beginning that they share, which is computed once for all."""

    slot: int
    trunk: int  # tokens of the beginning
    ids: list[int]
    positions: list[int]  # of every token in its own sequence
    numbers: list[int]  # of every token's sequence, from 1; 0 is the beginning
    labels: list[int]  # columns of the answers' tokens
    texts: list[tuple[int, ...]]  # each sequence, whole

    @classmethod
    def begun(cls, slot: int, trunk: list[int]) -> _Row:
        """A row without sequences yet."""
        return cls(slot, len(trunk), list(trunk), list(range(len(trunk))), [0] * len(trunk), [], [])

    def add(self, ids: list[int], prompt: int) -> None:
        """One more sequence, whose first `prompt` tokens are read and not said."""
        own = len(ids) - self.trunk
        self.texts.append(tuple(ids))
        self.labels += range(len(self.ids) + prompt - self.trunk, len(self.ids) + own)
        self.numbers += [1 + (self.numbers[-1] if self.numbers else 0)] * own
        self.positions += range(self.trunk, len(ids))
        self.ids += ids[self.trunk :]

    def places(self) -> list[tuple[int, int]]:
        """Of every token a sequence of the row that has it, by its number from 0, and the token's place there."""
        return [(max(0, number - 1), at) for number, at in zip(self.numbers, self.positions)]


def packed(slot: int, sequences: Sequence[tuple[list[int], int]], joined: bool = False) -> list[_Row]:
    """Sequences (token ids, how many of them are the prompt) in rows that have the fewest tokens once they are padded. A row
    has PACKED tokens at most, or as many as the longest sequence has. joined: rows are not padded, and have MAX_TOKENS."""
    longest = max(len(ids) for ids, _ in sequences)
    # A label's state is computed at the token before it, which is each sequence's own.
    trunk = os.path.commonprefix([ids[: prompt - 1] for ids, prompt in sequences]) if len(sequences) > 1 else []
    if joined:
        return _filled(slot, trunk, sequences, MAX_TOKENS)
    rooms = {fw.bucket(n) for n in range(longest, max(PACKED, longest) + 1)}
    return min((_filled(slot, trunk, sequences, room) for room in sorted(rooms)), key=_padded)


def _filled(slot: int, trunk: list[int], sequences: Sequence[tuple[list[int], int]], room: int) -> list[_Row]:
    """Each sequence in the first row with room for it."""
    rows: list[_Row] = []
    for ids, prompt in sequences:
        row = next((row for row in rows if len(row.ids) + len(ids) - len(trunk) <= room), None)
        if row is None:
            rows.append(row := _Row.begun(slot, trunk))
        row.add(ids, prompt)
    return rows


def _padded(rows: list[_Row]) -> tuple[int, int]:
    """Tokens of rows padded to one bucket, and how many rows there are."""
    return len(rows) * fw.bucket(max(len(row.ids) for row in rows)), len(rows)


@dataclass
class _Block:
    """Rows that learn together: trunk output [B, T, D], positions int64 [B, T], what every token sees, slot and length per row,
    and the labels as places in rows with weights.

    Padded rows have a batch row each; joined ones stand one behind another in one, and what fills its last tile is nobody's.
    Labels are filled up to a multiple of 4 with dummies of weight 0.
    """

    hidden: Tensor
    positions: Tensor
    seen: Branches | Joined
    slots: list[int]
    lengths: list[int]  # real tokens per row
    rows: list[int]
    columns: list[int]
    targets: list[int]
    weights: list[float]  # 1 / labels of this slot in this minibatch

    @classmethod
    def filled(cls, hidden, positions, seen, slots, lengths, labels: list[tuple[int, int, int, float]]) -> _Block:
        """From labels (row, column, target, weight)."""
        labels = labels + [(0, 0, 0, 0.0)] * (fw.filled(len(labels)) - len(labels))
        return cls(hidden, positions, seen, slots, lengths, *(list(x) for x in zip(*labels)))

    @property
    def joined(self) -> bool:
        return isinstance(self.seen, Joined)

    @property
    def starts(self) -> list[int]:
        """Where each row begins among the B · T tokens."""
        if self.joined:
            return [0, *itertools.accumulate(self.lengths[:-1])]
        return [row * self.hidden.shape[1] for row in range(len(self.slots))]

    def only(self, slots: set[int]) -> _Block | None:
        """The rows of these slots alone; None if there are none."""
        if slots.issuperset(self.slots):
            return self
        keep = [r for r, s in enumerate(self.slots) if s in slots]
        if not keep:
            return None
        place = {r: i for i, r in enumerate(keep)}
        labels = [
            (place[r], c, t, w) for r, c, t, w in zip(self.rows, self.columns, self.targets, self.weights) if w and r in place
        ]
        if isinstance(self.seen, Joined):
            starts, seen = self.starts, self.seen.only(keep)
            where = [range(starts[r], starts[r] + self.lengths[r]) for r in keep]
            at = _laid(where, None, self.hidden.device)[0]
            hidden, positions = self.hidden[:, at], self.positions[:, at]
        else:
            hidden, positions, seen = self.hidden[keep], self.positions[keep], Branches.counted(self.seen.numbers[keep])
        return self.filled(hidden, positions, seen, [self.slots[r] for r in keep], [self.lengths[r] for r in keep], labels)


def joins(model) -> bool:
    """Whether rows are joined: on a CPU, where ops serve the pass, and where no route that others opened counts batch rows."""
    return next(model.parameters()).is_cpu and fw.apart(model) and not routes.opened()


@torch.inference_mode(False)  # gradients are taken whatever the caller has switched off
def learn(
    model,
    bank: AdapterBank,
    jobs: Sequence[tuple[int, Sequence[Pair]]],
    chat: Chat,
    config: LearnConfig,
    on_step: Callable[[int, int], None] | None = None,
    fixed: bool | None = None,
) -> list[Learned]:
    """Teach slot `s` its pairs, for every job `(s, pairs)`: `epochs` passes in minibatches, one optimizer step each.

    Every epoch teaches in one of `config.renderings` or in reverse, in turns. A slot whose epoch had a loss below
    `config.target` stops, once it was taught in all of them: further steps only push its weights away from all else.
    A write that ends with a higher loss, a non-finite number or a norm above the cap is rolled back: the slot is as
    before. `on_step(done, total)` reports progress. Jobs without pairs return zeros and leave their slot alone.
    `fixed`: steps at fixed addresses, as far as captured_update.py has them; by default on a GPU, where they are captured as
    CUDA graphs. Raises ValueError if a slot appears twice, and for fixed steps of a mixture of experts.
    """
    if fixed and FAMILIES[model.config.model_type].experts:
        raise ValueError("learn: steps of a mixture of experts cannot be captured; leave out fixed=True.")
    if len({s for s, _ in jobs}) != len(jobs):
        raise ValueError("learn: a slot appears in two jobs; give each slot one list of pairs.")
    active = [(slot, list(pairs)) for slot, pairs in jobs if pairs]
    tenants = bank.hold([slot for slot, _ in active])
    before = {slot: bank.snapshot(slot) for slot, _ in active}
    for slot, _ in active:
        bank.configure(slot, lr=config.lr, clip=config.clip, weight_decay=config.weight_decay)

    at_fixed = None
    if (bank.device.type == "cuda" if fixed is None else fixed) and fits(model, bank):
        at_fixed = FixedSteps.of(model, bank, trunk_layers(model, bank))
    joined = at_fixed is None and joins(model)

    @functools.cache
    def made(of: int) -> Minibatches:
        with turn():
            return _minibatches(model, bank, active, chat, config, of, joined)

    step = functools.partial(_step, model, bank, tenants, at_fixed)
    parts = {slot: math.ceil(len(pairs) / config.batch) for slot, pairs in active}
    first, tokens = _descend(step, made, parts, config, on_step)
    last: dict[int, float] = {}
    with torch.no_grad():
        for blocks in made(0):
            with turn():
                _accumulate(last, step(blocks, moves=False))
    tenants.alive()
    out = []
    for slot, pairs in jobs:
        if pairs:
            losses = first[slot] / parts[slot], last[slot] / parts[slot]
            out.append(_kept_or_undone(bank, slot, before[slot], *losses, config.norm_cap, tokens[slot]))
        else:
            out.append(Learned(0.0, 0.0, bank.delta_norm(slot), True, "nothing to learn"))
    return out


def _descend(
    step: Callable[..., dict[int, float]],
    made: Callable[[int], Minibatches],
    parts: dict[int, int],
    config: LearnConfig,
    on_step,
) -> tuple[dict[int, float], Counter[int]]:
    """The optimizer's steps, by `step` of a minibatch, see _step. made: those of an epoch by its turn of the renderings.

    Per slot: its loss in the first epoch, summed over its minibatches, of which it has `parts[slot]`; and how many tokens
    gradients were taken of.
    """
    learning, turns = set(parts), config.turns
    first: dict[int, float] = {}
    tokens: Counter[int] = Counter()
    for epoch in range(config.epochs if learning else 0):
        losses: dict[int, float] = {}
        for blocks in _only(made(epoch % turns), learning):
            with turn():
                _accumulate(losses, step(blocks, moves=True))
            for block in blocks:
                for slot, length in zip(block.slots, block.lengths):
                    tokens[slot] += length
        first = first or losses
        if epoch + 1 >= turns:
            learning = {slot for slot in learning if not losses[slot] / parts[slot] < config.target}
        if on_step is not None:
            on_step(epoch + 1 if learning else config.epochs, config.epochs)
        if not learning:
            break
    return first, tokens


def _only(minibatches: Minibatches, slots: set[int]) -> Minibatches:
    """The sequences of these slots alone."""
    return [blocks for m in minibatches if (blocks := [b for block in m if (b := block.only(slots))])]


def _kept_or_undone(
    bank: AdapterBank, slot: int, before: Snapshot, loss_before: float, loss_after: float, norm_cap: float, tokens: int
) -> Learned:
    """What an update did; the slot is as `before` again where it did harm."""
    norm, reason = bank.delta_norm(slot), ""
    if not (math.isfinite(loss_after) and math.isfinite(norm)):
        reason = "not finite"
    elif loss_after > loss_before:
        reason = "the loss rose"
    elif 0 < norm_cap < norm:
        reason = f"‖ΔW‖ above {norm_cap:g}"
    if reason:
        bank.restore(slot, before)
    return Learned(loss_before, loss_after, norm, not reason, reason, tokens)


def trunk_layers(model, bank: AdapterBank) -> int:
    """How many layers give the same activations in every epoch: those below the first adapted one, without dropout."""
    if not model.training:
        return bank.first_layer
    dropout = [v for k, v in model.config.to_dict().items() if "drop" in k and isinstance(v, float)]
    modules = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    return 0 if any(dropout + modules) else bank.first_layer


def _accumulate(total: dict[int, float], losses: dict[int, float]) -> None:
    for slot, value in losses.items():
        total[slot] = total.get(slot, 0.0) + value


def _minibatches(model, bank, jobs, chat, config, turn: int = 0, joined: bool = False) -> Minibatches:
    """Those of an epoch: minibatch j holds pairs [j·batch, (j+1)·batch) of every slot that has so many, in the rendering of
    the epoch's turn."""
    jobs, out = [(slot, rendered(pairs, turn, config.renderings, config.unknown, config.reverse)) for slot, pairs in jobs], []
    for start in range(0, max((len(p) for _, p in jobs), default=0), config.batch):
        rows: dict[int, list[list[_Row]]] = {}  # bucket, 0 of joined rows -> those of each slot
        labels: dict[int, int] = {}
        for slot, pairs in jobs:
            sequences = [_encoded(chat, pair, config) for pair in pairs[start : start + config.batch]]
            if sequences:
                own = packed(slot, sequences, joined)
                length = 0 if joined else fw.bucket(max(len(row.ids) for row in own))
                rows.setdefault(length, []).append(own)
                labels[slot] = sum(len(row.labels) for row in own)
        groups = [(group, length or None) for length, slots in sorted(rows.items()) for group in _groups(slots, length or None)]
        made = _trunks(model, bank, groups)
        blocks = [_block(bank, group, length, hidden, labels) for (group, length), hidden in zip(groups, made)]
        out.append(blocks)
    return out


def _groups(slots: list[list[_Row]], length: int | None) -> list[list[_Row]]:
    """The rows of slots in passes of MAX_TOKENS, or of one slot that has more."""
    groups: list[list[_Row]] = [[]]
    for own in slots:
        tokens = sum(length or len(row.ids) for row in [*groups[-1], *own])
        if groups[-1] and tokens > MAX_TOKENS:
            groups.append([])
        groups[-1] += own
    return groups


def rows_of(chat: Chat, pairs: Sequence[Pair], config: LearnConfig, joined: bool = False) -> list[_Row]:
    """The rows of an epoch of one slot, minibatch after minibatch. Padding aside, an epoch computes their tokens."""
    parts = (pairs[at : at + config.batch] for at in range(0, len(pairs), config.batch))
    return [row for part in parts for row in packed(0, [_encoded(chat, pair, config) for pair in part], joined)]


def _encoded(chat: Chat, pair: Pair, config: LearnConfig) -> tuple[list[int], int]:
    """Token ids of a pair's question and answer, and how many of them are the question's."""
    prompt, answer = chat.prompt(pair.question), chat.answer(pair.answer)
    prompt = prompt[-max(1, config.max_pair_tokens - len(answer)) :]
    return prompt + answer[: config.max_pair_tokens - len(prompt)], len(prompt)


@torch.no_grad()  # embeddings may ask for gradients, as transformers has them with checkpoints
def _trunks(model, bank: AdapterBank, groups: list[tuple[list[_Row], int | None]]) -> list[Tensor]:
    """What the layers below the first adapted one make of the rows of each group, [B, T, D] as `_laid` lays them.

    Where a text's bits depend on no other text of its row, the same text is computed once for all slots.
    """
    counted = [text for group, _ in groups for row in group for text in row.texts]
    texts = dict.fromkeys(counted)
    if 4 * len(texts) > 3 * len(counted) or not fw.apart(model):
        return [_trunk(model, bank, *group) for group in groups]
    joined = groups[0][1] is None
    once = packed(-1, [(list(text), len(text)) for text in texts], joined)
    length = None if joined else fw.bucket(max(len(row.ids) for row in once))
    made, where, begin = [], {}, 0
    for part in _groups([[row] for row in once], length):
        hidden = _trunk(model, bank, part, length)
        for row, start in zip(part, _starts(part, length)):
            start += begin
            where |= {(row.texts[number], at): start + column for column, (number, at) in enumerate(row.places())}
            # What a row's sequences begin with stands there once.
            where |= {(text, at): start + at for text in row.texts for at in range(row.trunk)}
        made.append(hidden.flatten(0, 1))
        begin += len(made[-1])
    states = torch.cat(made)
    return [
        states[_laid([[where[row.texts[number], at] for number, at in row.places()] for row in group], length, bank.device)]
        for group, length in groups
    ]


def _trunk(model, bank: AdapterBank, rows: list[_Row], length: int | None) -> Tensor:
    ids, positions, seen = _read(rows, length, bank.device)
    return fw.layers(model, fw.embed(model, ids), positions, seen, stop=trunk_layers(model, bank), by_pieces=True)


def _read(rows: list[_Row], length: int | None, device: torch.device) -> tuple[Tensor, Tensor, Branches | Joined]:
    """Token ids and positions of rows, as `_laid` lays them, and what every token sees."""
    ids, positions = (_laid(kind, length, device) for kind in ([row.ids for row in rows], [row.positions for row in rows]))
    numbers = [row.numbers for row in rows]
    return ids, positions, Joined.of(numbers) if length is None else Branches.counted(_laid(numbers, length, device))


def _laid(rows: Sequence[Sequence[int]], length: int | None, device: torch.device) -> Tensor:
    """A number for every token, int64 [B, T]: rows padded to `length`; with None [1, T], one behind another, in whole tiles."""
    if length is not None:  # no dummy rows: products have 16 rows and more
        return fw.pad([list(row) for row in rows], length, device=device, dummies=False)
    flat = list(itertools.chain.from_iterable(rows))
    return torch.tensor([flat + [0] * (-len(flat) % TILE)], device=device)


def _starts(rows: list[_Row], length: int | None) -> list[int]:
    """Where each of them begins among all tokens, so laid."""
    return [0, *itertools.accumulate(length or len(row.ids) for row in rows[:-1])]


def _block(bank: AdapterBank, group: list[_Row], length: int | None, hidden: Tensor, labels: dict[int, int]) -> _Block:
    _, positions, seen = _read(group, length, bank.device)
    # The state at column c predicts token c + 1.
    spots = [(r, c - 1, row.ids[c], 1.0 / labels[row.slot]) for r, row in enumerate(group) for c in row.labels]
    return _Block.filled(hidden, positions, seen, [row.slot for row in group], [len(row.ids) for row in group], spots)


def _step(
    model, bank: AdapterBank, tenants: Route, at_fixed: FixedSteps | None, blocks: list[_Block], *, moves: bool
) -> dict[int, float]:  # fmt: skip
    """One optimizer step of the blocks' slots, or, if nothing `moves`, none; the loss of each before, by its own labels."""
    losses: dict[int, float] = {}
    left = []
    for block in blocks:
        found = None if at_fixed is None else at_fixed(block, tenants, moves)
        if found is None:
            left.append(block)
        else:
            _accumulate(losses, _by_slot(block, found))
    if left:
        _accumulate(losses, _pass(model, bank, left, backward=moves))
        if moves:
            tenants.alive()
            bank.step(sorted({slot for block in left for slot in block.slots}))
    return losses


def _pass(model, bank, blocks: list[_Block], *, backward: bool) -> dict[int, float]:
    """Loss per slot (each normalised by its own labels); with `backward`, gradients accumulate in the bank's rows."""
    losses: dict[int, float] = {}
    for block in blocks:
        at, targets = (torch.tensor(values, device=bank.device) for values in (places(block), block.targets))
        weights = torch.tensor(block.weights, dtype=torch.float32, device=bank.device)
        with bank.route(block.slots, learn=backward, lengths=block.lengths):
            for route in routes.here():
                route.narrow(labelled(block), len(block.targets))
                if block.joined:
                    route.join(block.hidden.shape[1])
            inputs = block.hidden, block.positions, block.seen
            found = label_losses(model, *inputs, trunk_layers(model, bank), at, targets, weights)
            if backward:
                found.sum().backward()
        _accumulate(losses, _by_slot(block, found.tolist()))
    return losses


def _by_slot(block: _Block, found: list[float]) -> dict[int, float]:
    """The sum of what the labels of each slot lose."""
    losses: dict[int, float] = {}
    for row, weight, value in zip(block.rows, block.weights, found):
        if weight:
            losses[block.slots[row]] = losses.get(block.slots[row], 0.0) + value
    return losses
