"""MemoryStore on a tiny model: what it promises of bits, of kills, of undoing, and of what it refuses."""

import dataclasses
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import tiny_store
import torch
from tiny import Letters, model, pairs
from tiny_agent import CONFIG, agent_of
from tiny_store import SETTINGS, asked, bits, store_at

from tmem import Memory, MemoryStore
from tmem.agent.agent import Agent, Draft
from tmem.agent.teach import Lesson
from tmem.agent.write import Written
from tmem.episode import Pair
from tmem.files.folders import Busy
from tmem.store import database, kept
from tmem.store.database import Write
from tmem.store.facts import of_one_fact, sure_of
from tmem.store.history import digest, known
from tmem.store.store import NEWEST, Missing, Taken, Telling

KILLS = int(os.environ.get("TMEM_KILLS", 2))


@pytest.fixture
def store(tmp_path):
    with store_at(tmp_path / "store", slots=3) as store:
        yield store


def told(store, name, *tags):
    store.make(name, exist_ok=True)
    return [store.learn(name, pairs(3, tag), source=tag) for tag in tags]


def test_a_memory_of_a_store_is_a_memory(store):
    """The same losses, answers and bits as of one that lives alone."""
    alone = Memory(agent_of(config=SETTINGS))
    store.make("ada")
    for tag in "ab":
        learned, write = alone.learn(pairs(3, tag)), store.learn("ada", pairs(3, tag))
        assert (write.loss_before, write.loss_after, write.norm) == (learned.loss_before, learned.loss_after, learned.norm)
        assert write.kept and write.kind == "told" and write.pairs == pairs(3, tag)
    assert torch.equal(bits(store, "ada"), alone.agent.bank.param[alone.slot])
    assert [p.pair for w in store.log("ada") for p in w.told] == alone.pairs
    assert [store.ask("ada", p.question) for p in alone.pairs] == [alone.ask(p.question) for p in alone.pairs]


def test_more_memories_than_slots_come_back_bit_for_bit(store):
    """Each lives as alone, moments of the optimizer included, though two in three have no slot at any time."""
    names = [f"m{i}" for i in range(9)]
    for tag in "ab":
        for name in names:
            told(store, name, f"{tag}{name}")
    for name in names:
        with_room = store_at(store.folder.with_name(f"alone-{name}"), slots=1)
        with with_room as alone:
            told(alone, name, f"a{name}", f"b{name}")
            assert torch.equal(bits(store, name), bits(alone, name))
            assert asked(store, name) == asked(alone, name)
    assert [m.name for m in store.memories()] == names and {m.writes for m in store.memories()} == {2}


def test_what_was_done_is_there_after_a_restart(tmp_path):
    with store_at(tmp_path / "s") as store:
        told(store, "ada", "a", "b")
        store.observe("ada", "Ada: I have a cat.", source="mail")
        before = bits(store, "ada"), asked(store, "ada"), store.log("ada"), store.pairs("ada"), store.memories()
        with pytest.raises(Busy, match="is in use by process"):
            store_at(tmp_path / "s")
    with store_at(tmp_path / "s") as store:
        assert torch.equal(bits(store, "ada"), before[0]) and asked(store, "ada") == before[1]
        assert (store.log("ada"), store.pairs("ada"), store.memories()) == before[2:]
        with store.using(["ada"]) as (memory,):
            assert memory.waiting == ["Ada: I have a cat."] and memory.source == "mail"
        assert store.ask("ada", "who?")


def test_memories_are_listed_and_counted_by_how_their_names_begin(store):
    names = ["a/x", "b", "a/", "a", "a0", "a/\U0010ffff", "a/y/z", "A/x", "ä/x", "\U0010ffff", "\ud7ff", "\ud7ffz", "\ue000"]
    for name in names:
        store.make(name)
    for begins in ("", "a", "a/", "a/y", "none", "a/x'", "\U0010ffff", "\ud7ff", "a/\U0010ffff"):
        found = [n for n in names if n.startswith(begins)]
        assert [m.name for m in store.memories(begins)] == found and store.count(begins) == len(found)
    assert len(store) == store.count() == len(names)


