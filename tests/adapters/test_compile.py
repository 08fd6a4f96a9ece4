"""torch.compile over an attached bank: one graph, compiled once, and what eager computes, for every route."""

import copy

import pytest
import torch
from tiny import FAMILIES, model
from tiny_bank import IDS, bank_of, fill, logits

from tmem.adapters import compiled as under_compile


def filled(network, **options):
    bank = bank_of(network, **options)
    a, b = bank.alloc(), bank.alloc(rank=2)
    fill(bank, a, b)
    return bank, a, b


def compiled(count=None):
    """A compiled forward pass that refuses graph breaks; `count` grows with every compilation."""

    def backend(graph, inputs):
        if count is not None:
            count.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    return torch.compile(lambda network, ids: network(input_ids=ids, use_cache=False).logits, fullgraph=True, backend=backend)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_graph_serves_every_route_and_none(family):
    network, count = model(family), []
    bank, a, b = filled(network)
    run = compiled(count)
    with torch.no_grad():
        for slots in ([a, -1, b], [b, b, a], [-1, -1, -1]):
            with bank.route(slots, learn=False):
                assert torch.equal(run(network, IDS), logits(network, IDS))
        assert torch.equal(run(network, IDS), logits(network, IDS))  # the model itself
    assert len(count) == 1


@pytest.mark.parametrize("train_a", [False, True])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_gradients_of_the_bank_and_the_weights_are_those_of_eager(train_a, trained):
    network, count = model(), []
    network.requires_grad_(trained)
    bank, a, b = filled(network, train_a=train_a)
    run, found = compiled(count), {}
    for way in ("eager", "compiled"):
        forward = logits if way == "eager" else run
        for slots in ([a, -1, b], [b, a, a]):
            with bank.route(slots):
                forward(network, IDS).square().mean().backward()
        found[way] = [bank.grad.clone(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]
        bank.zero_grad([a, b])
        network.zero_grad()
    assert len(count) == 1
    assert len(found["eager"]) == len(found["compiled"]) and found["eager"][0].any()
    for want, got in zip(found["eager"], found["compiled"]):
        assert torch.equal(want, got)


def test_a_route_that_does_not_learn_adds_nothing_and_gradients_pass_through_it():
    network = model()
    bank, a, b = filled(network)
    network.requires_grad_(False)
    run, found = compiled(), []
    for forward in (logits, run):
        first = network.get_input_embeddings().weight.requires_grad_(True)
        with bank.route([a, b, -1], learn=False):
            forward(network, IDS).square().mean().backward()
        found.append(first.grad.clone())
        first.grad = None
    assert torch.equal(*found) and not bank.grad.any()


def test_backward_after_the_block_finds_its_route_and_a_changed_slot_is_caught():
    network = model()
    bank, a, b = filled(network)
    run = compiled()
    with bank.route([a, a, b]):
        want = logits(network, IDS)
    want.sum().backward()
    expected = bank.grad.clone()
    bank.zero_grad([a, b])
    with bank.route([a, a, b]):
        loss = run(network, IDS).sum()
    with bank.route([b, b, a]):  # another, open while the first one's backward runs
        loss.backward()
    assert torch.equal(bank.grad, expected) and bank.grad.any()
    with bank.route([a, a, b]):
        loss = run(network, IDS).sum()
    bank.reset(a)
    with pytest.raises(RuntimeError, match="changed .* between forward and backward"):
        loss.backward()


def test_a_backward_whose_route_is_long_gone_is_refused(monkeypatch):
    monkeypatch.setattr(under_compile, "KEPT", 2)
    network = model()
    bank, a, b = filled(network)
    run = compiled()
    with bank.route([a, a, b]):
        loss = run(network, IDS).sum()
    for _ in range(3):
        with bank.route([a, a, b]):
            run(network, IDS)
    with pytest.raises(RuntimeError, match="run backward sooner"):
        loss.backward()


def test_a_copied_model_computes_with_its_own_bank():
    network = model()
    bank, a, _ = filled(network)
    other = copy.deepcopy(network)
    mine = other.model.layers[0].mlp.gate_proj.forward.args[0]
    assert mine is not bank
    mine.reset(a)
    run = compiled()
    with torch.no_grad(), bank.route([a] * 3, learn=False), mine.route([a] * 3, learn=False):
        assert torch.equal(run(other, IDS), logits(other, IDS))
        assert not torch.equal(run(other, IDS), run(network, IDS))


def test_the_op_by_itself_passes_torchs_own_checks():
    network = model()
    bank, a, b = filled(network)
    site = bank.sites[0]
    x = torch.randn(3, 5, site.module.in_features, requires_grad=True)
    arguments = x, site.module.weight, site.module.bias, bank.handle, bank.numbers[site.name]
    with bank.route([a, -1, b]):
        torch.library.opcheck(torch.ops.tmem.adapted_linear.default, arguments)
