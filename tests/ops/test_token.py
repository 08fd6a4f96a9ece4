"""The ops that a layer is made of for one new token of every row: values against fp64, errors, what PyTorch sees. Their
kernels: test_interpreted.py, and on a GPU test_gpu.py."""

import importlib
import inspect
from types import SimpleNamespace

import pytest
import token_checks
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tmem import ops, reference
from tmem.testing import make_case

pytestmark = pytest.mark.usefixtures("poison")
WRONG = {
    "norm_without_residual": token_checks.norms,
    "norm_before_after_the_sum": token_checks.norms,
    "glu_gates_the_up": token_checks.products,
    "rope_turns_pairs": token_checks.rotations,
    "rope_writes_the_last_column": token_checks.rotations,
    "projections_of_one": token_checks.projections,
    "attend_reads_all": token_checks.lengths,
    "row_linear_drops_the_tail": token_checks.few_rows,
    "row_linear_adds_to_the_first": token_checks.few_rows,
    "norm_split_by_the_batch": token_checks.alone,
    "glu_beside_its_neighbours": token_checks.sick,
    "rope_rounds_the_angles": token_checks.dtypes,
}


CHECKS = [*token_checks.TOKEN, *token_checks.CPU]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_values(check):
    check(ops)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_implementations_are_caught(name):
    module = importlib.import_module(f"wrong.{name}")
    names = ("attend", *ops.TOKEN_PARTS, *ops.CPU_PARTS)
    right = {op: getattr(torch.ops.tmem, op) for op in names}
    fault = {op: getattr(module, op) for op in names if hasattr(module, op)}
    assert fault
    with pytest.raises(AssertionError):
        WRONG[name](SimpleNamespace(**{**right, **fault}))


def arguments(name, dtype=torch.float32):
    """Valid arguments of one op, by name."""
    case = make_case([1] * 3, [1, -1, 0], [3, 5], k=24, n=16, dtype=dtype)
    y, other = torch.randn(3, 16).to(dtype), torch.randn(3, 16).to(dtype)
    adapter = dict(zip(("row_slot", "rank", "scale"), case.decode[2:]), x=case.x)
    cache = torch.randn(2, 3, 2, 5, 8).to(dtype)
    return {
        "lora_decode_multi_": {"y": [y, other], "a": [case.a, case.a], "bt": [case.bt, case.bt], **adapter},
        "lora_norm": {"y": y, "residual": other, "before": None, "weight": y[0].clone(), "eps": 1e-6, "plus": 1.0,
                      "a": [case.a], "bt": [case.bt], **adapter},
        "row_linear": {"x": y, "w": torch.randn(7, 16).to(dtype), "bias": torch.randn(7).to(dtype)},
        "lora_glu": {"gate": y, "up": other, "gelu": True, "a": [case.a] * 2, "bt": [case.bt] * 2, **adapter},
        "rope_write_": {"keys": cache[0], "values": cache[1], "q": torch.randn(3, 32).to(dtype), "k": y, "v": other,
                        "cos": y[:, :8].clone(), "sin": other[:, :8].clone(), "at": torch.tensor([4, 0, 2]),
                        "q_weight": y[0, :8].clone(), "k_weight": y[1, :8].clone(), "eps": 1e-6, "plus": 0.0},
    }[name]  # fmt: skip


def arguments_of_a_token(name, dtype=torch.float32):
    """The same in the order of the op's signature."""
    given = arguments(name, dtype)
    return [given[parameter] for parameter in inspect.signature(getattr(ops, name)).parameters]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", [*ops.TOKEN_PARTS, *ops.CPU_PARTS])
def test_opcheck(name, dtype):
    torch.library.opcheck(getattr(torch.ops.tmem, name).default, (), arguments(name, dtype))


@pytest.mark.parametrize("name", ops.TOKEN_PARTS)
def test_on_a_gpu(name):
    """Triton serves each, and results have the shapes and dtypes of the reference, by fake tensors."""
    pytest.importorskip("triton", reason="Triton is for Linux on x86-64 and arm64")
    assert ops.kernel_for(name, "cuda") == "Triton"
    given = arguments(name, torch.bfloat16)
    want = getattr(reference, name)(**given)

    def fake(x):
        if isinstance(x, list):
            return [fake(one) for one in x]
        return torch.empty(x.shape, dtype=x.dtype, device="cuda") if isinstance(x, torch.Tensor) else x

    with FakeTensorMode():
        got = getattr(ops, name)(**{key: fake(x) for key, x in given.items()})
    for one, expected in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, want))):
        assert (one is None) == (expected is None)
        assert one is None or (one.shape, one.dtype, one.device.type) == (expected.shape, expected.dtype, "cuda")