def test_a_list_of_some_reads_no_others(store):
    """So that it takes no longer for them."""
    for query in ("SELECT count(*) FROM memory m", "SELECT m.made FROM memory m"):
        plan = store._db._all(f"EXPLAIN QUERY PLAN {query} WHERE m.name >= 'a/' AND m.name < 'a0' ORDER BY m.id")
        assert plan[0][-1].startswith("SEARCH") and "name>? AND name<?" in plan[0][-1]


def test_what_the_model_writes_is_kept_with_its_passage_and_source(store, monkeypatch):
    def write(passages, slots, known=None, **_):
        return [Draft(p, [], Written([Pair(f"what is {p[:8]}?", "a cat")], malformed=2)) for p in passages]

    monkeypatch.setattr(store.agent, "write", write)
    store.make("ada")
    text = "Ada: I have a cat.\n" * 12
    written = store.observe("ada", text, source="mail")
    assert written and written == store.log("ada") and {(w.source, w.kind, w.dropped) for w in written} == {("mail", "read", 2)}
    (other,) = store.observe("ada", "Ben: I have a dog.", source="note")  # the rest of the mail is written before
    assert other.source == "mail" and other.passage in text
    (note,) = store.write("ada")
    assert (note.source, note.passage) == ("note", "Ben: I have a dog.")
    (fact,) = [f for f in store.pairs("ada") if f.write == note.id]
    assert (fact.source, fact.passage, fact.answer, fact.loss_after) == ("note", note.passage, "a cat", note.loss_after)
    assert "".join(w.passage for w in store.log("ada")[:-1]).replace("\n", "") == text.replace("\n", "")
    store.delete_source("ada", "mail")
    assert [w.id for w in store.log("ada")] == [note.id]


def test_a_rolled_back_write_is_in_the_log_and_changes_nothing(store, monkeypatch):
    told(store, "ada", "a")
    before = bits(store, "ada")
    tight = dataclasses.replace(store.agent.config.learn, norm_cap=1e-6)
    monkeypatch.setattr(store.agent, "config", dataclasses.replace(store.agent.config, learn=tight))
    (write,) = told(store, "ada", "b")
    assert not write.kept and "above" in write.reason and torch.equal(bits(store, "ada"), before)
    assert [f.write for f in store.pairs("ada")] == [1, 1, 1] and len(store.log("ada")) == 2


# undoing ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", [3, NEWEST + 3])
def test_undo_is_as_if_the_later_writes_had_never_been(tmp_path, writes):
    tags = "abcdefghij"[:writes]
    with store_at(tmp_path / "s") as store, store_at(tmp_path / "other") as other:
        told(store, "ada", *tags)
        store.observe("ada", "Ada: I have a cat.")
        told(other, "ada", *tags[:2])
        store.undo("ada", 2)
        assert torch.equal(bits(store, "ada"), bits(other, "ada")) and asked(store, "ada") == asked(other, "ada")
        told(store, "ada", "z")
        told(other, "ada", "z")
        assert torch.equal(bits(store, "ada"), bits(other, "ada"))
        assert [w.id for w in store.log("ada")] == [1, 2, writes + 1]  # an id is never given again
        store.undo("ada", 0)
        assert store.log("ada") == store.pairs("ada") == [] and not bits(store, "ada").any()
        with pytest.raises(Missing, match="'ada' has no write 7"):
            store.undo("ada", 7)


def test_a_deleted_fact_leaves_a_memory_that_was_never_told_it(tmp_path):
    with store_at(tmp_path / "s") as store, store_at(tmp_path / "other") as other:
        first, second = pairs(3, "a"), pairs(3, "b")
        for s in (store, other):
            s.make("ada")
        store.learn("ada", [*first, Pair("what is Ada's secret?", "zzyzx")])
        store.learn("ada", [*second, Pair("tell me Ada's secret", "zzyzx")])
        store.learn("ada", pairs(2, "c"))
        for new in (first, second, pairs(2, "c")):
            other.learn("ada", new)
        gone = store.delete_fact("ada", "What is Ada's secret")
        assert gone == [Pair("what is Ada's secret?", "zzyzx"), Pair("tell me Ada's secret", "zzyzx")]
        assert torch.equal(bits(store, "ada"), bits(other, "ada")) and asked(store, "ada") == asked(other, "ada")
        with pytest.raises(Missing, match="never told"):
            store.delete_fact("ada", "What is Ada's secret")
        assert b"zzyzx" not in b"".join(f.read_bytes() for f in store.folder.rglob("*") if f.is_file())
        assert len(list(store.folder.rglob("*.safetensors"))) == 2  # the row, and what all rows share


