"""stream: endless generated conversations with questions that come after the text is gone.

A few people meet over several sessions. Among chit-chat they tell facts about themselves and each other: attributes,
preferences, relations, dated events, and changes of mind that replace an older fact. Every asked topic has at least
two holders with different values, so that a value bound to the wrong person is wrong and counts as an intrusion; some
questions ask about what was never said, where "unknown" is right. Names, values and all phrasings are disjoint between
train, dev and test (stream_data_*).

An episode is a function of (seed, split, difficulty) alone. It is made in two steps with separate random streams: the
plan (who states what in which session) and the words, so that `probes` can recover the plan from an episode's id.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta

from tmem.episode import Episode, Evidence, Pair, Question
from tmem.tasks.stream import dev, test, train
from tmem.tasks.stream.language import Language, Topic
from tmem.tasks.task import Task
from tmem.words import content

__all__ = [
    "DIFFICULTIES", "LANGUAGES", "SPLITS", "UNKNOWN", "Difficulty", "Stream", "attribute", "episode", "outdated", "probes",
]  # fmt: skip

UNKNOWN = "unknown"
LANGUAGES: dict[str, Language] = {
    "train": train.LANGUAGE,
    "dev": dev.LANGUAGE,
    "test": test.LANGUAGE,
}
SPLITS = tuple(LANGUAGES)


@dataclass(frozen=True)
class Difficulty:
    """facts: gold pairs per session, (fewest, most); an event counts as two, its place or band and its date.

    words: of a session's text, (fewest, most). changes: facts that are later replaced. unknown_share: of the questions.
    oblique: questions take a step of thought, else they say the pair's question in other words.
    told_share: of the facts, told by somebody else who is present.
    """

    sessions: int
    people: tuple[int, int]
    facts: tuple[int, int]
    words: tuple[int, int]
    changes: int
    questions: int
    oblique: bool
    unknown_share: float = 0.25
    told_share: float = 0.25


DIFFICULTIES = {
    1: Difficulty(
        sessions=2, people=(3, 3), facts=(3, 4), words=(60, 85), changes=0, questions=4, oblique=False, told_share=0.15
    ),
    2: Difficulty(sessions=3, people=(3, 4), facts=(5, 5), words=(130, 180), changes=2, questions=6, oblique=True),
    3: Difficulty(sessions=5, people=(5, 6), facts=(5, 6), words=(200, 280), changes=4, questions=8, oblique=True),
}

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip


@dataclass(frozen=True)
class _Statement:
    person: str
    topic: str
    value: str
    date: str = ""
    change: bool = False

    def parts(self) -> Iterator[tuple[str, str]]:
        """("value", its value), for an event also ("date", its date): one gold pair each."""
        yield "value", self.value
        if self.date:
            yield "date", self.date


@dataclass(frozen=True)
class _Plan:
    people: tuple[str, ...]
    dates: tuple[str, ...]
    sessions: tuple[tuple[_Statement, ...], ...]


class _Known:
    """What has been said so far, by (topic, part): each person's values, oldest first."""

    def __init__(self, statements: Iterable[_Statement] = ()):
        self.said: dict[tuple[str, str], dict[str, list[str]]] = {}
        for statement in statements:
            for part, value in statement.parts():
                people = self.said.setdefault((statement.topic, part), {})
                people.setdefault(statement.person, []).append(value)

    def answers(self, topic: str, part: str, person: str) -> tuple[str, ...]:
        values = self.said[topic, part].get(person)
        return _spellings(part, values[-1]) if values else (UNKNOWN,)

    def intrusions(self, topic: str, part: str, person: str) -> tuple[str, ...]:
        """The other people's values, old and new, and what was once true of `person`."""
        wrong = [v for p, values in self.said[topic, part].items() for v in (values[:-1] if p == person else values)]
        return tuple(spelling for value in wrong for spelling in _spellings(part, value))


