"""A pass by pieces of layers is the pass of transformers' modules, in all that it gives; and who else has a part in a layer
keeps it."""

import contextlib

import pytest
import torch
from tiny import FAMILIES as TINY
from tiny import model

from tmem.adapters.bank import AdapterBank
from tmem.models import forward as fw
from tmem.models import pieces
from tmem.models.families import FAMILIES
from tmem.models.masks import Joined
from tmem.testing import assert_close

KNOWN = [*(family for family in TINY), "mistral+window", "qwen3+windows", "gemma3_text"]
IDS = torch.randint(3, 160, (5, 40), generator=torch.Generator().manual_seed(0))
AT = torch.arange(40)[None]


def network(family="llama", dtype=torch.float32):
    """A tiny model none of whose parameters is as it began."""
    made = model(family, dtype=dtype, initializer_range=0.1)
    with torch.no_grad():
        for i, (_, weight) in enumerate(p for p in made.named_parameters() if p[1].ndim == 1):
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i), dtype=dtype)
    return made


@pytest.fixture
def counted(monkeypatch):
    """Layers that ran by pieces, added up."""
    found, run = [], pieces.run
    monkeypatch.setattr(pieces, "run", lambda layer, *rest: [found.append(layer), run(layer, *rest)][1])
    return found


def computed(made, ids=IDS, mask=None):
    """The states after all layers, and of a weighted sum of them the gradients of the embeddings and of every parameter."""
    made.requires_grad_(True)
    hidden = fw.embed(made, ids).detach().requires_grad_()
    out = fw.layers(made, hidden, AT[:, : ids.shape[1]], mask, by_pieces=True)
    weights = torch.randn(out.shape[1:], generator=torch.Generator().manual_seed(1)).to(out.dtype)
    trained = {name: p for name, p in fw.parts(made).layers.named_parameters()}
    grads = torch.autograd.grad((out * weights).sum(), [hidden, *trained.values()])
    return {"out": out.detach(), **dict(zip(["hidden", *trained], grads))}


def by_modules(made, monkeypatch, **named):
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "serve", lambda *_: False)
        return computed(made, **named)