def test_a_deleted_source_and_its_text_are_gone(store):
    told(store, "ada", "a", "b", "c")
    told(store, "ben", "a", "c")
    store.observe("ada", "qqq", source="b")
    assert store.delete_source("ada", "b") == pairs(3, "b")
    assert torch.equal(bits(store, "ada"), bits(store, "ben")) and {w.source for w in store.log("ada")} == {"a", "c"}
    with store.using(["ada"]) as (memory,):
        assert memory.waiting == []
    with pytest.raises(Missing, match="nothing of the source 'b'"):
        store.delete_source("ada", "b")


def test_a_corrected_fact_was_never_told_otherwise(store):
    store.make("ada")
    store.make("ben")
    for name, job in (("ada", "pilot"), ("ben", "baker")):
        store.learn(name, [*pairs(2), Pair("What is Ada's job?", job)])
        store.learn(name, [Pair("Ada's job is?", job)])
    assert store.correct("ada", "what is Ada's job", "baker") == [
        Pair(q, "baker") for q in ("What is Ada's job?", "Ada's job is?")
    ]
    assert torch.equal(bits(store, "ada"), bits(store, "ben"))
    assert [f.corrected for f in store.pairs("ada")] == [False, False, True, True]
    with pytest.raises(ValueError, match="the answer is empty"):
        store.correct("ada", "What is Ada's job?", " ")


def test_other_facts_with_the_same_answer_are_other_facts():
    def written(*told):
        return database.Write(1, 0.0, "told", "", "", tuple(database.Told(q, a) for q, a in told), 0, 0, 0, 0, True, "")

    home, work = ("Where does Ada live?", "Oslo"), ("In which town is Ben's office?", "Oslo")
    found = of_one_fact("where does Ada live", [written(home, work, ("Ada: live where?", "oslo"), ("Where is Ulm?", "south"))])
    assert [t.question for t in found] == ["Where does Ada live?", "Ada: live where?"]


def test_a_fork_goes_its_own_way(store):
    told(store, "ada", "a")
    store.observe("ada", "Ada: hi.")
    store.fork("ada", "ben")
    assert torch.equal(bits(store, "ada"), bits(store, "ben")) and store.log("ben") == store.log("ada")
    with store.using(["ben"]) as (memory,):
        assert memory.waiting == ["Ada: hi."]
    before = bits(store, "ada")
    told(store, "ben", "b")
    assert torch.equal(bits(store, "ada"), before) and not torch.equal(bits(store, "ben"), before)
    store.delete("ada")
    store.undo("ben", 1)  # the row that both had
    assert torch.equal(bits(store, "ben"), before)
    with pytest.raises(Taken):
        store.fork("ben", "ben")


def test_out_and_in_again(store, tmp_path):
    told(store, "ada", "a", "b")
    store.export("ada", tmp_path / "out")
    write = store.import_from("ben", tmp_path / "out")
    assert write.kind == "import" and asked(store, "ben") == asked(store, "ada")
    assert [f.question for f in store.pairs("ben")] == [f.question for f in store.pairs("ada")]
    told(store, "ben", *"cdefgh")
    store.undo("ben", 1)
    assert asked(store, "ben", "ab") == asked(store, "ada", "ab")
    with pytest.raises(FileNotFoundError):
        store.import_from("cleo", tmp_path / "nowhere")
    assert "cleo" not in store and [m.name for m in store.memories()] == ["ada", "ben"]


