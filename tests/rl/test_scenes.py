"""Scenes: what is seen, done and learned turn by turn, replayed under each action's own Δ; tools that fail; searches."""

import dataclasses
import json
import signal
import threading
from pathlib import Path

import forked
import pytest
import tiny_run
import torch
from tiny_agent import CONFIG, TRAIN, agent_of
from tiny_run import SHORT, lines, start, weights
from tiny_search import CORPUS, QUESTIONS, files
from wrong import stale_snapshot

import tmem.agent.agent as agent_module
from tmem.agent.agent import Draft
from tmem.agent.log import readable, record
from tmem.agent.loop import opened_prompt, run
from tmem.agent.write import Written
from tmem.episode import Episode, Observation, Outcome, Pair, Question, Scene
from tmem.rl import replay, supervised
from tmem.rl import rollout as ro
from tmem.rl.config import CHOICES
from tmem.rl.policy import Replicated
from tmem.rl.tasks import task_of
from tmem.tasks import mixture, search
from tmem.tasks.corpus import Document, Index
from tmem.tasks.multihop import Hop
from tmem.tasks.search_scene import SearchScene, engine
from tmem.tasks.searches import MEMORIES, SPLITS, Searches, side
from tmem.tasks.task import Environment
from tmem.tasks.tool import Tool
from tmem.testing import assert_close


class Walk(Scene):
    """As many turns as it has places; at every one but the last something leaves the context."""

    def __init__(self, places, clip=lambda text, tokens: text):
        self.places, self.clip, self.said = places, clip, []

    def observe(self):
        at = len(self.said)
        return Observation(f"at {self.places[at]}", "go ", "walk", 4 + at % 2) if at < len(self.places) else None

    def act(self, said):
        self.said.append(said)
        at = len(self.said)
        told = "" if at == len(self.places) else f"{self.places[at - 1]}: {'la ' * (3 * at)}"
        return Outcome(self.clip(told, 60), pairs=(Pair(f"who {at}?", "la"),), reward=0.25, called="fine" if told else "")

    def scores(self):
        return [{"long": len(self.said[-1]) / 8}]

    def right(self):
        return f"go {self.places[len(self.said)]}"


def walk(name, places, chunks=(), questions=()):
    return Episode(name, chunks, ((),) * len(chunks), questions, begin=lambda clip: Walk(places, clip))


EPISODES = [
    walk("far", ("hill", "mill", "sea")),
    Episode("text", ("day 1\nAda: la la",), ((),), (Question("q", "what?", ("a",), "x"),)),
    walk("near", ("hill", "sea")),
    walk("all", ("x", "yy"), ("day 2\nBen: la",), (Question("q", "who?", ("b",), "x"),)),
]
KEYS = ["k", "l", "m", "n"]


@pytest.fixture
def pairs_always(monkeypatch):
    """Writes always yield a pair, so that every later action has a Δ of its own."""
    monkeypatch.setattr(agent_module, "parse", lambda text, **_: Written([Pair(f"who{len(text)}?", text[:3] + "me")]))


def traced(agent, run=run, episodes=EPISODES, keys=KEYS, **options):
    return run(agent, episodes, keys, temperature=1.0, trace=True, **options)


def replayed(agent, rollouts, **options):
    policy = Replicated(agent.model) if not hasattr(agent.model, "policy") else agent.model.policy
    object.__setattr__(agent.model, "policy", policy)
    advantages = [[a] * len(r.actions) for a, r in zip((1.0, -0.5, 0.25, 0.5), rollouts)]
    found = replay.backward(agent, policy, rollouts, advantages, 100, tokens=256, **options)
    gradient = torch.cat([p.grad.flatten() for p in policy.params if p.grad is not None])
    policy.drop()
    return found, gradient


def worst(found):
    return max(mean for *_, mean, _ in found.actions)


# the loop --------------------------------------------------------------------------------------------------------------


