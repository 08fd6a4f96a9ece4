"""Adapters over frozen modules that are no plain nn.Linear: the same as over the dense weight that they compute with."""

import pytest
import torch
import torch.nn.functional as F
from tiny import model
from tiny_bank import IDS, bank_of, fill, logits
from torch import nn

from tmem.adapters.attach import find_sites
from tmem.models.bases import weight_of
from tmem.testing import assert_close


class Eighths(nn.Module):
    """A quantised layer such as one of a library: whole eighths in int8, which it multiplies in its own way."""

    def __init__(self, linear, view=False):
        super().__init__()
        self.in_features, self.out_features, self.view = linear.in_features, linear.out_features, view
        self.register_buffer("packed", (8 * linear.weight.detach()).round().clamp(-127, 127).to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        y = F.linear(x, self.packed.to(x.dtype) / 8, self.bias)
        return y[...] if self.view else y


def quantised(network, kind):
    """Every linear layer of the decoder in eighths; the dense model that computes the same."""
    for name, module in list(network.model.named_modules()):
        if type(module) is nn.Linear:
            module.weight.data = (8 * module.weight.data).round().clamp(-127, 127) / 8
            parent, _, last = name.rpartition(".")
            if kind != "dense":
                setattr(network.model.get_submodule(parent), last, Eighths(module, view=kind == "view"))
    return network


@pytest.mark.parametrize("train_a", [False, True])
@pytest.mark.parametrize("kind", ["module", "view"])
@pytest.mark.parametrize("init", ["sigma", "random"])
def test_values_and_gradients_are_those_over_the_dense_weight(kind, init, train_a):
    found = {}
    for way in ("dense", kind):
        torch.manual_seed(0)
        network = quantised(model(), way)
        network.requires_grad_(False)
        first = network.get_input_embeddings().weight.requires_grad_(True)
        bank = bank_of(network, init=init, train_a=train_a)
        a, b = bank.alloc(), bank.alloc(rank=2)
        fill(bank, a, b)
        with torch.no_grad(), bank.route([a, -1, b], learn=False):
            still = logits(network, IDS)
        with bank.route([a, -1, b]):
            out = logits(network, IDS)
            out.square().mean().backward()
        found[way] = [still, out.detach(), bank.grad.clone(), first.grad, torch.stack([f.norm() for f in bank.factors])]
        assert all(site.plain == (way == "dense") for site in bank.sites)
        bank.detach()
        assert torch.equal(logits(network, IDS), logits(quantised(model(), way), IDS))
    for name, want, got in zip(("logits", "logits under grad", "gradient", "dx", "A"), *found.values()):
        assert want.any()
        assert_close(name, got, want, 2e-6)


def test_a_route_that_does_not_learn_gives_the_gradient_of_the_input_alone():
    network = quantised(model(), "module")
    network.requires_grad_(False)
    first = network.get_input_embeddings().weight.requires_grad_(True)
    bank = bank_of(network)
    slot = bank.alloc()
    fill(bank, slot)
    with bank.route([slot] * 3, learn=False):
        logits(network, IDS).square().mean().backward()
    assert first.grad.any() and not bank.grad.any()


def test_the_weight_of_a_module_is_what_it_computes_with():
    layer = Eighths(nn.Linear(12, 7)).double()
    assert torch.equal(weight_of(layer, torch.float64), layer.packed.double() / 8)


class Wider(Eighths):
    def forward(self, x):
        return F.pad(super().forward(x), (0, 1))


class Deaf(Eighths):
    def forward(self, x):
        return super().forward(x.detach())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda layer: Wider(layer), r"made \[1, 65\], expected \[1, 64\]"),
        (lambda layer: Deaf(layer), "the gradient of its input, cannot be had"),
        (lambda layer: nn.Sequential(layer), "in_features and out_features"),
        (lambda layer: nn.utils.parametrizations.weight_norm(layer.requires_grad_()), "must be frozen"),
    ],
)
def test_modules_that_do_not_compute_like_a_frozen_linear_layer_are_refused(change, words):
    network = model()
    network.model.layers[1].self_attn.q_proj = change(network.model.layers[1].self_attn.q_proj)
    with pytest.raises(ValueError, match=rf"layers\.1\.self_attn\.q_proj is a .*{words}"):
        find_sites(network, ("q_proj",), None)
