"""Multi-objective search: files are read or refused in a sentence, turns and scores by hand, and what each state remembers."""

import copy
import json
import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny import Letters, model

import tmem.tasks.trajectory as loop
from tmem.agent.config import AgentConfig, LearnConfig, MemoryConfig, WriteConfig
from tmem.agent.decode import Generation
from tmem.agent.episode import Agent
from tmem.agent.write import Written
from tmem.episode import Pair
from tmem.tasks import corpus, multihop, search
from tmem.tasks.corpus import Document, Index
from tmem.tasks.multihop import Hop
from tmem.tasks.search import Objectives, Said, Step

MULTIHOP = Path(os.environ.get("TMEM_MULTIHOP", Path(__file__).parents[2] / "shared/data/multihop"))

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


def write(folder, content, name="data.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# --- files of questions


@pytest.mark.parametrize("record", [HOTPOT, COLUMNS], ids=["official", "columns"])
def test_hotpotqa_is_read(tmp_path, record):
    path = write(tmp_path, [record])
    (hop,) = multihop.load(path)
    texts = ("Zib", "Zib is a toy. Ada Mo made it."), ("Ada Mo", "Ada Mo is a maker. She is from Ulm.")
    assert hop == Hop("h1", "Where was the maker of Zib born?", ("Ulm",), ("Zib", "Ada Mo"), texts)
    assert corpus.load(path) == [*texts]


@pytest.mark.parametrize("name", ["m.json", "m.jsonl"])
def test_musique_is_read_without_its_unanswerable_questions(tmp_path, name):
    records = [MUSIQUE, MUSIQUE | {"answerable": False}]
    path = write(tmp_path, "\n".join(map(json.dumps, records)) + "\n" if name == "m.jsonl" else records, name)
    texts = ("Zib", "Zib is by Ada Mo."), ("Ada Mo", "Ada Mo wed Ben Lo.")
    assert multihop.load(path) == [Hop("2hop__1_2", "Who wed the maker of Zib?", ("Ben Lo", "Ben"), ("Zib", "Ada Mo"), texts)]
    assert corpus.load(path) == [("Zib", "Zib is by Ada Mo."), ("Ulm", "Ulm is a town."), ("Ada Mo", "Ada Mo wed Ben Lo.")]


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
        multihop.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_line_that_is_not_json_is_named(tmp_path):
    path = write(tmp_path, json.dumps(MUSIQUE) + "\n\n{", "m.jsonl")
    with pytest.raises(ValueError, match="line 3 is not JSON"):
        multihop.load(path)
    with pytest.raises(ValueError, match="is not UTF-8"):
        (tmp_path / "b.json").write_bytes(b'["\xff"]')
        multihop.load(tmp_path / "b.json")
    with pytest.raises(FileNotFoundError, match="multihop: no file at"):
        multihop.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="corpus: no file at"):
        corpus.load(tmp_path / "none.json")


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
        sources = [[HOTPOT], [COLUMNS], [MUSIQUE], *flat]
        value = sources[i % len(sources)]
        for _ in range(rng.choice([1, 1, 2, 4])):
            value = mutated(rng, value)
        path = write(tmp_path, json.dumps(value))
        for load in (multihop.load, corpus.load):
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


# --- the corpus and its index


