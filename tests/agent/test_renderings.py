"""The words in which pairs are taught and questions are asked: what asks a memory takes words that it was taught in."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny import pairs
from tiny_agent import CONFIG, TRAIN, agent_of

from tmem import Memory
from tmem.agent import agent as agents
from tmem.agent import learn as learning
from tmem.agent import loop, scored
from tmem.agent.agent import Draft, Reply
from tmem.agent.config import agent_config
from tmem.agent.decode import Generation
from tmem.agent.learn import Learned, _encoded, joins, learn, packed, rows_of
from tmem.agent.loop import LogEntry
from tmem.agent.probe import asked_back, paraphrase
from tmem.agent.renderings import rendered, worded
from tmem.agent.write import Written
from tmem.episode import Episode, Pair, Question
from tmem.methods import methods, reader, states
from tmem.methods.trajectory import SearchConfig, Trajectory
from tmem.rl import supervised
from tmem.study import dissect, soak
from tmem.tasks import stream
from tmem.tasks.multihop import Hop
from tmem.tasks.search import Objectives
from tmem.words import normalise

BARE, ASKED, INDIRECT = RENDERINGS = ("{question}", "Say it, or {unknown}: {question}", "You know: {question}")
SEVERAL = dataclasses.replace(
    CONFIG,
    learn=dataclasses.replace(CONFIG.learn, renderings=RENDERINGS, unknown="no idea"),
    answer=dataclasses.replace(CONFIG.answer, asked=ASKED, max_new=4),
)
PAIR = Pair("who is {king}?", "Ann")
EPISODE = Episode("e", ("Ann is king.",), ((PAIR,),), (Question("q", PAIR.question, ("Ann",), "attribute"),))
PRESETS = [file for folder in ("tmem/presets", "examples") for file in (Path(__file__).parents[2] / folder).glob("*.toml")]
TAUGHT = {"who is {king}?", "Say it, or no idea: who is {king}?", "You know: who is {king}?"}


# wording ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "question", "text"),
    [
        ("{question}", "who?", "who?"),
        ("{unknown} or {question} ({question})", "who?", "dunno or who? (who?)"),
        ("so: {question}", "{question} {unknown} {0} {x!r} {{", "so: {question} {unknown} {0} {x!r} {{"),
        (r"\1 %s {question}", r"\g<1> %d", r"\1 %s \g<1> %d"),
    ],
)
def test_a_question_stands_in_its_words_whatever_braces_it_has(template, question, text):
    assert worded(template, question, "dunno") == text


def test_epochs_teach_every_pair_in_every_rendering_in_turns():
    a, b = Pair("a?", "1"), Pair("b?", "2")
    assert rendered([a, b], 0, RENDERINGS, "?") == rendered([a, b], 3, RENDERINGS, "?") == [a, b]
    assert rendered([a, b], 1, RENDERINGS, "?") == [Pair("Say it, or ?: a?", "1"), Pair("Say it, or ?: b?", "2")]
    assert [p.question for p in rendered([a, b], 2, RENDERINGS, "?")] == ["You know: a?", "You know: b?"]
    assert rendered([a, b], 7, (BARE,), "?") == [a, b]


def test_the_presets_ask_in_words_that_they_teach():
    for name in ("careful", "default", "long", "paper", "study"):
        config = agent_config(name)
        assert config.answer.asked in config.learn.renderings and len(set(config.learn.renderings)) == 3


def test_settings_that_would_ask_otherwise_than_they_teach_are_refused_wherever_they_are_made():
    with pytest.raises(ValueError, match=r"^preset: \[answer\] asked: expected one of \[learn\] renderings, got 'Say it"):
        dataclasses.replace(SEVERAL, learn=CONFIG.learn)
    with pytest.raises(ValueError, match=r"^preset: \[learn\] renderings: expected a list of strings"):
        soak.soak(agent_of(config=SEVERAL), 1, 1, renderings=[])
    with pytest.raises(ValueError, match=r"^preset: \[answer\] asked: expected one of"):
        soak.soak(agent_of(config=SEVERAL), 1, 1, renderings=["{question}"])


# teaching and asking ---------------------------------------------------------------------------------------------------


def by_memory(agent):
    with Memory(agent) as memory:
        memory.learn([PAIR])
        memory.ask(PAIR.question)


def by_memory_with_text(agent):
    with Memory(agent) as memory:
        memory.learn([PAIR])
        memory.ask(PAIR.question)
        memory.observe("Ben is here.")
        memory.ask(PAIR.question)


def by_rollout(agent):
    loop.run(agent, [EPISODE], ["k"])


def by_scored_rollout(agent):
    loop.run(agent, [EPISODE], ["k"], answering="scored")


def by_evaluation(agent):
    settings = reader.Settings(abstention="no idea", max_new=4)
    kept = methods.METHODS["tmem"].read(reader.Reader(agent, settings), [EPISODE])
    methods.METHODS["tmem"].ask(agent, [(kept[0], EPISODE.questions[0])], settings)


def by_dissection(agent):
    episode = stream.episode("asked", "dev", 1)
    question = dataclasses.replace(episode.questions[0], text=PAIR.question)
    dissect._answered(agent, [dataclasses.replace(episode, questions=(question,))], [[[PAIR]]])


WAYS = (by_memory, by_rollout, by_scored_rollout, by_evaluation, by_dissection)


@pytest.fixture
def seen(monkeypatch):
    """(prompts that were taught, prompts that were asked), as token ids; a write is always PAIR."""
    taught, asked, trunks, decode, probable = [], [], learning._trunks, agents.decode, scored.log_probabilities

    def of_learning(model, bank, groups):
        for row in (row for group, _ in groups for row in group):
            read = [(number, token) for c, (number, token) in enumerate(zip(row.numbers, row.ids)) if c not in row.labels]
            taught.extend([token for n, token in read if n in (0, number)] for number in sorted({*row.numbers} - {0}))
        return trunks(model, bank, groups)

    def of_saying(model, prompts, **how):
        asked.extend(prompts)
        return decode(model, prompts, **how)

    def of_scoring(agent, prompts, *rest):
        asked.extend(agent.chat.prompt(p) for p in prompts)
        return probable(agent, prompts, *rest)

    monkeypatch.setattr(learning, "_trunks", of_learning)
    monkeypatch.setattr(agents, "decode", of_saying)
    monkeypatch.setattr(scored, "log_probabilities", of_scoring)
    monkeypatch.setattr(agents, "parse", lambda *_, **__: Written([PAIR]))
    return taught, asked


@pytest.mark.parametrize("way", WAYS)
def test_whatever_asks_a_memory_asks_in_tokens_that_it_was_taught(seen, way):
    """The prompt of the question is one of the prompts before the answer that gradients were taken of."""
    agent, (taught, asked) = agent_of(config=SEVERAL), seen
    way(agent)
    assert {tuple(ids) for ids in taught} == {tuple(agent.chat.prompt(text)) for text in TAUGHT}
    assert asked[-1] in taught and asked[-1] == agent.chat.prompt("Say it, or no idea: who is {king}?")


def test_what_supervised_steps_recall_and_what_a_soak_asks_was_taught(seen):
    agent, (taught, asked) = agent_of(config=SEVERAL), seen
    recalling = supervised.examples(agent, dataclasses.replace(TRAIN, warm_plain=0), 0, [EPISODE]).recalling
    assert [e.prompt for e in recalling] == [agent.chat.prompt(agent.asked(PAIR.question))] and recalling[0].prompt in taught
    fact = dataclasses.replace(soak.chain(0, 1)[0][0], taught=PAIR.question)
    soak.soak(agent, [((fact,),)], 1)
    plain, oblique = (agent.chat.prompt(agent.asked(q)) for q in (fact.plain, fact.oblique))
    assert recalling[0].prompt in asked and plain in asked and oblique in asked


def test_a_search_teaches_what_it_found_in_all_words(seen):
    """It asks all its questions at once in a prompt of its own, whatever it was taught."""
    agent, (taught, _) = agent_of(config=SEVERAL), seen
    row = Trajectory(Objectives("o", (Hop("h", "who?", ("Ann",), (), "easy"),)), "k")
    with agent.bank.borrowed(1) as (row.slot,):
        states.written(agent, [(row, "Ann is king.")], SearchConfig(), "turn0")
    assert {tuple(ids) for ids in taught} == {tuple(agent.chat.prompt(text)) for text in TAUGHT}


def test_text_that_waits_stands_before_the_question_as_it_was_taught(seen):
    agent, (_, asked) = agent_of(config=SEVERAL), seen
    by_memory_with_text(agent)
    assert asked[-1] == agent.chat.prompt("Ben is here.\n\nSay it, or no idea: who is {king}?")


def test_a_method_that_has_no_text_and_no_memory_asks_alike_and_a_question_at_length_is_its_own(seen):
    agent, (_, asked) = agent_of(config=SEVERAL), seen
    question = EPISODE.questions[0]
    for settings in (reader.Settings(max_new=4), reader.Settings(max_new=4, at_length=True, form="question alone")):
        reader.ask(agent, [(reader.Kept(), question), (reader.Kept(text="Ann rules."), question)], settings)
    words = "Say it, or no idea: who is {king}?"
    texts = [words, f"Ann rules.\n\n{words}", PAIR.question, f"Ann rules.\n\n{PAIR.question}"]
    assert asked == [agent.chat.prompt(text) for text in texts]


def test_probes_are_asked_in_the_words_of_every_question(seen):
    agent, (_, asked) = agent_of(config=SEVERAL), seen
    pair = Pair("What is Ada's job?", "pilot")
    draft = Draft("Ada: hi\nBen: hi", [Reply([], Generation([], [], True), "")], Written([pair]))
    asked_back(agent, [LogEntry.of(draft, Learned(1, 0, 0, True))], [-1])
    assert asked == [agent.chat.prompt(agent.asked(q)) for q in ("Please tell me Ada's job.", "What is Ben's job?")]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda file: file.stem)
def test_no_preset_teaches_the_words_in_which_a_write_is_probed(preset):
    """Else `held` is the share of pairs recalled in words that they were taught in."""
    settings = agent_config(preset).learn
    for question in ("Which boat does Ada sail?", "What is Ada's job?", "Where does Ada live?"):
        taught = {normalise(worded(r, question, settings.unknown)) for r in settings.renderings}
        assert normalise(paraphrase(question)) not in taught
    lead = normalise(paraphrase("Q").removesuffix("q"))
    assert lead and not any(lead in normalise(r) for r in settings.renderings)


# learning --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_several_renderings_an_episode_learns_the_same_bits_alone_and_among_others(dtype):
    config = dataclasses.replace(SEVERAL.learn, epochs=5)
    jobs = {0: pairs(6, "a"), 1: pairs(3, "bb"), 2: pairs(9, "c"), 3: pairs(1)}
    together = agent_of(dtype=dtype, config=SEVERAL)
    slots = {k: together.bank.alloc() for k in jobs}
    results = learn(together.model, together.bank, [(slots[k], p) for k, p in jobs.items()], together.chat, config)
    for (k, job), result in zip(jobs.items(), results):
        alone = agent_of(dtype=dtype, config=SEVERAL)
        for _ in range(4 - k):  # another slot than among the others
            slot = alone.bank.alloc()
        assert learn(alone.model, alone.bank, [(slot, job)], alone.chat, config) == [result]
        assert torch.equal(alone.bank.param[slot], together.bank.param[slots[k]]), k


def test_the_trunk_runs_once_for_each_rendering(seen):
    agent, (taught, _) = agent_of(config=SEVERAL), seen
    learn(agent.model, agent.bank, [(agent.bank.alloc(), pairs(5))], agent.chat, dataclasses.replace(SEVERAL.learn, epochs=9))
    assert len(taught) == 15 == len({tuple(ids) for ids in taught})


def test_an_epoch_takes_the_tokens_of_one_rendering_of_each_pair():
    agent, job = agent_of(config=SEVERAL), pairs(5)
    config = dataclasses.replace(SEVERAL.learn, epochs=4)
    (learned,) = learn(agent.model, agent.bank, [(agent.bank.alloc(), job)], agent.chat, config)
    taught = [[_encoded(agent.chat, p, config) for p in rendered(job, epoch, RENDERINGS, "no idea")] for epoch in range(4)]
    rows = [row for part in taught for at in (0, 4) for row in packed(0, part[at : at + 4], joins(agent.model))]
    assert learned.tokens == sum(len(row.ids) for row in rows) < sum(len(ids) for part in taught for ids, _ in part)
    said = [rows_of(agent.chat, rendered(job, epoch, RENDERINGS, "no idea"), config, joins(agent.model)) for epoch in range(4)]
    assert learned.tokens == sum(len(row.ids) for rows in said for row in rows)


def test_no_slot_stops_before_it_was_taught_in_every_rendering():
    """However soon an epoch's loss is low: words that were never taught say nothing of the others."""
    agent = agent_of(config=SEVERAL)
    slots = [agent.bank.alloc(), agent.bank.alloc()]
    config = dataclasses.replace(SEVERAL.learn, epochs=30, target=1000.0)
    learn(agent.model, agent.bank, [(slots[0], pairs(2)), (slots[1], pairs(9, "b"))], agent.chat, config)
    assert [int(agent.bank.step_count[s]) for s in slots] == [3, 9]  # minibatches of 4 pairs, so 1 and 3 steps an epoch


def test_in_several_renderings_a_slot_that_has_learned_enough_stops_and_the_others_go_on():
    agent, alone = agent_of(config=SEVERAL), agent_of(config=SEVERAL)
    slots = [agent.bank.alloc(), agent.bank.alloc(), agent.bank.alloc()]
    jobs = [(0, pairs(2)), (1, pairs(9, "b")), (2, pairs(1, "c"))]
    config = dataclasses.replace(SEVERAL.learn, epochs=60, target=4.0)
    results = learn(agent.model, agent.bank, jobs, agent.chat, config)
    steps = [int(agent.bank.step_count[s]) for s in slots]
    assert len(set(steps)) > 1 and all(n < 60 * per_epoch for n, per_epoch in zip(steps, (1, 3, 1))), steps
    for slot, job in jobs:
        alone.bank.alloc()
        assert learn(alone.model, alone.bank, [(slot, job)], alone.chat, config) == [results[slot]]
        assert torch.equal(alone.bank.param[slot], agent.bank.param[slot])
