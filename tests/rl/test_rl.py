"""The replay of actions under their own Δ, θ0 in fp32, and what is measured on rollouts."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from tiny import model, pairs
from tiny_agent import CONFIG, EPISODES, TRAIN, agent_of
from wrong import (
    advantage_per_action,
    batch_loss,
    branches_in_sight,
    delta_free_reference,
    delta_with_gradient,
    stale_snapshot,
)

import tmem.agent.agent as agent_module
import tmem.agent.loop as loop
from tmem.agent.learn import learn
from tmem.agent.loop import run
from tmem.agent.passages import cut
from tmem.agent.write import Written
from tmem.episode import Episode, Pair, Question
from tmem.rl import grpo, replay, supervised
from tmem.rl import rollout as ro
from tmem.rl import rows as of_rows
from tmem.rl.loss import Objective
from tmem.rl.policy import Replicated
from tmem.rl.world import World
from tmem.tasks import Task, stream
from tmem.testing import assert_close

# the replay ------------------------------------------------------------------------------------------------------------

ADVANTAGES = (1.0, -0.5, 0.25)


def rollouts_of(agent, monkeypatch, run=run, **options):
    """Traced rollouts whose writes always yield a pair, so that every later action has a Δ of its own."""
    monkeypatch.setattr(agent_module, "parse", lambda text, **_: Written([Pair(f"who{len(text)}?", text[:3] + "me")]))
    episodes = [EPISODES[2], EPISODES[0], EPISODES[2]]
    return run(agent, episodes, ["k", "l", "m"], temperature=1.0, trace=True, **options)


def policy_of(agent):
    """One for each model: it puts hooks on its parameters."""
    if not hasattr(agent.model, "policy"):
        object.__setattr__(agent.model, "policy", Replicated(agent.model))
    return agent.model.policy


def each(rollouts, advantages=ADVANTAGES):
    """Every action of a rollout gets the rollout's advantage."""
    return [[a] * len(r.actions) for a, r in zip(advantages, rollouts)]


def replayed(agent, rollouts, **options):
    """What an update finds, and its gradient."""
    policy = policy_of(agent)
    options = {"total": 100, "tokens": 256, **options}
    found = replay.backward(agent, policy, rollouts, each(rollouts), **options)
    gradient = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in policy.params])
    policy.drop()
    return found, gradient


def worst(found):
    return max(mean for *_, mean, _ in found.actions)


def test_the_trainer_finds_the_samplers_probabilities_in_every_action(monkeypatch):
    agent = agent_of(slots=8)
    rollouts = rollouts_of(agent, monkeypatch)
    found, _ = replayed(agent, rollouts)
    assert len(found.actions) == sum(len(r.actions) for r in rollouts) == 8
    assert {s[1] for s in found.actions} == {"write", "answer"} and max(s[2] for s in found.actions) > 1
    assert sum(s[3] for s in found.actions) == found.tokens
    assert worst(found) < 1e-5 and found.clipped == 0 and found.ratio == pytest.approx(found.tokens, rel=1e-5)
    assert not any(agent.bank.used) and not agent.bank.grad.any()


def test_a_stale_snapshot_is_caught(monkeypatch):
    agent = agent_of(slots=8)
    found, _ = replayed(agent, rollouts_of(agent, monkeypatch, stale_snapshot.run))
    assert worst(found) > 1e-2


def test_a_writer_without_memory_is_replayed_without_it(monkeypatch):
    agent = agent_of(slots=8)
    with_memory = rollouts_of(agent, monkeypatch)
    agent.config = dataclasses.replace(agent.config, write=dataclasses.replace(agent.config.write, under_delta=False))
    for mode, rollouts in (
        ("snapshot", rollouts_of(agent, monkeypatch)),
        ("log", rollouts_of(agent, monkeypatch, snapshots=False)),
    ):
        writes = [a for r in rollouts for a in r.actions if a.kind == "write"]
        assert all(a.delta is None and a.writes == 0 for a in writes) and any(len(r.log) > 1 for r in rollouts)
        found, _ = replayed(agent, rollouts, mode=mode)
        assert worst(found) < 1e-5 and len(found.actions) == sum(len(r.actions) for r in rollouts)
    said = [[a.generation.ids for r in several for a in r.actions if a.kind == "write"] for several in (with_memory, rollouts)]
    assert said[0] != said[1]  # the second writes


