"""The ops that a decoder's layer is made of in a pass over labels: values and gradients against fp64, bits, errors, and what
PyTorch and transformers see of them."""

import importlib
import math
from types import SimpleNamespace

import pass_checks
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from tmem import ops, reference

pytestmark = pytest.mark.usefixtures("poison")
RIGHT = SimpleNamespace(**{op: getattr(torch.ops.tmem, op) for op in ops.PASS_PARTS})
FORMULAS = SimpleNamespace(**{op: getattr(reference, op) for op in ops.PASS_PARTS})
BF16 = torch.bfloat16
WRONG = {
    "rms_norm_backward_without_mean": pass_checks.norms,
    "rms_norm_drops_a_block": pass_checks.norms,
    "rms_norm_of_all_rows": pass_checks.neighbours,
    "gated_product_slope_of_silu": pass_checks.products,
    "rotate_back_goes_on": pass_checks.rotations,
    "branches_as_one_text": pass_checks.branches,
    "branches_keep_the_last": pass_checks.branches,
    "branches_joined_as_one_row": pass_checks.branches,
    "branches_count_columns": pass_checks.branches,
    "branches_with_padding": pass_checks.company,
    "token_logp_counts_the_impossible": pass_checks.chances,
    "token_logp_forgets_the_token": pass_checks.chances,
}


@pytest.mark.parametrize("check", pass_checks.PASS, ids=lambda check: check.__name__)
def test_values(check):
    check(RIGHT)


@pytest.mark.parametrize("check", pass_checks.FORMULAS, ids=lambda check: check.__name__)
def test_formulas(check):
    """What serves elsewhere."""
    check(FORMULAS)


@pytest.mark.parametrize("at_once", [1, 100])
def test_the_formula_of_log_probabilities_takes_a_few_rows_at_a_time(at_once, monkeypatch):
    monkeypatch.setitem(reference.AT_ONCE, "cpu", at_once)
    pass_checks.chances(FORMULAS)


def test_entropy_of_known_distributions():
    def entropy(*logits):
        return float(ops.token_logp(torch.tensor([logits]), torch.tensor([0]))[1])

    assert entropy(*[2.0] * 8) == pytest.approx(math.log(8), rel=1e-5)
    assert entropy(0.0, -100.0, -100.0) == pytest.approx(0, abs=1e-5)
    assert entropy(1.0, 1.0, -math.inf) == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_implementations_are_caught(name):
    module = importlib.import_module(f"wrong.{name}")
    fault = {op: getattr(module, op) for op in ops.PASS_PARTS if hasattr(module, op)}
    assert fault
    with pytest.raises(AssertionError):
        WRONG[name](SimpleNamespace(**{**vars(RIGHT), **fault}))


def arguments(name, dtype=torch.float32):
    """Valid arguments of one op, by name."""
    x, other, third = (torch.randn(2, 5, 18).to(dtype) for _ in range(3))
    norm = {"x": x, "weight": other[0, 0].clone(), "eps": 1e-5, "plus": 1.0}
    gated = {"gate": x, "up": other, "gelu": True}
    q, k, v = (torch.randn(2, heads, 9, 18).to(dtype) for heads in (4, 2, 2))
    texts = {"q": q, "k": k, "v": v, "runs": pass_checks.runs_of((2, 3, 4), (3, 3)), "scale": 0.5, "window": 4}
    o, lse = reference.attend_branches(**texts)
    said = {"logits": x[0].clone(), "ids": torch.tensor([0, 17, 3, 3, 9])}
    return {
        "rms_norm": norm,
        "rms_norm_backward": {"dy": third, **norm, "need_dw": True},
        "gated_product": gated,
        "gated_product_backward": {"grad": third, **gated},
        "rotate": {"x": torch.randn(2, 5, 3, 18).to(dtype), "cos": other, "sin": third[:1].expand(2, -1, -1), "back": False},
        "attend_branches": texts,
        "attend_branches_backward": {
            "d_o": torch.randn_like(o),
            **{n: texts[n] for n in "qkv"},
            "o": o,
            "lse": lse,
            **{n: texts[n] for n in ("runs", "scale", "window")},
        },
        "token_logp": said,
        "token_logp_backward": {"grad": lse[0, 0, :5].clone(), **said, "lse": reference.token_logp(**said)[1]},
    }[name]


