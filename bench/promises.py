"""Study `promises`: what tmem.ops promises of many adapters in one batch, tried on other ways to compute the same.

Each way is in the form that serves it best here: it gets what it asks for (rows sorted by slot, strides of 16 bytes), and no
case of it is left out. A way that raises breaks the promise it was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

from ..ops import lora_linear
from ..testing import PROMISES, Case, by_autograd, check_promises
from ..testing.promises import company_with_base
from .measure import SPLIT

TRIED = {**PROMISES, "any company, with base": company_with_base}
"""What the table has. The last is no promise of tmem.ops: company of the whole layer."""


def ways() -> dict[str, tuple[Callable, Callable | None]]:
    """By name, forward and gradients as check_promises takes them; None: PEFT has a mixed batch for inference alone."""
    return {
        "tmem": (tmem, by_autograd(tmem)),
        "PEFT, one by one": (peft_one_by_one, peft_gradients),
        "PEFT, mixed batch": (peft_mixed, None),
        "grouped_mm": (grouped, by_autograd(grouped)),
        "padded bmm": (padded, by_autograd(padded)),
    }


def compare_promises(quick: bool, watch: Callable[[str, int, int], None], kept: Callable) -> dict:
    """{"rows"}: one row for every promise and way, `broke` as check_promises says it, "" where the promise holds. fp32;
    quick is the same, and nothing is `kept`, as all of it takes seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, every = [], ways()
    for done, (name, (forward, gradients)) in enumerate(every.items()):
        watch(name, done, len(every))
        found = check_promises(forward, gradients, device=device, tolerance=SPLIT if device == "cuda" else None, promises=TRIED)
        about = {"way": name, "device": device, "dtype": "float32"}
        rows += [{**about, "promise": promise, "broke": broke} for promise, broke in found.items()]
    return {"rows": rows}


