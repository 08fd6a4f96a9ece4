"""The tasks: generated conversations keep their promises, the LoCoMo loader reads the format, scores are right."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations, product
from pathlib import Path

import pytest

from tmem import tasks
from tmem.tasks import Question, locomo, metrics, stream

LOCOMO = Path(os.environ.get("TMEM_LOCOMO", Path(__file__).parents[3] / "shared/data/locomo/locomo5.json"))
SEEDS = range(40)
SHARING = ("train", "dev", "test")  # the splits that have the same topics
SETTINGS = list(product(stream.SPLITS, stream.DIFFICULTIES))
PHRASINGS = ("said", "told", "changed", "pair", "ask", "plain", "pair_date", "ask_date", "plain_date")
CHAT = ("open", "lead", "react", "confirm", "small", "close")


def words(text: str) -> str:
    return " " + " ".join(re.findall(r"[a-z0-9]+", text.lower())) + " "


def says(text: str, value: str) -> int:
    return words(text).count(words(value))


def frame(phrase: str) -> str:
    return words(re.sub(r"\{\w+\}", "_", phrase))


def phrases(language, sorts=PHRASINGS):
    return [line for topic in language.topics.values() for sort in sorts for line in getattr(topic, sort)]


# --- the language of stream


@pytest.mark.parametrize(
    "splits, expected",
    [(SHARING, "3002c759bbd83a69a48dcb3cfe251ec8"), (("new",), "517e663a64cfef5ba3e5780aaa55614c")],
)
def test_episodes_stay_as_they_are(splits, expected):
    """Scores of today and of before are of the same texts: an episode of a seed is the same for ever."""
    digest = hashlib.blake2b(digest_size=16)
    for split, difficulty, seed in product(splits, stream.DIFFICULTIES, range(8)):
        made = stream.episode(seed, split, difficulty)
        digest.update("\n".join([made.id, *made.chunks]).encode())
        digest.update(repr([(p.question, p.answer) for pairs in made.pairs for p in pairs]).encode())
        asked = [*made.questions, *(q for probes in stream.probes(made) for q in probes)]
        digest.update(repr([(q.id, q.text, q.answers, q.kind, q.intrusions, q.category) for q in asked]).encode())
        digest.update(repr(stream.outdated(made)).encode())
    assert digest.hexdigest() == expected


@pytest.mark.parametrize("a, b", combinations(stream.SPLITS, 2))
def test_splits_share_no_name_value_phrasing_or_chat(a, b):
    one, two = stream.language_of(a), stream.language_of(b)
    assert not set(one.names) & set(two.names)
    for sort in CHAT:
        assert not set(map(frame, getattr(one.chat, sort))) & set(map(frame, getattr(two.chat, sort))), sort
    if "new" in (a, b):
        assert not one.topics.keys() & two.topics.keys()
        values = [{value for topic in language.topics.values() for value in topic.values} for language in (one, two)]
        assert not values[0] & values[1]
    else:
        assert one.topics.keys() == two.topics.keys()
    for name in one.topics.keys() & two.topics.keys():
        assert not set(one.topics[name].values) & set(two.topics[name].values), name
    assert not set(map(frame, phrases(one))) & set(map(frame, phrases(two)))


def test_splits_share_no_date_of_an_event():
    dates = {
        split: {
            question.answers[0]
            for seed in range(150)
            for question in stream.episode(seed, split, 2).questions
            if question.kind == "event" and question.answers[0][0].isdigit()
        }
        for split in stream.SPLITS
    }
    assert all(len(some) > 20 for some in dates.values())
    assert all(not dates[a] & dates[b] for a, b in combinations(stream.SPLITS, 2))


@pytest.mark.parametrize("split", stream.SPLITS)
def test_a_split_is_rich_and_unambiguous(split):
    language = stream.language_of(split)
    assert len(set(language.names)) >= 40
    values = [value for topic in language.topics.values() for value in topic.values]
    assert all(value.isascii() for value in values)
    # A value is never part of another one, of a name or of a sentence: saying it means exactly one thing.
    assert [(v, w) for v in values for w in values if v is not w and says(w, v)] == []
    fixed = [*map(frame, phrases(language)), *language.names, *(f for s in CHAT for f in getattr(language.chat, s))]
    assert [(v, f) for v in values for f in fixed if says(f, v)] == []
    assert [(v, n) for v in values for n in language.names if says(v, n)] == []
    every = phrases(language)
    assert len(set(map(frame, every))) == len(every), "pairs, questions and text are phrased differently"
    for name, topic in language.topics.items():
        assert len(set(topic.values)) >= 20, name
        for sort in PHRASINGS:
            lines = getattr(topic, sort)
            optional = sort == "changed" or sort.endswith("_date")
            assert len(lines) >= 3 or (optional and not lines), (name, sort)
            event = topic.kind == "event"
            for line in lines:
                slots = set(re.findall(r"\{(\w+)\}", line))
                if sort in ("said", "told", "changed"):
                    wanted = {"v"} if "v" in slots else {"av"}
                    wanted |= ({"name"} if sort == "told" else set()) | ({"date"} if event else set())
                else:
                    wanted = {"name"}
                assert slots == wanted, (name, sort, line)
                assert not sort.startswith("plain") or 5 <= len(line.split()) <= 12, (name, line)
        assert bool(topic.pair_date) == bool(topic.ask_date) == bool(topic.plain_date) == (topic.kind == "event")


def test_the_new_topics_are_as_many_of_each_kind_as_those_that_the_other_splits_share():
    new, shared = (stream.language_of(split).topics.values() for split in ("new", "train"))
    kinds, others = (Counter(topic.kind for topic in topics) for topics in (new, shared))
    assert kinds >= others and kinds.keys() == others.keys()
    changing, those = ({topic.kind for topic in topics if topic.changed} for topics in (new, shared))
    assert changing == those and sum(bool(topic.changed) for topic in new) >= sum(bool(topic.changed) for topic in shared)


@pytest.mark.parametrize("split", stream.SPLITS)
def test_a_question_is_told_to_be_about_its_own_topic(split):
    language = stream.language_of(split)
    for name, topic in language.topics.items():
        for sort in ("pair", "plain", "pair_date", "plain_date"):
            for line in getattr(topic, sort):
                assert stream.attribute(line.format(name=language.names[0]), split) == name, line


# --- its episodes


@pytest.mark.parametrize("split, difficulty", SETTINGS)
def test_sessions_hold_what_their_difficulty_says(split, difficulty):
    level = stream.DIFFICULTIES[difficulty]
    names = stream.language_of(split).names
    for seed in SEEDS:
        episode = stream.episode(seed, split, difficulty)
        assert len(episode.chunks) == len(episode.pairs) == level.sessions
        speakers = set()
        for chunk, pairs in zip(episode.chunks, episode.pairs, strict=True):
            assert level.facts[0] <= len(pairs) <= level.facts[1]
            assert level.words[0] * 0.9 <= len(chunk.split()) <= level.words[1]
            header, *lines = chunk.splitlines()
            assert re.fullmatch(r"Date: \d+ [A-Z][a-z]+ 2024", header)
            here = [re.match(r"(\w+): ", line).group(1) for line in lines]
            assert len(set(here)) >= 2 and set(here) <= set(names)
            assert all(a != b for a, b in zip(here, here[1:], strict=False))
            speakers |= set(here)
            for pair in pairs:
                assert says(chunk, pair.answer) == 1
                assert says(pair.question, pair.answer) == 0
                assert any(says(pair.question, name) for name in speakers | set(names))
        assert level.people[0] <= len(speakers) <= level.people[1]


@pytest.mark.parametrize("split, difficulty", SETTINGS)
def test_questions_have_one_right_answer_and_rivals(split, difficulty):
    level = stream.DIFFICULTIES[difficulty]
    kinds = Counter()
    for seed in SEEDS:
        episode = stream.episode(seed, split, difficulty)
        text = "\n".join(episode.chunks)
        pairs = [pair for chunk in episode.pairs for pair in chunk]
        questions = episode.questions
        kinds.update(question.kind for question in questions)
        assert len(questions) == level.questions
        assert len({question.id for question in questions}) == len({q.text for q in questions}) == len(questions)
        assert sum(q.kind == "unknown" for q in questions) == round(level.questions * level.unknown_share)
        for question in questions:
            assert len(question.text.split()) <= 25
            assert question.text not in {pair.question for pair in pairs}
            person = next(name for name in stream.language_of(split).names if says(question.text, name))
            assert says(text, person), "nobody is asked about who never took part"
            own = {p.answer for p in pairs if says(p.question, person)}
            if question.kind == "unknown":
                assert question.answers == ("unknown",)
                assert len(question.intrusions) >= 2 and not set(question.intrusions) & own
            else:
                assert 1 <= len(question.answers[0].split()) <= 4
                assert says(text, question.answers[0]) == 1
                assert question.answers[0] in own
                assert not set(question.answers) & set(question.intrusions)
                rivals = set(question.intrusions) - own
                assert any(says(text, rival) == 1 for rival in rivals)
            if question.kind == "change":
                assert set(question.intrusions) & own, "the older value is an intrusion"
    assert {"attribute", "preference", "relation", "event", "unknown"} <= set(kinds)
    assert bool(kinds["change"]) == bool(level.changes)


@pytest.mark.parametrize("split, difficulty", SETTINGS)
def test_questions_and_probes_are_plain_or_oblique_as_their_difficulty_says(split, difficulty):
    language = stream.language_of(split)
    sorts = ("ask", "ask_date") if stream.DIFFICULTIES[difficulty].oblique else ("plain", "plain_date")
    right = {line.format(name=name) for line in phrases(language, sorts) for name in language.names}
    for seed in SEEDS:
        episode = stream.episode(seed, split, difficulty)
        asked = {q.text for group in (episode.questions, *stream.probes(episode)) for q in group}
        assert not asked - right


def test_only_the_first_difficulty_is_plain():
    assert [difficulty for difficulty, level in stream.DIFFICULTIES.items() if not level.oblique] == [1]


@pytest.mark.parametrize("difficulty", [2, 3])
def test_the_latest_of_two_values_wins(difficulty):
    seen = 0
    for seed in SEEDS:
        episode = stream.episode(seed, "train", difficulty)
        where = {pair.answer: i for i, pairs in enumerate(episode.pairs) for pair in pairs}
        for question in episode.questions:
            if question.kind == "change":
                topic = stream.language_of("train").topics[question.category]
                person = next(n for n in stream.language_of("train").names if says(question.text, n))
                frames = {line.format(name=person) for line in topic.pair}
                told = [p.answer for pairs in episode.pairs for p in pairs if p.question in frames]
                assert len(told) == 2 and told[1] == question.answers[0] and told[0] in question.intrusions
                assert where[told[0]] < where[told[1]]
                seen += 1
    assert seen > 40


def test_episodes_differ_by_seed_split_and_difficulty_and_not_by_process():
    made = [stream.episode(seed, split, d) for seed in range(5) for split, d in SETTINGS]
    assert len({episode.chunks for episode in made}) == len(made)
    code = "from tmem.tasks import stream; print(hash_free := repr(stream.episode(7, 'dev', 3)))"
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
        )
        assert run.stdout.strip() == repr(stream.episode(7, "dev", 3)), run.stderr


@pytest.mark.parametrize("split, difficulty", SETTINGS)
def test_probes_ask_the_pairs_otherwise_and_about_somebody_else(split, difficulty):
    wrong_known = 0
    for seed in (*SEEDS, "1/rl/0"):
        episode = stream.episode(seed, split, difficulty)
        said: dict[tuple[str, str, bool], str] = {}
        for pairs, asked in zip(episode.pairs, stream.probes(episode), strict=True):
            assert len(asked) == 2 * len(pairs)
            people = []
            for pair, right, wrong in zip(pairs, asked[::2], asked[1::2], strict=True):
                assert (right.kind, wrong.kind) == ("paraphrase", "wrong_person")
                assert right.answers[0] == pair.answer and pair.question != right.text
                assert pair.answer in wrong.intrusions and pair.answer not in wrong.answers
                person = [next(n for n in stream.language_of(split).names if says(q.text, n)) for q in (right, wrong)]
                assert person[0] != person[1] and says(pair.question, person[0])
                said[person[0], right.category, pair.answer[0].isdigit()] = pair.answer
                people.append((person[1], wrong, pair.answer[0].isdigit()))
            for person, wrong, is_date in people:
                assert wrong.answers[0] == said.get((person, wrong.category, is_date), "unknown")
                wrong_known += wrong.answers[0] != "unknown"
    assert wrong_known > 10


def test_probes_refuse_foreign_episodes():
    foreign = dataclasses.replace(stream.episode(0), id="conv-26")
    with pytest.raises(ValueError, match="'conv-26' is not the id"):
        stream.probes(foreign)


# --- locomo


RECORD = {
    "sample_id": "conv-x",
    "conversation": {
        "speaker_a": "Ann",
        "speaker_b": "Bo",
        "session_10_date_time": "9:00 am on 2 June, 2023",
        "session_10": [{"speaker": "Ann", "dia_id": "D10:1", "text": "Late one."}],
        "session_2_date_time": "1:56 pm on 8 May, 2023",
        "session_2": [
            {"speaker": "Bo", "dia_id": "D2:1", "text": "Look!", "blip_caption": "a photo of a red bowl"},
            {"speaker": "Ann", "dia_id": "D2:2", "text": "Nice."},
        ],
        "session_11_date_time": "8:00 am on 3 June, 2023",
    },
    "qa": [
        {"question": "What does Ann like?", "answer": "tea, long walks", "category": 1, "evidence": ["D2:1"]},
        {"question": "When was it?", "answer": 2022, "category": 2, "evidence": []},
        {"question": "Would Ann?", "answer": "Likely yes; she said so", "category": 3, "evidence": []},
        {"question": "What did Bo show?", "answer": "the red bowl", "category": 4, "evidence": []},
        {"question": "What did Ann break?", "adversarial_answer": "a bowl", "category": 5, "evidence": []},
    ],
}


@pytest.fixture
def locomo_file(tmp_path):
    path = tmp_path / "locomo10.json"
    path.write_text(json.dumps([RECORD, {**RECORD, "sample_id": "conv-y"}]), encoding="utf-8")
    return path


def test_locomo_reads_sessions_in_order_and_questions_by_category(locomo_file):
    first, second = tasks.episodes("locomo", data=str(locomo_file))
    assert (first.id, second.id) == ("conv-x", "conv-y")
    assert first.chunks == (
        "DATE: 1:56 pm on 8 May, 2023\nCONVERSATION:\nBo: Look! [shares a photo of a red bowl]\nAnn: Nice.",
        "DATE: 9:00 am on 2 June, 2023\nCONVERSATION:\nAnn: Late one.",
    )
    assert first.pairs == ((), ())
    assert [q.id for q in first.questions] == [f"conv-x/{i}" for i in range(5)]
    assert [q.kind for q in first.questions] == ["multi-hop", "temporal", "open-domain", "single-hop", "adversarial"]
    assert first.questions[1].text == f"When was it? {locomo.DATE_SUFFIX}"
    assert first.questions[1].answers == ("2022",)
    assert first.questions[4].answers[0] == "No information available"
    assert first.questions[4].intrusions == ("a bowl",)
    assert locomo.episodes(locomo_file, date_suffix="")[0].questions[1].text == "When was it?"


def test_locomo_limit_draws_by_seed_alone(locomo_file):
    def drawn(seed, limit=2):
        return [[q.id for q in e.questions] for e in tasks.episodes("locomo", data=locomo_file, seed=seed, limit=limit)]

    assert all(len(ids) == 2 and ids == sorted(ids) for ids in drawn(0))
    assert drawn(0) == drawn(0)
    assert len({str(drawn(seed)) for seed in range(8)}) > 1
    assert drawn(3, limit=99) == drawn(4, limit=None)


@pytest.mark.parametrize(
    "content, match",
    [
        ("{", "is not JSON"),
        ("{}", "expected a non-empty list"),
        ("[]", "expected a non-empty list"),
        ('[{"qa": []}]', "record 1: `sample_id` is missing; expected text"),
        ("[3]", "record 1 is a number; expected an object"),
        (json.dumps([{**RECORD, "conversation": {}}]), "record 1 .sample_id 'conv-x'. has no sessions"),
        (json.dumps([{**RECORD, "qa": [{"question": "?", "answer": "x", "category": 7}]}]), "`category` is 7; expected one"),
    ],
)
def test_locomo_refuses_other_files_in_one_sentence(tmp_path, content, match):
    path = tmp_path / "file.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=match):
        locomo.episodes(path)


def test_locomo_reads_the_real_file():
    if not LOCOMO.is_file():
        pytest.skip(f"the LoCoMo development file is not at {LOCOMO} (CC BY-NC, not part of the project)")
    episodes = locomo.episodes(LOCOMO)
    assert [len(e.questions) for e in episodes] == [len(r["qa"]) for r in json.loads(LOCOMO.read_text("utf-8"))]
    assert all(len(e.chunks) > 10 for e in episodes)
    assert {q.category for e in episodes for q in e.questions} == {"1", "2", "3", "4", "5"}
    for question in (q for e in episodes for q in e.questions):
        gold = question.answers[0]
        scores = tasks.score("locomo", question, gold)
        assert scores["em"] == scores["f1"] == 1.0 and scores["intrusion"] == 0
        if question.category != "3":
            assert scores["official_f1"] == pytest.approx(1.0), (question.id, gold)


# --- load and score


def test_load_stream_is_repeatable_and_seeds_share_nothing():
    assert len(tasks.episodes("stream")) == 16
    assert tasks.episodes("stream", seed=1, limit=3) == tasks.episodes("stream", seed=1, limit=3)
    assert not {e.chunks for e in tasks.episodes("stream", seed=0)} & {e.chunks for e in tasks.episodes("stream", seed=1)}
    assert tasks.episodes("stream", split="dev", difficulty=2, limit=1)[0].id.startswith("stream/dev/2/")


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda: tasks.episodes("chess"), ValueError, "unknown task 'chess', expected one of stream, locomo"),
        (lambda: tasks.episodes("stream", split="valid"), ValueError, "unknown split 'valid'"),
        (lambda: tasks.episodes("stream", difficulty=9), ValueError, "unknown difficulty 9"),
        (lambda: tasks.episodes("stream", limit=0), ValueError, "at least 1"),
        (lambda: tasks.episodes("stream", data="x.json"), ValueError, "leave out the data file"),
        (lambda: tasks.episodes("locomo"), ValueError, "no data file"),
        (lambda: tasks.episodes("locomo", data="/nowhere.json"), FileNotFoundError, "no file at /nowhere.json"),
        (lambda: tasks.episodes("locomo", data="x", limit=0), ValueError, "at least 1"),
        (lambda: tasks.score("chess", question("a"), "a"), ValueError, "unknown task"),
    ],
)
def test_bad_arguments_are_named(call, error, match):
    with pytest.raises(error, match=match):
        call()


def question(*answers, intrusions=(), category=""):
    return Question("q", "?", answers, "kind", tuple(intrusions), category)


@pytest.mark.parametrize(
    "prediction, answers, f1, em",
    [
        ("Park  ranger.", ("park ranger",), 1, 1),
        ("a park ranger", ("park ranger",), 0.8, 0),  # 2 common of 3 + 2: articles stay
        ("May 12", ("12 May", "May 12"), 1, 1),
        ("running", ("runs",), 0, 0),  # nothing is stemmed
        ("tea tea tea", ("tea",), 0.5, 0),
        ("", ("unknown",), 0, 0),
        ("", ("",), 1, 1),
        ("...", ("x",), 0, 0),
        ("the blue one", ("red", "blue"), 0.5, 0),
    ],
)
def test_plain_scores(prediction, answers, f1, em):
    scores = tasks.score("stream", question(*answers), prediction)
    assert scores.pop("contains") in (0, 1)
    assert scores == {"f1": pytest.approx(f1), "em": em, "intrusion": 0}


@pytest.mark.parametrize(
    "said, expected",
    [("It was Oslo, I think.", 1), ("oslo", 1), ("in cape  Town!", 1), ("Osloers", 0), ("cape", 0), ("", 0), ("unknown", 0)],
)
def test_an_answer_is_contained_as_whole_words(said, expected):
    assert metrics.contains(said, question("Oslo", "cape town", "?")) == expected


def test_abstaining_is_told_from_naming():
    for said in ("unknown", "Unknown.", "No information available", "It is not mentioned here.", "no information available."):
        assert metrics.abstains(said), said
    for said in ("an unknown man", "", "information", "mentioned"):
        assert not metrics.abstains(said), said


@pytest.mark.parametrize(
    "prediction, expected",
    [
        ("Oslo", 0),
        ("Lima", 1),
        ("She lives in Lima.", 1),
        ("Oslo, not Lima", 1),  # hedging is not right
        ("Limassol", 0),  # whole words only
        ("Cape Town", 1),
        ("Cape", 0),
        ("unknown", 0),
        ("", 0),
    ],
)
def test_intrusions_count_wrong_bindings(prediction, expected):
    assert metrics.intrusion(prediction, question("Oslo", intrusions=("Lima", "cape town", ""))) == expected


def test_a_right_answer_that_contains_an_intrusion_is_no_intrusion():
    assert metrics.intrusion("light blue", question("light blue", intrusions=("blue",))) == 0


@pytest.mark.parametrize(
    "category, gold, prediction, expected",
    [
        ("4", "the running dogs", "A dog runs!", 1.0),  # articles dropped, stems equal
        ("4", "$1,000", "1000 dollars", 2 / 3),
        ("2", "7 May 2023", "May 2023", 0.8),
        ("2", "7 May 2023", "", 0.0),
        ("3", "Likely no; she hates it", "likely no", 1.0),
        ("4", "Likely no; she hates it", "likely no", 4 / 7),
        ("1", "tea, long walks", "walks, tea", (1 + 2 / 3) / 2),
        ("1", "tea, long walks", "tea", 0.5),
        ("5", "No information available", "There is no information available.", 1.0),
        ("5", "No information available", "It is not mentioned", 1.0),
        ("5", "No information available", "Unknown.", 0.0),
        ("5", "No information available", "an unknown man", 0.0),
        ("5", "No information available", "a bowl", 0.0),
    ],
)
def test_official_locomo_score(category, gold, prediction, expected):
    assert metrics.official_f1(prediction, question(gold, category=category)) == pytest.approx(expected)


def test_official_score_needs_a_category():
    with pytest.raises(ValueError, match="category '', expected '1' to '5'"):
        metrics.official_f1("a", question("a"))


def test_adversarial_questions_have_one_gold_and_two_official_phrases(locomo_file):
    adversarial = tasks.episodes("locomo", data=locomo_file)[0].questions[4]
    gold, phrase, neither = (
        tasks.score("locomo", adversarial, said) for said in ("no information available", "Not mentioned.", "unknown")
    )
    assert gold == {"f1": 1, "em": 1, "contains": 1, "intrusion": 0, "official_f1": 1}
    assert phrase == {"f1": 0, "em": 0, "contains": 0, "intrusion": 0, "official_f1": 1}
    assert neither == {"f1": 0, "em": 0, "contains": 0, "intrusion": 0, "official_f1": 0}
    assert tasks.score("locomo", adversarial, "a bowl") == {"f1": 0, "em": 0, "contains": 0, "intrusion": 1, "official_f1": 0}


def test_tasks_import_without_torch():
    code = "import sys; import tmem.tasks, tmem.report; assert not {'torch', 'transformers'} & set(sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_evidence_of_a_stream_is_the_line_that_says_what_is_right():
    for seed in range(30):
        for difficulty in (1, 2, 3):
            episode = stream.episode(seed, "dev", difficulty)
            for question in episode.questions:
                if question.kind == "unknown":
                    assert question.evidence == ()
                    continue
                (evidence,) = question.evidence
                assert evidence.text in episode.chunks[evidence.chunk].splitlines()
                assert any(answer in evidence.text for answer in question.answers), (question, evidence)


# a task of one's own -----------------------------------------------------------------------------------------------------


def test_the_example_of_ones_own_task_is_a_task():
    from pathlib import Path

    from tmem.tasks import task

    file = Path(__file__).parents[2] / "examples" / "own_task.py"
    mine = task.find_task(f"{file}:Colours")
    one, again, held_out = mine.episode("7", "train"), mine.episode("7", "train"), mine.episode("7", "test")
    assert one == again and not {q.text for q in one.questions} & {q.text for q in held_out.questions}
    for question in one.questions:
        assert mine.score(question, question.answers[0]) == {"f1": 1.0, "em": 1.0, "intrusion": 0}
        assert mine.score(question, question.intrusions[0])["intrusion"] == 1


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("strem", "expected stream, passages, search, verifiers or file.py:Class, got 'strem'"),
        ("absent.py:A", "there is no file absent.py"),
        ("{file}:Nothing", "has no class Nothing derived from tmem.tasks.Task"),
        ("{file}:Path", "has no class Path derived from tmem.tasks.Task"),
    ],
)
def test_a_task_that_is_none_is_named(tmp_path, name, sentence):
    from tmem.tasks import task

    file = tmp_path / "mine.py"
    file.write_text("from pathlib import Path\n")
    with pytest.raises(ValueError, match=sentence):
        task.find_task(name.format(file=file))


def test_more_questions_leave_text_and_pairs_as_they_are():
    few, many = (stream.episode("q", "train", 1, questions=n) for n in (None, 12))
    assert (few.chunks, few.pairs) == (many.chunks, many.pairs) and len(many.questions) > len(few.questions) == 4
    assert len({q.text for q in many.questions}) == len(many.questions)
    facts = sum(map(len, many.pairs))
    assert sum(q.kind != "unknown" for q in many.questions) <= facts
