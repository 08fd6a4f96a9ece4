"""What must hold of the Triton kernels alone: of their launchers, or of what no other kernel promises. As in checks.py, each
check raises AssertionError where the promise is broken. interpreted.py runs them where Triton interprets."""

import itertools
from types import SimpleNamespace

import checks
import gpu_rows
import torch

from tmem import ops, reference
from tmem.bench import gemm as gemms
from tmem.bench.measure import Settings
from tmem.testing import TOLERANCES, assert_close, make_case
from tmem.triton_kernels import backward, decode, expand, gemm, gram, gram_step, plan, shrink

NAN = float("nan")
HALVES = (torch.bfloat16, torch.float16)
FULL = [(torch.float32, torch.float32)]
PAIRS = [pair for pair in checks.DTYPES if torch.float64 not in pair and pair not in FULL]
EXACT, SPLIT = 2e-6, 1e-5  # of sums in fp32; of products of which one operand, or both, are bf16 parts (2^-16 each)


def plans():
    """The tiles and the slots' segments are those of the reference; what neither uses may hold anything."""
    for lengths, slots in (
        ([5, 0, 70, 33, 1, 32], [2, 0, -1, 0, 1, 2]), ([], []), ([0, 0], [0, -1]), ([64], [3]), ([1] * 300, [0] * 300),
    ):  # fmt: skip
        rank = torch.tensor([3, 8, 5, 1, 0], dtype=torch.int32)
        case = make_case(lengths, slots, [3, 8, 5, 1])
        got, want = (f(*case.seg[:2], rank, sum(lengths)) for f in (plan.plan, reference.lora_plan))
        capacity, segments = plan.tiles(sum(lengths), len(lengths)), len(lengths)
        assert plan.TILE == reference.TILE and got.shape == want.shape == (plan.size(sum(lengths), segments, 5),)
        used = plan.HEAD.value + 4 * capacity + 6
        assert torch.equal(got[:used], want[:used])
        spans = 2 * int(want[used - 1])
        assert torch.equal(got[used:][:spans], want[used:][:spans])


def sixteen_bits():
    """bf16 and fp16 activations and factors, alone, together and with fp32, take the 16-bit paths of every kernel."""
    for dtype, factor_dtype in PAIRS:
        case = make_case([4, 33], [1, 0], [16, 20], k=257, n=130, dtype=dtype, factor_dtype=factor_dtype)
        seg, p = case.seg, plan.plan(*case.seg, 37)
        x, a, bt = (t.double() for t in (case.x, case.a, case.bt))
        z = shrink.shrink(case.x, [case.a, case.a, case.a], *seg, case.scale, p)
        want = reference.lora_shrink(x, a, *seg, case.scale)
        for one in z:
            assert_close("z", one, want, EXACT if dtype == factor_dtype else SPLIT)
        o = torch.randn(37, 130).to(dtype)
        expected = o.double()
        reference.lora_expand_(expected, want, bt, *seg)
        expand.expand(o, z[0], case.bt, *seg, p)
        assert_close("o", o, expected, max(SPLIT, TOLERANCES[dtype]))
        g, expected = torch.ones(2, 20, 257), torch.ones(2, 20, 257).double()
        h = g.clone()
        reference.lora_gram_(expected, want, x, *seg)
        gram.gram(g, z[0], case.x, *seg, p)
        dz = backward.backward(h, z[0], case.x, case.a, *seg, case.scale, p)
        assert_close("g", g, expected, SPLIT)
        assert_close("g of backward", h, expected, SPLIT)
        assert_close("dz", dz, want, EXACT if dtype == factor_dtype else SPLIT)