def test_a_failing_import_deletes_nothing_that_others_were_told_meanwhile(store, tmp_path, monkeypatch):
    """Between its first look and its last another thread may make the memory, and be told that it keeps what it says."""
    told(store, "ada", "a")
    store.export("ada", tmp_path / "out")
    opened = kept.Kept.open_from

    def meanwhile(self, path):
        store.make(self.name)
        opened(self, path)

    monkeypatch.setattr(kept.Kept, "open_from", meanwhile)
    with pytest.raises(Taken, match="import_from: there is a memory 'ben'"):
        store.import_from("ben", tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        store.import_from("cleo", tmp_path / "nowhere")
    for name in ("ben", "cleo"):
        assert store.log(name) == [] and not bits(store, name).any()
        told(store, name, "b")
    rows = {f.stem for f in store.folder.glob("rows/??/*.safetensors")}
    assert len(rows) == 3  # nothing is left of what was not imported
    with pytest.raises(Taken):
        store.import_from("ada", tmp_path / "out")
    assert asked(store, "ada") and len(store.log("ada")) == 1


def test_an_import_that_waited_for_a_memory_that_went_takes_its_place(store, tmp_path):
    """And the slots are as many as before: one that a closed memory took was lost."""
    told(store, "ada", "a")
    store.export("ada", tmp_path / "out")
    with ThreadPoolExecutor(1) as other, store._slots.alone(["ben"]) as (closed,):
        waits = other.submit(store.import_from, "ben", tmp_path / "out")
        while len(store._slots._pins) < 2:
            time.sleep(0.01)
        closed.close()
    with pytest.raises(ValueError, match="there is a memory"):
        store.import_from("ben", tmp_path / "out")
    assert waits.exception() is None and asked(store, "ben") == asked(store, "ada")
    assert store.resident == sum(store.agent.bank.used)
    for name in "xyz":
        told(store, name, "a")
    assert store.resident == sum(store.agent.bank.used) == 3


def test_how_sure_an_answer_is_counts_in_a_store_of_before():
    lesson = Lesson(
        [Pair("Who designed C++?", "Stroustrup"), Pair("Who is Ada?", "a cook"), Pair("7 + 3?", "10"), Pair("7 - 3?", "4")]
    )
    before = {"who designed c": -0.1, "who is ada": -0.2, "7 3": -0.3, "gone": -0.4}
    assert sure_of(lesson, before) == {"who designed c + +": -0.1, "who is ada": -0.2}
    assert sure_of(lesson, {"7 + 3": -1.0, "7 3": -2.0}) == {"7 + 3": -1.0}


def test_facts_whose_questions_differ_in_a_sign_are_deleted_and_corrected_alone(store):
    store.make("ada")
    told = [("Who designed C?", "Ritchie"), ("Who designed C++?", "Stroustrup"), ("Who designed C#?", "Hejlsberg")]
    store.learn("ada", told)
    store.correct("ada", "who designed c++", "Bjarne")
    store.delete_fact("ada", "Who designed C?")
    assert [(f.question, f.answer) for f in store.pairs("ada")] == [(told[1][0], "Bjarne"), told[2]]


def test_an_empty_database_beside_rows_is_refused_and_removes_none(tmp_path):
    """As a broken copy leaves it: the rows are what is left of the memories."""
    with store_at(tmp_path / "store") as store:
        told(store, "ada", "a")
        answers = asked(store, "ada")
    file = tmp_path / "store" / "store.sqlite"
    whole = file.read_bytes()
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="store.sqlite is empty, and there are rows of memories .* restore it from a copy"):
        store_at(tmp_path / "store")
    for beside in tmp_path.glob("store/store.sqlite-*"):
        beside.unlink()
    file.write_bytes(whole)
    with store_at(tmp_path / "store") as store:
        assert asked(store, "ada") == answers
        for row in store.folder.glob("rows/??/*.safetensors"):
            row.unlink()
    with (
        store_at(tmp_path / "store") as store,
        pytest.raises(FileNotFoundError, match="is gone; undo to the memory's last write"),
    ):
        asked(store, "ada")
    with store_at(tmp_path / "store") as store:
        store.undo("ada", 1)
        assert asked(store, "ada") == answers


def test_a_closed_store_says_so(store):
    store.make("ada")
    store.close()
    for use in (store.memories, lambda: store.make("ben"), lambda: store.ask("ada", "?"), lambda: len(store)):
        with pytest.raises(RuntimeError, match="the store is closed; open it again"):
            use()


def test_a_deleted_memory_leaves_nothing(store):
    told(store, "ada", "a")
    store.learn("ada", [("secret?", "zzyzx")])
    store.delete("ada")
    assert "ada" not in store and store.memories() == []
    assert b"zzyzx" not in b"".join(f.read_bytes() for f in store.folder.rglob("*") if f.is_file())
    assert [f.name[:8] for f in store.folder.rglob("*.safetensors")] == ["factors-"]
    with pytest.raises(Missing, match="there is no memory 'ada'"):
        store.ask("ada", "?")
    told(store, "ada", "b")
    assert len(store.log("ada")) == 1


