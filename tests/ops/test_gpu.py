"""On an NVIDIA GPU: the promises of checks.py on the kernels that serve there, no waiting for the device, no compilation
twice, a decode loop and an online update captured once. Run by `make gpu`."""

import random

import checks
import gpu_rows
import pytest
import spectra
import svd_parts
import token_checks
import torch

from tmem import ops, reference
from tmem.adapters.bank import AdapterBank
from tmem.ops import _triton
from tmem.testing import assert_close, make_case

pytestmark = pytest.mark.gpu

# A product of one fp32 and one bf16 operand splits the former in two: 2^-17. fp32 with fp32 takes three tf32 products.
TOLERANCES = {torch.float64: 1e-14, torch.float32: 2e-5, torch.bfloat16: 4e-3}


def moved(x, device):
    if isinstance(x, list | tuple):
        return [moved(t, device) for t in x]
    return x.to(device) if isinstance(x, torch.Tensor) else x


class OnGpu:
    """tmem.ops with its arguments moved to the GPU and its results, and what it wrote in place, moved back."""

    def kernel(self, name):
        return getattr(ops, name)

    def __getattr__(self, name):
        def call(*arguments):
            there = moved(arguments, "cuda")
            found = self.kernel(name)(*there)
            if name.endswith("_"):
                flat = [t for a in arguments for t in (a if isinstance(a, list) else [a])]
                back = [t for a in there for t in (a if isinstance(a, list) else [a])]
                for ours, theirs in zip(flat, back):
                    if isinstance(ours, torch.Tensor):
                        ours.copy_(theirs)
            return moved(found, "cpu") if found is not None else None

        return call


LAUNCHERS = {launcher.__name__: launcher for launcher in _triton.LAUNCHERS}


class ByTriton(OnGpu):
    """The same by Triton's launchers, where CUDA C++ serves too."""

    def kernel(self, name):
        return LAUNCHERS[name]


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch, poison):
    monkeypatch.setattr(checks, "TOLERANCES", TOLERANCES)
    monkeypatch.setattr(checks, "BANK_DTYPES", [torch.float32])
    # A program of gram has other columns, and with them other instructions; nvcc and Triton contract a formula otherwise.
    monkeypatch.setattr(checks, "STEPPED", 2e-5)
    monkeypatch.setattr(checks, "DTYPES", [d for d in checks.DTYPES if torch.float64 not in d])


@pytest.mark.parametrize("check", [*checks.ALL, *token_checks.TOKEN], ids=lambda check: check.__name__)
def test_promises(check):
    check(OnGpu())


@pytest.mark.parametrize("check", [checks.decode, *checks.BANK], ids=lambda check: check.__name__)
def test_promises_of_triton_without_nvcc(check):
    check(ByTriton())


@pytest.mark.parametrize("check", [*gpu_rows.ALL, *token_checks.GPU], ids=lambda check: check.__name__)
def test_rows_of_triton(check):
    check(ByTriton())


@pytest.mark.parametrize("kind", [OnGpu, ByTriton])
def test_decode_rounds_once(kind):
    gpu_rows.rounds_once(kind())


@pytest.mark.parametrize("large", [float("inf"), 3.4e38], ids=str)  # the latter rounds to infinity in bf16
def test_a_large_fp32_operand_is_no_nan(large):
    """Beside a bf16 operand, or for a bf16 result, an fp32 one is split in two: it gives what the formula gives."""
    gpu, shape = OnGpu(), {"lengths": [4, 33], "slots": [1, 0], "ranks": [16, 20], "k": 70, "n": 40}
    case = make_case(**shape, dtype=torch.float32, factor_dtype=torch.bfloat16)
    seg, x, a = case.seg, case.x, case.a * 2**-10
    x[0, 7] = large
    shrunk = gpu.lora_shrink(x, a, *seg, case.scale), reference.lora_shrink(x.double(), a.double(), *seg, case.scale)
    case = make_case(**shape, dtype=torch.bfloat16, factor_dtype=torch.float32)
    z, bt, v = torch.randn(37, 20), case.bt * 2**-10, case.x * 2**-10
    z[1, 2] = large
    o = torch.randn(37, 40).bfloat16()
    expected = o.double()
    reference.lora_expand_(expected, z.double(), bt.double(), *seg)
    gpu.lora_expand_(o, z, bt, *seg)
    summed = gpu.lora_gram(z, v, *seg), reference.lora_gram(z.double(), v.double(), *seg)
    for name, got, want, tolerance in (("z", *shrunk, 2e-5), ("o", o, expected, 4e-3), ("g", *summed, 2e-5)):
        finite = want.isfinite()
        assert torch.equal(got.isfinite(), finite) and torch.equal(got[got.isinf()].double(), want[want.isinf()].double()), name
        assert_close(name, got[finite], want[finite], tolerance)


