"""Batched decoding: one prompt per row, one slot per row, noise keyed by episode; prompts join and leave at any step.

A prompt may have a beginning that others share (the same text under many questions); it is read first, once for all of them.

Bits: prompts are read as prefill.py says; then all rows, whatever their bucket and however many tokens they have, take their
steps together, each writing into its own next column. Steps have a multiple of 4 rows, the mask is explicit, and a row draws
its noise from its own key. So what a row generates does not depend on its neighbours, nor on when they came.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..adapters.bank import AdapterBank
from ..models import forward as fw
from ..models.families import outgrown
from .prefill import Prompts, read, under, widths
from .sampling import Sampler, Sampling, choose, slight
from .steps import Growing, Lent, Part, Spots
from .turns import turn

MAX_ROWS = 96  # rows decoded at once; bounds the key/value cache
ROOM = 128  # columns by which the cache grows, as rows do or prompts that join need it


@dataclass(frozen=True)
class Generation:
    """`ids`: generated token ids, the closing one included if it came; `logprobs`: of each, under the sampling policy."""

    ids: list[int]
    logprobs: list[float]
    finished: bool


@dataclass(frozen=True)
class Prompt:
    """What is to be gone on with.

    ids    its tokens
    most   tokens that are generated at most
    slot   of the bank, -1: the model alone
    begin  how many of its tokens are read first, once for all prompts that begin with the same under the same Δ
    how    see Sampling
    watch  told of every token as it comes; where it returns True, the generation ends there
    """

    ids: list[int]
    most: int
    slot: int = -1
    begin: int = 0
    how: Sampling = Sampling()
    watch: Callable[[int], bool] | None = None


@dataclass(eq=False)
class Row:
    """A prompt under way.

    read, begin  the tokens that it was last read as, and how many of them first
    read_as      a number for its beginning and one for all that was read: rows that were read together have the same where keys
                 and values are the same
    ended        it takes no step any more
    """

    prompt: Prompt
    read: list[int]
    begin: int
    sampler: Sampler
    held: Callable[[], None] | None  # raises where its slot is somebody else's by now
    read_as: tuple[int, ...] = ()
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False
    ended: bool = False

    @property
    def generation(self) -> Generation:
        """What there is so far."""
        return Generation(self.tokens, self.logprobs, self.finished)

    @property
    def begun(self) -> tuple[int, int]:
        """The columns in which what follows the beginning stands, and in which what is generated from there on begins."""
        first, then = widths(self.read, self.begin)
        return first, first + then

    @property
    def length(self) -> int:
        """Of its text so far, in tokens."""
        return len(self.prompt.ids) + len(self.tokens)

    @property
    def column(self) -> int:
        """That of its last token."""
        return self.begun[1] + self.length - len(self.read) - 1

    def add(self, token: int, logprob: float, ends: Set[int]) -> None:
        """One more token."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        told = self.prompt.watch is not None and self.prompt.watch(token)
        self.finished = token in ends
        self.ended = told or self.finished or len(self.tokens) >= self.prompt.most