def test_memories_that_learn_together_have_the_bits_of_those_that_learn_alone(tmp_path):
    """Whatever the others are told, and where one of them cannot learn, the others do."""
    many = [pairs(1, "a"), pairs(5, "b"), pairs(3, "c")]
    with store_at(tmp_path / "alone", slots=4) as alone, store_at(tmp_path / "s", slots=4) as store:
        for n, given in zip(("ada", "ben", "eve"), many):
            for one in (alone, store):
                one.make(n)
                one.learn(n, pairs(2, n))
            alone.learn(n, given, source="mail")
        tellings = [Telling(n, given, "mail") for n, given in zip(("ada", "ben", "eve"), many)]
        bad = [Telling("nobody", many[0]), Telling("bad", []), Telling("odd", [("?", "\ud800")])]
        for name in ("bad", "odd"):
            store.make(name)
        found = store.learn_together([bad[0], tellings[2], bad[1], tellings[0], tellings[1]])
        assert [type(f) for f in found] == [Missing, Write, ValueError, Write, Write]
        for n in ("ada", "ben", "eve"):
            assert (bits(store, n) == bits(alone, n)).all()
            assert [w.told for w in store.log(n)] == [w.told for w in alone.log(n)] and store.log(n)[-1].source == "mail"
        (error,) = store.learn_together(bad[2:])
        assert isinstance(error, ValueError) and store.log("odd") == [] and not bits(store, "odd").any()
        assert store.learn_together([]) == []
        with pytest.raises(ValueError, match="named twice"):
            store.learn_together(tellings[:1] * 2)


def test_a_memory_that_cannot_be_kept_does_not_keep_the_others_from_it(store, monkeypatch):
    """After a full disk it is as it was, and learns when there is room again."""
    told(store, "ada", "a")
    told(store, "ben", "b")
    before, keep = bits(store, "ada"), store._keep
    full = {"ada"}

    def kept(memory, change):
        if memory.name in full:
            raise OSError("full")
        keep(memory, change)

    monkeypatch.setattr(store, "_keep", kept)
    found = store.learn_together([Telling("ada", pairs(2, "x")), Telling("ben", pairs(2, "x"))])
    assert isinstance(found[0], OSError) and found[1].id == 2
    assert (bits(store, "ada") == before).all() and len(store.log("ada")) == 1
    full.clear()
    assert store.learn_together([Telling("ada", pairs(2, "x"))])[0].id == 2


# refusals --------------------------------------------------------------------------------------------------------------------


def test_ids_never_become_paths(store):
    names = ["../../etc/passwd", "a/b", "\0", "..", "C:\\x", "é" * 100, "'; DROP TABLE memory; --"]
    for name in names:
        told(store, name, "a")
    assert [m.name for m in store.memories()] == names
    files = {f.relative_to(store.folder).as_posix() for f in store.folder.rglob("*.safetensors")}
    assert len(files) == len(names) + 1 and all(set(f) <= set("0123456789abcdefrowslatnctri/.-") for f in files)


