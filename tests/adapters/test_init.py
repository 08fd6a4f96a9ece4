"""Subspaces of the adapters: what each init is, that Δ = 0 under all of them, the cache, and renewal."""

from dataclasses import replace

import pytest
import torch
from tiny import FAMILIES, Letters, model
from torch import nn

from tmem.adapters import init
from tmem.adapters.bank import AdapterBank
from tmem.agent.config import agent_config
from tmem.agent.loop import Agent
from tmem.testing import assert_close

IDS = torch.randint(1, 160, (3, 7), generator=torch.Generator().manual_seed(0))
TEXTS = [torch.randint(1, 160, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (30, 1, 12)]
RANK = 4


@pytest.fixture
def weights():
    return [torch.randn(40, 30), torch.randn(20, 64), torch.randn(40, 30).bfloat16()]


def test_the_formulas(weights):
    """Against LAPACK: A Aᵀ and the span of A's rows, for every init made of the weights."""
    made = {name: init.make_a(weights, RANK, name) for name in init.OF_WEIGHTS}
    for i, w in enumerate(weights):
        _, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
        s, vh = s[:RANK], vh[:RANK]
        lengths = {"sigma": s, "none": torch.ones(RANK), "sqrt": s.sqrt(), "unit_fro": s / s.norm()}
        for name, length in lengths.items():
            a = made[name][i]
            assert a.shape == (RANK, w.shape[1]) and a.dtype == torch.float32
            assert_close(name, (a.double() @ vh.T).abs(), torch.diag(length.double()), 1e-4)
            assert_close(f"{name} Gram", a @ a.T, torch.diag(length**2), 1e-4)


def test_the_drawn_ones(weights):
    for name in ("random", "orthogonal"):
        one, same, other = (init.make_a(weights, RANK, name, seed) for seed in (0, 0, 1))
        assert all(torch.equal(a, b) for a, b in zip(one, same))
        assert not any(torch.equal(a, b) for a, b in zip(one, other))
    for a in init.make_a(weights, RANK, "orthogonal"):
        assert_close("A Aᵀ", a @ a.T, torch.eye(RANK), 1e-5)
    for a, w in zip(init.make_a(weights, RANK, "random"), weights):
        assert 0.9 < a.abs().max() * w.shape[1] ** 0.5 <= 1
    before = torch.get_rng_state()
    init.make_a(weights, RANK, "orthogonal")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", init.INITS)
def test_a_new_slot_changes_nothing(name):
    """B = 0: under a fresh slot the model's numbers are the model's."""
    network = model()
    plain = network(input_ids=IDS).logits
    bank = AdapterBank(network, 2, RANK, init=name, texts=TEXTS)
    slot = bank.alloc()
    with bank.route([slot, -1, slot], learn=False):
        routed = network(input_ids=IDS).logits
    assert_close("Δ = 0", routed, plain, 1e-6)
    assert bank.delta_norm(slot) == 0 and all(float(site.a.abs().max()) > 0 for site in bank.sites)
    assert all(not site.bt.any() for site in bank.sites)


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_follows_what_the_layers_read(family):
    """Rows are the top right-singular directions of the recorded inputs, first tokens left out."""
    network = model(family)
    bank = AdapterBank(network, 1, RANK, init="activation", texts=TEXTS)
    bank.detach()
    inputs = init.record_inputs(network, [site.module for site in bank.sites], TEXTS)
    assert all(len(x) == 29 + 11 for x in inputs)
    for site, x in zip(bank.sites, inputs):
        vh = torch.linalg.svd(x.double(), full_matrices=False)[2][:RANK]
        assert_close(site.name, site.a[0].double().T @ site.a[0].double(), vh.T @ vh, 1e-3)
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_the_agent_brings_texts_for_activation():
    config = agent_config()
    config = replace(config, adapter=replace(config.adapter, init="activation"))
    bank = Agent.build(model(), Letters(), config, 1).bank
    assert bank.init == "activation" and len(bank.texts) > 5


def read(tokens, width):
    return {"init": "activation", "inputs": [torch.ones(tokens, k) for k in (30, width, 30)]}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"init": "pissa"}, "init: expected one of sigma, none, sqrt, unit_fro, random, orthogonal, activation, got 'pissa'"),
        ({"rank": 21}, r"rank: expected 1..20 for a weight of shape \(20, 64\), got 21"),
        ({"init": "activation"}, "activation needs what the layers read; pass texts"),
        (read(3, 64), r"at least 4 tokens, got \[3, 30\]"),
        (read(9, 63), r"\[tokens, 64\] .* got \[9, 63\]"),
    ],
)  # fmt: skip
def test_bad_input(weights, change, words):
    with pytest.raises(ValueError, match=words):
        init.make_a(weights, **{"rank": RANK, **change})


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """Every size is worth a file, in a folder of the test's own; gives the calls of batched_rsvd."""
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path))
    monkeypatch.setattr(init, "_WORTH", 1)
    calls, real = [], init.batched_rsvd
    monkeypatch.setattr(init, "batched_rsvd", lambda *args, **options: calls.append(args) or real(*args, **options))
    return calls


