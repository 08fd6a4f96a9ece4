"""One new token of every row through a decoder's layers in few kernels: what a step of decoding takes.

Everything beside the products with frozen weights is `attend` or one of four ops: see tmem.ops.TOKEN_PARTS. A projection's
adapter is added by the op that reads the projection next, but for those of q, k and v, which one op adds. transformers' modules
say what is computed, and hold the weights.

On a CPU the products take the time, and more than half of it if weights are packed for them first. There they are `row_linear`.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from ..models import bases, pieces
from ..models import forward as fw
from ..models.families import FAMILIES
from ..models.masks import windowed
from ..ops import kernel_for
from ..ops.attend import WIDEST
from .attach import Route, Site, alone, as_built

# Past the checks of the public functions, which cost as much as the kernels of a CPU: a bank and a cache give what ops take.
_decode_multi_, _norm, _glu, _rope_write_, _attend, _row_linear = (
    getattr(torch.ops.tmem, name).default
    for name in ("lora_decode_multi_", "lora_norm", "lora_glu", "rope_write_", "attend", "row_linear")
)
_NONE = None, [], [], None, None, None  # no adapters


class Columns(Protocol):
    """Keys and values of every layer, and the column (int64 [M]) that each row writes."""

    at: Tensor

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """[M,G,L,head] each."""


def fits(model: nn.Module, device: torch.device) -> bool:
    """Whether steps of this model are computed here: on a GPU with Triton, in a family that this file knows."""
    if device.type != "cuda" or kernel_for("lora_norm", "cuda") != "Triton":
        return False
    return known(model)


def fits_rows(model: nn.Module) -> bool:
    """Whether they are with `rows`: on a CPU, where torch packs weights for each of its products."""
    if next(model.parameters()).device.type != "cpu":
        return False
    return kernel_for("row_linear", "cpu") != "PyTorch reference" and known(model)


def known(model: nn.Module) -> bool:
    """Whether this file computes what the model's layers do."""
    layers, most = fw.parts(model).layers, WIDEST.get(next(model.parameters()).dtype, 0)
    return pieces.known(model, layers) and layers[0].self_attn.head_dim <= most


def layers(
    model: nn.Module, hidden: Tensor, positions: Tensor, mask: Tensor, cache: Columns, route: Route | None, *,
    rows: bool = False, alike: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As `forward.layers` of all layers and one token a row, hidden [M,1,D], and the norm after them: [M,D].

    rows: products are those of `row_linear`, on a CPU. alike: of the cache's rows, see ops.attend.
    """
    decoder, count = fw.parts(model), len(hidden)
    kinds, rotaries = fw.surroundings(model, hidden, positions)
    masks = {kind: windowed(mask, fw.window(model.config, kind))[:, 0, 0].expand(count, -1) for kind in rotaries}
    waves = {kind: tuple(x[:, 0].expand(count, -1) for x in rotary) for kind, rotary in rotaries.items()}
    step, own = (_Rows if rows else _Step)(model, hidden, route, alike), list(decoder.layers)
    h = hidden[:, 0]
    n = own[0].input_layernorm(h)
    nexts = [*(layer.input_layernorm for layer in own[1:]), decoder.norm]
    for index, (layer, kind, then) in enumerate(zip(own, kinds, nexts)):
        y, x = step.attention(layer.self_attn, n, waves[kind], cache.layer(index), cache.at, masks[kind])
        _, before, middle, after = pieces.norms(layer)
        h, n = step.norm(y, h, before, middle, layer.self_attn.o_proj, x)
        y, x = step.mlp(layer.mlp, n)
        h, n = step.norm(y, h, after, then, layer.mlp.down_proj, x)
    return n


class _Step:
    """The pieces of a layer under a route, or without one."""

    def __init__(self, model: nn.Module, hidden: Tensor, route: Route | None, alike: Tensor | None):
        self.plus, self.alike = FAMILIES[model.config.model_type].norms, alike
        self.sites: dict[nn.Module, Site] = {}
        if route is not None:
            self.sites = {site.module: site for site in route.bank.sites}
            self.named = route.segments(hidden).slot, route.bank.rank, route.bank.scale

    def product(self, module: nn.Module, x: Tensor) -> Tensor:
        """The frozen layer alone."""
        return alone(self.sites[module], x) if module in self.sites else module(x)

    def adapters(self, modules: list[nn.Module], x: Tensor) -> tuple:
        """x, a, bt, row_slot, rank and scale of these modules, as the ops take them."""
        factors = [self.sites[module].decoded for module in modules if module in self.sites]
        if not factors:
            return _NONE
        a, bt = map(list, zip(*factors))
        return x, a, bt, *self.named

    def attention(self, module: nn.Module, n: Tensor, rotary, cache, at: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """What o_proj makes, without its adapter, and of what."""
        projections = [module.q_proj, module.k_proj, module.v_proj]
        made = [self.product(one, n) for one in projections]
        if adapted := [y for y, one in zip(made, projections) if one in self.sites]:
            _decode_multi_(adapted, *self.adapters(projections, n))
        norms = getattr(module, "q_norm", None), getattr(module, "k_norm", None)
        weights = [None if norm is None else norm.weight for norm in norms]
        eps = 0.0 if norms[0] is None else pieces.eps(norms[0])
        q = _rope_write_(*cache, *made, *rotary, at, *weights, eps, self.plus)
        x = _attend(q.to(cache[0].dtype), *cache, seen, module.scaling, self.alike).flatten(1).to(n.dtype)
        return self.product(module.o_proj, x), x

    def norm(self, y: Tensor, h: Tensor, before: nn.Module | None, norm: nn.Module, of: nn.Module, x: Tensor):
        """The residual sum with what the projection `of` makes of x, and its norm."""
        first = None if before is None else before.weight
        return _norm(y, h, first, norm.weight, pieces.eps(norm), self.plus, *self.adapters([of], x))

    def mlp(self, module: nn.Module, n: Tensor) -> tuple[Tensor, Tensor]:
        """What down_proj makes, without its adapter, and of what."""
        projections = [module.gate_proj, module.up_proj]
        gate, up = (self.product(one, n) for one in projections)
        adapters = self.adapters(projections, n)
        if len(adapters[1]) == 1:  # a bank may leave one of the two out
            _decode_multi_([gate if projections[0] in self.sites else up], *adapters)
            adapters = _NONE
        x = _glu(gate, up, pieces.GELU[type(module.act_fn).__name__], *adapters)
        return self.product(module.down_proj, x), x


class _Rows(_Step):
    """The same with products of few rows, on a CPU."""

    def product(self, module: nn.Module, x: Tensor) -> Tensor:
        own = (module in self.sites or as_built(module)) and not bases.hooked(module)
        return product(module, x) if own and bases.plain_weight(module) is not None else super().product(module, x)


def product(module: nn.Module, x: Tensor) -> Tensor:
    """A linear layer of floats without an adapter, x [M,K] of its dtype."""
    return _row_linear(x, module._parameters["weight"], module._parameters["bias"])


def logits(model: nn.Module, n: Tensor) -> Tensor:
    """What `layers` gave with `rows`, [M,D] -> logits fp32 [M,V]."""
    own = bases.plain_weight(model.lm_head) is not None and not bases.hooked(model.lm_head)
    return fw.logits(model, n, normed=True, linear=partial(product, model.lm_head) if own else None)
