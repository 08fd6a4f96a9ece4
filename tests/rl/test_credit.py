"""Credit of single actions: what leaving a write out takes away, shares of replies, advantages worked by hand."""

import dataclasses
import math

import pytest
import torch
from tiny_agent import CONFIG, EPISODES, TRAIN, agent_of
from tiny_run import lines, start
from wrong import credit_of_what_came_before, credit_without_baseline

from tmem.agent.decode import Generation
from tmem.agent.learn import Learned
from tmem.agent.loop import Action, LogEntry, Rollout
from tmem.agent.scored import Likelihood, likelihoods
from tmem.agent.teach import Lesson
from tmem.agent.write import Written, asked_of
from tmem.episode import Pair, Question
from tmem.rl import credit, loss
from tmem.rl import rollout as ro
from tmem.tasks import Task

QUESTIONS = (Question("q0", "who?", ("me",), "k"), Question("q1", "what?", ("it", "that"), "k"))
EPISODE = dataclasses.replace(EPISODES[0], questions=QUESTIONS)
TAUGHT = [[Pair("who?", "me")], [Pair("what?", "it")], [Pair("who?", "me"), Pair("why?", "so")]]
HARD = dataclasses.replace(CONFIG, learn=dataclasses.replace(CONFIG.learn, lr=0.02, epochs=12, rehearse=4))
FINE = Learned(1.0, 0.5, 3.0, True)


def rollout_of(writes, kept=True, **fields):
    log = [LogEntry("text", Written(list(pairs)), dataclasses.replace(FINE, kept=kept)) for pairs in writes]
    return Rollout(EPISODE, "k", log, **fields)


def after(agent, writes):
    """R after these writes, learned one after another in a slot."""
    lesson = Lesson()
    with agent.bank.borrowed(1) as slots:
        for pairs in writes:
            agent.teach(slots, [pairs], [lesson])
        found = likelihoods(agent, QUESTIONS, slots * 2)
    return (found[0].logp + found[1].logp) / 2


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_a_write_added_what_leaving_it_out_takes_from_the_reward(slots):
    """Of two rollouts, in as many slots as there are, to the same bits; a rolled back or empty write added nothing."""
    agent = agent_of(slots=slots, config=HARD)
    rollouts = [rollout_of(TAUGHT), rollout_of([TAUGHT[1], []])]
    whole = [after(agent, TAUGHT), after(agent, TAUGHT[1:2])]
    want = [[whole[0] - after(agent, TAUGHT[:j] + TAUGHT[j + 1 :]) for j in range(3)], [whole[1] - after(agent, []), 0.0]]
    found = credit.added_by_writes(agent, rollouts)
    assert found == want and all(found[0]) and found[1][0] > 0
    assert credit.added_by_writes(agent, [rollout_of(TAUGHT, kept=False)]) == [[0.0] * 3]
    assert not any(agent.bank.used)


def test_what_two_writes_taught_is_not_the_first_ones_alone():
    agent = agent_of(config=HARD)
    twice = rollout_of([TAUGHT[0], TAUGHT[0]])
    (right,), (wrong,) = credit.added_by_writes(agent, [twice]), credit_of_what_came_before.added_by_writes(agent, [twice])
    assert wrong[0] > 0.1 and abs(right[0]) < wrong[0] / 2 and math.isclose(right[1], wrong[1])


def test_where_answers_were_scored_the_whole_is_not_learned_again(monkeypatch):
    agent, logs, rewards = agent_of(config=HARD), [], credit._rewards
    monkeypatch.setattr(credit, "_rewards", lambda agent, some, of: logs.extend(some) or rewards(agent, some, of))
    likely = [Likelihood(0.5, -1.0), Likelihood(0.5, -2.0)]
    ((added,),) = credit.added_by_writes(agent, [rollout_of(TAUGHT[:1], likely=likely)])
    assert added == -1.5 - after(agent, []) and logs == [[]]


def said(agent, text, finished=True, kind="write", place=0):
    ids = agent.chat.answer(text)[:-1]
    return Action(kind, [1], Generation(ids, [0.0] * len(ids), finished), None, 0, place)


def test_replies_share_by_the_pairs_that_were_learned_and_pay_for_their_own_words():
    agent = agent_of(config=dataclasses.replace(CONFIG, write=dataclasses.replace(CONFIG.write, replies=4)))
    texts = ["who?", "Who?", "?", "what?"]
    rollout = rollout_of([[Pair("who?", "me"), Pair("what?", "that")]], actions=[said(agent, t) for t in texts])
    config = dataclasses.replace(TRAIN, rl_answers="logp", length_cost=0.5, format_cost=0.25)
    found = dataclasses.replace(scored(0.0, 0.0), questions=[{"logp": 0.0}] * 2)
    sizes = [len(t) for t in texts]
    want = [x - 0.005 * n for x, n in zip([4.0, -0.25, -0.25, 4.0], sizes)]  # 8 over two pairs; a second "who?" is dropped
    assert credit.credit(agent, rollout, [8.0], found, config) == pytest.approx(want)
    written = [asked_of([""], [t], [True]) for t in texts]
    assert credit.pairs_of(written, rollout.log[0]) == [1, 0, 0, 1]


