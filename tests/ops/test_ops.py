"""The ops against their specification: values, gradients, bits, error messages. The promises themselves: checks.py."""

import importlib
import os
import subprocess
import sys
from types import SimpleNamespace

import checks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tmem import ops, reference
from tmem.machine import cpu_bf16
from tmem.testing import TOLERANCES, Case, assert_close, dense, make_case, rel_rms, segments

pytestmark = pytest.mark.usefixtures("poison")
NAMES = ops.OPS
SETS = ["baseline", "avx2", "avx512", "avx512bf16"]


@pytest.mark.parametrize("check", [*checks.ALL, checks.rows_alone, checks.alike], ids=lambda check: check.__name__)
def test_ops(check):
    check(ops)


# The reference is no autograd formula, and torch.matmul's own order may change with the strides and threads.
NOT_OF_THE_REFERENCE = (checks.gradients, checks.strided, checks.invariance, checks.gram_step_alone, checks.attend)


@pytest.mark.parametrize("check", [c for c in checks.ALL if c not in NOT_OF_THE_REFERENCE], ids=lambda check: check.__name__)
def test_reference(check):
    served = {name: getattr(reference, name) for name in NAMES}
    check(SimpleNamespace(**{**served, "lora_linear": lambda *args: reference.lora_linear(*args)[0]}))


