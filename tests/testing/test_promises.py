"""check_promises: the right implementations keep every promise, and of each wrong one it says which promise broke."""

import ast
import importlib
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tmem import ops
from tmem.testing import PROMISES, Case, alone, by_autograd, check_promises, dense, make_case, renamed
from tmem.testing.promises import NOT_GIVEN, company_with_base

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
KEPT = dict.fromkeys(PROMISES, "")


def looped(case):
    """One segment after another in fp64."""
    y = F.linear(case.x.double(), case.w.double(), None if case.bias is None else case.bias.double())
    out = [y[:0]]
    for rows, slot in case.parts:
        out.append(y[rows])
        if slot >= 0:
            a, bt = (f[slot, : case.rank[slot]].double() for f in (case.a, case.bt))
            out[-1] = y[rows] + case.x[rows].double() @ a.T * case.scale[slot].double() @ bt
    return torch.cat(out).to(case.x.dtype)


def engine(wide=True, **faults):
    """forward and gradients of the ops, some of them replaced. wide: in fp64, whose rounding no result in fp32 shows."""
    served = SimpleNamespace(**{**{name: getattr(ops, name) for name in ops.OPS}, **faults})

    def given(case, *more):
        dtype = torch.float64 if wide else case.x.dtype
        floats = {name: t.to(dtype) for name, t in vars(case).items() if t is not None and t.is_floating_point()}
        return replace(case, **{**floats, "scale": case.scale}), *(t.to(dtype) for t in more)

    def forward(case):
        (c,) = given(case)
        y = F.linear(c.x, c.w, c.bias)
        served.lora_expand_(y, served.lora_shrink(c.x, c.a, *c.seg, c.scale), c.bt, *c.seg)
        return y.to(case.x.dtype)

    def gradients(case, dy):
        c, dy = given(case, dy)
        z, dz = (served.lora_shrink(v, f, *c.seg, c.scale) for v, f in ((c.x, c.a), (dy, c.bt)))
        dx = dy @ c.w
        served.lora_expand_(dx, dz, c.a, *c.seg)
        found = {"dx": dx, "da": served.lora_gram(dz, c.x, *c.seg), "dbt": served.lora_gram(z, dy, *c.seg)}
        return {name: t.to(case.x.dtype) for name, t in found.items()}

    return forward, gradients


def linear(case):
    return ops.lora_linear(*case.linear)


# looped has no case in fp64: there the order of torch.matmul shows, which changes with where a segment lies in memory.
RIGHT = [(looped, torch.float32), (looped, torch.bfloat16), *((linear, dtype) for dtype in DTYPES)]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("forward, dtype", RIGHT, ids=lambda value: getattr(value, "__name__", str(value)))
def test_the_right_implementations_keep_every_promise(forward, dtype):
    found = check_promises(forward, by_autograd(forward), dtype=dtype)
    assert found == KEPT and list(found) == list(PROMISES)


def test_the_engine_without_a_fault_keeps_every_promise():
    assert check_promises(*engine()) == KEPT


# wrong implementations, by what they break ---------------------------------------------------------------------------

VALUES = {"values", "ranks", "empty", "base"}
BITS = {"any company", "slot numbers", "again", "isolation"}


def kept_in(name, wide=True):
    module = importlib.import_module(f"wrong.{name}")
    return engine(wide, **{op: getattr(module, op) for op in ops.OPS if hasattr(module, op)})


def of(forward):
    return forward, by_autograd(forward)


def short_gradient(case, dy):
    """One row of every segment is forgotten in backward."""
    found = engine()[1](replace(case, x=case.x.clone()), dy)
    for rows, _ in case.parts:
        found["dx"][rows][:1] = 0
    return found


def refuses_empty(case):
    assert all(rows.stop > rows.start for rows, _ in case.parts)
    return looped(case)


def no_rows_no_answer(case):
    return torch.stack(list(looped(case)))  # RuntimeError of an empty list


def wraps_around(case):
    """-1 read as an index: the last slot's adapter."""
    last = len(case.rank) - 1
    return looped(replace(case, seg_slot=torch.where(case.seg_slot < 0, last, case.seg_slot)))


def masks_with_scale(case):
    """Rows without a slot go through slot 0 at a scale of 0, and 0 · NaN is NaN."""
    out = looped(case)
    for rows, slot in case.parts:
        if slot < 0:
            out[rows] += (case.x[rows] @ case.a[0].nan_to_num().T * case.scale[0] * 0 @ case.bt[0].nan_to_num()).to(out.dtype)
    return out