def tables(found: dict) -> list[Table]:
    title = "\nwhat each way keeps of the promises of a call (tmem/testing/promises.py), fp32"
    table = Table(title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    by = {(row["promise"], row["way"]): row["broke"] for row in found["rows"]}
    names = list(dict.fromkeys(row["way"] for row in found["rows"]))
    for column in ("promise", *names):
        table.add_column(column, overflow="fold")
    for promise in TRIED:
        table.add_row(promise, *(by[promise, name] or "holds" for name in names))
    return [table]


def draw(found: dict, beside: Path) -> list[Path]:
    """There is nothing to draw."""
    return []


def tmem(case: Case) -> Tensor:
    return lora_linear(*case.linear)


# PEFT ----------------------------------------------------------------------------------------------------------------


def _peft(case: Case) -> Any:
    """PEFT's layer on the base layer, an adapter of its own rank for every slot, named by its number."""
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    linear = nn.Linear(case.x.shape[1], case.w.shape[0], bias=case.bias is not None, device="meta")
    linear.weight = nn.Parameter(case.w, requires_grad=False)
    linear.bias = None if case.bias is None else nn.Parameter(case.bias, requires_grad=False)
    layer: Any = None
    for slot, r in enumerate(case.rank.tolist()):
        config = LoraConfig(r=r, lora_alpha=r)
        if layer is None:
            layer = Linear(linear, str(slot), config, r=r, lora_alpha=r)
        else:
            layer.update_layer(str(slot), r, lora_alpha=r, config=config)
        layer.lora_A[str(slot)].weight = nn.Parameter(case.a[slot, :r].clone())
        layer.lora_B[str(slot)].weight = nn.Parameter(case.bt[slot, :r].T.contiguous())
        layer.scaling[str(slot)] = float(case.scale[slot])
    return layer


def _one(layer: Any, x: Tensor, slot: int) -> Tensor:
    """What a program with one adapter at a time runs on rows of one slot; -1: adapters disabled."""
    if slot < 0:
        return layer.base_layer(x)
    layer.set_adapter([str(slot)])
    return layer(x)


def peft_one_by_one(case: Case) -> Tensor:
    """One segment after another, each a tensor of its own, the base layer included."""
    layer = _peft(case)
    none = case.x.new_empty(0, case.w.shape[0])
    return torch.cat([none, *(_one(layer, case.x[rows].clone(), slot) for rows, slot in case.parts)])


def peft_gradients(case: Case, dy: Tensor) -> dict[str, Tensor | None]:
    """Forward and backward of one segment after another; an adapter that got no gradient counts as one of zeros."""
    layer = _peft(case)
    found = {"dx": torch.empty_like(case.x), "da": torch.zeros_like(case.a), "dbt": torch.zeros_like(case.bt)}
    for rows, slot in case.parts:
        x = case.x[rows].clone().requires_grad_()
        _one(layer, x, slot).backward(dy[rows])
        found["dx"][rows] = x.grad
    for slot, r in enumerate(case.rank.tolist()):
        a, b = layer.lora_A[str(slot)].weight.grad, layer.lora_B[str(slot)].weight.grad
        if a is not None:
            found["da"][slot, :r], found["dbt"][slot, :r] = a, b.T
    return found


def peft_mixed(case: Case) -> Tensor:
    """One call for the batch, every row with the name of its adapter."""
    names = [name for rows, slot in case.parts for name in [str(slot) if slot >= 0 else "__base__"] * (rows.stop - rows.start)]
    with torch.no_grad():
        return _peft(case).eval()(case.x, adapter_names=names)


# torch's own products ------------------------------------------------------------------------------------------------


def _used(case: Case) -> tuple[Tensor, Tensor]:
    """a and bt with zeros beyond a slot's rank."""
    used = (torch.arange(case.a.shape[1], device=case.x.device) < case.rank[:, None])[:, :, None]
    return torch.where(used, case.a, 0.0), torch.where(used, case.bt, 0.0)


def _aligned(t: Tensor, *dims: int) -> Tensor:
    """Zeros appended in these dims up to multiples of 16 bytes, as grouped products ask of rows of memory."""
    each = 16 // t.element_size()
    pad = [0] * (2 * t.dim())
    for dim in dims:
        pad[2 * (t.dim() - 1 - dim) + 1] = -t.shape[dim] % each
    return F.pad(t, pad)


def grouped(case: Case) -> Tensor:
    """torch's grouped product over rows sorted by slot, and the base for all rows."""
    a, bt = _used(case)
    slot = torch.repeat_interleave(case.seg_slot.long(), case.seg_off.long().diff())
    order = slot.argsort(stable=True)
    order = order[(slot[order] >= 0).nonzero().flatten()]
    offs = slot[order].bincount(minlength=len(case.rank)).cumsum(0).int()
    x = _aligned(case.x[order].to(a.dtype), 1)
    z = torch._grouped_mm(x, _aligned(a, 1, 2).mT, offs=offs) * case.scale[slot[order], None].to(a.dtype)
    up = torch._grouped_mm(z, _aligned(bt, 1, 2), offs=offs)[:, : case.w.shape[0]]
    y = F.linear(case.x, case.w, case.bias)
    return y.index_add(0, order, up.to(y.dtype))


def padded(case: Case) -> Tensor:
    """Segments padded to the longest, their factors gathered, two batched products; the base for all rows as they are."""
    a, bt = _used(case)
    lengths = case.seg_off.long().diff()
    which = torch.repeat_interleave(torch.arange(len(lengths), device=case.x.device), lengths)
    at = torch.arange(len(case.x), device=case.x.device) - case.seg_off.long()[which]
    longest = max(lengths.tolist(), default=0)
    x = case.x.new_zeros(len(lengths), longest, case.x.shape[1]).index_put((which, at), case.x)
    slot = case.seg_slot.clamp(min=0).long()
    owned = case.seg_slot >= 0
    scale = torch.where(owned, case.scale[slot], 0.0)[:, None, None].to(a.dtype)
    a, bt = (torch.where(owned[:, None, None], f[slot], 0.0) for f in (a, bt))
    up = torch.bmm(torch.bmm(x.to(a.dtype), a.mT) * scale, bt)[which, at]
    y = F.linear(case.x, case.w, case.bias)
    return y + up.to(y.dtype)
