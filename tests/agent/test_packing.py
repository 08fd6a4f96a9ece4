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


def gradient(agent, taught, slot=0):
    """What one pass over packed rows puts into the slot's gradient."""
    (blocks,) = learning._minibatches(agent.model, agent.bank, [(slot, taught)], agent.chat, LEARN)
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
            hidden = fw.layers(agent.model, fw.embed(agent.model, ids), torch.arange(length)[None], fw.causal_mask(length))
            said = fw.logits(agent.model, hidden[0, len(prompt) - 1 : -1])
            (F.cross_entropy(said, torch.tensor(answer), reduction="sum") / total).backward()
    return agent.bank.grad[slot].clone()


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_on_one_row_teach_what_each_teaches_alone(family):
    want = alone(begun(family), RAGGED)
    assert_close("gradient", gradient(begun(family), RAGGED), want, TOLERANCE)
    with pytest.raises(AssertionError):
        assert_close("gradient", pairs_in_sight.gradient(gradient, begun(family), RAGGED), want, TOLERANCE)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_every_sequence_is_on_one_row_whole_and_rows_are_no_longer_than_they_must_be(lengths):
    sequences = [([i] * n, n // 2) for i, n in enumerate(lengths)]
    rows = learning.packed(3, sequences)
    found = {}
    for row in rows:
        assert row.slot == 3 and len(row.ids) == len(row.positions) == len(row.numbers) <= max(learning.PACKED, *lengths, 1)
        for number in sorted(set(row.numbers)):
            columns = [c for c, n in enumerate(row.numbers) if n == number]
            assert columns == list(range(columns[0], columns[0] + len(columns)))
            assert [row.positions[c] for c in columns] == list(range(len(columns)))
            (token,) = {row.ids[c] for c in columns}
            found[token] = len(columns), sum(c in row.labels for c in columns)
    assert found == {i: (n, n - n // 2) for i, n in enumerate(lengths)}


def test_short_pairs_share_rows():
    """Of 26 tokens each, four fit; each by itself would be padded to 32."""
    rows = learning.packed(0, [([1] * 26, 20)] * 16)
    assert [len(row.ids) for row in rows] == [104] * 4
    assert sum(map(len, (row.ids for row in rows))) / (len(rows) * fw.bucket(104)) > 0.8