def test_turns_are_taken_in_order_and_what_leaves_is_learned_before_the_next(pairs_always):
    agent = agent_of(slots=8)
    far, text, near, all_ = traced(agent)
    assert [[a.kind for a in r.actions] for r in (far, text, near, all_)] == [
        ["walk", "write", "walk", "write", "walk"], ["write", "answer"], ["walk", "write", "walk"],
        ["write", "walk", "write", "walk", "answer"],
    ]  # fmt: skip
    assert [a.writes for a in far.actions if a.kind == "walk"] == [0, 1, 2] and len(far.log) == 2
    assert [a.writes for a in all_.actions] == [0, 1, 1, 2, 2] and len(all_.answers) == 1
    assert [a.place for a in far.actions] == [0, 0, 1, 1, 2]
    assert far.actions[0].delta is None and far.actions[2].delta is far.actions[3].delta is not None
    assert far.log[1].passage.startswith("mill: la") and [t.said[:3] for t in far.turns] == ["go "] * 3
    assert all(a.prompt == opened_prompt(agent, t.seen) for a, t in zip(far.actions[::2], far.turns))
    assert all(len(a.generation.ids) <= 4 + a.place % 2 for a in far.actions if a.kind == "walk")
    assert text.scene is None and not text.turns and not any(agent.bank.used)


def test_a_rollout_alone_is_the_rollout_among_others(pairs_always):
    together, slots = traced(agent_of(slots=8)), 2
    for i, episode in enumerate(EPISODES):
        (alone,) = traced(agent_of(slots=slots), episodes=[episode], keys=[KEYS[i]])
        assert [(a.prompt, a.generation) for a in alone.actions] == [(a.prompt, a.generation) for a in together[i].actions]
        if alone.delta is not None:
            assert all(torch.equal(a, b) for a, b in zip(vars(alone.delta).values(), vars(together[i].delta).values())
                       if isinstance(a, torch.Tensor))  # fmt: skip


def test_every_action_is_replayed_under_its_own_delta(pairs_always):
    agent = agent_of(slots=8)
    kept, without = traced(agent), traced(agent, snapshots=False)
    assert [a.generation for r in kept for a in r.actions] == [a.generation for r in without for a in r.actions]
    found, one = replayed(agent, kept)
    assert len(found.actions) == sum(len(r.actions) for r in kept) == 15 and worst(found) < 1e-5
    assert {kind for _, kind, *_ in found.actions} == {"walk", "write", "answer"}
    again, other = replayed(agent, without, mode="log")
    assert worst(again) < 1e-5
    assert_close("gradient", other, one, 1e-5)
    assert worst(replayed(agent, traced(agent, stale_snapshot.run))[0]) > 1e-2


def test_what_a_scene_leaves_open_is_not_learned_as_unknown(monkeypatch):
    """A later turn may find it. After a stream there is none."""

    def write(self, passages, *_, **__):
        return [Draft(p, [], Written(silent=["who?"])) for p in passages]

    monkeypatch.setattr(agent_module.Agent, "write", write)
    far, text = run(agent_of(slots=2), EPISODES[:2], KEYS[:2])
    assert far.log[0].written.pairs == [] and text.log[0].written.pairs == [Pair("who?", "unknown")]


def test_a_scene_is_scored_and_what_was_earned_on_the_way_is_added(pairs_always):
    agent = agent_of(slots=8)
    far, text, _, all_ = traced(agent)
    config = dataclasses.replace(TRAIN, task="mine.py:Walks", reward="long")
    found = ro.scores(Environment(), far)
    assert found.questions == far.scene.scores() and found.earned == 0.75
    assert (found.turns, found.calls, found.failed) == (3, 2, 0)
    assert ro.reward(found, config) == far.scene.scores()[0]["long"] + 0.75

    class Asks(Environment):
        def score(self, question, answer):
            return {"f1": 0.5}

    assert ro.scores(Asks(), all_).scores == {"long": all_.scene.scores()[0]["long"], "f1": 0.5}
    plain = ro.scores(Asks(), text)
    assert {"turns", "calls", "failed", "timeout", "error", "garbage", "earned"}.isdisjoint(plain.values)


def test_the_log_shows_what_was_seen_and_said(pairs_always):
    far, text, *_ = traced(agent_of(slots=8))
    found = record(far)
    assert [t["seen"] for t in found["turns"]] == ["at hill", "at mill", "at sea"] and json.dumps(found)
    assert "> at mill" in readable(found) and "tool: fine; reward 0.25" in readable(found)
    assert "turns" not in record(text)


# tools -----------------------------------------------------------------------------------------------------------------