JOINED = {"q": torch.zeros(1, 4, 9, 18), **dict.fromkeys("kv", torch.zeros(1, 2, 9, 18))}
LEAVES = {
    "rms_norm": ("x", "weight"), "gated_product": ("gate", "up"), "rotate": ("x",), "attend_branches": ("q", "k", "v"),
    "token_logp": ("logits",),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ops.PASS_PARTS)
def test_opcheck(name, dtype):
    given = arguments(name, dtype)
    for leaf in LEAVES.get(name, ()):
        given[leaf].requires_grad_()
    torch.library.opcheck(getattr(torch.ops.tmem, name).default, (), given)


def first(out):
    """What has a gradient."""
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("name", LEAVES)
def test_gradients_are_those_of_finite_differences(name):
    given = arguments(name, torch.float64)

    def call(*leaves):
        return first(getattr(ops, name)(**{**given, **dict(zip(LEAVES[name], leaves))}))

    assert torch.autograd.gradcheck(call, [given[leaf].requires_grad_() for leaf in LEAVES[name]])
    if name == "rotate":
        given = {**given, "x": torch.randn(2, 3, 5, 18).double(), "back": True}
        assert torch.autograd.gradcheck(call, [given["x"].requires_grad_()])


@pytest.mark.parametrize("name", LEAVES)
def test_gradients_have_the_dtypes_of_their_leaves_and_the_second_is_refused(name):
    given = arguments(name, BF16)
    leaves = [given[leaf].requires_grad_() for leaf in LEAVES[name]]
    out = first(getattr(ops, name)(**given))
    found = torch.autograd.grad(out.float().square().sum(), leaves, create_graph=True)
    assert [g.dtype for g in found] == [BF16] * len(leaves)
    with pytest.raises(RuntimeError, match=f"{name}: only first derivatives are defined"):
        torch.autograd.grad(found[0].float().sum(), leaves[0])


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_threads_change_no_bit(dtype):
    """Of enough rows for all of them; the weight's gradient is a sum over rows."""
    x, dy, weight = (torch.randn(n, 200).to(dtype) for n in (3001, 3001, 1))
    heads, wave = torch.randn(4, 700, 6, 20).to(dtype), torch.randn(1, 700, 20).to(dtype)
    q, kv = heads.transpose(1, 2), heads[:, :, :3].transpose(1, 2)
    texts, ids = (pass_checks.runs_of((200, 300, 100, 90)), 0.3, 0), torch.randint(200, (3001,))
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append([
                ops.rms_norm(x, weight[0], 1e-5, 0.0), *RIGHT.rms_norm_backward(dy, x, weight[0], 1e-5, 0.0, True),
                ops.gated_product(x, dy, False), *RIGHT.gated_product_backward(dy, x, x, True),
                ops.rotate(heads, wave, wave), *RIGHT.attend_branches(q, kv, kv, *texts),
                *RIGHT.token_logp(x, ids), RIGHT.token_logp_backward(dy[:, 0].float(), x, ids, RIGHT.token_logp(x, ids)[1]),
                *RIGHT.attend_branches_backward(heads, q, kv, kv, *RIGHT.attend_branches(q, kv, kv, *texts), *texts),
            ])  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


