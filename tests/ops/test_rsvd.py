"""batched_rsvd: accuracy against fp64 LAPACK, the same bits in any company, and what it refuses."""

import gc
import importlib
import weakref
from collections import Counter
from types import SimpleNamespace

import pytest
import spectra
import svd_parts
import torch
from spectra import RANK
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tmem import ops
from tmem.ops import _decompose, _lockstep, _svd, rsvd

U32 = 2.0**-24


def alone(steps):
    return _lockstep.in_lockstep([steps])[0]


MATRICES = spectra.matrices()
FAST = ("2^-i", "10^-i", "i^-2", "rank 16", "rank 3", "rank 1", "one entry", "condition 1e12", "full rank", "7 x 7")


@pytest.mark.parametrize("kernel, times", [("PyTorch reference", 1), ("CUDA C++", 0)])
def test_a_gpu_without_kernels_is_told_once(kernel, times, monkeypatch, caplog):
    """On a GPU, and nowhere else; fake tensors have no values, upon which the call itself ends."""
    monkeypatch.setattr(_svd, "kernel_for", lambda name, device: kernel)
    _svd.tell_if_slow_on_gpu.cache_clear()
    ops.batched_rsvd([torch.randn(20, 9)], 2)
    assert not caplog.records
    for _ in range(2):
        with FakeTensorMode(), pytest.raises(DataDependentOutputException):
            ops.batched_rsvd([torch.empty(20, 9, device="cuda")], 2)
    assert [record.name for record in caplog.records] == ["tmem"] * times
    assert all("built without nvcc" in record.message for record in caplog.records)
    _svd.tell_if_slow_on_gpu.cache_clear()


def exact(a: Tensor) -> Tensor:
    return torch.linalg.svdvals(a.double())


def rank_of(a: Tensor) -> int:
    return min(RANK, *a.shape)


def energy(a: Tensor, result) -> float:
    """Share of the optimal energy ‖A_r‖² that the computed right singular directions keep."""
    best = exact(a)[: len(result.S)].square().sum()
    return float((a.double() @ result.V.double()).square().sum() / best) if best else 1.0


def check(name: str, a: Tensor, result, *, fast: bool = False, tolerance: float = 1e-5) -> None:
    """What every decomposition promises. `a` as it was given; figures of reference/rsvd.md, section 4."""
    r, a64, (u, s, v, _) = len(result.S), a.double(), result
    unit = float(a64.abs().max()) or 1.0  # so that nothing under- or overflows below
    a64, s64 = a64 / unit, s.double() / unit
    values = exact(a64)
    size = float(values[0]) or 1.0
    eye = torch.eye(r, dtype=torch.float64)
    assert (u.double().T @ u.double() - eye).norm(2) <= tolerance, f"{name}: U is not orthonormal"
    assert (v.double().T @ v.double() - eye).norm(2) <= tolerance, f"{name}: V is not orthonormal"
    assert (s64[:-1] >= s64[1:]).all() and (s64 >= 0).all(), f"{name}: S does not descend"
    assert (s64 <= values[:r] * (1 + tolerance) + 64 * U32 * size).all(), f"{name}: S above the exact values"
    side = (v.double() * s64 - a64.T @ u.double()).norm() / (a64.norm() or 1)
    assert side <= tolerance, f"{name}: S Vᵀ and Uᵀ A differ by {side:.1e}"
    assert (v.gather(0, v.abs().argmax(0, keepdim=True)) >= 0).all(), f"{name}: sign rule"
    floor = 32 * U32 * size  # l u s_1: what fp32 keeps of a singular value
    off = ((values[:r] - s64).abs() - floor).clamp(min=0) / values[:r].clamp(min=floor)
    assert off.max() <= (1e-5 if fast else 0.02), f"{name}: singular values off by {off.max():.1e}"
    rest = values[r:].square().sum().sqrt()
    residual = (a64 - u.double() * s64 @ v.double().T).norm()
    allowed = (1 + 1e-5 if fast else 1.001) * rest + 8 * floor
    assert residual <= allowed, f"{name}: residual {residual / rest:.5f} of the optimum"
    if r < len(values):
        spectral = exact(a64 - u.double() * s64 @ v.double().T)[0]
        assert spectral <= 1.02 * values[r] + 8 * floor, f"{name}: spectral residual {spectral / values[r]:.3f} of the optimum"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accuracy(dtype):
    """All kinds at once, each with its own rank: mixed shapes in one list change nothing (see test_any_company)."""
    for name, a in MATRICES.items():
        if dtype == torch.bfloat16 and name in ("1e-30", "1e36"):
            a = a.clamp(-3e38, 3e38)
        a = a.to(dtype)
        check(name, a, ops.batched_rsvd([a], rank_of(a))[0], fast=name in FAST and dtype == torch.float32)


