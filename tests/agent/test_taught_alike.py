"""What several slots are taught alike goes through the frozen trunk once, and each learns the bits that it learns alone."""

import dataclasses

import pytest
import torch
from tiny import FAMILIES, pairs
from tiny_agent import CONFIG, agent_of
from wrong import trunk_of_the_first

from tmem.agent import learn as learning
from tmem.agent.learn import learn

TAUGHT = pairs(7, "day")
GROUP = [TAUGHT[:i] + TAUGHT[i + 1 :] for i in range(3)] + [pairs(5, "other")]  # three rollouts of one episode, and a stranger
KINDS = [(family, torch.float32) for family in (*FAMILIES, "gemma3_text", "phi3")] + [("llama", torch.bfloat16)]


def learned(family, dtype, jobs):
    """What every slot learned, and its row."""
    agent = agent_of(slots=len(jobs), family=family, dtype=dtype)
    slots = [agent.bank.alloc() for _ in jobs]
    found = learn(agent.model, agent.bank, list(zip(slots, jobs)), agent.chat, CONFIG.learn)
    return [(result, agent.bank.param[slot].clone()) for result, slot in zip(found, slots)]


def same(got, want):
    assert [result for result, _ in got] == [result for result, _ in want]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(got, want))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family, dtype", KINDS)
def test_each_slot_learns_the_bits_that_it_learns_alone(family, dtype, padded, monkeypatch):
    if padded:
        monkeypatch.setattr(learning, "joins", lambda _: False)
    alone = [learned(family, dtype, [job])[0] for job in GROUP]
    same(learned(family, dtype, GROUP), alone)
    same(learned(family, dtype, GROUP[::-1])[::-1], alone)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "_trunks", trunk_of_the_first._trunks)
        with pytest.raises(AssertionError):
            same(learned(family, dtype, GROUP), alone)


@pytest.mark.parametrize("last_layers", [4, 2])
def test_where_embeddings_ask_for_gradients_they_are_taught_alike_too(last_layers):
    """transformers has them ask where a layer's activations are computed again."""
    found = []
    for asks in (False, True):
        config = dataclasses.replace(CONFIG, adapter=dataclasses.replace(CONFIG.adapter, last_layers=last_layers))
        agent = agent_of(config=config)
        if asks:
            agent.model.enable_input_require_grads()
        slots = [agent.bank.alloc() for _ in GROUP[:3]]
        results = learn(agent.model, agent.bank, list(zip(slots, GROUP)), agent.chat, CONFIG.learn)
        found.append([(result, agent.bank.param[slot].clone()) for result, slot in zip(results, slots)])
    same(*found)


@pytest.mark.parametrize("hooked", [False, True])
def test_the_trunk_computes_a_text_once_where_its_bits_are_its_own(monkeypatch, hooked):
    """Where somebody has a part in a layer torch's attention computes it, by a whole row."""
    agent, tokens, trunk = agent_of(), [], learning._trunk
    if hooked:
        agent.model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    monkeypatch.setattr(learning, "_trunk", lambda *given: tokens.append(sum(len(r.ids) for r in given[2])) or trunk(*given))
    slots = [agent.bank.alloc() for _ in range(3)]
    learn(agent.model, agent.bank, [(slots[0], GROUP[0])], agent.chat, CONFIG.learn)
    alone, tokens[:] = sum(tokens), []
    learn(agent.model, agent.bank, [(slot, GROUP[0]) for slot in slots], agent.chat, CONFIG.learn)
    assert sum(tokens) == (3 * alone if hooked else alone)