def steps_in_gram():
    """Rows of 16 bits and of fp32 at every stored rank give what gram, then a step by the formula, give; under the plan of
    another batch nothing moves, and squares say so."""
    for dtype, stored in itertools.product(checks.FLOATS, (20, 50, 100)):
        case = make_case([4, 70, 3, 9], [1, 0, 1, 2], [stored, 7, 3], stored=stored, n=130, dtype=dtype)
        seg, p, z = case.seg, plan.plan(*case.seg, 86), torch.randn(86, stored)
        dy, g = torch.randn(86, 130).to(dtype), torch.zeros(3, stored, 130)
        factor, want = (checks._factor(case, True, torch.float16) for _ in range(2))
        before = checks._factor(case, True, torch.float16)
        gram.gram(g, z, dy, *seg, p, True)
        for s, r in enumerate(case.rank.tolist()):
            reference._move(*(x[s, :r] for x in (want["param"], g, want["m"], want["v"])), s + 1, want["hyper"][s])
        stale = plan.plan(*make_case([70, 4, 3, 9], [1, 0, 1, 2], [1] * 3).seg, 86)
        for given, right, tolerance in ((stale, before, 0), (p, want, EXACT)):
            sums = torch.zeros(3, 9, dtype=torch.float64)
            moments = factor["param"], factor["m"], factor["v"], factor["step"], factor["hyper"]
            gram_step.gram_step(*moments, z, dy, *seg, given, factor["copy"], sums)
            for name in ("param", "m", "v"):
                assert_close(name, factor[name].nan_to_num(9), right[name].nan_to_num(9), tolerance)
            copied = factor["param"] if given is p else right["copy"]
            assert torch.equal(factor["copy"].nan_to_num(9), copied.half().nan_to_num(9))
            assert sums.sum(1).isnan().all() == (given is stale)


def small_operands():
    """What is fp32 beside fp16 may be smaller than fp16 can tell apart, as B is at first, and larger than it holds."""
    for size in (1e-9, 1e9):
        case = make_case([4, 33], [1, 0], [16, 20], k=257, n=130, dtype=torch.float16)
        seg, p = case.seg, plan.plan(*case.seg, 37)
        a, z = size * case.a, size * torch.randn(37, 20)
        want = reference.lora_shrink(case.x.double(), a.double(), *seg, case.scale)
        assert_close("z", shrink.shrink(case.x, [a], *seg, case.scale, p)[0], want, SPLIT)
        o, bt = torch.zeros(37, 130), case.bt.half()
        expected = o.double()
        reference.lora_expand_(expected, z.double(), bt.double(), *seg)
        expand.expand(o, z, bt, *seg, p)
        assert_close("o", o, expected, SPLIT)
        o = torch.zeros(37, 130).half()
        expand.expand(o, z, case.bt / size, *seg, p)
        expected.zero_()
        reference.lora_expand_(expected, z.double(), case.bt.double() / size, *seg)
        assert_close("o", o, expected, TOLERANCES[torch.float16])
        g = torch.zeros(2, 20, 257)
        gram.gram(g, z, case.x, *seg, p)
        assert_close("g", g, reference.lora_gram(z.double(), case.x.double(), *seg), SPLIT)


def bits_of_halves():
    """checks.invariance in 16 bits, factors of the same and of fp32."""
    checks.DTYPES = [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)]
    try:
        checks.invariance(ops)
    finally:
        checks.DTYPES = FULL


def large_ranks():
    """Ranks to 128 beside small ones."""
    for dtype in checks.FLOATS:
        case = make_case([3, 70, 20], [1, 0, 2], [128, 3, 65], stored=128, k=70, n=90, dtype=dtype)
        seg, p = case.seg, plan.plan(*case.seg, 93)
        x, a, bt = (t.double() for t in (case.x, case.a, case.bt))
        z, want = (
            ops.lora_shrink_multi(case.x, [case.a, case.a], *seg, case.scale),
            reference.lora_shrink(x, a, *seg, case.scale),
        )
        o, g = torch.zeros(93, 90, dtype=dtype), torch.zeros(3, 128, 70)
        expected = o.double()
        reference.lora_expand_(expected, want, bt, *seg)
        expand.expand(o, z[0], case.bt, *seg, p)
        gram.gram(g, z[0], case.x, *seg, p)
        y, one = torch.zeros(3, 90, dtype=dtype), torch.zeros(3, 90).double()
        slots = torch.tensor([2, -1, 0], dtype=torch.int32)
        decode.decode(y, case.x[:3], case.a, case.bt, slots, case.rank, case.scale)
        reference.lora_decode_(one, x[:3], a, bt, slots, case.rank, case.scale)
        for got in z:
            assert_close("z", got, want, SPLIT)
        assert_close("o", o, expected, max(SPLIT, TOLERANCES[dtype]))
        assert_close("g", g, reference.lora_gram(want, x, *seg), SPLIT)
        assert_close("y", y, one, max(SPLIT, TOLERANCES[dtype]))