def broken(argument):
    raise {"error": KeyError, "exit": SystemError}.get(argument, OSError)(argument)


def test_a_tool_that_hangs_fails_or_returns_garbage_is_counted_and_ends_nothing():
    release = threading.Event()
    assert Tool(str.upper)("a") == ("A", "fine")
    assert [Tool(broken)(word) for word in ("error", "exit", "")] == [(None, "error")] * 3
    assert [Tool(lambda _, v=value: v)("a") for value in (None, b"x", "", " \n", 3)] == [(None, "garbage")] * 5
    assert Tool(lambda _: release.wait(60), seconds=0.01)("a") == (None, "timeout")
    release.set()


@pytest.mark.parametrize("how", ["timeout", "error", "garbage"])
def test_a_search_goes_on_when_its_engine_fails(how):
    release, index = threading.Event(), Index([Document("Zib", "Zib is a toy.")])
    index.find = {"timeout": lambda *_, **__: release.wait(60), "error": broken, "garbage": lambda *_, **__: [("Zib",)]}[how]
    hop = Hop("h", "What is Zib?", ("a toy",), ("Zib",))
    scene = SearchScene(search.Objectives("o", (hop,)), engine(index, seconds=0.01), lambda text, tokens: text, turns=2)
    outcome = scene.act("<think>x</think><search>Zib</search>")
    assert outcome == Outcome(called=how) and "The search failed." in scene.observe().text
    assert scene.act("no tag at all") == Outcome() and scene.observe().kind == "answer"
    assert scene.act("<answer>toy</answer>") == Outcome() and scene.observe() is None
    assert scene.scores() == [{"f1": 1.0, "em": 1.0, "counted": 1.0, "found": 0.0}]  # articles do not count
    release.set()


# the supervised steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
def test_supervised_steps_teach_what_is_right_under_the_delta_of_what_was_told(plain):
    agent = agent_of(slots=8)
    config = dataclasses.replace(TRAIN, warm_plain=9 if plain else 0)
    found = supervised.examples(agent, config, 0, [EPISODES[0], EPISODES[2]]).writing
    said = [(agent.chat.text(e.prompt), agent.chat.text(e.answer), e.delta is not None) for e in found]
    turns = [(text.split("at ")[-1].split("\n")[0], right, under) for text, right, under in said if "Q:" not in right]
    first = [("hill", "hill", False)] * 2
    assert turns == first if plain else sorted(turns) == sorted([*first, ("mill", "mill", True), *[("sea", "sea", True)] * 2])
    assert [right for _, right, _ in said if "Q:" in right][0] == "Q: who 1?\nA: la"
    assert all(e.begin for e in found if not e.delta and agent.chat.text(e.answer) == "hill")
    assert not any(agent.bank.used)


def test_what_is_right_must_go_on_from_what_opened_the_action():
    class Off(Walk):
        def right(self):
            return "stay"

    episode = Episode("off", (), (), (), begin=lambda clip: Off(("a", "b")))
    with pytest.raises(ValueError, match="right.. begins with 'stay', and the action is opened with 'go '"):
        supervised.examples(agent_of(slots=2), TRAIN, 0, [episode])


# searches --------------------------------------------------------------------------------------------------------------


def played(scene):
    """The right actions of a scene, and what they led to."""
    out = []
    while (seen := scene.observe()) is not None:
        right = scene.right()
        assert right.startswith(seen.opened)
        out.append((right, scene.act(right)))
    return out