class Decoding:
    """Rows that are decoded together, under the Δ of their slots. A context manager: when left, its memory may be used again.

    ends   token ids that finish a generation
    fixed  steps at fixed addresses (see steps.py), by default on a GPU, where they are captured as CUDA graphs

    Raises ValueError for a model that trains with gradient checkpointing.
    """

    def __init__(self, model, bank: AdapterBank | None, ends: Set[int], fixed: bool | None = None):
        if model.training and getattr(model, "is_gradient_checkpointing", False):
            raise ValueError(
                "decode: the model trains with gradient checkpointing, which drops its cache; call model.eval() first."
            )
        self.model, self.bank, self.ends = model, bank, ends
        self.device = next(model.parameters()).device
        self._until, self._outgrown = ExitStack(), outgrown(model.config)
        fixed = self.device.type == "cuda" if fixed is None else fixed
        self._steps: Growing | Lent = Lent(self._until, model, bank) if fixed else Growing(model, bank)
        self._rows: list[Row | None] = []  # of each place; None: it serves nobody
        self._read: Tensor | None = None  # bool [rows, columns]: where the prompts stand; None: to be made
        self._alike: Tensor | None = None  # as Spots.alike; None: to be made, at fixed addresses never
        self._numbers = itertools.count()

    def __enter__(self) -> Decoding:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back."""
        self._until.close()

    @property
    def alive(self) -> list[Row]:
        """Those that have not ended."""
        return [row for row in self._rows if row is not None]

    @torch.inference_mode()
    def join(self, prompts: Sequence[Prompt]) -> list[Row]:
        """Read prompts and choose the first token of each; they take part in the steps from now on.

        Raises ValueError for an empty prompt, and for a beginning that leaves nothing of its prompt.
        """
        for prompt in prompts:
            if not prompt.ids:
                raise ValueError("decode: a prompt is empty; every prompt needs at least one token.")
            if not 0 <= prompt.begin < len(prompt.ids):
                most = len(prompt.ids)
                raise ValueError(
                    f"decode: a beginning of {prompt.begin} tokens in a prompt of {most}; expected 0 to {most - 1}."
                )
        rows = [Row(p, p.ids, self._begin(p), Sampler(p.how, p.most), self._hold(p)) for p in prompts]
        self._join(rows)
        return rows

    def _begin(self, prompt: Prompt) -> int:
        """A beginning that the whole prompt outgrows is not read apart from it."""
        return prompt.begin if self._outgrown is None or not prompt.begin <= self._outgrown < len(prompt.ids) else 0

    def _hold(self, prompt: Prompt) -> Callable[[], None] | None:
        return None if self.bank is None or prompt.slot < 0 else self.bank.hold([prompt.slot]).alive

    def _join(self, rows: Sequence[Row]) -> None:
        """Read rows and add a token to each; those that go on get places."""
        rows = sorted(rows, key=lambda row: widths(row.read, row.begin))
        if rows:
            with turn():
                self._joined(rows)

    def _joined(self, rows: list[Row]) -> None:
        slots = None if self.bank is None else [row.prompt.slot for row in rows]
        if self._steps.grows:
            self._name(rows)
        prompts = Prompts([row.read for row in rows], [row.begin for row in rows], slots)
        coming = [row for row in rows if row.prompt.most > 1]  # those that may take a step and have no place yet
        for members, found in read(self.model, self.bank, prompts):
            mine = [rows[i] for i in members]
            dummies = fw.filled(len(mine)) - len(mine)
            logits = fw.logits(self.model, torch.cat([found.last, found.last[:1].expand(dummies, -1)]))[: len(mine)]
            for row, left in zip(mine, slight(logits, [row.sampler for row in mine])):
                row.ended = left and not row.tokens
            self._add(mine, logits)
            on = [i for i, row in enumerate(mine) if not row.ended]
            if on:
                self._reserve([row for row in coming if not row.ended], found.cache.layer(0)[0])
                self._put([mine[i] for i in on], (found.cache, found.rows[on]))
            coming = [row for row in coming if row not in mine]
            del found  # before the next pass

    def _reserve(self, rows: Sequence[Row], like: Tensor) -> None:
        """Have room for these rows, which have no places yet. like: keys of a prompt."""
        columns = max(map(self._columns, rows))
        if columns > self._steps.columns or self._rows.count(None) < len(rows):
            self._resize(len(self.alive) + len(rows), max(columns, self._steps.columns), like)

    def _name(self, rows: Sequence[Row]) -> None:
        """Give rows that are read together their `read_as`."""
        deltas = {slot: under(self.bank, slot) for slot in {row.prompt.slot for row in rows}}
        named: dict[tuple[int, ...], int] = {}
        for row in rows:
            texts = row.read[: row.begin], row.read
            keys = [(deltas[row.prompt.slot], row.begin, *text) for text in texts]
            row.read_as = tuple(named.setdefault(key, next(self._numbers)) for key in keys)

    def _put(self, rows: Sequence[Row], part: Part) -> None:
        """Give rows free places, and take over what was read of them."""
        places = [i for i, row in enumerate(self._rows) if row is None][: len(rows)]
        self._steps.put(places, part)
        for place, row in zip(places, rows):
            self._rows[place] = row
        self._read = self._alike = None

    def _columns(self, row: Row) -> int:
        """Those that a row is to have: as far as it may go, or some ahead where there can be more later."""
        before = len(row.read) - len(row.prompt.ids)  # generated before it was read again
        said, most = len(row.tokens) - before, row.prompt.most - before
        return row.begun[1] + (max(said, min(most, ROOM)) if self._steps.grows else most)

    def _resize(self, rows: int, columns: int, like: Tensor | None = None) -> None:
        """Make room for so many rows, those that are alive among them."""
        kept = [i for i, row in enumerate(self._rows) if row is not None]
        self._steps.resize(kept, fw.filled(rows), -(-columns // ROOM) * ROOM, like)
        self._rows = [self._rows[i] for i in kept] + [None] * (self._steps.rows - len(kept))
        self._read = self._alike = None

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every row. Raises RuntimeError where a slot was given to somebody else meanwhile."""
        self._read_again()
        alive = [(place, row) for place, row in enumerate(self._rows) if row is not None]
        if not alive:
            return
        if len(alive) <= len(self._rows) // 2 and len(self._rows) > fw.ROWS:  # half of the rows or more have ended
            self._resize(len(alive), max(self._columns(row) for _, row in alive))
            alive = list(enumerate(self.alive))
        if (last := max(row.column for _, row in alive)) >= self._steps.columns:
            self._resize(len(alive), last + 1)
            alive = list(enumerate(self.alive))
        for _, row in alive:
            if row.held is not None:
                row.held()
        with turn():
            logits = self._steps(self._spots(alive))
            logits = logits if len(alive) == len(logits) else logits[[place for place, _ in alive]]
            self._add([row for _, row in alive], logits)
        for place, row in alive:
            if row.ended:
                self._rows[place] = self._alike = None  # from now on others are written in its place

    def _read_again(self) -> None:
        """Read rows that outgrow what their keys were computed for as prompts are read, which gives them one token more."""
        if self._outgrown is None:
            return
        rows = [row for row in self.alive if len(row.read) <= self._outgrown < row.length]
        for row in rows:
            if row.held is not None:
                row.held()
            row.read, row.begin = [*row.prompt.ids, *row.tokens], 0
        self._rows, self._alike = [None if row in rows else row for row in self._rows], None
        self._join(rows)

    def _spots(self, alive: Sequence[tuple[int, Row]]) -> Spots:
        """What the next step computes. A row that serves nobody sees its first column alone."""
        spots, slots = [[0] * len(self._rows) for _ in range(4)], [-1] * len(self._rows)
        for place, row in alive:
            new = (row.tokens[-1], row.length - 1, row.column, row.begun[1])
            for kind, value in zip(spots, new):
                kind[place] = value
            slots[place] = row.prompt.slot
        token, position, column, first = torch.tensor(spots, device=self.device)
        at = torch.arange(self._steps.columns, device=self.device)
        if self._read is None:
            self._read = self._prompts(at)
        if self._alike is None and self._steps.grows:
            self._alike = self._same()
        visible = self._read | ((at >= first[:, None]) & (at <= column[:, None]))
        return Spots(token, position, column, slots, visible, fw.shown(max(spots[2]) + 1), self._alike)

    def _prompts(self, at: Tensor) -> Tensor:
        """bool [rows, columns]: where the prompts stand."""
        begins = [[0, 0, 0] for _ in self._rows]
        for place, row in enumerate(self._rows):
            if row is not None:
                rest = len(row.read) - row.begin
                begins[place] = [row.begin, row.begun[0], row.begun[0] + rest]
        begin, padded, stop = torch.tensor(begins, device=self.device).T[:, :, None]
        return (at < begin) | ((at >= padded) & (at < stop))

    def _same(self) -> Tensor:
        """Of every row, as ops.attend takes it, the first that has read the same, or that has the same beginning."""
        first: dict[int, int] = {}
        found = []
        for place, row in enumerate(self._rows):
            read = () if row is None else zip(row.begun, row.read_as)
            others = [(columns, first.setdefault(number, place)) for columns, number in read]
            columns, other = max((pair for pair in others if pair[1] != place), default=(0, place))
            found.append((other, columns))
        return torch.tensor(found, dtype=torch.int32, device=self.device)

    def _add(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Choose the next token of these rows out of logits [rows, V]."""
        tokens, logprobs = choose(logits, [row.sampler for row in rows], [len(row.tokens) for row in rows])
        for row, token, logprob in zip(rows, tokens, logprobs):
            if not row.ended:
                row.add(token, logprob, self.ends)


def decode(
    model,
    prompts: Sequence[list[int]],
    *,
    bank: AdapterBank | None = None,
    slots: Sequence[int] | None = None,
    end: int | Set[int],
    max_new: int,
    begins: Sequence[int] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    keys: Sequence[str] | None = None,
    ranks: Sequence[int] | None = None,
    watch: Callable[[int, int], bool] | None = None,
    fixed: bool | None = None,
) -> list[Generation]:
    """Generate up to `max_new` tokens after each prompt (token ids), with slot `slots[i]` (-1: base) for prompt i.

    `end`: the token id, or the ids, that finish a generation.
    `begins[i]`: how many tokens of prompt i are read first, once for all prompts that begin with the same under the same Δ;
    0, the default, reads it in one piece.
    `temperature` 0 is greedy; above it, row i samples with noise keyed by `keys[i]` and the position, out of the nucleus of
    `top_p` (see nucleus.py; 1: all tokens).
    `ranks[i]`: how many tokens are likelier than the first one of prompt i; 0, the default, takes the likeliest. The generation
    is empty where that token is less than `sampling.SLIGHT` times as probable as the likeliest. Greedy decoding only.
    `watch(i, token)` is told of every token of prompt i as it comes; where it returns True, that prompt's generation ends
    there, which changes no other's. `fixed`: see Decoding. Raises ValueError for an empty prompt, a beginning that leaves
    nothing of its prompt, missing keys, ranks of what is sampled, or a model that trains with gradient checkpointing.
    """
    begins = [0] * len(prompts) if begins is None else begins
    ranks = [0] * len(prompts) if ranks is None else ranks
    keys = keys if temperature > 0.0 else [""] * len(prompts)
    if keys is None:
        raise ValueError("decode: sampling needs one noise key per prompt.")
    if temperature > 0.0 and any(ranks):
        raise ValueError("decode: ranks say which first token is taken, and a temperature draws it; give one of them.")
    each = [
        Prompt(ids, max_new, slot, begin, Sampling(temperature, top_p, key, rank), watch and functools.partial(watch, i))
        for i, (ids, slot, begin, key, rank) in enumerate(zip(
            prompts, [-1] * len(prompts) if slots is None else slots, begins, keys, ranks, strict=True
        ))
    ]  # fmt: skip
    order = sorted(range(len(each)), key=lambda i: widths(each[i].ids, each[i].begin))
    out: list[Generation | None] = [None] * len(each)
    with Decoding(model, None if slots is None else bank, {end} if isinstance(end, int) else end, fixed) as decoding:
        for at in range(0, len(order), MAX_ROWS):
            part = order[at : at + MAX_ROWS]
            rows = decoding.join([each[i] for i in part])
            while decoding.alive:
                decoding.step()
            for i, row in zip(part, rows):
                out[i] = row.generation
    return out