@pytest.mark.parametrize("name", ops.OPS + ops.SVD_PARTS + ops.TOKEN_PARTS)
def test_served_by_a_kernel_of_its_own(name):
    kernel = "CUDA C++" if name in ("lora_decode_", "bank_step_", "bank_copy_", *ops.SVD_PARTS) else "Triton"
    assert ops.kernel_for(name, "cuda") == kernel


@pytest.mark.parametrize("check", svd_parts.ALL, ids=lambda check: check.__name__)
def test_parts_of_the_svd(check, monkeypatch):
    for dtype in (torch.bfloat16, torch.float16):  # on tensor cores, x in two bf16 parts
        monkeypatch.setitem(svd_parts.PRODUCT, dtype, 1e-5)
    check(torch.ops.tmem, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_svd(dtype, monkeypatch):
    """Accuracy on all kinds of matrices, the same bits in any company, fewer than 200 kernels for matrices of one shape."""
    kinds = {name: a.to(dtype) for name, a in spectra.matrices().items() if name not in ("1e-30", "1e36")}
    lists = {name: a.cuda() for name, a in kinds.items()}
    for name, a in lists.items():
        rank = min(spectra.RANK, *a.shape)
        found = ops.batched_rsvd([a], rank)[0]
        v = found.V.double().cpu()
        assert (v.T @ v - torch.eye(rank)).norm(2) <= 1e-5, name
        best = torch.linalg.svdvals(kinds[name].double())[:rank].square().sum()
        kept = (kinds[name].double() @ v).square().sum()
        assert kept >= 0.995 * best, f"{name}: {kept / best:.4f}"
    several = [spectra.weight_like(300, 250, seed).to(dtype).cuda() for seed in range(8)]
    together = ops.batched_rsvd(several, 16)
    for a, found in zip(several[::-1], together[::-1]):
        alone = ops.batched_rsvd([a], 16)[0]
        assert torch.equal(alone.V, found.V) and torch.equal(alone.U, found.U)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # else kernels poison each new tensor
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        ops.batched_rsvd(several, 16, check_finite=False)
    on_gpu = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [name for name in on_gpu if not name.startswith(("Memcpy", "Memset"))]
    assert 50 < len(kernels) < 200, len(kernels)  # 7 Gram steps, their orthonormalisation against the basis, two half steps


@pytest.mark.parametrize("ranks", [1, 16, 17, 32, 64])
@pytest.mark.parametrize("dtypes", [d for d in checks.DTYPES if torch.float64 not in d], ids=str)
def test_error_is_at_most_twice_that_of_plain_bf16(dtypes, ranks):
    """Forward and every gradient of every configuration against fp64, beside the same maths in torch's own bf16."""
    case = make_case([70, 1, 33, 128], [1, 0, -1, 2], [ranks] * 3, k=1030, n=770, dtype=dtypes[0], factor_dtype=dtypes[1])
    names = ("x", "w", "a", "bt")
    dy = torch.randn(232, 770)

    def gradients(dtype, device, function):
        leaves = {n: moved(getattr(case, n), device).to(dtype or getattr(case, n).dtype).requires_grad_() for n in names}
        y = function(leaves, moved([case.bias, *case.seg, case.scale], device), dtype)
        y.backward(dy.to(device, y.dtype))
        return [y.detach().cpu().double(), *(leaves[n].grad.cpu().double() for n in names)]

    def ours(leaves, rest, _):
        bias, *seg = rest
        return ops.lora_linear(leaves["x"], leaves["w"], bias, leaves["a"], leaves["bt"], *seg)

    def plain(leaves, rest, dtype):
        bias, off, slots, _, scale = rest
        y = torch.nn.functional.linear(leaves["x"], leaves["w"], bias.to(dtype))
        parts = []
        for g, slot in enumerate(slots.tolist()):
            rows = slice(int(off[g]), int(off[g + 1]))
            part = y[rows]
            if slot >= 0:
                a, bt = leaves["a"][slot, :ranks], leaves["bt"][slot, :ranks]
                part = part + (leaves["x"][rows] @ a.T * scale[slot].to(dtype)) @ bt
            parts.append(part)
        return torch.cat(parts)

    exact, found = gradients(torch.float64, "cpu", plain), gradients(None, "cuda", ours)
    for name, got, bf16, want in zip(("y", *names), found, gradients(torch.bfloat16, "cuda", plain), exact):
        size = want.norm()
        assert (got - want).norm() / size <= 2 * (bf16 - want).norm() / size, name


def layer(case, plan):
    z = torch.zeros(case.x.shape[0], case.a.shape[1], device="cuda")
    dy = torch.zeros(case.x.shape[0], case.w.shape[0], dtype=case.x.dtype, device="cuda")
    raw = torch.ops.tmem
    raw.lora_linear(*case.linear, plan)
    raw.lora_backward_(torch.zeros(case.bt.shape, device="cuda"), z, dy, case.bt, *case.seg, case.scale, plan)
    raw.lora_expand_(torch.zeros_like(case.x), z, case.a, *case.seg, plan)


class Rows:
    """A decode of 6 rows and a step and copies in a bank of 4, by Triton, at addresses that stay."""

    def __init__(self):
        self.case = make_case([1] * 6, [2, 0, -1, 1, 2, 0], [4, 8, 16], stored=16, k=300, n=130, device="cuda")
        self.y, self.bank = torch.zeros(6, 130, device="cuda"), moved(checks._bank(), "cuda")
        self.copy = torch.zeros(4, 1003, dtype=torch.bfloat16, device="cuda")
        self.active = torch.ones(4, dtype=torch.bool, device="cuda")
        self.pairs = [torch.tensor(rows, dtype=torch.int32, device="cuda") for rows in ([0], [3])]

    def run(self, kernel=LAUNCHERS.__getitem__):
        kernel("lora_decode_")(self.y, self.case.x, *self.case.decode)
        kernel("bank_step_")(*self.bank, self.active, self.copy)
        kernel("bank_copy_")(self.bank, *self.pairs)


def test_rows_of_triton_are_captured():
    """One capture serves whatever slots, flags and pairs its tensors hold when it is replayed, as the reference does."""
    torch.use_deterministic_algorithms(False)
    ours, plain = Rows(), Rows()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        ours.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.run()
    plain.run(lambda name: getattr(reference, name))
    draw = random.Random(0)
    for _ in range(5):
        slots, flags = [draw.randint(-1, 2) for _ in range(6)], [draw.random() < 0.5 for _ in range(4)]
        source, target = draw.sample(range(4), 2)
        grad = torch.randn(4, 1003, device="cuda")
        for one in (ours, plain):
            one.case.seg_slot.copy_(torch.tensor(slots))
            one.active.copy_(torch.tensor(flags))
            one.pairs[0].fill_(source), one.pairs[1].fill_(target)
            one.bank[1].copy_(grad)
        graph.replay()
        plain.run(lambda name: getattr(reference, name))
        for got, want in zip((ours.y, *ours.bank[:5]), (plain.y, *plain.bank[:5])):
            assert_close("captured", got, want, 1e-5)


def test_the_host_never_waits_for_the_device():
    rows = Rows()
    rows.run()
    case = make_case([70, 1, 33, 128], [1, 0, -1, 2], [4, 8, 16], stored=16, dtype=torch.bfloat16, device="cuda")
    layer(case, ops.lora_plan(*case.seg, 232))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(case, ops.lora_plan(*case.seg, 232))
        bank = [torch.zeros(3, 500, device="cuda") for _ in range(4)]
        hyper = torch.ones(3, 6, device="cuda", dtype=torch.float64)
        step, active = torch.zeros(3, dtype=torch.int32, device="cuda"), torch.ones(3, dtype=torch.bool, device="cuda")
        ops.bank_step_(*bank, step, hyper, active)
        rows.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_recompilation_over_200_batches():
    from triton import knobs

    draw, compiled = random.Random(0), []

    def batch(rows):
        count = draw.randint(1, 40)
        cuts = sorted(draw.randint(0, rows) for _ in range(count - 1))
        lengths = [b - a for a, b in zip([0, *cuts], [*cuts, rows])]
        slots, ranks = [draw.randint(-1, 15) for _ in lengths], [draw.randint(1, 16) for _ in range(16)]
        case = make_case(lengths, slots, ranks, stored=16, k=64, n=192, dtype=torch.bfloat16, device="cuda")
        layer(case, ops.lora_plan(*case.seg, rows))

    def by_rows(rows):
        case = make_case([1] * rows, [draw.randint(-1, 15) for _ in range(rows)], [16] * 16, k=64, n=192, device="cuda")
        LAUNCHERS["lora_decode_"](torch.zeros(rows, 192, device="cuda"), case.x, *case.decode)

    batch(64)
    by_rows(64)
    before = knobs.runtime.jit_post_compile_hook
    knobs.runtime.jit_post_compile_hook = lambda **_: compiled.append(1)
    try:
        for _ in range(200):
            batch(draw.choice([1, 2, 3, 15, 16, 17, 31, 64, 100, 511, 512]))
            by_rows(draw.choice([1, 2, 3, 15, 16, 17, 31, 64, 100, 511, 512]))
    finally:
        knobs.runtime.jit_post_compile_hook = before
    assert not compiled


def test_work_is_done_on_the_current_stream():
    """A step queued behind a long wait on a side stream must not run before it."""
    x = torch.zeros(1, 1 << 20, device="cuda")
    bank = [torch.zeros(1, 1 << 20, device="cuda"), x]
    rest = [torch.zeros(1, dtype=torch.int32, device="cuda"), torch.tensor([[1.0, 0, 0, 0, 0, 0]], device="cuda")]
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        x.fill_(2.0)
        ops.bank_step_(bank[0], bank[1], None, None, *rest, torch.ones(1, dtype=torch.bool, device="cuda"))
    side.synchronize()
    assert (bank[0] == -2).all()


def test_offsets_beyond_2_to_31_elements():
    rows, width = 70_000, 32_768  # 2.3e9 elements of bf16: 4.6 GB
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB of free GPU memory")
    seg = [torch.tensor(t, dtype=torch.int32, device="cuda") for t in ([0, rows - 5, rows], [-1, 0], [4])]
    scale = torch.ones(1, device="cuda")
    v = torch.zeros(rows, width, dtype=torch.bfloat16, device="cuda")
    v[-5:] = torch.randn(5, width, device="cuda").bfloat16()
    f = torch.randn(1, 4, width, device="cuda")
    z = ops.lora_shrink(v, f, *seg, scale)
    want = v[-5:].double() @ f[0].double().T
    assert (z[-5:].double() - want).norm() / want.norm() < 1e-4 and not z[:-5].any()
    ops.lora_expand_(v, z, f, *seg)
    assert v[-5:].abs().max() > 100 and not v[:5].any()


def test_a_bank_learns_as_on_the_cpu():
    from tiny import model

    torch.use_deterministic_algorithms(False)  # the model's own ops need not have a deterministic form
    losses = []
    for device in ("cpu", "cuda"):
        network = model(dtype=torch.float32).to(device)
        bank = AdapterBank(network, 3, 4, init="random")
        slots = [bank.alloc(lr=1e-2), bank.alloc(lr=1e-2)]
        ids = torch.randint(1, 160, (2, 9), generator=torch.Generator().manual_seed(0)).to(device)
        for _ in range(10):
            with bank.route(slots):
                logits = network(input_ids=ids).logits
                loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
                loss.backward()
            bank.step(slots)
        losses.append(float(loss))
        bank.detach()
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_a_decode_step_is_captured_once_for_each_size():
    from tiny import model

    from tmem.agent import steps
    from tmem.agent.decode import decode

    torch.use_deterministic_algorithms(False)  # index_copy_ has another form then, which may not be captured
    for dtype in (torch.float32, torch.bfloat16):
        network = model(dtype=dtype).cuda()
        bank = AdapterBank(network, 3, 4, init="random")
        slots = [bank.alloc(), bank.alloc(), -1]
        for site in bank.sites:
            site.bt[:2].normal_(0, 0.2)
        for slot in slots[:2]:
            bank.written(slot)
        steps.captures.clear()
        for length in (3, 9, 30, 3):
            prompts = [list(range(1, length + i)) for i in range(2, 8)]
            routed = [slots[i % 3] for i in range(6)]
            options = dict(bank=bank, slots=routed, end=0, max_new=8)
            got, want = (decode(network, prompts, fixed=fixed, **options) for fixed in (True, False))
            if dtype == torch.float32:
                assert [g.ids for g in got] == [g.ids for g in want]
        assert steps.captures and set(steps.captures.values()) == {1}
        bank.detach()


def test_captured_steps_follow_weights_that_moved():
    """As FSDP does at every update: the old memory is given back and somebody else writes there."""
    from tiny import model

    from tmem.agent.decode import decode

    torch.use_deterministic_algorithms(False)
    network = model().cuda()
    bank = AdapterBank(network, 1, 4, init="random")
    options = dict(bank=bank, slots=[bank.alloc()] * 4, end=0, max_new=8)
    prompts = [list(range(1, 3 + i)) for i in range(4)]
    for seed in range(3):
        got, want = (decode(network, prompts, fixed=fixed, **options) for fixed in (True, False))
        assert [g.ids for g in got] == [g.ids for g in want]
        moved = {k: v.cuda() for k, v in model(seed=seed + 1).state_dict().items()}
        for weight in network.parameters():
            weight.data.fill_(float("nan"))
        network.load_state_dict(moved, assign=True)
        torch.cuda.empty_cache()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gemma3_text"])
def test_captured_steps_of_few_kernels(family):
    """They give the tokens of transformers' layers, and in bf16 the same first logits to rounding."""
    import tiny_bank
    from tiny import model

    from tmem.adapters import token
    from tmem.agent.decode import decode

    torch.use_deterministic_algorithms(False)
    for dtype in (torch.float32, torch.bfloat16):
        network = model(family, dtype=dtype).cuda()
        assert token.fits(network, torch.device("cuda"))
        bank = tiny_bank.bank_of(network)
        slots = [bank.alloc(), bank.alloc(rank=2), -1, -1]
        for site in bank.sites:
            site.bt[:2].normal_(0, 0.2)
        for slot in slots[:2]:
            bank.written(slot)
        prompts = [list(range(1, 3 + i)) for i in range(4)]
        options = dict(bank=bank, slots=slots, end=-1, max_new=8 if dtype == torch.float32 else 2)
        got, want = (decode(network, prompts, fixed=fixed, **options) for fixed in (True, False))
        if dtype == torch.float32:
            assert [g.ids for g in got] == [g.ids for g in want]
        for ours, theirs in zip(got, want):
            assert ours.logprobs[1] == pytest.approx(theirs.logprobs[1], abs=1e-3 if dtype == torch.float32 else 0.2)
        bank.detach()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-2), (torch.bfloat16, 0.1)], ids=str)
