"""Memory on the default model: sixteen facts go in, the text is gone, other words get them out. On a tiny one: restarts."""

import dataclasses
import json
import logging
import os
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny_memory
import torch
from tiny import pairs
from tiny_agent import CONFIG, agent_of
from tiny_memory import PRESET

from tmem import Memory
from tmem.agent.agent import Draft
from tmem.agent.decode import Generation
from tmem.agent.learn import Learned
from tmem.agent.write import Written
from tmem.episode import Pair
from tmem.models import loading

# Sixteen facts, not those that the settings were chosen on.
EXAMPLE = Path(__file__).parents[1] / "examples" / "facts.py"
FACTS, NEVER_TOLD = (runpy.run_path(str(EXAMPLE))[name] for name in ("FACTS", "NEVER_TOLD"))


@pytest.fixture(scope="module")
def taught():
    memory = Memory.from_pretrained()
    result = memory.learn([(q, a) for q, a, _ in FACTS])
    return memory, result


def test_sixteen_facts_are_recalled_from_paraphrases(taught):
    memory, result = taught
    assert result.kept and result.loss_after < result.loss_before
    said = {p: memory.ask(p) for _, _, p in FACTS}
    right = sum(a.lower() in said[p].lower() for _, a, p in FACTS)
    assert right >= 0.9 * len(FACTS), said


def test_facts_told_one_by_one_are_all_learned_and_kept():
    """Δ must not grow until writes are rolled back, or what was told before is lost."""
    with Memory.from_pretrained() as memory:
        learned = [memory.learn([(q, a)]) for q, a, _ in FACTS[:6]]
        assert all(write.kept for write in learned), learned
        said = {q: memory.ask(q) for q, _, _ in FACTS[:6]}
        assert sum(said[q] == a for q, a, _ in FACTS[:6]) >= 5, said
        norms = [write.norm for write in learned]
        assert max(norms) < 2 * norms[0], norms


def test_what_was_told_of_somebody_else_is_unknown_to_a_careful_memory():
    """Questions of the same kinds about the same people; without contrasts each is answered with somebody's value."""
    with Memory.from_pretrained(preset="careful") as memory:
        memory.learn([(q, a) for q, a, _ in FACTS])
        said = {q: memory.ask(q) for q in NEVER_TOLD}
    assert sum(a == "unknown" for a in said.values()) >= 0.7 * len(NEVER_TOLD), said