def infinite_operands():
    """An fp32 operand that is infinite, or rounds to infinity in the 16 bits of its parts, gives what the reference gives."""
    for large, half in itertools.product((NAN, float("inf"), -float("inf"), 3.4e38, 70000.0, -65520.0), HALVES):
        for dtype, factor_dtype in ((torch.float32, half), (half, torch.float32)):
            case = make_case([4, 33], [1, 0], [16, 20], k=70, n=40, dtype=dtype, factor_dtype=factor_dtype)
            seg, p = case.seg, plan.plan(*case.seg, 37)
            x, a, z = case.x, case.a * 2**-10, torch.randn(37, 20)
            (x if dtype == torch.float32 else a[1])[0, 7] = large
            z[1, 2] = large
            got = shrink.shrink(x * 2**-10, [a], *seg, case.scale, p)[0]
            like("z", got, reference.lora_shrink(x.double() * 2**-10, a.double(), *seg, case.scale), SPLIT)
            bt, o = case.bt * 2**-10, torch.randn(37, 40).to(dtype)
            expected = o.double()
            reference.lora_expand_(expected, z.double(), bt.double(), *seg)
            expand.expand(o, z, bt, *seg, p)
            like("o", o, expected.to(dtype), max(SPLIT, TOLERANCES[dtype]))
            g, expected = torch.ones(2, 20, 70), torch.ones(2, 20, 70).double()
            v = 2**-10 * torch.randn(37, 70).to(dtype)
            reference.lora_gram_(expected, z.double(), v.double(), *seg)
            gram.gram(g, z, v, *seg, p)
            like("g", g, expected, SPLIT)


def like(name, got, want, tolerance):
    """The same infinities and NaN, and what is finite within this relative RMS."""
    got, want = got.double(), want.double()
    finite = want.isfinite()
    assert torch.equal(got.isfinite(), finite) and torch.equal(got.isnan(), want.isnan()), name
    assert torch.equal(got[got.isinf()], want[want.isinf()]), name
    assert_close(name, got[finite], want[finite], tolerance)


def lost_slots():
    """A slot that is named though it is freed, out of range or above the stored rank shows as NaN, and only there."""
    case = make_case([4, 5, 3, 40], [1, 0, 2, 0], [4, 4, 4], k=50, n=60)
    z = ops.lora_shrink(case.x, case.a, *case.seg, case.scale)
    o = torch.zeros(52, 60)
    ops.lora_expand_(o, z, case.bt, *case.seg)
    for slot, rank in ((1, [4, 0, 4]), (7, [4, 4, 4]), (-3, [4, 4, 4]), (1, [4, 9, 4])):
        seg = case.seg_off, torch.tensor([slot, 0, 2, 0], dtype=torch.int32), torch.tensor(rank, dtype=torch.int32)
        p = plan.plan(*seg, 52)
        bad, out = shrink.shrink(case.x, [case.a], *seg, case.scale, p)[0], torch.zeros(52, 60)
        expand.expand(out, bad, case.bt, *seg, p)
        assert bad[:4].isnan().all() and torch.equal(bad[4:], z[4:])
        assert out[:4].isnan().all() and torch.equal(out[4:], o[4:])
        g = torch.zeros(3, 4, 60)
        dz = backward.backward(g, bad, o, case.bt, *seg, case.scale, p)
        assert dz[:4].isnan().all() and not dz[4:].isnan().any() and not g[0].isnan().any()


def rounds_once():
    """decode rounds to 16 bits once."""
    for half in HALVES:
        gpu_rows.rounds_once(SimpleNamespace(lora_decode_=decode.decode), half)


