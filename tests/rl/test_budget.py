"""The budget against what is really allocated."""

import dataclasses

import pytest
import torch
from tiny import FAMILIES, MORE, Letters, model
from tiny_agent import CONFIG, TRAIN, config_of

from tmem.agent.config import agent_config
from tmem.agent.learn import learn
from tmem.agent.loop import Agent
from tmem.episode import Pair
from tmem.rl import budget
from tmem.rl.low_rank import LowRank
from tmem.rl.policy import Replicated


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
    config = config_of(family)
    assert budget.row(shape, config) == Agent.build(network, Letters(), config, 1).bank.param.shape[1]


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


def test_a_target_that_no_decoder_has_is_one_sentence():
    config = dataclasses.replace(CONFIG, adapter=dataclasses.replace(CONFIG.adapter, targets=("up_proj", "nope_proj")))
    with pytest.raises(ValueError, match="'nope_proj' is no linear layer of a decoder; expected some of q_proj"):
        budget.row(budget.SHAPES["qwen3-4b"], config)