def test_fp16_and_fp64():
    a = spectra.weight_like(300, 250)
    check("fp16", a.half(), ops.batched_rsvd([a.half()], RANK)[0])
    result = ops.batched_rsvd([a], RANK)[0]
    assert result.S.dtype == result.U.dtype == torch.float64
    check("fp64", a, result, tolerance=1e-13)


def test_subspace_with_a_gap():
    """sin of the largest principal angle, where the spectrum has a gap."""
    a = spectra.of_spectrum(torch.where(torch.arange(200) < RANK, 1.0, 0.4), 300, 250)
    v = torch.linalg.svd(a)[2][:RANK].T
    found = ops.batched_rsvd([a.float()], RANK)[0].V.double()
    assert (found - v @ (v.T @ found)).norm(2) <= 1e-3


def test_real_weights(real_weights):
    """The default model's own matrices: median and worst over layers and kinds."""
    results = ops.batched_rsvd(real_weights, RANK)
    kept = torch.tensor([energy(a, result) for a, result in zip(real_weights, results)])
    off = torch.stack([(exact(a)[:RANK] - r.S).abs().max() / r.S[-1] for a, r in zip(real_weights, results)])
    assert kept.median() >= 0.995 and kept.min() >= 0.98, f"energy: median {kept.median():.4f}, worst {kept.min():.4f}"
    assert off.max() <= 0.02
    for a, result in zip(real_weights, results):
        assert result.info == 0
        check("weight", a, result)


@pytest.fixture(scope="module")
def real_weights():
    from tmem.models import loading

    model, _ = loading.load_model(dtype=torch.float32, device="cpu")
    wanted = ("q_proj", "k_proj", "o_proj", "gate_proj", "down_proj")
    layers = model.model.layers
    found = [m.weight.detach().clone() for i in (0, 14, 29) for n, m in layers[i].named_modules() if n.endswith(wanted)]
    del model
    gc.collect()
    return found


@pytest.mark.parametrize("method", ["krylov", "subspace"])
def test_never_above_the_bound(method):
    """Halko, Martinsson & Tropp 2011, theorem 10.5 (their corollary 10.10 for power steps is larger than what holds without
    them is for these spectra), with k + p columns, over 20 seeds."""
    for name in ("i^-0.5", "weight-like", "gap", "clustered"):
        a = MATRICES[name].float()
        tail = exact(a)[RANK:].square().sum().sqrt()
        for seed in range(20):
            found = ops.batched_rsvd([a], RANK, method=method, oversample=8, iters=1, seed=seed)[0]
            assert (a - found.U * found.S @ found.V.T).norm() <= (1 + RANK / 7) ** 0.5 * tail, (name, seed)


def test_krylov_is_the_better_default():
    """At as many multiplications, the spaces of the subspace method keep less of a flat spectrum."""
    a = spectra.weight_like(577, 301).float()
    krylov, power = (ops.batched_rsvd([a], RANK, method=m, oversample=0, iters=6)[0] for m in rsvd.METHODS[:2])
    assert 1 - energy(a, krylov) < (1 - energy(a, power)) / 20


def some_matrices() -> list[Tensor]:
    shapes = [(300, 250), (250, 300), (300, 250), (120, 400), (300, 250), (40, 30), (120, 400)]
    return [spectra.weight_like(m, n, seed).to(torch.bfloat16 if seed == 4 else torch.float32)
            for seed, (m, n) in enumerate(shapes)]  # fmt: skip


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:3], other[:3])) and one.info == other.info