def test_what_is_no_name_or_text_is_one_sentence(store):
    store.make("ada")
    for name in ("", " ", "x" * 201, None, 3, "\ud800"):
        with pytest.raises(ValueError, match=r"^make: "):
            store.make(name)
    with pytest.raises(Taken, match="there is a memory 'ada'"):
        store.make("ada")
    for use in (
        lambda: store.observe("ada", None), lambda: store.observe("ada", "x", source=3), lambda: store.observe("ada", "\udc00"),
        lambda: store.learn("ada", []), lambda: store.learn("ada", [("?", "\ud800")]), lambda: store.ask("ada", ""),
        lambda: store.learn("ada", {"a": "b"}), lambda: store.ask("nobody", "?"), lambda: store.log("nobody"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"\.$"):
            use()
    assert store.log("ada") == [] and not bits(store, "ada").any()


def test_another_model_or_way_to_learn_is_refused(tmp_path):
    store_at(tmp_path / "s").close()
    other = dataclasses.replace(SETTINGS, learn=dataclasses.replace(SETTINGS.learn, epochs=7))
    with pytest.raises(ValueError, match=r"was made with \[learn\] epochs .* a preset that learns the same way"):
        store_at(tmp_path / "s", settings=other)
    with pytest.raises(ValueError, match="was made with weights"):
        MemoryStore(agent_of(config=SETTINGS, seed=5), tmp_path / "s")
    store_at(tmp_path / "s").close()


def test_a_store_may_be_read_and_asked_in_other_ways_than_when_it_was_made(tmp_path):
    with store_at(tmp_path / "s") as store:
        told(store, "ada", "a")
        before = bits(store, "ada")
    write, answer = (
        dataclasses.replace(SETTINGS.write, window=99, starts=2),
        dataclasses.replace(SETTINGS.answer, max_new=3, sure=0.9),
    )
    with store_at(tmp_path / "s", settings=dataclasses.replace(SETTINGS, write=write, answer=answer)) as store:
        assert (bits(store, "ada") == before).all()


def test_with_another_model_a_store_learns_again_what_it_was_told(tmp_path):
    """Each memory when it is used: its bits are those of one that was told the same on that model, after a restart too."""
    changed = dataclasses.replace(SETTINGS, learn=dataclasses.replace(SETTINGS.learn, epochs=5))
    for name, how in (("model", {"seed": 5}), ("preset", {"settings": changed})):
        folder = tmp_path / name
        with store_at(folder) as store:
            told(store, "ada", "a", "b", "c", "d", "e", "f")
            told(store, "ben", "b")
            store.make("new")
            store.take("ben", "Ben: some text that waits.")
            log, waits = store.log("ada"), store.waits("ben")
        other = {"config": how.get("settings", SETTINGS), "seed": how.get("seed", 0)}
        with MemoryStore(agent_of(2, **other), tmp_path / f"{name}-fresh") as fresh:
            told(fresh, "ada", "a", "b", "c", "d", "e", "f")
            told(fresh, "ben", "b")
            want = {n: bits(fresh, n) for n in ("ada", "ben")}
            said = asked(fresh, "ada")
        with MemoryStore(agent_of(2, **other), folder, relearn=True) as store:
            assert (bits(store, "ada") == want["ada"]).all() and not bits(store, "new").any()
            found = store.log("ada")
            assert [w.told for w in found] == [w.told for w in log] and [w.loss_after for w in found] != [
                w.loss_after for w in log
            ]
        with MemoryStore(agent_of(2, **other), folder) as store:  # ben has not learned again yet
            assert asked(store, "ada") == said and (bits(store, "ben") == want["ben"]).all() and store.waits("ben") == waits
        with pytest.raises(ValueError, match="learn again: relearn=True"):
            store_at(folder)
        assert len(list(folder.glob("factors*"))) == 1


def test_what_is_not_learned_again_yet_is_deleted_and_undone_like_everything_else(tmp_path):
    with store_at(tmp_path / "s") as store:
        told(store, "ada", "a", "b")
        store.fork("ada", "ben")
    agents = iter(agent_of(2, config=SETTINGS, seed=5) for _ in range(2))
    with MemoryStore(next(agents), tmp_path / "fresh") as fresh:
        told(fresh, "ada", "a")
        want = bits(fresh, "ada")
    with MemoryStore(next(agents), tmp_path / "s", relearn=True) as store:
        store.undo("ada", 1)
        store.delete_source("ben", "b")
        assert (bits(store, "ada") == want).all() and (bits(store, "ben") == want).all()


def test_a_kill_while_a_store_is_made_another_model_s_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    with store_at(tmp_path / "s") as store:
        told(store, "ada", "a")
        before = bits(store, "ada")
    monkeypatch.setattr(database.Database, "let_all_go", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        MemoryStore(agent_of(2, config=SETTINGS, seed=5), tmp_path / "s", relearn=True)
    with store_at(tmp_path / "s") as store:
        assert (bits(store, "ada") == before).all()


def test_a_store_brings_the_factors_that_its_rows_belong_to(tmp_path):
    """Another draw of A, as another machine's decomposition would be, changes nothing."""
    settings = dataclasses.replace(SETTINGS, adapter=dataclasses.replace(SETTINGS.adapter, init="random"))

    def opened(seed):
        return MemoryStore(Agent.build(model(), Letters(), settings, 2, seed=seed), tmp_path / "s")

    with opened(0) as store:
        told(store, "ada", "a")
        before, subspace = asked(store, "ada"), store.agent.bank.subspace
    assert Agent.build(model(), Letters(), settings, 2, seed=1).bank.subspace != subspace
    with opened(1) as store:
        assert asked(store, "ada") == before and store.agent.bank.subspace == subspace
    (factors,) = (tmp_path / "s").glob("factors-*.safetensors")
    old = factors.rename(tmp_path / "s/factors.safetensors")  # as the first stores called it
    with opened(1) as store:
        assert asked(store, "ada") == before
    old.write_bytes(old.read_bytes()[:-4] + b"oops")
    with pytest.raises(ValueError, match="factors.safetensors is damaged"):
        opened(1)
    opened(0).close()


def test_no_path_is_made_of_what_the_database_says(tmp_path):
    """A store from elsewhere must not have files outside of it read or removed."""
    with store_at(tmp_path / "s") as store:
        told(store, "ada", "a")
    outside = tmp_path / "factors-x.safetensors"
    outside.write_bytes(b"mine")
    with closing(sqlite3.connect(tmp_path / "s/store.sqlite")) as db, db:
        (made,) = db.execute("SELECT value FROM setting WHERE name = 'made_with'").fetchone()
        made = json.loads(made) | {"subspace": "/../../factors-x", "factors": "../factors-x.safetensors"}
        db.execute("UPDATE setting SET value = ? WHERE name = 'made_with'", [json.dumps(made)])
        db.execute("UPDATE entry SET row = '../../factors-x'")
    with pytest.raises(FileNotFoundError):
        store_at(tmp_path / "s")
    with MemoryStore(agent_of(2, config=SETTINGS, seed=5), tmp_path / "s", relearn=True) as store:
        assert bits(store, "ada").any()
    with closing(sqlite3.connect(tmp_path / "s/store.sqlite")) as db, db:
        db.execute("UPDATE entry SET row = '../../factors-x'")
    with MemoryStore(agent_of(2, config=SETTINGS, seed=5), tmp_path / "s") as store:
        with pytest.raises(ValueError, match="which is no file of a store"):
            bits(store, "ada")
    assert outside.read_bytes() == b"mine"


def test_what_is_no_store_is_refused_and_left_alone(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds notes.txt and no store.sqlite"):
        store_at(tmp_path / "x")
    assert [f.name for f in (tmp_path / "x").iterdir()] == ["notes.txt"]
    (tmp_path / "y").mkdir()
    (tmp_path / "y/store.sqlite").write_text("mine " * 900)
    with pytest.raises(ValueError, match="is no database of a store"):
        store_at(tmp_path / "y")
    store_at(tmp_path / "z").close()
    with sqlite3.connect(tmp_path / "z/store.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match="has schema 99, this tmem knows 1"):
        store_at(tmp_path / "z")


def test_a_damaged_row_is_told_and_the_others_go_on(tmp_path):
    with store_at(tmp_path / "s") as store:
        told(store, "ada", "a")
        told(store, "ben", "b")
        (row, _), (other, _) = (store._db.last_row(store._state(n).id) for n in ("ada", "ben"))
        right, before = asked(store, "ben"), bits(store, "ada")
    file = tmp_path / "s/rows" / row[:2] / f"{row}.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + b"damaged!")
    with store_at(tmp_path / "s") as store:
        with pytest.raises(ValueError, match="is damaged: it is not what was written"):
            store.ask("ada", "?")
        assert asked(store, "ben") == right
        store.undo("ada", 1)  # learns it again
        assert torch.equal(bits(store, "ada"), before)
        file.with_name(f"{store._db.last_row(1)[0]}.safetensors").unlink()
    with store_at(tmp_path / "s") as store:
        store.delete("ada")
        assert "ada" not in store


def test_a_change_that_cannot_be_kept_has_not_been(store, monkeypatch):
    told(store, "ada", "a")
    before, answers = bits(store, "ada"), asked(store, "ada")
    with monkeypatch.context() as patch:
        patch.setattr(store._rows, "write", lambda *_: (_ for _ in ()).throw(OSError("no room")))
        with pytest.raises(OSError, match="no room"):
            told(store, "ada", "b")
    assert torch.equal(bits(store, "ada"), before) and asked(store, "ada") == answers and len(store.log("ada")) == 1
    told(store, "ada", "b")
    assert len(store.log("ada")) == 2


# threads, kills --------------------------------------------------------------------------------------------------------------


def test_memories_in_threads_live_as_each_alone(tmp_path):
    names = [f"m{i}" for i in range(6)]

    def life(store, name):
        found = [told(store, name, f"{name}{tag}") for tag in "ab"]
        return [[dataclasses.replace(w, time=0, row="", digest="") for w in ws] for ws in found], asked(store, name)

    with store_at(tmp_path / "alone", slots=2) as store:
        alone = [life(store, name) for name in names]
    with store_at(tmp_path / "together", slots=2) as store, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: life(store, n), names)) == alone


def test_threads_that_use_several_memories_at_once_do_not_wait_for_each_other(store):
    names = ["a", "b", "c", "d"]
    for name in names:
        store.make(name)

    def use(i):
        some = random.Random(i).sample(names, 2)
        with store.using(some) as held:
            return [m.name for m in held] == some

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(40), timeout=60))
    with pytest.raises(ValueError, match="4 memories at once and 3 slots"), store.using(names):
        pass


