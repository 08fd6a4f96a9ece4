"""Random calls of every op, one for each seed: valid ones, held against the fp64 reference, and spoiled ones, which are refused
with nothing written. Shared by test_fuzz.py and the run under sanitizers (sanitized.py)."""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import dataclass, field

import checks
import numpy as np
import torch
from torch import Tensor

from tmem import reference
from tmem.ops import OPS, TOKEN_PARTS
from tmem.testing import TOLERANCES

# Of a pass over labels, or of few rows.
PASS = "rms_norm", "gated_product", "rotate", "row_linear", "attend_branches", "token_logp"
FUZZED = (*OPS, *TOKEN_PARTS, *PASS)
OUTPUTS = {
    "lora_expand_": ["o"], "lora_gram_": ["g", "squares"], "lora_backward_": ["g", "squares"], "lora_decode_": ["y"],
    "lora_gram_step_": ["param", "m", "v", "copy", "squares"], "bank_copy_": ["matrices"],
    "bank_step_": ["param", "grad", "m", "v", "step", "copy"],
    "lora_decode_multi_": ["y"], "rope_write_": ["keys", "values"],
}  # fmt: skip
LOWERED = {  # what torch.autocast casts
    "lora_linear": ("x", "w", "bias"), "lora_shrink": ("v",), "lora_shrink_multi": ("v",), "lora_gram_": ("v",),
    "lora_gram": ("v",), "lora_gram_step_": ("dy",), "lora_backward_": ("dy",),
}  # fmt: skip
OPTIONAL = {"bias", "plan", "m", "v", "copy", "squares", "before"}


@dataclass
class Call:
    """An op, its arguments by name, and the memory that each tensor among them is a view of."""

    op: str
    arguments: dict
    bases: list[Tensor] = field(default_factory=list)
    autocast: torch.dtype | None = None

    def run(self, ops) -> object:
        context = torch.autocast("cpu", self.autocast) if self.autocast else nullcontext()
        with context:
            return getattr(ops, self.op)(**self.arguments)

    def tensors(self) -> dict[str, Tensor]:
        found = {}
        for name, x in self.arguments.items():
            if isinstance(x, Tensor):
                found[name] = x
            elif isinstance(x, list):
                found |= {f"{name}[{i}]": one for i, one in enumerate(x) if isinstance(one, Tensor)}
        return found

    def outputs(self) -> dict[str, Tensor]:
        return {name: x for name, x in self.tensors().items() if name.split("[")[0] in OUTPUTS.get(self.op, ())}

    def bits(self) -> list[Tensor]:
        return [base.clone() for base in self.bases]

    def wide(self) -> dict:
        """The arguments in fp64, copied; the plan left out."""

        def each(name, x):
            if isinstance(x, list):
                return [each(name, one) for one in x]
            if not isinstance(x, Tensor):
                return x
            return x.detach().double() if x.is_floating_point() and name != "scale" else x.detach().clone()

        return {name: each(name, x) for name, x in self.arguments.items() if name != "plan"}


VIEWS = ("plain", "plain", "strided", "turned", "inside", "loose")
DTYPES_OF_ROWS = (*checks.FLOATS, torch.int32)