def test_the_supporting_facts_lead_from_queries_to_evidence_pairs_and_the_answer():
    zib, ulm, other = Document("Zib", "Zib is a toy by Ada Mo."), Document("Ulm", "A town."), Document("Ada Mo", "From Ulm.")
    hops = (
        Hop("a", "Who made Zib", ("Ada Mo",), ("Zib",)), Hop("b", "Is Ulm older than Zib?", ("no",), ("Ulm", "Zib")),
        Hop("c", "Where?", ("Bonn",), ("Bonn",)),
    )  # fmt: skip
    finds = {"Who made Zib": [zib], "Is Ulm older than Zib?": [other], "Ulm": [ulm, zib], "Where?": []}
    tool = Tool(finds.__getitem__, sound=lambda value: isinstance(value, list))
    scene = SearchScene(search.Objectives("o", hops), tool, lambda text, tokens: text, turns=5)
    steps = played(scene)
    assert [right.split("</think>\n")[1] for right, _ in steps] == [
        "<search>Who made Zib</search>", "<search>Is Ulm older than Zib?</search>", "<search>Ulm</search>",
        "<search>Where?</search>", "<answer>Ada Mo; no; Bonn</answer>",
    ]  # fmt: skip
    assert steps[2][1].pairs == (Pair("Is Ulm older than Zib?", "no"),) and not steps[1][1].pairs and not steps[3][1].passage
    assert steps[0][0].startswith("<think>1: not known yet. 2: not known yet. 3: not known yet.</think>")
    assert steps[0][1].pairs == (Pair("Who made Zib?", "Ada Mo"),) and steps[0][1].asked == scene.questions
    assert "1: Ada Mo." in steps[1][0] and steps[-1][0].endswith("<answer>Ada Mo; no; Bonn</answer>")
    assert [s["em"] for s in scene.scores()] == [1.0, 1.0, 1.0]
    assert scene.scores()[0]["found"] == pytest.approx(2 / 3)
    unknown = SearchScene(search.Objectives("o", (Hop("d", "Who?", ("B",)),)), None, lambda text, tokens: text, turns=1)
    assert unknown.right() is None


def test_where_questions_are_asked_one_by_one_the_scene_searches_alone():
    hops = (Hop("a", "Who made Zib", ("Ada; Mo",), ("Zib",)), Hop("b", "Is Zib red?", ("no",), ("Zib", "Paint")))
    index = Index([Document("Zib", "Zib is a toy by Ada; Mo."), Document("Ulm", "A town.")])
    scene = SearchScene(search.Objectives("o", hops), engine(index, 1), lambda text, tokens: text, turns=2, each=True)
    said = ["<search>Who made Zib</search>", "<search>Is Zib red?</search>"]
    assert not scene.recalls and [right for right, _ in played(scene)] == said
    assert scene.over and scene.shown.startswith(said[1]) and scene.right() is None and scene.scores() == [{"found": 0.5}]
    cut = SearchScene(search.Objectives("o", hops), engine(index, 1), lambda text, tokens: text, turns=1, each=True)
    assert len(played(cut)) == 1 and cut.over and cut.answer is None
    cut = SearchScene(search.Objectives("o", hops), engine(index, 1), lambda text, tokens: text, turns=2, each=True)
    cut.act("<search><answer>Ada</answer>")
    assert not cut.over and cut.answer is None and "Nothing was found." in cut.shown


def test_what_is_not_seen_again_is_noted_and_what_stays_is_asked_about():
    zib, ulm = Document("Zib", "Zib is a toy by Ada."), Document("Ulm", "Ulm is in Bonn.")
    hops = (Hop("a", "Who made Zib", ("Ada",), ("Zib",)), Hop("b", "Where is Ulm?", ("Bonn",), ("Ulm",)))
    hops += (Hop("c", "Is Zib red?", ("no",), ("Zib", "Paint")),)
    finds = {"Who made Zib": [zib], "Where is Ulm?": [ulm], "Is Zib red?": [zib]}
    tool = Tool(finds.__getitem__, sound=lambda value: isinstance(value, list))
    queries = ["<search>Who made Zib</search>", "<search>Where is Ulm?</search>", "<search>Is Zib red?</search>"]
    known = ["", "Who made Zib? Ada", "Who made Zib? Ada Where is Ulm? Bonn"]
    noted = [queries[0], *(f"{query}\n<think>{words}</think>" for words, query in zip(known[1:], queries[1:]))]
    task = search.Objectives("o", hops)
    for method, right, seen in (("tmem", queries, ""), ("full", queries, "ZU"), ("mem1", noted, "U")):
        scene = SearchScene(task, tool, lambda text, tokens: text, turns=3, each=True, **MEMORIES[method])
        found = []
        while (shown := scene.observe()) is not None:
            found.append((shown, scene.right()))
            assert scene.act(found[-1][1]).pairs == () or method == "tmem"
        assert [said for _, said in found] == right and all(said.startswith(shown.opened) for shown, said in found)
        last, kept = found[-1][0].text, scene.kept
        assert [f"(Title: {title})" in last for title in ("Zib", "Ulm")] == ["Z" in seen, "U" in seen]
        assert ("note in <think>" in last) == (known[1] in last) == (method == "mem1")
        if method == "tmem":
            assert kept == Outcome()
            continue
        assert [f"(Title: {title})" in kept.passage for title in ("Zib", "Ulm")] == [True, method == "full"]
        assert kept.asked == scene.questions and kept.pairs == (Pair("Who made Zib?", "Ada"), Pair("Where is Ulm?", "Bonn"))