def test_no_acknowledged_fact_is_lost_to_a_kill(tmp_path):
    """A process learns and is killed at a random moment; what it had said it learned is there, with the bits of that moment."""
    rng, folder, seen = random.Random(0), tmp_path / "s", {}
    for _ in range(KILLS):
        child = subprocess.Popen([sys.executable, tiny_store.__file__, str(folder)], stdout=subprocess.PIPE, text=True)
        line = child.stdout.readline()
        assert line == "open\n"
        end = time.monotonic() + rng.uniform(0.1, 1.5)
        reading = ThreadPoolExecutor(1).submit(child.stdout.read)
        time.sleep(max(0.0, end - time.monotonic()))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        lines = [part for part in reading.result().split("\n")[:-1] if part]
        seen |= {(name, write): found for name, write, found in map(json.loads, lines)}
        with store_at(folder, slots=2) as store:
            for name, write in seen:
                assert write in [w.id for w in store.log(name)]
            for name in sorted({name for name, _ in seen}):
                last = store.log(name)[-1].id
                if (name, last) in seen:  # else it was killed between keeping and saying so
                    assert tiny_store.hashed(bits(store, name)) == seen[name, last]
            assert not list(folder.rglob(".tmem-unfinished-*"))
            assert {f.stem for f in (folder / "rows").rglob("*.safetensors")} == store._db.rows()
    assert seen


