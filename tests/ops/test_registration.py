"""The ops as PyTorch sees them: which kernel serves them, schemas, fake tensors, torch.compile, import costs."""

import ast
import subprocess
import sys

import checks
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tmem import ops
from tmem.testing import make_case

SERVED = ops.OPS


def arguments(name, dtype=torch.float32, case=None):
    """Valid arguments of one op."""
    case = case or make_case([5, 0, 3, 9], [2, 0, -1, 1], [3, 8, 5], dtype=dtype)
    z = torch.randn(17, 8, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return {
        "lora_plan": (*case.seg, 17),
        "lora_shrink_multi": (case.x, [case.a, case.a], *case.seg, case.scale),
        "lora_backward_": (
            torch.zeros(3, 8, 72, dtype=z.dtype), z, torch.randn(17, 72).to(dtype), case.bt, *case.seg, case.scale,
        ),
        "lora_decode_": (
            torch.randn(3, 72).to(dtype), case.x[:3].contiguous(), case.a, case.bt,
            torch.tensor([2, -1, 0], dtype=torch.int32), case.rank, case.scale,
        ),
        "attend": (
            torch.randn(3, 6, 20).to(dtype), *(torch.randn(3, 2, 9, 20).to(dtype) for _ in range(2)),
            torch.arange(9) < torch.tensor([[9], [4], [0]]), 0.2, torch.tensor([[0, 0], [1, 9], [2, 3]], dtype=torch.int32),
        ),
        "bank_copy_": ([torch.randn(3, 5), torch.ones(3)], torch.tensor([1]).int(), torch.tensor([0]).int()),
        "lora_shrink": (case.x, case.a, *case.seg, case.scale),
        "lora_expand_": (torch.randn(17, 72).to(dtype), z, case.bt, *case.seg),
        "lora_gram_": (torch.zeros(3, 8, 40, dtype=z.dtype), z, case.x, *case.seg),
        "lora_gram": (z, case.x, *case.seg),
        "lora_gram_step_": (
            *(torch.ones(3, 8, 40, dtype=z.dtype) for _ in range(3)), torch.tensor([0, 3, 1]).int(),
            checks.HYPERS[:1].repeat(3, 1), z, case.x, *case.seg,
        ),
        "lora_linear": case.linear,
        "bank_step_": (*checks._bank(), torch.tensor([True, False, True, True])),
    }[name]  # fmt: skip


def test_all_ops_are_listed():
    declared = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("tmem::")}
    listed = *ops.OPS, *ops.SVD_PARTS, *ops.LAYER_PARTS, *ops.TOKEN_PARTS, *ops.CPU_PARTS, *ops.PASS_PARTS, "cpu_instructions"
    assert {f"tmem::{name}" for name in listed} == declared
    assert len(SERVED) == len(set(SERVED)) == 13 and set(SERVED) < set(ops.__all__)
    assert all(hasattr(ops, name) for name in ops.__all__)


@pytest.mark.parametrize("name", [*SERVED, *ops.TOKEN_PARTS, *ops.CPU_PARTS, *ops.PASS_PARTS])
def test_cpu_is_served_by_cpp(name):
    """A silent fall-back to the reference is a bug."""
    compiled = [f"C++ CPU ({set_})" for set_ in ("avx512bf16", "avx512", "avx2", "baseline")]
    # No kernel of the CPU reads a plan.
    assert ops.kernel_for(name, "cpu") in (["PyTorch reference"] if name == "lora_plan" else compiled)
    assert ops.kernel_for(name, "mps") == "PyTorch reference"