def decays_idle(case, dy):
    """A trace of weight decay in every slot's gradient, as soon as there is one."""
    found = by_autograd(looped)(case, dy)
    trace = 1e-12 * case.bt.nan_to_num() if found["dbt"].any() else 0
    return {**found, "dbt": found["dbt"] + trace}


def rounds_in_crowds(case):
    """Batches of more than 100 rows are served by another kernel, which rounds otherwise."""
    low = replace(case, x=case.x * torch.tensor(1 + 2**-23)) if len(case.x) > 100 else case
    return looped(low)


def rounds_by_number(case):
    """Slot 0 is served by another kernel, which rounds otherwise."""
    return looped(replace(case, scale=torch.where(torch.arange(len(case.rank)) == 0, case.scale * (1 + 2**-22), case.scale)))


def any_order(case, dy):
    """Rows are added up in the order in which they come, as atomics do: every segment's are shuffled."""
    order = torch.arange(len(dy))
    for rows, _ in case.parts:
        order[rows] = order[rows][torch.randperm(rows.stop - rows.start)]
    return {"dbt": engine(wide=False)[1](replace(case, x=case.x[order]), dy[order])["dbt"]}


def alternates():
    """Every second call rounds otherwise."""
    calls = []

    def gradients(case, dy):
        calls.append(1)
        return {"dbt": engine()[1](case, dy)["dbt"] * (1 + 2**-23 * (len(calls) % 2))}

    return engine()[0], gradients


def reuses_its_output():
    """Every second call rounds otherwise, into the tensor that the call before gave."""
    buffers, calls = {}, []

    def forward(case):
        calls.append(1)
        y = looped(case) * (1 + 2**-22 * (len(calls) % 2))
        return buffers.setdefault(y.shape, torch.empty_like(y)).copy_(y)

    return forward, None


def writes_its_input(case):
    y = looped(case)
    case.x.mul_(1 + 2**-22)
    return y


def one_scale(case):
    """All slots' scales are normalised together."""
    total = case.scale.double().sum()
    return looped(replace(case, scale=(case.scale / total * total).to(case.scale.dtype)))


