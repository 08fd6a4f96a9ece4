"""An online update at fixed addresses, as a GPU captures it: what every slot learns is what it learns kernel by kernel.

Here the same function runs uncaptured, or from a tape of its ops (helpers/tape.py), which repeats them as a graph does."""

import copy
import dataclasses
import warnings

import pytest
import torch
from tape import recorded
from tiny import FAMILIES, pairs
from tiny_agent import CONFIG, agent_of
from tiny_bank import fill
from unwaiting import Waits, unwaiting
from wrong import slots_at_capture, spare_rows_of_slot_0

from tmem.agent import captured_update
from tmem.agent import learn as learning
from tmem.agent.captured_update import Extent, FixedSteps, Step, fits
from tmem.agent.graphs import outdate
from tmem.agent.learn import learn
from tmem.testing import assert_close

EVERY = [(family, torch.float32) for family in (*FAMILIES, "gemma3_text", "phi3")] + [("llama", torch.bfloat16)]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
JOBS = [pairs(6, "a"), pairs(3, "bb"), pairs(9, "c")]  # 2, 1 and 3 minibatches of one or two rows


def begun(jobs=3, **options):
    """An agent with a slot for every job, each with a Δ, and slot 1 between them, which learns nothing."""
    agent = agent_of(slots=jobs + 2, **options)
    first, idle, *others = (agent.bank.alloc() for _ in range(jobs + 1))
    fill(agent.bank, first, idle, *others)
    return agent, [first, *others]


def taught(agent, slots, fixed, jobs=JOBS, **options):
    return learn(agent.model, agent.bank, list(zip(slots, jobs)), agent.chat, CONFIG.learn, fixed=fixed, **options)


def rows(bank):
    """All that a row is."""
    held = {name: getattr(bank, name) for name in ("param", "m", "v", "step_count", "copy")}
    return {name: x.clone() for name, x in held.items() if x is not None}


def same(got, want):
    assert {name for name in want if not torch.equal(got[name], want[name])} == set()


def kept(bank):
    return vars(bank)["_update_steps"].kept


@pytest.fixture
def taped(monkeypatch):
    monkeypatch.setattr(captured_update, "recorder", lambda device: recorded)


@pytest.mark.parametrize("family, dtype", EVERY)
def test_a_step_at_fixed_addresses_teaches_the_same_bits(family, dtype):
    """And a slot that learns nothing keeps its own."""
    found = []
    for fixed in (False, True):
        agent, slots = begun(family=family, dtype=dtype)
        before = rows(agent.bank)
        found.append((taught(agent, slots, fixed), rows(agent.bank)))
        for name, row in rows(agent.bank).items():
            assert torch.equal(row[1], before[name][1]) and not (row[slots] == before[name][slots]).all(), name
    (want, their), (got, mine) = found
    same(mine, their)
    assert len(kept(agent.bank)) > 2 and any(extent.rows > 1 for extent in kept(agent.bank))
    for a, b in zip(got, want):
        assert (a.loss_before, a.norm, a.kept, a.tokens) == (b.loss_before, b.norm, b.kept, b.tokens)
        # Without gradients a CPU computes attention in bf16 otherwise.
        assert a.loss_after == pytest.approx(b.loss_after, rel=0 if dtype == torch.float32 else TOLERANCE[dtype])


@pytest.mark.parametrize("adapter", [dict(train_a=True, init="random"), dict(optimizer="sgd"), dict(copy=True)], ids=str)
def test_every_kind_of_bank_learns_the_same_bits(adapter, monkeypatch):
    import tmem.agent.agent as agent_module

    made = agent_module.AdapterBank
    monkeypatch.setattr(agent_module, "AdapterBank", lambda *given, **options: made(*given, **{**options, **adapter}))
    found = []
    for fixed in (False, True):
        agent, slots = begun()
        taught(agent, slots, fixed)
        found.append(rows(agent.bank) | {f"a of {i}": site.a.clone() for i, site in enumerate(agent.bank.sites)})
    same(*found[::-1])


@pytest.mark.parametrize("family, dtype", [("llama", torch.float32), ("gemma", torch.float32), ("qwen3", torch.bfloat16)])
def test_a_memory_learns_the_same_bits_in_any_company(family, dtype):
    """One neighbour's Δ is not a number; it is left as it was."""
    together, slots = begun(family=family, dtype=dtype)
    before = [together.bank.snapshot(slot) for slot in slots]
    together.bank.param[slots[1]] = torch.nan
    together.bank.written(slots[1])
    learned = taught(together, slots, True)
    assert not learned[1].kept and together.bank.param[slots[1]].isnan().all()
    for place in (0, 2):
        alone = agent_of(family=family, dtype=dtype)
        own = [alone.bank.alloc() for _ in range(2)][-1]  # another slot than among the others
        alone.bank.restore(own, before[place])
        assert taught(alone, [own], True, [JOBS[place]]) == [learned[place]]
        assert torch.equal(alone.bank.param[own], together.bank.param[slots[place]])


