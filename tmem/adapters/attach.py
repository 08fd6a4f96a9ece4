"""Put a bank under a Hugging Face model: find the linear layers, replace their `forward`, take it away again.

Only the instance attribute `forward` of each adapted module changes; parameters, names and state dict stay as they
are. Without a route the replacement is one look at an empty context. Mixtures of experts are in `experts`.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import bases
from ..models.experts import PROJECTIONS
from ..models.families import FUSED, joined
from ..ops import _autocast, _checks
from ..ops._layer import adapted_linear
from ..ops._once import once_differentiable
from . import routes


@dataclass(eq=False)
class Site:
    """One adapted linear layer and its part of the bank: `a` [S or 1, R, K], `bt` [S, R, N], their gradients, and the
    copies in 16 bits that decode reads, if the bank keeps them. `together`: the sites that read the same input, itself
    included. `plain`: the module is an `nn.Linear` with a weight of floats; else it is run as it is, for y and dx.

    Or one projection of all experts of a mixture, the module's `parameter` [E, N, K]: then S is slots · E, and what the ops
    take for a slot is slot · E + expert. `a` [1, R, K] is shared by all experts as well."""

    name: str
    module: nn.Module
    parameter: str | None = None
    plain: bool = field(init=False)
    experts: int = field(init=False)  # E; 1 for a linear layer
    inputs: int = field(init=False)  # K
    outputs: int = field(init=False)  # N
    a: Tensor = field(init=False, repr=False)
    bt: Tensor = field(init=False, repr=False)
    a_grad: Tensor | None = None
    bt_grad: Tensor = field(init=False, repr=False)
    bt_squares: Tensor = field(init=False, repr=False)  # fp64 [S, entries] of the gradients: see tmem.ops.lora_gram_
    a_squares: Tensor | None = field(init=False, repr=False)
    a_copy: Tensor | None = None
    bt_copy: Tensor | None = None
    fresh: int = -1  # a bit for every slot: its gradient here counts as zero, whatever is in its memory
    together: tuple[Site, ...] = field(default=(), repr=False)

    def of(self, x: Tensor, slot: int) -> Tensor:
        """A slot's part of x [S, R, D], one of the above: [1, R, D], of experts [E, R, D]."""
        return x[slot * self.experts : (slot + 1) * self.experts]

    @property
    def weight(self) -> Tensor | None:
        """W [N, K], of experts those of all one below the other, [E · N, K]; None: the module holds no floats."""
        return bases.plain_weight(self.module) if self.parameter is None else getattr(self.module, self.parameter).flatten(0, 1)

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B as activations of this dtype meet them: the copies, where they have it, which are half the bytes and what
        decode reads, so that training sees the weights that act."""
        if self.bt_copy is not None and self.a_copy is not None and self.bt_copy.dtype == dtype:
            return self.a_copy, self.bt_copy
        return self.a, self.bt

    @property
    def decoded(self) -> tuple[Tensor, Tensor]:
        """A and B as decode reads them: the copies, if there are any."""
        return (self.a, self.bt) if self.bt_copy is None else (self.a_copy, self.bt_copy)

    def __post_init__(self):
        self.plain, self.experts = bases.plain_weight(self.module) is not None, 1
        if self.parameter is None:
            self.inputs, self.outputs = self.module.in_features, self.module.out_features
        else:
            self.experts, self.outputs, self.inputs = getattr(self.module, self.parameter).shape


_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # projections of one input, by the module's name
_ATTENTION = (*_TOGETHER[0], "o_proj")


def find_sites(model: nn.Module, targets: tuple[str, ...], last_layers: int | None) -> list[Site]:
    """The linear layers named in `targets` (last part of the module's name) within the last `last_layers` layers. Where a
    model has projections as one linear layer, that one is meant by all of them together.

    A layer is an `nn.Linear`, or a frozen module that computes like one and gives the gradient of its input, such as a
    quantised one. The same names mean the projections of experts, of which gate_proj and up_proj are one, `gate_up_proj`.
    Raises ValueError naming a target that no layer has, that is a part of a fused layer, that means experts which cannot be
    adapted, that is neither, or whose weight is tied to another module: both would be adapted.
    """
    modules = dict(model.named_modules())
    count = 1 + max(map(_layer_of, modules))
    if not count:
        raise ValueError(f"attach: {type(model).__name__} has no `layers.<i>.` modules to adapt; expected a decoder.")
    if last_layers is not None and not 1 <= last_layers <= count:
        raise ValueError(f"last_layers: expected 1..{count} for this model, got {last_layers}.")
    first = 0 if last_layers is None else count - last_layers
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        for _, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    sites = _expert_sites(model, targets, modules)
    meant = {part for site in sites for part in (site.parameter, *FUSED.get(site.parameter, ()))}
    for target in joined(targets, {name.rsplit(".", 1)[-1] for name in modules}):
        found = [n for n in modules if n.rsplit(".", 1)[-1] == target]
        if not found and target not in meant:
            raise ValueError(f"targets: {type(model).__name__} has no module named {target!r}.")
        for name in found:
            module = modules[name]
            if bases.plain_weight(module) is None:
                why = bases.unfit(module, bases.dtype_of(model))
                if why is not None:
                    raise ValueError(f"targets: {name} is a {type(module).__name__}: {why}.")
            others = [o for o in owners.get(id(getattr(module, "weight", None)), ()) if o != name]
            if others:
                raise ValueError(f"targets: the weight of {name} is tied to {', '.join(others)}; leave it out.")
            if _layer_of(name) < 0:
                raise ValueError(f"targets: {name} is not inside a decoder layer; leave it out.")
            sites.append(Site(name, module))
    sites = [site for site in sites if _layer_of(site.name) >= first]
    if not sites:
        names = " or ".join(targets)
        raise ValueError(f"targets: the last {last_layers} layers have no module named {names}; widen last_layers.")
    groups: dict[tuple, list[Site]] = {}
    for site in sites:
        parent, _, last = site.name.rpartition(".")
        kind = next((i for i, names in enumerate(_TOGETHER) if last in names), last)
        groups.setdefault((parent, kind), []).append(site)
    for group in groups.values():
        for site in group:
            site.together = tuple(group)
    return sorted(sites, key=lambda s: (_layer_of(s.name), s.name))


def _layer_of(name: str) -> int:
    """The decoder layer that something belongs to, -1 for none."""
    return int(found.group(1)) if (found := re.search(r"\.layers\.(\d+)\.", name)) else -1


def _expert_sites(model: nn.Module, targets: tuple[str, ...], modules: Mapping[str, nn.Module]) -> list[Site]:
    """The projections of experts that are meant, of all layers. Raises ValueError where these cannot be adapted."""
    wanted = [target for target in targets if target not in _ATTENTION]
    mixtures = {name: module for name, module in modules.items() if name.endswith(".experts")} if wanted else {}
    for name, module in mixtures.items():
        held = dict(module.named_parameters(recurse=False))
        if tuple(held) != PROJECTIONS or any(w.dim() != 3 or not w.is_floating_point() for w in held.values()):
            raise ValueError(
                f"targets: {wanted[0]!r} would leave out {name} of {type(model).__name__}, whose projections are not the two "
                f"tensors {' and '.join(PROJECTIONS)} of floats; name some of {', '.join(_ATTENTION)} alone."
            )
    if len({module.down_proj.shape[0] for module in mixtures.values()}) > 1:
        raise ValueError(f"targets: layers of {type(model).__name__} differ in the number of experts; name other targets.")
    meant = [target for target in joined(wanted, PROJECTIONS) if target in PROJECTIONS] if mixtures else []
    return [Site(f"{name}.{target}", module, target) for name, module in mixtures.items() for target in meant]


class Bank(Protocol):
    """What a route and the replaced `forward` ask of a bank: see AdapterBank."""

    model: nn.Module
    sites: list[Site]
    rank: Tensor  # int32 [S]; 0: the slot is free
    scale: Tensor  # fp32 [S]
    train_a: bool
    version: list[int]  # of each slot: raised by everything that writes it
    writes: int  # the sum of `version`
    tenancy: list[int]  # of each slot: raised whenever it changes hands
    freed: int  # how many slots were freed so far
    reads_once: bool  # one read of what several projections share
    decodes_rows: bool  # single rows by the decode kernel
    max_rank: int
    numbers: dict[str, int]  # of the sites' layers, under torch.compile
    handle: Tensor  # a leaf that requires grad, for the same

    @property
    def lock(self) -> AbstractContextManager: ...


def bits(slots: Iterable[int]) -> int:
    """A whole number with a bit for every slot."""
    return functools.reduce(lambda found, slot: found | 1 << slot, slots, 0)


def slots_of(found: int) -> list[int]:
    """The slots whose bit is set."""
    return [slot for slot in range(found.bit_length()) if found >> slot & 1]


class Segments(NamedTuple):
    """A route's batch as the ops take it: see tmem.reference. `plan` on a GPU only, where all layers share it."""

    off: Tensor
    slot: Tensor
    rank: Tensor  # int32 [S]
    scale: Tensor  # fp32 [S]
    plan: Tensor | None
    filled: int  # a bit for every slot that has rows
    without: Tensor | None = None  # int64: of the slots that have rows, the experts that have none, as slot · E + expert


class Route:
    """Which slot serves each batch row, fixed while a `with bank.route(...)` block is open and for its backward."""

    def __init__(self, bank: Bank, slots: list[int], learn: bool, lengths: list[int] | None = None):
        self.bank, self.slots, self.learn, self.lengths = bank, slots, learn, lengths
        self.used = sorted({s for s in slots if s >= 0})
        self.writes, self.versions = bank.writes, [bank.version[s] for s in self.used]
        self.freed, self.tenancy = bank.freed, [bank.tenancy[s] for s in self.used]
        self._segments: dict[torch.Size, Segments] = {}
        self._laid: dict[torch.Size, Callable[[], Segments]] = {}  # those that are made when a layer asks
        self.number: int | None = None  # by which a compiled backward finds it
        self._shrunk: tuple[Tensor, int | None, dict[Site, Tensor]] | None = None
        # A leaf that requires grad makes autograd visit the adapters although neither x nor the base weight need it.
        self.handle = torch.zeros((), requires_grad=True) if learn else None

    def segments(self, x: Tensor) -> Segments:
        """The segments of an input [B, ..., K]: one per batch row, and one without a slot for what is padding."""
        self.alive()
        shape = x.shape[:-1]
        if (found := self._segments.get(shape)) is None:
            found = self._segments[shape] = self._laid[shape]() if shape in self._laid else self._cut(x)
        return found

    def _cut(self, x: Tensor) -> Segments:
        if x.dim() < 2 or x.shape[0] != len(self.slots):
            raise ValueError(
                f"route: the model saw a batch of {x.shape[0] if x.dim() > 1 else 1} rows, but {len(self.slots)} slots "
                f"are routed; give one slot per row (num_return_sequences and beams multiply the rows)."
            )
        length, device = x.shape[1:-1].numel(), x.device
        rows, lengths, slots = len(self.slots), [length] * len(self.slots), self.slots
        if self.lengths is not None:
            if max(self.lengths, default=0) > length:
                raise ValueError(
                    f"route: a row of {max(self.lengths)} tokens is routed, but the model saw {length}; "
                    f"open another route for this pass."
                )
            # Real tokens, then padding, which no adapter touches.
            lengths = [n for real in self.lengths for n in (real, length - real)]
            slots = [s for slot in self.slots for s in (slot, -1)]
        off = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
        slot = torch.tensor(slots, dtype=torch.int32, device=device)
        return self._of(off, slot, rows * length, bits(s for s, n in zip(slots, lengths) if s >= 0 and n))

    def _of(self, off: Tensor, slot: Tensor, rows: int, filled: int) -> Segments:
        plan = torch.ops.tmem.lora_plan(off, slot, self.bank.rank, rows) if off.is_cuda else None
        return Segments(off, slot, self.bank.rank, self.bank.scale, plan, filled)

    def narrow(self, counts: Sequence[int], length: int) -> None:
        """From now on inputs [length, 1, K] are served too: counts[i] tokens of batch row i, row after row, then some without a
        slot."""
        self._count(counts, torch.Size((length, 1)))

    def join(self, length: int) -> None:
        """From now on inputs [1, length, K] are served too: the real tokens of every batch row, row after row, then some
        without a slot. Raises ValueError for a route without lengths."""
        if self.lengths is None:
            raise ValueError("route: rows are joined by their lengths; open the route with lengths.")
        self._count(self.lengths, torch.Size((1, length)))

    def _count(self, counts: Sequence[int], shape: torch.Size) -> None:
        def made() -> Segments:
            off = torch.tensor([0, *itertools.accumulate(counts), shape.numel()], dtype=torch.int32, device=self.bank.device)
            slot = torch.tensor([*self.slots, -1], dtype=torch.int32, device=self.bank.device)
            return self._of(off, slot, shape.numel(), bits(s for s, n in zip(self.slots, counts) if s >= 0 and n))

        self._laid[shape] = made

    def lay(self, shape: torch.Size, off: Tensor, slot: Tensor) -> None:
        """From now on these are the segments of inputs of this shape [B, ...], int32 [G+1] and [G], whatever they hold when an
        op runs.

        Nobody on the host knows which slots have rows then: whoever writes these tensors answers for the slots, and what their
        gradients held before counts as zero.
        """
        self._segments.pop(shape, None)
        self._laid[shape] = lambda: self._of(off, slot, shape.numel(), 0)

    def shrink(self, site: Site, x: Tensor) -> Tensor | None:
        """z of a site whose neighbours read the same x: all of theirs are made at its first use. None: make your own."""
        if len(site.together) == 1:
            return None
        version = None if x.is_inference() else x._version
        kept = self._shrunk  # another thread may serve the same route, and leave its own here meanwhile
        z = kept[2].pop(site, None) if kept is not None and kept[0] is x and kept[1] == version else None
        if z is None:
            seg = self.segments(x)
            factors, rows = [s.factors(x.dtype)[0] for s in site.together], x.reshape(-1, x.shape[-1])
            made = _shrink_multi(rows, factors, seg.off, seg.slot, seg.rank, seg.scale, seg.plan)
            kept = self._shrunk = x, version, dict(zip(site.together, made))
            z = kept[2].pop(site)
        if not kept[2]:
            self._shrunk = None
        return z

    def alive(self) -> None:
        """Raise RuntimeError if a routed slot was freed since the route was opened, whoever has it now."""
        freed = self.bank.freed
        if self.freed == freed:
            return
        gone = [s for s, t in zip(self.used, self.tenancy) if self.bank.tenancy[s] != t]
        if gone:
            raise RuntimeError(f"route: slot {gone[0]} was freed while it is routed; free it after the block.")
        self.freed = freed

    def check(self) -> None:
        """Raise RuntimeError if a routed slot was written, freed or reset since the route was opened."""
        writes = self.bank.writes
        if writes == self.writes:
            return
        now = [self.bank.version[s] for s in self.used]
        if now != self.versions:
            stale = next(s for s, v, old in zip(self.used, now, self.versions) if v != old)
            raise RuntimeError(
                f"route: slot {stale} was changed (step, reset, restore or free) between forward and backward; "
                f"run backward before changing the slot, or open a new route."
            )
        self.writes = writes


_linear, _shrink, _shrink_multi, _expand_, _gram_, _backward_, _decode_ = (
    getattr(torch.ops.tmem, name).default._op  # what calling the op calls
    for name in (
        "lora_linear", "lora_shrink", "lora_shrink_multi", "lora_expand_", "lora_gram_", "lora_backward_", "lora_decode_",
    )
)  # fmt: skip


def adapted(site: Site, z: Tensor | None, x: Tensor, w: Tensor, bias: Tensor | None, seg: Segments):
    """y = x Wᵀ + b + scale·(x Aᵀ) B, and z = scale·x Aᵀ, which may be there already."""
    a, bt = site.factors(x.dtype)
    if z is None:
        return _linear(x, w, bias, a, bt, seg.off, seg.slot, seg.rank, seg.scale, seg.plan)
    y = F.linear(x, w, bias)
    _expand_(y.view(-1, y.shape[-1]), z, bt, seg.off, seg.slot, seg.rank, seg.plan)
    return y, z


def clear(site: Site, slots: int) -> None:
    """Zero what counts as zero of these slots' gradients."""
    for slot in slots_of(site.fresh & slots):
        site.of(site.bt_grad, slot).zero_()
        site.of(site.bt_squares, slot).zero_()
        if site.a_grad is not None:
            site.of(site.a_grad, slot).zero_()
            site.of(site.a_squares, slot).zero_()
    site.fresh &= ~slots


def gradients(
    site: Site, route: Route, seg: Segments, learn: bool, dy: Tensor, x: Tensor | None, w: Tensor | None, z: Tensor,
    need_dx: bool,
) -> Tensor | None:  # fmt: skip
    """Adds dB (and dA) to the bank's gradient rows, in place, and gives dx, if needed; w None: the adapter's part of dx."""
    bank, (off, slot, rank, scale, plan, filled, without) = route.bank, seg
    route.check()
    rows, (a, bt) = dy.reshape(-1, dy.shape[-1]), site.factors(dy.dtype)
    train_a = learn and bank.train_a
    with bank.lock:  # two threads may add to the gradient of one slot
        fresh = learn and filled & site.fresh == filled
        if learn and not fresh and site.fresh & filled:
            clear(site, filled)
        if fresh and without is not None:
            for matrix in (site.bt_grad, site.bt_squares, site.a_grad, site.a_squares):
                if matrix is not None:
                    matrix.index_fill_(0, without, 0)
        if learn and (need_dx or train_a):
            dz = _backward_(site.bt_grad, z, rows, bt, off, slot, rank, scale, plan, fresh, site.bt_squares)
        elif learn:
            _gram_(site.bt_grad, z, rows, off, slot, rank, plan, fresh, site.bt_squares)
        elif need_dx:
            dz = _shrink(rows, bt, off, slot, rank, scale, plan)
        if train_a:
            _gram_(site.a_grad, dz, x.reshape(-1, x.shape[-1]), off, slot, rank, plan, fresh, site.a_squares)
        if learn:
            site.fresh &= ~filled
    if not need_dx:
        return None
    dx = rows.new_zeros(rows.shape[0], a.shape[2]) if w is None else rows @ w
    _expand_(dx, dz, a, off, slot, rank, plan)
    return dx.view(*dy.shape[:-1], dx.shape[1])


class _BankLinear(torch.autograd.Function):
    """y = x Wᵀ + b + scale·(x Aᵀ) B; backward accumulates dB (and dA) into the bank's gradient rows, in place.

    The bank is no autograd leaf: dense gradients of views of one large leaf cost about ten times as much.
    """

    @staticmethod
    def forward(ctx, x, w, bias, handle, site, route, z):
        seg = route.segments(x)
        with torch._C._AutoDispatchBelowAutograd():  # the op's own backward, in Python, would be prepared in vain
            y, z = adapted(site, z, x, w, bias, seg)
        ctx.site, ctx.route, ctx.seg = site, route, seg
        ctx.learn = route.learn and handle is not None
        ctx.also = (handle,)  # the bank's rows, which are no leaf, in autograd's eyes
        need_x = w.requires_grad or (ctx.learn and route.bank.train_a)
        ctx.save_for_backward(x if need_x else None, w, z if ctx.learn else None)
        return y

    @staticmethod
    @once_differentiable("route")
    def backward(ctx, saved, dy):
        x, w, z = saved
        need_dx, need_dw, need_db = ctx.needs_input_grad[:3]
        dx = gradients(ctx.site, ctx.route, ctx.seg, ctx.learn, dy, x, w, z, need_dx)
        rows = dy.reshape(-1, dy.shape[-1]) if need_dw or need_db else None
        dw = rows.T @ x.reshape(-1, x.shape[-1]) if need_dw else None
        return dx, dw, rows.sum(0) if need_db else None, None, None, None, None


class _Added(torch.autograd.Function):
    """y + scale·(x Aᵀ) B, written over y, which the module gave; backward as that of _BankLinear, for the adapter's part."""

    @staticmethod
    def forward(ctx, y, x, handle, site, route, seg, z):
        z = add_(y, x, site, seg, z)
        ctx.site, ctx.route, ctx.seg, ctx.also = site, route, seg, (handle,)
        ctx.learn = route.learn and handle is not None
        ctx.save_for_backward(x if ctx.learn and route.bank.train_a else None, z)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable("route")
    def backward(ctx, saved, dy):
        x, z = saved
        dx = gradients(ctx.site, ctx.route, ctx.seg, ctx.learn, dy, x, None, z, ctx.needs_input_grad[1])
        return dy, dx, None, None, None, None, None


# Function.apply without its own look for transforms of torch.func, which `followed` has refused.
_bank_linear, added = (super(torch.autograd.Function, function).apply for function in (_BankLinear, _Added))


def add_(y: Tensor, x: Tensor, site: Site, seg: Segments, z: Tensor | None = None) -> Tensor:
    """y += scale·(x Aᵀ) B; gives z."""
    a, bt = site.factors(y.dtype)
    if z is None:
        z = _shrink(x.reshape(-1, x.shape[-1]), a, seg.off, seg.slot, seg.rank, seg.scale, seg.plan)
    _expand_(y.view(-1, y.shape[-1]), z, bt, seg.off, seg.slot, seg.rank, seg.plan)
    return z


def add_rows_(y: Tensor, x: Tensor, site: Site, slot: Tensor, rank: Tensor, scale: Tensor) -> None:
    """The same for single rows, each with a slot of its own (int32 [M])."""
    _decode_(y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]), *site.decoded, slot, rank, scale)