def test_gpu_without_nvcc_is_served_by_triton():
    """Where the CUDA library was not built, the reference serves no op of training or decoding: it would read the device."""
    pytest.importorskip("triton", reason="Triton is for Linux on x86-64 and arm64")
    code = (
        "import torch; torch.version.cuda = None\n"  # as if the library were not there: it is not loaded
        "from tmem import ops; print({op: ops.kernel_for(op, 'cuda') for op in ops.OPS + ops.SVD_PARTS + ops.TOKEN_PARTS})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    served = ast.literal_eval(done.stdout)
    without = {op for op, kernel in served.items() if kernel == "PyTorch reference"}
    assert without == set(ops.SVD_PARTS)
    assert {kernel for op, kernel in served.items() if op not in without} == {"Triton"}


def test_kernel_for_an_unknown_op():
    with pytest.raises(ValueError, match="no op tmem::lora_shrunk"):
        ops.kernel_for("lora_shrunk", "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", SERVED)
def test_opcheck(name, dtype):
    case = make_case([5, 0, 3, 9], [2, 0, -1, 1], [8, 8, 8], dtype=dtype)
    if name == "lora_linear":
        for t in (case.x, case.w, case.bias, case.a, case.bt):
            t.requires_grad_()
    torch.library.opcheck(getattr(torch.ops.tmem, name).default, arguments(name, dtype, case))


@pytest.mark.parametrize("kind", ["shared", "per slot", "base trained"])
def test_compiled_linear(kind):
    """torch.compile takes lora_linear in one graph, forward and backward, with the results of eager."""
    case = make_case([5, 0, 3, 9], [2, 0, -1, 1], [3, 8, 5], shared_a=kind == "shared")
    leaves = [case.x, case.bt, *([case.a] if kind == "per slot" else []), *([case.w] if kind == "base trained" else [])]
    for leaf in leaves:
        leaf.requires_grad_()

    def loss(*args):
        return ops.lora_linear(*args).square().mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    want, got = loss(*case.linear), compiled(*case.linear)
    assert torch.equal(got, want)
    for g, w in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves)):
        assert torch.equal(g, w)


def test_compiled_ops_in_place():
    case = make_case([5, 0, 3, 9], [2, 0, -1, 1], [3, 8, 5])

    def both(o, g):
        z = ops.lora_shrink(case.x, case.a, *case.seg, case.scale)
        ops.lora_expand_(o, z, case.bt, *case.seg)
        ops.lora_gram_(g, z, case.x, *case.seg)
        return z

    outs = [(torch.ones(17, 72), torch.ones(3, 8, 40)) for _ in range(2)]
    both(*outs[0])
    torch.compile(both, fullgraph=True, backend="aot_eager")(*outs[1])
    assert all(torch.equal(a, b) for a, b in zip(*outs))


@pytest.mark.parametrize("name", SERVED)
def test_contract_on_cuda(name):
    """Shapes, dtypes and devices of the results on a GPU, by fake tensors: no GPU needed."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        real = arguments(name, dtype)

        def each(arguments, change):
            kept = [a if not isinstance(a, list) else [change(t) for t in a] for a in arguments]
            return [change(a) if isinstance(a, torch.Tensor) else a for a in kept]

        want = getattr(ops, name)(*each(real, torch.clone))
        with FakeTensorMode():
            fake = each(real, lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda"))
            got = getattr(ops, name)(*fake)
        if want is None:
            assert got is None
        else:
            assert got.shape == want.shape and got.dtype == want.dtype and got.device.type == "cuda"


def test_mixed_devices_are_refused():
    with FakeTensorMode():
        v, f = torch.empty(4, 8, device="cuda"), torch.empty(1, 2, 8)
        with pytest.raises(ValueError, match="lora_shrink: f must be on cuda:0 .* got cpu"):
            ops.lora_shrink(v, f, *[torch.empty(2, dtype=torch.int32, device="cuda")] * 3, torch.empty(2, device="cuda"))


def test_importing_is_light_and_torch_ops_are_complete():
    code = (
        "import sys, tmem; assert 'torch' not in sys.modules; from tmem import ops;"
        "heavy = {'transformers', 'triton', 'matplotlib', 'tmem.memory'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_kernel_folder_keeps_its_name():
    """The plain name belongs to another package; the folder is importable as tmem.triton_kernels only."""
    code = "import tmem.triton_kernels\ntry:\n    import triton_kernels\nexcept ImportError as error:\n    print(error)"
    root = __file__.rpartition("/tests/")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert "import it as 'tmem.triton_kernels'" in done.stdout, done.stdout + done.stderr