def bad_offsets():
    """Offsets that do not run from 0 to the last row without decreasing make every kernel write NaN, and no other memory."""
    case = make_case([20, 32], [1, 0], [4, 4], k=50, n=60)
    z = ops.lora_shrink(case.x, case.a, *case.seg, case.scale)
    for offsets in ([1, 20, 52], [0, 20, 51], [0, 60, 52], [0, 20, 90], [-5, 20, 52]):
        seg = torch.tensor(offsets, dtype=torch.int32), *case.seg[1:]
        p = plan.plan(*seg, 52)
        assert p[0] == -1
        o, g = torch.zeros(70, 60)[:52], torch.zeros(3, 4, 60)[:2]
        assert shrink.shrink(case.x, [case.a, case.a], *seg, case.scale, p).isnan().all()
        expand.expand(o, z, case.bt, *seg, p)
        dz = backward.backward(g, z, o.nan_to_num(), case.bt, *seg, case.scale, p)
        assert o.isnan().all() and g.isnan().all() and dz.isnan().all()
        assert not o._base[52:].any() and not g._base[2:].any()


def stale_plan():
    """The plan of another batch of the same sizes makes every kernel write NaN to rows that are not as it says, what is right
    to the others, and NaN to all gradients; what is no plan makes it write NaN everywhere. And nothing else."""
    case = make_case([20, 32, 0, 12], [1, 0, 2, 0], [4, 4, 4], k=50, n=60)
    p = plan.plan(*case.seg, 64)
    z, up = shrink.shrink(case.x, [case.a] * 2, *case.seg, case.scale, p), torch.zeros(64, 60)
    expand.expand(up, z[0], case.bt, *case.seg, p)
    v = torch.randn(64, 60)
    back = shrink.shrink(v, [case.bt], *case.seg, case.scale, p)[0]
    rank = case.rank.tolist()
    for lengths, slots, ranks, right in (
        ([32, 20, 0, 12], [1, 0, 2, 0], rank, 12), ([0, 0, 64, 0], [1, 0, 2, 0], rank, 0),
        ([1, 63, 0, 0], [1, 0, 2, 0], rank, 0), ([20, 32, 0, 12], [0, 1, 2, 0], rank, 12),
        ([20, 32, 0, 12], [1, 0, 2, -1], rank, 52), ([20, 32, 12, 0], [1, 0, 2, 0], rank, 52),
        ([20, 32, 0, 12], [1, 0, 2, 0], [4, 0, 4], 64),
    ):  # fmt: skip
        other = make_case(lengths, slots, ranks, stored=4, k=50, n=60)
        for stale, wanted in ((plan.plan(*other.seg, 64), right), (torch.zeros_like(p), 0)):
            o, g = torch.zeros(80, 60)[:64], torch.zeros(4, 4, 60)[:3]
            found = shrink.shrink(case.x, [case.a] * 2, *case.seg, case.scale, stale)
            expand.expand(o, z[0], case.bt, *case.seg, stale)
            dz = backward.backward(g, z[0], v, case.bt, *case.seg, case.scale, stale)
            for got, want in ((found[0], z[0]), (found[1], z[1]), (o, up), (dz, back)):
                assert ((got == want).all(1) | got.isnan().all(1)).all() and (got == want).all(1).sum() == wanted
            assert g.isnan().all() and not o._base[64:].any() and not g._base[3:].any()
    p = plan.plan(*case.seg, 64)
    seg = *case.seg[:2], torch.tensor([3, 1, 4], dtype=torch.int32)  # another rank of a slot in use: the plan is the same
    assert not shrink.shrink(case.x, [case.a], *seg, case.scale, p).isnan().any()


