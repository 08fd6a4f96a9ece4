"""Positions by the length of a text: what transformers computes of each text alone, on both sides of where they change."""

import pytest
import tiny
import torch
from tiny import pairs
from tiny_agent import CONFIG, agent_of
from tiny_chat import tokenizer
from wrong import longest_row_decides

from tmem.agent.agent import Agent
from tmem.agent.decode import Decoding, Prompt, decode
from tmem.agent.learn import learn
from tmem.agent.spans import ranked
from tmem.models import forward as fw
from tmem.models import loading
from tmem.models.families import outgrown, trainable
from tmem.models.rope import positions
from tmem.testing import assert_close, rel_rms

MOST = 64
FAMILIES = ("phi3", "phi3+window", "llama")
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
LENGTHS = (7, 63, 64, 65, 70, 130)


def model(family="phi3", dtype=torch.float32, most=MOST, **sizes):
    """Heads of 16, of which Phi-3 rotates three quarters."""
    share = 0.75 if "phi3" in family else 1.0
    count = int(16 * share) // 2
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0 + 0.1 * i for i in range(count)],
        "long_factor": [2.0 + 1.5 * i for i in range(count)],
        "original_max_position_embeddings": most,
        "partial_rotary_factor": share,
    }
    more = {"original_max_position_embeddings": most} if "phi3" in family else {}
    return tiny.model(family, dtype=dtype, rope_parameters=rope, max_position_embeddings=512, **more, **sizes)


def texts(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 160, (n,), generator=generator).tolist() for n in lengths]


def theirs(network, ids):
    """transformers' own logits [T, V] of one text."""
    return network(input_ids=torch.tensor([ids])).logits[0]


def ours(network, rows):
    width = max(map(len, rows))
    at = positions(network.config, [len(row) for row in rows], width)
    hidden = fw.layers(network, fw.embed(network, fw.pad(rows, width, fill=5, dummies=False)), at, None)
    return [found[: len(row)] for row, found in zip(rows, fw.logits(network, hidden))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_the_model_whatever_shares_its_batch(family, dtype):
    network, rows = model(family, dtype), texts()

    def right():
        for row, got in zip(rows, ours(network, rows)):
            assert_close(f"{len(row)} tokens", got, theirs(network, row), TOLERANCE[dtype])

    right()
    with pytest.raises(AssertionError):
        longest_row_decides.compute(right)


def test_logits_at_positions_are_as_near_to_the_model_in_fp64_as_its_own():
    for family in FAMILIES:
        network, wide, rows = model(family), model(family, torch.float64), texts()
        wide.load_state_dict(network.state_dict())
        places = ((1, 62), (2, 63), (3, 5), (3, 64))
        asked = fw.pad(rows, 130, dummies=False), *map(list, zip(*places))
        some = fw.token_logits(network, *asked)
        own, exact = (torch.stack([theirs(one, rows[i])[at] for i, at in places]) for one in (network, wide))
        assert_close("at positions", fw.token_logits(wide, *asked), exact, TOLERANCE[torch.float64])
        assert rel_rms(some.double(), exact) < 1.5 * rel_rms(own.double(), exact) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_differ(family):
    """The long factors change what is said, so that a wrong choice is seen."""
    network, (ids,) = model(family), texts((65,))
    before, beyond = theirs(network, ids[:64]), theirs(network, ids)[:64]
    assert (before - beyond).norm() > 1e-2 * before.norm()


@pytest.mark.parametrize("begins", [None, [2, 30, 40, 50, 30, 63, 80]])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_outgrows_the_short_factors_is_read_again(family, fixed, begins):
    """Below, across and beyond, alone and with others."""
    network, prompts = model(family), texts((3, 40, 60, 63, 64, 65, 100))
    got = decode(network, prompts, end=-1, max_new=30, fixed=fixed, begins=begins)
    for prompt, generation in zip(prompts, got):
        assert len(generation.ids) == 30
        for count, (token, logprob) in enumerate(zip(generation.ids, generation.logprobs)):
            logits = theirs(network, prompt + generation.ids[:count])[-1].log_softmax(-1)
            assert token == int(logits.argmax()) and logprob == pytest.approx(float(logits[token]), abs=1e-4), count


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_said_across_does_not_depend_on_the_company(temperature):
    network, prompts = model(), texts((3, 40, 60, 63, 64, 65, 100))
    options = {"end": -1, "max_new": 30, "temperature": temperature}
    keys = [f"k{i}" for i in range(len(prompts))]
    together = decode(network, prompts, keys=keys, **options)
    for prompt, key, generation in zip(prompts, keys, together):
        assert decode(network, [prompt], keys=[key], **options) == [generation]


def test_a_row_that_ends_when_it_is_read_again_leaves():
    network, (first, second) = model(), texts((60, 20))
    with Decoding(network, None, frozenset()) as decoding:
        one, other = decoding.join([Prompt(first, 6), Prompt(second, 12)])
        while decoding.alive:
            decoding.step()
    assert [len(row.tokens) for row in (one, other)] == [6, 12]


def test_a_memory_learns_and_answers_across():
    agent = Agent.build(model(), tiny.Letters(), CONFIG, 2)
    slots = [agent.bank.alloc(), agent.bank.alloc()]
    jobs = [pairs(3, "a"), pairs(9, "b" * 40)]
    learned = learn(agent.model, agent.bank, [*zip(slots, jobs)], agent.chat, CONFIG.learn)
    assert all(result.loss_after < result.loss_before for result in learned)
    prompts = texts((50, 60))
    said = decode(agent.model, prompts, bank=agent.bank, slots=slots, end=-1, max_new=20)
    with agent.bank.route(slots, learn=False):
        found = ours(agent.model, [prompt + generation.ids for prompt, generation in zip(prompts, said)])
    for prompt, generation, logits in zip(prompts, said, found):
        assert generation.ids[-1] == int(logits[-2].argmax()) and len(prompt) + 20 > MOST


@pytest.mark.parametrize("room", [-1, 0, 5, 1000])
def test_spans_of_a_passage_are_as_probable_as_the_model_says(room):
    """The passage is beyond the short factors already, or spans end where it would come to be."""
    passage = "Ada: I live in Oslo, in the old town. My dog is Rex; he is 3 or 4."
    plain = Agent.build(tiny.model(), tiny.Letters(), CONFIG, 1)
    length = len(ranked(plain.model, None, plain.chat, passage, None).prompt)
    network = model(most=length + room)
    found = ranked(network, None, plain.chat, passage, None)
    assert len(found.prompt) == length and bool(found.spans) == (room != 0)
    for span in found.spans:
        ids = [*found.prompt, *span.ids, found.then[0]]
        rows = theirs(network, ids[:-1]).log_softmax(-1)
        assert span.logprobs == pytest.approx([float(rows[k - 1, ids[k]]) for k in range(length, len(ids))], abs=1e-4)


def test_it_loads_and_is_not_trained(tmp_path):
    network, (ids,) = model(vocab_size=400), texts((70,))
    loading.save_model(network, tokenizer(), tmp_path / "m")
    again, _ = loading.load_model(tmp_path / "m", dtype=torch.float32, device="cpu")
    assert outgrown(again.config) == MOST and torch.equal(ours(again, [ids])[0], ours(network, [ids])[0])
    with pytest.raises(ValueError, match="positions change once a text is longer than 64 tokens .*; tmem runs it frozen"):
        trainable(again.config)
    assert outgrown(agent_of().model.config) is None
