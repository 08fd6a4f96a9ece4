"""What the ops promise of modes and arguments: autocast, derivatives, memory that is shared, objects that are no tensors."""

import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from test_registration import SERVED, arguments
from test_token import arguments_of_a_token
from tiny import Letters, model, pairs
from tiny_agent import LEARN
from torch.autograd import forward_ad

from tmem import ops
from tmem.adapters.bank import AdapterBank
from tmem.agent.decode import decode
from tmem.agent.learn import learn
from tmem.models.attention import _Short
from tmem.models.chat import Chat
from tmem.models.masks import bias, causal
from tmem.ops import _memory
from tmem.testing import TOLERANCES, assert_close, make_case

pytestmark = pytest.mark.usefixtures("poison")
BF16 = torch.bfloat16
HALVES = (BF16, torch.float16)


def copies(given):
    return [[t.clone() for t in a] if isinstance(a, list) else a.clone() if isinstance(a, torch.Tensor) else a for a in given]


def given_to(name, dtype=torch.float32):
    """Valid arguments of any op, in their order."""
    return arguments_of_a_token(name, dtype) if name in ops.TOKEN_PARTS else arguments(name, dtype)


ALL = (*SERVED, *ops.TOKEN_PARTS)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


# --- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("public", [True, False], ids=["public", "raw"])
def test_linear_under_autocast_is_that_of_16_bits(public, half):
    """As torch.nn.Linear under autocast: y in 16 bits, and gradients in the dtypes of the leaves. Nested and disabled too."""
    case = make_case([40, 24], [1, 0], [8, 5], k=64, n=2048)
    leaves = [t.requires_grad_() for t in (case.x, case.w, case.bias, case.a, case.bt)]
    low = [t.detach().to(half).requires_grad_() if i < 3 else t.detach().clone().requires_grad_() for i, t in enumerate(leaves)]
    call = ops.lora_linear if public else lambda *given: torch.ops.tmem.lora_linear(*given)[0]
    plain, want = call(*case.linear), call(*low, *case.seg, case.scale)
    with torch.autocast("cpu", half):
        got = call(*case.linear)
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(call(*case.linear), plain)
            with torch.autocast("cpu", half):
                assert torch.equal(call(*case.linear), want)
        got.square().mean().backward()  # backward inside, which torch.autocast would turn to 16 bits as well
    want.square().mean().backward()
    assert got.dtype == half and torch.equal(got, want)
    assert_close("y", got, plain, 2 * TOLERANCES[half])
    for leaf, same in zip(leaves, low):
        assert leaf.grad.dtype == leaf.dtype and torch.equal(leaf.grad, same.grad.to(leaf.dtype))
    double = make_case([4], [0], [2], dtype=torch.float64)
    wide = call(*double.linear)
    with torch.autocast("cpu", half):
        assert torch.equal(call(*double.linear), wide) and wide.dtype == torch.float64


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_backward_under_autocast_keeps_the_dtypes_of_forward(half):
    case = make_case([5, 7], [1, 0], [8, 5], k=64, n=200)
    leaves = [t.requires_grad_() for t in (case.x, case.w, case.a, case.bt)]
    y = ops.lora_linear(*case.linear)
    want = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    with torch.autocast("cpu", half):
        got = torch.autograd.grad(y.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(got, want))


