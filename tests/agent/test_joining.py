"""Prompts that join a batch which is under way: what each says is what it says alone, whenever it came and whoever left."""

import random

import pytest
import torch
from tiny import pairs
from tiny_agent import CONFIG, agent_of
from wrong import joining_unclean

from tmem.adapters import token
from tmem.agent.decode import Decoding, Prompt
from tmem.agent.learn import learn
from tmem.agent.prefill import widths
from tmem.agent.sampling import Sampling
from tmem.agent.steps import _Columns

HOWS = [Sampling(), Sampling(1.0, 1.0, "a"), Sampling(0.7, 0.8, "b"), Sampling(rank=1), Sampling(0.7, 0.8, "c")]


def learned(dtype=torch.float32, slots=3):
    agent = agent_of(dtype=dtype)
    for s in range(slots):
        learn(agent.model, agent.bank, [(agent.bank.alloc(), pairs(3, str(s)))], agent.chat, CONFIG.learn)
    return agent


def decoding_of(agent, fixed=False, ends=None):
    return Decoding(agent.model, agent.bank, agent.chat.ends if ends is None else ends, fixed)


def said_alone(agent, prompt, fixed=False, ends=None):
    with decoding_of(agent, fixed, ends) as decoding:
        (row,) = decoding.join([prompt])
        while decoding.alive:
            decoding.step()
    return row.generation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(3))