def test_in_16_bits_they_round_where_transformers_modules_do():
    """To the bit; the order of a norm's sum of squares, which is torch's there, moves one element in thousands."""
    gate = torch.arange(-(2**15), 2**15).to(torch.int16).view(BF16)
    gate = gate[gate > -87]  # of every one that is a number; below, f(gate) is next to nothing here and less there
    up = torch.randn(len(gate)).to(BF16)
    assert torch.equal(ops.gated_product(gate, up, False), F.silu(gate) * up)
    q, cos, sin = torch.randn(2, 7, 3, 64).to(BF16), *torch.randn(2, 1, 7, 64).to(BF16)
    want = apply_rotary_pos_emb(q.transpose(1, 2), q.transpose(1, 2), cos, sin)[0]
    assert torch.equal(ops.rotate(q, cos, sin), want)
    x = 3 * torch.randn(50, 576).to(BF16)
    for kind, plus in ((LlamaRMSNorm, 0.0), (GemmaRMSNorm, 1.0)):
        module = kind(576, eps=1e-5).to(BF16)
        module.weight.data = torch.randn(576).to(BF16)
        with torch.no_grad():
            differs = (ops.rms_norm(x, module.weight, 1e-5, plus) != module(x)).float().mean()
            other = (ops.rms_norm(x, module.weight, 1e-5, 1 - plus) != module(x)).float().mean()
        assert differs < 1e-3 < 0.1 < other


@pytest.mark.parametrize("name", ops.PASS_PARTS)
def test_autocast_and_forward_mode(name):
    given = arguments(name)
    call = getattr(ops, name, None) or getattr(torch.ops.tmem, name)
    want = call(**given)
    with torch.autocast("cpu", BF16):
        got = call(**given)
    assert all(torch.equal(a, b) for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, want))))
    if name not in LEAVES:
        return
    first = LEAVES[name][0]
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=f"^{name}: {first} carries a forward-mode tangent"):
        call(**{**given, first: forward_ad.make_dual(given[first], torch.ones_like(given[first]))})


@pytest.mark.parametrize(
    "name, change, error, why",
    [
        ("rms_norm", {"weight": torch.zeros(17)}, ValueError, r"weight must have shape \[18\], got \[17\]"),
        ("rms_norm", {"weight": torch.zeros(18).double()}, TypeError, "weight must be float32, got float64"),
        ("rms_norm", {"x": torch.zeros(())}, ValueError, r"x must have shape \[..., N\]"),
        ("rms_norm", {"x": torch.zeros(3, 18).int()}, TypeError, "x must be"),
        ("rms_norm", {"eps": None}, TypeError, "eps must be a number"),
        ("gated_product", {"up": torch.zeros(2, 5, 17)}, ValueError, r"up must have shape \[2, 5, 18\]"),
        ("gated_product", {"up": torch.zeros(2, 5, 18).bfloat16()}, TypeError, "up must be float32, got bfloat16"),
        ("gated_product", {"up": torch.zeros(2, 5, 18, device="meta")}, ValueError, "up must be on cpu"),
        ("rotate", {"x": torch.zeros(2, 5, 54)}, ValueError, "x must have shape"),
        ("rotate", {"x": torch.zeros(2, 5, 3, 17)}, ValueError, "even width, got 17"),
        ("rotate", {"cos": torch.zeros(3, 5, 18)}, ValueError, r"cos must have shape \[1 or 2, 5, 18\], got \[3, 5, 18\]"),
        ("rotate", {"back": True}, ValueError, r"cos must have shape \[2, 3, 18\], got \[2, 5, 18\]"),
        ("rotate", {"sin": torch.zeros(1, 5, 18)}, ValueError, r"sin must have shape \[2, 5, 18\]"),
        ("rotate", {"sin": torch.zeros(2, 5, 18, requires_grad=True)}, ValueError, "sin must not require grad"),
        ("attend_branches", dict.fromkeys("kv", torch.zeros(2, 3, 9, 18)), ValueError, "a multiple of k's 3 heads, got 4"),
        ("attend_branches", {"v": torch.zeros(2, 2, 8, 18)}, ValueError, r"v must have shape \[2, 2, 9, 18\]"),
        ("attend_branches", {"v": torch.zeros(2, 2, 9, 18).half()}, TypeError, "v must be float32, got float16"),
        ("attend_branches", {"runs": torch.zeros(3, 2).int()}, ValueError, r"runs must have shape \[1 or 2, 2 or more\]"),
        ("attend_branches", {"runs": torch.zeros(2, 4)}, TypeError, "runs must be int32, got float32"),
        ("attend_branches", {"runs": pass_checks.runs_of((4, 6))}, ValueError, "from 0 to at most 9, got 0 to 10 in row 0"),
        ("attend_branches", {"runs": pass_checks.runs_of((4, -1, 2))}, ValueError, "not decrease, got 4 then 3 in row 0"),
        ("attend_branches", JOINED | {"runs": torch.tensor([[0, 5], [4, 9]]).int()}, ValueError, "from 5 to at most 9, got 4"),
        ("attend_branches", JOINED | {"runs": torch.tensor([[1, 5], [5, 9]]).int()}, ValueError, "from 0 to at most 9, got 1"),
        ("token_logp", {"ids": torch.zeros(4).long()}, ValueError, r"ids must have shape \[5\], got \[4\]"),
        ("token_logp", {"ids": torch.zeros(5).int()}, TypeError, "ids must be int64, got int32"),
        ("token_logp", {"ids": torch.full((5,), 18)}, ValueError, r"ids must be in 0..17, got 18 in row 0"),
        ("attend_branches", {"window": -1}, ValueError, r"window must be 0 \(none\) or more, got -1"),
    ],
)  # fmt: skip
def test_errors_are_one_sentence(name, change, error, why):
    with pytest.raises(error, match=f"^{name}: .*{why}"):
        getattr(ops, name)(**{**arguments(name), **change})