def test_a_span_gets_what_its_pair_does():
    agent = agent_of(config=dataclasses.replace(CONFIG, write=dataclasses.replace(CONFIG.write, replies=4)))
    spans, questions = [said(agent, t) for t in ("me", "it")], [said(agent, t) for t in ("who?", "why?")]
    questions = [
        dataclasses.replace(q, prompt=[*s.prompt, *s.generation.ids, 7]) for q, s in zip(questions, spans, strict=True)
    ]
    rollout = rollout_of([[Pair("who?", "me")]], actions=spans + questions)
    config = dataclasses.replace(TRAIN, rl_answers="logp", format_cost=0.25)
    found = dataclasses.replace(scored(0.0, 0.0), questions=[{"logp": 0.0}] * 2)
    assert credit.credit(agent, rollout, [8.0], found, config) == [8.0, -0.25, 8.0, -0.25]


def test_a_list_has_the_whole_credit_and_an_answer_its_questions_reward():
    agent = agent_of()
    actions = [said(agent, "Q: who?\nA: me\nwhat"), said(agent, "Q: what?\nA: it", place=1)]
    actions += [said(agent, "me", kind="answer"), said(agent, "so", kind="answer", place=1)]
    rollout = rollout_of([[Pair("who?", "me")], [Pair("what?", "it")]], answers=["me", "so"], actions=actions)
    config = dataclasses.replace(TRAIN, format_cost=0.25)
    assert credit.credit(agent, rollout, [0.5, -0.5], ro.scores(Task(), rollout), config) == [0.25, -0.5, 1.0, 0.0]


def scored(*logp):
    rollout = rollout_of([[Pair("who?", "me")]], likely=[Likelihood(0.5, x) for x in logp])
    return ro.scores(Task(), rollout)


def test_advantages_by_hand():
    """Write 0: 3, 1 less 2. Write 1: 0, 0. Root mean square of (1, 0, -1, 0): sqrt(1/2). Answers apart: 0.2, 0.6 less 0.4."""
    places = [[("write", 0), ("write", 1), ("answer", 0)]] * 2
    credits = [[3.0, 0.1, 0.2], [1.0, 0.1, 0.6]]
    plain = credit.relative(credits, places, normalise=False)
    assert plain == [[1.0, 0.0, pytest.approx(-0.2)], [-1.0, 0.0, pytest.approx(0.2)]]
    divided = credit.relative(credits, places)
    assert divided[0] == pytest.approx([math.sqrt(2), 0.0, -1.0], abs=1e-4) and divided[0][1] == 0.0
    assert divided[1] == pytest.approx([-math.sqrt(2), 0.0, 1.0], abs=1e-4)
    assert credit_without_baseline.relative(credits, places, normalise=False)[1][0] > 0 > plain[1][0]
    assert credit.relative([], []) == [] and credit.relative([[], []], [[], []]) == [[], []]


def test_replies_of_one_write_have_one_baseline():
    places = [[("write", 0)] * 2, [("write", 0)] * 2]
    assert credit.relative([[4.0, 0.0], [0.0, 0.0]], places, normalise=False) == [[3.0, -1.0], [-1.0, -1.0]]


def test_with_one_write_an_episode_it_is_the_rollouts_own_advantage():
    agent = agent_of(config=HARD)
    config = dataclasses.replace(TRAIN, rl_answers="logp", length_cost=0.3)
    likely = [(-1.0, -3.0), (-0.5, -1.0), (-4.0, -4.0)]
    rollouts = [
        rollout_of(TAUGHT[:1], likely=[Likelihood(0.1, x) for x in logp], actions=[said(agent, "Q: who?\nA: me" + "!" * n)])
        for n, logp in enumerate(likely)
    ]
    for r in rollouts:
        r.log[0].tokens = len(r.actions[0].generation.ids)
    found = [ro.scores(Task(), r) for r in rollouts]
    want = loss.advantages(torch.tensor([[ro.reward(s, config) for s in found]], dtype=torch.float64))[0].tolist()
    mine = credit.advantages(agent, [(rollouts, found)], config)
    assert [a for (a,) in mine] == pytest.approx(want, rel=1e-5)


def test_a_run_with_credit_for_actions_is_the_same_from_snapshots_and_from_logs(tmp_path):
    found = {}
    for replay in ("snapshot", "log"):
        start(tmp_path / replay, rl_credit="action", replay=replay, rl_steps=2, probe=0, eval_episodes=1).run()
        found[replay] = [r for r in lines(tmp_path / replay) if r["phase"] == "rl"]
    for one, other in zip(found["snapshot"], found["log"], strict=True):
        assert one["grad_norm"] > 0 and one["reward"] == other["reward"]
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