@pytest.mark.parametrize("method", rsvd.METHODS)
def test_any_company(method):
    """Bitwise the same alone, repeated, in another order, with other neighbours, in other chunks."""
    a = some_matrices()
    a.append(torch.zeros(300, 250))  # takes the careful way
    first = ops.batched_rsvd(a, 9, method=method, seed=3)
    order = [4, 0, 7, 6, 1, 5, 2, 3]
    for i, result in zip(order, ops.batched_rsvd([a[i] for i in order], 9, method=method, seed=3)):
        assert same(result, first[i])
    for matrix, result in zip(a, first):
        assert same(ops.batched_rsvd([matrix], 9, method=method, seed=3, workspace=1)[0], result)
    split = ops.batched_rsvd(a, 9, method=method, seed=3, workspace=1 << 20)
    assert all(same(x, y) for x, y in zip(split, first))
    if method != "exact":
        assert not same(ops.batched_rsvd(a, 9, method=method, seed=4)[0], first[0])


class Calls(TorchDispatchMode):
    """How often each op of tmem is called."""

    def __init__(self):
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.of[function.__name__.partition(".")[0]] += function.namespace == "tmem"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("check_finite, waits", [(True, 2), (False, 1)])
def test_shapes_go_in_lockstep_with_one_wait(check_finite, waits, monkeypatch):
    """What does not depend on a shape is one call for all: a GPU that waits for each shape stands still between."""
    looked, tolist = [], Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: looked.append(self.shape) or tolist(self))
    kinds = [(300, 250), (250, 300), (120, 400), (600, 130)]
    calls = {}
    for shapes in (kinds[:1], kinds[1:2], kinds):
        looked.clear()
        a = [spectra.weight_like(m, n, 1).to(torch.bfloat16 if m == 120 else torch.float32) for m, n in shapes]
        with Calls() as counted:
            assert all(one.info == _decompose.CHOLESKY for one in ops.batched_rsvd(a, 9, check_finite=check_finite))
        calls[len(calls)] = counted.of
        assert len(looked) == waits
    tall, wide, several = calls.values()
    assert tall["svd_factor"] == 18 and wide["svd_factor"] == 20  # V of a wide matrix comes from that of its transpose
    for op in ("svd_factor", "svd_eigh", "svd_small"):
        assert several[op] == wide[op], op
    assert several["svd_gram"] == 4 * wide["svd_gram"]


def test_views_are_read_where_they_are():
    """Transposed, strided and batched views give the bits of contiguous matrices."""
    a = spectra.weight_like(300, 250).float()
    want = ops.batched_rsvd([a], RANK)[0]
    wide = torch.full((600, 500), float("nan"))
    wide[::2, ::2] = a
    for view in (a.T.contiguous().T, wide[::2, ::2]):
        assert same(ops.batched_rsvd([view], RANK)[0], want)
    batch = torch.stack([a, spectra.weight_like(300, 250, 1).float()])
    assert same(ops.batched_rsvd(batch, RANK)[0], want)
    assert same(ops.batched_rsvd(batch.mT, RANK)[0], ops.batched_rsvd([a.T.contiguous()], RANK)[0])


def test_a_power_of_two_changes_nothing_but_s():
    a = spectra.weight_like(300, 250).float()
    one, other = ops.batched_rsvd([a], RANK)[0], ops.batched_rsvd([a * 2.0**70], RANK)[0]
    assert torch.equal(one.U, other.U) and torch.equal(one.V, other.V) and torch.equal(one.S * 2.0**70, other.S)