class Draw(random.Random):
    """Random sizes, numbers and views."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.bases: list[Tensor] = []

    def size(self, most: int = 150) -> int:
        return self.choice((0, 1, 1, 2, 3, 7, 16, 17, 64, self.randint(1, most), self.randint(1, most)))

    def numbers(self, *shape: int, dtype=torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(dtype)

    def view(self, x: Tensor, output: bool = False) -> Tensor:
        """The numbers of x as a view of some memory, whose gaps hold sevens."""
        kind = self.choice(VIEWS + (() if output else ("negated", "expanded")))
        if kind == "negated" and x.is_floating_point():
            base = x.neg().contiguous()
            self.bases.append(base)
            return torch._neg_view(base)
        if kind == "expanded" and x.dim() and x.shape[0] and x.is_floating_point() and x.dim() == 2:
            base = x[:1].contiguous()
            self.bases.append(base)
            return base.expand(x.shape)
        step, pad = (2, 0) if kind == "strided" else (1, 3) if kind == "inside" else (1, 0)
        shape = [n + (pad if i == x.dim() - 1 else 0) for i, n in enumerate(x.shape)]
        if kind == "turned":
            shape.reverse()
        base = torch.full((*shape, step), 7, dtype=x.dtype)
        at = base[..., 0]
        at = at.permute(*range(x.dim() - 1, -1, -1)) if kind == "turned" else at[..., : x.shape[-1]] if x.dim() else at
        if kind == "loose":  # strides that mean nothing: of dimensions of one element or none
            at = at.as_strided(at.shape, [0 if n <= 1 else s for n, s in zip(at.shape, at.stride())])
        at.copy_(x)
        self.bases.append(base)
        return at

    def descriptor(self, rows: int | None = None) -> dict:
        """seg_off, seg_slot, rank and the stored ranks; every row by itself if their number is given."""
        slots, stored = self.randint(1, 5), self.choice((1, 2, 3, 8, 16, self.randint(1, 40)))
        lengths = [1] * rows if rows is not None else [self.choice((0, 1, 2, 5, 19)) for _ in range(self.randint(0, 6))]
        rank = [self.choice((0, self.randint(1, stored))) for _ in range(slots)]
        used = [-1, *(s for s in range(slots) if rank[s])]
        seg_slot = [self.choice(used) for _ in lengths]
        ints = [torch.tensor(x, dtype=torch.int32) for x in (np.cumsum([0, *lengths]).tolist(), seg_slot, rank)]
        return {"rows": sum(lengths), "slots": slots, "stored": stored, "seg": dict(zip(("seg_off", "seg_slot", "rank"), ints))}

    def factor(self, batch: dict, width: int, dtype, shared: bool = False) -> Tensor:
        f = self.numbers(1 if shared else batch["slots"], batch["stored"], width, dtype=dtype) / max(1, width) ** 0.5
        if not shared:
            for slot, r in enumerate(batch["seg"]["rank"].tolist()):
                f[slot, r:] = float("nan")
        return f


def valid(seed: int, op: str) -> Call:
    draw = Draw(seed)
    dtype, factor_dtype = draw.choice(checks.DTYPES)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    batch = draw.descriptor(draw.choice((0, 1, 2, 9)) if op in ("lora_decode_", *TOKEN_PARTS) else None)
    rows, k, n, shared = batch["rows"], draw.size(), draw.size(), draw.random() < 0.3
    seg, scale = batch["seg"], draw.numbers(batch["slots"]).abs() + 0.5
    x, a = draw.numbers(rows, k, dtype=dtype), draw.factor(batch, k, factor_dtype, shared)
    z, bt = draw.numbers(rows, batch["stored"], dtype=acc), draw.factor(batch, n, factor_dtype)
    g = draw.numbers(batch["slots"], batch["stored"], k, dtype=acc)
    if op == "lora_plan":
        arguments = {**seg, "rows": rows}
    elif op == "lora_shrink":
        arguments = {"v": x, "f": a, **seg, "scale": scale}
    elif op == "lora_shrink_multi":
        arguments = {"v": x, "f": [a.clone() for _ in range(draw.randint(1, 4))], **seg, "scale": scale}
    elif op == "lora_expand_":
        arguments = {"o": draw.numbers(rows, k, dtype=dtype), "z": z, "f": a, **seg}
    elif op in ("lora_gram_", "lora_gram"):
        arguments = {**({"g": g} if op == "lora_gram_" else {}), "z": z, "v": x, **seg}
        arguments |= _squares(draw, g) if op == "lora_gram_" else {}
    elif op == "lora_gram_step_":
        param, m, v = g, draw.numbers(*g.shape, dtype=acc), draw.numbers(*g.shape, dtype=acc).square() + 0.5
        adam, hyper = draw.random() < 0.6, checks.HYPERS[torch.arange(len(g)) % 4]
        hyper = hyper.to(draw.choice((torch.float32, torch.float64)))
        hyper[seg["seg_slot"][seg["seg_slot"] >= 0].long(), 5] = 0
        arguments = {
            "param": param, "m": m if adam else None, "v": v if adam else None,
            "step": torch.arange(len(g), dtype=torch.int32), "hyper": hyper, "z": z, "dy": x, **seg,
            "copy": draw.numbers(*g.shape, dtype=draw.choice(checks.COPY_DTYPES)) if draw.random() < 0.5 else None,
            "squares": _squares(draw, g).get("squares"),
        }  # fmt: skip
    elif op == "lora_backward_":
        arguments = {"g": g, "z": z, "dy": x, "bt": draw.factor(batch, k, factor_dtype), **seg, "scale": scale}
        arguments |= _squares(draw, g)
    elif op == "lora_linear":
        if draw.random() < 0.3 and rows % 2 == 0:
            x = x.view(2, rows // 2, k)
        w = draw.numbers(n, k, dtype=dtype) / max(1, k) ** 0.5
        bias = draw.numbers(n, dtype=dtype) if draw.random() < 0.5 else None
        arguments = {"x": x, "w": w, "bias": bias, "a": a, "bt": bt, **seg, "scale": scale}
    elif op == "lora_decode_":
        y = draw.numbers(rows, n, dtype=dtype)
        arguments = {"y": y, "x": x, "a": a, "bt": bt, "row_slot": seg["seg_slot"], "rank": seg["rank"], "scale": scale}
    elif op in TOKEN_PARTS:
        arguments = _of_a_token(draw, op, batch, dtype, factor_dtype, {"x": x, "scale": scale})
    elif op in PASS:
        arguments = _of_a_pass(draw, op, dtype, x, n)
    elif op == "attend":
        groups, length, width = draw.randint(1, 3), draw.choice((0, 1, 5, 16, 37)), draw.size(100)
        q = draw.numbers(rows, groups * draw.randint(1, 5), width, dtype=dtype)
        keys, values = (draw.numbers(rows, groups, length, width, dtype=dtype) for _ in range(2))
        mask = torch.rand(rows, length, generator=draw.generator) < draw.choice((0.2, 0.8, 1))
        arguments = {"q": q, "k": keys, "v": values, "mask": mask, "scale": draw.choice((0.3, 1, 0.0, -0.5))}
        if draw.random() < 0.5:
            pairs = [(draw.randint(0, row), draw.randint(0, length)) for row in range(rows)]
            for row, (source, columns) in enumerate(pairs):
                for x in (keys, values):
                    x[row, :, :columns] = x[source, :, :columns]
            arguments["alike"] = torch.tensor(pairs, dtype=torch.int32).view(rows, 2)
    elif op == "bank_step_":
        dtype = draw.choice(checks.BANK_DTYPES)
        param, grad, m, v = (draw.numbers(4, k, dtype=dtype) for _ in range(4))
        adam, active = draw.random() < 0.6, torch.rand(4, generator=draw.generator) < 0.6
        hyper = checks.HYPERS.to(draw.choice((torch.float32, torch.float64)))
        arguments = {
            "param": param, "grad": grad, "m": m if adam else None, "v": v.abs() if adam else None,
            "step": torch.tensor([0, 3, 1, 9], dtype=torch.int32), "hyper": hyper, "active": active,
            "copy": draw.numbers(4, k, dtype=draw.choice(checks.COPY_DTYPES)) if draw.random() < 0.5 else None,
            "squares": draw.numbers(4, draw.size(20)).double().square() if draw.random() < 0.3 else None,
        }  # fmt: skip
    else:
        count = draw.randint(0, 2)
        rows_ = draw.sample(range(5), 4)
        source = [draw.choice((-1, *rows_[:2])) for _ in range(count)]
        matrices = [
            draw.numbers(5, *(draw.size(9) for _ in range(draw.randint(0, 2))), dtype=draw.choice(DTYPES_OF_ROWS))
            for _ in range(draw.randint(1, 3))
        ]
        ints = [torch.tensor(t, dtype=torch.int32) for t in (source, rows_[2 : 2 + count])]
        arguments = {"matrices": matrices, "source": ints[0], "target": ints[1]}
    outputs = OUTPUTS.get(op, ())
    for name, x in arguments.items():
        if isinstance(x, list):
            arguments[name] = [draw.view(one, name in outputs) for one in x]
        elif isinstance(x, Tensor):
            arguments[name] = draw.view(x, name in outputs)
    return Call(op, arguments, draw.bases, autocast=draw.choice((None,) * 6 + (torch.bfloat16, torch.float16)))


def _of_a_token(draw: Draw, op: str, batch: dict, dtype, factor_dtype, given: dict) -> dict:
    """Arguments of an op that a decoder's layer is made of, with adapters or without. eps is so large that a norm stays smooth
    where a sum is small."""
    rows, k, n, any_dtype = batch["rows"], given["x"].shape[1], draw.size(), draw.choice((dtype, torch.float32))

    def numbers(*shape, dtype=dtype):
        return draw.numbers(*shape, dtype=dtype)

    if op == "rope_write_":
        groups, size, length = draw.randint(1, 3), draw.choice((2, 6, 16, 20, 64)), draw.choice((0, 1, 5, 9))
        keys, values = numbers(2, rows, groups, length, size, dtype=any_dtype)
        k, v = numbers(2, rows, groups * size)
        weights = numbers(2, size, dtype=any_dtype) if draw.random() < 0.5 else (None, None)
        return {
            "keys": keys, "values": values, "q": numbers(rows, groups * draw.randint(1, 3) * size), "k": k, "v": v,
            **dict(zip(("cos", "sin"), numbers(2, rows, size, dtype=any_dtype))),
            "at": torch.tensor([draw.randint(-1, length) for _ in range(rows)], dtype=torch.int64),
            **dict(zip(("q_weight", "k_weight"), weights)), "eps": draw.choice((0.1, 2.0)), "plus": draw.choice((0.0, 1.0)),
        }  # fmt: skip
    count = {"lora_norm": 1, "lora_glu": 2}.get(op) or draw.randint(1, 3)
    widths = [draw.size() for _ in range(count)] if op == "lora_decode_multi_" else [n] * count
    adapter = {
        "x": given["x"], "a": [draw.factor(batch, k, factor_dtype) for _ in widths],
        "bt": [draw.factor(batch, width, factor_dtype) for width in widths],
        "row_slot": batch["seg"]["seg_slot"], "rank": batch["seg"]["rank"], "scale": given["scale"],
    }  # fmt: skip
    if op == "lora_decode_multi_":
        return {"y": [numbers(rows, width) for width in widths], **adapter}
    if draw.random() < 0.3:
        adapter = {name: [] if isinstance(x, list) else None for name, x in adapter.items()}
    if op == "lora_glu":
        return {"gate": numbers(rows, n), "up": numbers(rows, n), "gelu": draw.random() < 0.5, **adapter}
    before = numbers(n, dtype=any_dtype) if draw.random() < 0.5 else None
    fixed = {"before": before, "weight": numbers(n, dtype=any_dtype), "eps": draw.choice((0.1, 2.0)), "plus": 1.0}
    return {"y": numbers(rows, n), "residual": numbers(rows, n), **fixed, **adapter}


def _of_a_pass(draw: Draw, op: str, dtype, x: Tensor, n: int) -> dict:
    """Arguments of an op of PASS."""

    def numbers(*shape):
        return draw.numbers(*shape, dtype=dtype)

    if op == "row_linear":
        w = numbers(n, x.shape[1]) / max(1, x.shape[1]) ** 0.5
        return {"x": x, "w": w, "bias": numbers(n) if draw.random() < 0.5 else None}
    if op == "gated_product":
        return {"gate": 3 * numbers(len(x), n), "up": numbers(len(x), n), "gelu": draw.random() < 0.5}
    if op == "rms_norm":
        x = x if draw.random() < 0.5 else numbers(draw.randint(0, 3), len(x), x.shape[1])
        return {"x": x, "weight": numbers(x.shape[-1]), "eps": draw.choice((0.1, 2.0)), "plus": draw.choice((0.0, 1.0))}
    if op == "attend_branches":
        return _of_texts(draw, numbers)
    if op == "token_logp":
        ids = [draw.randrange(n) for _ in range(len(x) if n else 0)]
        return {"logits": numbers(len(ids), n), "ids": torch.tensor(ids, dtype=torch.int64)}
    batch, length, heads, back = draw.randint(0, 3), draw.choice((0, 1, 5, 9)), draw.randint(1, 3), draw.random() < 0.5
    size, waves = 2 * draw.size(40), draw.choice((1, batch))
    x = numbers(batch, heads, length, size) if back else numbers(batch, length, heads, size)
    return {"x": x, "cos": numbers(waves, length, size), "sin": numbers(waves, length, size), "back": back}


def _of_texts(draw: Draw, numbers) -> dict:
    """Arguments of attend_branches: rows of a beginning and of up to three texts, of any lengths, with padding behind them;
    in a batch of one also several such rows one behind another."""
    batch, groups, size, length = draw.randint(0, 3), draw.randint(1, 3), draw.size(40), draw.choice((0, 1, 9, 40, 150))
    q, count = numbers(batch, groups * draw.randint(1, 4), length, size), draw.randint(1, 4)
    cuts = [[0, *sorted(draw.randint(0, length) for _ in range(count))] for _ in range(draw.choice((1, batch)))]
    if batch == 1 and draw.random() < 0.5:  # rows one behind another
        ends = [0, *sorted(draw.randint(0, length) for _ in range(draw.randint(1, 3) * (1 + count) - 1))]
        cuts = [ends[i : i + 1 + count] for i in range(0, len(ends), 1 + count)]
    runs = torch.tensor(cuts, dtype=torch.int32).view(len(cuts), 1 + count)
    return {
        "q": q, "k": numbers(batch, groups, length, size), "v": numbers(batch, groups, length, size), "runs": runs,
        "scale": draw.choice((0.3, 0.1, 0.0, -0.2)), "window": draw.choice((0, 0, 1, 7, 60)),
    }  # fmt: skip


def _squares(draw: Draw, g: Tensor) -> dict:
    if draw.random() < 0.5:
        return {}
    return {"fresh": draw.random() < 0.5, "squares": draw.numbers(len(g), -(-g.shape[2] // reference.SQUARED)).double()}


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(one, other) if a.numel())


def _compare(name: str, got: Tensor, want: Tensor, terms: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape, f"{name} has shape {list(got.shape)}, not {list(want.shape)}"
    assert torch.equal(got.isnan(), want.isnan()), f"{name} is NaN elsewhere"
    got, want, terms = (x.double().nan_to_num() for x in (got, want, terms))
    off = float((got - want).norm())
    assert off <= tolerance * float(terms.norm()), f"{name} is off by {off:.3g} of {float(terms.norm()):.3g}"


def _formula(call: Call, arguments: dict) -> dict[str, Tensor]:
    """What the reference makes of these arguments: results and what it writes, by name."""
    found = getattr(reference, call.op)(**arguments)
    if call.op == "token_logp":
        found = found[::2]  # the op keeps the middle one for its backward
    found = found[:1] if call.op in ("lora_linear", "attend_branches") else found if isinstance(found, tuple) else (found,)
    named = {f"result {i}": x for i, x in enumerate(found) if x is not None}
    for name in OUTPUTS.get(call.op, ()):
        x = arguments.get(name)
        named |= {f"{name}[{i}]": one for i, one in enumerate(x)} if isinstance(x, list) else {} if x is None else {name: x}
    return named


def _magnitudes(op: str, arguments: dict) -> dict:
    """The same with every term of every sum positive: what roundings are measured against."""
    kept = (
        "seg_slot",
        "source",
        "row_slot",
        "seg_off",
        "rank",
        "target",
        *(("q", "k") if op.startswith("attend") else ()),
        "logits",
        "ids",
    )
    if op in ("rope_write_", "rotate"):  # the half that is turned is also negated
        sin = arguments["sin"].abs()
        sin[..., : sin.shape[-1] // 2] *= -1
        return {**_magnitudes("", arguments), "sin": sin}
    if op == "lora_gram_step_":  # a step is subtracted
        arguments = {**arguments, "hyper": arguments["hyper"] * torch.tensor([-1, 1, 1, 1, 1, 1])}
        kept = (*kept, "hyper")
    return {n: x.abs() if isinstance(x, Tensor) and x.is_floating_point() and n not in kept
            else [one.abs() for one in x] if isinstance(x, list) and op != "bank_copy_" else x
            for n, x in arguments.items()}  # fmt: skip


def check_valid(ops, seed: int, op: str) -> None:
    """The call gives what the reference gives in fp64; what it does not write keeps its bits, between the elements too."""
    call = valid(seed, op)
    arguments = call.wide()
    if call.autocast:
        for name in LOWERED.get(op, ()):
            if arguments[name] is not None and call.arguments[name].dtype != torch.float64:
                arguments[name] = arguments[name].to(call.autocast).double()
    want = _formula(call, {name: _copied(x) for name, x in arguments.items()})
    exact = op in ("lora_plan", "bank_copy_", "bank_step_")
    terms = want if exact else _formula(call, {name: _copied(x) for name, x in _magnitudes(op, arguments).items()})
    outputs, before = call.outputs(), call.bits()
    result = call.run(ops)
    results = result if isinstance(result, tuple) else () if result is None else (result,)
    got = {f"result {i}": x for i, x in enumerate(results)}
    got |= outputs
    assert got.keys() == want.keys()
    for name, x in got.items():
        floats = x.dtype if x.dtype in TOLERANCES else torch.float64
        numbers = x, want[name], terms[name]
        if name == "squares":  # of whatever columns, and as exact as g is
            floats, numbers = got["g" if "g" in got else "param"].dtype, [of.sum(1) for of in numbers]
        _compare(name, *numbers, 4 * TOLERANCES[floats])
    for base, old in zip(call.bases, before):
        for x in outputs.values():
            if x.untyped_storage().data_ptr() == base.untyped_storage().data_ptr():
                old.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(x)
    assert _same(call.bases, before), "memory that is no output changed"


def _copied(x):
    return x.clone() if isinstance(x, Tensor) else [one.clone() for one in x] if isinstance(x, list) else x


OF_OUTPUTS = ("overlapping output", "output and input", "output that requires grad", "negated output", "inference output")
OF_ONE_SIZE = (
    "seg_off", "row_slot", "scale", "step", "hyper", "active", "mask", "target", "k", "grad", "copy", "bias", "squares",
    "residual", "before", "weight", "up", "values", "cos", "sin", "at", "q_weight", "k_weight",
)  # fmt: skip
FAULTS = (
    "other object", "other object", "other device", "other layout", "other dtype", "other size", "more dimensions",
    "no dimension", "value", "value",
)  # fmt: skip


def _spoilt(draw: Draw, call: Call) -> tuple[str, Call] | None:
    """One thing about a valid call made wrong, and what."""
    arguments, outputs = dict(call.arguments), list(call.outputs())
    name = draw.choice([n for n, x in arguments.items() if isinstance(x, Tensor) or (isinstance(x, list) and x)])
    x = arguments[name]
    kind = draw.choice(FAULTS + OF_OUTPUTS)
    if kind in OF_OUTPUTS:
        outputs = [n for n in outputs if "[" not in n and arguments[n].is_floating_point() and arguments[n].numel() > 1]
        if not outputs:
            return None
        name = draw.choice(outputs)
        x = arguments[name]
    if kind == "output and input":
        others = [n for n, y in call.tensors().items() if n != name and "[" not in n and y.is_floating_point() and y.numel()]
        if not others:
            return None
        arguments |= _together(call, name, draw.choice(others))
    elif kind == "value":
        name, changed = _bad_value(draw, call.op, arguments)
        if name is None:
            return None
        arguments[name] = changed
    elif isinstance(x, list) and kind != "other object":
        i = draw.randrange(len(x))
        arguments[name] = [*x[:i], _spoil(draw, kind, call.op, name, x[i]), *x[i + 1 :]]
        if arguments[name][i] is x[i]:
            return None
    else:
        arguments[name] = _spoil(draw, kind, call.op, name, x)
        if arguments[name] is x:
            return None
    return f"{kind} ({name})", Call(call.op, arguments, call.bases, call.autocast)


def _together(call: Call, name: str, other: str) -> dict[str, Tensor]:
    """An output and another argument, laid into the same memory."""
    given = {n: call.arguments[n] for n in (name, other)}
    both = torch.zeros(8 * sum(t.numel() for t in given.values()), dtype=torch.uint8)
    call.bases.append(both)
    parts = {n: both[: t.numel() * t.element_size()].view(t.dtype).view(t.shape) for n, t in given.items()}
    for n, part in parts.items():
        part.copy_(given[n])
    return parts


def _spoil(draw: Draw, kind: str, op: str, name: str, x) -> object:
    if kind == "other object":
        objects = [[1.0, 2.0], np.zeros(3, dtype=np.float32), 3, 0.5, "x", object(), (), {}]
        if name not in OPTIONAL:
            objects.append(None)
        if isinstance(x, list):  # of a list: one element of another kind, or something that is no list
            return draw.choice((None, 3, x[0], [*x, None], [*x, np.zeros(3)], [[1.0]], {}))
        return draw.choice(objects)
    if kind == "other device":
        return x.to("meta") if name in ("rank", "scale", "seg_slot", "hyper", "active", "k", "source") else x
    if kind == "other layout":
        if not x.is_floating_point() or x.dim() == 0:
            return x
        plain = x.resolve_neg().float().contiguous()
        return draw.choice((
            lambda: plain.to_sparse(), lambda: torch.nested.as_nested_tensor([plain, plain]),
            lambda: torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        ))()  # fmt: skip
    if kind == "other dtype":
        if op == "bank_copy_" and name == "matrices":
            return x
        return x.resolve_neg().to(draw.choice((torch.int64, torch.complex64, torch.uint8, torch.float8_e5m2)))
    if kind == "more dimensions":
        return x if (op, name) in (("bank_copy_", "matrices"), ("lora_linear", "x"), ("rms_norm", "x")) else x[None]
    if kind == "other size":  # of what has one size alone, given the other arguments
        return torch.zeros(x.shape[0] + 7, *x.shape[1:], dtype=x.dtype) if name in OF_ONE_SIZE else x
    if kind == "no dimension":
        return torch.zeros((), dtype=x.dtype)
    if kind == "overlapping output":
        return x[:1].expand(x.shape) if x.shape[0] > 1 else x
    if kind == "output that requires grad":
        return x.detach().requires_grad_()
    if kind == "negated output":
        return torch._neg_view(x)
    with torch.inference_mode():
        return x.clone()


def _bad_value(draw: Draw, op: str, arguments: dict) -> tuple[str | None, object]:
    """A descriptor that names what is not there."""
    if op == "bank_copy_":
        name = draw.choice(("source", "target"))
        x = arguments[name].clone()
        if not len(x):
            return None, None
        x[draw.randrange(len(x))] = draw.choice((-2, 5, 2**31 - 1, -(2**31)))
        return name, x
    if op == "attend" and arguments.get("alike") is not None and len(arguments["alike"]):
        x = arguments["alike"].clone()
        x[draw.randrange(len(x)), draw.randrange(2)] = draw.choice((-1, 10**6, -(2**31), 2**31 - 1))
        return "alike", x
    if op in ("attend", "bank_step_"):
        return None, None
    if op == "attend_branches":
        x = arguments["runs"].clone()
        if not x.numel():
            return None, None
        x[draw.randrange(len(x)), draw.randrange(x.shape[1])] = draw.choice((-1, 10**6, -(2**31), 2**31 - 1))
        return "runs", x
    if op == "token_logp":
        x = arguments["ids"].clone()
        if not len(x):
            return None, None
        x[draw.randrange(len(x))] = draw.choice((-1, arguments["logits"].shape[1], 2**62, -(2**63)))
        return "ids", x
    slots = "row_slot" if "row_slot" in arguments else "seg_slot"
    if arguments.get(slots) is None:
        return None, None
    name = draw.choice((slots, "rank", *(["seg_off"] if "seg_off" in arguments else [])))
    x, named = arguments[name].clone(), [s for s in arguments[slots].tolist() if s >= 0]
    if name == "rank":
        if not named:
            return None, None
        x[draw.choice(named)] = draw.choice((0, -1, *([41] if op != "lora_plan" else [])))
    elif not len(x):
        return None, None
    elif name == slots:
        x[draw.randrange(len(x))] = draw.choice((-2, len(arguments["rank"]), 2**31 - 1, -(2**31)))
    else:
        i = draw.randrange(len(x))
        x[i] = draw.choice((-1, 10**6, -(2**31), 2**31 - 1))
    return name, x


def spoilt(seed: int, op: str) -> tuple[str, Call]:
    """What was made wrong about a valid call, and the call."""
    draw = Draw(seed)
    while True:  # until a fault is drawn that this op can have
        found = _spoilt(draw, valid(seed, op))
        if found:
            return found


def check_invalid(ops, seed: int, op: str) -> None:
    """A spoiled call is refused in one sentence that names the op, and nothing is written."""
    kind, call = spoilt(seed, op)
    before = call.bits()
    try:
        call.run(ops)
    except (TypeError, ValueError) as error:
        assert str(error).startswith(f"{op}: ") and "\n" not in str(error), f"{kind}: the sentence is {error}"
    except Exception as error:
        raise AssertionError(f"{kind}: {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"{kind}: accepted")
    assert _same(call.bases, before), f"{kind}: something was written before it was refused"


def refused_raw(seed: int, op: str) -> bool:
    """A spoiled call past the Python checks, which a sanitizer watches: the kernel refuses it, or computes within bounds."""
    _, call = spoilt(seed, op)
    try:
        getattr(torch.ops.tmem, op)(*call.arguments.values())
    except Exception:  # of any kind: what is looked for ends the process
        return True
    return False


def run(ops, first: int, calls: int, chosen: tuple[str, ...] = FUZZED) -> None:
    """That many calls, every second one spoiled. AssertionError names the seed that fails."""
    for seed in range(first, first + calls):
        op, check = chosen[seed // 2 % len(chosen)], check_invalid if seed % 2 else check_valid
        try:
            check(ops, seed, op)
        except Exception as error:
            command = f"TMEM_FUZZ_SEED={seed} TMEM_FUZZ=1 make test ARGS='tests/ops/test_fuzz.py'"
            raise AssertionError(f"{op}: {type(error).__name__}: {error}; again: {command}") from error
