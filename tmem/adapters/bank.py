"""AdapterBank: the fast weights of many episodes. A slot is a row.

One matrix per quantity, `[slots, P]`: parameters, gradients, optimizer moments. Every adapted layer sees its part as a
strided view `[slots, R, D]` (D padded to 64 elements, P too; of experts `[slots · E, R, D]`, see `layout`). So reset, fork,
snapshot and restore copy one row, clipping is one row norm, and one optimizer launch serves all rows with their own learning
rate, step count and on/off switch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import operator
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import ops
from ..machine import out_of_memory
from ..models.bases import device_of, dtype_of, shape_of, weight_of
from .attach import Route, Site, attach, bits, clear, detach, find_sites, routed_checkpoints, slots_of
from .compiled import Compiled
from .experts import mixtures
from .init import OF_WEIGHTS, make_a, record_inputs
from .layout import lay_out, padded
from .routes import serving

MLP = ("gate_proj", "up_proj", "down_proj")
OPTIMIZERS = ("adamw", "sgd")
_HALF = (torch.bfloat16, torch.float16)
_DTYPES = {torch.float32: (torch.float32, *_HALF), torch.float64: (torch.float64,)}  # the model's, by the bank's
_HYPER = dict(zip(ops.HYPER, (1e-3, 0.9, 0.999, 1e-8, 0.0, 0.0)))  # of a slot that is given none


@dataclass(frozen=True)
class Snapshot:
    """A row taken out of the bank: parameters [P] and, unless left out, the optimizer's moments and step count."""

    param: Tensor
    rank: int
    scale: float
    subspace: str
    m: Tensor | None = None
    v: Tensor | None = None
    step: int = 0


