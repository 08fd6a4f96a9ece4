"""The script of an episode: who states what in which session. The words in which it is said: talk.py."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from tmem.tasks.stream.language import SPLITS, Language

UNKNOWN = "unknown"


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
class Statement:
    """That the `value` of a topic is true of a person. date: of an event. change: it replaces an older value."""

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
class Script:
    """people: who takes part. dates: of the sessions. sessions: what is stated in each, in this order."""

    people: tuple[str, ...]
    dates: tuple[str, ...]
    sessions: tuple[tuple[Statement, ...], ...]


class Known:
    """What has been said so far, by (topic, part): each person's values, oldest first."""

    def __init__(self, statements: Iterable[Statement] = ()):
        self.said: dict[tuple[str, str], dict[str, list[str]]] = {}
        for statement in statements:
            for part, value in statement.parts():
                people = self.said.setdefault((statement.topic, part), {})
                people.setdefault(statement.person, []).append(value)

    def answers(self, topic: str, part: str, person: str) -> tuple[str, ...]:
        values = self.said[topic, part].get(person)
        return spellings(part, values[-1]) if values else (UNKNOWN,)

    def intrusions(self, topic: str, part: str, person: str) -> tuple[str, ...]:
        """The other people's values, old and new, and what was once true of `person`."""
        wrong = [v for p, values in self.said[topic, part].items() for v in (values[:-1] if p == person else values)]
        return tuple(spelling for value in wrong for spelling in spellings(part, value))


def spellings(part: str, value: str) -> tuple[str, ...]:
    """The ways to write a value that count as right: "3 May" is also "May 3"."""
    if part != "date":
        return (value,)
    day, month = value.split()
    return value, f"{month} {day}"


def write_script(id: str, language: Language, level: Difficulty) -> Script:
    """The script of the episode with this id, `stream/<split>/<difficulty>/<seed>`: a function of the id alone.

    Topics get two or more holders but never everybody, so that there is somebody to ask about without an answer;
    what is left of the sessions' room goes to topics with one holder, which are not asked.
    """
    rng = random.Random(f"{id}/plan")
    people = tuple(rng.sample(language.names, rng.randint(*level.people)))
    meetings = _meetings(rng, level.sessions)
    event_dates = _event_dates(rng, id.split("/")[1], meetings[0])
    topics = _topics(rng, language, level.changes)
    room = [rng.randint(*level.facts) for _ in range(level.sessions)]
    told, values = _told(rng, language, topics, people, sum(room) - level.changes, event_dates)
    changes = _changes(rng, language, told, values, level.changes)
    sessions = _placed(rng, told, changes, room)
    if min(room) < 0:
        raise RuntimeError(f"stream: the facts of {id} do not fit into its sessions")
    for statements in sessions:
        rng.shuffle(statements)
    return Script(people, tuple(f"{_day(day)} {day.year}" for day in meetings), tuple(map(tuple, sessions)))


def _day(day: date) -> str:
    return f"{day.day} {_MONTHS[day.month - 1]}"


def _meetings(rng: random.Random, count: int) -> list[date]:
    meetings = [date(2024, 6, 1) + timedelta(days=rng.randrange(100))]
    for _ in range(count - 1):
        meetings.append(meetings[-1] + timedelta(days=rng.randint(3, 12)))
    return meetings


def _event_dates(rng: random.Random, split: str, first: date) -> Iterator[str]:
    """Days before the first meeting, split as values are: an event's date in one split is none of another.

    Train, dev and test share the twenty weeks before by the day of the month; new has November and December of last year.
    """
    if split == "new":
        past = [date(first.year - 1, 11, 1) + timedelta(days=day) for day in range(61)]
    else:
        third = SPLITS.index(split)
        past = [day for back in range(20, 141) if (day := first - timedelta(days=back)).day % 3 == third]
    return iter(rng.sample([_day(day) for day in past], len(past)))


def _topics(rng: random.Random, language: Language, changes: int) -> list[str]:
    """All topics in the order in which they get holders: those whose facts change first."""
    topics = rng.sample(sorted(language.topics), len(language.topics))
    # Each changeable topic has two holders at least, so half as many of them as there are changes suffice.
    changeable = [name for name in topics if language.topics[name].changed][: (changes + 1) // 2]
    return changeable + [name for name in topics if name not in changeable]


def _told(
    rng: random.Random, language: Language, topics: Sequence[str], people: Sequence[str], left: int, dates: Iterator[str]
) -> tuple[list[Statement], dict[str, Iterator[str]]]:
    """Statements that fill `left` places, and of each topic the values that are still free."""
    told: list[Statement] = []
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
            told.append(Statement(person, name, next(values[name]), next(dates) if weight == 2 else ""))
        left -= holders * weight
    return told, values


def _changes(
    rng: random.Random, language: Language, told: Sequence[Statement], values: dict[str, Iterator[str]], count: int
) -> list[tuple[Statement, Statement]]:
    """(what is replaced, what replaces it)."""
    can_change = [s for s in told if language.topics[s.topic].changed and sum(t.topic == s.topic for t in told) > 1]
    olds = rng.sample(can_change, count)
    return [(old, Statement(old.person, old.topic, next(values[old.topic]), change=True)) for old in olds]


def _placed(
    rng: random.Random, told: Sequence[Statement], changes: Sequence[tuple[Statement, Statement]], room: list[int]
) -> list[list[Statement]]:
    """The statements of each session; `room` is lessened by what they take.

    Events need two places in one session and changes need two sessions, so these go first; each to where most room is
    left, or sessions would fill up unevenly and leave no place.
    """
    olds = [old for old, _ in changes]
    groups: list[tuple[Statement, ...]] = [(s,) for s in told if s.date]
    groups += changes
    groups += [(s,) for s in told if not s.date and s not in olds]
    sessions: list[list[Statement]] = [[] for _ in room]
    for group in groups:
        roomiest = sorted(range(len(room)), key=lambda i: (-room[i], rng.random()))
        for statement, i in zip(group, sorted(roomiest[: len(group)]), strict=True):
            sessions[i].append(statement)
            room[i] -= len(list(statement.parts()))
    return sessions
