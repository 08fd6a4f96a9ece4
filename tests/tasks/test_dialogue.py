"""Conversations that a coroutine leads: what is seen, what leaves the context, how they fail; no package is needed."""

import asyncio
import random
import threading

import numpy as np
import pytest
from wrong import chance_of_whoever_draws

from tmem.episode import Observation, Outcome
from tmem.tasks import dialogue
from tmem.tasks.dialogue import Dialogue, Message


def words(text, count):
    """So many words of a text; the text itself where it has no more."""
    return text if len(text.split()) <= count else " ".join(text.split()[:count])


def begun(lead, clip=words, **options):
    return Dialogue(lead, clip, **{"seed": "s", "turns": 9, **options})


def echoes(*says, scores=({"score": 1.0},)):
    """Says one thing after another, each with all that was said and replied before."""

    async def lead(ask):
        talk = []
        for say in says:
            talk.append(Message("user", say))
            reply = await ask(talk)
            if reply is None:
                break
            talk.append(Message("assistant", reply))
        return list(scores)

    return lead


def played(scene, *replies):
    """(seen, outcome) of every turn."""
    out, replies = [], iter(replies)
    while (seen := scene.observe()) is not None:
        assert scene.observe() == seen
        out.append((seen.text, scene.act(next(replies, "x"))))
    return out


def test_what_is_said_and_replied_is_seen_and_the_scores_are_those_of_the_end():
    scene = begun(echoes("a?", "b?", scores=[{"score": 0.5, "score_x": 2}, {"score": 1.0, "score_x": 0}]), max_new=7)
    assert scene.observe() == Observation("a?", max_new=7)
    assert played(scene, "1", "2") == [
        ("a?", Outcome(called="fine")), ("User: a?\nAssistant: 1\nUser: b?", Outcome(called="fine"))
    ]  # fmt: skip
    assert scene.scores() == [{"score": 0.5, "score_x": 2}, {"score": 1.0, "score_x": 0}]
    assert scene.right() is None


def test_nothing_runs_before_the_first_look_and_between_replies():
    ran = []

    async def lead(ask):
        ran.append("begin")
        await ask([Message("system", "be kind"), Message("user", "a?")])
        ran.append("end")
        return [{"score": 1}]

    scene = begun(lead)
    assert ran == []
    assert scene.observe().text == "be kind\na?" and ran == ["begin"]
    scene.act("x")
    assert ran == ["begin", "end"] and scene.observe() is None


def test_after_its_turns_nothing_more_is_replied():
    scene = begun(echoes("a?", "b?", "c?"), turns=2)
    assert len(played(scene)) == 2 and scene.scores() == [{"score": 1.0}]


def test_old_exchanges_leave_the_context_once_and_the_beginning_stays(monkeypatch):
    monkeypatch.setattr(dialogue, "WINDOW", 13)
    found = played(begun(echoes("begin here", "b b", "c c", "d d", "e e")), *"12345")
    texts, left = [text for text, _ in found], [outcome.passage for _, outcome in found]
    assert all(text.startswith(("begin here", "User: begin here\n")) for text in texts)
    assert left == ["", "", "Assistant: 1\nUser: b b", "Assistant: 2\nUser: c c", ""]
    assert texts[2:4] == [
        "User: begin here\nAssistant: 1\nUser: b b\nAssistant: 2\nUser: c c",
        "User: begin here\nAssistant: 2\nUser: c c\nAssistant: 3\nUser: d d",
    ]  # fmt: skip


def test_a_long_message_is_cut(monkeypatch):
    monkeypatch.setattr(dialogue, "MESSAGE", 3)
    (seen, _), (then, _) = played(begun(echoes("one two three four", "five")))
    assert seen == "one two three" and then == "User: one two three\nAssistant: x\nUser: five"


def test_another_conversation_begins_anew():
    async def lead(ask):
        first = await ask([Message("user", "a?")])
        await ask([Message("user", f"how good is {first}?")])
        return [{"score": 1.0}]

    assert [text for text, _ in played(begun(lead), "it")] == ["a?", "how good is it?"]