def test_every_form_of_corpus_is_read_and_files_are_joined(tmp_path):
    files = [
        write(tmp_path, {"A": ["One.", " Two."], "Empty": []}, "a.json"),
        write(tmp_path, [{"title": "B", "text": "Three."}, {"title": "B", "text": "Three."}], "b.json"),
        write(tmp_path, json.dumps({"id": "0", "contents": '"C"\nFour.\nFive.'}) + "\n", "c.jsonl"),
        write(tmp_path, json.dumps({"title": "A", "text": "One. Two."}), "d.jsonl"),
    ]
    assert corpus.load(*files) == [("A", "One. Two."), ("B", "Three."), ("C", "Four.\nFive.")]


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
        corpus.load(write(tmp_path, content))


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
        hops = multihop.load(path)
        own, documents = corpus.load(path), corpus.load(MULTIHOP / f"{name}_corpus.json")
        assert len(hops) == len({h.id for h in hops}) == 100
        assert {d.title for d in own} == {d.title for d in documents}
        assert {title for h in hops for title in h.evidence} <= {d.title for d in own}
        assert all({title for title, _ in h.passages} == set(h.evidence) for h in hops)
        assert {text.strip() for h in hops for _, text in h.passages} <= {d.text for d in own}
        assert len(search.compose(hops, 4)) == 25
        index = Index(documents)
        hits = [bool({d.title for d in index.find(h.question)} & set(h.evidence)) for h in hops]
        assert sum(hits) > 75, name
    assert len(corpus.load(MULTIHOP / "2wikimultihopqa_corpus.json")) == 6119


# --- composition


HOPS = [Hop(f"q{i}", q, a, e) for i, (q, a, e) in enumerate([
    ("Who made Zib?", ("Ada Mo", "Mo"), ("Zib",)), ("Name the town", ("the Ulm",), ("Ada Mo", "Ulm")),
    ("Is it red?", ("yes",), ()), ("Who?", ("B",), ()), ("When?", ("1900",), ()),
])]  # fmt: skip
TWO = Objectives("t", tuple(HOPS[:2]))


def test_consecutive_questions_are_joined_and_leftovers_named():
    with pytest.warns(UserWarning, match="the last 1 of 5 questions make no set of 2"):
        sets = search.compose(HOPS, 2)
    assert [[h.id for h in s.hops] for s in sets] == [["q0", "q1"], ["q2", "q3"]]
    assert sets[0].question == "Who made Zib?; Name the town?" and len({s.id for s in sets}) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(search.compose(HOPS, 1)) == 5 and len(search.compose(HOPS, 5)) == 1
    for n in (0, 6):
        with pytest.raises(ValueError, match=f"{n} questions at a time out of 5"):
            search.compose(HOPS, n)


def test_the_prompt_holds_all_questions_and_a_worked_example():
    text = search.prompt(TWO)
    assert text.endswith("Questions (2): Who made Zib?; Name the town?")
    assert all(tag in text for tag in ("<think>", "<search>", "<information>", "<answer>", "[4 turns left]"))
    assert "<search>" not in search.prompt(TWO, direct=True)
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
    assert search.recall(TWO, []) == 0 and search.recall(Objectives("t", (HOPS[3],)), []) == 1


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


CONFIG = AgentConfig(
    memory=MemoryConfig(rank=4, last_layers=2),
    learn=LearnConfig(lr=3e-3, epochs=2, batch=4, rehearse=8),
    write=WriteConfig(window=60, max_new=12),
)
INDEX = Index(DOCUMENTS)
PAIRS = "Q: who made Zib?\nA: Ada Mo"
LONG = ["<think>one</think><search>toy Zib</search> and so on", "<think>two</think><search>maker Ulm</search>"]


def agent_of(slots=4):
    return Agent.build(model(), Letters(), CONFIG, slots)


class Script:
    """In decode's place: what each trajectory says, turn by turn; every prompt is kept as text, by its noise key."""

    def __init__(self, **turns):
        self.turns, self.prompts, self.batches, self.slots = turns, {}, [], {}

    def __call__(self, network, prompts, *, bank=None, slots=None, end, max_new, temperature=0.0, keys):
        self.batches.append(list(keys))
        out = []
        for i, (prompt, key) in enumerate(zip(prompts, keys)):
            self.prompts[key] = Letters().decode(prompt)
            self.slots[key] = None if slots is None else (slots[i], bank is not None and bank.is_zero(slots[i]))
            who, kind = key.split("/", 1)
            text = PAIRS if "write" in kind else self.turns[who].pop(0)
            out.append(Generation(Letters()(text)["input_ids"] + [end], [0.0] * (len(text) + 1), True))
        return out