def alone(site: Site, x: Tensor) -> Tensor:
    """What the layer and its hooks make of x without an adapter, in memory of its own."""
    if bases.hooked(site.module):
        with routes.alone():
            y = site.module(x)
    elif site.plain:
        return F.linear(x, site.module._parameters["weight"], site.module._parameters["bias"])
    else:
        y = type(site.module).forward(site.module, x)
    return y.clone(memory_format=torch.contiguous_format) if y._is_view() or not y.is_contiguous() else y


def _over(bank: Bank, site: Site, x: Tensor) -> Tensor:
    """The layer of a module that is run as it is."""
    module = site.module
    y = type(module).forward(module, x)
    route = routes.current(bank) if routes.opened() else None
    if route is None:
        return y
    _checks.followed("route", "the layer's input", x)
    if y._is_view() or not y.is_contiguous():
        y = y.clone(memory_format=torch.contiguous_format)
    x = x.to(y.dtype)
    z = None
    if bank.reads_once:
        with torch.no_grad():
            z = route.shrink(site, x)
    seg = route.segments(x)
    if torch.is_grad_enabled() and (route.learn or x.requires_grad):
        return added(y, x, route.handle, site, route, seg, z)
    add_(y, x, site, seg, z)
    return y


def _forward(bank: Bank, site: Site, x: Tensor) -> Tensor:
    if not site.plain:
        return _over(bank, site, x)
    parameters = site.module._parameters  # the attribute lookup of a module is slow
    w, bias = parameters["weight"], parameters["bias"]
    if torch.compiler.is_compiling():
        return adapted_linear(*_autocast.linear(x, w, bias), bank.handle, bank.numbers[site.name])
    route = routes.current(bank) if routes.opened() else None
    if route is None:
        return F.linear(x, w, bias)
    _checks.followed("route", "the layer's input", x)
    given = x  # which projections share, where each has a cast of its own
    if torch._C._is_any_autocast_enabled():
        x, w, bias = _autocast.linear(x, w, bias)
    followed = x.requires_grad or w.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and (route.learn or followed):
        z = None
        if bank.reads_once:
            with torch.no_grad():
                z = route.shrink(site, given)
        return _bank_linear(x, w, bias, route.handle, site, route, z)
    seg = route.segments(x)
    if bank.decodes_rows and x.shape[1:-1].numel() == 1 and route.lengths is None:
        y = F.linear(x, w, bias)
        add_rows_(y, x, site, seg.slot, seg.rank, seg.scale)
        return y
    z = route.shrink(site, given) if bank.reads_once else None
    with torch._C._AutoDispatchBelowAutograd():
        return adapted(site, z, x, w, bias, seg)[0]


