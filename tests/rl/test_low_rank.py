"""θ0 as an adapter under training: the gradients of whole weights, one π for sampler and update, and files that come back."""

import functools
import json
import signal

import forked
import peft
import pytest
import tiny_run
import torch
from safetensors.torch import load_file
from test_trainer import SCRIPT, one_thread, together  # noqa: F401
from tiny import model
from tiny_bank import IDS, bank_of, fill, logits
from tiny_folder import folder_of
from tiny_run import SHORT, lines, start
from wrong import adapter_beside_frozen_weights

from tmem.files.objects import write_json
from tmem.models import loading
from tmem.models.lora import fingerprint
from tmem.models.merge import Lora, merge_, save_lora
from tmem.rl.low_rank import SCALE, LowRank
from tmem.rl.policy import Replicated
from tmem.rl.world import ALONE
from tmem.testing import assert_close

LORA = {"policy": "lora", "policy_rank": 4}
EXTRA = "".join(f"{name} = {json.dumps(value)}\n" for name, value in LORA.items())
WHERE = [0, 1, 2], [5, 5, 6]


def trained(network, rank=4, seed=0):
    """A policy whose B is not zero."""
    policy = LowRank(network, rank, seed)
    with torch.no_grad():
        for b in policy.params[1::2]:
            b.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    policy.publish()
    return policy


def gradients(policy):
    with policy.updating(1):
        policy.logits(IDS, *WHERE).float().log_softmax(-1)[:, 3].sum().backward()
    return [p.grad for p in policy.params]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_gradients_are_those_of_the_whole_weights(dtype, tolerance, routed, again):
    """dA = s Bᵀ dW and dB = s dW Aᵀ, alone, and where the same layers carry a Δ; activations kept or computed again."""
    mine = trained(model(dtype=dtype))
    whole = Replicated(model(dtype=dtype))
    whole.model.load_state_dict(mine.model.state_dict())
    found = []
    for policy in (mine, whole):
        policy.checkpointing = again
        if routed:
            bank = bank_of(policy.model, init="random")
            slots = [bank.alloc() for _ in range(2)]
            fill(bank, *slots)
            with bank.route([slots[0], slots[1], -1], learn=False):
                found.append(gradients(policy))
        else:
            found.append(gradients(policy))
    weights = dict(zip(whole.names, found[1]))
    for index, (name, (a, b)) in enumerate(zip(mine.layers, mine.pairs)):
        dw = weights[f"{name}.weight"]
        assert_close(f"dA {name}", found[0][2 * index], SCALE * b.detach().T @ dw, tolerance)
        assert_close(f"dB {name}", found[0][2 * index + 1], SCALE * dw @ a.detach().T, tolerance)


def test_outside_of_updates_the_model_is_a_plain_frozen_one():
    policy = trained(model())
    with policy.updating(1):
        assert any(m._forward_hooks for m in policy.model.modules())
    assert not any(m._forward_hooks for m in policy.model.modules())
    assert not any(p.requires_grad for p in policy.model.parameters())


def in_an_update(policy):
    with policy.updating(1):
        return policy.logits(IDS, *WHERE).detach()


def test_an_update_computes_with_the_weights_that_rollouts_have():
    """Wrong: an adapter computed beside frozen weights in updates, and merged for rollouts: two roundings, two policies."""
    whole = Replicated(model(dtype=torch.bfloat16))
    for make, same in ((trained, True), (adapter_beside_frozen_weights.policy, False)):
        policy = make(model(dtype=torch.bfloat16))
        whole.model.load_state_dict(policy.model.state_dict())  # what rollouts compute with
        assert torch.equal(in_an_update(policy), in_an_update(whole)) == same


def test_it_begins_as_the_model_and_the_reference_is_what_was_remembered():
    network = model(dtype=torch.bfloat16)
    before = logits(network, IDS)
    policy = LowRank(network, 4, 0)
    assert torch.equal(logits(network, IDS), before)
    policy.remember()
    gradients(policy)
    policy.step(0.1)
    after = logits(network, IDS)
    assert not torch.equal(after, before)
    with policy.referring():
        assert torch.equal(logits(network, IDS), before)
    assert torch.equal(logits(network, IDS), after)


@pytest.mark.parametrize("family", ["llama", "glm4", "gemma3_text", "phi3"])
def test_what_is_saved_is_what_was_trained_for_load_model_and_for_peft(family, tmp_path):
    base = folder_of(tmp_path / "base", family=family)
    network, tokenizer = loading.load_model(base, dtype=torch.bfloat16, device="cpu")
    policy = trained(network)
    policy.save(tokenizer, tmp_path / "rl", None)
    again, _ = loading.load_model(tmp_path / "rl", dtype=torch.bfloat16, device="cpu")
    assert all(torch.equal(x, y) for x, y in zip(network.parameters(), again.parameters()))
    adapted = {name for name, module in network.model.layers.named_modules() if type(module) is torch.nn.Linear}
    assert {name.removeprefix("model.layers.") for name in policy.layers} == adapted
    wide, _ = loading.load_model(base, dtype=torch.float32, device="cpu")
    theirs = peft.PeftModel.from_pretrained(wide, tmp_path / "rl").eval()
    mine, _ = loading.load_model(tmp_path / "rl", dtype=torch.float32, device="cpu")
    assert_close("logits", logits(mine, IDS), logits(theirs, IDS), 1e-4)