ROWS = {  # where activations are
    "lora_shrink": 0, "lora_shrink_multi": 0, "lora_gram_": 2, "lora_gram": 1, "lora_gram_step_": 6, "lora_backward_": 2,
}  # fmt: skip


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", sorted(set(ALL) - {"lora_linear"}))
def test_other_ops_under_autocast(name, dtype, half):
    """Activations whose sums are fp32 are cast, as those of a linear layer are; all else, and what is fp64, stays."""
    for call in (getattr(ops, name), getattr(torch.ops.tmem, name)):
        given = copies(given_to(name, dtype))
        again = copies(given)
        if name in ROWS and dtype != torch.float64:
            given[ROWS[name]] = given[ROWS[name]].to(half)
        want = call(*given)
        with torch.autocast("cpu", half):
            got = call(*again)
        assert type(got) is type(want)
        for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, want))):
            assert one is None or (one.dtype == other.dtype and torch.equal(one, other))
        written = [(a, b) for a, b in zip(again, given) if isinstance(a, torch.Tensor) and a.dtype == b.dtype]
        assert all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in written)


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_a_layer_made_of_ops_under_autocast(half):
    """y comes from torch in 16 bits and x does not: the ops between take both, and give what lora_linear gives."""
    case = make_case([1, 1, 1], [1, 0, -1], [8, 5], k=64, n=200)
    with torch.autocast("cpu", half):
        want = ops.lora_linear(*case.linear)
        y, decoded = (torch.nn.functional.linear(case.x, case.w, case.bias) for _ in range(2))
        z = ops.lora_shrink(case.x, case.a, *case.seg, case.scale)
        ops.lora_expand_(y, z, case.bt, *case.seg)
        for call in (ops.lora_decode_, torch.ops.tmem.lora_decode_):
            again = decoded.clone()
            call(again, case.x, *case.decode)
            assert torch.equal(again, want)
    assert torch.equal(y, want) and y.dtype == half
    with pytest.raises(TypeError, match="lora_decode_: x must be bfloat16, got float32"):
        ops.lora_decode_(decoded.bfloat16(), case.x, *case.decode)
    with torch.autocast("cpu", half), pytest.raises(TypeError, match="lora_decode_: x must be float64, got float32"):
        ops.lora_decode_(decoded.double(), case.x, *case.decode)


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_compiled_under_autocast(half):
    case = make_case([5, 0, 3, 9], [2, 0, -1, 1], [3, 8, 5])
    case.bt.requires_grad_()

    def loss(*given):
        with torch.autocast("cpu", half):
            return ops.lora_linear(*given).float().square().mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    want, got = loss(*case.linear), compiled(*case.linear)
    assert torch.equal(got, want)
    assert torch.equal(*(torch.autograd.grad(y, case.bt)[0] for y in (got, want)))


# --- derivatives -----------------------------------------------------------------------------------------------------

ONCE = "only first derivatives are defined"


@pytest.mark.parametrize("needed", ["x bt", "x w bias a bt", "a bt", "w bt", "x w", "x a"])
@pytest.mark.parametrize("loss", [torch.sum, lambda y: y.square().sum()], ids=["linear", "square"])
def test_second_derivatives_are_refused(needed, loss):
    """Wherever the true second derivative is not zero it is refused, through leaves and through what was computed."""
    case, needed = make_case([5, 3], [1, 0], [4, 4], k=6, n=7), needed.split()
    leaves = {name: getattr(case, name).detach().clone().requires_grad_() for name in needed}
    for name, leaf in leaves.items():
        setattr(case, name, leaf * 1)
    y = ops.lora_linear(*case.linear)
    plain = torch.autograd.grad(loss(y), leaves.values(), retain_graph=True)
    first = torch.autograd.grad(loss(y), leaves.values(), create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, first)), "first derivatives are right under create_graph"

    def dense(*tensors):
        from tmem.testing import dense as formula

        given = {**vars(case), **dict(zip(needed, tensors))}
        return loss(formula(type(case)(**given), torch.float64)["y"])

    wide = [leaf.detach().double().nan_to_num().requires_grad_() for leaf in leaves.values()]
    true = torch.autograd.grad(dense(*wide), wide, create_graph=True)
    for gradient, exact in zip(first, true):
        for leaf, wide_leaf in zip(leaves.values(), wide):
            if not exact.requires_grad:
                continue
            (second,) = torch.autograd.grad(exact.square().sum(), wide_leaf, retain_graph=True, allow_unused=True)
            if second is None or not second.any():
                continue
            for more in (0, leaf.nan_to_num().sum()):  # alone, and beside a term that would hide what is missing
                with pytest.raises(RuntimeError, match=f"lora_linear: {ONCE}"):
                    torch.autograd.grad(gradient.square().sum() + more, leaf, retain_graph=True, allow_unused=True)


def test_second_derivatives_of_short_attention_are_refused():
    leaves = [torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3)]
    out = _Short.apply(*(leaf * 1 for leaf in leaves), bias(causal(5), torch.float32), 0.5)
    for gradient in torch.autograd.grad(out.sum(), leaves, create_graph=True):
        for leaf in leaves[:2]:
            with pytest.raises(RuntimeError, match=f"attention: {ONCE}"):
                torch.autograd.grad(gradient.square().sum() + leaf.sum(), leaf, retain_graph=True)


@pytest.mark.parametrize("name", ALL)
def test_forward_mode_is_refused(name):
    """By forward_ad and by torch.func, whose tangents would be dropped; so are grad, vmap and hessian."""
    given = copies(given_to(name))
    at = next((i for i, x in enumerate(given) if isinstance(x, torch.Tensor) and x.is_floating_point()), None)
    if at is None:
        return
    before = given[at].clone()

    def call(x):
        return getattr(ops, name)(*given[:at], x, *given[at + 1 :])

    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=f"^{name}: .* carries a forward-mode tangent"):
        call(forward_ad.make_dual(given[at], torch.ones_like(given[at])))
    for transform in (
        lambda: torch.func.jvp(call, (given[at],), (torch.ones_like(given[at]),)), lambda: torch.func.grad(call)(given[at]),
        lambda: torch.func.hessian(call)(given[at]), lambda: torch.func.vmap(call)(given[at][None]),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=f"^{name}: .* is under a transform of torch.func"):
            transform()
    assert torch.equal(given[at], before)