def routed_checkpoints(bank: Bank, learn: bool) -> None:
    """Let layers that are recomputed in backward run with the routes they had in forward.

    Raises RuntimeError for the checkpointing of torch that hides what is inside from autograd (use_reentrant=True).
    """
    for layer in bank.model.modules():
        checkpoint = vars(layer).get("_gradient_checkpointing_func")
        if checkpoint is None or not getattr(layer, "gradient_checkpointing", False):
            continue
        inner = getattr(checkpoint, "tmem_inner", checkpoint)
        if learn and getattr(inner, "keywords", {}).get("use_reentrant"):
            raise RuntimeError(
                "route: checkpointing with use_reentrant=True gives adapters no gradient; call "
                "model.gradient_checkpointing_enable({'use_reentrant': False})."
            )
        routed = functools.partial(_checkpoint, inner)
        routed.tmem_inner = inner
        layer._gradient_checkpointing_func = routed


def _checkpoint(checkpoint, function, *args):
    return checkpoint(functools.partial(routes.kept(), function), *args)


class Replaced(functools.partial):
    """The `forward` of a module under a bank, its first argument."""


def _carries(module: nn.Module, bank: Bank | None = None) -> bool:
    """Whether the module's forward is that of a bank, or of this one."""
    mine = vars(module).get("forward")
    return isinstance(mine, Replaced) and bank in (None, mine.args[0])