class Live(TorchDispatchMode):
    """Bytes of tensors made within and not yet gone: the most at any time, and now."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self.known | given:
                self.known.add(key)
                size = tensor.untyped_storage().nbytes()
                weakref.finalize(tensor.untyped_storage(), self._gone, key, size)
                self.now += size
        self.most = max(self.most, self.now)
        return out


def test_memory_is_the_workspace_and_the_results():
    """Nothing that grows with the number of matrices, and no copy of them."""
    above = []
    for count in (7, 28):
        a = [spectra.weight_like(300, 250, seed).float() for seed in range(count)]
        with Live() as live:
            found = ops.batched_rsvd(a, RANK, workspace=3 << 20)
        results = sum(t.nbytes for one in found for t in one[:3])
        above.append(live.most - results)
    assert above[1] <= 1.1 * above[0] + (64 << 10) and max(above) <= 3 << 20, above


def test_global_generators_are_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ops.batched_rsvd(some_matrices(), 9)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_returned():
    a = [spectra.weight_like(300, 250).float()]
    full = ops.batched_rsvd(a, RANK)[0]
    some = ops.batched_rsvd(a, RANK, compute=("V",))[0]
    assert some.U is None and some.S is None and torch.equal(some.V, full.V) and torch.equal(full.Vh, full.V.T)
    half = ops.batched_rsvd(a, RANK, out_dtype=torch.bfloat16)[0]
    assert half.U.dtype == half.V.dtype == torch.bfloat16 and half.S.dtype == torch.float32
    assert (half.V.double().T @ half.V.double() - torch.eye(RANK)).norm(2) <= 5e-3
    assert ops.batched_rsvd([], 3) == []
    weight = torch.nn.Parameter(a[0])
    assert not ops.batched_rsvd([weight], 3)[0].V.requires_grad


def test_info_says_which_way_was_taken():
    """Never silently: 0 Cholesky QR, 2 Householder where columns vanish, between them the shifted one."""
    info = [r.info for r in ops.batched_rsvd([MATRICES[k].float() for k in ("weight-like", "zero", "rank 1")], RANK)]
    assert info == [_decompose.CHOLESKY, _decompose.HOUSEHOLDER, _decompose.HOUSEHOLDER]
    y = spectra.of_spectrum(torch.logspace(0, -4.5, 16), 300, 16).float()[None]
    assert not _decompose._well([alone(_decompose._cholesky_qr(y, None))[1]])
    q, level = alone(_decompose._careful_qr(y, None))
    assert level == _decompose.SHIFTED and (q[0].T @ q[0] - torch.eye(16)).norm(2) <= 1e-5


def test_columns_inside_the_basis():
    """A Krylov space that is exhausted: y lies in the span of the basis up to rounding."""
    basis = torch.linalg.qr(torch.randn(1, 300, 32, generator=torch.Generator().manual_seed(0)))[0]
    y = basis[:, :, :16].clone()
    q, level = alone(_decompose._careful_qr(_decompose._without(basis, y), basis))
    everything = torch.cat([basis, q], 2)[0]
    assert (everything.T @ everything - torch.eye(48)).norm(2) <= 1e-5 and level != _decompose.CHOLESKY
    assert not _decompose._well([alone(_decompose._cholesky_qr(_decompose._without(basis, y), basis))[1]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(bad):
    a = [m.clone() for m in some_matrices()]
    want = ops.batched_rsvd(a, 9)
    a[2][17, 3] = a[3][0, 0] = bad
    with pytest.raises(ValueError, match=r"matrices\[2\] of shape \[300, 250\], matrices\[3\] of shape \[120, 400\] hold NaN"):
        ops.batched_rsvd(a, 9)
    results = ops.batched_rsvd(a, 9, on_error="info")
    for i, (result, right) in enumerate(zip(results, want)):
        if i in (2, 3):
            assert result.info == rsvd.NOT_FINITE and result.V.shape == right.V.shape and result.V.isnan().all()
        else:
            assert same(result, right)


class Sharded(Tensor):
    placements = ()


@pytest.mark.parametrize(
    "matrices, change, error, words",
    [
        ([torch.ones(9, 9), torch.ones(3, 9)], {}, ValueError, r"rank must be in 1\.\.3 for matrices\[1\] of shape \[3, 9\]"),
        ([torch.ones(9, 9)], {"rank": 0}, ValueError, r"rank must be in 1\.\.9"),
        ([torch.ones(3)], {}, ValueError, r"matrices\[0\] must have shape \[m, n\], got \[3\]"),
        ([torch.ones(9, 9, dtype=torch.int8)], {}, TypeError, r"matrices\[0\] of shape \[9, 9\] .* got int8"),
        ([torch.ones(9, 9).to_sparse()], {}, TypeError, r"sparse_coo"),
        ([torch.ones(9, 9, device="meta")], {}, ValueError, r"meta device"),
        ([torch.ones(9, 9).as_subclass(Sharded)], {}, TypeError, r"matrices\[0\] is sharded \(a DTensor\); gather it first"),
        ([[1.0]], {}, TypeError, r"matrices\[0\] must be a tensor, got list"),
        (torch.ones(9, 9), {}, ValueError, r"list of \[m,n\] or one \[b,m,n\]"),
        ([torch.ones(9, 9)], {"method": "power"}, ValueError, r"method must be one of krylov, subspace, exact, got 'power'"),
        ([torch.ones(9, 9)], {"oversample": -1}, ValueError, r"oversample must be a whole number, 0 or more, got -1"),
        ([torch.ones(9, 9)], {"iters": -1}, ValueError, r"iters must be"),
        ([torch.ones(9, 9)], {"on_error": "skip"}, ValueError, r"on_error must be raise or info, got 'skip'"),
        ([torch.ones(9, 9)], {"compute": ("W",)}, ValueError, r"compute must name some of U, S, V"),
        ([torch.ones(9, 9)], {"out_dtype": torch.int8}, TypeError, r"out_dtype must be one of"),
        ([torch.ones(9, 9)], {"seed": 2**63}, ValueError, r"seed must be a whole number of 64 bits"),
        ([torch.ones(9, 9)], {"workspace": 0}, ValueError, r"workspace must be"),
    ],
)  # fmt: skip
def test_bad_input(matrices, change, error, words):
    with pytest.raises(error, match=words):
        ops.batched_rsvd(matrices, **{"rank": 4, **change})


# --- the parts -------------------------------------------------------------------------------------------------------


def test_sketch():
    """Philox's known answers, and numbers of mean 0 and variance 1 that are near enough to a Gaussian."""
    from tmem import reference

    for fill, words in ((0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"), (0xFFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd")):
        found = reference._philox([torch.tensor([fill])] * 4, [fill, fill])
        assert " ".join(f"{int(w):08x}" for w in found) == words
    key = torch.tensor([5, 2**50 + 3, 0])
    x = _svd.sketch(key, 2**40 + 9, 3000, 18)
    assert torch.equal(x, reference.svd_sketch(key, 2**40 + 9, 3000, 18))
    assert torch.equal(x[1:2, :50, :7], _svd.sketch(key[1:2], 2**40 + 9, 50, 7))
    assert x.mean().abs() < 0.01 and (x.std() - 1).abs() < 0.01 and (x**4).mean() > 2.5
    assert torch.corrcoef(x[0].T).triu(1).abs().max() < 0.08