@pytest.mark.parametrize("plain", [0, 9])
@pytest.mark.parametrize("method", MEMORIES)
def test_questions_are_taught_beside_what_a_method_keeps(tmp_path, method, plain):
    data, corpus = files(tmp_path)
    task = Searches([data], [corpus], objectives=2, turns=2, each=True, method=method)
    episode = next(e for e in (task.episode(f"0/rl/{i}/0", "train") for i in range(9)) if len(e.questions) == 2)
    agent = agent_of(slots=2, max_position_embeddings=4096)
    found = supervised.examples(agent, dataclasses.replace(TRAIN, warm_plain=plain), 0, [episode])
    asked = [(e, agent.chat.text(e.prompt)) for e in found.writing if "</search>" not in agent.chat.text(e.answer)]
    assert len(found.recalling) == (2 if method == "tmem" and not plain else 0)
    if method == "tmem":
        assert all("turns left" not in text for _, text in asked)
        return
    first, second = (hop for hop in episode.begin(lambda text, tokens: text).task.hops)
    for question, (example, text) in zip(episode.questions, asked, strict=True):
        assert agent.chat.text(example.answer) == question.answers[0] and example.delta is None and example.begin
        assert agent.asked(question.text) in text and "no turns left" in text
        assert (f"(Title: {first.evidence[0]})" in text.split("</search>")[1]) == (method == "full")
        assert (f"<think>{first.question} {first.answers[0]}</think>" in text) == (method == "mem1")
    assert f"(Title: {second.evidence[0]})" in text


def test_the_methods_of_training_keep_what_those_of_an_evaluation_do(tmp_path):
    from tmem.methods.methods import METHODS

    assert CHOICES["method"] == tuple(MEMORIES)
    for name, kept in MEMORIES.items():
        state = METHODS[name].search
        assert {"stays": False, "every": False, **kept} == {"stays": state.stays, "every": state.every}
    data, corpus = files(tmp_path)
    task = task_of(dataclasses.replace(TRAIN, task="search", data=(data,), corpus=(corpus,), each=True, method="full"))
    assert task.episode("k", "train").begin(lambda text, tokens: text).every
    with pytest.raises(ValueError, match="method: expected \"tmem\", as task 'stream' has no search, got 'full'"):
        dataclasses.replace(TRAIN, method="full")
    with pytest.raises(ValueError, match="method: expected tmem or mem1 or full, got 'notes'"):
        dataclasses.replace(TRAIN, task="search", method="notes")


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("name", MEMORIES)
def test_the_prompts_of_training_are_those_of_an_evaluation(monkeypatch, name, each):
    """Greedy, the same episode in tmem.agent.loop and in tmem.methods.search: the same tokens read and said, the same Δ."""
    from tmem.methods import search as method
    from tmem.methods.methods import METHODS
    from tmem.methods.trajectory import SearchConfig

    monkeypatch.setattr(agent_module, "parse", lambda text, **_: Written([Pair("Who made Zib?", "Ada")]))
    hops = (Hop("a", "Who made Zib?", ("Ada Mo",), ("Zib",)), Hop("b", "Where is Ulm?", ("here",), ("Ulm",)))
    index = Index([Document("Zib", "Zib is a toy by Ada Mo."), Document("Ulm", "Ulm is here.")])
    turns = iter(["<search>Zib</search><think>Ada</think>", "garbage", "<search>Ulm</search>", "x"][: 3 if each else 4] * 2)
    monkeypatch.setattr("tmem.tasks.search_scene.search.read", lambda text, *notes, read=search.read: read(next(turns), *notes))
    config = dataclasses.replace(CONFIG, write=dataclasses.replace(CONFIG.write, window=200))
    sizes = {"slots": 2, "config": config, "max_position_embeddings": 4096}
    task = search.Objectives("o", hops)
    limits = SearchConfig(turns=3, max_new=8, known=True, each="instruction" if each else None)
    (found,) = method.run(agent_of(**sizes), [task], index, METHODS[name].search, config=limits)

    def begin(clip):
        return SearchScene(task, engine(index), clip, turns=3, max_new=8, each=each, **MEMORIES[name])

    asked = tuple(Question(hop.id, hop.question, hop.answers, "") for hop in hops) if each else ()
    (rollout,) = run(agent_of(**sizes), [Episode("o", (), (), asked, begin=begin)], ["o"], trace=True)
    mine = [(a.kind, len(a.prompt), len(a.generation.ids)) for a in rollout.actions]
    assert mine == [(s.kind, s.prompt, s.generated) for s in found.steps]
    said = [s.text for s in found.steps if s.kind != "write"]
    assert [t.said for t in rollout.turns] == said[: -2 if each else None]
    assert [e.learned for e in rollout.log] == [e.learned for e in found.log]
    assert len(rollout.log) == (2 if name == "tmem" else 0)
    assert not each or search.joined(rollout.answers) == found.answer


