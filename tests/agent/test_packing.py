"""Several pairs on one row of an online update: what is learned is what each alone would teach."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny import FAMILIES, pairs
from tiny_agent import CONFIG, agent_of
from wrong import pairs_in_sight

from tmem.agent import learn as learning
from tmem.episode import Pair
from tmem.models import forward as fw
from tmem.testing import assert_close

TOLERANCE = 2e-5  # fp32
LEARN = dataclasses.replace(CONFIG.learn, batch=32)
RAGGED = [*pairs(7), Pair("q" * 90, "a" * 30), Pair("x", "y"), *pairs(5, "zz")]


def begun(family):
    """An agent whose slot 0 has learned something, so that A and B both have gradients."""
    agent = agent_of(family=family)
    learning.learn(agent.model, agent.bank, [(agent.bank.alloc(), pairs(3, "before"))], agent.chat, CONFIG.learn)
    return agent


def gradient(agent, taught, joined=False, slot=0):
    """What one pass over packed rows puts into the slot's gradient."""
    assert learning.joins(agent.model) or not joined
    (blocks,) = learning._minibatches(agent.model, agent.bank, [(slot, taught)], agent.chat, LEARN, joined=joined)
    learning._pass(agent.model, agent.bank, blocks, backward=True)
    return agent.bank.grad[slot].clone()


def alone(agent, taught, slot=0):
    """The same by one sequence a pass, without padding: the mean over all tokens of answers."""
    read = [(agent.chat.prompt(p.question), agent.chat.answer(p.answer)) for p in taught]
    total = sum(len(answer) for _, answer in read)
    for prompt, answer in read:
        ids = torch.tensor([prompt + answer])
        length = ids.shape[1]
        with agent.bank.route([slot], learn=True):
            hidden = fw.layers(agent.model, fw.embed(agent.model, ids), torch.arange(length)[None], None)
            said = fw.logits(agent.model, hidden[0, len(prompt) - 1 : -1])
            (F.cross_entropy(said, torch.tensor(answer), reduction="sum") / total).backward()
    return agent.bank.grad[slot].clone()


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("family", (*FAMILIES, "mistral+window", "gemma3_text"))
def test_pairs_on_one_row_teach_what_each_teaches_alone(family, joined):
    want = alone(begun(family), RAGGED)
    assert_close("gradient", gradient(begun(family), RAGGED, joined), want, TOLERANCE)
    with pytest.raises(AssertionError):
        assert_close("gradient", pairs_in_sight.gradient(gradient, begun(family), RAGGED, joined), want, TOLERANCE)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("family", (*FAMILIES, "mistral+window", "gemma3_text"))
def test_what_pairs_begin_with_is_computed_once_and_teaches_all(family, joined):
    taught = [Pair("Answer in a few words:\n" + p.question, p.answer) for p in RAGGED]
    rows = learning.packed(0, [learning._encoded(begun(family).chat, p, LEARN) for p in taught], joined)
    assert all(row.numbers.count(0) == row.trunk > 20 for row in rows)
    want = alone(begun(family), taught)
    assert_close("gradient", gradient(begun(family), taught, joined), want, TOLERANCE)
    with pytest.raises(AssertionError):
        assert_close("gradient", pairs_in_sight.gradient(gradient, begun(family), taught, joined), want, TOLERANCE)


@given(st.lists(st.integers(2, 200), min_size=1, max_size=40), st.integers(0, 3), st.booleans())
def test_every_sequence_is_on_one_row_whole_and_rows_are_no_longer_than_they_must_be(lengths, begin, joined):
    begins = [min(begin, n // 2 - 1) for n in lengths]
    sequences = [([-1] * b + [i] * (n - b), n // 2) for i, (n, b) in enumerate(zip(lengths, begins))]
    rows, most = learning.packed(3, sequences, joined), learning.MAX_TOKENS if joined else learning.PACKED
    shared = min(begins) if len(lengths) > 1 else 0
    found = []
    for row in rows:
        assert row.slot == 3 and len(row.ids) == len(row.positions) == len(row.numbers) <= fw.bucket(max(most, *lengths))
        assert row.slot == 3 and row.trunk == shared and row.numbers[:shared] == [0] * shared and 0 not in row.numbers[shared:]
        for number in sorted({*row.numbers} - {0}):
            columns = [*range(shared), *(c for c, n in enumerate(row.numbers) if n == number)]
            assert columns[shared:] == list(range(columns[shared], columns[shared] + len(columns) - shared))
            assert [row.positions[c] for c in columns] == list(range(len(columns)))
            found.append(([row.ids[c] for c in columns], sum(c not in row.labels for c in columns)))
    assert sorted(found) == sorted(sequences)


def test_short_pairs_share_rows():
    """Of 26 tokens each, four fit; each by itself would be padded to 32."""
    rows = learning.packed(0, [([i] * 26, 20) for i in range(16)])
    assert [len(row.ids) for row in rows] == [104] * 4
    assert sum(map(len, (row.ids for row in rows))) / (len(rows) * fw.bucket(104)) > 0.8


def test_rows_are_as_short_as_they_can_be():
    """Of nine pairs, the first row must not take six and leave one for which the second is padded as far."""
    rows = learning.packed(0, [([i] * 20, 16) for i in range(9)])
    assert [len(row.ids) for row in rows] == [60] * 3, "3 rows of 64 are less than 2 of 128"
    assert [len(row.ids) for row in learning.packed(0, [([1] * 300, 200), ([2] * 10, 5)])] == [310]
    assert [len(row.ids) for row in learning.packed(0, [([1] * 20, 200), ([2] * 10, 5)])] == [30]
    assert [len(row.ids) for row in learning.packed(0, [([i] * 20, 16) for i in range(9)], joined=True)] == [180]


def test_joined_rows_take_no_more_room_than_they_have_tokens_and_stay_so_when_slots_stop():
    agent = begun("llama")
    taught = [pairs(3, "one"), pairs(5, "another"), pairs(1, "third")]
    slots = [0, *(agent.bank.alloc() for _ in range(2))]
    jobs = list(zip(slots, taught))
    (blocks,) = learning._minibatches(agent.model, agent.bank, jobs, agent.chat, LEARN, joined=True)
    (block,) = blocks
    assert block.hidden.shape[:2] == (1, -(-sum(block.lengths) // 16) * 16) and block.slots == slots
    left = block.only({slots[0], slots[2]})
    ((alone,),) = learning._minibatches(agent.model, agent.bank, [jobs[0], jobs[2]], agent.chat, LEARN, joined=True)
    real = sum(left.lengths)
    assert torch.equal(left.seen.runs[:, [0, -1]], alone.seen.runs[:, [0, -1]]) and left.lengths == alone.lengths
    assert torch.equal(left.positions[:, :real], alone.positions[:, :real])
    assert torch.equal(left.hidden[:, :real], alone.hidden[:, :real])
    assert (left.rows, left.columns, left.targets) == (alone.rows, alone.columns, alone.targets)