PARTS = {"svd_scan", "svd_sketch", "svd_product", "svd_gram", "svd_factor", "svd_eigh", "svd_small"}
LAPACK = {"svd_factor", "svd_eigh", "svd_small"}


def arguments(part: str, dtype=torch.float32) -> tuple:
    """Valid arguments of a part, of two matrices [24,16]."""
    w = [spectra.weight_like(24, 16, seed).to(dtype) for seed in range(2)]
    x = torch.randn(2, 16, 8)
    g = x.mT @ x
    return {
        "svd_scan": (w,),
        "svd_sketch": (torch.tensor([7, 2**40]), 3, 16, 8),
        "svd_product": (w, x, torch.tensor([1.0, 0.5]), torch.randn(2, 24, 8)),
        "svd_gram": (w, x, torch.tensor([1.0, 0.5])),
        "svd_factor": (g, 1e-3),
        "svd_eigh": (g, 5),
        "svd_small": (g,),
    }[part]


@pytest.mark.parametrize("device, shared, columns", [("H100", 232448, 160), ("A100", 166912, 143), ("RTX 3090", 101376, 111)])
def test_columns_that_do_not_fit_into_a_gpus_shared_memory_go_to_the_formula(monkeypatch, device, shared, columns):
    properties = SimpleNamespace(shared_memory_per_block_optin=shared)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert _svd._fitting(SimpleNamespace(device=torch.device("cuda")), 160) == columns, device
    assert _svd._fitting(torch.empty(1), 160) == 160