def test_what_fills_a_block_up_touches_nothing():
    """Rows and memory that are nobody's hold NaN, and positions far out."""
    jobs = [pairs(4, name) for name in "abcde"]  # a row each, and one to fill up

    def learned(fixed, poisoned=False):
        agent, slots = begun(len(jobs))
        taught(agent, slots, fixed, jobs)
        if poisoned:
            (step,) = kept(agent.bank).values()
            assert step.extent.rows == 6
            step.hidden.fill_(torch.nan)
            step.positions.fill_(511)
            step.branches.fill_(7)
            step.losses.fill_(torch.nan)
            for site in agent.bank.sites:
                site.bt_grad.fill_(torch.nan)  # which counts as zero
        return taught(agent, slots, fixed, jobs), rows(agent.bank)

    want, theirs = learned(False)
    got, mine = learned(True, poisoned=True)
    assert got == want
    same(mine, theirs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured_update, "Step", spare_rows_of_slot_0.Step)
        with pytest.raises(AssertionError):
            same(learned(True, poisoned=True)[1], theirs)


def a_step(agent, slots, route=captured_update.Route):
    """A step with a minibatch as its input."""
    (block, *_), *_ = learning._minibatches(agent.model, agent.bank, list(zip(slots, JOBS)), agent.chat, CONFIG.learn)
    step = Step(agent.model, agent.bank, Extent.of(block), agent.bank.first_layer, block.hidden, None)
    step.route = route(agent.bank, [-1] * step.extent.rows, True, None)
    step.take(block, True)
    return step, block


@pytest.mark.parametrize("family", (*FAMILIES, "gemma3_text", "phi3"))
def test_a_step_reads_nothing_on_the_host(family):
    agent, slots = begun(family=family)
    step, block = a_step(agent, slots)
    before = rows(agent.bank)
    with unwaiting():
        step.run()
    assert not torch.equal(agent.bank.param, before["param"]) and step.losses.any()
    with pytest.raises(Waits), unwaiting():
        learning._pass(agent.model, agent.bank, [block], backward=True)
    with pytest.raises(Waits), unwaiting():
        a_step(agent, slots, slots_at_capture.Route)[0].run()


class Reads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, read):
        ctx.read = read
        return x * 2

    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.read(dy)


def read_in_backward(read):
    return lambda x: Reads.apply(x.requires_grad_(), read).sum().backward()


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: float(x[0]),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), x.new_zeros(())),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64)),
        lambda x: torch.tensor([1.0]) + x,
        lambda x: torch.equal(x, x),
        read_in_backward(lambda dy: dy.tolist()[0]),
        read_in_backward(lambda dy: len(dy[dy > 0])),
    ],
)
def test_what_waits_is_seen(reads):
    x = torch.ones(3)
    with pytest.raises(Waits), unwaiting():
        reads(x)
    with unwaiting():
        x.detach().index_select(0, torch.zeros(2, dtype=torch.int64)).repeat_interleave(2).sum()


def test_a_recording_serves_whatever_lies_in_its_memory(taped):
    """Recorded with nobody's input, replayed for every minibatch."""

    def learned(fixed):
        agent, slots = begun()
        taught(agent, slots, fixed)
        return taught(agent, slots[::-1], fixed), rows(agent.bank)

    want, theirs = learned(False)
    got, mine = learned(True)
    assert got == want
    same(mine, theirs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured_update, "Route", slots_at_capture.Route)
        with pytest.raises(AssertionError):
            same(learned(True)[1], theirs)


def test_settings_of_a_slot_are_followed_after_recording(taped):
    found = []
    for fixed in (False, True):
        agent, slots = begun()
        taught(agent, slots, fixed)
        config = dataclasses.replace(CONFIG.learn, lr=1e-2, clip=0.01, weight_decay=0.1)
        learn(agent.model, agent.bank, list(zip(slots, JOBS)), agent.chat, config, fixed=fixed)
        found.append(rows(agent.bank))
    same(*found[::-1])


def test_extents_are_few_and_hold_what_they_are_for():
    block = learning._Block(torch.zeros(5, 48, 2), *(torch.zeros(5, 48),) * 2, [0] * 5, [1] * 5, *[[0] * 20] * 4)
    assert Extent.of(block) == (6, 48, 32)
    assert Extent.of(dataclasses.replace(block, slots=[0], targets=[0] * 4)) == (1, 48, captured_update.LABELS)
    rows = [Extent.of(dataclasses.replace(block, slots=[0] * n)).rows for n in range(1, 65)]
    assert sorted({*rows}) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert all(n <= found < 1.5 * n for n, found in enumerate(rows, 1))