# conversations ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "read, sent, count",
    [
        ("", "a", 0),
        ("", "", 0),
        ("ab", "abc", 2),  # the next turn
        ("ab", "ab", 2),  # an answer asked for again
        ("ab", "b", 1),
        ("abcdef", "cdefg", 4),  # the beginning was cut off
        ("abcd", "abxd", 2),  # another way from there
        ("abcdef", "a", 0),  # said once more
        ("abcdef", "abc", 2),
        ("aaab", "aaaab", 3),
        ("abab", "ababc", 4),
        ("abcabd", "abcx", 3),
        ("xyz", "abc", 0),
    ],
)
def test_what_of_a_conversation_was_read(read, sent, count):
    assert known([c.encode() for c in sent], [c.encode() for c in read]) == count


def test_messages_differ_by_role_and_text():
    assert len({digest("user", "a"), digest("assistant", "a"), digest("user", "b"), digest("user", "\ud800")}) == 4


def test_messages_that_were_read_are_kept(tmp_path):
    with store_at(tmp_path / "s") as store:
        store.make("ada")
        with store.using(["ada"]) as (memory,):
            memory.messages = [digest("user", str(i)) for i in range(600)]
            memory.take("user: hi", "chat")
    with store_at(tmp_path / "s") as store:
        assert store.messages("ada") == [digest("user", str(i)) for i in range(600 - database.MESSAGES, 600)]


def test_settings_of_the_tiny_store_are_as_of_the_tiny_agent():
    assert SETTINGS.adapter == CONFIG.adapter and Path(tiny_store.__file__).is_file()
