"""Multi-objective search: files are read or refused in a sentence, turns and scores by hand, and what each state remembers."""

import copy
import importlib
import json
import os
import random
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import Letters, model
from tiny_agent import AGENT
from tiny_run import PRESET

from tmem import cli
from tmem.agent import agent as agents
from tmem.agent.agent import Agent
from tmem.agent.decode import Generation
from tmem.agent.write import Written
from tmem.episode import Pair
from tmem.evaluation import runs, searching
from tmem.evaluation.compute import Sizes
from tmem.evaluation.config import EvalConfig
from tmem.evaluation.evaluate import chosen, evaluate
from tmem.evaluation.summary import summarise
from tmem.files.journal import read_jsonl
from tmem.methods import search as loop
from tmem.methods.methods import METHODS, SEARCHED
from tmem.methods.retrieve import Lines
from tmem.methods.trajectory import SearchConfig, Trajectory
from tmem.models import loading
from tmem.models.embed import EMBEDDER
from tmem.tasks import corpus, left_out, multihop, search
from tmem.tasks.corpus import Document, Index
from tmem.tasks.multihop import Hop
from tmem.tasks.search import Objectives, Said, Step

MULTIHOP = Path(os.environ.get("TMEM_MULTIHOP", Path(__file__).parents[3] / "shared/data/multihop"))

HOTPOT = {
    "_id": "h1",
    "question": "Where was the maker of Zib born?",
    "answer": "Ulm",
    "supporting_facts": [["Zib", 0], ["Ada Mo", 1], ["Zib", 1]],
    "context": [["Zib", ["Zib is a toy.", " Ada Mo made it."]], ["Ada Mo", ["Ada Mo is a maker.", " She is from Ulm."]]],
    "type": "bridge",
    "level": "easy",
}
COLUMNS = HOTPOT | {
    "supporting_facts": {"title": ["Zib", "Ada Mo"], "sent_id": [0, 1]},
    "context": {"title": ["Zib", "Ada Mo"], "sentences": [c[1] for c in HOTPOT["context"]]},
}
MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Who wed the maker of Zib?",
    "answer": "Ben Lo",
    "answer_aliases": ["Ben", "Ben Lo", " "],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Zib", "paragraph_text": "Zib is by Ada Mo.", "is_supporting": True},
        {"idx": 1, "title": "Ulm", "paragraph_text": "Ulm is a town.", "is_supporting": False},
        {"idx": 2, "title": "Ada Mo", "paragraph_text": "Ada Mo wed Ben Lo.", "is_supporting": True},
    ],
}


GOLDEN = ["Ada Mo", "Ada", 1867]
FLASHRAG = {"id": "test_0", "question": "who made zib", "golden_answers": GOLDEN, "metadata": {}}
# The prompts that Search-R1 and MEM1 make; the second asks two questions at once.
SEARCH_R1 = FLASHRAG | {
    "data_source": "nq",
    "prompt": [{"role": "user", "content": "Answer the given question. You may search.\nQuestion: who made zib?\n"}],
    "ability": "fact-reasoning",
    "reward_model": {"ground_truth": {"target": GOLDEN}, "style": "rule"},
    "extra_info": {"index": 0, "split": "test"},
}
MEM1 = {
    "data_source": "nq",
    "prompt": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Search.\n\nAnswer the following questions: who made {zib; or not}?; where is ulm?\n"},
    ],
    "ability": "fact-reasoning",
    "reward_model": {"style": "rule", "ground_truth": {"target": [["Ada Mo", "Ada"], ["on the Danube"]]}},
    "extra_info": {"split": "test", "indices": [6, 7]},
}