def test_training_goes_on_from_an_adapter(tmp_path):
    """Of smaller rank, of another scale, of fewer layers; the model is then that of the two merged."""
    network, name = model(), "model.layers.1.mlp.up_proj"
    a, b = torch.randn(2, 64), torch.randn(80, 2)
    save_lora(tmp_path / "two", Lora({name: (a, b)}, 2, 5.0, fingerprint(network)), None)
    policy = LowRank(network, 4, 0, ALONE, tmp_path / "two")
    want = model()
    merge_(want, tmp_path / "two")
    assert_close("logits", logits(network, IDS), logits(want, IDS), 1e-4)
    assert all(grad.abs().max() > 0 for grad in gradients(policy)[1::2])
    with pytest.raises(ValueError, match="has rank 2, policy_rank is 1"):
        LowRank(model(), 1, 0, ALONE, tmp_path / "two")
    with pytest.raises(ValueError, match="was trained over weights with the fingerprint"):
        LowRank(model(seed=1), 4, 0, ALONE, tmp_path / "two")


# runs --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    return out, start(out, extra=EXTRA).run()


def adapter_of(out, phase="rl"):
    return load_file(out / phase / "adapter_model.safetensors")


def assert_same_run(out, undisturbed):
    assert (out / "metrics.jsonl").read_text() == (undisturbed[0] / "metrics.jsonl").read_text()
    for phase in ("warm", "rl", "sft"):
        mine, theirs = adapter_of(out, phase), adapter_of(undisturbed[0], phase)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in theirs)


def test_a_run_trains_an_adapter_and_keeps_little(undisturbed):
    out, summary = undisturbed
    steps = [r for r in lines(out) if r["phase"] == "rl"]
    assert all(r["dlogp_worst_segment"] < 1e-4 and r["grad_norm"] > 0 for r in steps)
    assert steps[0]["kl"] == 0.0 < steps[2]["kl"]  # at first the policy is the reference
    assert all((adapter_of(out)[k] != v).any() for k, v in adapter_of(out, "warm").items() if "lora_B" in k)
    assert json.loads((out / "rl" / "adapter_config.json").read_text())["lora_alpha"] == 8.0
    assert start(out, extra=EXTRA, resume=True).run() == summary


@pytest.mark.parametrize("where, count", [("update", 4), ("checkpoint", 9)])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, undisturbed, where, count):
    out = tmp_path / "undisturbed"
    started = forked.run(SCRIPT, out, "--kill", where, count, "--extra", EXTRA)
    assert started.returncode == -signal.SIGKILL, started.stderr
    (file, *_) = sorted(out.glob("checkpoints/step-*/*.safetensors"))[-1:]
    assert all(".lora_" in name for name in load_file(file)) and len(load_file(file)) in (56, 3 * 56)
    start(out, extra=EXTRA, resume=True).run()
    assert_same_run(out, undisturbed)


def test_two_processes_train_as_one(tmp_path, undisturbed):
    out = tmp_path / "undisturbed"
    together(out, "--extra", EXTRA)
    for phase in ("rl", "sft"):
        mine, theirs = adapter_of(out, phase), adapter_of(undisturbed[0], phase)
        for name in theirs:
            assert_close(name, mine[name], theirs[name], 1e-3)


def test_a_sharded_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match='policy: "lora" needs layout "ddp"'):
        start(tmp_path / "run", extra=EXTRA + 'layout = "fsdp"\n')


def test_a_run_of_before_there_were_policies_is_gone_on_with(tmp_path):
    out = tmp_path / "run"
    first = start(out)
    recorded = first._settings()
    first._let_go()
    for name in ("policy", "policy_rank"):
        del recorded["TrainConfig"][name]
    out.mkdir(exist_ok=True)
    write_json(out / "run.json", recorded)
    start(out, resume=True)._let_go()
    with pytest.raises(ValueError, match=r"other settings \(TrainConfig.policy\)"):
        start(out, resume=True, policy="lora")
    with pytest.raises(ValueError, match=r"other settings \(adapter\)"):
        start(out, resume=True, adapter="other")


def test_a_mixture_is_trained_and_its_experts_stay(tmp_path, monkeypatch):
    """A whole run; what it leaves is merged into the layers that are no experts."""
    monkeypatch.setattr(tiny_run, "model", functools.partial(model, "qwen3_moe"))
    start(tmp_path / "out", extra=EXTRA, **SHORT).run()
    network, before = (model("qwen3_moe", max_position_embeddings=4096) for _ in range(2))
    merge_(network, tmp_path / "out" / "rl")
    for name, weight in network.named_parameters():
        assert torch.equal(weight, before.get_parameter(name)) != (".self_attn." in name and "proj" in name), name