def test_learning_again_from_the_log_gives_the_same_numbers_as_snapshots(monkeypatch):
    agent = agent_of(slots=8)
    kept = rollouts_of(agent, monkeypatch)
    without = rollouts_of(agent, monkeypatch, snapshots=False)
    assert all(a.delta is None for r in without for a in r.actions)
    assert [a.generation for r in kept for a in r.actions] == [a.generation for r in without for a in r.actions]
    by_snapshot, one = replayed(agent, kept)
    from_log, other = replayed(agent, without, mode="log")
    assert_close("gradient", other, one, 1e-5)
    assert [s[:4] for s in from_log.actions] == [s[:4] for s in by_snapshot.actions] and worst(from_log) < 1e-5
    assert not any(agent.bank.used)


def test_the_policy_gradient_does_not_depend_on_micro_batches_slots_order_or_checkpointing(monkeypatch):
    agent = agent_of(slots=8)
    rollouts = rollouts_of(agent, monkeypatch)
    policy = policy_of(agent)
    policy.remember()
    policy.params[3].data.mul_(1.1)  # away from the reference, or its term has no gradient
    policy.publish()
    options = {"objective": Objective(beta=0.1)}
    first, one = replayed(agent, rollouts, tokens=64, **options)
    assert one.any() and first.kl > 0
    _, large = replayed(agent, rollouts, tokens=4096, **options)
    assert_close("micro-batches", large, one, 1e-4)
    policy.checkpointing = True
    _, again = replayed(agent, rollouts, tokens=4096, **options)
    assert_close("checkpointing", again, large, 1e-5)
    policy.checkpointing = False
    reverse = replay.backward(agent, policy, rollouts[::-1], each(rollouts)[::-1], 100, Objective(beta=0.1), tokens=256)
    assert reverse.loss == pytest.approx(first.loss, rel=1e-4)
    policy.drop()
    for _ in range(7):  # one free slot, so one Δ at a time
        agent.bank.alloc()
    _, few = replayed(agent, rollouts, **options)
    assert_close("few slots", few, one, 1e-4)
    agent.bank.alloc()
    with pytest.raises(RuntimeError, match="0 of 8 slots are free"):
        replayed(agent, rollouts, **options)
    assert not agent.bank.grad.any()


def test_rollouts_that_share_a_prompt_share_a_row_and_do_not_see_each_other(monkeypatch):
    agent = agent_of(slots=8)
    rollouts = rollouts_of(agent, monkeypatch)  # the first and the last begin alike
    assert rollouts[2].actions[0].prompt == rollouts[0].actions[0].prompt
    rows, logits = [], Replicated.logits
    monkeypatch.setattr(Replicated, "logits", lambda self, ids, *where: rows.append(len(ids)) or logits(self, ids, *where))
    together, one = replayed(agent, rollouts, tokens=4096)
    shared, rows[:] = sum(rows), []
    monkeypatch.setattr(of_rows, "LONGEST", 0)
    apart, other = replayed(agent, rollouts, tokens=4096)
    assert shared == sum(rows) - 1
    assert_close("gradient", one, other, 1e-5)
    assert worst(together) < 1e-5 and together.loss == pytest.approx(apart.loss, rel=1e-5)
    assert together.entropy == pytest.approx(apart.entropy, rel=1e-5)
    monkeypatch.undo()
    rollouts = rollouts_of(agent, monkeypatch)
    wrong = branches_in_sight.backward(agent, policy_of(agent), rollouts, each(rollouts), 100)
    policy_of(agent).drop()
    assert worst(wrong) > 1e-3