# --- a model under a route -------------------------------------------------------------------------------------------

IDS = torch.randint(1, 160, (3, 7), generator=torch.Generator().manual_seed(0))


def routed(**fast_paths):
    """A tiny model with a bank of two filled slots, the loss of a batch under its route, and the bank."""
    network = model()
    bank = AdapterBank(network, 3, 4, targets=("q_proj", "k_proj", "v_proj", "down_proj"))
    slots = [bank.alloc(), -1, bank.alloc()]
    for site in bank.sites:
        site.bt.copy_(0.1 * torch.randn(site.bt.shape))
    for name, value in fast_paths.items():
        setattr(bank, name, value)

    def loss(ids=IDS, learn=True):
        with bank.route(slots, learn=learn):
            return network(input_ids=ids).logits.float().square().mean()

    return loss, bank


@pytest.mark.parametrize("fast", [{}, {"reads_once": True}, {"decodes_rows": True}], ids=str)
def test_a_routed_model_under_autocast(fast):
    """With and without gradients, forward and backward inside or outside of it: what it is without, to bf16's roundings."""
    loss, bank = routed(**fast)
    want = loss()
    want.backward()
    gradient = bank.grad.clone()
    for inside in (True, False):
        bank.grad.zero_()
        with torch.autocast("cpu", BF16):
            got = loss()
            if inside:
                got.backward()
        if not inside:
            got.backward()
        assert got != want and abs(got - want) < 0.02 * want
        assert_close("dB", bank.grad, gradient, 0.1)
    with torch.no_grad():
        for ids in (IDS, IDS[:, :1]):
            plain = loss(ids, learn=False)
            with torch.autocast("cpu", BF16):
                low = loss(ids, learn=False)
                with torch.autocast("cpu", enabled=False):
                    assert torch.equal(loss(ids, learn=False), plain)
            assert low != plain and abs(low - plain) < 0.02 * plain