class _Deck:
    """Draws from a pool without repeating an entry before all were drawn."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.left: dict[tuple[str, ...], list[str]] = {}

    def draw(self, pool: tuple[str, ...]) -> str:
        left = self.left.setdefault(pool, [])
        if not left:
            left.extend(self.rng.sample(pool, len(pool)))
        return left.pop()


def episode(seed: int | str, split: str = "train", difficulty: int = 1, questions: int | None = None) -> Episode:
    """The episode of this seed: the same on every machine, another for every seed (5 and "5" are
    the same one).

    Chunks are sessions of "Name: text" lines under a date; pairs[i] has one pair for each fact stated in chunk i, in
    the order of the text; questions have kind attribute, preference, relation, event, change or unknown, and the topic
    as category. questions: how many are asked at most, as far as there are facts to ask about; None as the difficulty
    says. Text and pairs do not depend on it. Raises ValueError for an unknown split or difficulty.
    """
    language, level = _setting(split, difficulty)
    level = level if questions is None else replace(level, questions=questions)
    id = f"stream/{split}/{difficulty}/{seed}"
    plan = _plan(id, language, level)
    deck = _Deck(random.Random(f"{id}/words"))
    chunks, evidence = [], {}
    for when, statements in zip(plan.dates, plan.sessions, strict=True):
        text, lines = _session(deck, language, level, plan.people, when, statements)
        evidence |= {(s.topic, s.person): Evidence(len(chunks), line) for s, line in zip(statements, lines, strict=True)}
        chunks.append(text)
    pairs = tuple(tuple(_pairs(deck, language, statements)) for statements in plan.sessions)
    questions = _questions(deck, language, level, plan, evidence, id)
    return Episode(id, tuple(chunks), pairs, questions)


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
    plan, (language, level) = _made(episode)
    deck = _Deck(random.Random(f"{episode.id}/probes"))
    found = []
    for i, statements in enumerate(plan.sessions):
        known = _Known(s for session in plan.sessions[: i + 1] for s in session)
        asked = []
        for statement in statements:
            for part, _ in statement.parts():
                other = deck.rng.choice([person for person in plan.people if person != statement.person])
                for kind, person in (("paraphrase", statement.person), ("wrong_person", other)):
                    where = statement.topic, part, person
                    id = f"{episode.id}/probe{i}.{len(asked)}"
                    asked.append(_question(deck, language, level, known, where, id, kind))
        found.append(tuple(asked))
    return tuple(found)


def outdated(episode: Episode) -> tuple[tuple[str, ...], ...]:
    """Per question, what was once right and was replaced later; empty but for questions of kind "change"."""
    plan, (language, _) = _made(episode)
    statements = [s for session in plan.sessions for s in session]
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

    def closeness(topic: Topic) -> float:
        phrases = topic.pair + topic.plain + topic.pair_date + topic.plain_date
        words = [content(p.replace("{name}", " ").replace("{v}", " ")) for p in phrases]
        return max(len(mine & w) / max(1, len(mine | w)) for w in words)

    # Whoever learned to write from the training phrases asks with their words.
    topics = sorted({(name, lang) for lang in {split, "train"} for name in LANGUAGES[lang].topics})
    return max(topics, key=lambda t: closeness(LANGUAGES[t[1]].topics[t[0]]))[0]


def _made(episode: Episode):
    """The plan, and the language and level, of an episode that `stream.episode` made; ValueError for another one."""
    try:
        task, split, difficulty, _ = episode.id.split("/", 3)
        if task != "stream":
            raise ValueError(task)
        language, level = _setting(split, int(difficulty))
    except ValueError as error:
        raise ValueError(f"stream: {episode.id!r} is not the id of an episode made by stream.episode") from error
    return _plan(episode.id, language, level), (language, level)


def _setting(split: str, difficulty: int) -> tuple[Language, Difficulty]:
    if split not in LANGUAGES:
        raise ValueError(f"stream: unknown split {split!r}, expected one of {', '.join(SPLITS)}")
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"stream: unknown difficulty {difficulty!r}, expected one of {sorted(DIFFICULTIES)}")
    return LANGUAGES[split], DIFFICULTIES[difficulty]


def _spellings(part: str, value: str) -> tuple[str, ...]:
    if part != "date":
        return (value,)
    day, month = value.split()
    return value, f"{month} {day}"


def _day(day: date) -> str:
    return f"{day.day} {_MONTHS[day.month - 1]}"


def _plan(id: str, language: Language, level: Difficulty) -> _Plan:
    """Who states what in which session.

    Topics get two or more holders but never everybody, so that there is somebody to ask about what was never said;
    what is left of the sessions' room goes to topics with one holder, which are not asked.
    """
    rng = random.Random(f"{id}/plan")
    people = tuple(rng.sample(language.names, rng.randint(*level.people)))
    first = date(2024, 6, 1) + timedelta(days=rng.randrange(100))
    meetings = [first]
    for _ in range(level.sessions - 1):
        meetings.append(meetings[-1] + timedelta(days=rng.randint(3, 12)))
    # Days of the month are split as the values are: an event's date in test is none of train.
    third = SPLITS.index(id.split("/")[1])
    past = [day for back in range(20, 141) if (day := first - timedelta(days=back)).day % 3 == third]
    event_dates = iter(rng.sample([_day(day) for day in past], len(past)))

    topics = rng.sample(sorted(language.topics), len(language.topics))
    # Each changeable topic has two holders at least, so half as many of them as there are changes suffice.
    changeable = [name for name in topics if language.topics[name].changed][: (level.changes + 1) // 2]
    topics = changeable + [name for name in topics if name not in changeable]

    room = [rng.randint(*level.facts) for _ in range(level.sessions)]
    left = sum(room) - level.changes
    told: list[_Statement] = []
    values: dict[str, Iterator[str]] = {}
    for name in topics:
        topic = language.topics[name]
        weight = 2 if topic.kind == "event" else 1
        holders = rng.randint(2, len(people) - 1)
        if holders * weight > left:
            holders = 2 if 2 * weight <= left else 1 if left == 1 and weight == 1 else 0
        values[name] = iter(rng.sample(topic.values, len(topic.values)))
        # Whoever has told least so far goes first, so that everybody who is asked about takes part.
        for person in sorted(people, key=lambda p: (sum(s.person == p for s in told), rng.random()))[:holders]:
            told.append(_Statement(person, name, next(values[name]), next(event_dates) if weight == 2 else ""))
        left -= holders * weight

    can_change = [s for s in told if language.topics[s.topic].changed and sum(t.topic == s.topic for t in told) > 1]
    olds = rng.sample(can_change, level.changes)
    news = [_Statement(old.person, old.topic, next(values[old.topic]), change=True) for old in olds]
    # Events need two places in one session and changes need two sessions, so these go first; each to where most room
    # is left, or sessions would fill up unevenly and leave no place.
    groups = [(s,) for s in told if s.date]
    groups += list(zip(olds, news, strict=True))
    groups += [(s,) for s in told if not s.date and s not in olds]
    sessions: list[list[_Statement]] = [[] for _ in room]
    for group in groups:
        roomiest = sorted(range(len(room)), key=lambda i: (-room[i], rng.random()))
        for statement, i in zip(group, sorted(roomiest[: len(group)]), strict=True):
            sessions[i].append(statement)
            room[i] -= len(list(statement.parts()))
    if min(room) < 0:
        raise RuntimeError(f"stream: the facts of {id} do not fit into its sessions")
    for statements in sessions:
        rng.shuffle(statements)
    return _Plan(people, tuple(f"{_day(day)} {day.year}" for day in meetings), tuple(map(tuple, sessions)))


def _phrase(deck: _Deck, pool: tuple[str, ...], statement: _Statement) -> str:
    value = statement.value
    article = "an" if value[0] in "aeiou" else "a"
    return deck.draw(pool).format(name=statement.person, v=value, av=f"{article} {value}", date=statement.date)


def _session(
    deck: _Deck,
    language: Language,
    level: Difficulty,
    people: tuple[str, ...],
    when: str,
    statements: tuple[_Statement, ...],
) -> tuple[str, list[str]]:
    """One session: an opening, the statements in order, and chit-chat between them up to a word count.

    Returns its text, and of each statement the line that says it.
    """
    rng, chat = deck.rng, language.chat
    present = [person for person in people if any(s.person == person for s in statements)]
    absent = [person for person in people if person not in present]
    present += rng.sample(absent, min(len(absent), max(2 - len(present), rng.randint(0, 1))))

    def other(*than: str) -> str | None:
        return rng.choice(rest) if (rest := [person for person in present if person not in than]) else None

    # A line is (place, speaker, text); sorting by place puts chit-chat around the statement it belongs to. Small talk
    # has no speaker yet: whoever did not speak last. What may be added, `extra`, has the pool to draw from and the
    # addressee instead of a text.
    spoken = [((-1, 0), rng.choice(present), deck.draw(chat.open))]
    phrases = []
    extra = [((len(statements), 9), rng.choice(present), chat.close, "")]
    for k, statement in enumerate(statements):
        topic, subject = language.topics[statement.topic], statement.person
        if statement.change:
            teller, pool = subject, topic.changed
        elif rng.random() < level.told_share:
            teller, pool = other(subject), topic.told
        else:
            teller, pool = subject, topic.said
        phrases.append(_phrase(deck, pool, statement))
        spoken.append(((k, 3), teller, phrases[-1]))
        if teller == subject:
            extra.append(((k, 2), other(subject), chat.lead, subject))
        else:
            extra.append(((k, 4), subject, chat.confirm, ""))
        if listener := other(teller, subject):
            extra.append(((k, 5), listener, chat.react, ""))
    places = rng.sample(gaps := [(k, place) for place in (0, 1, 6, 7) for k in range(len(statements))], len(gaps))
    small = [(place, None, chat.small, "") for place in places]
    extra += small[: len(statements)]
    rng.shuffle(extra)
    extra += small[len(statements) :]

    fewest, most = level.words
    size = sum(1 + len(text.split()) for _, _, text in spoken) + len(when.split()) + 1
    goal = rng.randint(fewest, most)
    for place, speaker, pool, addressee in extra:
        if size >= goal:
            break
        text = deck.draw(pool).format(name=addressee)
        if (words := 1 + len(text.split())) <= most - size:
            spoken.append((place, speaker, text))
            size += words

    spoken.sort(key=lambda line: line[0])
    turns: list[tuple[str, str]] = []
    for (_, speaker, text), (_, following, _) in zip(spoken, [*spoken[1:], ((), None, "")], strict=True):
        if speaker is None:
            last = turns[-1][0]
            speaker = other(last, following) or other(last)
        if turns and turns[-1][0] == speaker:
            turns[-1] = speaker, f"{turns[-1][1]} {text}"
        else:
            turns.append((speaker, text))
    lines = [f"{speaker}: {text}" for speaker, text in turns]
    return "\n".join([f"Date: {when}", *lines]), [next(line for line in lines if phrase in line) for phrase in phrases]


def _pairs(deck: _Deck, language: Language, statements: tuple[_Statement, ...]) -> Iterator[Pair]:
    for statement in statements:
        topic = language.topics[statement.topic]
        for part, value in statement.parts():
            yield Pair(_phrase(deck, topic.pair if part == "value" else topic.pair_date, statement), value)


def _question(
    deck: _Deck, language: Language, level: Difficulty, known: _Known, where: tuple[str, str, str], id: str, kind: str,
    evidence: tuple[Evidence, ...] = (),
) -> Question:  # fmt: skip
    name, part, person = where
    topic: Topic = language.topics[name]
    of_value, of_date = (topic.ask, topic.ask_date) if level.oblique else (topic.plain, topic.plain_date)
    text = deck.draw(of_value if part == "value" else of_date).format(name=person)
    return Question(id, text, known.answers(*where), kind, known.intrusions(*where), name, evidence)


def _questions(
    deck: _Deck, language: Language, level: Difficulty, plan: _Plan, evidence: dict[tuple[str, str], Evidence], id: str
) -> tuple[Question, ...]:
    """Changes first, up to half of what can be answered; then other facts of shared topics; then what nobody said."""
    rng = deck.rng
    statements = [s for session in plan.sessions for s in session]
    known = _Known(statements)
    changed = {(s.topic, "value", s.person) for s in statements if s.change}
    shared = [(topic, part) for (topic, part), holders in known.said.items() if len(holders) > 1]
    facts = [(*field, person) for field in shared for person in known.said[field]]
    never = [(*field, person) for field in shared for person in plan.people if person not in known.said[field]]

    unknown = round(level.questions * level.unknown_share)
    answerable = level.questions - unknown
    asked = rng.sample(sorted(changed), min(len(changed), (answerable + 1) // 2))
    others = [fact for fact in facts if fact not in asked]
    asked += rng.sample(others, min(len(others), answerable - len(asked)))
    asked += rng.sample(never, min(len(never), unknown))
    rng.shuffle(asked)

    def kind(where: tuple[str, str, str]) -> str:
        return UNKNOWN if where in never else "change" if where in changed else language.topics[where[0]].kind

    def stated(topic: str, part: str, person: str) -> tuple[Evidence, ...]:
        return (evidence[topic, person],) if (topic, person) in evidence else ()

    return tuple(
        _question(deck, language, level, known, where, f"{id}/q{i}", kind(where), stated(*where))
        for i, where in enumerate(asked)
    )