def test_a_saved_memory_answers_the_same_and_forget_forgets(taught, tmp_path):
    memory, _ = taught
    memory.save(tmp_path / "m")
    again = Memory.from_pretrained(path=str(tmp_path / "m"))
    questions = [p for _, _, p in FACTS[:4]]
    assert [again.ask(q) for q in questions] == [memory.ask(q) for q in questions]
    assert again.pairs == memory.pairs and len(again.pairs) == 16
    record = json.loads((tmp_path / "m/tmem.json").read_text())
    del record["digest"]  # as in folders of before
    record["made_with"]["init"] = "sigma"
    (tmp_path / "m/tmem.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="was made with init sigma"):
        Memory.from_pretrained(path=str(tmp_path / "m"))
    again.forget()
    assert not again.pairs and again.agent.bank.delta_norm(again.slot) == 0.0
    assert [again.ask(q) for q in questions] != [memory.ask(q) for q in questions]


def test_observe_writes_when_the_window_is_full_and_lets_go_of_the_text():
    memory = Memory(agent_of(config=CONFIG))
    line = "Petra: my cat has been asleep on the piano all day, can you imagine?\n"
    assert memory.observe(line) == [] and memory._context
    (entry, *_) = memory.observe(line * 30)
    assert entry.passage.startswith("Petra:")
    memory.write()
    assert memory._context == [] and memory.write() == []


def test_passages_that_wait_together_are_learned_in_one_update():
    memory = Memory(agent_of(config=dataclasses.replace(CONFIG, learn=dataclasses.replace(CONFIG.learn, every=3))))
    seen = []
    entries = memory.observe("Petra: I saw a heron today.\n" * 40, progress=lambda _, done, total: seen.append((done, total)))
    (_, total), *after = seen
    assert total > 3 and [done for done, _ in after] == [min(j, total) for j in range(3, total + 3, 3)]
    assert len(entries) == len(after) and len(memory._context) == 1
    assert memory.write() and memory._context == []


def test_what_will_be_asked_may_be_known_while_the_text_is_there(monkeypatch):
    """The surest answer of all passages is learned; nothing else is asked."""
    memory = Memory(agent_of(config=dataclasses.replace(CONFIG, write=dataclasses.replace(CONFIG.write, replies=6))))
    seen = []

    def write(passages, slots, known=None, **_):
        seen.append(known)
        sure = {"who": float("Oslo" in passages[0])}
        pair = Pair("who?", "Oslo" if sure["who"] else "Ulm")
        return [Draft(passages[0], [], Written([pair], sure=sure))]

    monkeypatch.setattr(memory.agent, "write", write)
    for text in ("Ada: Ulm.", "Ada: Oslo.", "Ada: Ulm again."):
        memory._context = [text]
        (entry,) = memory.write(known=["who?"])
        assert entry.written.conflicts == (text == "Ada: Ulm again.")
    assert seen == [[["who?"]]] * 3 and memory.pairs == [Pair("who?", "Oslo")]
    memory._context = ["Ada: hi."]
    memory.write()
    assert seen[-1] is None
    silent = Written([], silent=["Who?", "where?"])
    monkeypatch.setattr(memory.agent, "write", lambda passages, slots, known=None: [Draft(passages[0], [], silent)])
    memory._context, memory._sure = ["Ada: nothing."], {}  # as after a restart
    (entry,) = memory.write(known=["Who?", "where?"])
    assert entry.written.pairs == [Pair("where?", "unknown")] and memory.pairs[0] == Pair("who?", "Oslo")
    for wrong in ("who?", [""], [3]):
        with pytest.raises(ValueError, match="^write: "):
            memory.write(known=wrong)


def test_an_interrupted_write_keeps_the_text(taught, monkeypatch):
    memory, _ = taught
    waiting = "Petra: I saw a heron today.\n" * 60
    with monkeypatch.context() as patch:
        patch.setattr("tmem.agent.agent.decode", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            memory.observe(waiting)
    assert "".join("\n".join(memory._context).split()) == "".join(waiting.split())
    memory._context = []


def test_of_contradicting_answers_the_last_is_learned(taught):
    memory, _ = taught
    memory.forget()
    memory.learn([("What is Ada's job?", "pilot"), ("what is Ada's job", "baker")])
    assert [p.answer for p in memory.pairs] == ["baker"] and memory.ask("What is Ada's job?") == "baker"


def test_bad_input_is_named(taught):
    memory, _ = taught
    with pytest.raises(ValueError, match="no preset 'huge'"):
        Memory.from_pretrained(preset="huge")


def test_a_memory_goes_on_in_another_process(tmp_path, monkeypatch):
    """Saved and loaded elsewhere it answers the same and learns on to the bit as one that only lost its optimizer's moments."""
    preset, folder = tmp_path / "tiny.toml", tmp_path / "m"
    preset.write_text(PRESET)

    def elsewhere(*steps):
        command = [sys.executable, tiny_memory.__file__, preset, *steps]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **threads})
        return json.loads(done.stdout)

    monkeypatch.setattr(loading, "load_model", tiny_memory.load)

    def here(*steps):
        return tiny_memory.steps_of(str(preset), *steps)

    begin, go_on = ("learn=a", "ask=a"), ("learn=b", "ask=b", "observe=I have a cat.", "ask=a")
    first = here(*begin, f"save={folder}")
    then = elsewhere(f"load={folder}", "ask=a", *go_on, f"save={folder}")
    never, with_moments = here(*begin, "forget_moments", *go_on), here(*begin, *go_on)
    before, after, _, kept = first["learn=a"][0]
    assert kept and after < before / 2 and all(said.startswith("a") for said in first["ask=a"][0])
    for what in ("learn=b", "ask=a", "ask=b", "weights", "pairs"):
        assert then[what] == never[what], what
    assert then["ask=a"][0] == first["ask=a"][0] != then["ask=a"][1] and len(then["pairs"]) == 8
    assert then["weights"] != first["weights"] and with_moments["weights"] != never["weights"]
    back = here(f"load={folder}", "ask=a")  # the text that waits is saved, too
    assert back["ask=a"] == then["ask=a"][1:] and back["weights"] == then["weights"]


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("tmem.json", "{", "tmem.json is damaged: not JSON"),
        ("tmem.json", "[]", "tmem.json is damaged: expected a JSON object, got list"),
        ("tmem.json", '{"pairs": []}', "tmem.json is damaged: `made_with` is nothing, expected dict"),
        ("adapter_config.json", "{", "m is damaged: its files are not those that were saved together"),
        ("adapter_model.safetensors", "x" * 20, "m is damaged: its files are not those"),
    ],
)
def test_a_damaged_memory_is_named(tmp_path, monkeypatch, name, content, sentence):
    preset = tmp_path / "tiny.toml"
    preset.write_text(PRESET)
    monkeypatch.setattr(loading, "load_model", tiny_memory.load)
    Memory.from_pretrained(preset=str(preset)).save(tmp_path / "m")
    (tmp_path / "m" / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Memory.from_pretrained(preset=str(preset), path=str(tmp_path / "m"))


def test_a_memory_of_other_weights_is_refused(tmp_path, monkeypatch):
    """Same shapes: Δ learned on the model as it came means nothing to a trained one."""
    preset = tmp_path / "tiny.toml"
    preset.write_text(PRESET)
    monkeypatch.setattr(loading, "load_model", tiny_memory.load)
    Memory.from_pretrained(preset=str(preset)).save(tmp_path / "m")

    def trained(name=None, **_):
        model, tokenizer = tiny_memory.load()
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(1.1)
        return model, tokenizer

    monkeypatch.setattr(loading, "load_model", trained)
    with pytest.raises(ValueError, match="was made with weights [0-9a-f]{16}; open it with the same model"):
        Memory.from_pretrained(preset=str(preset), path=str(tmp_path / "m"))


def test_a_memory_is_opened_where_it_is_asked_in_words_that_it_was_taught_in(tmp_path, monkeypatch):
    """A folder of before says nothing of it: it was taught bare."""
    monkeypatch.setattr(loading, "load_model", tiny_memory.load)
    several = PRESET.replace("[learn]\n", '[learn]\nrenderings = ["{question}", "Say, or {unknown}: {question}"]\n')
    said = several.replace("[answer]\n", '[answer]\nasked = "Say, or {unknown}: {question}"\n')
    files = {"bare": PRESET, "bare_too": several, "said": said}
    files["other"] = files["said"].replace("[learn]\n", '[learn]\nunknown = "?"\n')
    presets = {name: str(tmp_path / f"{name}.toml") for name in files}
    for name, text in files.items():
        Path(presets[name]).write_text(text)

    def opened(folder, by):
        with Memory.from_pretrained(preset=presets[by], path=str(tmp_path / folder)) as memory:
            return memory.ask(memory.pairs[0].question)

    for name in ("bare", "said"):
        with Memory.from_pretrained(preset=presets[name]) as memory:
            memory.learn(pairs(2))
            memory.save(tmp_path / name)
    assert opened("bare", "bare") == opened("bare", "bare_too") and opened("said", "said").startswith("a")
    assert opened("said", "bare_too")
    record = json.loads((tmp_path / "bare/tmem.json").read_text())
    del record["digest"], record["made_with"]["renderings"]
    (tmp_path / "bare/tmem.json").write_text(json.dumps(record))
    assert opened("bare", "bare_too").startswith("a")
    sentence = r"was taught in the words \[.*, and the preset asks in 'Say, or .*open it with a preset"
    for folder, by in (("bare", "said"), ("said", "other")):
        with pytest.raises(ValueError, match=sentence):
            opened(folder, by)


# several memories, and what they tell --------------------------------------------------------------------------------------


@pytest.fixture
def tiny_one(tmp_path, monkeypatch):
    """A function that makes a tiny memory on a model with room for `slots`."""
    preset = tmp_path / "tiny.toml"
    preset.write_text(PRESET + "[write]\nwindow = 60\nmax_new = 8\n")
    monkeypatch.setattr(loading, "load_model", tiny_memory.load)
    return lambda slots=1, **options: Memory.from_pretrained(preset=str(preset), slots=slots, **options)


def test_memories_on_one_model_stay_apart(tiny_one, tmp_path):
    """What is told to one changes no answer of another, of a new one, or of the model; a closed one gives its room back."""
    questions = [p.question for tag in "ab" for p in pairs(4, tag)]

    def answers(memory):
        return [memory.ask(q) for q in questions]

    with tiny_one(3) as first:
        empty = answers(first)
        second = first.another()
        first.learn(pairs(4, "a"))
        of_first = answers(first)
        assert answers(second) == empty != of_first
        second.learn(pairs(4, "b"))
        assert answers(first) == of_first and answers(second) not in (empty, of_first)
        second.save(tmp_path / "second")
        third = second.another(str(tmp_path / "second"))
        assert answers(third) == answers(second) and third.pairs == second.pairs and third.agent is first.agent
        with pytest.raises(RuntimeError, match=r"room for 3 and all of it is taken; .* from_pretrained\(slots=4\)"):
            first.another()
        of_second = answers(second)
        second.forget()
        assert answers(second) == empty and answers(third) == of_second
        third.close()
        third.close()
        for verb, given in (("ask", "?"), ("learn", pairs(1)), ("forget", None), ("observe", "a " * 90), ("write", None)):
            with pytest.raises(RuntimeError, match=f"{verb}.*: the memory is closed; make another one"):
                getattr(third, verb)(*([] if given is None else [given]))
        assert answers(first.another()) == empty
    assert first.slot is None


def test_of_a_fact_stated_anew_the_new_pair_replaces_the_old_one(tiny_one, tmp_path):
    """Also where the first statement was learned long before, is written otherwise, or comes from a folder of before."""
    memory = tiny_one(2)
    for told in ([("What is Ada's job?", "pilot"), ("Who is Ben?", "a cook")], [("what is Ada's job", "baker")]):
        memory.learn(told)
    assert [p.answer for p in memory.pairs] == ["baker", "a cook"]
    memory.save(tmp_path / "m")
    record = json.loads((tmp_path / "m/tmem.json").read_text())
    del record["digest"]
    record["pairs"] = [["What is Ada's job?", "pilot"], *record["pairs"]]
    (tmp_path / "m/tmem.json").write_text(json.dumps(record))
    assert [p.answer for p in memory.another(str(tmp_path / "m")).pairs] == ["baker", "a cook"]


def test_questions_that_differ_in_a_sign_are_different_facts(tiny_one):
    memory = tiny_one()
    told = [(f"Who designed {name}?", who) for name, who in (("C", "Ritchie"), ("C++", "Stroustrup"), ("C#", "Hejlsberg"))]
    memory.learn(told)
    memory.learn([("who designed c++", "Bjarne")])
    assert [(p.question, p.answer) for p in memory.pairs] == [told[0], ("who designed c++", "Bjarne"), told[2]]


def test_a_question_that_has_no_room_in_the_model_is_one_sentence(tiny_one):
    memory = tiny_one()
    room = memory.agent.model.config.max_position_embeddings
    with pytest.raises(ValueError, match=rf"^ask: .* have \d+ tokens, .* the model has room for {room}; shorten the question"):
        memory.ask("x" * room)
    assert isinstance(memory.ask("x?"), str)


def test_a_trained_adapter_is_not_replaced_by_a_memory(tiny_one, tmp_path):
    memory, before = tiny_one(), {"adapter_config.json": b"{}", "adapter_model.safetensors": b"mine"}
    (tmp_path / "trained").mkdir()
    for name, content in before.items():
        (tmp_path / "trained" / name).write_bytes(content)
    with pytest.raises(OSError):
        memory.save(tmp_path / "trained")
    assert {f.name: f.read_bytes() for f in (tmp_path / "trained").iterdir()} == before
    for _ in range(2):  # its own folder it does replace
        memory.save(tmp_path / "memory")


NO_PAIRS = (None, 5, "ab", {"q?": "a"}, [], ())
NO_PAIR = (None, "ab", ("a",), ("a", "b", "c"), {"question": "q?", "answer": "a"}, ("q?", None), (1, 2), ("q?", " "))


def test_what_is_no_pair_or_no_text_is_one_sentence_and_learns_nothing(tiny_one):
    """A dict's keys and a word of two letters are two texts as well, and no pair."""
    memory = tiny_one()
    for values in NO_PAIRS:
        with pytest.raises(ValueError, match=r"^learn: expected a list of at least one \(question, answer\) pair, got "):
            memory.learn(values)
    for value in NO_PAIR:
        with pytest.raises(ValueError, match=r"^learn: pair 2 is .*; expected \(question, answer\), two texts"):
            memory.learn([("What?", "x"), value])
    for value in (None, 3, b"x", ["x"]):
        for use in (memory.ask, memory.observe):
            with pytest.raises(ValueError, match=r"(ask|observe): expected text, got \w+\."):
                use(value)
    with pytest.raises(ValueError, match="ask: the question is empty"):
        memory.ask(" ")
    for use in (memory.ask, memory.observe, lambda half: memory.learn([("What?", half)])):
        with pytest.raises(ValueError, match="holds half of a surrogate pair"):
            use("x \ud800")
    assert not memory.pairs and not memory._context and memory.agent.bank.delta_norm(memory.slot) == 0.0
    memory.learn(iter([["What?", "x"], *pairs(1)]))
    assert len(memory.pairs) == 2


def test_a_memory_that_cannot_be_opened_takes_no_room(tiny_one, tmp_path):
    memory = tiny_one(2)
    memory.save(tmp_path / "m")
    (tmp_path / "m" / "adapter_model.safetensors").write_text("x")
    with pytest.raises(ValueError, match="'.' is no folder with a name of its own"):
        memory.another("")
    for path in (tmp_path / "nowhere", tmp_path / "m"):
        with pytest.raises((ValueError, OSError)):
            memory.another(str(path))
    memory.another()


def test_memories_in_threads_live_as_each_alone(tiny_one):
    def life(memory, tag):
        memory.forget()
        learned = [memory.learn(pairs(3, tag + str(i))) for i in range(2)]
        memory.observe(f"{tag} has a cat. " * 12)
        return learned, [str(e) for e in memory.log], [memory.ask(p.question) for p in memory.pairs]

    first = tiny_one(3)
    memories = [first, first.another(), first.another()]
    alone = [life(m, tag) for m, tag in zip(memories, "abc")]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            assert list(pool.map(life, memories, "abc")) == alone


def test_one_memory_serves_one_thread_at_a_time(tiny_one):
    memory = tiny_one()
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda tag: memory.learn(pairs(3, tag)), "abcd"))
    assert all(d.kept for d in done) and len(memory.pairs) == 12
    assert all(memory.ask(p.question).startswith("a") for p in memory.pairs)