def test_questions_are_held_out_by_their_words_and_none_comes_twice_in_an_epoch(tmp_path):
    data, corpus = files(tmp_path)
    task = Searches([data], [corpus], objectives=2, step=2)
    sides = {split: [hop.id for hop in task.held[split][0]] for split in SPLITS}
    assert sum(map(len, sides.values())) == len(QUESTIONS) and all(sides.values())
    assert task.trained == sides["train"] and task.files == [data, corpus]
    assert all(side(hop.question) == split for split in SPLITS for hop in task.held[split][0])
    met = []
    for key in (f"0/rl/{step}/{i}" for step in range(2) for i in range(2)):
        episode = task.episode(key, "train")
        asked = [hop.id for hop in episode.begin(lambda text, tokens: text).task.hops]
        assert episode.id == f"search/train/{key}" and 1 <= len(asked) <= 2 and set(asked) <= set(sides["train"])
        assert asked == [hop.id for hop in task.episode(key, "train").begin(lambda text, tokens: text).task.hops]
        met += asked
    assert len(met) == len(set(met))
    assert mixture.place("7", 3) == ("", 7) and mixture.place("s/2/1", 3) == ("s", 7) and mixture.place("x", 3) == ("x", 0)


def test_searches_that_are_asked_one_by_one_have_questions(tmp_path):
    data, corpus = files(tmp_path)
    episode = Searches([data], [corpus], objectives=2, each=True).episode("0/rl/0/0", "train")
    task = episode.begin(lambda text, tokens: text).task
    assert [(q.text, q.answers) for q in episode.questions] == [(hop.question, hop.answers) for hop in task.hops]
    assert len({q.id for q in episode.questions}) == len(episode.questions)
    scored = Searches([data], [corpus]).score
    assert scored(Question("q", "Who?", ("Ada; Mo", "Ada"), ""), "the ada, mo") == {"em": 1.0, "f1": 1.0}
    assert scored(episode.questions[0], "") == {"em": 0.0, "f1": 0.0}
    assert not Searches([data], [corpus]).episode("0/rl/0/0", "train").questions


def test_turns_that_recall_nothing_are_all_taught_and_taken_without_delta(tmp_path, pairs_always):
    data, corpus = files(tmp_path)
    task = Searches([data], [corpus], objectives=2, turns=2, max_new=6, each=True)
    episode = next(e for e in (task.episode(f"0/rl/{i}/0", "train") for i in range(9)) if len(e.questions) == 2)
    for plain in (9, 0):
        agent = agent_of(slots=2, max_position_embeddings=4096)
        found = supervised.examples(agent, dataclasses.replace(TRAIN, warm_plain=plain), 0, [episode])
        said = {agent.chat.text(e.answer): e.delta for e in found.writing}
        assert all(said[f"{q.text}</search>"] is None for q in episode.questions)
        assert [agent.chat.text(e.answer) for e in found.recalling] == [q.answers[0] for q in episode.questions if not plain]
    (rollout,) = traced(agent, episodes=[episode], keys=["k"])
    assert all(a.delta is None and a.writes == 0 for a in rollout.actions if a.kind == "turn")
    assert [a.kind for a in rollout.actions][-2:] == ["answer"] * 2 and worst(replayed(agent, [rollout])[0]) < 1e-5