def test_decompositions_are_kept(weights, cached, tmp_path):
    first = init.make_a(weights, RANK)
    again = init.make_a(weights, RANK)
    assert len(cached) == 1 and all(torch.equal(a, b) for a, b in zip(first, again))
    init.make_a(weights, RANK, "sqrt")  # of the same decompositions
    assert len(cached) == 1 and len(list((tmp_path / "svd").iterdir())) == 1
    weights[2][0, 0] += 1  # θ0 has moved
    moved = init.make_a(weights, RANK)
    assert len(cached) == 2 and not torch.equal(moved[2], first[2]) and torch.equal(moved[1], first[1])
    for options in ({"rank": 3}, {"seed": 1}):
        init.make_a(weights, **{"rank": RANK, **options})
    assert len(cached) == 4
    init.make_a(weights, RANK, cache=False)
    assert len(cached) == 5 and len(list((tmp_path / "svd").iterdir())) == 4


def test_small_models_leave_no_files(weights, cached, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path))
    init.make_a(weights, RANK)
    assert not any(tmp_path.iterdir())


def test_a_damaged_file_is_made_anew(weights, cached, tmp_path):
    first = init.make_a(weights, RANK)
    (file,) = (tmp_path / "svd").iterdir()
    file.write_bytes(file.read_bytes()[:50])
    with pytest.warns(UserWarning, match=f"{file.name} is damaged"):
        again = init.make_a(weights, RANK)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    init.make_a(weights, RANK)
    assert len(cached) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(weights, cached, tmp_path):
    (tmp_path / "svd").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not be written .* set TMEM_CACHE"):
        assert len(init.make_a(weights, RANK)) == 3


def test_renew_follows_the_model(tmp_path):
    network = model()
    bank = AdapterBank(network, 2, RANK)
    slot = bank.alloc()
    old = bank.snapshot(slot)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with pytest.raises(RuntimeError, match="renew: 1 slots are in use"):
        bank.renew()
    bank.free(slot)
    where = [site.a.data_ptr() for site in bank.sites]
    bank.renew()
    assert [site.a.data_ptr() for site in bank.sites] == where  # recorded graphs read there
    bank.detach()
    fresh = AdapterBank(network, 2, RANK)
    assert bank.subspace == fresh.subspace != old.subspace
    assert all(torch.equal(mine.a, new.a) for mine, new in zip(bank.sites, fresh.sites))
    slot = fresh.alloc()
    with pytest.raises(ValueError, match="belongs to subspace"):
        fresh.restore(slot, old)


def test_renewed_factors_reach_slots_that_own_theirs():
    network = model()
    bank = AdapterBank(network, 2, RANK, init="none", train_a=True)
    nn.init.normal_(network.model.layers[0].mlp.up_proj.weight)
    bank.renew()
    slot = bank.alloc()
    want = init.make_a([site.module.weight for site in bank.sites], RANK, "none")
    assert all(torch.equal(site.a[slot], a) for site, a in zip(bank.sites, want))