def test_reading_tells_how_far_it_is(tiny_one, capfd, monkeypatch):
    memory, told = tiny_one(), []
    entries = memory.observe("Ada: I have a cat.\n" * 30, lambda *what: told.append(what))
    total = len(entries)
    assert total > 3 and told == [("write", done, total) for done in range(total + 1)]
    memory.learn(pairs(2), lambda *what: told.append(what))
    assert told[-1][0] == "learn" and told[-1][1] == told[-1][2]
    assert capfd.readouterr().err.count("\n") <= 1  # the warning
    monkeypatch.setattr("tmem.terminal.progress.FIRST", 0.0)
    monkeypatch.setattr("tmem.terminal.progress.EVERY", 0.0)
    monkeypatch.setattr("tmem.terminal.progress.logger", logging.Logger("nobody's"))
    memory.observe("Ada: I have a cat.\n" * 30)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == total + 2 and re.fullmatch(rf"write: 2 of {total + 1}, \d+ s gone, \d+ s left", lines[2])


def test_a_write_says_what_it_did(tiny_one, monkeypatch, caplog):
    memory, text = tiny_one(), "Ada: I have a cat.\n" * 3

    def write(said, finished=True):
        ids = [ord(c) for c in said] + [0]
        monkeypatch.setattr("tmem.agent.agent.decode", lambda *_, **__: [Generation(ids, [0.0] * len(ids), finished)])
        memory.observe(text)
        (entry,) = memory.write()
        return entry

    nothing = write("I like cats.\nSo do you.")
    assert str(nothing) == (
        f"read {nothing.read} tokens, wrote 0 pairs: nothing was learned (no line was a question/answer pair); "
        f"dropped: 2 malformed"
    )
    assert nothing.tokens == 24 and nothing.read > len(text) and nothing.finished and not nothing.taught
    (warning,) = caplog.messages
    assert "of 1 passages nothing was learned; the last: read " in warning and "trained to write" in warning
    assert str(write("")).endswith("wrote 0 pairs: nothing was learned (the model wrote nothing)")
    assert len(caplog.messages) == 1  # said once
    entry = write("Q: what?\nA: a cat\nQ: who", finished=False)
    assert re.search(r"wrote 1 pair: loss \d.*; dropped: 1 malformed; the token limit cut it off$", str(entry)) and entry.taught
    monkeypatch.setattr("tmem.agent.agent.learn", lambda *_: [Learned(1.0, 2.0, 3.0, False, "the loss rose")])
    assert str(write("Q: what?\nA: a dog")).endswith("wrote 1 pair: nothing was learned (rolled back: the loss rose)")
    assert memory.log[-1].learned.reason and [p.answer for p in memory.pairs] == ["a cat"]
    memory.learn([("who?", "Ada"), ("where?", "Oslo")])
    said = "pairs were not learned, and the memory is as before: the loss rose."
    assert caplog.messages[1:] == [f"1 {said}", f"2 {said}"]


def test_a_page_of_text_is_read_and_asked_about_when_it_is_gone():
    """README's first example, with the adapter that comes with the default model."""
    page = runpy.run_path(str(EXAMPLE.with_name("page.py")), run_name="page")
    memory = Memory.from_pretrained()
    memory.observe(page["BEAGLE"].read_text(encoding="utf-8"), progress=lambda *_: None)
    (entry,) = memory.write(progress=lambda *_: None, known=[q for q, _ in page["TOLD"]] + page["NEVER_TOLD"])
    assert entry.taught and not memory._context
    right = [memory.ask(question) == answer for question, answer in page["TOLD"]]
    assert sum(right) >= 4 and right[0]
    assert [memory.ask(question) for question in page["NEVER_TOLD"]].count("unknown") >= 2