def test_questions_that_begin_alike_share_a_row_and_do_not_see_each_other(monkeypatch):
    """What they begin with is computed once for those of one rollout; another's stand under another Δ."""
    agent = agent_of(slots=8)
    rollouts = rollouts_of(agent, monkeypatch)
    for rollout in rollouts:  # one more question, which begins as the last one
        asked = rollout.actions[-1]
        begin = asked.prompt[: of_rows.SHARED]
        rollout.actions.append(dataclasses.replace(asked, prompt=begin + asked.prompt[: of_rows.SHARED : -1]))
    rows, logits = [], Replicated.logits
    monkeypatch.setattr(Replicated, "logits", lambda self, ids, *where: rows.append(ids.numel()) or logits(self, ids, *where))
    together, one = replayed(agent, rollouts, tokens=1)  # each row alone
    shared, rows[:] = sum(rows), []
    monkeypatch.setattr(of_rows, "JOINED", 0)
    apart, other = replayed(agent, rollouts, tokens=1)
    assert shared == sum(rows) - len(rollouts) * of_rows.SHARED
    assert_close("gradient", one, other, 1e-5)
    assert together.loss == pytest.approx(apart.loss, rel=1e-5)
    assert together.entropy == pytest.approx(apart.entropy, rel=1e-5)
    monkeypatch.setattr(of_rows, "JOINED", 256)
    wrong = branches_in_sight.backward(agent, policy_of(agent), rollouts, each(rollouts), 100)
    policy_of(agent).drop()
    assert wrong.loss != pytest.approx(apart.loss, rel=1e-4)


def test_delta_is_a_constant_of_the_update(monkeypatch):
    """The gradient must be that of a model in which Δ is merged; one that reaches Δ's rows is caught."""
    agent = agent_of(slots=8)
    rollouts = rollouts_of(agent, monkeypatch)
    replayed(agent, rollouts)
    assert not agent.bank.grad.any()
    delta_with_gradient.backward(agent, policy_of(agent), rollouts)
    assert agent.bank.grad.any()


def kl_of_memory(agent, rollouts, backward):
    """The divergence from a reference that is θ0 itself: zero, unless the memory is counted as a difference."""
    policy = policy_of(agent)
    policy.remember()
    return backward(agent, policy, rollouts, each(rollouts), 100, Objective(beta=0.1)).kl


def test_the_reference_has_the_same_memory_as_the_policy(monkeypatch):
    agent = agent_of(slots=8)
    rollouts = rollouts_of(agent, monkeypatch)
    assert abs(kl_of_memory(agent, rollouts, replay.backward)) < 1e-5
    assert kl_of_memory(agent, rollouts, delta_free_reference.backward) > 1e-2


def test_an_advantage_belongs_to_a_rollout_and_every_action_of_it_gets_it(monkeypatch):
    """What a step of GRPO trains each action with: rewards 1 and 0 give 1 and -1, however many actions."""
    agent = agent_of(slots=8)
    rollouts, rewards = rollouts_of(agent, monkeypatch)[:2], iter([1.0, 0.0])
    counts = [len(r.actions) for r in rollouts]
    assert counts[0] != counts[1]
    trained = [[], []]
    accumulate = replay._accumulate

    def seen(policy, bank, part, *rest):
        for row in part:
            for s in row:
                trained[s.rollout].append(s.advantage)
        accumulate(policy, bank, part, *rest)

    def right(found):
        return [[round(a, 4) for a in actions] for actions in found] == [[1.0] * counts[0], [-1.0] * counts[1]]

    monkeypatch.setattr(replay, "_accumulate", seen)
    monkeypatch.setattr(grpo, "sample", lambda *_, **__: rollouts)
    monkeypatch.setattr(grpo, "reward", lambda *_: next(rewards))
    config = dataclasses.replace(TRAIN, rl_episodes=1, rl_group=2, probe=0)
    task = SimpleNamespace(episode=lambda key, split: None, score=Task().score)
    row, actions = grpo.step(agent, policy_of(agent), task, config, 0, clock=loop.Clock())
    assert right(trained) and len(actions) == sum(counts) and row["reward"] == 0.5
    assert not right(advantage_per_action.advantages([1.0, 0.0], counts))


