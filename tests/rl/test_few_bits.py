"""θ0 as an adapter beside weights in few bits: values and gradients of the sum, the same bits in any company, and runs."""

import json
import signal
from importlib.util import find_spec

import forked
import peft
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from test_low_rank import EXTRA, WHERE, adapter_of, assert_same_run
from test_trainer import SCRIPT, one_thread  # noqa: F401
from tiny import Letters, model, pairs
from tiny_agent import CONFIG
from tiny_bank import IDS, bank_of, fill, logits
from tiny_run import PRESET, lines, start
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tmem import cli
from tmem.agent.agent import Agent
from tmem.agent.teach import Lesson
from tmem.models import loading, quantised
from tmem.models.bases import is_linear, weight_of
from tmem.models.families import trainable
from tmem.models.lora import fingerprint
from tmem.models.merge import Beside
from tmem.models.quantised import BITS, quantise_, settle_
from tmem.rl.low_rank import LowRank
from tmem.testing import assert_close

HERE = [bits for bits in BITS if find_spec(quantised.LIBRARY[bits])]
TOLERANCE = 5e-5  # fp32: two products are rounded where the sum is one, and again in every layer above


def packed(bits="nf4"):
    return quantise_(model(), bits, "cpu")


def unpacked(bits):
    """The whole model that computes with the same weights."""
    network = packed(bits)
    for layer in network.model.layers:
        for name, module in list(layer.named_modules()):
            if is_linear(module):
                parent, _, last = name.rpartition(".")
                plain = nn.Linear(module.in_features, module.out_features, bias=False).requires_grad_(False)
                plain.weight.copy_(weight_of(module, torch.float32))
                setattr(layer.get_submodule(parent), last, plain)
    return network


def trained(network, seed=0, bits=None):
    """A policy whose B is not zero."""
    policy = LowRank(network, 4, seed, bits=bits)
    with torch.no_grad():
        for b in policy.params[1::2]:
            b.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    policy.publish()
    return policy


@pytest.mark.parametrize("bits", HERE)
@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_values_and_gradients_are_those_of_the_sum(bits, routed, again):
    """Over the whole weights that the few bits stand for, whose sum with the adapter the model holds; under Δ too."""
    found = []
    for network in (unpacked(bits), packed(bits)):
        policy = trained(network)
        policy.checkpointing = again
        bank = bank_of(network, init="random")
        slots = [bank.alloc(), bank.alloc(rank=2), -1] if routed else [-1] * 3
        fill(bank, *(slot for slot in slots if slot >= 0))
        with bank.route(slots, learn=False), policy.updating(1):
            out = policy.logits(IDS, *WHERE)
            out.log_softmax(-1)[:, 3].sum().backward()
        found.append([out.detach(), *(p.grad for p in policy.params)])
    for name, want, got in zip(("logits", *policy.names), *found):
        assert want.any()
        assert_close(name, got, want, TOLERANCE)


def test_a_subspace_is_that_of_the_sum():
    """A of a bank, whose weights are those that the layers compute with."""
    banks = [bank_of(trained(network).model) for network in (unpacked("nf4"), packed())]
    for mine, theirs in zip(*(bank.factors for bank in banks)):
        assert_close("A", mine @ mine.T, theirs @ theirs.T, 1e-4)


@pytest.mark.parametrize("bits", HERE)
def test_a_memory_over_both_has_the_bits_of_a_memory_alone(bits):
    rows, answers = [], []
    for together in (False, True):
        agent = Agent.build(trained(packed(bits)).model, Letters(), CONFIG, slots=4)
        slots = agent.bank.claim(3)
        jobs = list(zip(slots, (pairs(n, tag) for n, tag in ((3, "a"), (5, "b"), (2, "c")))))
        for some in [jobs] if together else [[job] for job in jobs]:
            agent.teach([slot for slot, _ in some], [new for _, new in some], [Lesson() for _ in some])
        rows.append(agent.bank.param[slots].clone())
        asked = [lesson[0].question for _, lesson in jobs]
        answers.append(agent.answer(asked, slots) if together else [agent.answer([q], [s])[0] for q, s in zip(asked, slots)])
    assert torch.equal(*rows) and rows[0].any(1).all()
    assert answers[0] == answers[1]


def test_it_begins_as_the_model_and_the_reference_is_what_was_remembered():
    network = packed()
    before = logits(network, IDS)
    policy = LowRank(network, 4, 0)
    assert torch.equal(logits(network, IDS), before)
    policy.remember()
    with policy.updating(1):
        policy.logits(IDS, *WHERE).sum().backward()
    policy.step(0.1)
    after = logits(network, IDS)
    assert not torch.equal(after, before)
    with policy.referring():
        assert torch.equal(logits(network, IDS), before)
    assert torch.equal(logits(network, IDS), after)
    assert not any(p.requires_grad for p in network.parameters())


def test_a_model_with_an_adapter_beside_it_is_another_model():
    network = packed()
    before = fingerprint(network)
    one, two = (fingerprint(trained(packed(), seed).model) for seed in (0, 1))
    assert len({before, one, two}) == 3


# runs --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    return out, start(out, extra=EXTRA, bits="nf4").run()


