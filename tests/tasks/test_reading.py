"""The task passages: which file and passage comes when, who is on which side, and what the text is made into."""

import json
import os
import random
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
import test_tasks_files as files
from tiny_run import lines, start

from tmem import tasks
from tmem.episode import Evidence, Pair, Question
from tmem.rl.config import train_config
from tmem.tasks import dates, mixture, parts, passages, people
from tmem.tasks.passages import Passages
from tmem.tasks.squad import Passage
from tmem.words import normalise

READING = Path(os.environ.get("TMEM_DATA", Path(__file__).parents[3] / "shared/data")) / "reading"


def record(title, text="Ann has a cat.", *asked):
    asked = asked or (("What does Ann have?", "a cat"),)
    return {"title": title, "context": text, "questions": [{"question": q, "answer": a} for q, a in asked]}


def written(path, records):
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


def library(path, count=60, tag="", parts=1):
    """`count` documents of so many passages, each with a text and a question of its own."""
    return written(path, [
        record(f"Book {tag}{i} [{j}]", f"In {tag}{i} part {j} lives Tom. He is {i + 7} years old.",
               (f"How old is he in {tag}{i}, {j}?", f"{i + 7}"))
        for i in range(count) for j in range(parts)
    ])  # fmt: skip


# relative dates ----------------------------------------------------------------------------------------------------------

MONDAY = datetime(2023, 5, 8, 13, 56)


@pytest.mark.parametrize(
    "said, date",
    [
        ("yesterday", "7 May 2023"), ("Yesterday.", "7 May 2023"), ("today", "8 May 2023"), ("this  morning", "8 May 2023"),
        ("the day before yesterday", "6 May 2023"), ("tomorrow", "9 May 2023"), ("last night", "7 May 2023"),
        ("last Friday", "5 May 2023"), ("last Monday", "1 May 2023"), ("next Monday", "15 May 2023"),
        ("on last sunday", "7 May 2023"),
        ("next friday", "12 May 2023"), ("last week", "the week before 8 May 2023"), ("this week", "the week of 8 May 2023"),
        ("next weekend", "the weekend after 8 May 2023"), ("next month", "June 2023"), ("last month", "April 2023"),
        ("last year", "2022"),
        ("five months ago", "December 2022"), ("in 8 months", "January 2024"), ("two weeks ago", "24 April 2023"),
        ("a year ago", "2022"), ("in three days", "11 May 2023"), ("10 days ago", "28 April 2023"),
        ("this Friday", None), ("Friday", None), ("in the morning", None), ("2022", None), ("last fall", None),
        ("last day", None), ("last sunflower day", None), ("9999 years ago", None), ("in 9999 years", None),
        ("52 weeks ago", "9 May 2022"),
        ("two weeks", None), ("in two weeks ago", None), ("yesterday in Rome", None), ("", None),
    ],
)  # fmt: skip
def test_a_relative_date_is_the_day_that_the_calendar_says(said, date):
    assert dates.resolved(said, MONDAY) == date


def test_a_passage_with_its_session_s_date_answers_with_dates_and_keeps_what_was_said():
    asked = (
        Question("1", "When did Ann run?", ("yesterday", "last night"), "temporal"),
        Question("2", "Who?", ("Ann",), "plain"),
    )
    text = "Session date: 1:56 pm on 8 May, 2023\nAnn: I ran yesterday."
    found = passages.resolved(Passage("t", text, asked))
    assert [q.answers for q in found.questions] == [("7 May 2023", "yesterday", "last night"), ("Ann",)]
    assert found.text == text and passages.resolved(found) == found
    for undated in ("Ann: I ran yesterday.", "Session date: some day\nAnn: I ran yesterday."):
        assert passages.resolved(Passage("t", undated, asked)).questions == asked


# files and weights -------------------------------------------------------------------------------------------------------


