"""Rows under several Δ share the layers below: every text once, and each token finds its own states there."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_agent import agent_of
from wrong import states_of_another_text

from tmem.models import forward as fw
from tmem.rl import rows as of_rows
from tmem.rl.rows import Row, below
from tmem.testing import assert_close

BEGIN = list(range(3, 13))
TEXTS = [(BEGIN + [20 + i] * (1 + i), [30 + i, 40]) for i in range(3)]  # three questions that begin alike, and their answers
GROUP = [Row.of(TEXTS), Row.of(TEXTS[:2] + [(TEXTS[2][0], [50, 51, 52])]), Row.of(TEXTS[::-1])]  # of three rollouts


def read_back(rows, found):
    """The text of every token of the rows, up to itself, and of that which stands for it below."""
    mine, theirs = [], []
    for r, row in enumerate(rows):
        positions, numbers = row.layout()
        for c, (at, number) in enumerate(zip(positions, numbers)):
            text = [*itertools.chain(*row.texts[max(0, number - 1)])]
            spot = int(found.at[r, c])
            line, column = divmod(spot, found.ids.shape[1])
            branch = int(found.branches[line, column])
            seen = [i for i in range(column + 1) if int(found.branches[line, i]) in (0, branch)]
            mine.append((at, text[: at + 1]))
            theirs.append((int(found.positions[line, column]), found.ids[line, seen].tolist()))
    return mine, theirs


TOKENS = st.lists(st.integers(1, 3), min_size=1, max_size=6)


@given(st.lists(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=4), min_size=1, max_size=4))
def test_every_token_has_what_precedes_it_in_its_own_text(groups):
    rows = [Row.of(texts) for texts in groups]
    found = below(rows, 1, "cpu")
    if found is not None:
        mine, theirs = read_back(rows, found)
        assert mine == theirs and found.ids.numel() < sum(len(row.ids) for row in rows) + len(rows) * 64


def test_rows_without_anything_in_common_and_models_without_layers_below_stay_as_they_are():
    assert below(GROUP, 1, "cpu") is not None
    assert below(GROUP, 0, "cpu") is None and below(GROUP[:1], 1, "cpu") is None
    assert below([Row.of([(BEGIN, [1])]), Row.of([(BEGIN[::-1], [1])])], 1, "cpu") is None


def logits(shared, cut=below):
    """Logits of the group under three Δ, and the gradient of θ0."""
    agent = agent_of(slots=3)
    bank, model = agent.bank, agent.model
    slots = [bank.alloc() for _ in GROUP]
    torch.manual_seed(0)
    for site in bank.sites:
        site.bt.normal_(0, 0.3)
    model.requires_grad_(True)
    ids = of_rows.padded([row.ids for row in GROUP], "cpu")
    layout = [of_rows.padded(x, "cpu") for x in zip(*(row.layout() for row in GROUP))]
    columns = [row.columns() for row in GROUP]
    places = [r for r, found in enumerate(columns) for _ in found]
    under_all = cut(GROUP, bank.first_layer, "cpu") if shared else None
    with bank.route(slots, learn=False):
        found = fw.token_logits(model, ids, places, [c for own in columns for c in own], *layout, under_all)
        found.float().square().sum().backward()
    return found.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def test_logits_and_gradients_are_those_of_rows_by_themselves():
    (want, gradient), (got, mine) = logits(False), logits(True)
    assert torch.equal(got, want)  # a text has the bits that it has alone
    assert_close("gradient", mine, gradient, 1e-5)
    wrong, _ = logits(True, states_of_another_text.below)
    with pytest.raises(AssertionError):
        assert_close("logits", wrong, want, 1e-3)