MODES = {
    "autocast": lambda: torch.autocast("cpu", BF16), "fp16": lambda: torch.autocast("cpu", torch.float16),
    "no cache": lambda: torch.autocast("cpu", BF16, cache_enabled=False),
    "inference": torch.inference_mode, "no_grad": torch.no_grad, "anomaly": torch.autograd.detect_anomaly,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fixed", [False, True])
def test_learning_and_decoding_in_any_mode(mode, dtype, fixed):
    """As in none, under autocast to its roundings: a caller's mode does not take the gradients away."""

    def told(context):
        network = model(dtype=dtype)
        bank = AdapterBank(network, 2, 4)
        slot = bank.alloc()
        with context:
            learned = learn(network, bank, [(slot, pairs(4))], Chat(Letters()), replace(LEARN, lr=0.01, epochs=3))[0]
            found = decode(network, [[5, 6, 7], [8]], bank=bank, slots=[slot, -1], end=0, max_new=6, fixed=fixed)
        return learned, [g.logprobs for g in found]

    (want, logprobs), (got, others) = told(nullcontext()), told(MODES[mode]())
    assert got.kept and got.loss_after < 0.7 * got.loss_before
    if mode in ("autocast", "no cache", "fp16") and dtype != MODES[mode]().fast_dtype:
        assert got != want and abs(got.loss_after - want.loss_after) < 0.02 * want.loss_after
        assert abs(others[1][0] - logprobs[1][0]) < 0.05
    else:
        assert got == want and others == logprobs


def test_the_default_dtype_is_not_what_is_computed_in():
    network = model()
    found = []
    for dtype in (torch.float32, torch.float64, BF16):
        bank = AdapterBank(network, 1, 4)
        torch.set_default_dtype(dtype)
        try:
            learned = learn(network, bank, [(bank.alloc(), pairs(4))], Chat(Letters()), replace(LEARN, epochs=2))
            found.append((learned, bank.param.tolist(), decode(network, [[5, 6]], bank=bank, slots=[0], end=0, max_new=4)))
        finally:
            torch.set_default_dtype(torch.float32)
            bank.detach()
    assert found[1:] == found[:1] * 2


@pytest.mark.parametrize(
    "weights, dtype", [(torch.float64, torch.float32), (torch.float32, torch.float64), (torch.float16, torch.float64)], ids=str
)
def test_a_bank_that_its_model_cannot_use_is_refused(weights, dtype):
    network = model(dtype=weights)
    with pytest.raises(ValueError, match=f"^AdapterBank: dtype: expected .*, got {str(dtype)[6:]} under {str(weights)[6:]}"):
        AdapterBank(network, 1, 4, dtype=dtype)
    assert not any("forward" in vars(m) for m in network.modules())


@pytest.mark.parametrize("learn", [True, False])
def test_a_tangent_through_a_bank_is_refused(learn):
    _, bank = routed()
    h = bank.model.get_input_embeddings()(IDS)
    with torch.set_grad_enabled(learn), forward_ad.dual_level(), bank.route([0, -1, 1], learn=learn):
        with pytest.raises(RuntimeError, match="route: the layer's input carries a forward-mode tangent"):
            bank.model(inputs_embeds=forward_ad.make_dual(h, torch.ones_like(h)))


def test_second_derivatives_through_a_bank_are_refused():
    """Its rows are no leaf, so what a second pass would miss is theirs; the first derivatives stay right."""
    loss, bank = routed()
    h = bank.model.get_input_embeddings()(IDS).detach().requires_grad_()

    def by_embedding():
        with bank.route([0, -1, 1]):
            return bank.model(inputs_embeds=h).logits.square().mean()

    (plain,) = torch.autograd.grad(by_embedding(), h)
    (first,) = torch.autograd.grad(by_embedding(), h, create_graph=True)
    assert_close("first derivative", first, plain, 1e-5)
    penalty = first.square().sum()
    for second in (
        lambda: penalty.backward(retain_graph=True), lambda: torch.autograd.grad(penalty + h.sum(), h, retain_graph=True)
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=ONCE):
            second()


# --- memory ----------------------------------------------------------------------------------------------------------


def test_views_of_one_bank_that_interleave_do_not_overlap():
    """Site views of one matrix lie in each other's extent and share no byte; with one column more they would."""
    bank = torch.zeros(3, 2 * 4 * 64)
    one, other = bank[:, :256].view(3, 4, 64)[:, :, :40], bank[:, 256:].view(3, 4, 64)
    assert _memory.first_shared({"g": one}, {"v": other}) is None
    assert _memory.first_shared({"g": one}, {"v": bank[:, 200:240]}) == ("g", "v")
    assert _memory.first_shared({"g": one}, {"v": bank[:, 40:64]}) is None
    assert _memory.first_shared({"g": one, "h": one[1:2]}, {}) == ("h", "g")
    assert _memory.first_shared({"g": one.view(torch.int32)[:1]}, {"v": torch.zeros(0)}) is None
    for x, shared in (
        (torch.zeros(20).as_strided((3, 3), (2, 4)), True), (torch.zeros(20).as_strided((3, 3), (2, 3)), False),
        (torch.zeros(9).unfold(0, 5, 3), True), (torch.zeros(1).expand(5, 0), False), (torch.zeros(9).unfold(0, 3, 3), False),
    ):  # fmt: skip
        assert _memory.overlaps_itself(x) == shared == (len(set(_offsets(x))) < x.numel())


def _offsets(x):
    places = torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).reshape(-1, x.dim())
    return (places * torch.tensor(x.stride())).sum(1).tolist()


def test_a_list_that_holds_a_leaf_is_refused_before_the_first_row():
    plain, leaf = torch.arange(8.0).view(4, 2), torch.nn.Parameter(torch.ones(4, 3))
    before = plain.clone()
    with pytest.raises(ValueError, match=r"bank_copy_: matrices\[1\] .* must not require grad"):
        ops.bank_copy_([plain, leaf], ints(0), ints(1))
    with pytest.raises(ValueError, match=r"bank_copy_: matrices\[1\] is written in place and must not share memory with mat"):
        ops.bank_copy_([plain, plain[:, :1]], ints(0), ints(1))
    assert torch.equal(plain, before)
    with torch.no_grad():
        ops.bank_copy_([plain, leaf], ints(0), ints(1))
    assert torch.equal(plain[1], before[0])


def test_a_negated_view_is_refused_before_it_is_written():
    given = copies(arguments("bank_step_"))
    for i in range(4):
        spoilt = copies(given)
        kept = copies(spoilt)
        spoilt[i] = torch._neg_view(spoilt[i])
        with pytest.raises(ValueError, match="bank_step_: .* got a negated or conjugated view"):
            ops.bank_step_(*spoilt)
        assert all(torch.equal(a, b) for j, (a, b) in enumerate(zip(spoilt, kept)) if j != i)