def test_dead_groups_and_empty_worlds_cost_nothing(monkeypatch):
    agent = agent_of(slots=8)
    policy = policy_of(agent)
    rollouts = rollouts_of(agent, monkeypatch)
    found = replay.backward(agent, policy, rollouts, each(rollouts, (0.0, 0.0, 0.0)), 100)
    assert found.tokens == 0 and all(p.grad is None for p in policy.params)
    assert replay.backward(agent, policy, [], [], 1).loss == 0.0


def test_with_a_kl_term_a_rollout_without_an_advantage_is_pulled_to_the_reference_as_the_others_are(monkeypatch):
    """An advantage of 0 is the limit of one near 0, as the formula says, and its tokens are not counted as live."""
    agent = agent_of(slots=8)
    rollouts, policy = rollouts_of(agent, monkeypatch), policy_of(agent)
    policy.remember()
    policy.params[3].data.mul_(1.1)
    policy.publish()

    def pulled(*advantages):
        found = replay.backward(agent, policy, rollouts, each(rollouts, advantages), 100, Objective(beta=0.1))
        gradient = torch.cat([p.grad.flatten() for p in policy.params])
        policy.drop()
        return found, gradient

    none, near, some = pulled(0.0, 0.0, 0.0), pulled(1e-9, 1e-9, 1e-9), pulled(1.0, 0.0, -1.0)
    assert none[0].loss > 0 and none[0].tokens == near[0].tokens == near[0].live and none[0].live == 0
    assert_close("gradient", none[1], near[1], 1e-5)
    assert 0 < some[0].live < some[0].tokens == near[0].tokens


@pytest.mark.parametrize("dead, said", [("counted", [2, 1, 2]), ("dropped", [2])])
def test_groups_without_variance_are_left_out_of_the_batch_where_they_do_not_count(dead, said):
    group = [grpo.Group([f"{g}{i}" for i in range(n)], [], []) for g, n in (("a", 2), ("b", 1), ("c", 2))]
    advantages = [[1.0, 0.0], [-1.0], [0.0], [0.0], [0.0, 0.0]]
    batch = grpo._batch(dataclasses.replace(TRAIN, rl_dead=dead), group, advantages)
    assert batch == [(f"{g}{i}", own) for (g, i), own in zip(("a0", "a1", "b0", "c0", "c1"), advantages)][: sum(said)]


def test_a_batch_normalised_loss_is_caught():
    """The check of test_loop (alone = among others), which the wrong update must fail."""
    jobs = [(0, pairs(3)), (1, pairs(4, "b"))]
    found = {}
    for name, update in (("right", learn), ("wrong", batch_loss.learn)):
        both, alone = agent_of(), agent_of()
        for agent in (both, alone):
            agent.bank.alloc()
            agent.bank.alloc()
            for slot in (0, 1):  # SGD-like steps: Adam forgets the size of a gradient
                agent.bank.configure(slot, eps=1.0)
        update(both.model, both.bank, jobs, both.chat, CONFIG.learn)
        update(alone.model, alone.bank, jobs[:1], alone.chat, CONFIG.learn)
        found[name] = torch.equal(both.bank.param[0], alone.bank.param[0])
    assert found == {"right": True, "wrong": False}


# θ0 --------------------------------------------------------------------------------------------------------------------


def test_the_policy_is_adamw_in_fp32_and_publishes_to_a_bf16_model():
    network = model(dtype=torch.bfloat16)
    reference = model().requires_grad_(True)
    reference.load_state_dict({k: v.float() for k, v in network.state_dict().items()})
    policy = Replicated(network)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-6, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        with policy.updating(1):
            for param, twin in zip(network.parameters(), reference.parameters()):
                gradient = torch.randn(param.shape, generator=generator).bfloat16()
                (param * gradient).sum().backward()
                twin.grad = gradient.float()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        assert policy.step(1e-6, 1.0) == pytest.approx(float(norm), rel=1e-4)
        optimizer.step()
    for name, mine, twin, param in zip(policy.names, policy.params, reference.parameters(), network.parameters()):
        assert_close(name, mine.detach(), twin.detach(), 1e-6)
        assert torch.equal(param, mine.detach().bfloat16())
    assert policy.steps == 3 and not any(p.requires_grad for p in network.parameters())