def scripted(monkeypatch, state, turns=4, tasks=1, agent=None, script=None, **options):
    said = script or {f"k{i}": [*LONG, "<think>done</think><answer>Ada Mo; Ulm</answer>"] for i in range(tasks)}
    stub = Script(**said)
    monkeypatch.setattr(loop, "decode", stub)
    rows = loop.run(agent or agent_of(), [TWO] * tasks, INDEX, state=state, turns=turns, keys=[*said], **options)
    return rows, stub


@pytest.mark.parametrize("state, first, last", [("full", True, True), ("mem1", False, True), ("tmem", False, False)])
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
    agent, jobs, real = agent_of(), [], loop.learn

    def learn(network, bank, batch, chat, config):
        jobs.append([(slot, [p.question for p in pairs]) for slot, pairs in batch])
        return real(network, bank, batch, chat, config)

    monkeypatch.setattr(loop, "learn", learn)
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


@pytest.mark.parametrize("state", ["full", "mem1", "tmem"])
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
    monkeypatch.setattr(loop, "decode", stub)
    quick, lost, mute = loop.run(agent, [TWO] * 3, INDEX, state="tmem", turns=2, keys=[*script])
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
    monkeypatch.setattr(loop, "decode", stub)
    (row,) = loop.run(agent_of(), [TWO], None, state="none", keys=["k"])
    assert row.scores()["em"] == 2 and [*stub.prompts] == ["k/answer"] and row.scores()["searches"] == 0
    assert row.steps[0].history == len("<answer>")


@pytest.mark.parametrize(
    "options, error, sentence",
    [
        ({"state": "ful"}, ValueError, "no state 'ful'; expected one of full, mem1, tmem, none"),
        ({"turns": 0}, ValueError, "turns is 0"),
        ({"keys": ["a", "b"]}, ValueError, "2 keys for 1 sets"),
        ({"index": None}, ValueError, "got no index"),
        ({}, RuntimeError, "no free slot"),
    ],
)
def test_a_run_that_cannot_be_is_refused(options, error, sentence):
    agent = agent_of(slots=1)
    agent.bank.alloc()
    options = {"index": INDEX} | options
    with pytest.raises(error, match=sentence):
        loop.run(agent, [TWO], **options)
    assert loop.run(agent, [], INDEX, state="mem1") == []


@pytest.mark.parametrize("state, temperature", [("tmem", 1.0), ("tmem", 0.0), ("full", 1.0)])
def test_a_trajectory_is_the_same_alone_and_among_others(monkeypatch, state, temperature):
    """A random model's turns, read as searches for a document that they choose, with pairs that depend on what was said."""
    def read(text):
        if text.startswith("<answer>"):
            return Said(answer=text)
        return Said(text, query=["toy", "kite", "maker Ulm", "unseen"][sum(map(ord, text)) % 4])

    monkeypatch.setattr(search, "read", read)
    monkeypatch.setattr(search, "prompt", lambda task, direct=False: task.question)
    monkeypatch.setattr(loop, "parse", lambda text, **_: Written([Pair(f"what is {text[:9]}?", text[9:14] or "a")]))
    tasks = [Objectives(f"t{i}", tuple(HOPS[i : i + 1 + i % 2])) for i in range(4)]
    options = dict(state=state, turns=3, temperature=temperature, max_new=10, observation=70)
    together = loop.run(agent_of(4), tasks, INDEX, **options)
    pairs = loop.run(agent_of(2), tasks, INDEX, **options)
    for i, row in enumerate(together):
        (alone,) = loop.run(agent_of(1), tasks[i : i + 1], INDEX, **options)
        assert row.steps == alone.steps == pairs[i].steps and row.answer == alone.answer == pairs[i].answer
        assert [e.learned for e in row.log] == [e.learned for e in alone.log]
    assert any(r.log for r in together) == (state == "tmem")
    assert len({s.text for r in together for s in r.steps}) > 4
    if temperature:
        other = loop.run(agent_of(4), tasks, INDEX, keys=["a", "b", "c", "d"], **options)
        assert [r.steps for r in other] != [r.steps for r in together]