class AdapterBank:
    """Low-rank adapters (LoRA, Hu et al. 2021) of many episodes under one model: y = x Wᵀ + scale · x Aᵀ B of a row's slot.

        model        a Hugging Face decoder; the bank attaches itself to it
        slots        S, how many episodes there is room for
        rank         stored rows R of every factor, at most 128 on a GPU; a slot may use fewer (`alloc(rank=...)`)
        targets      names of the linear layers that are adapted, and of the experts' projections in a mixture: every slot has
                     a B of its own for each expert
        last_layers  only those of the last so many decoder layers; None: of all
        init         subspace of A, one of tmem.adapters.init.INITS (see make_a there); B = 0, so Δ = 0 exactly at the start
        seed         draws what a random init draws
        texts        token ids of a few texts, for `activation` alone: A is where the layers' inputs lie on them
        train_a      False: one frozen A [1, R, K] shared by all slots (training it would couple episodes), and by all experts
                     of a layer.
                     True: every slot owns and trains A [S, R, K], starting from the same init.
        optimizer    `adamw` or `sgd`; hyper-parameters per row through `configure`
        dtype        fp32 (default) or fp64 (on the CPU), of parameters, gradients and moments
        copy         keep a copy of the parameters in 16 bits (fp16 under a model in fp16, else bf16), which decode then reads
                     instead: half the bytes, another rounding. None: where the model is in bf16 or fp16 on a GPU

    What it holds: `param`, `grad` and, for AdamW, `m` and `v` [S, P] in `dtype`; `rank` and `step_count` int32 [S]; `scale`
    fp32 [S]; `hyper` fp64 [S, 6], its columns tmem.ops.HYPER.

    Threads may share a bank: each opens routes of its own, and every slot is written by one thread at a time.
    Raises ValueError for bad sizes or names, and for modules that cannot be adapted (see `find_sites`). Every method that
    takes a slot raises ValueError for one that is out of range or free.
    """

    def __init__(
        self,
        model: nn.Module,
        slots: int,
        rank: int = 16,
        *,
        targets: Sequence[str] = MLP,
        last_layers: int | None = None,
        init: str = "sigma",
        train_a: bool = False,
        optimizer: str = "adamw",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        copy: bool | None = None,
        texts: Sequence[Sequence[int]] = (),
    ):
        if slots < 1:
            raise ValueError(f"AdapterBank: slots: expected at least 1, got {slots}.")
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"AdapterBank: optimizer: expected one of {', '.join(OPTIMIZERS)}, got {optimizer!r}.")
        self.model, self.slots, self.max_rank, self.train_a = model, slots, rank, train_a
        self.targets, self.last_layers, self.init, self.optimizer = tuple(targets), last_layers, init, optimizer
        self.dtype, self.seed, self.texts = dtype, seed, tuple(texts)
        self.sites = find_sites(model, self.targets, last_layers)
        self.first_layer = int(self.sites[0].name.split(".layers.")[1].split(".")[0])
        self.device = device = device_of(self.sites[0].module)
        on_gpu = device.type == "cuda"
        weights = weight.dtype if (weight := self.sites[0].weight) is not None else dtype_of(model)
        if weights not in _DTYPES.get(dtype, ()):
            have, got = (str(x).removeprefix("torch.") for x in (weights, dtype))
            raise ValueError(
                f"AdapterBank: dtype: expected float32 under a model in float32, bfloat16 or float16, float64 under one in "
                f"float64, got {got} under {have}; convert the model."
            )
        if on_gpu and dtype != torch.float32:
            raise ValueError(f"AdapterBank: dtype: expected float32 on a GPU, got {str(dtype).removeprefix('torch.')}.")
        # What pays on a GPU: one read of what several projections share, and single rows by the decode kernel.
        self.reads_once = self.decodes_rows = on_gpu
        if copy is None:
            copy = on_gpu and weights in _HALF
        self._factors = [f.to(dtype)[None] for f in self._subspace(cache=True)]  # [1, R, K] each

        sizes = [(padded(s.inputs) if train_a else 0, padded(s.outputs)) for s in self.sites]
        offsets, width = lay_out([rank * (k + n) for k, n in sizes], [s.experts for s in self.sites])
        kinds = [dtype] * (4 if optimizer == "adamw" else 2) + [weights if weights in _HALF else torch.bfloat16] * copy
        try:
            made = [torch.zeros(slots, width, dtype=kind, device=device) for kind in kinds]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            size = sum(kind.itemsize for kind in kinds) * slots * width / 2**30
            raise ValueError(
                f"AdapterBank: {slots} slots of rank {rank} take {size:,.1f} GiB, more than there is on {device}; give fewer "
                "slots or a lower rank."
            ) from error
        self.copy = made.pop() if copy else None
        self.param, self._grad = made[:2]
        self.m = made[2] if optimizer == "adamw" else None
        self.v = made[3] if optimizer == "adamw" else None
        self._shown = 0  # a bit for every slot whose gradient others may have written since its last step
        self.step_count = torch.zeros(slots, dtype=torch.int32, device=device)
        self.rank = torch.zeros(slots, dtype=torch.int32, device=device)
        self.scale = torch.ones(slots, dtype=torch.float32, device=device)
        self.hyper = torch.zeros(slots, len(ops.HYPER), dtype=torch.float64, device=device)
        self.version = [0] * slots  # raised by everything that writes a row
        self.writes = 0  # their sum
        self.used = [False] * slots
        self.freed = 0  # how many slots were freed so far
        self.tenancy = [0] * slots  # raised whenever a slot changes hands
        self.lock = threading.RLock()  # held for what several slots share, never while code of others runs
        self._view(sizes, offsets)
        self.subspace = self._digest()
        self.handle = torch.zeros((), requires_grad=True)
        self._compiled()
        attach(self, mixtures(self))

    def __getstate__(self) -> dict:
        return {k: v for k, v in vars(self).items() if k not in ("lock", "compiled", "numbers", "_update_steps")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, lock=threading.RLock())
        self._compiled()

    def _compiled(self) -> None:
        """Make the layers known to torch.compile."""
        self.compiled = Compiled(self)
        self.numbers = self.compiled.numbers

    def _subspace(self, *, cache: bool) -> list[Tensor]:
        inputs, experts = None, [s.experts for s in self.sites]
        if self.init == "activation":
            if mixture := next((s.name for s in self.sites if s.parameter is not None), None):
                raise ValueError(
                    f"init: activation looks at what linear layers read, and targets name {mixture}, of experts; "
                    f"choose another init, or other targets."
                )
            inputs = record_inputs(self.model, [s.module for s in self.sites], self.texts) if self.texts else None
        weights = [self._weight(s) for s in self.sites]
        return make_a(weights, self.max_rank, self.init, self.seed, inputs=inputs, experts=experts, cache=cache)

    def _weight(self, site: Site) -> Tensor:
        """W; of a module that does not hold it, where only its shape counts, that alone."""
        held = site.weight
        if held is not None:
            return held
        return weight_of(site.module, dtype_of(self.model)) if self.init in OF_WEIGHTS else shape_of(site.module)

    def _digest(self) -> str:
        """Names the layout and the shared A: rows of banks with the same one can be exchanged."""
        sizes = [
            (s.name, s.inputs if self.train_a else 0, s.outputs, *((s.experts,) if s.parameter is not None else ()))
            for s in self.sites
        ]
        digest = hashlib.blake2b(repr((self.max_rank, sizes)).encode(), digest_size=16)
        for f in () if self.train_a else self._factors:
            digest.update(f.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def renew(self) -> None:
        """Take A anew from the weights as they are now, after the model was trained; the subspace changes with them.

        Raises RuntimeError while a slot is in use: its B means nothing under another A. Snapshots and adapters made before
        belong to the subspace before.
        """
        with self.lock:
            self._must_be_idle("renew")
            self.take(self._subspace(cache=False))

    @property
    def factors(self) -> list[Tensor]:
        """A of every adapted layer, [rank, in_features] each, in the bank's dtype. What all slots share, or begin with."""
        return [f[0] for f in self._factors]

    def take(self, factors: Sequence[Tensor]) -> None:
        """Make `factors` A: one [rank, in_features] for every adapted layer, as of `factors`.

        Raises RuntimeError while a slot is in use, as `renew` does, and ValueError for others than these, with none taken.
        """
        shapes, own = [list(f.shape) for f in factors], [list(f.shape) for f in self.factors]
        if shapes != own:
            i = next((i for i, (got, want) in enumerate(zip(shapes, own)) if got != want), None)
            what = f"{len(own)} factors, got {len(shapes)}" if i is None else f"factor {i} of shape {own[i]}, got {shapes[i]}"
            raise ValueError(f"take: expected {what}.")
        with self.lock:
            self._must_be_idle("take")
            for site, factor, new in zip(self.sites, self._factors, factors):
                factor.copy_(new[None])
                if not self.train_a and site.a_copy is not None:
                    site.a_copy.copy_(factor)
            self.subspace = self._digest()

    def _must_be_idle(self, verb: str) -> None:
        if any(self.used):
            raise RuntimeError(f"{verb}: {sum(self.used)} slots are in use and belong to the A they were made with; free them.")

    def _view(self, sizes: list[tuple[int, int]], offsets: list[int]) -> None:
        """Give the sites their parts. sizes: padded K, 0 where A is shared, and N of each; offsets: as of `lay_out`."""
        self._squares: list[Tensor] = []  # [slots, entries] of every gradient, each by itself: a kernel writes it as it lies

        def squares(site: Site, size: int) -> Tensor:
            rows = self.slots * site.experts
            made = torch.zeros(rows, -(-size // ops.SQUARED), dtype=torch.float64, device=self.device)
            self._squares.append(made.view(self.slots, -1))
            return made

        def view(matrix: Tensor, site: Site, offset: int, stride: int, size: int) -> Tensor:
            rows = matrix.view(self.slots * site.experts, -1)
            part = rows[:, offset : offset + self.max_rank * stride]
            return part.view(len(rows), self.max_rank, stride)[:, :, :size]

        for site, factor, (k, n), offset in zip(self.sites, self._factors, sizes, offsets):
            a, b = (site, offset, k, site.inputs), (site, offset + self.max_rank * k, n, site.outputs)
            site.bt_squares = squares(site, site.outputs)
            site.a_squares = squares(site, site.inputs) if self.train_a else None
            if self.train_a:
                site.a, site.a_grad = view(self.param, *a), view(self._grad, *a)
                site.a_copy = None if self.copy is None else view(self.copy, *a)
            else:
                site.a = factor
                site.a_copy = None if self.copy is None else factor.to(self.copy.dtype)
            site.bt, site.bt_grad = view(self.param, *b), view(self._grad, *b)
            site.bt_copy = None if self.copy is None else view(self.copy, *b)

    # slots ---------------------------------------------------------------------------------------------------------

    def alloc(self, rank: int | None = None, *, alpha: float | None = None, **hyper: float) -> int:
        """Take a free slot with Δ = 0, of `rank` (default the bank's) and scale alpha/rank (default 1); returns its index.
        The scale of rsLoRA, alpha/√rank, is that of alpha·√rank.

        hyper: as of `configure`; the others are lr 1e-3, beta1 0.9, beta2 0.999, eps 1e-8, no decay and no clipping.
        Raises ValueError for a bad rank or an unknown setting, RuntimeError when no slot is free.
        """
        rank = self.max_rank if rank is None else rank
        if rank != int(rank) or not 1 <= rank <= self.max_rank:
            raise ValueError(f"alloc: rank: expected 1..{self.max_rank}, got {rank}.")
        if alpha is not None and not math.isfinite(alpha):
            raise ValueError(f"alloc: alpha: expected a finite number, got {alpha}.")
        self._known(hyper)
        with self.lock:
            if all(self.used):
                raise RuntimeError(f"alloc: all {self.slots} slots are in use; free one or build a larger bank.")
            slot = self.used.index(False)
            self._occupy([slot], rank, 1.0 if alpha is None else alpha / rank, {**_HYPER, **hyper})
        return slot

    def _occupy(self, slots: list[int], rank: int, scale: float, hyper: dict[str, float]) -> None:
        """Give these slots, all free, to new tenants with Δ = 0; one transfer for their indices and one for the settings."""
        where = self._indices(slots)
        row = torch.tensor([hyper[name] for name in ops.HYPER], dtype=self.hyper.dtype, device=self.device)
        for slot in slots:  # nothing that is given can fail from here on
            self.used[slot] = True
            self.tenancy[slot] += 1
        self.rank.index_fill_(0, where, rank)
        self.scale.index_fill_(0, where, scale)
        self.hyper.index_copy_(0, where, row.expand(len(slots), -1))
        self._clear(slots)

    def _indices(self, slots: Sequence[int]) -> Tensor:
        return torch.tensor(slots, dtype=torch.int64, device=self.device)

    def claim(self, most: int, least: int = 1) -> list[int]:
        """As many slots as are free, at most `most`, as `alloc` gives them.

        Raises RuntimeError, with none taken, when fewer than `least` are free.
        """
        with self.lock:
            free = self.used.count(False)
            if free < least:
                raise RuntimeError(
                    f"claim: {free} of {self.slots} slots are free, expected {least} or more; free some or build a larger bank."
                )
            slots = [slot for slot, used in enumerate(self.used) if not used][:most]
            if slots:
                self._occupy(slots, self.max_rank, 1.0, _HYPER)
            return slots

    @contextlib.contextmanager
    def borrowed(self, count: int, least: int | None = None) -> Iterator[list[int]]:
        """Within the block, `count` slots with Δ = 0; or, with `least`, as many of them as are free (see `claim`)."""
        slots = self.claim(count, count if least is None else least)
        try:
            yield slots
        finally:
            for slot in slots:
                if self.used[slot]:
                    self.free(slot)

    @contextlib.contextmanager
    def holding(self, snapshots: Sequence[Snapshot | None]) -> Iterator[list[int]]:
        """Within the block, slots that hold `snapshots`: one for each different one, -1 for None. Gives the slot of each.

        Raises RuntimeError if there are too few slots, ValueError as `restore` does.
        """
        different = {id(s): s for s in snapshots if s is not None}
        with self.borrowed(len(different)) as slots:
            for slot, snapshot in zip(slots, different.values()):
                self.restore(slot, snapshot)
            slot_of = dict(zip(different, slots))
            yield [-1 if s is None else slot_of[id(s)] for s in snapshots]

    def free(self, slot: int) -> None:
        """Give a slot back; routing it, or running a backward that still needs it, raises from now on."""
        with self.lock:
            self.check(slot, "free")
            self.used[slot] = False
            self.tenancy[slot] += 1
            self.freed += 1
            self.rank[slot] = 0
            changed(self, [slot])

    def reset(self, slot: int) -> None:
        """Δ = 0, moments = 0, step = 0; rank, scale and hyper-parameters stay."""
        self.check(slot, "reset")
        self._clear([slot])

    def _clear(self, slots: list[int]) -> None:
        self._copy_rows([-1] * len(slots), slots, self._grad, *self._learned)
        self._refresh(slots)
        if self.train_a:
            where = self._indices(slots)
            for site, factor in zip(self.sites, self._factors):
                for a in (site.a, site.a_copy):
                    if a is not None:
                        of_slots = a.unflatten(0, (self.slots, site.experts))
                        of_slots.index_copy_(0, where, factor.to(a.dtype).expand(len(slots), site.experts, -1, -1))
        changed(self, slots)

    def _refresh(self, slots: Sequence[int]) -> None:
        """From now on the gradients of these slots count as zero."""
        mine = bits(slots)
        self._shown &= ~mine
        for site in self.sites:
            site.fresh |= mine

    @property
    def grad(self) -> Tensor:
        """Accumulated gradients [slots, P], as `param` is laid out. What counts as zero is zeroed first: the first backward
        after a step writes over what it finds, so that nothing needs to be cleared or read. Who writes here asks for it anew
        after each step."""
        with self.lock:
            self._settle((1 << self.slots) - 1)
            self._shown = (1 << self.slots) - 1
        return self._grad

    def _settle(self, mine: int) -> None:
        """Zero what counts as zero of these slots' gradients: where no layer has any, whole rows at once."""
        nowhere = functools.reduce(operator.and_, (site.fresh for site in self.sites), mine)
        if rows := slots_of(nowhere):
            self._copy_rows([-1] * len(rows), rows, self._grad, *self._squares)
        for site in self.sites:
            site.fresh &= ~nowhere
            clear(site, mine)

    @property
    def _learned(self) -> tuple[Tensor | None, ...]:
        """What learning moves."""
        return self.param, self.m, self.v, self.step_count, self.copy

    def _copy_rows(self, source: Sequence[int], target: Sequence[int], *matrices: Tensor | None) -> None:
        """Rows of these matrices from one slot to another; source -1: zero."""
        rows = torch.tensor([source, target], dtype=torch.int32, device=self.device)
        ops.bank_copy_([x for x in matrices if x is not None], *rows.unbind())

    def written(self, slot: int) -> None:
        """To be called by whatever writes a row's parameters."""
        changed(self, [slot])
        if self.copy is not None:
            self.copy[slot] = self.param[slot]

    def configure(self, slot: int, **hyper: float) -> None:
        """Set this row's `lr`, `beta1`, `beta2`, `eps`, `weight_decay` or `clip` (gradient norm; 0 = off).

        Raises ValueError for any other name.
        """
        self.check(slot, "configure")
        self._known(hyper)
        for name, value in hyper.items():
            self.hyper[slot, ops.HYPER.index(name)] = value

    @staticmethod
    def _known(hyper: dict[str, float]) -> None:
        for name in hyper:
            if name not in ops.HYPER:
                raise ValueError(f"configure: expected some of {', '.join(ops.HYPER)}, got {name!r}.")

    def is_zero(self, slot: int) -> bool:
        """Whether Δ = 0 for certain: nothing was learned into this slot or restored to it. Of a slot with an A of its own it
        is not certain."""
        self.check(slot, "is_zero")
        return not bool(self.param[slot].any())

    def fork(self, slot: int) -> int:
        """A new slot that starts as an exact copy of `slot`: weights, moments, step, rank, scale, hyper-parameters.

        Raises RuntimeError when no slot is free.
        """
        with self.lock:
            self.check(slot, "fork")
            new = self.alloc()
            self._copy_rows([slot], [new], *self._learned, self.hyper, self.rank, self.scale)
            changed(self, [new])
        return new

    def snapshot(self, slot: int, *, optimizer: bool = True) -> Snapshot:
        """A copy of the row. `optimizer=False` leaves the moments out: enough to replay, not to go on learning."""
        self.check(slot, "snapshot")
        state = {}
        if optimizer and self.m is not None and self.v is not None:
            state = {"m": self.m[slot].clone(), "v": self.v[slot].clone()}
        step = int(self.step_count[slot]) if optimizer else 0
        return Snapshot(
            self.param[slot].clone(), int(self.rank[slot]), float(self.scale[slot]), self.subspace, step=step, **state
        )

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """Write a snapshot into a slot (any slot of a bank with the same layout and the same shared A).

        Raises ValueError if the snapshot belongs to another subspace: its B means nothing under another A.
        """
        self.check(slot, "restore")
        if snapshot.subspace != self.subspace:
            raise ValueError(
                f"restore: the snapshot belongs to subspace {snapshot.subspace[:8]}, this bank has {self.subspace[:8]}; "
                f"use a bank with the same model, targets, rank and init."
            )
        self.param[slot].copy_(snapshot.param)
        self._grad[slot].zero_()
        self._refresh([slot])
        for mine, theirs in ((self.m, snapshot.m), (self.v, snapshot.v)):
            if mine is not None:
                mine[slot].zero_() if theirs is None else mine[slot].copy_(theirs)
        self.step_count[slot] = snapshot.step
        self.rank[slot], self.scale[slot] = snapshot.rank, snapshot.scale
        self.written(slot)

    def check(self, slot: int, what: str) -> None:
        """Raise ValueError, which begins with `what`, for a slot that is out of range or free."""
        if not (isinstance(slot, int) and 0 <= slot < self.slots):
            raise ValueError(f"{what}: slot: expected an int in 0..{self.slots - 1}, got {slot!r}.")
        if not self.used[slot]:
            raise ValueError(f"{what}: slot {slot} is free; alloc() one first.")

    # learning ------------------------------------------------------------------------------------------------------

    def hold(self, slots: Sequence[int], *, learn: bool = False, lengths: Sequence[int] | None = None) -> Route:
        """A route that is not open: its `alive` tells whether these slots are still those of their tenants of now.

        Arguments and errors as of `route`.
        """
        slots = [int(s) for s in slots]
        if lengths is not None:
            lengths = [int(n) for n in lengths]
            if len(lengths) != len(slots) or min(lengths, default=0) < 0:
                raise ValueError(f"route: lengths: expected {len(slots)} token counts, one per row, got {lengths}.")
        with self.lock:
            for slot in slots:
                if slot != -1:
                    self.check(slot, "route")
            return Route(self, slots, learn, lengths)

    @contextlib.contextmanager
    def route(self, slots: Sequence[int], *, learn: bool = True, lengths: Sequence[int] | None = None) -> Iterator[Route]:
        """Within the block, batch row i of the model runs with slot `slots[i]` (-1: the base model alone). Routes nest.

        A route belongs to the context that opens it, a thread or a task, and to what inherits a copy of that context while
        the block is open (see tmem.adapters.routes): a thread started by itself computes with the base model until it
        opens its own.
        A generator has no context of its own: close the block before a `yield`, or a later step may be refused.

            learn     backward accumulates into the gradient rows of the routed slots; False treats Δ as a constant
                      (stop-gradient), so that only the base model's own parameters get gradients.
            lengths   real tokens of each row, which come first; adapters do no work on the padding behind them, whose
                      outputs are then the base model's.

        The route belongs to what ran under it: layers that transformers' gradient checkpointing, enabled before, computes
        again in backward run with it again. With a checkpoint of your own, run backward within the block.

        Raises ValueError for a slot that is out of range or free and for lengths that are not one per row, RuntimeError if the
        bank is detached or the model's checkpointing hides adapters from autograd.
        """
        route = self.hold(slots, learn=learn, lengths=lengths)
        if self.sites and "forward" not in vars(self.sites[0].module):
            raise RuntimeError("route: the bank is detached from its model; call attach() first.")
        if self.model.training and torch.is_grad_enabled() and getattr(self.model, "is_gradient_checkpointing", False):
            routed_checkpoints(self, learn)
        with serving(route):
            yield route

    def step(self, slots: Sequence[int]) -> Tensor:
        """One optimizer step of these slots; their gradients are zeroed. Returns the gradient norms fp32 [len(slots)].

        A row whose gradient is not finite is left as it was; its norm says so.
        """
        with self.lock:
            for slot in slots:
                self.check(slot, "step")
            where = self._indices(slots)
            mine = set(slots)
            active = torch.tensor([slot in mine for slot in range(self.slots)], device=self.device)
            changed(self, slots)
            self._settle(bits(slots))  # where no backward came
            norms = move(self, active, summed=not self._shown & bits(slots))
            self._refresh(slots)
        return norms.index_select(0, where)

    def zero_grad(self, slots: Sequence[int]) -> None:
        """Drop what backward has accumulated for these slots."""
        for slot in slots:
            self.check(slot, "zero_grad")
        with self.lock:
            self._refresh(slots)

    @torch.no_grad()
    def delta_norm(self, slot: int) -> float:
        """‖ΔW‖_F over all layers: the root of Σ ‖scale·Bᵀ A‖², by the r x r Gram matrices, tr(A Aᵀ · B Bᵀ), in fp64.

        ΔW itself is never formed.
        """
        self.check(slot, "delta_norm")
        total, r = 0.0, int(self.rank[slot])
        for site in self.sites:
            a = (site.of(site.a, slot) if self.train_a else site.a)[:, :r].double()
            b = site.of(site.bt, slot)[:, :r].double()
            total += float(((a @ a.mT) * (b @ b.mT)).sum())
        return abs(float(self.scale[slot])) * max(total, 0.0) ** 0.5

    # under the model -----------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Put the bank back under its model after `detach`. Raises RuntimeError where a bank is under it already."""
        attach(self, mixtures(self))

    def detach(self) -> None:
        """Leave the model exactly as it was; the slots keep their content."""
        detach(self)


def move(bank: AdapterBank, active: Tensor, summed: bool = True) -> Tensor:
    """What the device does of a step, for the rows that are active, bool [S]; no value is read on the host.

    summed: the squares of their gradients lie as backward left them. Whoever calls this has seen to all else that
    `AdapterBank.step` does. Returns the gradient norms fp32 [S], 0 for the others.
    """
    moments, squares = (bank.m, bank.v), torch.cat(bank._squares, 1) if summed else None
    return ops.bank_step_(bank.param, bank._grad, *moments, bank.step_count, bank.hyper, active, bank.copy, False, squares)


def changed(bank: AdapterBank, slots: Sequence[int]) -> None:
    """To be called by whatever writes their rows."""
    for slot in slots:
        bank.version[slot] += 1
        bank.writes += 1


def counts_as_zero(bank: AdapterBank, slots: Sequence[int]) -> bool:
    """Whether the gradients of these slots count as zero in every layer, and nobody else writes them."""
    mine = bits(slots)
    return not bank._shown & mine and all(site.fresh & mine == mine for site in bank.sites)
