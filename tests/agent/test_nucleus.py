"""Nucleus sampling against its formula in fp64, and what a row draws: its own key and nucleus alone decide."""

import pytest
import torch
from tiny import model, pairs
from tiny_agent import CONFIG, agent_of

from tmem.agent.decode import decode
from tmem.agent.learn import learn
from tmem.agent.nucleus import LIKELY, nucleus
from tmem.agent.sampling import uniforms

SHARES = [0.0, 0.05, 0.3, 0.9, 0.999, 1.0]


def plain(logits, top_p):
    """Probabilities fp64 [V] of a row's nucleus: tokens in falling order until they have top_p together."""
    p = logits.double().softmax(-1)
    kept, mass = set(), 0.0
    for token in p.argsort(descending=True).tolist():
        if kept and mass >= top_p:
            break
        kept.add(token)
        mass += p[token].item()
    p = torch.tensor([p[i].item() if i in kept else 0.0 for i in range(len(p))], dtype=torch.float64)
    return p / p.sum()


def draws():
    """Logits of rows whose nuclei have few tokens, many, and more than are looked at first."""
    noise = torch.randn(8, 3 * LIKELY, generator=torch.Generator().manual_seed(0))
    return noise * torch.tensor([0.0, 0.01, 0.5, 1.0, 2.0, 4.0, 8.0, 30.0])[:, None]


@pytest.mark.parametrize("top_p", SHARES)
def test_a_nucleus_is_that_of_its_formula(top_p):
    logits = draws()[1:]
    found = nucleus(logits.log_softmax(-1), top_p).double().exp()
    expected = torch.stack([plain(row, top_p) for row in logits])
    assert torch.equal(found > 0, expected > 0) or top_p == 1.0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("top_p", SHARES)
def test_a_rows_nucleus_has_the_same_bits_whatever_rows_are_beside_it(top_p):
    logp = draws().log_softmax(-1)
    together = nucleus(logp, top_p)
    for i in range(len(logp)):
        assert torch.equal(nucleus(logp[i : i + 1], top_p)[0], together[i])
        assert torch.equal(nucleus(logp[[i, 0, 7]], top_p)[0], together[i])


def test_equally_likely_tokens_are_in_it_together():
    logp = torch.tensor([[1.0, 3.0, 3.0, 2.0, 2.0, 0.0]]).log_softmax(-1)
    assert [sorted((nucleus(logp, p)[0] > float("-inf")).nonzero()[:, 0].tolist()) for p in (0.0, 0.3, 0.6, 0.75, 0.95)] == [
        [1, 2], [1, 2], [1, 2], [1, 2, 3, 4], [0, 1, 2, 3, 4]
    ]  # fmt: skip
    assert (nucleus(draws()[:1].log_softmax(-1), 0.5) > float("-inf")).all()


def test_what_is_drawn_is_that_of_the_formula_under_the_rows_key():
    """Token by token: the model's logits, the nucleus in fp64, the inverse of its distribution function at the key's number."""
    network, keys, steps = model(), [f"k{i}" for i in range(6)], 8
    prompts = [[5 + i, 40, 7 * i + 3] for i in range(6)]
    found = decode(network, prompts, end=-1, max_new=steps, temperature=1.3, top_p=0.7, keys=keys)
    for prompt, key, said in zip(prompts, keys, found):
        ids, noise = list(prompt), uniforms(key, steps)
        for step in range(steps):
            p = plain(network(torch.tensor([ids])).logits[0, -1] / 1.3, 0.7)
            token = int((p.cumsum(-1) <= noise[step]).sum())
            assert said.ids[step] == token
            assert said.logprobs[step] == pytest.approx(p[token].log().item(), abs=1e-3)
            ids.append(token)


def test_a_prompt_draws_the_same_alone_and_among_others():
    agent = agent_of()
    for s in range(3):
        learn(agent.model, agent.bank, [(agent.bank.alloc(), pairs(3, str(s)))], agent.chat, CONFIG.learn)
    prompts = [agent.chat.prompt("x" * n + "?") for n in (1, 3, 20, 21, 22, 45, 230, 301)]
    slots, keys = [0, 1, 2, 0, -1, 1, 2, -1], [f"k{i}" for i in range(8)]
    options = dict(max_new=12, temperature=1.5, top_p=0.8)
    together = agent.say(prompts, slots, keys=keys, **options)
    for i in range(8):
        assert agent.say([prompts[i]], [slots[i]], keys=[keys[i]], **options) == together[i : i + 1], i
    assert together != agent.say(prompts, slots, keys=keys, max_new=12, temperature=1.5)


def test_a_nucleus_of_one_token_is_greedy_and_one_of_all_is_no_nucleus():
    network, prompts, keys = model(), [[5, 6], [7, 8, 9]], ["a", "b"]
    options = dict(end=-1, max_new=10)
    greedy = [g.ids for g in decode(network, prompts, **options)]
    assert [g.ids for g in decode(network, prompts, temperature=1.0, top_p=0.0, keys=keys, **options)] == greedy
    everything = decode(network, prompts, temperature=1.0, keys=keys, **options)
    assert decode(network, prompts, temperature=1.0, top_p=1.0, keys=keys, **options) == everything
    assert [g.ids for g in everything] != greedy