def test_who_joins_at_any_step_says_what_it_says_alone(seed, dtype):
    """Of every length, under every Δ, greedy and drawn in two ways, a beginning shared or not, a few or many at once."""
    agent, rng, lengths = learned(dtype), random.Random(seed), (1, 3, 20, 21, 22, 45, 230, 301)
    prompts = []
    for i in range(40):
        ids = agent.chat.prompt("x" * rng.choice(lengths) + "?" * (i % 3))
        begin = rng.choice((0, 0, len(ids) // 2))
        prompts.append(Prompt(ids, rng.choice((1, 2, 9, 40)), rng.randrange(-1, 3), begin, rng.choice(HOWS)))
    waiting, rows = list(prompts), []
    with decoding_of(agent) as decoding:
        while waiting or decoding.alive:
            count = rng.choice((0, 0, 0, 1, 1, 2, 9))
            rows += decoding.join(waiting[:count])
            waiting = waiting[count:]
            decoding.step()
    assert len({len(r.tokens) for r in rows}) > 3
    for row in rows:
        assert row.generation == said_alone(agent, row.prompt)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_at_fixed_addresses_too(temperature):
    agent, rng = learned(), random.Random(0)
    prompts = []
    for i in range(24):
        ids, how = agent.chat.prompt("x" * rng.choice((1, 20, 45))), Sampling(temperature, 1.0, f"{i}")
        prompts.append(Prompt(ids, rng.choice((2, 9, 20)), i % 4 - 1, 0, how))
    waiting, rows = list(prompts), []
    with decoding_of(agent, fixed=True) as decoding:
        while waiting or decoding.alive:
            rows += decoding.join(waiting[:2])
            waiting = waiting[2:]
            decoding.step()
    for row in rows:
        want = said_alone(agent, row.prompt)
        assert row.tokens == want.ids and row.logprobs == pytest.approx(want.logprobs, abs=1e-4)


def said_beside(agent, prompts):
    """What prompts say that are decoded together, and the `alike` of their steps."""
    told, plain = [], token.layers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token, "layers", lambda *args, **named: (told.append(named["alike"].tolist()), plain(*args, **named))[1])
        with decoding_of(agent, ends=frozenset()) as decoding:
            rows = decoding.join(prompts)
            while decoding.alive:
                decoding.step()
    return [row.generation for row in rows], told


def test_what_rows_read_alike_is_read_once_in_a_step(monkeypatch):
    """The same prompt, or the same beginning, under the same Δ, in the places that rows have by then."""
    agent = learned()
    agent.bank.reset(2)
    one, other = (agent.chat.prompt(text) for text in ("what is x, if y is two?", "what is x, if y is ten?"))
    width = widths(one, begin := 20)
    assert one[:begin] == other[:begin]
    which = [(one, 0, begin), (other, 0, begin), (one, 0, begin), (one, 1, begin), (one, -1, 0), (one, 2, 0), (one, -1, 0)]
    prompts = [Prompt(ids, 9 if i else 3, slot, start, HOWS[i % 3]) for i, (ids, slot, start) in enumerate(which)]
    want = [said_alone(agent, prompt, ends=frozenset()) for prompt in prompts]
    found, told = said_beside(agent, prompts)
    assert found == want
    begun, whole = width[0], sum(width)
    read = widths(one, 0)[1]  # the prompts without a beginning come first, and the last row is a dummy
    before, after = [[0, 0], [0, read], [0, read], [3, 0]], [[6, 0], [7, 0]]
    assert told[0] == [*before, [3, begun], [3, whole], *after]
    assert told[-1] == [*before, [4, 0], [4, begun], *after]  # the first one has ended
    monkeypatch.setattr("tmem.agent.decode.under", lambda bank, slot: -1)
    assert said_beside(agent, prompts)[0] != want, "the wrong implementation, which mixes Δ, is caught"


def after_a_bad_one(agent, fixed):
    """What is said in the place of a row that computed with NaN, and whether a number is left of that one.

    torch's attention on a GPU multiplies what is masked by zero, and 0 · NaN is NaN. The CPU kernel does not read it.
    """
    ids = agent.chat.prompt("what is x?")
    with decoding_of(agent, fixed, frozenset()) as decoding:  # the likeliest of NaN is the end
        decoding.join([Prompt(ids, 2, 0), *[Prompt(ids, 40, 1)] * 3])
        decoding.step()
        (row,) = decoding.join([Prompt(ids[:9], 20, 2)])
        decoding.step()
        columns = decoding._steps.steps.cache if fixed else decoding._steps.cache
        clean = bool(columns.memory[..., : columns.shown, :].isfinite().all())
        while decoding.alive:
            decoding.step()
    return row.generation, clean


@pytest.mark.parametrize("fixed", [False, True])
def test_nothing_is_left_of_who_had_the_place_before(fixed, monkeypatch):
    agent = learned()
    agent.bank.param[0] = float("nan")
    want = said_alone(agent, Prompt(agent.chat.prompt("what is x?")[:9], 20, 2), fixed, frozenset())
    assert after_a_bad_one(agent, fixed) == (want, True)
    monkeypatch.setattr(_Columns, "put", joining_unclean.put)
    assert after_a_bad_one(agent, fixed) == (want, False), "the wrong implementation is caught"


def grown_over_a_bad_one(agent):
    """Whether all is finite where rows have grown into steps at fixed addresses that computed with NaN before."""
    long, short = agent.chat.prompt("x" * 500), agent.chat.prompt("x" * 360)
    with decoding_of(agent, True, frozenset()) as decoding:
        decoding.join([Prompt(long, 40, 0)])  # 1,024 columns
        for _ in range(20):
            decoding.step()
    with decoding_of(agent, True, frozenset()) as decoding:
        decoding.join([Prompt(short, 100, 1)])  # 512, until a longer one joins
        decoding.step()
        assert decoding._steps.columns == 512
        decoding.join([Prompt(long, 40, 1)])
        assert decoding._steps.columns == 1024
        return bool(decoding._steps.steps.cache.memory[:, :, 0].isfinite().all())


def test_nothing_is_left_where_a_row_grows(monkeypatch):
    agent = learned()
    agent.bank.param[0] = float("nan")
    assert grown_over_a_bad_one(agent)
    monkeypatch.setattr(_Columns, "move", joining_unclean.move)
    assert not grown_over_a_bad_one(agent), "the wrong implementation is caught"


def test_memory_does_not_grow_with_how_many_came():
    agent = learned()
    ids, sizes = agent.chat.prompt("what?"), set()
    with decoding_of(agent) as decoding:
        for i in range(60):
            decoding.join([Prompt(ids, 3 + i % 5)])
            decoding.step()
            sizes.add(tuple(decoding._steps.cache.memory.shape))
    assert max(shape[2] for shape in sizes) <= 8 and {shape[4] for shape in sizes} == {128}


def test_of_a_row_that_has_ended_the_slot_may_go_to_somebody_else():
    agent = learned()
    ids = agent.chat.prompt("what?")
    with decoding_of(agent) as decoding:
        decoding.join([Prompt(ids, 1, 0), Prompt(ids, 2, 0), Prompt(ids, 9, 1)])
        decoding.step()
        agent.bank.free(0)
        agent.bank.alloc()
        decoding.step()
        decoding.join([Prompt(ids, 9, 0)])
        agent.bank.free(0)
        with pytest.raises(RuntimeError, match="slot 0 was freed"):
            decoding.step()