def as_built(module: nn.Module) -> bool:
    """Whether the module computes here what its class does: its forward is its own, or that of a bank without an open route."""
    mine = vars(module).get("forward")
    if isinstance(mine, Replaced):
        return not routes.opened() or routes.current(mine.args[0]) is None
    return mine is None


def attach(bank: Bank, mixtures: Mapping[nn.Module, Callable] = MappingProxyType({})) -> None:
    """Replace `forward` of every site's module. Raises RuntimeError if a module already carries a bank.

    mixtures: modules that are no linear layers, and what they call in its place, with the bank before all else.
    """
    taken = [s.name for s in bank.sites if "forward" in vars(s.module)]
    if taken:
        raise RuntimeError(f"attach: {taken[0]} already has a replaced forward; detach the other bank first.")
    for site in bank.sites:
        if site.parameter is None:
            site.module.forward = Replaced(_forward, bank, site)
    for module, forward in mixtures.items():
        module.forward = Replaced(forward, bank, module)


def detach(bank: Bank) -> None:
    """Give every module its own `forward` back; harmless when the bank is not attached."""
    for module in bank.model.modules():
        if _carries(module, bank):
            del module.forward
    if any(_carries(m) for m in bank.model.modules()):
        return  # another bank's routes still need the checkpoints
    for layer in bank.model.modules():
        inner = getattr(vars(layer).get("_gradient_checkpointing_func"), "tmem_inner", None)
        if inner is not None:
            layer._gradient_checkpointing_func = inner