def test_strides_of_dimensions_without_a_second_element_mean_nothing():
    z, v = torch.randn(5, 1), torch.randn(5, 7)
    seg = ints(0, 5), ints(0), ints(1)
    want = ops.lora_gram(z, v, *seg)
    for stride in (1, 2):
        g = torch.zeros(20).as_strided((1, 1, 7), (0, 0, stride))
        ops.lora_gram_(g, z, v, *seg)
        assert torch.equal(g, want)
    ops.lora_gram_(torch.zeros(3).as_strided((3, 0, 7), (0, 0, 0)), z[:, :0], v, ints(0, 5), ints(-1), ints(1, 1, 1))
    for x in (torch.arange(4.0).as_strided((4, 1), (1, 0)), torch.arange(4.0).as_strided((4, 1, 0), (0, 0, 0))):
        want = x.clone()
        want[1] = want[0]
        ops.bank_copy_([x], ints(0), ints(1))
        assert torch.equal(x, want)


def test_inference_mode():
    with torch.inference_mode():
        x = torch.arange(4.0).view(4, 1)
        ops.bank_copy_([x], ints(3), ints(0))
        assert x[0] == 3
    with pytest.raises(ValueError, match=r"bank_copy_: matrices\[0\] .* was made in inference mode"):
        ops.bank_copy_([x], ints(1), ints(0))
    assert x[0] == 3


# --- objects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_no_object_reaches_an_attribute_error(name):
    """Every argument in turn is None, a list, an array, a number, sparse, nested, quantised, of no dimension."""
    right = given_to(name)
    optional = {"attend": {5}, "lora_linear": {2}, "bank_step_": {2, 3}, "lora_gram_step_": {1, 2}, "lora_norm": {2}}
    for i, x in enumerate(right):
        tensor = x[0] if isinstance(x, list) else x
        wrong = [[1.0], {}, object(), "x", *([] if i in optional.get(name, ()) else [None])]
        if isinstance(tensor, torch.Tensor):
            wrong += [3, 0.5, tensor.numpy() if tensor.dtype != BF16 else 3, torch.zeros((), dtype=tensor.dtype)]
            wrong += [torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)])]
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            wrong += [tensor.to_sparse(), torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)]
        for one in wrong:
            for given in (one, [one]) if isinstance(x, list) else (one,):
                with pytest.raises((TypeError, ValueError), match=f"^{name}: [^\n]*$"):
                    getattr(ops, name)(*right[:i], given, *right[i + 1 :])


@pytest.mark.parametrize(
    "change",
    [
        {"matrices": m} for m in (None, 3, {}, [None], [torch.nested.as_nested_tensor([torch.ones(3, 3)])], [torch.zeros(())])
    ] + [{"compute": None}, {"workspace": None}, {"workspace": "x"}, {"rank": None}, {"seed": None}, {"iters": 0.5}],
    ids=lambda change: f"{next(iter(change))} {type(next(iter(change.values()))).__name__}",
)  # fmt: skip
def test_no_object_reaches_an_attribute_error_of_rsvd(change):
    with pytest.raises((TypeError, ValueError), match="^batched_rsvd: [^\n]*$"):
        ops.batched_rsvd(**{"matrices": [torch.randn(9, 5)], "rank": 2, **change})
    x = torch.randn(9, 5)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="batched_rsvd: .* carries a forward-mode tangent"):
        ops.batched_rsvd([forward_ad.make_dual(x, x)], 2)


def test_linear_without_columns():
    """K = 0 or N = 0: the bias alone, for real and for fake tensors."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for k, n in ((0, 5), (4, 0), (0, 0)):
        seg = ints(0, 6), ints(0), ints(2)
        shapes = (2, 3, k), (n, k), (n,), (1, 2, k), (1, 2, n)
        given = [*map(torch.ones, shapes), *seg, torch.ones(1)]
        y = ops.lora_linear(*(t.requires_grad_() if t.is_floating_point() and i < 5 else t for i, t in enumerate(given)))
        y.sum().backward()
        assert y.shape == (2, 3, n) and (y == 1).all() and given[0].grad.shape == (2, 3, k)
        with FakeTensorMode() as mode:
            fake = ops.lora_linear(*(mode.from_tensor(t) for t in given))
        assert fake.shape == y.shape


def test_an_unknown_set_of_instructions_is_one_sentence():
    env = {**os.environ, "TMEM_CPU": "sse9"}
    done = subprocess.run([sys.executable, "-m", "tmem", "info"], env=env, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "TMEM_CPU must name a set" in done.stderr and "sse9" in done.stderr