def test_questions_at_once_are_asked_one_after_another():
    async def lead(ask):
        replies = await asyncio.gather(*(ask([Message("user", f"{i}?")]) for i in range(3)))
        return [{"score": float(reply)} for reply in replies]

    scene = begun(lead)
    assert [text for text, _ in played(scene, *"123")] == ["0?", "1?", "2?"]
    assert scene.scores() == [{"score": 1.0}, {"score": 2.0}, {"score": 3.0}]


# how it fails ----------------------------------------------------------------------------------------------------------


async def fails(ask):
    raise KeyError("x")


async def exits(ask):
    raise SystemExit(3)


async def waits(ask):
    await asyncio.sleep(60)


async def clings(ask):
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass


async def says_nothing(ask):
    await ask([Message("user", " ")])


async def says_garbage(ask):
    await ask({"role": "user"})


async def another_role(ask):
    await ask([Message("king", "off with it")])


def scores(value):
    async def lead(ask):
        return value

    return lead


NAN = float("nan")
FAILING = [
    (fails, "error"), (exits, "error"), (waits, "timeout"), (clings, "timeout"), (says_nothing, "garbage"),
    (says_garbage, "garbage"), (another_role, "garbage"), (scores(None), "garbage"), (scores([]), "garbage"),
    (scores([{"score": NAN}]), "garbage"), (scores([{"other": 1.0}]), "garbage"), (scores([{"score": "1"}]), "garbage"),
    (scores(1.0), "garbage"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(dialogue, "_GRACE", 0.5)


@pytest.mark.parametrize("lead, how", FAILING)
def test_what_fails_is_counted_and_ends_the_scene_at_zero(lead, how, capfd):
    """At once, where one action is taken all the same, and after a turn."""
    assert [outcome for _, outcome in played(begun(lead, seconds=0.5))] == [Outcome(called=how)]

    async def later(ask):
        assert await ask([Message("user", "a?")]) == "x"
        return await lead(ask)

    scene = begun(later, seconds=0.5)
    assert [outcome for _, outcome in played(scene)] == [Outcome(called=how)]
    assert scene.scores() == [{"score": 0.0}]
    del scene
    assert capfd.readouterr() == ("", "")


def test_one_that_blocks_its_thread_is_left_behind_and_changes_nothing_when_it_comes_back():
    release, back = threading.Event(), threading.Event()

    async def lead(ask):
        await ask([Message("user", "a?")])
        release.wait(60)
        try:
            await ask([Message("user", "b?")])
        finally:
            back.set()

    scene = begun(lead, seconds=0.5)
    assert [outcome for _, outcome in played(scene)] == [Outcome(called="timeout")]
    release.set()
    assert back.wait(60)
    assert scene.observe() is None and scene.scores() == [{"score": 0.0}]


# chance ----------------------------------------------------------------------------------------------------------------


async def draws(ask):
    talk = [Message("user", f"{random.random()}")]
    for _ in range(2):
        talk += [Message("assistant", await ask(talk)), Message("user", f"{random.random()} {np.random.rand()}")]
    return [{"score": np.random.rand()}]


def beside_another(kind):
    """What a dialogue saw and its scores, where another one draws between its turns; and the other's scores."""
    one, other = (kind(draws, words, seed=seed, turns=9) for seed in "st")
    seen = []
    while (found := one.observe()) is not None:
        other.observe()
        seen.append((found.text, one.act("x")))
        other.act("x")
    return seen, one.scores(), other.scores()


def test_every_dialogue_draws_from_its_own_seed_whoever_else_draws():
    alone, state = begun(draws), random.getstate()
    seen, mine, others = beside_another(Dialogue)
    assert (seen, mine) == (played(alone), alone.scores()) and others != mine and random.getstate() == state
    assert beside_another(chance_of_whoever_draws.Dialogue)[0] != seen