@pytest.mark.parametrize(
    "name, change, error, why",
    [
        ("lora_decode_multi_", {"y": []}, ValueError, "y must hold 1 to 3 tensors, got 0"),
        ("lora_decode_multi_", {"y": [torch.zeros(())]}, ValueError, r"y\[0\] must have shape \[any, any\], got \[\]"),
        ("lora_decode_multi_", {"rank": torch.zeros(2, dtype=torch.int32, device="meta")}, ValueError, "rank must be on cpu"),
        ("lora_decode_multi_", {"a": []}, ValueError, "adapters are x, 2 of a and of bt"),
        ("lora_decode_multi_", {"row_slot": torch.tensor([1, 7, 0]).int()}, ValueError, "slot 7 at row 1"),
        ("lora_decode_multi_", {"x": torch.zeros(3, 24).double()}, TypeError, "x must be float32, got float64"),
        ("lora_norm", {"weight": torch.zeros(15)}, ValueError, r"weight must have shape \[16\]"),
        ("lora_norm", {"before": torch.zeros(16).int()}, TypeError, "before must be"),
        ("lora_norm", {"x": None}, ValueError, "adapters are x, 1 of a and of bt"),
        ("lora_norm", {"eps": "1"}, TypeError, "eps must be a number"),
        ("lora_glu", {"up": torch.zeros(3, 15)}, ValueError, r"up must have shape \[3, 16\]"),
        ("lora_glu", {"bt": [torch.zeros(2, 5, 16)]}, ValueError, "adapters are x, 2 of a and of bt"),
        ("lora_glu", {"gelu": "gelu"}, TypeError, "gelu must be True or False"),
        ("row_linear", {"x": torch.zeros(3, 4, 16)}, ValueError, "x must have"),
        ("row_linear", {"w": torch.zeros(7, 15)}, ValueError, r"w must have shape \[any, 16\]"),
        ("row_linear", {"bias": torch.zeros(7).double()}, TypeError, "bias must be float32, got float64"),
        ("rope_write_", {"at": torch.zeros(3).int()}, TypeError, "at must be int64"),
        ("rope_write_", {"q_weight": None}, ValueError, "give both or neither"),
        ("rope_write_", {"q": torch.zeros(3, 31)}, ValueError, "whole heads of 8, got 31"),
        ("rope_write_", {"keys": torch.zeros(3, 2, 5, 7)}, ValueError, "even width, got 7"),
    ],
)  # fmt: skip
def test_errors_are_one_sentence_and_nothing_is_written(name, change, error, why):
    given = arguments(name)
    before = [x.clone() for x in (given.get("keys"), given.get("values"), *given.get("y", ())) if isinstance(x, torch.Tensor)]
    with pytest.raises(error, match=f"{name}: .*{why}"):
        getattr(ops, name)(**{**given, **change})
    after = [x for x in (given.get("keys"), given.get("values"), *given.get("y", ())) if isinstance(x, torch.Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(after, before))


def test_written_memory_is_no_other_argument():
    given = arguments("rope_write_")
    with pytest.raises(ValueError, match="is written in place and must not share memory with"):
        ops.rope_write_(**{**given, "values": given["keys"]})
    given = arguments("lora_decode_multi_")
    with pytest.raises(ValueError, match="must not share memory"):
        ops.lora_decode_multi_(**{**given, "y": [given["y"][0]] * 2})


def test_no_rows_and_no_adapter():
    """Batches without rows; a bank of one slot; no adapter at all."""
    for name in ops.TOKEN_PARTS:
        given = {
            key: [t[:0] if key == "y" else t for t in x] if isinstance(x, list)
            else x[:0] if isinstance(x, torch.Tensor) and key not in ("rank", "scale", "weight", "q_weight", "k_weight") else x
            for key, x in arguments(name).items()
        }  # fmt: skip
        found = getattr(ops, name)(**given)
        assert found is None or all(len(x) == 0 for x in (found if isinstance(found, tuple) else (found,)))
    y = torch.randn(3, 16)
    cache, given = torch.zeros(3, 2, 0, 8), arguments("rope_write_")
    assert ops.rope_write_(**{**given, "keys": cache, "values": cache.clone()}).isnan().all()  # no column is there
    h, n = ops.lora_norm(y, 0 * y, None, torch.zeros(16), 0.0, 1.0)
    assert torch.equal(h, y) and torch.allclose(n.square().mean(1), torch.ones(3))
    assert torch.equal(ops.lora_glu(y, 0 * y, False), 0 * y)