def test_few_questions_that_a_passage_does_not_answer_are_shown_beside_it():
    """One for two that it answers, on average: a model that is shown more of them abstains."""
    write = dataclasses.replace(CONFIG.write, replies=2, window=4000)
    agent = agent_of(slots=2, config=dataclasses.replace(CONFIG, write=write))
    asked, said = ("Who made it?", "Where?", "When?", "Why?"), []
    for i in range(60):
        outcome = Outcome(f"{i}: Ada made it.", asked, (Pair("Who made it?", "Ada"),))
        said += [agent.chat.text(e.answer) for e in supervised._written(agent, TRAIN, outcome, None)]
    assert said.count("Ada") == 60 and 15 <= said.count("unknown") == len(said) - 60 <= 45


def test_data_without_enough_questions_and_settings_that_mean_nothing_are_one_sentence(tmp_path):
    data, corpus = files(tmp_path)
    with pytest.raises(ValueError, match="search: no data; name files of questions with --data FILE"):
        Searches([])
    with pytest.raises(ValueError, match="fewer than 99 questions of .* fall to train, which takes 60 %"):
        Searches([data], [corpus], objectives=99).require("train")
    wanted = {"task": "search", "data": (data,), "corpus": (corpus,)}
    assert isinstance(task_of(dataclasses.replace(TRAIN, **wanted)), Searches)
    for other in ({"rl_credit": "action"}, {"rl_answers": "logp"}):
        with pytest.raises(ValueError, match="an environment with scenes is trained with rl_credit"):
            task_of(dataclasses.replace(TRAIN, **wanted, **other))
    with pytest.raises(ValueError, match="corpus: task 'stream' has no search"):
        dataclasses.replace(TRAIN, corpus=(corpus,))
    with pytest.raises(ValueError, match="objectives: expected 1, as task 'stream' asks no questions of a search, got 3"):
        dataclasses.replace(TRAIN, objectives=3)


# a run -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes that the tests start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_killed_run_of_searches_resumes_to_the_same_bits(tmp_path):
    whole, out = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    died = forked.run(tiny_run.__file__, out, "--search", "--kill", "rollout", 2)
    assert died.returncode == -signal.SIGKILL, died.stderr
    started = start(whole, **tiny_run.SEARCHED)
    started.run()
    start(out, resume=True, **tiny_run.SEARCHED).run()
    for name in ("metrics", "segments"):
        assert (out / f"{name}.jsonl").read_text() == (whole / f"{name}.jsonl").read_text()
    for phase in ("warm", "rl", "sft"):
        mine, theirs = weights(out, phase), weights(whole, phase)
        assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    rows = [r for r in lines(whole) if r["phase"] == "rl"]
    assert all(0 < r["dlogp_worst_segment"] < 1e-4 and r["grad_norm"] > 0 and r["turns"] > 1 for r in rows)
    kinds = {s[0] for line in lines(whole, "segments") for s in line["segments"]}
    assert {"turn", "answer"} <= kinds
    assert json.loads((whole / "trained.json").read_text()) == list(started.task.trained)


def test_the_environment_of_the_examples_and_of_the_document_train(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    shown = (root / "docs" / "training.md").read_text().split("```python\n# doors.py\n")[1].split("```")[0]
    (tmp_path / "doors.py").write_text(shown)
    monkeypatch.setattr(agent_module, "parse", lambda text, **_: Written([Pair("who?", "me")]))
    for name, file in (("example", root / "examples" / "own_environment.py"), ("shown", tmp_path / "doors.py")):
        trainer = start(tmp_path / name, task=f"{file}:Doors", reward="right", **SHORT)
        assert trainer.run()["reward_rl"] is not None
        (row,) = [r for r in lines(tmp_path / name) if r["phase"] == "rl"]
        assert row["calls"] == 1 and row["failed"] == row["error"] == 1


def test_documents_of_the_tiny_search_are_found():
    assert Index([Document(*d) for d in CORPUS.items()]).find(QUESTIONS[0]["question"])
