"""The budget against what is really allocated."""

import dataclasses
import weakref
from collections import Counter
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch
from allocated import peak
from click.testing import CliRunner
from tiny import FAMILIES, MORE, Letters, model
from tiny_agent import CONFIG, TRAIN
from tiny_bank import ALL, bank_of

from tmem import cli
from tmem.adapters.bank import MLP
from tmem.agent import decode, prefill
from tmem.agent.config import agent_config
from tmem.agent.learn import learn
from tmem.agent.loop import Agent
from tmem.episode import Pair
from tmem.models import attention, quantised
from tmem.models import forward as fw
from tmem.models.bases import is_linear, tensors_of
from tmem.models.merge import Beside
from tmem.rl import budget
from tmem.rl.low_rank import LowRank
from tmem.rl.policy import Replicated


@pytest.mark.parametrize("family", [family for family in MORE if "moe" in family])
def test_the_weights_of_a_mixture_are_counted_with_its_experts(family):
    network = model(family)
    shape, train = budget.Shape.of(network.config), dataclasses.replace(TRAIN, policy="lora", policy_rank=3)
    small = sum(p.numel() for p in network.parameters() if p.ndim == 1)
    whole = sum(p.numel() for p in network.parameters())
    assert abs(shape.parameters - whole) <= small
    assert abs(budget.weights(shape, None, 2)[0].bytes - 2 * whole) <= 2 * small
    assert budget.trained(shape, train) == sum(p.numel() for p in LowRank(network, 3, 0).params)
    one = {"ranks": 1, "writes": 1}
    every = dataclasses.replace(shape, chosen=shape.experts)
    spent, most = (budget.flops(some, CONFIG, train, **one)["read"] for some in (shape, every))
    read = -(-train.rl_episodes // 1) * train.rl_group * (CONFIG.write.window + 4 * budget.ASKED)
    over = sum(layer.mlp.experts.down_proj.numel() * 3 for layer in network.model.layers if hasattr(layer.mlp, "experts"))
    share = 1 - network.config.num_experts_per_tok / network.config.num_experts
    assert most - spent == pytest.approx(2 * read * over * share)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("train_a", [False, True])
def test_rows_snapshots_and_parameters_are_counted_right(family, train_a):
    network = model(family, tie_word_embeddings=family != "qwen2")
    adapter = dataclasses.replace(CONFIG.adapter, train_a=train_a, targets=("q_proj", "v_proj", "o_proj", "down_proj"))
    config = dataclasses.replace(CONFIG, adapter=adapter)
    agent = Agent.build(network, Letters(), config, 4)
    shape = budget.Shape.of(network.config)
    assert budget.row(shape, config) == agent.bank.param.shape[1]
    slot = agent.bank.alloc()
    learn(network, agent.bank, [(slot, [Pair("a?", "b")])], agent.chat, config.learn)
    train = dataclasses.replace(TRAIN, rl_episodes=2, rl_group=2)
    found = {i.name: i.bytes for i in budget.per_rank(shape, config, train, writes=3, bf16=False)}
    assert agent.bank.snapshot(slot, optimizer=False).param.nbytes * 4 * 3 == found["snapshots of Δ"]
    matrices = [m for m in (agent.bank.param, agent.bank.grad, agent.bank.m, agent.bank.v) if m is not None]
    assert sum(m.nbytes for m in matrices) == found["bank"]
    small = sum(p.numel() for n, p in network.named_parameters() if p.ndim == 1)  # norms and biases: counted roughly
    policy = Replicated(network)
    assert abs(sum(p.nbytes for p in policy.params) * 4 - found["θ0, gradients, moments in fp32"]) <= 16 * small
    lora = dataclasses.replace(train, policy="lora", policy_rank=3, rl_kl=0.1)
    adapter, asked = LowRank(model(family), 3, 0), {i.name: i.bytes for i in budget.per_rank(shape, config, lora, bf16=False)}
    adapter.remember()
    assert 4 * sum(p.nbytes for p in adapter.params) == asked["θ0, gradients, moments in fp32"]
    assert sum(p.nbytes for p in adapter.reference) == asked["frozen reference"]
    assert sum(place.frozen.nbytes for place in adapter.places) == asked["weights without the adapter"]
    log = dataclasses.replace(train, replay="log")
    assert {i.name: i.bytes for i in budget.per_rank(shape, config, log)}["snapshots of Δ"] == 0


@pytest.mark.parametrize("family", MORE)
def test_the_linear_layers_of_every_family_are_known(family):
    network = model(family)
    layers = {n.rsplit(".", 1)[-1]: m for n, m in network.model.layers[0].named_modules() if type(m) is torch.nn.Linear}
    shape = budget.Shape.of(network.config)
    assert shape.sizes() == {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}
    for train_a, last in ((False, 2), (True, 4)):
        adapter = dataclasses.replace(CONFIG.adapter, train_a=train_a, last_layers=last, targets=ALL, init="random")
        config = dataclasses.replace(CONFIG, adapter=adapter)
        bank = Agent.build(model(family), Letters(), config, 1).bank
        assert budget.row(shape, config) == bank.param.shape[1]
        adapted = [(site.inputs, site.outputs, site.experts) for site in bank.sites]
        assert sorted(adapted) == sorted(found[1:] for found in shape.adapted(adapter.targets, last))


def test_the_papers_setting_is_as_small_as_it_says():
    """528,384 parameters of Δ for the 4B model: 2 MiB a snapshot."""
    paper = agent_config("paper")
    assert budget.row(budget.SHAPES["qwen3-4b"], paper) == 528_384
    assert budget.SHAPES["qwen3-4b"].parameters == pytest.approx(4.02e9, rel=0.01)
    assert budget.SHAPES["qwen3-8b"].parameters == pytest.approx(8.19e9, rel=0.01)


def test_fsdp_divides_what_it_shards_and_sends_for_every_pass():
    shape, paper, fsdp = budget.SHAPES["qwen3-8b"], agent_config("paper"), dataclasses.replace(TRAIN, layout="fsdp")
    one, eight = ({i.name: i.bytes for i in budget.per_rank(shape, paper, fsdp, ranks=r)} for r in (1, 8))
    name = "θ0, gradients, moments in fp32"
    assert eight[name] == one[name] / 8 and eight["weights that compute"] == one["weights that compute"]
    few, many = (budget.sent(shape, fsdp, ranks=8, passes=n).bytes for n in (1, 10))
    ddp = [budget.sent(shape, TRAIN, ranks=8, passes=n).bytes for n in (1, 10)]
    assert many > 5 * few and ddp[0] == ddp[1]
    again = dataclasses.replace(TRAIN, rl_updates=3)
    assert budget.sent(shape, again, ranks=8, passes=10).bytes == 3 * ddp[1]
    n, share = budget.trained(shape, fsdp), 7 / 8
    again = dataclasses.replace(fsdp, rl_updates=3, rl_kl=0.1)  # 60 of the updates, 10 of the reference, 1 for rollouts
    assert budget.sent(shape, again, ranks=8, passes=10).bytes == share * n * (2 * 71 + 4 * 30)


def test_every_update_the_reference_and_every_reply_are_counted():
    shape, paper = budget.SHAPES["qwen3-4b"], agent_config("paper")
    one = budget.flops(shape, paper, TRAIN, ranks=1)
    twice = budget.flops(shape, paper, dataclasses.replace(TRAIN, rl_updates=2), ranks=1)
    pulled = budget.flops(shape, paper, dataclasses.replace(TRAIN, rl_kl=0.1), ranks=1)
    assert twice["update"] == 2 * one["update"] and twice["generate"] == one["generate"]
    assert pulled["update"] * 6 == pytest.approx(one["update"] * 8)
    many = dataclasses.replace(paper, write=dataclasses.replace(paper.write, replies=24))
    spoken = [budget.flops(shape, config, TRAIN, ranks=1)["generate"] for config in (paper, many)]
    assert 20 * spoken[0] < spoken[1] < 24 * spoken[0]


def test_a_target_that_no_decoder_has_is_one_sentence():
    config = dataclasses.replace(CONFIG, adapter=dataclasses.replace(CONFIG.adapter, targets=("up_proj", "nope_proj")))
    with pytest.raises(ValueError, match="'nope_proj' is no linear layer of a decoder; expected some of q_proj"):
        budget.row(budget.SHAPES["qwen3-4b"], config)


def bytes_of(items):
    return {item.name: item.bytes for item in items}


HERE = [bits for bits in quantised.BITS if find_spec(quantised.LIBRARY[bits])]


@pytest.mark.parametrize("bits", HERE)
@pytest.mark.parametrize("ffn", [80, 256], ids=["ragged", "whole"])
def test_weights_in_few_bits_and_the_adapter_beside_them_are_counted_right(bits, ffn):
    network = quantised.quantise_(model(intermediate_size=ffn), bits, "cpu")
    shape = budget.Shape.of(network.config)
    found = bytes_of(budget.weights(shape, bits, 4))
    layers = [module for module in network.model.layers.modules() if is_linear(module)]
    held = sum(tensor.nbytes for layer in layers for tensor in tensors_of(layer))
    assert held == found[f"linear layers in {bits}"] < 4 * shape.linear
    others = sum(p.nbytes for name, p in network.named_parameters() if "proj" not in name)
    assert others == found["embeddings, norms and head"]
    assert found["one layer as it computes"] == 4 * max(m.in_features * m.out_features for m in layers)
    train = dataclasses.replace(TRAIN, policy="lora", policy_rank=3)
    policy, asked = LowRank(network, 3, 0, bits=bits), bytes_of(budget.per_rank(shape, CONFIG, train, bf16=False, bits=bits))
    beside = sum(p.nbytes for m in network.modules() if isinstance(m, Beside) for p in m.parameters())
    assert beside == asked["adapter beside the weights"] and "weights without the adapter" not in asked
    assert 4 * sum(p.nbytes for p in policy.params) == asked["θ0, gradients, moments in fp32"]
    assert {**asked, **found} == asked


@pytest.mark.parametrize("at_once", [128, 1 << 20], ids=["some", "all"])
@pytest.mark.parametrize(
    "rows, prompt, most, begin", [(5, 100, 20, 0), (3, 500, 40, 0), (9, 30, 300, 0), (6, 100, 20, 70), (5, 500, 40, 450)]
)
def test_keys_and_values_are_those_that_decoding_allocates(monkeypatch, rows, prompt, most, begin, at_once):
    """Of prompts while a pass reads some of them or all, and of the steps; two prompts begin alike, and half end early."""
    network, seen, caches = model(max_position_embeddings=2048), [], weakref.WeakSet()
    shape, computed, told = budget.Shape.of(network.config), prefill._computed, Counter()

    def spied(*arguments):
        out = computed(*arguments)
        caches.add(out[0])
        held = [held for cache in caches for layer in range(shape.layers) for held in cache.layer(layer)]
        seen.append(sum(tensor.nbytes for tensor in held))
        return out

    def watch(i, token):
        told[i] += 1
        return i and i % 2 == 0 and told[i] == 3

    monkeypatch.setattr(prefill, "_computed", spied)
    monkeypatch.setattr(prefill, "AT_ONCE", at_once)
    prompts = [[3 + max(i, 1), *([5] * (prompt - 2)), 6 + i] for i in range(rows)]
    with prefill.keeping() if begin else nullcontext():
        decode.decode(network, prompts, end=999, max_new=most, begins=[begin] * rows, fixed=True, watch=watch)
    assert {told[i] for i in range(rows)} == {3, most} and len(seen) > (at_once == 128)
    beginnings = rows - 1 if begin else 0
    found = budget.keys_and_values(shape, 4, rows=rows, prompt=prompt, most=most, begin=begin, beginnings=beginnings)
    found = bytes_of(found)
    assert max(seen) == found["keys and values of prompts"]
    kept = [steps.cache.memory.nbytes for steps in vars(network)["_decode_steps"].values()]
    fewer = found.get("those that half of the rows go on with")
    assert sorted(kept, reverse=True) == [found["keys and values of steps"], *([fewer] if rows > 4 else [])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_pass_that_reads_takes_what_is_planned(family, dtype):
    """To a fiftieth, and no more for a token of a long text."""
    network = model(family, dtype=dtype, hidden_size=256, intermediate_size=768, num_attention_heads=16)
    shape = budget.Shape.of(network.config)

    def compute(length):
        cache = fw.KVCache(length)
        fw.layers(network, fw.embed(network, ids[:, :length]), torch.arange(length)[None], None, cache=cache)

    ids = torch.randint(3, 100, (1, 2048))
    with torch.inference_mode():
        for length in (512, 2048):
            kept = length * shape.layers * 2 * shape.kv * dtype.itemsize
            planned = budget.reading(shape, length, dtype.itemsize).bytes
            assert peak(lambda n=length: compute(n)) - kept == pytest.approx(planned, rel=0.02)


def test_32k_tokens_of_an_8b_model_fit_a_gpu():
    """Of 80 GB, as they are asked of one memory; a mask of all layers' attention alone would be a GiB, in floats two."""
    shape = budget.SHAPES["qwen3-8b"]
    found = bytes_of(budget.of_memories(shape, agent_config("stream"), memories=1, context=32768))
    assert found["keys and values of prompts"] == 32768 * 36 * 2 * 1024 * 2
    assert sum(found.values()) < 80e9


def kept_by_a_layer(dtype, frozen, packed, **sizes):
    """Bytes that autograd keeps of one more layer, a token."""
    network = model(dtype=dtype, **sizes)
    bank = bank_of(network, slots=2, targets=MLP, init="random")
    slots, hidden = [bank.alloc(), bank.alloc()], torch.randn(2, 64, network.config.hidden_size).to(dtype)
    mask = fw.Branches(torch.zeros(2, 64, dtype=torch.int64)) if packed else None
    if not frozen:
        network.requires_grad_(True)
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers(), bank.param, *bank.factors)}
    found = []
    for layers in (2, 3):
        kept = {}

        def keep(tensor, kept=kept):
            if (at := tensor.untyped_storage().data_ptr()) not in own:
                kept[at] = tensor  # alive, so that no other gets its place
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), bank.route(slots, learn=frozen):
            fw.layers(network, hidden, torch.arange(64)[None], mask, stop=layers)
        found.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
    return (found[1] - found[0]) / 128


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_counted_right_to_a_tenth(monkeypatch, dtype, frozen, packed):
    """By attention that keeps no probabilities, as that of a GPU."""
    monkeypatch.setattr(attention, "MOST", 0)
    for sizes in (
        {"hidden_size": 256, "num_attention_heads": 16, "num_key_value_heads": 4, "intermediate_size": 512},
        {"hidden_size": 512, "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 384},
    ):
        shape = budget.Shape.of(model(**sizes).config)
        want = kept_by_a_layer(dtype, frozen, packed, **sizes)
        found = budget.activations(shape, 1, 1, dtype.itemsize, frozen=frozen, packed=packed)
        assert found.bytes == pytest.approx(want, rel=0.1)


@pytest.mark.parametrize("train_a", [False, True])
def test_memories_are_counted_right(train_a):
    config = dataclasses.replace(CONFIG, adapter=dataclasses.replace(CONFIG.adapter, train_a=train_a))
    bank = Agent.build(model(), Letters(), config, 4).bank
    found = bytes_of(budget.of_memories(budget.Shape.of(model().config), config, memories=4, bf16=False))
    assert sum(m.nbytes for m in (bank.param, bank.grad, bank.m, bank.v)) == found["memories"]
    assert found["A"] == (0 if train_a else sum(a.nbytes for a in bank.factors))


def test_64_memories_over_7b_in_nf4_fit_12_gib():
    """As the preset `stream` teaches and asks, one memory at a time."""
    config = agent_config("stream")
    config = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, rank=16, last_layers=12))
    shape = budget.SHAPES["llama-2-7b"]
    assert shape.parameters == 6_738_415_616
    few, whole = (sum(bytes_of(budget.of_memories(shape, config, memories=64, bits=b)).values()) for b in ("nf4", None))
    assert few <= 12 * 2**30 < whole


def test_the_command_counts_bits_and_memories():
    def said(*words):
        found = CliRunner().invoke(cli.main, ["budget", "--model", "llama-2-7b", *words], env={"COLUMNS": "160"})
        assert found.exit_code == 0, found.output
        return found.output

    training, memories = said("--preset", "stream", "--bits", "nf4"), said("--bits", "nf4", "--memories", "64")
    for text in (training, memories):
        assert "linear layers in nf4" in text and "together" in text
    assert "adapter beside the weights" in training and "operations of a step" in training
    assert "64 · 4 matrices in fp32 + one in bf16" in memories and "operations" not in memories
    assert "weights that compute" in said("--memories", "2", "--at-once", "2")
    assert "1 rows · 32768 tokens" in said("--memories", "2", "--context", "32768")
    refused = CliRunner().invoke(cli.main, ["budget", "--model", "llama-2-7b", "--context", "100"])
    assert refused.exit_code == 2 and "give --memories as well" in refused.output
