"""What every family can: trained, decoded at fixed addresses, in few bits; and what is refused. `tools/families.py` makes the
table of docs/models.md from the names of these tests."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, MORE, model
from tiny_bank import ALL, IDS, bank_of, fill, logits
from tiny_gguf import write
from torch import nn

from tmem.agent.decode import decode
from tmem.models import families, quantised
from tmem.models.bases import is_linear, weight_of
from tmem.models.gguf.config import config_of
from tmem.models.gguf.file import read
from tmem.models.quantised import quantise_
from tmem.rl.low_rank import SCALE, LowRank
from tmem.rl.policy import Replicated
from tmem.testing import assert_close

ROOT = Path(__file__).parents[2]
EVERY = [*FAMILIES, *MORE]
MIXTURES = [family for family in EVERY if families.FAMILIES[family.partition("+")[0]].experts]
DENSE = [family for family in EVERY if family not in MIXTURES]
TOLERANCE = {"int8": 1e-5}  # it multiplies by the scale after the product, the dense weight before
# Keys of a GGUF file that would be needed to state what a family can be.
WINDOW = {"attention.sliding_window": 24}
UNSTATED = {"qwen3+windows": WINDOW, "smollm3+windows": WINDOW, "qwen3_moe+dense": {"leading_dense_block_count": 1}}


@pytest.mark.parametrize("family", DENSE)
def test_trained(family):
    """The gradient of all weights is the one of transformers' own pass."""
    network = model(family)
    policy = Replicated(network)
    for name, mine, want in zip(policy.names, gradients(policy), by_transformers(model(family)).values()):
        assert want.any()
        assert_close(name, mine, want, 2e-5)


@pytest.mark.parametrize("family", EVERY)
def test_trained_as_an_adapter(family):
    """dA = s Bᵀ dW and dB = s dW Aᵀ, with dW that of transformers' own pass; of a mixture on all but its experts."""
    network = model(family)
    policy = LowRank(network, 2, 0)
    with torch.no_grad():
        for b in policy.params[1::2]:
            b.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    policy.publish()
    theirs = model(family)
    theirs.load_state_dict(network.state_dict())
    theirs.set_experts_implementation("eager")
    found, weights = iter(gradients(policy)), by_transformers(theirs)
    for name, (a, b) in zip(policy.layers, policy.pairs):
        dw = weights[f"{name}.weight"]
        assert dw.any() and ".experts" not in name
        assert_close(f"dA {name}", next(found), SCALE * b.detach().T @ dw, 2e-5)
        assert_close(f"dB {name}", next(found), SCALE * dw @ a.detach().T, 2e-5)


def gradients(policy):
    with policy.updating(1):
        policy.logits(IDS, [0, 1, 2], [5, 5, 6]).log_softmax(-1)[:, 3].sum().backward()
    return [p.grad for p in policy.params]


def by_transformers(network):
    logits(network.requires_grad_(True), IDS)[[0, 1, 2], [5, 5, 6]].log_softmax(-1)[:, 3].sum().backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("family", MIXTURES)
def test_trained_is_refused(family):
    with pytest.raises(ValueError, match='a mixture of experts, whose weights are not trained; set policy = "lora"'):
        families.trainable(model(family).config)
    assert families.trainable(model(family).config, adapter=True) is None


@pytest.mark.parametrize("family", EVERY)
def test_captured(family):
    """The steps that a GPU captures as a graph, here run one by one, say what the others say."""
    network, prompts = model(family), [[5, 9, 33] * 9, [7] * 30, [60, 2, 11]]
    bank = bank_of(network, init="random")
    slots = [bank.alloc(), -1, bank.alloc()]
    fill(bank, slots[0], slots[2])
    found = [
        decode(network, prompts, bank=bank, slots=slots, end=999, max_new=12, fixed=fixed) for fixed in (False, True)
    ]  # fmt: skip
    assert [said.ids for said in found[0]] == [said.ids for said in found[1]]


def in_few_bits(family, bits):
    """Logits and gradients of memories over a model in few bits, against those over the weights that it computes with."""
    if find_spec(quantised.LIBRARY[bits]) is None:
        pytest.skip(f"needs {quantised.LIBRARY[bits]}")
    found = []
    for dense in (True, False):
        network = quantise_(model(family), bits, "cpu")
        for layer in network.model.layers if dense else ():
            for name in [name for name, module in layer.named_modules() if is_linear(module)]:
                parent, _, last = name.rpartition(".")
                module = layer.get_submodule(name)
                plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None).requires_grad_(False)
                plain.weight.copy_(weight_of(module, torch.float32))
                if module.bias is not None:
                    plain.bias.copy_(module.bias)
                setattr(layer.get_submodule(parent), last, plain)
        bank = bank_of(network, init="random")
        slots = [bank.alloc(), -1, bank.alloc(rank=2)]
        fill(bank, slots[0], slots[2])
        with bank.route(slots):
            out = logits(network, IDS)
            out.square().mean().backward()
        found.append((out.detach(), bank.grad.clone()))
    for name, want, got in zip(("logits", "gradient"), *found):
        assert want.any()
        assert_close(name, got, want, TOLERANCE.get(bits, 3e-6))


@pytest.mark.parametrize("family", EVERY)
def test_nf4(family):
    in_few_bits(family, "nf4")


@pytest.mark.parametrize("family", EVERY)
def test_int8(family):
    in_few_bits(family, "int8")


@pytest.mark.parametrize("family", EVERY)
def test_fp8(family):
    in_few_bits(family, "fp8")


@pytest.mark.parametrize("family", UNSTATED)
def test_gguf_is_refused(family, tmp_path):
    """What llama.cpp does not compute of a family that converts; all else is in test_gguf."""
    network = model(family.partition("+")[0])
    with pytest.raises(ValueError, match=next(iter(UNSTATED[family]))):
        config_of(read(write(tmp_path / "m.gguf", network, fields=UNSTATED[family])))


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_adapted(family):
    """What an expert learned for one slot changes what that slot says, and nobody else; the rest is in test_experts."""
    network = model(family)
    bank = bank_of(network, init="random", targets=ALL[4:])
    slot, other = bank.alloc(lr=1e-2), bank.alloc()
    with bank.route([slot, other, -1]):
        before = logits(network, IDS)
        before.square().mean().backward()
    bank.step([slot])
    with bank.route([slot, other, -1], learn=False):
        after = logits(network, IDS)
    assert torch.equal(after[1:], before[1:]) and (after[0] - before[0]).norm() > 1e-2


def test_the_table_of_the_document_is_that_of_the_tests():
    """After a new family or test: python tools/families.py"""
    done = subprocess.run([sys.executable, ROOT / "tools" / "families.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