def one_gemm():
    """A layer's product with expand inside: what a GEMM and an expand give, where tiles hold rows of several segments."""
    small = [gemm.Tile(32, 32, 16, 4, 2, parts, 2) for parts in (1, 2, 4)]
    found = gemms.measure_gemm("cpu", Settings(rounds=1, warmup=0), lambda *_: None, True, small)
    assert not found["dropped"] and len(found["rows"]) == 2 * (2 + 2 * len(small)), found["dropped"]
    half, lengths = torch.bfloat16, [5, 40, 0, 3]
    case = make_case(lengths, [1, 0, 1, -1], [3, 7], stored=9, k=64, n=96, dtype=half, factor_dtype=half)
    z = torch.randn(48, 9)
    off, slots, rank = case.seg
    clean = gemm.gemm(case.x, case.w, z, case.bt, *case.seg, small[0])
    bt = case.bt.clone()
    bt[0], bt[1, 7:] = float("nan"), float("nan")  # a slot that is ill, and ranks that the other does not use
    ill = gemm.gemm(case.x, case.w, z, bt, *case.seg, small[0])
    assert ill[5:45].isnan().all() and torch.equal(ill[:5], clean[:5]) and torch.equal(ill[45:], clean[45:])
    for bad in (2, -2):
        lost = gemm.gemm(case.x, case.w, z, case.bt, off, slots.masked_fill(slots == 0, bad), rank, small[0])
        assert lost[5:45].isnan().all() and torch.equal(lost[:5], clean[:5]) and torch.equal(lost[45:], clean[45:])


def a_step():
    """A step of decoding by these kernels gives what transformers' layers give; a row's bits in other company, a NaN in it."""
    import tiny
    import tiny_bank

    from tmem.adapters import token
    from tmem.agent.steps import Spots, Steps

    for family, kinds in (("qwen3", {}), ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"]})):
        network = tiny.model(family, num_hidden_layers=2, **kinds)
        bank = tiny_bank.bank_of(network)
        tiny_bank.fill(bank, bank.alloc(), bank.alloc(rank=2))
        column, found = torch.tensor([300, 3, 0, 30]), []
        seen = torch.arange(512) <= column[:, None]
        for few, slots in ((True, [0, -1, -1, 1]), (False, [0, -1, -1, 1]), (True, [0, 1, -1, -1])):
            with torch.inference_mode():
                step = Steps(network, bank, 4, 512)
                step.few = few
                step.cache.memory.normal_(generator=torch.Generator().manual_seed(1))
                if len(found) == 2:
                    step.cache.memory[:, :, 1] = NAN
                found.append(step(Spots(torch.tensor([5, 6, 0, 9]), column + 1, column, slots, seen, 512)).clone())
        assert token.known(network)
        assert_close("logits", found[0], found[1].double(), 1e-5)
        assert torch.equal(found[2][[0, 2]], found[0][[0, 2]]) and found[2][1].isnan().all()


def an_update():
    """Steps of an online update by these kernels, recorded with nobody's input and replayed, each with a plan made anew, give
    the bits of those launched one by one."""
    from dataclasses import replace

    from tape import recorded
    from tiny import pairs
    from tiny_agent import CONFIG, agent_of

    from tmem.adapters.attach import Route
    from tmem.agent import captured_update
    from tmem.agent.learn import learn

    class Planned(Route):
        def _of(self, off, slot, rows, filled):
            made = super()._of(off, slot, rows, filled)
            return made._replace(plan=torch.ops.tmem.lora_plan(off, slot, self.bank.rank, rows))

    adapter = replace(CONFIG.adapter, last_layers=1, targets=("gate_proj", "up_proj"))
    config = replace(CONFIG, adapter=adapter, learn=replace(CONFIG.learn, epochs=1))
    captured_update.Route, captured_update.recorder = Planned, lambda device: recorded
    found = []
    for fixed in (False, True):
        agent = agent_of(config=config, num_hidden_layers=2)
        agent.bank.reads_once = True
        _, first, _, last = (agent.bank.alloc() for _ in range(4))
        for jobs in ([(first, pairs(1, "a")), (last, pairs(1, "b"))], [(last, pairs(1, "c")), (first, pairs(1, "d"))]):
            learned = learn(agent.model, agent.bank, jobs, agent.chat, config.learn, fixed=fixed)
            assert all(one.kept and one.loss_after < one.loss_before for one in learned)
        found.append(agent.bank.param)
    assert vars(agent.bank)["_update_steps"].kept and torch.equal(*found) and not found[1][[0, 2]].any()


ALL = (
    plans, sixteen_bits, steps_in_gram, small_operands, bits_of_halves, large_ranks, infinite_operands, rounds_once,
    lost_slots, bad_offsets, stale_plan, one_gemm, a_step, an_update,
)  # fmt: skip