def write(folder, content, name="data.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# --- files of questions


@pytest.mark.parametrize("record", [HOTPOT, COLUMNS], ids=["official", "columns"])
def test_hotpotqa_is_read(tmp_path, record):
    path = write(tmp_path, [record])
    (hop,) = multihop.questions(path)
    texts = ("Zib", "Zib is a toy. Ada Mo made it."), ("Ada Mo", "Ada Mo is a maker. She is from Ulm.")
    assert hop == Hop("h1", "Where was the maker of Zib born?", ("Ulm",), ("Zib", "Ada Mo"), texts, path)
    assert corpus.documents(path) == [*texts]


@pytest.mark.parametrize("name", ["m.json", "m.jsonl"])
def test_musique_is_read_without_its_unanswerable_questions(tmp_path, name):
    records = [MUSIQUE, MUSIQUE | {"answerable": False}]
    path = write(tmp_path, "\n".join(map(json.dumps, records)) + "\n" if name == "m.jsonl" else records, name)
    texts = ("Zib", "Zib is by Ada Mo."), ("Ada Mo", "Ada Mo wed Ben Lo.")
    who = "Who wed the maker of Zib?"
    assert multihop.questions(path) == [Hop("2hop__1_2", who, ("Ben Lo", "Ben"), ("Zib", "Ada Mo"), texts, path)]
    assert corpus.documents(path) == [("Zib", "Zib is by Ada Mo."), ("Ulm", "Ulm is a town."), ("Ada Mo", "Ada Mo wed Ben Lo.")]


@pytest.mark.parametrize(
    "record, id, question",
    [
        (FLASHRAG, "test_0", "who made zib"),
        (SEARCH_R1, "nq/test_0", "who made zib"),
        ({k: v for k, v in SEARCH_R1.items() if k not in ("id", "question", "golden_answers")}, "nq/test_0", "who made zib?"),
        ({k: v for k, v in SEARCH_R1.items() if k not in ("id", "extra_info")}, "nq/1", "who made zib"),
        (FLASHRAG | {"golden_answers": None, "reward_model": {"ground_truth": GOLDEN}}, "test_0", "who made zib"),
        (FLASHRAG | {"golden_answers": [GOLDEN], "id": 7}, "7", "who made zib"),
        (FLASHRAG | {"id": None}, "1", "who made zib"),
        (FLASHRAG | {"question": None, "prompt": "who made zib?"}, "test_0", "who made zib?"),
    ],
)
def test_one_question_with_golden_answers_is_read(tmp_path, record, id, question):
    path = write(tmp_path, json.dumps(record) + "\n", "q.jsonl")
    (hop,) = multihop.questions(path)
    assert hop == Hop(id, question, ("Ada Mo", "Ada", "1867"), source=path)
    for said, f1 in (("ada", 1), ("1867", 1), ("the Ada Mo", 1), ("Ulm", 0)):
        assert search.score(Objectives("o", (hop,)), said)["f1"] == f1


@pytest.mark.parametrize(
    "record, ids",
    [
        (MEM1, ["nq/test_6", "nq/test_7"]),
        (MEM1 | {"question": "who made {zib; or not}?; where is ulm?"}, ["nq/test_6", "nq/test_7"]),
        (MEM1 | {"question": ["who made {zib; or not}?", "where is ulm?"], "extra_info": None}, ["nq/1/1", "nq/1/2"]),
        (MEM1 | {"id": "m0", "golden_answers": [["Ada Mo", "Ada"], ["on the Danube"]]}, ["nq/m0/1", "nq/m0/2"]),
    ],
)
def test_questions_that_are_asked_together_stay_together(tmp_path, record, ids):
    hops = multihop.questions(write(tmp_path, [record]))
    assert [(h.id, h.question, h.answers) for h in hops] == [
        (ids[0], "who made {zib; or not}?", ("Ada Mo", "Ada")), (ids[1], "where is ulm?", ("on the Danube",)),
    ]  # fmt: skip
    (pair,) = search.compose(hops, 2)
    assert pair.question == "who made {zib; or not}?; where is ulm?"
    assert search.score(pair, "Ada; Danube")["em"] == 1 and search.score(pair, "Ada; on the Danube")["em"] == 2
    with pytest.raises(ValueError, match=r"data.json asks 2 questions at once \('nq/.*'\), not 3; give --objectives 2\."):
        search.compose(hops, 3)


def test_questions_of_several_records_make_no_set_with_those_that_belong_together(tmp_path):
    single = [FLASHRAG | {"id": f"t{i}"} for i in range(3)]
    together = [MEM1 | {"extra_info": {"split": "test", "indices": [i, i + 1]}} for i in (0, 2)]
    hops = multihop.questions(write(tmp_path, [*single, *together]))
    assert [[h.id for h in s.hops] for s in search.compose(hops, 2)] == [
        ["t0", "t1"], ["nq/test_0", "nq/test_1"], ["nq/test_2", "nq/test_3"],
    ]  # fmt: skip


def test_sets_of_one_split_have_the_same_ids_and_stay_apart(tmp_path):
    files = [write(tmp_path, [FLASHRAG], name) for name in ("nq.json", "triviaqa.json")]
    assert [h.id for h in multihop.questions(files)] == ["test_0", "test_0"]
    merged = write(tmp_path, [SEARCH_R1, SEARCH_R1 | {"data_source": "triviaqa"}], "merged.json")
    assert [h.id for h in multihop.questions(merged)] == ["nq/test_0", "triviaqa/test_0"]
    with pytest.raises(ValueError, match="the id 'test_0' occurs twice"):
        multihop.questions(write(tmp_path, [FLASHRAG, FLASHRAG]))
    with pytest.raises(ValueError, match="the file '.*' occurs twice"):
        multihop.questions([files[0]] * 2)
    with pytest.raises(ValueError, match="the id to leave out, 'test_0' occurs twice"):
        multihop.questions(files, left_out.LeaveOut({"test_0": ""}))


@pytest.mark.parametrize("column", ["sentences", "content"])
def test_articles_under_metadata_are_evidence_and_corpus(tmp_path, column):
    articles = {"title": ["Zib", "Ada Mo"], column: [["Zib is a toy.", " Ada Mo made it."], ["She is from Ulm."]]}
    facts = {"title": ["Ada Mo"], "sent_id": [0]}
    path = write(tmp_path, [FLASHRAG | {"metadata": {"type": "bridge", "context": articles, "supporting_facts": facts}}])
    (hop,) = multihop.questions(path)
    assert (hop.evidence, hop.passages) == (("Ada Mo",), (("Ada Mo", "She is from Ulm."),))
    assert corpus.documents(path) == [("Zib", "Zib is a toy. Ada Mo made it."), ("Ada Mo", "She is from Ulm.")]


@pytest.mark.parametrize("record", [FLASHRAG, SEARCH_R1, MEM1, FLASHRAG | {"metadata": None}, FLASHRAG | {"metadata": "x"}])
def test_questions_without_articles_ask_for_a_corpus(tmp_path, record):
    path = write(tmp_path, [record])
    assert multihop.questions(path)
    with pytest.raises(ValueError, match="record 1 is a question without articles; give those to search in with --corpus."):
        corpus.documents(path)


def test_questions_are_left_out_by_their_ids(tmp_path):
    path = write(tmp_path, [HOTPOT, MUSIQUE, MEM1])
    (tmp_path / "list.txt").write_text("h1\nnq/test_7\n")
    left = left_out.read_leave_out(tmp_path / "list.txt")
    assert [h.id for h in multihop.questions(path, left)] == ["2hop__1_2"] and left.check() is None
    assert left_out.notes(left) == ["2 questions left out by list.txt; 1 asked together with them too"]
    with pytest.raises(ValueError, match="all of its questions are left out"):
        multihop.questions(write(tmp_path, [HOTPOT]), left)


def test_a_binary_file_says_how_to_make_text_of_it(tmp_path):
    for start, sentence in ((b"PAR1", "to_json"), (b"\x1f\x8b\x08\x00", "unpack it with gunzip"), (b"PK\x03\x04", "zip")):
        (tmp_path / "x.jsonl").write_bytes(start + b"\xff\x00" * 9)
        for load in (multihop.questions, corpus.documents):
            with pytest.raises(ValueError, match=sentence):
                load(tmp_path / "x.jsonl")


@pytest.mark.parametrize("record", [HOTPOT, COLUMNS, MUSIQUE, FLASHRAG, SEARCH_R1, MEM1])
@pytest.mark.parametrize("odd", ["{}", "{0.__class__}", "}{", "%s", "[x]", "ü😀"])
def test_text_of_paths_and_questions_is_no_format(tmp_path, record, odd):
    name = next((n for n in ("_id", "id") if n in record), "data_source")
    record = record | {name: odd, "question": f"{odd}?; {odd}?" if record is MEM1 else odd}
    path = tmp_path / odd / f"{odd}.json"
    path.parent.mkdir()
    path.write_text(json.dumps([record]))
    hops = multihop.questions(path)
    assert all(odd in h.id and odd in h.question and odd in search.prompt(Objectives("o", (h,))) for h in hops)
    rng = random.Random(odd)
    for _ in range(40):
        path.write_text(json.dumps([mutated(rng, record)]))
        for load in (multihop.questions, corpus.documents):
            try:
                load(path)
            except ValueError as error:
                assert type(error) is ValueError and str(path) in str(error), error


@pytest.mark.parametrize(
    "content, sentence",
    [
        ([{k: v for k, v in HOTPOT.items() if k != "answer"}], r"record 1 \(_id 'h1'\): `answer` is missing; expected text"),
        ([HOTPOT, {k: v for k, v in HOTPOT.items() if k != "_id"}], "record 2: `_id` or `id` is missing"),
        ([{k: v for k, v in MUSIQUE.items() if k != "paragraphs"}], "_2'\\): `context` or `paragraphs` is missing"),
        ([HOTPOT | {"question": " "}], "`question` is empty; expected text"),
        ([HOTPOT | {"answer": 7}], "`answer` is a number; expected text"),
        ([HOTPOT | {"supporting_facts": [["Zib"]]}], "item 1 of `supporting_facts` has 1 parts; expected two, title and sent"),
        ([HOTPOT | {"context": [["Zib", "x"], ["B", ["y", 1]]]}], "item 2 of `context`, item 2 of `sentences` is a number"),
        ([COLUMNS | {"supporting_facts": {"title": ["Zib"], "sent_id": []}}], "has 1 `title` and 0 `sent_id`"),
        ([MUSIQUE | {"paragraphs": [None]}], "item 1 of `paragraphs` is null; expected an object"),
        ([MUSIQUE | {"answer_aliases": "Ben"}], "`answer_aliases` is text; expected a list"),
        ([MUSIQUE | {"question": "half \ud800"}], "`question` holds half a surrogate pair"),
        ([MUSIQUE | {"answerable": False}], "only unanswerable questions"),
        ([FLASHRAG | {"golden_answers": []}], "only unanswerable questions"),
        ([FLASHRAG | {"golden_answers": None}], "only unanswerable questions"),
        ([FLASHRAG | {"golden_answers": [{}]}], "item 1 of `golden_answers` is an object; expected text or a number"),
        ([FLASHRAG | {"golden_answers": [["a"], "b", [None]]}], "`golden_answers`, item 1 of `3` is null"),
        ([FLASHRAG | {"golden_answers": [["a"], ["b"]]}], "`question` holds 1 questions; expected 2, one a list of answers"),
        ([MEM1 | {"question": "a?; b?; c?"}], "`question` holds 3 questions; expected 2"),
        ([MEM1 | {"prompt": [{"role": "system", "content": "x"}]}], "`prompt` has no message of a user"),
        ([MEM1 | {"prompt": []}], "`prompt` has no message of a user"),
        ([MEM1 | {"reward_model": {}}], "`reward_model`: `ground_truth` is missing"),
        ([SEARCH_R1 | {"golden_answers": None, "reward_model": {"ground_truth": {}}}], "`ground_truth`: `target` is missing"),
        ([None], "record 1 is null"),
        ({}, "holds an object, expected a non-empty list"),
        ([], "holds an empty list, expected"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ("1" * 5000, "is not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 99 else "",
)
def test_a_file_of_no_known_format_is_refused_in_a_sentence(tmp_path, content, sentence):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=sentence) as caught:
        multihop.questions(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_line_that_is_not_json_is_named(tmp_path):
    path = write(tmp_path, json.dumps(MUSIQUE) + "\n\n{", "m.jsonl")
    with pytest.raises(ValueError, match="line 3 is not JSON"):
        multihop.questions(path)
    with pytest.raises(ValueError, match="is not UTF-8"):
        (tmp_path / "b.json").write_bytes(b'["\xff"]')
        multihop.questions(tmp_path / "b.json")
    with pytest.raises(ValueError, match="multihop: .* is a folder, a pipe or a device"):
        multihop.questions(tmp_path)
    with pytest.raises(FileNotFoundError, match="corpus: no file at"):
        corpus.documents(tmp_path / "none.json")


def mutated(rng, value):
    """The value with one of its parts, at any depth, dropped, doubled or replaced by something odd."""
    odd = [None, True, -1, 1e308, "", " ", "\ud800", "<answer>x</answer>", "a\nb", [], {}, [[]], [None], {"title": 1}]
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or rng.random() < 0.15:
        return rng.choice(odd)
    value, key = copy.copy(value), rng.choice(keys)
    if (action := rng.random()) < 0.2:
        del value[key]
    elif action < 0.3:
        if isinstance(value, list):
            value.append(value[key])
        else:
            value[f"{key}2"] = value[key]
    else:
        value[key] = mutated(rng, value[key])
    return value


def test_mutated_records_are_read_or_refused_in_a_sentence(tmp_path):
    rng, outcomes = random.Random(0), {"read": 0, "refused": 0}
    flat = [[{"title": "a", "text": "b"}], [{"contents": '"a"\nb'}], {"a": ["b", "c"]}, [HOTPOT, MUSIQUE, COLUMNS]]
    for i in range(2500):
        sources = [[HOTPOT], [COLUMNS], [MUSIQUE], [FLASHRAG], [SEARCH_R1], [MEM1], *flat]
        value = sources[i % len(sources)]
        for _ in range(rng.choice([1, 1, 2, 4])):
            value = mutated(rng, value)
        path = write(tmp_path, json.dumps(value))
        for load in (multihop.questions, corpus.documents):
            try:
                found = load(path)
            except ValueError as error:
                outcomes["refused"] += 1
                assert type(error) is ValueError, error
                message = str(error)
                assert str(path) in message and "\n" not in message and "Traceback" not in message, message
            else:
                outcomes["read"] += 1
                assert found and all(isinstance(f, (Hop, Document)) for f in found)
                str(found).encode()
    assert min(outcomes.values()) > 500, outcomes


def test_damaged_files_are_read_or_refused_in_a_sentence(tmp_path):
    odd = (b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900, b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r\n",
           b"\0", b"NaN", b"1e999", b"7" * 5000, b"\\ud800", b'"', b"}", b",", b"\xc2\x85", b"\xe2\x80\xa8")  # fmt: skip
    lists = ["h1", {"question_id": 3, "label_error": {"type": "X"}}, {"id": "q", "error_type": "WRONG_CITATION"}]
    rng, outcomes = random.Random(1), {"read": 0, "refused": 0}
    for i in range(1500):
        records = rng.choice(([HOTPOT, MUSIQUE], [FLASHRAG, SEARCH_R1], [MEM1], [{"id": 0, "contents": "a\nb"}], lists))
        lines = rng.random() < 0.5
        held = ("\n".join(map(json.dumps, records)) if lines else json.dumps(records)).encode()
        at = rng.randrange(len(held) + 1)
        path = tmp_path / f"{i % 2}.{'jsonl' if lines else 'json'}"
        path.write_bytes(held[:at] + rng.choice(odd) + held[at:] if rng.random() < 0.7 else held[:at])
        for load in (multihop.questions, corpus.documents, left_out.read_leave_out):
            try:
                load(path)
            except ValueError as error:
                outcomes["refused"] += 1
                message = str(error)
                assert str(path) in message and "\n" not in message and len(message) < len(str(path)) + 300, message
            else:
                outcomes["read"] += 1
    assert min(outcomes.values()) > 200, outcomes


# --- the corpus and its index


def test_every_form_of_corpus_is_read_and_files_are_joined(tmp_path):
    files = [
        write(tmp_path, {"A": ["One.", " Two."], "Empty": []}, "a.json"),
        write(tmp_path, [{"title": "B", "text": "Three."}, {"title": "B", "text": "Three."}], "b.json"),
        write(tmp_path, json.dumps({"id": "0", "contents": '"C"\nFour.\nFive.'}) + "\n", "c.jsonl"),
        write(tmp_path, json.dumps({"title": "A", "text": "One. Two."}), "d.jsonl"),
        write(tmp_path, [{"id": "1", "text": "Six."}], "e.json"),
        write(tmp_path, json.dumps({"id": "2", "contents": "Seven in one line."}), "f.jsonl"),
        write(tmp_path, [{"title": "G", "contents": "Eight."}, {"title": "H", "contents": '"H"\nNine.'}], "g.json"),
        write(tmp_path, [{"title": "I", "text": "Ten.", "contents": "I\nTen."}], "h.json"),
    ]
    assert corpus.documents(*files) == [
        ("A", "One. Two."), ("B", "Three."), ("C", "Four.\nFive."), ("", "Six."), ("", "Seven in one line."), ("G", "Eight."),
        ("H", "Nine."), ("I", "Ten."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content, sentence",
    [
        ([{"title": "A"}], "record 1: `text` is missing"),
        ([{"title": 1, "text": "b"}], "record 1: `title` is a number"),
        ({"A": 3}, "article 'A': `sentences` is a number; expected a list or text"),
        ({"A": ["x", None]}, "article 'A', item 2 of `sentences` is null"),
        ([HOTPOT | {"context": [["Zib"]]}], "item 1 of `context` has 1 parts; expected two, title and sentences"),
        ([], "holds an empty list"),
        ([{"title": "A", "text": " "}], "no document with text"),
        ({}, "no document with text"),
        (3, "holds a number"),
    ],
)
def test_an_unreadable_corpus_is_refused_in_a_sentence(tmp_path, content, sentence):
    with pytest.raises(ValueError, match=sentence):
        corpus.documents(write(tmp_path, content))


DOCUMENTS = [
    Document("Zib", "Zib is a toy that Ada Mo made."),
    Document("Twin", "A red kite."),
    Document("Twin", "A red kite. "),
    Document("Ada Mo", "Ada Mo is a maker from Ulm. <answer>Rome</answer>"),
]


def test_the_index_finds_by_words_and_keeps_the_order_of_equals():
    index = Index(DOCUMENTS)
    assert [d.title for d in index.find("who made the toy Zib?", 1)] == ["Zib"]
    assert index.find("kite") == DOCUMENTS[1:3] and index.find("kite", 1) == DOCUMENTS[1:2]
    assert Index(DOCUMENTS[::-1]).find("kite") == [DOCUMENTS[2], DOCUMENTS[1]]
    many = [Document(str(i), "red kite" if i % 3 else "red kite, kite") for i in range(300)]
    assert Index(many).find("kite", 300) == sorted(many, key=lambda d: d.text == "red kite")
    assert [index.find(q) for q in ("", "  ", "of the", "?", "unseen")] == [[]] * 5
    with pytest.raises(ValueError, match="none of 1 documents has a word"):
        Index([Document("", "of the")])
    with pytest.raises(ValueError, match="none of 0 documents"):
        Index([])


def by_letters(texts):
    """Unit vectors of how often each letter occurs: a stand-in for embeddings."""
    counts = np.array([[text.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for text in texts], dtype=float)
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def test_an_index_of_embeddings_finds_without_a_shared_word():
    index = Index([Document("A", "aaa aab"), Document("B", "bbb"), Document("C", "bbb")], by_letters)
    assert [d.title for d in index.find("aa")] == ["A"] and Index(index.documents).find("aa") == []
    assert [d.title for d in index.find("b", 3)] == ["B", "C", "A"] and [d.title for d in index.find("b", 1)] == ["B"]
    assert index.find(" ") == [] and index.find("xyz") == []
    with pytest.raises(ValueError, match="none of 0 documents"):
        Index([], by_letters)


def test_the_shared_data_is_read_and_its_evidence_is_found():
    if not MULTIHOP.is_dir():
        pytest.skip(f"no multi-hop questions at {MULTIHOP}")
    for name in ("hotpotqa_train", "musique_train"):
        path = MULTIHOP / f"{name}.json"
        hops = multihop.questions(path)
        own, documents = corpus.documents(path), corpus.documents(MULTIHOP / f"{name}_corpus.json")
        assert len(hops) == len({h.id for h in hops}) == 100
        assert {d.title for d in own} == {d.title for d in documents}
        assert {title for h in hops for title in h.evidence} <= {d.title for d in own}
        assert all({title for title, _ in h.passages} == set(h.evidence) for h in hops)
        assert {text.strip() for h in hops for _, text in h.passages} <= {d.text for d in own}
        assert len(search.compose(hops, 4)) == 25
        index = Index(documents)
        hits = [bool({d.title for d in index.find(h.question)} & set(h.evidence)) for h in hops]
        assert sum(hits) > 75, name
    assert len(corpus.documents(MULTIHOP / "2wikimultihopqa_corpus.json")) == 6119


# --- composition


HOPS = [Hop(f"q{i}", q, a, e) for i, (q, a, e) in enumerate([
    ("Who made Zib?", ("Ada Mo", "Mo"), ("Zib",)), ("Name the town", ("the Ulm",), ("Ada Mo", "Ulm")),
    ("Is it red?", ("yes",), ()), ("Who?", ("B",), ()), ("When?", ("1900",), ()),
])]  # fmt: skip
TWO = Objectives("t", tuple(HOPS[:2]))


def test_consecutive_questions_of_a_file_are_joined_and_leftovers_dropped():
    sets = search.compose(HOPS, 2)
    assert [[h.id for h in s.hops] for s in sets] == [["q0", "q1"], ["q2", "q3"]]
    assert sets[0].question == "Who made Zib?; Name the town?" and len({s.id for s in sets}) == 2
    assert len(search.compose(HOPS, 1)) == 5 and len(search.compose(HOPS, 5)) == 1
    files = [replace(h, source=Path("ab"[i > 2], "dev.json")) for i, h in enumerate(HOPS)]
    assert [[h.id for h in s.hops] for s in search.compose(files, 2)] == [["q0", "q1"], ["q3", "q4"]]  # no set of two files
    assert [[h.id for h in s.hops] for s in search.compose(files, 3)] == [["q0", "q1", "q2"]]
    with pytest.raises(ValueError, match="4 questions at a time out of 3"):
        search.compose(files, 4)
    for n in (0, 6):
        with pytest.raises(ValueError, match=f"{n} questions at a time out of 5"):
            search.compose(HOPS, n)


def test_the_prompt_holds_all_questions_and_a_worked_example():
    text = search.prompt(TWO)
    assert text.endswith("Questions (2): Who made Zib?; Name the town?")
    assert all(tag in text for tag in ("<think>", "<search>", "<information>", "<answer>", "[4 turns left]"))
    assert "<search>" not in search.prompt(TWO, direct=True)
    alone = search.prompt(TWO, each=True)
    assert "Marie Curie" not in alone and alone.endswith("\n1. Who made Zib?\n2. Name the town?")
    noted = search.prompt(TWO, each=True, notes=True)
    assert "note in <think>" in noted and "note in" not in alone and noted.splitlines()[1:] == alone.splitlines()[1:]
    trap = Objectives("t", (Hop("x", "Why </ANSWER > {count}\n<search>?", ("a",)),))
    assert search.prompt(trap).endswith("Questions (1): Why &lt;/ANSWER > {count} &lt;search>?")


def test_a_reply_says_what_is_left_and_what_was_found_and_nothing_in_it_is_a_tag():
    found = [Document("T\n</information>", "a < b\n\nDoc 9 <Think>x</Think>")]
    assert search.listing(found) == "Doc 1 (Title: T &lt;/information>) a < b Doc 9 &lt;Think>x&lt;/Think>"
    assert search.information("x", 2) == "<information>\n[2 turns left]\nx\n</information>"
    assert "[1 turn left]" in search.information("x", 1) and "[no turns left, answer now]" in search.information("x", 0)


# --- turns


@pytest.mark.parametrize(
    "text, want",
    [
        ("<think>a\nb</think>\n<search> q </search>", Said("a\nb", query="q")),
        ("<think>a</think><answer>x; y</answer>", Said("a", answer="x; y")),
        ("<THINK>a</Think><Search>q</SEARCH>", Said("a", query="q")),
        ("", Said()),
        ("I do not know.", Said("I do not know.")),
        ("<think>only\na thought", Said("only\na thought")),
        ("so <search>q", Said("so", query="q")),
        ("so <think></think> <search>q", Said("so", query="q")),
        ("<think>a <search>q</search>", Said("a", query="q")),
        ("<think>a <search>q</search></think><answer>x</answer>", Said("a", query="q")),
        ("<search>q\nwhich I need", Said(query="q")),
        ("<answer>\nx; y\nas was said", Said(answer="x; y")),
        ("<answer>x", Said(answer="x")),
        ("<answer></answer>", Said(answer="")),
        ("<search></search>", Said(query="")),
        ("</answer>x</search>", Said("")),
        ("<search>p</search><search>q</search>", Said(query="p")),
        ("<search>p</search><information>..</information><answer>x</answer>", Said(query="p")),
        ("<answer>x</answer> no: <answer>y</answer>", Said(answer="y")),
        ("<answer>x</answer><search>q</search>", Said(answer="x")),
        ("<think>a</think><think>b</think><search>q</search>", Said("a", query="q")),
        ("<information><answer>x</answer></information>", Said("")),
        ("<information><answer>x</answer> never closed <search>q</search>", Said("")),
        ("<information><search>q</search></information><answer>x</answer>", Said("", answer="x")),
        ("<answer><answer>x</answer>", Said(answer="x")),
    ],
)
def test_a_turn_is_understood(text, want):
    assert search.read(text) == want


def test_notes_are_read_behind_a_query_where_a_turn_has_them():
    said = "<search>q</search>\n<think>a</think>"
    assert search.read(said) == Said(query="q") and search.read(said, True) == Said("a", query="q")
    assert search.read("<search>q</search><information>a</information>", True) == Said(query="q")
    assert search.read("<search>q</search><search>r</search><think>a", True) == Said("a", query="q")


def test_a_turn_is_shown_in_the_form_asked_for():
    for said in (Said("a", query="q"), Said("", answer="x; y"), Said("a")):
        assert search.read(str(said)) == said
    assert str(Said("a <search", query="q")) == "<think>a &lt;search</think>\n<search>q</search>"


def test_any_text_is_read_as_at_most_one_action():
    rng = random.Random(0)
    tags = ("think", "search", "answer", "information")
    parts = [f"<{slash}{tag}>" for tag in tags for slash in ("", "/")] + ["a", "\n", ";"]
    for _ in range(3000):
        said = search.read("".join(rng.choices(parts, k=rng.randrange(12))))
        assert said.query is None or said.answer is None
        shown = search.read(str(said))
        assert (shown.query is None, shown.answer is None) == (said.query is None, said.answer is None)


# --- scores


@pytest.mark.parametrize(
    "answer, em, f1, mem1",
    [
        ("Ada Mo; Ulm", 2, 2, 1 + 2 / 3),  # an article in the gold counts for mem1 alone
        ("the mo!;  A ULM.", 2, 2, 2 / 3 + 1 / 2),  # {the, mo} and {mo}; {a, ulm} and {the, ulm}
        ("Ada; Ulm", 1, 2 / 3 + 1, 2 / 3 + 2 / 3),  # {ada} and {ada, mo}: P 1, R 1/2
        ("Ada Ada Mo; no", 0, 4 / 5, 1),  # as multisets 2 of 3 and 2 of 2, as sets the same
        ("Ada-Mo; Ulm", 1, 1, 1 + 2 / 3),  # a hyphen joins words for SQuAD and parts them for mem1
        ("Ulm; Ada Mo", 0, 0, 0),  # the order counts
        ("Ada Mo; ", 1, 1, 1),
        ("; ", 0, 0, 0),
        ("Ada Mo", 0, 0, 0),  # one answer to two questions
        ("Ada Mo; Ulm;", 0, 0, 0),  # three
        ("", 0, 0, 0),
        (None, 0, 0, 0),
    ],
)
def test_scores_are_sums_over_objectives(answer, em, f1, mem1):
    found = search.score(TWO, answer)
    assert (found["em"], found["f1"], found["mem1_f1"]) == pytest.approx((em, f1, mem1))
    assert found["counted"] == (answer is not None and answer.count(";") == 1)


def test_nothing_said_is_never_right():
    alone = Objectives("t", (Hop("x", "Which letter?", ("A",)),))
    assert search.score(alone, "")["em"] == search.score(alone, None)["em"] == search.score(alone, " ")["f1"] == 0
    assert search.score(alone, "a")["em"] == 1
    assert search.squad("The  end, an–d a.m. of the-day") == "end –d am of theday"


def test_recall_is_the_share_of_evidence_found():
    assert search.recall(TWO, ["Zib", "Zib", "Other"]) == 1 / 3
    assert search.recall(TWO, []) == 0 and search.recall(Objectives("t", (HOPS[3],)), []) is None


# --- costs


def test_costs_add_up_by_hand():
    steps = [
        Step("turn", "", prompt=100, history=0, generated=10, query="q"),
        Step("write", "", prompt=300, history=280, generated=20),
        Step("turn", "", prompt=150, history=50, generated=30, query=""),
        Step("answer", "", prompt=160, history=60, generated=5),
    ]
    assert search.costs(steps) == {
        "peak": 320, "mem1_peak": 80, "dependency": 1000 + 6000 + 4500 + 800, "read": 710, "generated": 65, "turns": 3,
        "searches": 2, "writes": 1,
    }  # fmt: skip
    assert set(search.costs([]).values()) == {0}
    late = [Step("turn", "", prompt=9, history=1, generated=1)] * 10 + [Step("turn", "", prompt=999, history=900, generated=9)]
    assert search.costs(late)["mem1_peak"] == 2 and search.costs(late)["peak"] == 1008


def test_a_summary_takes_mem1_s_peak_from_trajectories_that_got_something_right():
    rows = [{"em": 1.0, "mem1_peak": 10}, {"em": 0.0, "mem1_peak": 90}, {"em": 2.0, "mem1_peak": 30}]
    assert search.summary(rows) == {"em": 1.0, "mem1_peak": 20}
    assert search.summary(rows[1:2]) == {"em": 0.0, "mem1_peak": None}
    with pytest.raises(ValueError, match="no trajectory"):
        search.summary([])


# --- the loop


CONFIG = replace(
    AGENT,
    adapter=replace(AGENT.adapter, rank=4, last_layers=2),
    learn=replace(AGENT.learn, lr=3e-3, epochs=2, batch=4, rehearse=8),
    write=replace(AGENT.write, window=60, max_new=12),
)
INDEX = Index(DOCUMENTS)
PAIRS = "Q: who made Zib?\nA: Ada Mo"
LONG = ["<think>one</think><search>toy Zib</search> and so on", "<think>two</think><search>maker Ulm</search>"]


def agent_of(slots=4):
    return Agent.build(model(), Letters(), CONFIG, slots)


def worked_on(agent, sets, index, state="tmem", keys=None, **limits):
    """The trajectories of a method, under other limits than the usual ones."""
    (name,) = chosen("search", [state])
    return loop.run(agent, sets, index, METHODS[name].search, keys=keys, config=SearchConfig(**limits))


class Script:
    """In decode's place: what each trajectory says, turn by turn; every prompt is kept as text, by its noise key.

    `written` is what every write says; `limits` are the tokens that each generation was allowed.
    """

    def __init__(self, written=PAIRS, **turns):
        self.written, self.turns, self.prompts, self.batches, self.slots, self.limits = written, turns, {}, [], {}, {}

    def __call__(
        self, network, prompts, *, bank=None, slots=None, end, max_new, begins=None, temperature=0.0, top_p=1.0, keys,
        ranks=None, watch=None,
    ):  # fmt: skip
        keys = keys or [f"k0/asked{i}" for i in range(len(prompts))]
        self.batches.append(list(keys))
        out = []
        for i, (prompt, key) in enumerate(zip(prompts, keys)):
            self.prompts[key] = Letters().decode(prompt)
            self.slots[key] = None if slots is None else (slots[i], bank is not None and bank.is_zero(slots[i]))
            who, kind = key.split("/", 1)
            self.limits[key] = max_new
            text = self.written if "write" in kind else self.turns[who].pop(0)
            out.append(Generation(Letters()(text)["input_ids"] + [min(end)], [0.0] * (len(text) + 1), True))
        return out


def scripted(monkeypatch, state, turns=4, tasks=1, agent=None, script=None, written=PAIRS, **options):
    said = script or {f"k{i}": [*LONG, "<think>done</think><answer>Ada Mo; Ulm</answer>"] for i in range(tasks)}
    stub = Script(written, **said)
    monkeypatch.setattr(agents, "decode", stub)
    rows = worked_on(agent or agent_of(), [TWO] * tasks, INDEX, state=state, turns=turns, keys=[*said], **options)
    return rows, stub


@pytest.mark.parametrize(
    "state, first, last",
    [("full", True, True), ("mem1", False, True), ("tmem", False, False), ("pairs", False, False), ("notes", False, False)],
)
def test_what_was_found_stays_or_leaves_as_the_state_says(monkeypatch, state, first, last):
    (row,), stub = scripted(monkeypatch, state)
    second, third = stub.prompts["k0/turn1"], stub.prompts["k0/turn2"]
    zib, ada = "Doc 1 (Title: Zib)", "Doc 1 (Title: Ada Mo)"
    assert (zib in second) == last and (zib in third) == first and (ada in third) == last
    assert ("<think>one</think>" in third) == first and "<think>two</think>\n<search>maker Ulm</search>" in third
    assert all(search.prompt(TWO) in p for p in (second, third)) and "and so on" not in second
    assert "[3 turns left]" in second and "[2 turns left]" in third
    assert "&lt;answer>Rome&lt;/answer>" in third or not last
    assert row.answer == "Ada Mo; Ulm" and row.scores()["em"] == 2 and row.scores()["recall"] == 2 / 3
    assert row.scores()["searches"] == 2 and row.scores()["turns"] == 3 and row.seconds > 0
    assert "found: Zib" in row.transcript() and "Right: Ada Mo | Mo; the Ulm" in row.transcript()


def test_what_left_the_context_was_written_and_learned_into_the_own_slot(monkeypatch):
    agent, jobs, real = agent_of(), [], agents.learn

    def learn(network, bank, batch, *rest):
        jobs.append([(slot, [p.question for p in pairs]) for slot, pairs in batch])
        return real(network, bank, batch, *rest)

    monkeypatch.setattr(agents, "learn", learn)
    rows, stub = scripted(monkeypatch, "tmem", tasks=2, agent=agent)
    writes = [key for key in stub.prompts if key.startswith("k0/turn0/write")]
    assert writes == ["k0/turn0/write0"] and "Zib is a toy that Ada Mo made." in stub.prompts[writes[0]]
    assert "<information>" not in stub.prompts[writes[0]]
    assert len([key for key in stub.prompts if key.startswith("k1/turn1/write")]) > 1  # in pieces of the write window
    assert stub.slots["k0/turn0"] == (0, True) and stub.slots["k0/turn1"] == (0, False) and stub.slots["k1/turn1"] == (1, False)
    assert jobs and all(asked == ["who made Zib?"] for job in jobs for _, asked in job)  # rehearsed once, not twice
    for row in rows:
        assert row.log and all(entry.learned.kept for entry in row.log)
        assert [s.pairs for s in row.steps if s.kind == "write"] == [(("who made Zib?", "Ada Mo"),)] * len(row.log)
        assert row.scores()["writes"] == len(row.log) and "wrote: who made Zib? Ada Mo" in row.transcript()
    assert not any(agent.bank.used)
    (row, _), (entry, *_) = rows, rows[0].log
    first = next(s for s in row.steps if s.kind == "write")
    assert (entry.read, entry.tokens, entry.finished) == (len(stub.prompts[writes[0]]), len(PAIRS) + 1, True)
    assert (entry.read, entry.tokens) == (first.prompt, first.generated)


SEARCHING = [name for name in SEARCHED if METHODS[name].search.searches]


@pytest.mark.parametrize("state", SEARCHING)
def test_tokens_are_counted_as_they_were_read(monkeypatch, state):
    (row,), stub = scripted(monkeypatch, state)
    keys = [key for batch in stub.batches for key in batch]
    read = [len(stub.prompts[key]) for key in keys]
    assert [s.prompt for s in row.steps] == read
    assert row.steps[0].generated == len(LONG[0]) + 1
    costs = row.scores()
    assert costs["peak"] == max(p + s.generated for p, s in zip(read, row.steps)) and costs["read"] == sum(read)
    base = read[0] - len(search.OPEN_TURN)
    turns = [(p, s) for p, s in zip(read, row.steps) if s.kind == "turn"]
    assert costs["mem1_peak"] == max(p - base + s.generated for p, s in turns)
    assert [s.history for _, s in turns] == [p - base for p, _ in turns]


QUERIES = ["toy Zib</search> and so on", "maker Ulm</search>"]


@pytest.mark.parametrize(
    "state, zib, ada, turns",
    [("full", True, True, 2), ("mem1", False, True, 2), ("tmem", False, False, 2), ("none", False, False, 0)],
)
def test_each_question_is_asked_by_itself_with_what_is_remembered(monkeypatch, state, zib, ada, turns):
    agent, note = agent_of(), "<think>It is Ada</think>" if state == "mem1" else ""
    script = {"k0": [*(query + note for query in QUERIES[:turns]), "Ada Mo", "of; Ulm\nor so"]}
    (row,), stub = scripted(monkeypatch, state, turns=2, agent=agent, script=script, each="instruction")
    first, second = stub.prompts["k0/asked0"], stub.prompts["k0/asked1"]
    assert ("Doc 1 (Title: Zib)" in first) == zib and ("Doc 1 (Title: Ada Mo)" in first) == ada
    assert ("It is Ada" in first) == (state == "mem1") and stub.prompts.get("k0/turn1", "").count("It is Ada") == bool(note)
    assert agent.asked("Who made Zib?") in first and "Name the town" not in first and agent.asked("Name the town?") in second
    assert row.answer == "Ada Mo; of, Ulm" and row.scores()["em"] == 1 and row.scores()["counted"] == 1
    assert [s.kind for s in row.steps if s.kind != "write"] == ["turn"] * turns + ["answer"] * 2
    learned = stub.slots["k0/asked0"]
    assert learned[1] is False if state == "tmem" else learned is None
    assert all(stub.slots[f"k0/turn{i}"] is None for i in range(turns)), "no turn needs what was learned"
    assert not any(agent.bank.used)
    told = searching.answer_of(state, 0, row), searching.reading_of(state, 0, row)
    assert told[0]["prompt_tokens"] == len(second) and told[1]["peak_tokens"] == row.scores()["peak"]
    assert told[0]["prompt_tokens"] + told[1]["read_tokens"] == row.scores()["read"]


def test_asked_one_by_one_no_turn_is_an_answer(monkeypatch):
    script = {"k0": ["toy Zib</search><answer>Rome; Rome</answer>", "</search>", "Ada Mo", "Ulm"]}
    (row,), stub = scripted(monkeypatch, "tmem", turns=2, script=script, each="few-shot")
    assert row.answer == "Ada Mo; Ulm" and row.scores()["searches"] == 2
    assert "one query.\n1. Who made Zib?\n2. Name the town?\n<search>toy Zib</search>\n" in stub.prompts["k0/turn1"]
    assert stub.prompts["k0/turn1"].endswith("<search>")
    (fixed,), stub = scripted(monkeypatch, "constant", each="few-shot")
    assert fixed.answer == "no; no" and not stub.prompts


def test_text_that_is_asked_about_leaves_room_for_the_question(monkeypatch):
    script = {"k0": [QUERIES[0]] * 4 + ["Ada Mo", "Ulm"]}
    (row,), stub = scripted(monkeypatch, "full", script=script, context=400, each="instruction")
    asked = [stub.prompts[f"k0/asked{i}"] for i in range(2)]
    assert 300 < max(map(len, asked)) <= 400 and all("toy Zib</search>" in prompt for prompt in asked)


def test_memory_and_not_history_bounds_the_context(monkeypatch):
    peaks = {}
    for state in ("full", "mem1", "tmem"):
        script = {"k0": [LONG[0]] * 6 + ["<answer>Ada Mo; Ulm</answer>"]}
        (row,), _ = scripted(monkeypatch, state, turns=8, script=script)
        peaks[state] = row.scores()["peak"], row.scores()["mem1_peak"]
    assert peaks["tmem"] < peaks["mem1"] < peaks["full"]


def test_a_full_context_loses_its_oldest_turns_and_says_so(monkeypatch):
    base = len(Letters()(search.prompt(TWO))["input_ids"])
    script = {"k0": [f"<think>no {i}</think><search>toy</search>" for i in range(5)] + ["<answer>x; y</answer>"]}
    (row,), stub = scripted(monkeypatch, "full", turns=8, script=script, context=base + 420)
    last = stub.prompts["k0/turn5"]
    assert "no 4" in last and "no 0" not in last and "(Earlier turns are left out.)" in last
    assert len(last) <= base + 420 and row.steps[-1].left_out == sum(f"no {i}" not in last for i in range(5)) > 0
    assert row.scores()["cut"] == sum(s.left_out > 0 for s in row.steps) < 6
    assert row.steps[-1].prompt == len(last)
    script = {"k0": [LONG[0], "<answer>x; y</answer>"]}
    (row,), stub = scripted(monkeypatch, "full", script=script, context=1)
    assert "Doc 1 (Title: Zib)" in stub.prompts["k0/turn1"]  # the last turn always stays


def test_an_observation_is_cut_at_its_end(monkeypatch):
    _, stub = scripted(monkeypatch, "mem1", observation=30)
    assert "Doc 1 (Title: Zib) Zib is a to\n</information>" in stub.prompts["k0/turn1"]


def test_finished_trajectories_leave_and_the_others_are_asked_once(monkeypatch):
    script = {
        "quick": ["<answer>Mo; Ulm</answer>"],
        "lost": ["hm", "<search>unseen</search>", " Ada Mo; Rome</answer>"],
        "mute": ["", "", ""],
    }
    agent = agent_of()
    stub = Script(**script)
    monkeypatch.setattr(agents, "decode", stub)
    quick, lost, mute = worked_on(agent, [TWO] * 3, INDEX, state="tmem", turns=2, keys=[*script])
    assert stub.batches == [
        ["quick/turn0", "lost/turn0", "mute/turn0"], ["lost/turn1", "mute/turn1"], ["lost/answer", "mute/answer"],
    ]  # fmt: skip
    assert "end your turn with <search> or <answer>" in stub.prompts["lost/turn1"]
    assert "[no turns left, answer now]\nNothing was found." in stub.prompts["lost/answer"]
    assert stub.prompts["lost/answer"].endswith("<answer>") and stub.prompts["lost/turn1"].endswith("<think>")
    assert (quick.answer, lost.answer, mute.answer) == ("Mo; Ulm", "Ada Mo; Rome", "")
    assert [r.scores()["em"] for r in (quick, lost, mute)] == [2, 1, 0]
    assert [s.kind for s in lost.steps] == ["turn", "turn", "answer"] and not lost.log


def test_none_answers_at_once_without_an_index(monkeypatch):
    stub = Script(**{"k": ["Ada Mo; Ulm</answer>"]})
    monkeypatch.setattr(agents, "decode", stub)
    (row,) = worked_on(agent_of(), [TWO], None, state="none", keys=["k"])
    assert row.scores()["em"] == 2 and [*stub.prompts] == ["k/answer"] and row.scores()["searches"] == 0
    assert row.steps[0].history == len("<answer>")


@pytest.mark.parametrize(
    "options, error, sentence",
    [
        ({"state": "ful"}, ValueError, "methods of search: expected some of none, constant, full, mem1, .*, got ful"),
        ({"turns": 0}, ValueError, "turns is 0"),
        ({"keys": ["a", "b"]}, ValueError, "2 keys for 1 sets"),
        ({"index": None}, ValueError, "got no index"),
        ({}, RuntimeError, "0 of . slots are free"),
    ],
)
def test_a_run_that_cannot_be_is_refused(options, error, sentence):
    agent = agent_of(slots=1)
    agent.bank.alloc()
    options = {"index": INDEX} | options
    with pytest.raises(error, match=sentence):
        worked_on(agent, [TWO], **options)
    assert worked_on(agent, [], INDEX, state="mem1") == []


@pytest.mark.parametrize("state, temperature", [("tmem", 0.0), *((name, 1.0) for name in SEARCHING)])
def test_a_trajectory_is_the_same_alone_and_among_others(monkeypatch, state, temperature):
    """A random model's turns, read as searches for a document that they choose, with pairs that depend on what was said."""

    def read(text, _):
        if text.startswith("<answer>"):
            return Said(answer=text)
        return Said(text, query=["toy", "kite", "maker Ulm", "unseen"][sum(map(ord, text)) % 4])

    monkeypatch.setattr(search, "read", read)
    monkeypatch.setattr(search, "prompt", lambda task, **_: task.question)
    monkeypatch.setattr(agents, "parse", lambda text, **_: Written([Pair(f"what is {text[:9]}?", text[9:14] or "a")]))
    tasks = [Objectives(f"t{i}", tuple(HOPS[i : i + 1 + i % 2])) for i in range(4)]
    options = dict(state=state, turns=3, temperature=temperature, max_new=10, observation=70, context=1024)
    together = worked_on(agent_of(4), tasks, INDEX, **options)
    pairs = worked_on(agent_of(2), tasks, INDEX, **options)
    for i, row in enumerate(together):
        (alone,) = worked_on(agent_of(1), tasks[i : i + 1], INDEX, **options)
        assert row.steps == alone.steps == pairs[i].steps and row.answer == alone.answer == pairs[i].answer
        assert [e.learned for e in row.log] == [e.learned for e in alone.log]
    assert any(r.log for r in together) == state.startswith("tmem")
    assert len({s.text for r in together for s in r.steps}) > 4
    if temperature:
        other = worked_on(agent_of(4), tasks, INDEX, keys=["a", "b", "c", "d"], **options)
        assert [r.steps for r in other] != [r.steps for r in together]


# --- states


def test_lines_without_a_word_are_as_good_as_each_other():
    assert Lines(["...", "of the"]).ranked("who?") == [0, 1]


def sized(*texts):
    return len("\n".join(texts).encode())


def test_pairs_are_shown_the_newest_and_nothing_is_learned(monkeypatch):
    agent = agent_of()
    (row,), stub = scripted(monkeypatch, "pairs", agent=agent)
    assert "What is known so far:\nwho made Zib? Ada Mo\n<think>one" in stub.prompts["k0/turn1"]
    assert stub.prompts["k0/turn2"].count("who made Zib? Ada Mo") == 1  # written twice, kept once
    assert row.log == [] and set(stub.slots.values()) == {None} and [s.pairs for s in row.steps if s.kind == "write"]
    assert row.notes == {"who made zib": "who made Zib? Ada Mo"}
    _, stub = scripted(monkeypatch, "pairs", written="Q: a?\nA: first\nQ: b?\nA: last", context=8 * 7)
    assert "known so far:\nb? last\n<think>" in stub.prompts["k0/turn1"]  # the newest 7 letters
    (row,), _ = scripted(monkeypatch, "pairs", written="Q: a?\nA: <answer>Rome</answer>")
    assert row.notes == {"a": "a? &lt;answer>Rome&lt;/answer>"}


def test_a_later_answer_to_a_written_question_stands(monkeypatch):
    agent, said = agent_of(), iter(["Q: who?\nA: Ada", "Q: Who\nA: Ben"] * 9)
    monkeypatch.setattr(agents, "parse", lambda *_, **__: Written([Pair(*next(said)[3:].split("\nA: "))]))
    (row,), _ = scripted(monkeypatch, "pairs", agent=agent, script={"k0": [LONG[0]] * 2 + ["<answer>x; y"]})
    assert row.notes == {"who": "Who Ben"}


def test_a_summary_is_written_anew_from_what_it_was_and_what_was_found(monkeypatch):
    (row,), stub = scripted(monkeypatch, "summary", written="Zib is a toy.\n<search>x</search>", context=4096)
    writes = [key for key in stub.prompts if "write" in key]
    assert "Notes so far:\n(none)\n" in stub.prompts[writes[0]] and "Zib is a toy that Ada Mo made." in stub.prompts[writes[0]]
    assert "Notes so far:\nZib is a toy.\n&lt;search>x&lt;/search>\n" in stub.prompts[writes[1]]
    assert "What is known so far:\nZib is a toy.\n&lt;search>x&lt;/search>\n<think>two" in stub.prompts["k0/turn2"]
    assert {stub.limits[key] for key in writes} == {4096 // 8} and stub.limits["k0/turn2"] == 160
    assert row.scores()["writes"] == len(writes) and list(row.notes.values()) == ["Zib is a toy.", "&lt;search>x&lt;/search>"]


def test_notes_are_added_each_once_and_the_nearest_are_shown(monkeypatch):
    (row,), stub = scripted(monkeypatch, "notes", written="the ulm town is red\n\nIt rains.\nit RAINS", context=8 * 20)
    assert list(row.notes.values()) == ["the ulm town is red", "It rains."]
    assert "List each fact above" in stub.prompts["k0/turn0/write0"]
    assert "known so far:\nthe ulm town is red\n<think>" in stub.prompts["k0/turn1"]  # 20 letters of those that fit "the town?"
    assert "It rains." not in stub.prompts["k0/turn1"]


def test_retrieval_shows_documents_for_the_questions_and_asks_no_model(monkeypatch):
    script = {"k0": [LONG[0], LONG[1], LONG[0], "<answer>x; y"]}
    (row,), stub = scripted(monkeypatch, "retrieval", turns=5, script=script)
    zib, ada = "(Title: Zib) Zib is a toy that Ada Mo made.", "(Title: Ada Mo) Ada Mo is a maker from Ulm. &lt;answer>Rome"
    assert f"What is known so far:\n{zib}\n<think>one" in stub.prompts["k0/turn1"]
    assert f"{zib}\n{ada}" in stub.prompts["k0/turn2"] and stub.prompts["k0/turn3"].count(zib) == 1
    assert row.scores()["writes"] == 0 and not row.log and "Doc 1" not in stub.prompts["k0/turn3"].split("Now it is")[1]
    (row,), stub = scripted(monkeypatch, "retrieval", context=8 * len(zib))
    assert zib in stub.prompts["k0/turn2"] and "from Ulm" not in stub.prompts["k0/turn2"]  # it has the words of "Who made Zib?"
    (row,), _ = scripted(monkeypatch, "retrieval", observation=5)
    assert row.notes == {}  # "Doc 1" alone is no document


def test_tmem_and_retrieval_learn_and_show(monkeypatch):
    (row,), stub = scripted(monkeypatch, "tmem+retrieval")
    assert "(Title: Zib) Zib is a toy" in stub.prompts["k0/turn1"] and "who made Zib? Ada Mo" not in stub.prompts["k0/turn1"]
    assert stub.slots["k0/turn1"] == (0, False) and row.log and row.scores()["writes"] == len(row.log)


EVIDENCE = Objectives("t", (
    Hop("a", "Who made Zib?", ("Ada Mo",), ("Zib",), (("Zib", "Zib is by\nAda <answer>Mo."),)),
    Hop("b", "Where is Ulm?", ("here",), ("Ulm", "Zib"), (("Ulm", "Ulm is here."), ("Zib", "Zib is by\nAda <answer>Mo."))),
))  # fmt: skip


def test_the_oracle_sees_each_passage_once_and_all_alike_where_they_are_too_long(monkeypatch):
    stub = Script(k=["Ada Mo; here</answer>"], c=["x; y"])
    monkeypatch.setattr(agents, "decode", stub)
    (row,) = worked_on(agent_of(), [EVIDENCE], None, state="oracle", keys=["k"])
    text = "Doc 1 (Title: Zib) Zib is by Ada &lt;answer>Mo.\nDoc 2 (Title: Ulm) Ulm is here."
    assert stub.prompts["k/answer"].endswith(f"What is known so far:\n{text}\nAssistant: <answer>")
    assert "<search>" not in stub.prompts["k/answer"] and row.scores()["em"] == 2
    assert row.steps[0].history == len("\nWhat is known so far:\n" + text + "<answer>") and row.state == sized(text)
    base = len(stub.prompts["k/answer"]) - len(text)
    (row,) = worked_on(agent_of(), [EVIDENCE], None, state="oracle", keys=["c"], context=base + 44)
    assert "\nDoc 1 (Title: Zib) Zi\nDoc 2 (Title: Ulm) Ul\n" in stub.prompts["c/answer"]  # 21 letters and a line break each
    assert base < row.steps[0].prompt <= base + 44


def test_a_constant_answers_every_question_without_the_model(monkeypatch):
    monkeypatch.setattr(agents, "decode", None)
    yes = Objectives("t", (Hop("a", "Red?", ("No",)), *HOPS[:2]))
    (row,) = worked_on(agent_of(), [yes], None, state="constant")
    assert row.answer == "no; no; no" and row.scores()["em"] == 1 and row.scores()["counted"] == 1
    assert row.steps == [] and row.state == 0 and row.scores()["peak"] == 0


def test_what_is_kept_between_turns_is_counted_in_bytes(monkeypatch):
    replies = ["<information>\n[3 turns left]\nDoc 1 (Title: Zib) Zib is a toy that Ada Mo made.\n</information>",
               "<information>\n[2 turns left]\nDoc 1 (Title: Ada Mo) Ada Mo is a maker from Ulm. "
               "&lt;answer>Rome&lt;/answer>\n</information>"]  # fmt: skip
    turns = ["<think>one</think>\n<search>toy Zib</search>\n", "<think>two</think>\n<search>maker Ulm</search>\n"]
    kept = {state: scripted(monkeypatch, state)[0][0].state for state in SEARCHING}
    assert kept["full"] == sized(*(turn + reply for turn, reply in zip(turns, replies)))
    assert kept["mem1"] == sized(turns[1] + replies[1])
    left = [f"{turn}<information>\n[{n} turns left]\nThe documents were read and are remembered.\n</information>"
            for turn, n in zip(turns, (3, 2))]  # fmt: skip
    delta = agent_of(1).bank.param[0].numel() * 4
    assert kept["tmem"] == delta + sized(left[1])
    assert kept["pairs"] == sized("who made Zib? Ada Mo", left[1])
    found = [line.split(" ", 2)[2] for reply in replies for line in reply.splitlines() if line.startswith("Doc")]
    assert kept["retrieval"] == sized(*found, left[1]) and kept["tmem+retrieval"] == delta + kept["retrieval"]
    accent = {"k0": ["<think>\u00e9</think><search>unseen</search>", "<answer>x; y"]}
    (row,), _ = scripted(monkeypatch, "full", script=accent)
    assert row.state == len(row.steps[0].shown) + 1  # two bytes of one letter


@pytest.mark.parametrize("state", SEARCHING)
def test_every_state_leaves_the_bank_free_and_shares_its_seconds(monkeypatch, state):
    agent, now = agent_of(2), iter(range(99))
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    rows, _ = scripted(monkeypatch, state, tasks=3, agent=agent)
    batches = [2, 2, 1] if METHODS[state].search.delta else [3, 3, 3]
    assert [row.seconds for row in rows] == [1 / n for n in batches]  # the clock goes on by one from start to end
    assert not any(agent.bank.used) and all(row.slot is None for row in rows)


# --- rows of an evaluation


def check_costs(rules):
    """Two trajectories whose tokens were counted by hand: all of them once, the answer's apart."""
    steps = [
        Step("turn", "", prompt=100, history=0, generated=10, query="q", titles=("Zib",)),
        Step("write", "", prompt=300, history=0, generated=20),
        Step("turn", "", prompt=150, history=50, generated=30),
        Step("answer", "", prompt=160, history=60, generated=5),
    ]
    lived = [
        Trajectory(TWO, "a", steps, answer="Ada Mo; Ulm", state=700, seconds=2.0),
        Trajectory(Objectives("u", tuple(HOPS[2:4])), "b", steps[:1], answer="no", state=0, seconds=1.0),
    ]
    answers, readings = ([made("full", 3, t) for t in lived] for made in (rules.answer_of, rules.reading_of))
    assert [(a["prompt_tokens"], a["generated_tokens"]) for a in answers] == [(160, 5), (100, 10)]
    assert [(r["read_tokens"], r["generated_tokens"], r["peak_tokens"]) for r in readings] == [(550, 60, 320), (0, 0, 110)]
    found = summarise(answers, readings)["methods"]["full"]
    assert (found["read_tokens"], found["generated_tokens"]) == (100 + 300 + 150 + 160 + 100, 10 + 20 + 30 + 5 + 10)
    assert (found["prompt_tokens"], found["peak_tokens"], found["state_bytes"], found["seconds"]) == (130, 320, 350, 3.0)
    assert (found["em"], found["n"]) == (1, 2)
    for row, t in zip(answers, lived):
        assert row["objectives"] == 2 and row["sessions"] is None and row["seed"] == 3 and row["id"] == t.task.id


def check_score(rules):
    assert [rules.score(TWO, said)["em"] for said in ("Ada Mo; Ulm", "Ada Mo", "Ada Mo; Ulm; x", None)] == [2, 0, 0, 0]


RULES = SimpleNamespace(answer_of=searching.answer_of, reading_of=searching.reading_of, score=search.score)
WRONG = {"search_tokens_twice": check_costs, "search_any_count": check_score}


@pytest.mark.parametrize("check", WRONG.values())
def test_rows_and_scores_worked_by_hand(check):
    check(RULES)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_implementations_are_caught(name):
    module = importlib.import_module(f"wrong.{name}")
    faults = {rule: getattr(module, rule) for rule in vars(RULES) if hasattr(module, rule)}
    assert faults, f"tests/wrong/{name}.py defines none of the rules"
    with pytest.raises(AssertionError):
        WRONG[name](SimpleNamespace(**{**vars(RULES), **faults}))


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """`tmem eval --task search` on a tiny model and twelve questions, called with further words."""
    said = {"answer": "it", "supporting_facts": [["Rome", 0]], "context": [["Rome", ["Rome lies on seven hills."]]]}
    data = write(tmp_path, [{"_id": f"h{i:02}", "question": f"who is {i}", **said} for i in range(12)])
    (tmp_path / "tiny.toml").write_text(PRESET.replace('reward = "shout"', ""))
    monkeypatch.setattr(loading, "load_model", lambda name=None, **_: (model(), Letters()))
    monkeypatch.setattr(searching, "PROMPT", 64)

    def call(*words, out="out"):
        fixed = ["--data", str(data), "--preset", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / out)]
        words = ["eval", "--task", "search", "--turns", "1", "--context", "64", "--answer-tokens", "8", *fixed, *words]
        return CliRunner().invoke(cli.main, words, env={"COLUMNS": "160"})

    return call


def test_every_state_is_evaluated(evaluated, tmp_path):
    found = evaluated("--limit", "2", "--methods", "all")
    assert found.exit_code == 0, found.output
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert list(results["methods"]) == list(SEARCHED) and results["config"]["answer_tokens"] == 8
    answers = read_jsonl(tmp_path / "out/answers.jsonl")
    assert len(answers) == 2 * len(SEARCHED) and {r["objectives"] for r in answers} == {2}
    for name, m in results["methods"].items():
        turns = 2 if name in SEARCHING else 0 if name == "constant" else 1  # none of a random model's turns is an answer
        assert m["n"] == 2 and name in found.output and m["search"]["turns"] == turns
        counted = {k: m[f"{k}_tokens"] for k in ("read", "generated", "learned")}
        assert m["flops"] == Sizes(**results["sizes"]).flops(counted) and (m["flops"] > 0) == (name != "constant")
    page = CliRunner().invoke(cli.main, ["report", str(tmp_path / "out")])
    assert page.exit_code == 0 and "Sessions" not in (tmp_path / "out/report.html").read_text(), page.output


def test_seeds_draw_other_sets_and_are_resumed_apart(evaluated, tmp_path):
    words = ["--limit", "3", "--seeds", "2", "--methods", "none,mem1"]
    found = evaluated(*words)
    assert found.exit_code == 0 and "seeds 0 to 1" in found.output, found.output
    file = tmp_path / "out/answers.jsonl"
    whole = read_jsonl(file)
    drawn = {seed: [r["id"] for r in whole if (r["seed"], r["method"]) == (seed, "none")] for seed in (0, 1)}
    assert drawn[0] != drawn[1] and all(len(set(ids)) == 3 for ids in drawn.values()) and len(whole) == 12
    assert set(drawn[0]) & set(drawn[1])  # of six sets; a set of both seeds is asked under both
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2] + lines[3:9]))
    assert evaluated(*words, "--resume").exit_code == 0

    def plain(rows):
        return sorted(json.dumps({k: v for k, v in r.items() if k != "seconds"}) for r in rows)

    assert plain(read_jsonl(file)) == plain(whole) and len(read_jsonl(tmp_path / "out/readings.jsonl")) == 12
    more = evaluated("--limit", "4", "--methods", "none", out="more")
    assert more.exit_code == 0 and {*drawn[0]} < {r["id"] for r in read_jsonl(tmp_path / "more/answers.jsonl")}


def test_a_seed_draws_the_subspace_of_a_search(evaluated, tmp_path, monkeypatch):
    """As it does of every other task: the second seed alone is what it was after the first."""
    drawn = tmp_path / "drawn.toml"
    drawn.write_text((tmp_path / "tiny.toml").read_text().replace("rank = 4", 'rank = 4\ninit = "random"'))
    seen, work = [], searching.run

    def run(agent, *words, **options):
        seen.append((agent.bank.seed, agent.bank.subspace))
        return work(agent, *words, **options)

    monkeypatch.setattr(searching, "run", run)
    words = ["--limit", "3", "--slots", "2", "--methods", "tmem", "--preset", str(drawn)]
    assert evaluated(*words, "--seed", "3", "--seeds", "2").exit_code == 0
    assert [seed for seed, _ in seen] == [3, 3, 4, 4]
    (third,), (fourth,) = ({subspace for seed, subspace in seen if seed == s} for s in (3, 4))
    assert third != fourth
    seen.clear()
    assert evaluated(*words, "--seed", "4", out="alone").exit_code == 0
    assert set(seen) == {(4, fourth)}


@pytest.mark.parametrize(("methods", "seed", "goes_on"), [("tmem", 3, False), ("tmem", 0, True), ("mem1", 3, True)])
def test_a_search_of_before_is_not_gone_on_with_in_another_subspace(evaluated, tmp_path, methods, seed, goes_on):
    """Its fast weights were in the subspace of seed 0, whatever its seed. "memory" is what its settings called the adapter."""
    words = ["--limit", "3", "--seed", str(seed), "--methods", f"none,{methods}"]
    assert evaluated(*words).exit_code == 0
    file = tmp_path / "out/results.json"
    results = json.loads(file.read_text())
    settings = results["config"]["settings"]
    settings["memory"] = settings.pop("adapter")
    del settings["learn"]["renderings"], settings["answer"]["asked"]  # it taught bare, as the preset of this test says
    file.write_text(json.dumps(results))
    answers = tmp_path / "out/answers.jsonl"
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[:-1]))
    before = file.read_bytes()
    again = evaluated(*words, "--resume")
    assert (again.exit_code == 0) == goes_on, again.output
    if not goes_on:
        assert again.exit_code == 2 and "did not draw the subspace" in " ".join(again.output.split()), again.output
        assert file.read_bytes() == before


def test_sets_end_with_their_file_and_tell_of_evidence_only_where_it_is_named(evaluated, tmp_path):
    (tmp_path / "other").mkdir()
    bare = [HOTPOT | {"_id": f"b{i}", "supporting_facts": []} for i in range(4)]
    other = write(tmp_path / "other", bare, "data.json")  # of the same name as the first
    found = evaluated("--data", str(other), "--objectives", "4", "--methods", "none,mem1")
    assert found.exit_code == 0 and ", 4 sets, " in found.output and "of the evidence found" in found.output, found.output
    assert "make no set" not in found.output
    rows = read_jsonl(tmp_path / "out/answers.jsonl")
    assert {r["kind"] for r in rows} == {"data"} and [r["recall"] is None for r in rows] == [False, False, False, True] * 2
    found = evaluated("--data", str(other), "--objectives", "5", "--methods", "none", out="five")
    assert found.exit_code == 0 and ", 2 sets, " in found.output, found.output
    assert "6 questions at the end of a file make no set of 5 and were left out" in found.output
    (tmp_path / "data.json").write_text(json.dumps(bare))
    found = evaluated("--methods", "none", out="bare")
    assert found.exit_code == 0 and "of the evidence" not in found.output, found.output
    page = CliRunner().invoke(cli.main, ["report", str(tmp_path / "bare")])
    assert page.exit_code == 0, page.output


def test_a_list_of_wrong_golds_makes_another_protocol(evaluated, tmp_path):
    (tmp_path / "wrong.txt").write_text("h03\nh10\n")
    words = ["--leave-out", str(tmp_path / "wrong.txt"), "--methods", "none"]
    found = evaluated(*words)
    assert found.exit_code == 0 and "2 questions left out by wrong.txt" in found.output, found.output
    asked = {r["question"] for r in read_jsonl(tmp_path / "out/answers.jsonl")}
    assert len(asked) == 5 and not any("who is 3?" in q or "who is 10?" in q for q in asked)
    assert evaluated("--methods", "none", out="whole").exit_code == 0
    whole, left = (runs.read(tmp_path / out) for out in ("whole", "out"))
    assert left.config["leave_out"] == 2 and whole.protocol != left.protocol
    assert "2 questions left out by wrong.txt" in runs.protocol_line(left)
    again = evaluated("--methods", "none", "--resume")
    assert again.exit_code == 2 and "other settings (leave_out, leave_out_blake2b" in again.output, again.output
    assert evaluated(*words, "--resume").exit_code == 0
    (tmp_path / "wrong.txt").write_text("h3\n")
    found = evaluated(*words, out="unknown")
    assert found.exit_code == 2 and "names 'h3', and the data hold no question with that id" in " ".join(found.output.split())


def test_mem1_s_questions_are_evaluated_over_a_corpus(evaluated, tmp_path):
    """In a folder whose name is a format and markup."""
    odd = tmp_path / "{0.x} [" / "b] :smile: $x_$"
    odd.mkdir(parents=True)
    three = {"question": "who made {zib}?; where is ulm?; who?", "golden_answers": [["Ada Mo", "Ada"], ["on the Danube"], [3]]}
    records = [MEM1 | three | {"extra_info": {"split": "test", "indices": [i, i + 1, i + 2]}} for i in (0, 3)]
    (tmp_path / "data.json").write_text(json.dumps(records))
    found = evaluated("--methods", "none,oracle,mem1", out=odd)
    assert found.exit_code == 2 and "give those to search in with --corpus" in " ".join(found.output.split()), found.output
    articles = write(odd, json.dumps({"id": "0", "contents": '"Zib"\nAda Mo made it.'}), "wiki-{}.jsonl")
    found = evaluated("--corpus", str(articles), "--methods", "none,oracle,mem1", out=odd)
    assert found.exit_code == 0 and "[/b] :smile: $x_$" in "".join(found.output.split("\n")), found.output
    rows = read_jsonl(odd / "answers.jsonl")
    assert len(rows) == 6 and rows[0]["answers"] == ["Ada Mo", "on the Danube", "3"] and {r["recall"] for r in rows} == {None}
    page = CliRunner().invoke(cli.main, ["report", str(odd)])
    assert page.exit_code == 0, page.output
    found = evaluated("--corpus", str(articles), "--objectives", "2", out="two")
    assert found.exit_code == 2 and "asks 3 questions at once" in " ".join(found.output.split()), found.output


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--seeds", "2"], "2 seeds would all take the same 6 sets; give a --limit below that, or leave out --seeds"),
        (["--seeds", "2", "--limit", "6"], "2 seeds would all take the same 6 sets"),
        (["--search-by", "dense"], "pip install 'tmem[dense]'"),
        (["--answer-tokens", "400"], "at most the 16 that this model has room for beside a turn of 400"),
        (["--task", "stream"], "--turns has no meaning for --task stream"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_in_a_sentence(evaluated, tmp_path, words, sentence):
    if "dense" in words and find_spec(EMBEDDER):
        pytest.skip("the embedding model is installed")
    found = evaluated(*words)
    assert found.exit_code == 2 and sentence in found.output.replace("\n", " "), found.output
    assert not (tmp_path / "out").exists()


def test_a_dense_search_asks_the_embeddings(evaluated, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(searching, "require_dense", lambda: None)
    monkeypatch.setattr(searching, "dense", lambda: lambda texts: asked.append(list(texts)) or by_letters(texts))
    monkeypatch.setattr(search, "read", lambda text, _: Said(text, query="toga") if "<think>" in text else Said(answer=text))
    assert evaluated("--limit", "1", "--methods", "mem1", "--search-by", "dense").exit_code == 0
    assert asked == [["Rome Rome lies on seven hills."], ["toga"]]
    (row,) = read_jsonl(tmp_path / "out/answers.jsonl")
    assert row["recall"] == 1 and json.loads((tmp_path / "out/results.json").read_text())["config"]["search_by"] == "dense"


def test_what_was_written_of_what_was_found_is_recorded(evaluated, tmp_path, monkeypatch):
    said = {"query": "toga hills"}
    monkeypatch.setattr(search, "read", lambda text, _: Said(text, **said) if "<think>" in text else Said(answer=text))
    monkeypatch.setattr(agents, "parse", lambda *_, **__: Written([Pair("where is Rome?", "on hills")]))
    assert evaluated("--limit", "2", "--methods", "pairs,tmem").exit_code == 0
    found = json.loads((tmp_path / "out/results.json").read_text())["methods"]
    assert "writes" not in found["pairs"] and found["tmem"]["writes"] == 2 and found["tmem"]["pairs_per_write"] == 1
    assert found["tmem"]["flops"] > found["pairs"]["flops"] and found["tmem"]["learned_tokens"] > 0
    rows = [r for r in read_jsonl(tmp_path / "out/readings.jsonl") if r["method"] == "tmem"]
    assert [w["pairs"] for r in rows for w in r["log"]["writes"]] == [[["where is Rome?", "on hills"]]] * 2
    page = CliRunner().invoke(cli.main, ["report", str(tmp_path / "out"), "--strip", str(tmp_path / "bare")])
    assert page.exit_code == 0 and "Rome" not in "".join(f.read_text() for f in (tmp_path / "bare").glob("*.jsonl"))


def test_a_turn_grows_with_the_number_of_questions(tmp_path, monkeypatch):
    seen = []

    def run(agent, left, index, state, *, config, **_):
        seen.append(config.max_new)
        raise KeyboardInterrupt

    data = write(tmp_path, [HOTPOT | {"_id": f"h{i}"} for i in range(4)])
    monkeypatch.setattr(loading, "load_model", lambda name=None, **_: (model(max_position_embeddings=2048), Letters()))
    monkeypatch.setattr(searching, "run", run)
    for n in (1, 2, 4):
        with pytest.raises(KeyboardInterrupt):
            evaluate(EvalConfig("search", data=str(data), objectives=n), methods=["mem1"], out=tmp_path / str(n))
    assert seen == [144, 160, 192]