WRONG = {
    "swapped_segment": checks.values,
    "missing_scale": checks.values,
    "stored_rank": checks.values,
    "unwritten_rank": checks.values,
    "gram_overwrites": checks.values,
    "fresh_of_all_segments": checks.fresh,
    "squares_of_the_batch": checks.squares,
    "gram_steps_each_segment": checks.gram_step,
    "gram_step_decays_idle_slots": checks.gram_step,
    "gram_steps_not_finite": checks.gram_step_not_finite,
    "squares_beyond_the_norm": checks.step_summed,
    "scale_twice_backward": checks.gradients,
    "batch_split": checks.invariance,
    "gram_sums_slot_first": checks.accumulation,
    "nan_leak": checks.isolation,
    "idle_decay": checks.idle,
    "coupled_decay": checks.step,
    "shared_clip": checks.step_alone,
    "steps_not_finite": checks.not_finite,
    "backward_overwrites": checks.backward,
    "backward_without_scale": checks.backward,
    "decode_wraps_around": checks.decode,
    "attend_reads_all": checks.attend,
    "attend_wrong_head": checks.attend,
    "attend_alike_too_far": checks.alike,
    "copies_first_factor": checks.several,
    "copies_idle_rows": checks.step_copy,
    "copy_forgets_zero": checks.copy,
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_implementations_are_caught(name):
    module = importlib.import_module(f"wrong.{name}")
    fault = {op: getattr(module, op) for op in NAMES if hasattr(module, op)}
    assert fault, f"tests/wrong/{name}.py defines none of the ops"
    right = {op: getattr(ops, op) for op in NAMES}
    with pytest.raises(AssertionError):
        WRONG[name](SimpleNamespace(**{**right, **fault}))


@st.composite
def ragged(draw):
    slots = draw(st.integers(1, 5))
    stored = draw(st.integers(1, 20))
    owners = draw(st.lists(st.integers(-1, slots - 1), max_size=6))
    dtype, factor_dtype = draw(st.sampled_from(checks.DTYPES))
    case = make_case(
        draw(st.lists(st.integers(0, 19), min_size=len(owners), max_size=len(owners))),
        owners,
        draw(st.lists(st.integers(1, stored), min_size=slots, max_size=slots)),
        stored=stored,
        k=draw(st.integers(1, 150)),
        n=draw(st.integers(1, 150)),
        dtype=dtype,
        factor_dtype=factor_dtype,
        shared_a=draw(st.booleans()),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )
    for name in draw(st.sets(st.sampled_from(["x", "a", "bt", "scale"]))):  # every other element of a wider tensor
        wide = torch.full((*getattr(case, name).shape, 2), float("nan"), dtype=getattr(case, name).dtype)
        wide[..., 0] = getattr(case, name)
        setattr(case, name, wide[..., 0])
    return case


@settings(max_examples=80, deadline=None, derandomize=True)
@given(case=ragged())
def test_any_shape(case):
    """Errors are held against the sums of the terms' magnitudes, as few terms may cancel."""
    want, tol = dense(case), TOLERANCES[case.x.dtype]
    acc = TOLERANCES[torch.float64 if case.x.dtype == torch.float64 else torch.float32]
    inputs = {k: t.abs() if t is not None and t.is_floating_point() else t for k, t in vars(case).items()}
    terms = dense(Case(**inputs))
    y, z = torch.ops.tmem.lora_linear(*case.linear)
    for name, out, allowed in (("z", z, acc), ("y", y, tol), ("gram", ops.lora_gram(z, case.x, *case.seg), acc)):
        assert out.shape == want[name].shape
        assert (out.double() - want[name]).norm() <= allowed * terms[name].norm(), name
    assert torch.equal(z, ops.lora_shrink(case.x, case.a, *case.seg, case.scale))


def test_leading_dimensions():
    case = make_case([4, 8], [1, 0], [3, 2])
    y = ops.lora_linear(*case.linear)
    case.x = case.x.view(3, 4, -1)
    assert torch.equal(ops.lora_linear(*case.linear), y.view(3, 4, -1))
    case.x = case.x.flatten()[: case.w.shape[1]]
    case.seg_off, case.seg_slot = segments([1], [1])
    assert torch.equal(ops.lora_linear(*case.linear), torch.ops.tmem.lora_linear(*case.linear)[0])
    assert ops.lora_linear(*case.linear).shape == case.w.shape[:1]


def test_no_gradient_is_computed_for_what_needs_none():
    case = make_case([4, 8], [1, 0], [3, 2])
    case.bt.requires_grad_()
    ops.lora_linear(*case.linear).sum().backward()
    assert case.bt.grad is not None and case.x.grad is None and case.w.grad is None


def test_z_of_the_raw_op_is_not_differentiable():
    case = make_case([4, 8], [1, 0], [3, 2])
    case.x.requires_grad_()
    y, z = torch.ops.tmem.lora_linear(*case.linear)
    assert y.requires_grad and not z.requires_grad


def test_a_shared_a_is_not_trained():
    case = make_case([4, 8], [1, 0], [3, 2], shared_a=True)
    case.a.requires_grad_()
    for function in (ops.lora_linear, torch.ops.tmem.lora_linear):
        with pytest.raises(ValueError, match="shared by 2 slots must not require grad"):
            function(*case.linear)
    with torch.no_grad():
        ops.lora_linear(*case.linear)


def test_in_place_writes_are_seen_by_autograd():
    case = make_case([4], [0], [3])
    z = ops.lora_shrink(case.x, case.a, *case.seg, case.scale)
    o = torch.zeros(4, 72)
    leaf = torch.ones(4, 72, requires_grad=True)
    product = leaf * o
    ops.lora_expand_(o, z, case.bt, *case.seg)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.parametrize("name", SETS)
def test_every_instruction_set(name):
    """The sets this processor can run hold all promises; one that it cannot run is refused by name."""
    code = (
        "import torch, checks, token_checks; from tmem import ops; torch.set_num_threads(2); torch.manual_seed(0);"
        "[check(ops) for check in (checks.values, checks.strided, checks.invariance, checks.isolation, checks.step,"
        " token_checks.few_rows)];"
        "print(ops.kernel_for('lora_shrink', 'cpu'))"
    )
    env = {**os.environ, "TMEM_CPU": name, "PYTHONPATH": os.path.dirname(checks.__file__)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    level = {"DEFAULT": 0, "AVX2": 1, "AVX512": 2}.get(torch.backends.cpu.get_cpu_capability(), 0)
    if SETS.index(name) <= level + (level == 2 and cpu_bf16() != ""):
        assert done.stdout.strip() == f"C++ CPU ({name})", done.stderr
    else:
        assert done.returncode and "TMEM_CPU must name a set" in done.stderr


def test_rel_rms():
    one = torch.ones(4)
    assert rel_rms(one, one) == 0 and rel_rms(torch.empty(0), torch.empty(0)) == 0
    assert rel_rms(one * 1.5, one) == pytest.approx(0.5)
    assert rel_rms(one, torch.zeros(4)) == float("inf")
    for bad in (one * float("nan"), one * 2, torch.ones(3)):
        with pytest.raises(AssertionError, match="name"):
            assert_close("name", bad, one, 0.1)


# --- refusals --------------------------------------------------------------------------------------------------------


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


# What is changed in a valid call (12 rows, k 40, n 72, 2 slots of rank 3 and 2), and how each op that takes it objects.
BAD = {
    "seg_off_dtype": ({"seg_off": ints(0, 4, 12).long()}, TypeError, "seg_off must be int32, got int64"),
    "seg_off_length": ({"seg_off": ints(0, 12)}, ValueError, r"seg_off must have shape \[3\], got \[2\]"),
    "seg_off_end": ({"seg_off": ints(0, 4, 11)}, ValueError, r"seg_off must run from 0 to 12 \(rows\), got 0 to 11"),
    "seg_off_start": ({"seg_off": ints(1, 4, 12)}, ValueError, r"seg_off must run from 0 to 12 \(rows\), got 1 to 12"),
    "seg_off_falls": (
        {"seg_off": ints(0, 13, 12)},
        ValueError,
        "seg_off must not decrease, got 13 then 12 at segment 1",
    ),
    "slot_large": ({"seg_slot": ints(1, 2)}, ValueError, r"seg_slot must be in \[-1, 2\), got slot 2 at segment 1"),
    "slot_small": ({"seg_slot": ints(-2, 0)}, ValueError, r"seg_slot must be in \[-1, 2\), got slot -2 at segment 0"),
    "slot_freed": ({"rank": ints(3, 0)}, ValueError, r"seg_slot names slot 1 at segment 0, but that slot is freed"),
    "rank_large": ({"rank": ints(9, 2)}, ValueError, r"rank of slot 0 must be in 1\.\.3 \(stored ranks\), got 9"),
    "rank_negative": ({"rank": ints(3, -2)}, ValueError, r"rank of slot 1 must be in 1\.\.3 \(stored ranks\), got -2"),
    "rank_dtype": ({"rank": torch.ones(2)}, TypeError, "rank must be int32, got float32"),
    "scale_dtype": ({"scale": torch.ones(2).double()}, TypeError, "scale must be float32, got float64"),
    "scale_length": ({"scale": torch.ones(3)}, ValueError, r"scale must have shape \[2\], got \[3\]"),
    "x_dtype": ({"x": torch.ones(12, 40).int()}, TypeError, "must be float32 or bfloat16 or float16 or float64, got int32"),
    "a_dtype": ({"a": torch.ones(2, 3, 40).double()}, TypeError, "must be float32 or bfloat16 or float16, got float64"),
    "a_width": ({"a": torch.ones(2, 3, 41)}, ValueError, r"must have shape \[any, (any|3), 40\], got \[2, 3, 41\]"),
    "a_slots": ({"a": torch.ones(3, 3, 40)}, ValueError, r"must have shape \[1 or 2, ranks, 40\], got \[3, 3, 40\]"),
    "a_flat": (
        {"a": torch.ones(3, 40)},
        ValueError,
        r"must have shape \[(any, any|1 or 2, ranks), 40\], got \[3, 40\]",
    ),
    "device": (
        {"rank": torch.ones(2, dtype=torch.int32, device="meta")},
        ValueError,
        "rank must be on cpu as .* got meta",
    ),
    "bt_shared": ({"bt": torch.ones(1, 3, 72)}, ValueError, r"bt must have shape \[2, 3, 72\], got \[1, 3, 72\]"),
    "bt_rank": ({"bt": torch.ones(2, 4, 72)}, ValueError, r"bt must have shape \[2, 3, 72\], got \[2, 4, 72\]"),
    "w_dtype": ({"w": torch.ones(72, 40).bfloat16()}, TypeError, "w must be float32, got bfloat16"),
    "w_shape": ({"w": torch.ones(72, 41)}, ValueError, r"x .* and w .* must agree in K, got \[12, 40\] and \[72, 41\]"),
    "bias_shape": ({"bias": torch.ones(71)}, ValueError, r"bias must have shape \[72\], got \[71\]"),
    "z_dtype": ({"z": torch.ones(12, 3).bfloat16()}, TypeError, "z must be float32, got bfloat16"),
    "z_rows": ({"z": torch.ones(11, 3)}, ValueError, r"z must have shape \[12, any\], got \[11, 3\]"),
    "o_expanded": ({"o": torch.ones(12, 1).expand(12, 40)}, ValueError, "o is written in place .* clone it"),
    "g_shape": ({"g": torch.ones(2, 4, 40)}, ValueError, r"g must have shape \[2, 3, 40\], got \[2, 4, 40\]"),
    "g_dtype": ({"g": torch.ones(2, 3, 40).bfloat16()}, TypeError, "g must be float32, got bfloat16"),
}
ARGUMENTS = {
    "lora_shrink": ["x", "a", "seg_off", "seg_slot", "rank", "scale"],
    "lora_expand_": ["o", "z", "a", "seg_off", "seg_slot", "rank"],
    "lora_gram_": ["g", "z", "x", "seg_off", "seg_slot", "rank"],
    "lora_gram": ["z", "x", "seg_off", "seg_slot", "rank"],
    "lora_linear": ["x", "w", "bias", "a", "bt", "seg_off", "seg_slot", "rank", "scale"],
    "lora_backward_": ["db", "z", "dy", "bt", "seg_off", "seg_slot", "rank", "scale"],
}


@pytest.mark.parametrize(
    ("op", "bad"), [(op, bad) for op in ARGUMENTS for bad, (change, *_) in BAD.items() if {*change} & {*ARGUMENTS[op]}]
)
def test_refusals(op, bad):
    """Public and raw calls refuse, say who and what, and write nothing."""
    change, error, message = BAD[bad]
    case = make_case([4, 8], [1, 0], [3, 2])
    valid = {**vars(case), "z": torch.ones(12, 3), "o": torch.ones(12, 40), "g": torch.ones(2, 3, 40)}
    valid |= {"dy": torch.ones(12, 72), "db": torch.ones(2, 3, 72)}
    arguments = [{**valid, **change}[name] for name in ARGUMENTS[op]]
    before = arguments[0].clone()
    with pytest.raises(error, match=f"{op}: .*{message}"):
        getattr(ops, op)(*arguments)
    if bad not in ("o_expanded", "device"):
        with pytest.raises(RuntimeError, match=f"{op}: "):
            getattr(torch.ops.tmem, op)(*arguments)
    assert torch.equal(arguments[0], before)
    getattr(ops, op)(*[valid[name] for name in ARGUMENTS[op]])


BAD_STEP = {
    "param_dtype": (0, torch.ones(4, 9).bfloat16(), TypeError, "param must be float32 or float64, got bfloat16"),
    "grad_dtype": (1, torch.ones(4, 9).double(), TypeError, "grad must be float32, got float64"),
    "grad_shape": (1, torch.ones(4, 8), ValueError, r"grad must have shape \[4, 9\], got \[4, 8\]"),
    "m_alone": (3, None, ValueError, r"give both m and v \(AdamW\) or neither \(SGD\), got only m"),
    "v_shape": (3, torch.ones(3, 9), ValueError, r"v must have shape \[4, 9\], got \[3, 9\]"),
    "step_dtype": (4, torch.zeros(4), TypeError, "step must be int32, got float32"),
    "hyper_shape": (5, torch.zeros(4, 5), ValueError, r"hyper must have shape \[4, 6\], got \[4, 5\]"),
    "hyper_dtype": (5, torch.zeros(4, 6).half(), TypeError, "hyper must be float32 or float64, got float16"),
    "active_dtype": (6, torch.ones(4, dtype=torch.int32), TypeError, "active must be bool, got int32"),
    "active_shape": (6, torch.ones(3, dtype=torch.bool), ValueError, r"active must have shape \[4\], got \[3\]"),
}


@pytest.mark.parametrize("bad", BAD_STEP)
def test_step_refusals(bad):
    index, value, error, message = BAD_STEP[bad]
    arguments = [*checks._bank(width=9), torch.ones(4, dtype=torch.bool)]
    param, before = arguments[0], arguments[0].clone()
    arguments[index] = value
    with pytest.raises(error, match=f"bank_step_: {message}"):
        ops.bank_step_(*arguments)
    with pytest.raises(RuntimeError, match="bank_step_: "):
        torch.ops.tmem.bank_step_(*arguments)
    assert torch.equal(param, before)