def test_a_run_trains_an_adapter_over_few_bits(undisturbed):
    out, summary = undisturbed
    steps = [r for r in lines(out) if r["phase"] == "rl"]
    assert all(r["dlogp_worst_segment"] < 1e-4 and r["grad_norm"] > 0 for r in steps)
    assert steps[0]["kl"] == 0.0 < steps[2]["kl"]  # at first the policy is the reference
    assert all((adapter_of(out)[k] != v).any() for k, v in adapter_of(out, "warm").items() if "lora_B" in k)
    assert start(out, extra=EXTRA, bits="nf4", resume=True).run() == summary
    with pytest.raises(ValueError, match=r"other settings \(bits\)"):
        start(out, extra=EXTRA, resume=True)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path, undisturbed):
    """Where only the optimizer has the step. What a checkpoint holds is an adapter, of which test_low_rank.py kills one too."""
    out = tmp_path / "undisturbed"
    started = forked.run(SCRIPT, out, "--kill", "update", 4, "--extra", EXTRA, "--bits", "nf4")
    assert started.returncode == -signal.SIGKILL, started.stderr
    (file, *_) = sorted(out.glob("checkpoints/step-*/*.safetensors"))[-1:]
    assert all(".lora_" in name for name in load_file(file))
    start(out, extra=EXTRA, bits="nf4", resume=True).run()
    assert_same_run(out, undisturbed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with the default model's tokenizer, whole; and as transformers puts it into nf4."""
    out, tokenizer = tmp_path_factory.mktemp("base"), loading.load_tokenizer()
    whole = model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, max_position_embeddings=2048)
    loading.save_model(whole, tokenizer, out / "whole")
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32, bnb_4bit_use_double_quant=True
    )
    made = type(whole).from_pretrained(out / "whole", quantization_config=settings, dtype=torch.float32)
    made.save_pretrained(out / "packed")
    tokenizer.save_pretrained(out / "packed")
    return out


@pytest.fixture
def in_fp32(monkeypatch):
    monkeypatch.setattr(loading, "default_dtype", lambda device="cpu": torch.float32)


def test_train_and_eval_over_nf4_as_a_user_types_them(folder, tmp_path, in_fp32):
    """Warm start, RL, control, checkpoints, resume; then what was trained is evaluated, and PEFT has it too."""
    preset, out = tmp_path / "tiny.toml", tmp_path / "run"
    preset.write_text(PRESET.replace('reward = "shout"', "policy_rank = 4\nrl_resample = 0"))
    words = ["--preset", str(preset), "--model", str(folder / "whole"), "--bits", "nf4"]

    def tmem(*words):
        found = CliRunner().invoke(cli.main, words, env={"COLUMNS": "1000"}, catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.output

    short = ["--rl-steps", "1", "--warm-steps", "2", "--eval-episodes", "1"]
    said = tmem("train", *words, *short, "--out", str(out))
    assert f"tmem eval --model {out}/rl --bits nf4" in said
    tmem("train", *words, *short, "--out", str(out), "--resume")
    config = json.loads((out / "rl" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder / "whole") and config["r"] == 4

    mine, _ = loading.load_model(out / "warm", bits="nf4", device="cpu")
    bare, _ = loading.load_model(folder / "whole", bits="nf4", device="cpu")
    assert sum(isinstance(module, Beside) for module in mine.modules()) == 28
    ids = IDS.clamp(max=100)
    assert not torch.equal(logits(mine, ids), logits(bare, ids))
    base = settle_(AutoModelForCausalLM.from_pretrained(folder / "packed"))
    theirs = peft.PeftModel.from_pretrained(base, out / "warm").eval()
    assert_close("logits", logits(mine, ids), logits(theirs, ids), TOLERANCE)

    scored = ["--task", "stream", "--limit", "1", "--methods", "tmem", "--preset", str(preset)]
    tmem("eval", *scored, "--model", str(out / "rl"), "--bits", "nf4", "--out", str(tmp_path / "scores"))
    assert json.loads((tmp_path / "scores" / "results.json").read_text())["config"]["bits"] == "nf4"


def test_what_was_trained_over_few_bits_belongs_to_these(folder, tmp_path, in_fp32):
    tokenizer = loading.load_tokenizer()
    network, _ = loading.load_model(folder / "whole", bits="nf4", device="cpu")
    policy = trained(network, bits="nf4")
    policy.save(tokenizer, tmp_path / "rl", None)
    want = logits(network, IDS)
    assert torch.equal(logits(loading.load_model(tmp_path / "rl", bits="nf4", device="cpu")[0], IDS), want)
    over, _ = loading.load_model(folder / "packed", adapter=tmp_path / "rl", device="cpu")
    assert torch.equal(logits(over, IDS), want)
    with pytest.raises(loading.ModelError, match="was trained over weights in nf4; ask for these bits"):
        loading.load_model(tmp_path / "rl", device="cpu")
    again, _ = loading.load_model(folder / "whole", bits="nf4", device="cpu")
    LowRank(again, 6, 1, start=tmp_path / "rl", bits="nf4")
    assert_close("logits", logits(again, IDS), want, TOLERANCE)


def test_a_folder_in_nf4_is_trained_as_it_is(folder, in_fp32):
    config = loading.config(folder / "packed")
    assert trainable(config, adapter=True) == "nf4" and trainable(loading.config(folder / "whole"), adapter=True) is None
    with pytest.raises(ValueError, match='few bits are not trained; set policy = "lora"'):
        trainable(config)


def test_whole_weights_in_few_bits_are_refused(tmp_path):
    with pytest.raises(ValueError, match='set policy = "lora" in'):
        start(tmp_path / "run", bits="nf4").run()