def test_a_file_may_say_its_weight(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b:2", "c", "c:3", "d:x.json"):
        (tmp_path / name).write_text("[]")
    assert mixture.weighted(["a.json:0.5", "b:2", "d:x.json", "gone.json", "gone:7"]) == {
        "a.json": 0.5, "b:2": 1.0, "d:x.json": 1.0, "gone.json": 1.0, "gone": 7.0,
    }  # fmt: skip
    assert mixture.weighted(["b:2:4", "d:x.json:1e-3", "a.json: 2"]) == {"b:2": 4.0, "d:x.json": 1e-3, "a.json": 2.0}
    for names, sentence in (
        (["c:3"], "'c:3' is a file, and so is 'c' with the weight 3; rename one of them."),
        (["a.json:0"], "'a.json:0': the weight is 0; expected a number above 0, as in a.json:0.5."),
        (["a.json:-1"], "the weight is -1"), (["a.json:nan"], "the weight is nan"), (["a.json:inf"], "the weight is inf"),
        (["a.json", "a.json:2"], "a.json is named twice"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="^data: ") as error:
            mixture.weighted(names)
        assert sentence in str(error.value) and "\n" not in str(error.value)


def test_files_are_mixed_by_weight_and_nothing_comes_twice_before_all_came():
    sizes, weights = (10, 0, 40, 30), (1.0, 5.0, 1.0, 2.0)
    epoch = [mixture.drawn(sizes, weights, "s", place) for place in range(80)]
    assert Counter(file for file, _ in epoch) == {0: 20, 2: 20, 3: 40}
    assert Counter(epoch)[(0, 4)] == 2, "a small file comes twice"
    assert all(count == 1 for (file, _), count in Counter(epoch).items() if file == 2)
    second = [mixture.drawn(sizes, weights, "s", place) for place in range(80, 160)]
    assert {item for file, item in epoch + second if file == 2} == set(range(40)), "what the first epoch left comes next"
    assert epoch == [mixture.drawn(sizes, weights, "s", place) for place in range(80)] != second
    assert epoch != [mixture.drawn(sizes, weights, "other", place) for place in range(80)]
    tiny = [mixture.drawn((1000, 1), (1.0, 1e-9), "s", place)[0] for place in range(1001)]
    assert Counter(tiny) == {0: 1000, 1: 1}
    with pytest.raises(ValueError, match="nothing to draw"):
        mixture.drawn((0, 0), (1.0, 1.0), "s", 0)


# sides -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "title, name",
    [
        ("Rhine", "Rhine"), ("Rhine [13]", "Rhine"), ("Rhine (3)", "Rhine"), ("realtalk-2 session 1 part 2", "realtalk-2"),
        ("s03_e23_c01", "s03_e23"), ("wikipedia:3717:10", "wikipedia:3717"), ("dream-1-10", "dream-1-10"),
        ("mc500.dev.48", "mc500.dev.48"), ("Titanic (film)", "Titanic (film)"), ("1984", "1984"), ("", ""), (" a Part 4", "a"),
    ],
)  # fmt: skip
def test_the_title_tells_the_document(title, name):
    assert passages.document(title) == name


def test_no_document_is_on_two_sides(tmp_path):
    held = Passages([library(tmp_path / "a.json", 400, "x", parts=3), library(tmp_path / "b.json", 100, "x")]).held
    books = {s: {passages.document(p.title) for file in found for p in file} for s, found in held.items()}
    assert set(books) == set(passages.SPLITS) and sum(map(len, books.values())) == len(set().union(*books.values())) == 400
    assert 340 < len(books["train"]) < 380 and len(books["dev"]) > 8 and len(books["test"]) > 8
    assert sum(len(file) for found in held.values() for file in found) == 400 * 3 + 100, "nothing is lost"


def test_a_text_under_two_titles_is_on_the_side_nearest_to_train():
    titles = [f"Book {i}" for i in range(200)]
    alone = dict(zip(titles, passages.sides([Passage(t, f"{t} text", ()) for t in titles])))
    train, dev, test = (next(t for t in titles if alone[t] == side) for side in passages.SPLITS)

    def sides(*texts):
        return passages.sides([Passage(title, text, ()) for title, text in zip((train, dev, test), texts)])

    assert sides("a", "b", "c") == ["train", "dev", "test"]
    assert sides("A b.", "c", "a  B") == ["train", "dev", ""] and sides("a", "b", "b") == ["train", "dev", ""]
    assert sides("a", "a", "a") == ["train", "", ""]
    untitled = passages.sides([Passage("", f"text {i}", ()) for i in range(200)])
    assert set(untitled) == set(passages.SPLITS), "without a title the text tells"


# people ------------------------------------------------------------------------------------------------------------------


def test_first_names_are_found_where_they_are_surely_some():
    assert people.people("Tom met Mary at St. Paul. TOM's hat; mary.") == {"Tom": "male", "Mary": "female"}
    for text in (
        "In St. Louis.", "Near Charles Street.", "Louis XIV ruled.", "King George came.", "Mr. Martin left.", "@TomHanks: Tom?",
        "Jean-Paul sang.", "O'Brian", "Joe, or Joey, ran.", "Will mark a rose in May.", "the tom cat", "customer", "Tommy-gun",
        "Mary's College", "Paul Island",
    ):  # fmt: skip
        assert people.people(text) == {}, text


def test_speakers_are_people_unless_they_are_roles():
    talk = "Paola: Hi.\nZed: Oh.\nPaola: Yes.\nZed: No.\nClerk: Next!\nClerk: Next!\nKevin Smith: So."
    assert people.people(talk) == {"Paola": "either", "Zed": "either", "Kevin": "male"}
    assert people.people("Paola: Hi.\nPaola: Hello?") == {}, "nobody talks alone"
    assert "Crystal" not in people.people("Crystal: Hi.\nZed: A crystal.\nCrystal: Oh.\nZed: Yes.")
    assert "Librarian" not in people.people("Librarian: Hi.\nZed: Hi.\nLibrarian: Oh.\nZed: Yes.")
    assert "Vendor" not in people.people("Vendor: Hi.\nZed: Hi.\nVendor: Oh.\nZed: Yes.\nThe Vendor left.")


def test_names_are_replaced_in_their_case_and_nowhere_else():
    names = {"Ann": "Lucy", "Tom": "Peter", "Peter": "Tom"}
    text = "Ann: ANN's Tom, Ann’s Peter (tom) 'Ann' annual @Ann Jo-Ann Ann_1 O'Ann"
    assert people.renamed(text, names) == "Lucy: LUCY's Peter, Lucy’s Tom (peter) 'Lucy' annual @Ann Jo-Ann Ann_1 O'Ann"
    assert people.renamed(text, {}) == text


def test_swapped_people_are_others_of_their_group_and_can_be_swapped_back():
    asked = Question("1", "Who met Mary's dog?", ("Tom", "TOM Brown"), "plain", evidence=(Evidence(0, "Tom met Mary."),))
    passage = Passage("Tom's day", "Kevin slept. Tom met Mary.", (asked,))
    seen = set()
    for seed in range(40):
        found = passages.swapped(passage, random.Random(seed))
        man, woman = found.text.split()[2], found.text.split()[4][:-1]
        assert people.listed()[man] == "male" and people.listed()[woman] == "female"
        assert not {man, woman} & {"Tom", "Mary", "Kevin"} and found.title == f"{man}'s day"
        (q,) = found.questions
        assert (q.text, q.answers) == (f"Who met {woman}'s dog?", (man, f"{man.upper()} Brown"))
        assert q.evidence[0].text == f"{man} met {woman}." and q.evidence[0].text in found.text
        back = {man: "Tom", woman: "Mary", found.text.split()[0]: "Kevin"}
        assert people.renamed(found.text, back) == passage.text
        seen.add(man)
    assert len(seen) > 10
    plain = Passage("", "Nobody came.", ())
    assert passages.swapped(plain, random.Random(0)) == plain


def test_the_names_that_are_put_in_are_names_only():
    known = people.listed()
    assert len(known) > 400 and all(name == name.title() and name.isascii() and name.isalpha() for name in known)
    common = {"Will", "Mark", "Rose", "Grace", "May", "April", "Bill", "Frank", "Jack", "Paris", "Jordan", "Georgia", "Bob"}
    assert not common & set(known)
    for name in known:
        assert list(people.people(f"{name} came.")) == [name]


# parts -------------------------------------------------------------------------------------------------------------------


def ask(text, *answers, id="q", category=""):
    return Question(id, text, answers or tasks.metrics.ABSTENTIONS, "plain", category=category)


@pytest.mark.parametrize(
    "text, question, answers, sentence",
    [
        ("A cat sat. The black cat ran.", "What did the black one do? Ran what?", ("cat",), "The black cat ran."),
        ("A cat sat. A cat ran.", "What?", ("Cat!",), "A cat sat."),
        ("It is 40. It is 4 o'clock.", "When?", ("4",), "It is 4 o'clock."),
        ("Ann: I am sad. I lost it.\nBo: Oh.", "What did Ann do?", ("lost it",), "Ann: I am sad. I lost it."),
        ("A cat sat.", "What?", ("a dog",), ""),
        ("A cat sat.", "What?", ("...",), ""),
    ],
)
def test_an_answer_stands_in_the_sentence_that_the_question_is_about(text, question, answers, sentence):
    assert parts.standing(text, ask(question, *answers)) == sentence


def test_a_long_passage_is_cut_at_sentences_and_keeps_each_question_with_its_answer():
    text = "One is red. Two is blue.\nThree is a very green thing. Four is grey."
    asked = [ask(f"{n}?", a, id=n) for n, a in (("Two", "blue"), ("Four", "grey"), ("Three", "green"), ("Five", "pink"))]
    asked.append(ask("Six?", id="Six", category="abstention"))
    passage = Passage("T", text, tuple(asked))
    assert parts.cut(passage, 0) == parts.cut(passage, 15) == [passage]
    found = [(p.title, p.text, [q.id for q in p.questions]) for p in parts.cut(passage, 8)]
    assert found == [("T", "One is red. Two is blue.", ["Two"]), ("T", "Three is a very green thing.", ["Three"]),
                     ("T", "Four is grey.", ["Four"])]  # fmt: skip
    assert [p.text for p in parts.cut(passage, 1)] == [
        "One is red.", "Two is blue.", "Three is a very green thing.", "Four is grey.",
    ], "a sentence is never cut"  # fmt: skip


def test_the_parts_of_a_dated_dialogue_begin_with_its_date_and_lines_stay_whole():
    text = "Session date: 8 May 2023\nAnn: I ran. I won.\nBo: You did. Well done.\nAnn: Yes. Gold."
    passage = Passage("t", text, (ask("What did Ann get?", "gold"), ask("What did Ann do?", "ran")))
    found = parts.cut(passage, 10)
    assert [p.text for p in found] == [
        "Session date: 8 May 2023\nAnn: I ran. I won.", "Session date: 8 May 2023\nBo: You did. Well done.",
        "Session date: 8 May 2023\nAnn: Yes. Gold.",
    ]  # fmt: skip
    assert [[q.answers for q in p.questions] for p in found] == [[("ran",)], [], [("gold",)]]


def test_a_title_is_read_where_it_is_a_name():
    assert parts.chunk(Passage("Oslo_Fjord", "It is.", ())) == "TITLE: Oslo Fjord\nIt is."
    assert parts.chunk(Passage("dream-1-10", "M: Hi.", ())) == "M: Hi."
    assert parts.chunk(Passage("Talk", "Date: 8 May 2023\nM: Hi.", ())) == "Date: 8 May 2023\nM: Hi."


# episodes ----------------------------------------------------------------------------------------------------------------


def test_an_episode_is_a_function_of_its_key(tmp_path):
    data = [library(tmp_path / "a.json", tag="a"), library(tmp_path / "b.json", tag="b") + ":3"]
    options = {"step": 4, "join": 3, "swap_names": 0.5}
    one, two = Passages(data, **options), Passages(data, **options)
    keys = [*(f"0/warm/{n}/{i}" for n in range(20) for i in range(4)), "0/rl/3/1/again1", "bench/7", "x", "", "12", "9" * 40]
    for split in passages.SPLITS:
        assert [one.episode(k, split) for k in keys] == [two.episode(k, split) for k in reversed(keys)][::-1]
    assert one.episode("12", "dev") != one.episode("13", "dev")
    drawn = Counter(
        e.questions[0].text[17] for e in (one.episode(f"0/warm/{n}/{i}", "train") for n in range(99) for i in range(4))
    )
    assert 2 < drawn["b"] / drawn["a"] < 4.5


def test_a_step_s_episodes_are_new_until_all_passages_came(tmp_path):
    task = Passages([library(tmp_path / "a.json")], step=3)
    count = len(task.held["train"][0])
    keys = [f"5/warm/{n}/{i}" for n in range(count) for i in range(3)]
    chunks = [task.episode(key, "train").chunks[0] for key in keys]
    assert all(len(set(chunks[k : k + count])) == count for k in range(0, 3 * count, count))
    held_out = [task.episode(str(i), "test").chunks[0] for i in range(len(task.held["test"][0]))]
    assert len(set(held_out)) == len(held_out)


def test_passages_joined_to_a_stream_are_asked_about_at_the_end(tmp_path):
    task = Passages([library(tmp_path / "a.json")], join=4)
    episodes = [task.episode(f"{i}", "train") for i in range(80)]
    assert {len(e.chunks) for e in episodes} == {1, 2, 3, 4}
    for e in episodes:
        assert len(e.pairs) == len(e.chunks) and [Pair(q.text, q.answers[0]) for q in e.questions] == [
            p for c in e.pairs for p in c
        ]
        assert len({q.id for q in e.questions}) == len(e.questions)
        assert all(v.text in e.chunks[v.chunk] and q.answers[0] in v.text for q in e.questions for v in q.evidence)


def test_a_question_in_the_same_words_is_asked_of_the_first_passage_alone(tmp_path):
    path = written(tmp_path / "a.json", [record(f"Book {i}", f"It is {i}.", ("What is it?", f"{i}")) for i in range(50)])
    task = Passages([path], join=3)
    for i in range(20):
        e = task.episode(str(i), "train")
        assert len(e.questions) == 1 and [len(p) for p in e.pairs] == [1, *[0] * (len(e.chunks) - 1)]
        assert e.questions[0].answers[0] in e.chunks[0]


def test_unanswerable_questions_are_asked_and_are_no_pairs(tmp_path):
    rows = [{"title": f"B {i}", "context": "A cat.", "questions": [{"question": "Dog?", "answers": []}]} for i in range(40)]
    e = Passages([written(tmp_path / "a.json", rows)]).episode("0", "train")
    assert e.pairs == ((),) and e.questions[0].category == "abstention" and e.questions[0].evidence == ()


def test_at_most_so_many_questions_are_asked_in_training_and_all_pairs_are_taught(tmp_path):
    asked = [(f"What is {i}?", f"{i}") for i in range(9)]
    path = written(tmp_path / "a.json", [record(f"Book {i}", f"0 1 2 3 4 5 6 7 8 of {i}", *asked) for i in range(90)])
    task = Passages([path], questions=4)
    found = [task.episode(str(i), "train") for i in range(9)]
    assert {len(e.questions) for e in found} == {4} and {len(e.pairs[0]) for e in found} == {9}
    assert len({tuple(q.id for q in e.questions) for e in found}) > 4 and len(task.episode("0", "dev").questions) == 9


def test_names_are_swapped_in_training_alone(tmp_path):
    task = Passages([library(tmp_path / "a.json")], swap_names=1.0)
    assert not any("Tom" in task.episode(f"0/warm/{i}/0", "train").chunks[0] for i in range(40))
    assert all("Tom" in task.episode(str(i), split).chunks[0] for i in range(4) for split in ("dev", "test"))
    share = Passages([library(tmp_path / "a.json")], swap_names=0.5)
    assert 30 < sum("Tom" in share.episode(f"0/warm/{i}/0", "train").chunks[0] for i in range(100)) < 70


def test_tags_are_the_kinds_that_scores_are_grouped_by(tmp_path):
    row = record("Book 1", "A cat.", ("a?", "cat"), ("b?", "cat"), ("c?", "cat"))
    row["questions"][0]["tags"], row["questions"][1]["tags"] = ["inference"], ["list", "temporal"]
    (episode,) = tasks.episodes("passages", data=written(tmp_path / "a.json", [row]), split="all")
    assert [q.kind for q in episode.questions] == ["inference", "list+temporal", "plain"]
    (squad,) = tasks.episodes("squad", data=str(tmp_path / "a.json"))
    assert {q.kind for q in squad.questions} == {"squad"}


def test_an_evaluation_asks_the_same_held_out_passages(tmp_path):
    path = library(tmp_path / "a.json", 200)
    held = Passages([path]).held
    for split in passages.SPLITS:
        found = tasks.episodes("passages", data=path, split=split)
        assert [e.chunks[0] for e in found] == [parts.chunk(p) for p in held[split][0]]
    assert len(tasks.episodes("passages", data=path, split="all")) == 200
    assert len(tasks.episodes("passages", data=path, limit=3)) == 3
    with pytest.raises(ValueError, match="passages: split is 'no'; expected one of train, dev, test, all"):
        tasks.episodes("passages", data=path, split="no")


# what is refused ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_trained_on_is_refused_in_one_sentence(tmp_path):
    named = written(tmp_path / "tasks.json", [files.TASK])
    few = written(tmp_path / "few.json", [record("Book 0")])
    unasked = written(tmp_path / "unasked.json", [{"title": "B", "context": "x", "questions": []}])
    for data, sentence in (
        ([], "passages: no data; name files"), ([named], "CL-bench is for evaluation only"),
        ([f"{named}:2"], "CL-bench is for"), ([str(tmp_path / "clbench_dev.jsonl")], "CL-bench is for"),
        ([written(tmp_path / "x.json", {"a": 1})], "`data` is missing"),
        ([written(tmp_path / "y.json", [files.LOCOMO])], "y.json, record 1: `questions` is missing"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as error:
            Passages(data)
        assert sentence in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(
        FileNotFoundError, match="passages: no file at .*gone.json; get train-v1.1.json .* or give a list of passages"
    ):
        Passages([str(tmp_path / "gone.json:2")])
    for task in (Passages([few]), Passages([unasked])):
        with pytest.raises(ValueError, match=r"^passages: no document of .* falls to \w+, which takes \d+ % of the documents"):
            task.require("train", "dev", "test")
    with pytest.raises(ValueError, match="falls to train"):
        Passages([unasked]).episode("0", "train")


def test_whatever_a_file_holds_it_is_trained_on_or_named_in_one_sentence(tmp_path):
    rng, outcomes = random.Random("passages/hostile"), Counter()
    said = "Session date: 8 May 2023\nTom: I ran. Yesterday!\nMary: Oh, Tom.\nTom: Yes.\nMary: Hm."
    talk = record("Walk session 1 part 2", said,
                  ("When did Tom run?", "yesterday"), ("Who said oh?", "Mary"))  # fmt: skip
    for i in range(600):
        good = files.PASSAGE if i % 2 else talk
        mutants = [files.mutated(good, rng) if rng.random() < 0.4 else good for _ in range(3)]
        path = tmp_path / "x.json"
        text = json.dumps(mutants)
        path.write_bytes(files.damaged(text, rng) if rng.random() < 0.1 else text.encode())
        try:
            task = Passages([str(path)], join=2, cut_words=rng.choice((0, 4, 12)), swap_names=1.0, step=2)
            task.require("train")
            episodes = [task.episode(key, "train") for key in ("a/0/0", "a/0/1", "3", "?")]
        except ValueError as error:
            said = str(error)
            assert said.startswith("passages: ") and "\n" not in said and len(said) < len(str(path)) + 300, said
            outcomes["named"] += 1
            continue
        outcomes["read"] += 1
        for e in episodes:
            assert len(e.chunks) == len(e.pairs) and len({q.id for q in e.questions}) <= len(e.questions)
            assert all(v.text in e.chunks[v.chunk] for q in e.questions for v in q.evidence)
            assert all(q.answers for q in e.questions)
    assert min(outcomes["read"], outcomes["named"]) > 60, outcomes


# a run -------------------------------------------------------------------------------------------------------------------

EXTRA = {"task": "passages", "reward": "f1", "rl_steps": 1, "eval_episodes": 2, "join": 2, "rl_questions": 2}


def test_a_run_trains_on_passages_and_goes_on_with_the_same_files_alone(tmp_path):
    data = (library(tmp_path / "a.json", 80), library(tmp_path / "b.json", 80, "b") + ":2")
    run = start(tmp_path / "run", data=data, **EXTRA)
    summary = run.run()
    assert set(summary["evaluations"]) == {"base", "warm", "rl", "sft"}
    phases = Counter(row["phase"] for row in lines(tmp_path / "run"))
    assert phases["warm"] == 2 and phases["rl"] == 1
    held = json.loads((tmp_path / "run/run.json").read_text())
    assert held["TrainConfig"]["data"] == list(data) and set(held["data_blake2b"]) == {
        str(tmp_path / f) for f in ("a.json", "b.json")
    }
    assert start(tmp_path / "run", resume=True, data=data, **EXTRA).run() == summary
    library(tmp_path / "b.json", 81, "b")
    with pytest.raises(ValueError, match=r"made with other settings \(data_blake2b.*b.json\)"):
        start(tmp_path / "run", resume=True, data=data, **EXTRA)
    with pytest.raises(ValueError, match=r"made with other settings .*TrainConfig.data"):
        start(tmp_path / "run", resume=True, data=data[:1], **EXTRA)


def test_a_run_from_before_there_were_passages_is_gone_on_with(tmp_path):
    out = tmp_path / "run"
    start(out, rl_steps=0, warm_steps=1, eval_episodes=1).run()
    held = json.loads((out / "run.json").read_text())
    for name in ("data", "join", "cut_words", "swap_names", "resolve_dates"):
        del held["TrainConfig"][name]
    (out / "run.json").write_text(json.dumps(held))
    start(out, resume=True, rl_steps=0, warm_steps=1, eval_episodes=1).run()


def test_files_are_for_passages_alone(tmp_path):
    with pytest.raises(ValueError, match=r"\[train\] data: task 'stream' reads no files"):
        start(tmp_path / "run", task="stream", reward="f1", data=("a.json",))
    with pytest.raises(ValueError, match="passages: no data"):
        start(tmp_path / "run", task="passages", reward="f1")
    with pytest.raises(ValueError, match=r"falls to dev"):
        start(tmp_path / "run", data=(written(tmp_path / "a.json", [record("Book 0")]),), **EXTRA)
    with pytest.raises(ValueError, match="swap_names: expected a share of 0 to 1, got 2"):
        start(tmp_path / "run", swap_names=2.0)
    assert not (tmp_path / "run").exists() and train_config().data == ()


# real files --------------------------------------------------------------------------------------------------------------


def test_real_passages_keep_their_answers_whatever_is_done_to_them():
    names = [READING / f"{name}_train.json" for name in ("friendsqa", "mctest", "realtalk", "quoref")]
    if not all(file.is_file() for file in names):
        pytest.skip(f"the reading sets are not at {READING} (not part of the project)")
    rng, changed = random.Random("real"), 0
    for file in names:
        read = passages.squad.passages(file, "passages", kind=passages._kind)
        for passage in rng.sample(read, 40):
            other = passages.swapped(passage, rng)
            changed += other.text != passage.text
            assert len(other.text.split()) == len(passage.text.split()) and len(other.questions) == len(passage.questions)
            for before, after in zip(passage.questions, other.questions):
                assert (normalise(before.answers[0]) in normalise(passage.text)) == (
                    normalise(after.answers[0]) in normalise(other.text)
                )
            cut = parts.cut(passage, 120)
            assert normalise(" ".join(p.text for p in cut)).startswith(normalise(passage.text)[:200])
            ids = [q.id for p in cut for q in p.questions]
            assert len(ids) == len(set(ids)) and set(ids) <= {q.id for q in passage.questions}
    assert changed > 80