@pytest.mark.parametrize(
    "name, change, why",
    [
        ("rms_norm", {"weight": torch.zeros(17)}, "weight must have size 18"),
        ("rms_norm", {"x": torch.zeros(())}, "x must have 1 dimension or more"),
        ("rms_norm_backward", {"dy": torch.zeros(2, 4, 18)}, "dy must have size 5 in dimension 1, got 4"),
        ("gated_product", {"up": torch.zeros(2, 5)}, "up must have 3 dimensions, got 2"),
        ("gated_product_backward", {"grad": torch.zeros(2, 5, 18).half()}, "grad must be Float, got Half"),
        ("rotate", {"x": torch.zeros(2, 5, 3, 17)}, "even width, got 17"),
        ("rotate", {"cos": torch.zeros(3, 5, 18)}, "cos must have 1 or 2 rows, got 3"),
        ("rotate", {"sin": torch.zeros(2, 5, 16)}, "sin must have size 18 in dimension 2, got 16"),
        ("attend_branches", {"runs": pass_checks.runs_of((4, 6))}, "from 0 to at most 9, got 0 to 10 in row 0"),
        ("attend_branches", {"runs": pass_checks.runs_of((4, -1, 2))}, "not decrease, got 4 then 3 in row 0"),
        ("attend_branches", JOINED | {"runs": torch.tensor([[0, 5], [4, 9]]).int()}, "from 5 to at most 9, got 4 to 9"),
        ("attend_branches", {"k": torch.zeros(2, 3, 9, 18), "v": torch.zeros(2, 3, 9, 18)}, "a multiple of k's 3 heads, got 4"),
        ("attend_branches", {"window": -1}, "window must be 0"),
        ("token_logp", {"ids": torch.full((5,), -1)}, "ids must be in 0..17, got -1 in row 0"),
        ("token_logp_backward", {"lse": torch.zeros(4)}, "lse must have size 5 in dimension 0, got 4"),
        ("token_logp_backward", {"grad": torch.zeros(5).half()}, "grad must be Float, got Half"),
        ("attend_branches_backward", {"lse": torch.zeros(2, 4, 8)}, "lse must have size 9 in dimension 2, got 8"),
        ("attend_branches_backward", {"d_o": torch.zeros(2, 9, 4, 18).half()}, "d_o must be Float, got Half"),
    ],
)
def test_what_skips_the_checks_of_python_is_refused_too(name, change, why):
    with pytest.raises(RuntimeError, match=f"{name}: .*{why}"):
        getattr(torch.ops.tmem, name)(**{**arguments(name), **change})