def test_a_captured_update_learns_what_launches_learn(dtype, tolerance):
    """An idle slot stays as it was, and what a neighbour holds changes no bit. AdamW makes much of small roundings."""
    from tiny import Letters, model, pairs
    from tiny_agent import CONFIG
    from tiny_bank import fill

    from tmem.agent.agent import Agent
    from tmem.agent.learn import learn

    torch.use_deterministic_algorithms(False)

    def taught(fixed, neighbour=None):
        agent = Agent.build(model(dtype=dtype).cuda(), Letters(), CONFIG, 4)
        slots = [agent.bank.alloc() for _ in range(4)]
        fill(agent.bank, *slots)
        for slot in slots:
            agent.bank.written(slot)
        if neighbour is not None:
            agent.bank.param[2] = neighbour
            agent.bank.written(2)
        before = agent.bank.param[3].clone()
        jobs = [(slot, pairs(4, tag)) for slot, tag in zip(slots, "abc")]
        found = [learn(agent.model, agent.bank, jobs, agent.chat, CONFIG.learn, fixed=fixed) for _ in range(2)]
        assert torch.equal(agent.bank.param[3], before)
        return found, agent.bank.param[:2].clone(), vars(agent.bank).get("_update_steps")

    want, launched, none = taught(False)
    got, captured, steps = taught(None)
    assert none is None and steps.kept and not steps.failed
    for ours, theirs in zip(sum(got, []), sum(want, [])):
        assert (ours.loss_before, ours.loss_after) == pytest.approx((theirs.loss_before, theirs.loss_after), rel=tolerance)
    assert_close("learned", captured, launched, tolerance)
    assert torch.equal(taught(None)[1], captured), "again"
    assert torch.equal(taught(None, torch.nan)[1], captured), "any company"