def test_a_gradient_that_is_not_finite_takes_no_step():
    policy = Replicated(model())
    before = [p.detach().clone() for p in policy.params]
    policy.params[0].grad = torch.full_like(policy.params[0], float("nan"))
    assert not policy.step(1.0) < float("inf")
    assert all(torch.equal(a, b) for a, b in zip(before, policy.params)) and not policy.steps


def test_the_reference_stays_where_it_was_remembered():
    network = model()
    policy = Replicated(network)
    first = network.lm_head.weight.clone()
    policy.remember()
    with torch.no_grad():
        policy.params[0].add_(1.0)
    policy.publish()
    moved = network.lm_head.weight.clone()
    with policy.referring():
        assert torch.equal(network.lm_head.weight, first)
    assert torch.equal(network.lm_head.weight, moved) and not torch.equal(moved, first)


def test_the_learning_rate_rises_and_falls_by_hand():
    """Ten steps, up over four and down over the last four: left / share is 4/4, 3/4, 2/4, 1/4 in them."""
    config = dataclasses.replace(TRAIN, rl_steps=10, rl_lr=8.0, rl_warmup=4, rl_decay=0.4)
    assert [grpo._rate(config, n) for n in range(10)] == pytest.approx([2, 4, 6, 8, 8, 8, 8, 6, 4, 2])
    assert [grpo._rate(dataclasses.replace(config, rl_decay=0.0), n) for n in range(10)] == [2, 4, 6] + [8] * 7
    assert grpo._rate(dataclasses.replace(config, rl_decay=1.0, rl_warmup=0), 5) == 4.0


# what the warm start teaches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [80, 400, 2000])
def test_the_warm_start_teaches_passages_as_the_agent_cuts_them_with_the_pairs_that_stand(window):
    agent = agent_of()
    config = dataclasses.replace(agent.config, write=dataclasses.replace(agent.config.write, window=window))
    agent = dataclasses.replace(agent, config=config)
    for seed in range(8):
        episode = stream.episode(f"passages/{seed}", "train", 3)
        found = supervised.passages(agent, episode)
        fits = all(agent.chat.count(chunk) <= window for chunk in episode.chunks)
        assert not fits or [text for text, _ in found] == cut(agent.chat, episode.chunks, window)
        assert "\n\n".join(text for text, _ in found) == "\n\n".join(episode.chunks)
        for _, gold in found:
            assert len({p.question for p in gold}) == len(gold)
        last = {p.question: p.answer for gold in episode.pairs for p in gold}
        assert {p.question: p.answer for _, gold in found for p in gold} == last


def test_a_passage_of_several_chunks_is_taught_with_the_pairs_of_all_of_them():
    """In the order of the text; what a later chunk states anew stands where it does."""
    agent, told = agent_of(), [[("a?", "1"), ("b?", "2")], [("c?", "3")], [("A", "4")], [("d?", "5")]]
    gold = tuple(tuple(Pair(*p) for p in chunk) for chunk in told)
    episode = Episode("e", ("x" * 20, "y" * 20, "z" * 20, "w" * 60), gold, ())
    found = supervised.passages(agent, episode)
    assert [[(p.question, p.answer) for p in pairs] for _, pairs in found] == [
        [("b?", "2"), ("c?", "3"), ("A", "4")], [("d?", "5")],
    ]  # fmt: skip


@pytest.mark.parametrize("under_delta", [True, False])
def test_writing_is_taught_under_the_delta_that_a_rollout_writes_under(monkeypatch, under_delta):
    """That of the writes before it, or none where writing is without it; recalling is under that of all writes either way."""
    agent = agent_of(config=dataclasses.replace(CONFIG, write=dataclasses.replace(CONFIG.write, under_delta=under_delta)))
    found = supervised.examples(agent, dataclasses.replace(TRAIN, warm_plain=0), 0, [stream.episode("under", "train", 3)])
    writing, recalling = found.writing, found.recalling
    (rollout,) = rollouts_of(agent, monkeypatch)[:1]
    actions = [a.delta is not None for a in rollout.actions]
    assert len(actions) > 2 and actions == [False, *[under_delta] * (len(actions) - 2), True]
    assert len(writing) > 2 and [e.delta is not None for e in writing] == [False, *[under_delta] * (len(writing) - 1)]
    assert recalling and all(e.delta is not None for e in recalling)


