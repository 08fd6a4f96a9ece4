"""Ranks to 128 under a bank: in and out of PEFT's files, beside small ones, and as a subspace."""

import peft
import pytest
import torch
from tiny import model
from tiny_bank import IDS, bank_of, fill, logits

from tmem.adapters.peft import load_adapter, save_adapter
from tmem.testing import assert_close

TARGETS = ["q_proj", "down_proj"]
SIZES = {"hidden_size": 256, "intermediate_size": 160}


@pytest.mark.parametrize("r", [65, 128])
def test_adapters_of_large_ranks_come_from_peft_and_go_back(tmp_path, r):
    """rsLoRA is a scale, alpha/√r, and the slot's."""
    torch.manual_seed(3)
    config = peft.LoraConfig(r=r, lora_alpha=5, target_modules=TARGETS, use_rslora=True)
    theirs = peft.get_peft_model(model(**SIZES), config).eval()
    for name, weight in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.02)
    theirs.save_pretrained(tmp_path / "in")
    want, plain, network = logits(theirs, IDS), logits(model(**SIZES), IDS), model(**SIZES)
    bank = bank_of(network, rank=r, targets=TARGETS, train_a=True)
    slot = load_adapter(bank, tmp_path / "in")
    assert float(bank.scale[slot]) == pytest.approx(5 * r**-0.5)
    same = bank.alloc(alpha=5 * r**0.5)
    assert float(bank.scale[same]) == pytest.approx(5 * r**-0.5)
    with bank.route([slot] * 3, learn=False):
        assert_close("logits", logits(network, IDS), want, 1e-5)
    save_adapter(bank, slot, tmp_path / "out")
    again = peft.PeftModel.from_pretrained(model(**SIZES), tmp_path / "out").eval()
    assert_close("logits", logits(again, IDS), want, 1e-5)
    assert (want - plain).abs().max() > 0.01


def test_a_subspace_of_128_directions_holds_what_the_best_would():
    bank = bank_of(model(**SIZES), rank=128, targets=TARGETS, init="none")
    for site, a in zip(bank.sites, bank.factors):
        w = site.module.weight.double()
        assert a.shape == (128, site.inputs)
        assert_close("A Aᵀ", a @ a.T, torch.eye(128), 1e-5)
        best = torch.linalg.svdvals(w)[:128].square().sum()
        assert (w @ a.double().T).square().sum() > 0.995 * best


def test_slots_of_ranks_1_to_128_learn_together_as_alone():
    """Alone, the other rows stay in the batch without a slot: the base's own products have the same shapes and bits."""
    network = model(**SIZES)
    found = []
    for together in (True, False):
        bank = bank_of(network, rank=128, targets=TARGETS)
        slots = [bank.alloc(r) for r in (1, 65, 128)]
        fill(bank, *slots, size=0.02)
        for route in [slots] if together else [[s if s == slot else -1 for s in slots] for slot in slots]:
            with bank.route(route):
                logits(network, IDS).square().sum().backward()
        grad, before = bank.grad[slots].clone(), bank.param[slots].clone()
        bank.step(slots)
        assert ((bank.param[slots] != before) == (grad != 0)).double().mean() > 0.99
        found.append((grad, bank.param[slots].clone()))
        bank.detach()
    for name, together, alone in zip(("gradients", "parameters"), *found):
        assert torch.equal(together, alone), name
