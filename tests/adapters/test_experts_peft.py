"""What experts learned as a PEFT adapter with target_parameters and as a memory's folder, out and in."""

import json
from dataclasses import replace

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import model, pairs
from tiny_agent import CONFIG, agent_of
from tiny_bank import ALL, IDS, bank_of, fill, logits

from tmem import Memory
from tmem.adapters.bank import MLP
from tmem.adapters.peft import load_adapter, save_adapter
from tmem.adapters.row_file import row_bytes, row_in
from tmem.agent.learn import learn
from tmem.testing import assert_close

MIXTURES = ["qwen3_moe", "qwen3_moe+dense"]
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def made_by_peft(folder, family="qwen3_moe", modules=("q_proj",), parameters=BOTH, **options):
    """An adapter of PEFT with random factors, saved; its logits."""
    torch.manual_seed(3)
    given = {"r": 3, "lora_alpha": 5, "target_modules": list(modules), "target_parameters": list(parameters), **options}
    network = peft.get_peft_model(model(family), peft.LoraConfig(**given))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.2)
    network.save_pretrained(folder)
    return logits(network.eval(), IDS)


def of_slot(network, bank, slot):
    with bank.route([slot] * len(IDS), learn=False):
        return logits(network, IDS)


@pytest.mark.parametrize("train_a", [False, True])
@pytest.mark.parametrize("targets", [ALL, MLP, ("down_proj",), ("gate_up_proj", "v_proj")], ids="+".join)
@pytest.mark.parametrize("family", MIXTURES)
def test_peft_computes_what_was_saved_and_saves_what_is_read(family, targets, train_a, tmp_path):
    network = model(family)
    bank = bank_of(network, targets=targets, train_a=train_a, init="random")
    slot = bank.alloc(rank=3, alpha=6.0)
    fill(bank, slot, size=0.3)
    if train_a:
        for site in bank.sites:  # experts with an A of their own each
            site.of(site.a, slot)[:, :3] += 0.05 * torch.randn(site.experts, 3, site.inputs)
    ours = of_slot(network, bank, slot)
    save_adapter(bank, slot, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(model(family), tmp_path / "ours")
    assert_close("logits in PEFT", logits(theirs, IDS), ours, 1e-5)
    assert (ours - logits(model(family), IDS)).norm() > 1e-2 * ours.norm()
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        again = load_adapter(bank, tmp_path / folder)
        assert torch.equal(bank.param[again], bank.param[slot])
        assert torch.equal(of_slot(network, bank, again), ours)


@pytest.mark.parametrize(
    "modules, parameters",
    [(["q_proj", "o_proj"], BOTH), ([], BOTH), ([], BOTH[:1]), (["down_proj"], BOTH[1:]), (["v_proj"], ["experts.down_proj"])],
)
@pytest.mark.parametrize("family", MIXTURES)
def test_an_adapter_made_by_peft_is_read(family, modules, parameters, tmp_path):
    if modules == ["down_proj"] and family == "qwen3_moe":
        modules = []  # it has no linear layer of that name
    theirs = made_by_peft(tmp_path, family, modules, parameters)
    network = model(family)
    bank = bank_of(network, train_a=True, init="random")
    assert_close("logits", of_slot(network, bank, load_adapter(bank, tmp_path)), theirs, 1e-5)


def test_its_gradients_are_those_of_peft(tmp_path):
    network = model("qwen3_moe", dtype=torch.float64)
    bank = bank_of(network, targets=MLP, train_a=True, dtype=torch.float64, init="random")
    slot = bank.alloc()
    fill(bank, slot)
    save_adapter(bank, slot, tmp_path)
    with bank.route([slot] * 3):
        logits(network, IDS).square().mean().backward()
    theirs = peft.PeftModel.from_pretrained(model("qwen3_moe", dtype=torch.float64), tmp_path, is_trainable=True)
    logits(theirs, IDS).square().mean().backward()
    grads = {name: weight.grad for name, weight in theirs.named_parameters() if weight.grad is not None}
    for site in bank.sites:
        name = site.name.replace(".gate_up_proj", ".base_layer").replace(".down_proj", "")
        a, b = (grads[f"base_model.model.{name}.lora_{kind}.default.weight"] for kind in "AB")
        assert_close(f"dA {site.name}", site.of(site.a_grad, slot), a.view(8, 4, -1), 1e-5)
        assert_close(f"dB {site.name}", site.of(site.bt_grad, slot), b.view(-1, 4, 8).permute(2, 1, 0), 1e-5)


def refused(folder, sentence, **options):
    bank = bank_of(model("qwen3_moe"), **{"train_a": True, "init": "random", **options})
    with pytest.raises(ValueError, match=sentence) as caught:
        load_adapter(bank, folder)
    assert not any(bank.used) and "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused(tmp_path):
    made_by_peft(tmp_path)
    refused(tmp_path, "sets target_parameters .*of experts.*only plain LoRA", targets=ALL[:4])
    refused(tmp_path, "another A than this bank", train_a=False)
    refused(tmp_path, r"experts.*base_layer.*, which this bank does not", targets=("q_proj", "down_proj"))
    refused(tmp_path, "has rank 3, this bank stores 2", rank=2)
    file, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    tensors = load_file(file)
    first = "base_model.model.model.layers.0.mlp.experts"
    less = {name: t for name, t in tensors.items() if not name.startswith(f"{first}.lora_")}
    save_file(less, file)
    refused(tmp_path, "lacks model.layers.0.mlp.experts.down_proj, which target_parameters names")
    save_file({**tensors, f"{first}.lora_B.weight": tensors[f"{first}.lora_B.weight"][:, :12].clone()}, file)
    refused(tmp_path, r"experts.down_proj: expected A, B of \(\(24, 48\), \(64, 24\)\)")
    save_file(tensors, file)
    said = json.loads(config.read_text())
    for targets in (None, "down_proj", ["experts.up_proj"]):
        config.write_text(json.dumps({**said, "target_parameters": targets}))
        refused(tmp_path, "experts.*, which this bank does not")


@pytest.mark.parametrize("family", MIXTURES)
def test_a_row_on_disk_holds_its_experts(family):
    network = model(family)
    bank = bank_of(network, init="random")
    slot = bank.alloc(lr=1e-2)
    with bank.route([slot] * 3):
        logits(network, IDS).square().mean().backward()
    bank.step([slot])
    again = bank.alloc()
    bank.restore(again, row_in(row_bytes(bank.snapshot(slot)), "here"))
    assert torch.equal(bank.param[again], bank.param[slot]) and torch.equal(bank.m[again], bank.m[slot])
    other = bank_of(model("qwen3_moe", num_experts=16), init="random")
    with pytest.raises(ValueError, match="belongs to subspace"):
        other.restore(other.alloc(), bank.snapshot(slot))


def test_an_agent_learns_into_experts_and_its_row_is_the_one_it_has_alone(tmp_path):
    """Through an online update, in buckets, with the frozen trunk, in company and alone."""
    config = replace(CONFIG, adapter=replace(CONFIG.adapter, targets=ALL))
    together = agent_of(family="qwen3_moe", config=config)
    assert any(site.parameter for site in together.bank.sites)
    jobs = [pairs(5, "a"), pairs(2, "bb")]
    slots = [together.bank.alloc() for _ in jobs]
    learned = learn(together.model, together.bank, [*zip(slots, jobs)], together.chat, CONFIG.learn)
    for slot, job, result in zip(slots, jobs, learned):
        alone = agent_of(family="qwen3_moe", config=config)
        own = alone.bank.alloc()
        assert learn(alone.model, alone.bank, [(own, job)], alone.chat, CONFIG.learn) == [result]
        assert torch.equal(alone.bank.param[own], together.bank.param[slot])
        assert result.loss_after < result.loss_before


def test_a_memory_of_experts_is_saved_and_loaded(tmp_path):
    memory = Memory(agent_of(family="qwen3_moe"))
    memory.learn(pairs(3))
    memory.save(tmp_path / "m")
    again, bank = memory.another(tmp_path / "m"), memory.agent.bank
    assert bank.sites[0].experts == 8 and bank.param[again.slot].any()
    assert torch.equal(bank.param[again.slot], bank.param[memory.slot])
    assert again.ask(pairs(3)[0].question) == memory.ask(pairs(3)[0].question)