def test_supervised_examples_may_show_a_sample_of_the_gold_pairs():
    """1 to `warm_pairs` of them, in their order, the same each time, whatever else is in the batch; every pair has its turn."""
    pairs = [Pair(f"Question {i}?", f"answer {i}") for i in range(7)]
    three = dataclasses.replace(TRAIN, warm_pairs=3)
    shown = {text: supervised.shown(text, pairs, three) for text in map(str, range(60))}
    assert {len(s) for s in shown.values()} == {1, 2, 3}
    assert {p for s in shown.values() for p in s} == set(pairs)
    assert all(s == sorted(s, key=pairs.index) for s in shown.values())
    assert all(s == supervised.shown(text, pairs, three) for text, s in shown.items())
    assert any(s != supervised.shown(text, pairs, dataclasses.replace(three, seed=1)) for text, s in shown.items())
    assert supervised.shown("0", pairs[:1], three) == pairs[:1]
    assert supervised.shown("0", [], three) == []
    assert supervised.shown("0", pairs, TRAIN) == pairs


def test_supervised_examples_weigh_the_same_however_they_are_batched():
    agent = agent_of()
    policy = Replicated(agent.model)
    batch = [supervised.Example([5] * n, [7] * m) for n, m in ((3, 1), (20, 4), (40, 2))]
    found = []
    for micro in (16, 4096):
        (loss,) = supervised.backward(agent, policy, [batch], micro)
        found.append((loss, torch.cat([p.grad.flatten() for p in policy.params])))
        policy.drop()
    alone = [supervised_loss(agent, e) for e in batch]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5) == pytest.approx(sum(alone) / 3, rel=1e-5)
    assert_close("gradient", found[0][1], found[1][1], 1e-5)
    shares = [supervised.backward(agent, policy, [part], 4096, counts=[3]) for part in (batch[:1], batch[1:])]
    assert sum(x for (x,) in shares) == pytest.approx(found[0][0], rel=1e-5)
    assert_close("ranks", torch.cat([p.grad.flatten() for p in policy.params]), found[0][1], 1e-5)


def test_layers_computed_again_in_backward_give_the_same_gradient_in_bf16():
    """Where a CPU has its own attention for bf16, the second computation must make what the first one kept."""
    dtype, tolerance = torch.bfloat16, 2e-2  # 8 bits a number, and another order of sums in attention
    agent = agent_of(dtype=dtype)
    policy, batch = Replicated(agent.model), [supervised.Example([5] * n, [7] * m) for n, m in ((3, 1), (20, 4), (40, 2))]
    found = []
    for policy.checkpointing in (False, True):
        (loss,) = supervised.backward(agent, policy, [batch], 4096)
        with policy.updating(1):  # an empty pass, as a rank adds that has fewer than others, has no route
            (0.0 * policy.logits(torch.zeros(1, 1, dtype=torch.int64), [0], [0]).sum()).backward()
        found.append((loss, torch.cat([p.grad.flatten() for p in policy.params])))
        policy.drop()
    assert found[1][0] == pytest.approx(found[0][0], rel=tolerance)
    assert_close("gradient", found[1][1], found[0][1], tolerance)