@pytest.mark.parametrize("limit, least", [("KEPT", 1), ("WORK", 128 * 64**2)])
def test_what_is_beyond_the_limits_is_launched_kernel_by_kernel(monkeypatch, limit, least):
    monkeypatch.setattr(captured_update, limit, least)
    found = []
    for fixed in (False, True):
        agent, slots = begun()
        found.append((taught(agent, slots, fixed), rows(agent.bank)))
    assert found[0][0] == found[1][0]
    same(found[1][1], found[0][1])
    assert len(kept(agent.bank)) == 1 if limit == "KEPT" else {e.rows * e.length <= 128 for e in kept(agent.bank)} == {True}


def test_a_capture_that_fails_is_said_once_and_the_update_goes_on(monkeypatch):
    tried = []

    def record(run):
        tried.append(run)
        if len(tried) == 2:
            raise torch.OutOfMemoryError("out of memory\ndetails")
        return run

    want, slots = begun()
    taught(want, slots, False)
    taught(want, slots, False)
    monkeypatch.setattr(captured_update, "recorder", lambda device: record)
    agent, slots = begun()
    with pytest.warns(UserWarning, match=r"a step could not be captured \(out of memory\); no more are"):
        taught(agent, slots, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outdate(agent.model)
        taught(agent, slots, True)
    assert len(tried) == 2
    same(rows(agent.bank), rows(want.bank))


def test_a_gradient_that_was_there_is_added_to():
    found = []
    for fixed in (False, True):
        agent, slots = begun()
        agent.bank.grad[slots[0]] = 1e-3
        taught(agent, slots, fixed)
        found.append(rows(agent.bank))
    same(*found[::-1])
    plain, slots = begun()
    taught(plain, slots, True)
    assert not torch.equal(plain.bank.param[slots[0]], found[1]["param"][slots[0]])
    assert torch.equal(plain.bank.param[slots[1:]], found[1]["param"][slots[1:]])


def test_a_slot_that_changes_hands_meanwhile_is_not_stepped():
    agent, slots = begun()

    def hand_over(done, total):
        agent.bank.free(slots[0])
        assert agent.bank.alloc() == slots[0]

    with pytest.raises(RuntimeError, match=f"slot {slots[0]} was freed"):
        taught(agent, slots, True, on_step=hand_over)
    assert not agent.bank.param[slots[0]].any()


def test_a_route_before_a_step_is_refused_its_backward():
    """As after any step."""
    agent, slots = begun()
    with agent.bank.route([slots[0]]):
        loss = agent.model(input_ids=torch.ones(1, 4, dtype=torch.int64)).logits.sum()
    taught(agent, slots, True)
    with pytest.raises(RuntimeError, match="was changed"):
        loss.backward()


def test_steps_are_kept_until_the_weights_move():
    agent, slots = begun()
    taught(agent, slots, True)
    first = dict(kept(agent.bank))
    taught(agent, slots, True)
    assert kept(agent.bank) == first
    outdate(agent.model)
    taught(agent, slots, True)
    assert kept(agent.bank).keys() == first.keys() and not set(kept(agent.bank).values()) & set(first.values())
    assert "_update_steps" not in vars(copy.deepcopy(agent.bank))


def test_where_steps_at_fixed_addresses_do_not_fit_there_are_none():
    agent, slots = begun()
    assert fits(agent.model, agent.bank)
    taught(agent, slots, None)
    assert "_update_steps" not in vars(agent.bank), "on a CPU they are asked for"
    with agent.bank.route([slots[0]]):
        assert not fits(agent.model, agent.bank)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fits(agent.model, agent.bank)
    agent.model.train()
    assert not fits(agent.model, agent.bank)
    agent.model.eval().requires_grad_(True)
    assert not fits(agent.model, agent.bank)
    experts, slots = begun(family="qwen3_moe")
    assert not fits(experts.model, experts.bank)
    with pytest.raises(ValueError, match="learn: steps of a mixture of experts cannot be captured"):
        taught(experts, slots, True)


def test_blocks_of_another_size_agree_with_each_alone():
    """The gradient of one block, filled up, to a tolerance: where a machine rounds rows of larger products otherwise."""
    agent, slots = begun()
    step, block = a_step(agent, slots)
    agent.bank.zero_grad(slots)
    step.take(block, False)
    step.run()
    got = agent.bank._grad[slots].clone()
    learning._pass(agent.model, agent.bank, [block], backward=True)
    assert_close("gradient", got, agent.bank.grad[slots], TOLERANCE[torch.float32])


def test_one_set_of_steps_serves_a_bank():
    agent, slots = begun()
    assert FixedSteps.of(agent.model, agent.bank, 2) is FixedSteps.of(agent.model, agent.bank, 2)
    assert FixedSteps.of(agent.model, agent.bank, 0) is not FixedSteps.of(agent.model, agent.bank, 2)