def test_known_families():
    known = {family for family, said in FAMILIES.items() if said.norms is not None}
    assert {name.partition("+")[0] for name in KNOWN} == known
    for family in ("granite", "olmo2", "phi3"):
        made = model(family)
        assert not pieces.known(made, fw.parts(made).layers)


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", KNOWN)
def test_states_and_gradients_are_as_near_as_those_of_the_modules(family, dtype, branches, counted, monkeypatch):
    """To the modules in fp64: the states, and the gradients of the embeddings and of every parameter."""
    made, wide = network(family, dtype), network(family, torch.float64)
    wide.load_state_dict({name: x.double() for name, x in made.state_dict().items()})
    mask = fw.Branches((torch.arange(40) // 20).expand(5, -1)) if branches else None
    exact, theirs = computed(wide, mask=mask), by_modules(made, monkeypatch, mask=mask)
    assert not counted
    ours = computed(made, mask=mask)
    assert len(counted) == 4

    def off(found):
        return torch.stack([(found[name].double() - x).norm() / x.norm() for name, x in exact.items()])

    more = off(ours) / off(theirs)
    assert (more < 2).all() and more.mean() < 1.1


def test_a_row_has_the_bits_that_it_has_alone(counted):
    for dtype in (torch.float32, torch.bfloat16):
        made = network("gemma3_text", dtype)
        together, alone = computed(made), computed(made, IDS[2:3])
        assert all(torch.equal(together[name][2], alone[name][0]) for name in ("out", "hidden"))
    assert len(counted) == 16


def test_adapters_run_inside_of_the_pieces(counted, monkeypatch):
    made = network()
    bank = AdapterBank(made, 2, 4)
    slots = [bank.alloc(), bank.alloc()]
    for site in bank.sites:
        site.bt.copy_(0.1 * torch.randn(site.bt.shape))
    found = []
    for ours in (True, False):
        bank.grad.zero_()
        with monkeypatch.context() as patch, bank.route([slots[0], slots[1], -1, slots[0], -1]):
            if not ours:
                patch.setattr(pieces, "serve", lambda *_: False)
            out = fw.layers(made, fw.embed(made, IDS), AT, None, by_pieces=True)
            out.square().sum().backward()
        found.append((out.detach(), bank.grad.clone()))
    assert len(counted) == 4
    for got, want in zip(*found):
        assert_close("a pass under a route", got, want, 2e-6)


def test_the_states_that_are_asked_for_are_those_of_all_and_so_are_the_gradients(counted):
    """Places of tokens in two slots, of a row without a slot and of one without places."""
    made = network()
    bank = AdapterBank(made, 2, 4)
    slots = [bank.alloc(), bank.alloc()]
    routed, counts = [slots[0], slots[1], -1, slots[0], slots[1]], [2, 0, 1, 3, 1]
    for site in bank.sites:
        site.bt.copy_(0.1 * torch.randn(site.bt.shape))
    places = torch.tensor([3, 39, 85, 120, 121, 159, 160, 0])  # the last fills the list up
    out_grad = torch.randn(len(places), 64)
    out_grad[-1] = 0.0

    def states(at, counts=counts):
        bank.grad.zero_()
        with bank.route(routed) as route:
            route.narrow(counts, len(places))
            out = fw.layers(made, fw.embed(made, IDS), AT, None, by_pieces=True, at=at)
            out = out if at is not None else out.flatten(0, 1)[places]
            (out * out_grad).sum().backward()
        return out.detach()[:-1], bank.grad.clone()

    want, got = states(None), states(places)
    for ours, theirs in zip(got, want):
        assert_close("states of places", ours, theirs, 2e-6)
    with pytest.raises(AssertionError):
        assert_close("tokens of another row's slot", states(places, [1, 1, 1, 3, 1])[0], want[0], 2e-6)
    assert len(counted) == 12


def test_places_without_adapters_for_them_are_refused():
    made = network()
    bank = AdapterBank(made, 1, 4)
    with bank.route([bank.alloc()] * len(IDS)), pytest.raises(ValueError, match="the model saw a batch of 3 rows, but 5 slots"):
        fw.layers(made, fw.embed(made, IDS), AT, None, by_pieces=True, at=torch.tensor([0, 1, 2]))


@contextlib.contextmanager
def checkpointed(made):
    made.gradient_checkpointing_enable()
    made.train()
    yield
    made.eval()


@contextlib.contextmanager
def compiling(made):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        yield


OTHERS = {
    "autocast": lambda made: torch.autocast("cpu", torch.bfloat16),
    "checkpoints": checkpointed,
    "torch.compile": compiling,
    "fp64": lambda made: contextlib.nullcontext(made.double()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_modules_run(name, counted):
    made = network()
    with OTHERS[name](made):
        out = fw.layers(made, fw.embed(made, IDS), AT, None, by_pieces=True)
    assert not counted and out.isfinite().all()


def test_what_asks_for_labels_goes_by_pieces_with_gradients_or_without(counted):
    """To the same bits in fp32. What reads a prompt does not."""
    made = network()
    fw.layers(made, fw.embed(made, IDS), AT, None)
    assert not counted
    with torch.enable_grad():
        want = fw.token_logits(made, IDS, [0, 4], [39, 7])
    with torch.no_grad():
        assert torch.equal(fw.token_logits(made, IDS, [0, 4], [39, 7]), want)
    assert len(counted) == 8


@pytest.mark.filterwarnings("ignore:Full backward hook")  # of a module that takes its input by name
@pytest.mark.parametrize("where", ["", "self_attn", "mlp", "mlp.act_fn", "input_layernorm", "post_attention_layernorm"])
@pytest.mark.parametrize("kind", ["hook", "pre-hook", "backward hook", "forward"])
def test_a_layer_in_which_somebody_else_has_a_part_is_called(kind, where, counted):
    """The other layers go by pieces."""
    made, seen = network(), []
    module = fw.parts(made).layers[1].get_submodule(where)
    if kind == "hook":
        module.register_forward_hook(lambda *_: seen.append(kind))
    elif kind == "pre-hook":
        module.register_forward_pre_hook(lambda *_: seen.append(kind))
    elif kind == "backward hook":
        module.register_full_backward_hook(lambda *_: seen.append(kind))
    else:
        module.forward = lambda *given, own=module.forward, **named: [seen.append(kind), own(*given, **named)][1]
    hidden = fw.embed(made, IDS).detach().requires_grad_()
    fw.layers(made, hidden, AT, None, by_pieces=True).sum().backward()
    assert seen == [kind] and len(counted) == 3


def test_a_norm_in_another_dtype_is_called(counted):
    made = network(dtype=torch.bfloat16)
    norm = fw.parts(made).layers[0].input_layernorm
    norm.weight.data = norm.weight.data.double()  # as a sum it would be too wide for what comes next
    with pytest.raises(RuntimeError, match="same dtype"):
        fw.layers(made, fw.embed(made, IDS), AT, None, by_pieces=True)
    assert not counted


def test_joined_rows_are_refused_where_no_op_serves_them():
    """torch's attention would take a mask of all rows."""
    seen = Joined.of([[0, 0, 1], [0, 1, 2]])
    with pytest.raises(ValueError, match="in passes by pieces alone; pad them to one length"):
        made = network()
        fw.layers(made, fw.embed(made, IDS[:1, :16]), AT[:, :16], seen)