def test_examples_that_begin_alike_share_a_row_and_do_not_see_each_other(monkeypatch):
    """Of several parts, with their weights, as one after another alone."""
    agent = agent_of()
    policy = Replicated(agent.model)
    of = supervised.Example
    writing = [of([5, 6, 7, 8], [9] * n, None, 4) for n in (2, 3)] + [of([5, 6, 9], [4, 4], None, 2)]
    reading = [of([5, 6, 3, *extra], [2, 8], None, 2) for extra in ([], [1, 1])]
    sizes, logits = [], Replicated.logits
    monkeypatch.setattr(Replicated, "logits", lambda self, ids, *where: sizes.append(len(ids)) or logits(self, ids, *where))
    found = supervised.backward(agent, policy, [writing, reading], 4096, (1.0, 0.5))
    together = torch.cat([p.grad.flatten() for p in policy.params])
    assert sum(sizes) == 2
    policy.drop()
    alone = [[supervised.backward(agent, policy, [[e]], 4096, (s,), [len(part)])[0] for e in part]
             for part, s in ((writing, 1.0), (reading, 0.5))]  # fmt: skip
    apart = torch.cat([p.grad.flatten() for p in policy.params])
    assert [sum(x) for x in alone] == pytest.approx(found, rel=1e-5)
    assert_close("gradient", together, apart, 1e-5)