WRONG = {
    "missing_scale": (kept_in("missing_scale"), VALUES),
    "swapped_segment": (kept_in("swapped_segment"), VALUES | {"any company", "isolation"}),
    "short_gradient": ((looped, short_gradient), VALUES),
    "stored_rank": (kept_in("stored_rank"), {"ranks"}),
    "refuses_empty": (of(refuses_empty), {"empty"}),
    "no_rows_no_answer": ((no_rows_no_answer, None), {"empty"}),
    "wraps_around": (of(wraps_around), {"base", "slot numbers", "isolation"}),
    "decays_idle": ((looped, decays_idle), {"idle"}),
    "batch_split": (kept_in("batch_split", wide=False), {"any company"}),
    "rounds_in_crowds": (of(rounds_in_crowds), {"any company"}),
    "rounds_by_number": (of(rounds_by_number), {"slot numbers"}),
    "any_order": ((looped, any_order), BITS),
    "alternates": (alternates(), BITS),
    "reuses_its_output": (reuses_its_output(), BITS),
    "writes_its_input": ((writes_its_input, None), BITS),
    "nan_leak": (kept_in("nan_leak"), {"isolation"}),
    "masks_with_scale": (of(masks_with_scale), {"isolation"}),
    "one_scale": (of(one_scale), {"isolation"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_of_a_wrong_implementation_it_says_which_promise_broke(name):
    (forward, gradients), breaks = WRONG[name]
    found = check_promises(forward, gradients)
    assert {promise for promise, broke in found.items() if broke not in ("", NOT_GIVEN)} == breaks, found
    assert all("\n" not in broke for broke in found.values())


def test_every_promise_is_broken_by_some():
    assert set.union(*(breaks for _, breaks in WRONG.values())) == PROMISES.keys()


# what is said --------------------------------------------------------------------------------------------------------


def test_without_gradients_what_is_about_them_alone_is_not_given():
    assert check_promises(looped) == {**KEPT, "idle": "not given"}
    only = check_promises(looped, lambda case, dy: {"dx": by_autograd(looped)(case, dy)["dx"], "da": None})
    assert only == {**KEPT, "idle": "not given"}


def test_an_exception_is_said_by_its_type_and_first_line():
    def fails(error):
        def forward(case):
            raise error

        return set(check_promises(forward).values()) - {NOT_GIVEN}

    assert "RuntimeError: no kernel" in fails(RuntimeError("no kernel\nfor this"))
    assert "AssertionError" in fails(AssertionError()) and "" not in fails(AssertionError())
    assert "no row: RuntimeError: stack expects a non-empty TensorList" in check_promises(no_rows_no_answer)["empty"]
    with pytest.raises(KeyboardInterrupt):
        fails(KeyboardInterrupt())


def test_shapes_and_names_of_what_comes_back_are_held():
    assert "y: shape" in check_promises(lambda case: looped(case).T)["again"]
    assert "expected dx, da or dbt" in check_promises(looped, lambda case, dy: {"dB": None})["again"]


def test_a_tolerance_is_of_y_and_twice_that_of_gradients():
    def off(by):
        return lambda case: looped(case) * (1 + by)

    assert check_promises(off(1e-3), tolerance=2e-3)["values"] == ""
    assert "relative RMS 0.001, allowed 1e-06" in check_promises(off(1e-3))["values"]
    scaled = by_autograd(off(1.5e-3))
    assert check_promises(looped, scaled, tolerance=1e-3)["values"] == ""
    assert check_promises(looped, scaled, tolerance=5e-4)["values"].startswith("d")


def test_company_of_the_whole_layer_is_tried_where_it_is_asked_for():
    def by_segment(case):
        """The base layer of every segment is a product of its own."""
        return torch.cat([looped(alone(case, g)) for g in range(len(case.seg_slot))])

    def in_crowds(case):
        return looped(replace(case, bias=case.bias * (1 + 2**-22 * (len(case.x) > 100))))

    asked = {"whole": company_with_base}
    assert check_promises(*of(by_segment), promises=asked) == {"whole": ""}
    assert check_promises(in_crowds, promises=asked)["whole"].startswith("y alone: other bits, ")
    assert "whole" not in check_promises(looped)


def test_the_example_of_the_document_runs_and_says_what_the_document_says(capsys):
    text = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    example = text.split("```python\n")[1].split("```")[0]

    def printed(example):
        exec(compile(example, "kernels.md", "exec"), {})
        return ast.literal_eval(capsys.readouterr().out)

    right, wrong = printed(example), printed(example.replace("slot[slot >= 0]", "slot"))
    named = ("values", "ranks", "empty", "base", "idle", "isolation")
    assert right.keys() == PROMISES.keys() and not any(right[name] for name in named), right
    assert wrong["base"] == " ".join(re.search(r"`base` says `(.*?)`", text, re.S)[1].split())


# its parts -----------------------------------------------------------------------------------------------------------


def test_the_dense_formula_is_that_of_one_segment_after_another():
    case = make_case([5, 0, 3, 9, 1], [2, 0, -1, 0, 1], [3, 8, 5], stored=8, dtype=torch.float64)
    assert torch.allclose(dense(case)["y"], looped(case), rtol=1e-13)
    case.scale[0] = float("nan")
    assert torch.equal(dense(case)["y"].isnan().any(1), torch.tensor([False] * 8 + [True] * 9 + [False])), "of slot 0 alone"


def test_a_segment_alone_and_slots_renamed_are_the_same_rows_and_adapters():
    case = make_case([5, 0, 3, 9, 1], [2, 0, -1, 0, 1], [3, 8, 5], stored=8, dtype=torch.float64)
    y, new = looped(case), torch.tensor([2, 0, 1])
    assert torch.equal(looped(renamed(case, new)), y)
    assert renamed(case, new).seg_slot.tolist() == [1, 2, -1, 2, 0] and renamed(case, new).rank.tolist() == [8, 5, 3]
    for g, (rows, _) in enumerate(case.parts):
        assert torch.allclose(looped(alone(case, g)), y[rows], rtol=1e-13) and isinstance(alone(case, g), Case)


def test_parts_are_the_rows_and_slot_of_every_segment():
    case = make_case([5, 0, 3], [1, 0, -1], [4, 4])
    assert case.parts == [(slice(0, 5), 1), (slice(5, 5), 0), (slice(5, 8), -1)] and make_case([], [], [4]).parts == []


def test_autograd_gives_zeros_where_y_depends_on_nothing():
    case = make_case([2], [-1], [4])
    found = by_autograd(looped)(case, torch.ones(2, 72))
    assert found.keys() == {"dx", "da", "dbt"} and not found["da"].any() and not found["dbt"].any()
    assert found["dx"].dtype == case.x.dtype and not case.x.requires_grad