def test_all_parts_are_listed():
    assert set(ops.SVD_PARTS) == PARTS and not PARTS & set(ops.OPS)


@pytest.mark.parametrize("part", sorted(PARTS))
def test_which_kernel_serves(part):
    """On a CPU, what reads the matrices is C++ and small dense problems are LAPACK's, by way of PyTorch."""
    compiled = [f"C++ CPU ({set_})" for set_ in ("avx512bf16", "avx512", "avx2", "baseline")]
    assert ops.kernel_for(part, "cpu") in (["PyTorch reference"] if part in LAPACK else compiled)


@pytest.mark.parametrize("part", sorted(PARTS))
def test_opcheck(part):
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(getattr(torch.ops.tmem, part).default, arguments(part, dtype))


@pytest.mark.parametrize("part", sorted(PARTS))
def test_contract_on_cuda(part):
    op = getattr(torch.ops.tmem, part)
    want = op(*arguments(part))

    def moved(x):
        x = [moved(one) for one in x] if isinstance(x, list) else x
        return torch.empty(x.shape, dtype=x.dtype, device="cuda") if isinstance(x, Tensor) else x

    with FakeTensorMode():
        got = op(*map(moved, arguments(part)))
    for one, other in zip(*((x,) if isinstance(x, Tensor) else x for x in (got, want))):
        assert one.shape == other.shape and one.dtype == other.dtype and one.device.type == "cuda"


@pytest.mark.parametrize("check", svd_parts.ALL, ids=lambda check: check.__name__)
def test_parts(check, poison):
    check(torch.ops.tmem)


WRONG = {
    "svd_without_scale": lambda: one_of("1e20"),
    "svd_one_pass": lambda: one_of("condition 1e12"),
    "svd_never_careful": lambda: one_of("zero"),
    "svd_of_squares": lambda: one_of("2^-i"),
    "svd_last_block": lambda: one_of("weight-like"),
    "svd_signs_of_u": lambda: one_of("odd"),
    "svd_batch_seed": lambda: test_any_company("krylov"),
}


def one_of(name: str) -> None:
    a = MATRICES[name].float()
    check(name, a, ops.batched_rsvd([a], RANK)[0], fast=name in FAST)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_implementations_are_caught(name, monkeypatch):
    WRONG[name]()
    wrong = importlib.import_module(f"wrong.{name}")
    faults = {
        (room, fault) for room in (_decompose, _svd) for fault in vars(room)
        if getattr(getattr(wrong, fault, None), "__module__", None) == wrong.__name__
    }  # fmt: skip
    assert faults, f"tests/wrong/{name}.py replaces nothing"
    for room, fault in faults:
        monkeypatch.setattr(room, fault, getattr(wrong, fault))
    with pytest.raises((AssertionError, torch.linalg.LinAlgError)):
        WRONG[name]()


@pytest.mark.parametrize("power", [-300, -200, -100, 0, 100, 200, 300])
def test_fp64_of_any_size_is_as_accurate(power):
    w = torch.randn(60, 40, dtype=torch.float64)
    (found,) = ops.batched_rsvd([w * 10.0**power], 40)
    want = torch.linalg.svdvals(w)
    assert ((found.S / 10.0**power - want).abs() / want[0]).max() < 1e-13


@pytest.mark.parametrize("dtype, end", [(torch.float32, 100), (torch.float64, 1000)], ids=str)
def test_what_a_matrix_is_scaled_by_is_a_power_of_two_to_the_bit(dtype, end):
    """Any other number would round every element."""
    w = [torch.full((3, 2), 2.0**power, dtype=torch.float64).to(dtype) for power in range(-end, end)]
    scale = rsvd._Group(w, list(range(len(w)))).scale
    assert scale.dtype == dtype and (torch.frexp(scale).mantissa == 0.5).all()
    assert torch.equal(scale * torch.stack(w).amax((1, 2)), torch.full_like(scale, 0.5))
