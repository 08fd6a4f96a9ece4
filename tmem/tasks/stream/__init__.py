"""stream: endless generated conversations with questions that come after the text is gone.

A few people meet over several sessions. Among chit-chat they tell facts about themselves and each other: attributes,
preferences, relations, dated events, and changes of mind that replace an older fact. Every asked topic has at least
two holders with different values, so that a value bound to the wrong person is wrong and counts as an intrusion; some
questions have no answer in the text: abstaining, "unknown", is right. Names, values and all phrasings are disjoint between
train, dev and test.

An episode is a function of (seed, split, difficulty) alone. It is made in two steps with separate random streams: the
script (who states what in which session) and the words, so that `probes` can recover the script from an episode's id.
"""

import functools
import random
import re
from dataclasses import dataclass, replace

from tmem.episode import Episode, Evidence, Question
from tmem.tasks.stream import talk
from tmem.tasks.stream.language import SPLITS, Language, Topic, language_of
from tmem.tasks.stream.script import DIFFICULTIES, UNKNOWN, Difficulty, Known, Script, spellings, write_script
from tmem.tasks.stream.talk import Deck
from tmem.tasks.task import Task
from tmem.words import content

__all__ = [
    "DIFFICULTIES", "SPLITS", "UNKNOWN", "Difficulty", "Stream", "attribute", "episode", "language_of", "outdated", "probes",
    "script_of", "spellings",
]  # fmt: skip


def episode(seed: int | str, split: str = "train", difficulty: int = 1, questions: int | None = None) -> Episode:
    """The episode of this seed: the same on every machine, another for every seed (5 and "5" are the same one).

    Chunks are sessions of "Name: text" lines under a date; pairs[i] has one pair for each fact stated in chunk i, in
    the order of the text; questions have kind attribute, preference, relation, event, change or unknown, and the topic
    as category. questions: how many are asked at most, as far as there are facts to ask about; None as the difficulty
    says. Text and pairs do not depend on it. Raises ValueError for an unknown split or difficulty.
    """
    language, level = _setting(split, difficulty)
    level = level if questions is None else replace(level, questions=questions)
    id = f"stream/{split}/{difficulty}/{seed}"
    script = write_script(id, language, level)
    deck = Deck(random.Random(f"{id}/words"))
    chunks, evidence = [], {}
    for when, statements in zip(script.dates, script.sessions, strict=True):
        text, lines = talk.session(deck, language, level, script.people, when, statements)
        evidence |= {(s.topic, s.person): Evidence(len(chunks), line) for s, line in zip(statements, lines, strict=True)}
        chunks.append(text)
    pairs = tuple(tuple(talk.gold_pairs(deck, language, statements)) for statements in script.sessions)
    return Episode(id, tuple(chunks), pairs, talk.questions(deck, language, level, script, evidence, id))


@dataclass(frozen=True)
class Stream(Task):
    """The streams of one difficulty; training episodes ask up to `questions` questions (None: as the difficulty says)."""

    difficulty: int = 1
    questions: int | None = None

    def episode(self, key: str, split: str) -> Episode:
        return episode(key, split, self.difficulty, self.questions if split == "train" else None)


def probes(episode: Episode) -> tuple[tuple[Question, ...], ...]:
    """Per chunk, two questions for each of its gold pairs, to see whether its write stuck, in the order of the pairs.

    "paraphrase": the same fact asked as the final questions ask, right as of the end of this chunk. "wrong_person":
    the same thing asked about somebody else, whose own value is right if it was stated by then, else "unknown"; the
    fact's value is among the intrusions. Raises ValueError for an episode that `stream.episode` did not make.
    """
    script, language, level = _made(episode)
    deck = Deck(random.Random(f"{episode.id}/probes"))
    found = []
    for i, statements in enumerate(script.sessions):
        known = Known(s for session in script.sessions[: i + 1] for s in session)
        asked = []
        for statement in statements:
            for part, _ in statement.parts():
                other = deck.rng.choice([person for person in script.people if person != statement.person])
                for kind, person in (("paraphrase", statement.person), ("wrong_person", other)):
                    where = statement.topic, part, person
                    id = f"{episode.id}/probe{i}.{len(asked)}"
                    asked.append(talk.question(deck, language, level, known, where, id, kind))
        found.append(tuple(asked))
    return tuple(found)


def outdated(episode: Episode) -> tuple[tuple[str, ...], ...]:
    """Per question, what was once right and was replaced later; empty but for questions of kind "change"."""
    statements = [s for session in script_of(episode).sessions for s in session]
    out = []
    for question in episode.questions:
        olds = [
            s.value for s in statements
            if question.kind == "change" and s.topic == question.category and s.person in re.findall(r"\w+", question.text)
            and s.value not in question.answers
        ]  # fmt: skip
        out.append(tuple(olds))
    return tuple(out)


def attribute(question: str, split: str) -> str:
    """The topic that a question asks about: the one among whose own questions is the one with most words in common.

    For written questions, which follow no template; ties go to the topic that comes first in the alphabet.
    """
    mine = content(question)

    def closeness(words: tuple[frozenset[str], ...]) -> float:
        return max(len(mine & w) / max(1, len(mine | w)) for w in words)

    # Whoever learned to write from the training phrases asks with their words, of `new` perhaps about their topics.
    topics = sorted({(name, lang) for lang in {split, "train"} for name in language_of(lang).topics})
    return max(topics, key=lambda t: closeness(_asked(t[1])[t[0]]))[0]


@functools.cache
def _asked(split: str) -> dict[str, tuple[frozenset[str], ...]]:
    """Of each topic the words of its questions, those that leave out a step of thought."""

    def words(topic: Topic) -> tuple[frozenset[str], ...]:
        phrases = topic.pair + topic.plain + topic.pair_date + topic.plain_date
        return tuple(content(phrase.replace("{name}", " ").replace("{v}", " ")) for phrase in phrases)

    return {name: words(topic) for name, topic in language_of(split).topics.items()}


def script_of(episode: Episode) -> Script:
    """Who states what in which session. Raises ValueError for an episode that `stream.episode` did not make."""
    return _made(episode)[0]


def _made(episode: Episode) -> tuple[Script, Language, Difficulty]:
    try:
        task, split, difficulty, _ = episode.id.split("/", 3)
        if task != "stream":
            raise ValueError(task)
        language, level = _setting(split, int(difficulty))
    except ValueError as error:
        raise ValueError(f"stream: {episode.id!r} is not the id of an episode made by stream.episode") from error
    return write_script(episode.id, language, level), language, level


def _setting(split: str, difficulty: int) -> tuple[Language, Difficulty]:
    language = language_of(split)
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"stream: unknown difficulty {difficulty!r}, expected one of {sorted(DIFFICULTIES)}")
    return language, DIFFICULTIES[difficulty]