def test_a_write_of_many_replies_is_taught_a_pair_a_reply_and_reading_beside_it():
    agent = agent_of(config=dataclasses.replace(CONFIG, write=dataclasses.replace(CONFIG.write, replies=8)))
    episodes = [stream.episode(name, "train", 1) for name in ("one", "two")]
    found = supervised.examples(agent, dataclasses.replace(TRAIN, warm_plain=1, warm_read=1.0), 0, episodes)
    pairs = [p for e in episodes for _, gold in supervised.passages(agent, e) for p in gold]
    said = [agent.chat.text(e.answer) for e in found.writing]
    assert said == [f"A: {p.answer}\nQ: {p.question}" for p in pairs]
    assert all(0 < e.begin < len(e.prompt) for e in found.writing + found.reading)
    read = [(agent.chat.text(e.prompt), agent.chat.text(e.answer)) for e in found.reading]
    gold = {(p.question, p.answer) for p in pairs}
    own = [(text, answer) for text, answer in read if answer != CONFIG.learn.unknown]
    assert all(any(q in text and a == answer for q, a in gold) for text, answer in own)
    counts = [-(-len(g) // 2) for e in episodes for _, g in supervised.passages(agent, e)]
    assert len(own) == sum(counts) > len(pairs) / 3


def test_questions_beside_a_passage_are_worded_and_bare_and_now_and_then_strange():
    worded_one = "As told: {question}"
    told = dict(
        learn=dataclasses.replace(CONFIG.learn, renderings=(worded_one,)),
        answer=dataclasses.replace(CONFIG.answer, asked=worded_one),
    )
    agent = agent_of(config=dataclasses.replace(CONFIG, write=dataclasses.replace(CONFIG.write, replies=8), **told))
    config = dataclasses.replace(TRAIN, warm_plain=100, warm_read=1.0)
    episodes = [stream.episode(name, "train", 1) for name in ("one", "two")]
    worded, own, strange = 0, 0, 0
    for step in range(12):
        found = supervised.examples(agent, config, step, episodes)
        read = [(agent.chat.text(e.prompt), agent.chat.text(e.answer)) for e in found.reading]
        strange += sum(answer == CONFIG.learn.unknown for _, answer in read)
        assert all("As told:" in text for text, answer in read if answer == CONFIG.learn.unknown)
        own += sum(answer != CONFIG.learn.unknown for _, answer in read)
        worded += sum("As told:" in text for text, answer in read if answer != CONFIG.learn.unknown)
        again = supervised.examples(agent, config, step, episodes)
        assert [(e.prompt, e.answer) for e in again.reading] == [(e.prompt, e.answer) for e in found.reading]
    assert 0.4 < worded / own < 0.9
    assert 0 < strange < 12 * sum(len(supervised.passages(agent, e)) for e in episodes)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_what_is_read_beside_a_passage_does_not_depend_on_the_number_of_ranks(size):
    """Also where a rank has a passage alone: questions of another passage are those of all ranks."""
    agent = agent_of(config=dataclasses.replace(CONFIG, write=dataclasses.replace(CONFIG.write, replies=8)))
    config = dataclasses.replace(TRAIN, warm_plain=100, warm_read=1.0)
    episodes = [dataclasses.replace(stream.episode(str(i), "train", 1), questions=()) for i in range(size)]
    strange = 0
    for step in range(8):
        alone = supervised.examples(agent, config, step, episodes).reading
        ranks = [supervised.examples(agent, config, step, episodes, (), World(r, size)).reading for r in range(size)]
        assert all(ranks) and sum(map(len, ranks)) == len(alone)
        assert [e.prompt for rank in ranks for e in rank] == [e.prompt for e in alone]  # a rank has one episode here
        strange += sum(agent.chat.text(e.answer) == CONFIG.learn.unknown for e in alone)
    assert strange


def test_of_many_replies_at_most_so_many_are_shown():
    pairs = [Pair(f"What is {i}?", f"{i}") for i in range(9)]
    four = dataclasses.replace(TRAIN, warm_pairs=4)
    assert [len(supervised.shown(str(n), pairs[:n], four, replies=8)) for n in range(1, 10)] == [1, 2, 3, 4, 4, 4, 4, 4, 4]


def supervised_loss(agent, example):
    ids = torch.tensor([example.prompt + example.answer])
    logp = agent.model(input_ids=ids).logits[0].log_softmax(-1)
    n = len(example.prompt)
    return -float(logp[torch.arange(n - 1, ids.shape[1] - 1), ids[0, n:]].mean())


def test_recall_of_gold_pairs_needs_the_value_and_the_person():
    gold = [Pair("What is Ada's dog called?", "Rex"), Pair("Where does Ben live?", "Ulm")]
    assert ro.recall([Pair("Ada has a dog named?", "rex.")], gold) == 0.5
    assert ro.recall([Pair("What is Ben's dog called?", "Rex")], gold) == 0.0
    assert ro.recall([], gold) == 0.0


# what is measured --------------------------------------------------------------------------------------------------------


def test_the_known_collapses_show_in_the_scores():
    """A question copied with a guessed answer, an empty list, a list that the token limit cut."""
    question = Question("q", "What does Ada like?", ("figs",), "attribute")
    episode = Episode("e", ("Ada: I like figs.",), ((Pair("What does Ada like?", "figs"),),), (question,))
    passage, fine = episode.chunks[0], loop.Learned(1.0, 0.5, 3.0, True)

    def found(pairs, answer="figs", finished=True):
        entry = loop.LogEntry(passage, Written(list(pairs)), fine, tokens=50, finished=finished)
        return ro.scores(Task(), loop.Rollout(episode, "k", [entry], [answer]))

    honest, guessed = found([Pair("What does Ada like?", "Figs.")]), found([Pair("What does Ada like?", "plums")], "plums")
    assert (honest.grounded, honest.copied, honest.recall, honest.scores["em"]) == (1.0, 0.0, 1.0, 1.0)
    assert (guessed.grounded, guessed.copied, guessed.recall, guessed.scores["em"]) == (0.0, 1.0, 0.0, 0.0)
    assert found([]).empty == 1.0 and found([], finished=False).cut == 1.0 and honest.norm == 3.0
    config = dataclasses.replace(TRAIN, length_cost=0.1, format_cost=0.2)
    assert ro.reward(honest, TRAIN) == 1.0 and ro.reward(honest, config) == pytest.approx(1.0 - 0.05)


def test_a_rollouts_first_read_is_shared_by_its_group(monkeypatch):
    """The prompt of the first write is the same for a whole group, under Δ = 0: it is read once, and nothing changes."""
    import tmem.agent.decode as decoding

    agent = agent_of(slots=6)
    read = []
    embed = decoding.fw.embed
    monkeypatch.setattr(decoding.fw, "embed", lambda m, ids: read.append(len(ids)) or embed(m, ids))
    config = dataclasses.replace(TRAIN, rl_group=6)
    together = ro.sample(agent, EPISODES[:1], config, "k")
    assert read[0] == 1  # one row for six rollouts
    alone = [run(agent, EPISODES[:1], [f"k/{EPISODES[0].id}/{g}"], temperature=1.0, trace=True)[0] for g in range(6)]
    assert [[a.generation for a in r.actions] for r in together] == [[a.generation for a in r.actions] for r in alone]
    assert len({tuple(r.actions[0].generation.ids) for r in together}) > 1
