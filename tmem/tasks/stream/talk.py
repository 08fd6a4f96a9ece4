"""The words of an episode: its script said as sessions of talk, as gold pairs and as questions."""

import random
from collections.abc import Callable, Iterator, Sequence

from tmem.episode import Evidence, Pair, Question
from tmem.tasks.stream.language import Chat, Language
from tmem.tasks.stream.script import UNKNOWN, Difficulty, Known, Script, Statement


class Deck:
    """Draws from a pool without repeating an entry before all were drawn."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.left: dict[tuple[str, ...], list[str]] = {}

    def draw(self, pool: tuple[str, ...]) -> str:
        left = self.left.setdefault(pool, [])
        if not left:
            left.extend(self.rng.sample(pool, len(pool)))
        return left.pop()


def _phrase(deck: Deck, pool: tuple[str, ...], statement: Statement) -> str:
    value = statement.value
    article = "an" if value[0] in "aeiou" else "a"
    return deck.draw(pool).format(name=statement.person, v=value, av=f"{article} {value}", date=statement.date)


# A session -------------------------------------------------------------------------------------------------------

_Other = Callable[..., str | None]  # somebody who is present and none of those named
_Place = tuple[int, int]  # (statement, place around it): lines are sorted by it, so that chit-chat stays where it belongs
# (place, speaker, text). Small talk has no speaker yet: whoever did not speak last.
_Line = tuple[_Place, str | None, str]
# (place, speaker, pool to draw from, whom it is addressed to): what may be added.
_Extra = tuple[_Place, str | None, tuple[str, ...], str]


def session(
    deck: Deck, language: Language, level: Difficulty, people: Sequence[str], when: str, statements: Sequence[Statement]
) -> tuple[str, list[str]]:
    """One session: an opening, the statements in order, and chit-chat between them up to a word count.

    Returns its text, and of each statement the line that says it.
    """
    rng, chat = deck.rng, language.chat
    present = _present(rng, people, statements)

    def other(*than: str) -> str | None:
        return rng.choice(rest) if (rest := [person for person in present if person not in than]) else None

    spoken: list[_Line] = [((-1, 0), rng.choice(present), deck.draw(chat.open))]
    extra: list[_Extra] = [((len(statements), 9), rng.choice(present), chat.close, "")]
    phrases = []
    for k, statement in enumerate(statements):
        teller, phrase = _stated(deck, language, level, statement, other)
        phrases.append(phrase)
        spoken.append(((k, 3), teller, phrase))
        extra += _around(k, statement.person, teller, chat, other)
    extra = _small_talk(rng, extra, chat, len(statements))
    spoken += _padding(deck, level, extra, sum(1 + len(text.split()) for _, _, text in spoken) + len(when.split()) + 1)
    lines = _lines(sorted(spoken, key=lambda line: line[0]), other)
    return "\n".join([f"Date: {when}", *lines]), [next(line for line in lines if phrase in line) for phrase in phrases]


def _present(rng: random.Random, people: Sequence[str], statements: Sequence[Statement]) -> list[str]:
    """Everybody about whom something is said, others up to two, and perhaps one more."""
    present = [person for person in people if any(s.person == person for s in statements)]
    absent = [person for person in people if person not in present]
    return present + rng.sample(absent, min(len(absent), max(2 - len(present), rng.randint(0, 1))))


def _stated(deck: Deck, language: Language, level: Difficulty, statement: Statement, other: _Other) -> tuple[str, str]:
    """Who states it, and in which words."""
    topic, subject = language.topics[statement.topic], statement.person
    if statement.change:
        teller, pool = subject, topic.changed
    elif deck.rng.random() < level.told_share:
        teller, pool = other(subject), topic.told
    else:
        teller, pool = subject, topic.said
    return teller, _phrase(deck, pool, statement)


def _around(k: int, subject: str, teller: str, chat: Chat, other: _Other) -> Iterator[_Extra]:
    """What others may say before and after statement k."""
    if teller == subject:
        yield (k, 2), other(subject), chat.lead, subject
    else:
        yield (k, 4), subject, chat.confirm, ""
    if listener := other(teller, subject):
        yield (k, 5), listener, chat.react, ""


def _small_talk(rng: random.Random, extra: list[_Extra], chat: Chat, statements: int) -> list[_Extra]:
    """`extra` with one line of small talk for each statement, shuffled, and with more small talk at the end."""
    places = rng.sample(gaps := [(k, place) for place in (0, 1, 6, 7) for k in range(statements)], len(gaps))
    small = [(place, None, chat.small, "") for place in places]
    mixed = [*extra, *small[:statements]]
    rng.shuffle(mixed)
    return mixed + small[statements:]


def _padding(deck: Deck, level: Difficulty, extra: Sequence[_Extra], size: int) -> Iterator[_Line]:
    """As much of `extra` as brings a session of `size` words to a drawn count of words."""
    fewest, most = level.words
    goal = deck.rng.randint(fewest, most)
    for place, speaker, pool, addressee in extra:
        if size >= goal:
            return
        text = deck.draw(pool).format(name=addressee)
        if (words := 1 + len(text.split())) <= most - size:
            yield place, speaker, text
            size += words


def _lines(spoken: Sequence[_Line], other: _Other) -> list[str]:
    """Lines of "Name: text", one for what one person says in a row."""
    turns: list[tuple[str, str]] = []
    for (_, speaker, text), (_, following, _) in zip(spoken, [*spoken[1:], ((), None, "")], strict=True):
        if speaker is None:
            last = turns[-1][0]
            speaker = other(last, following) or other(last)
        if turns and turns[-1][0] == speaker:
            turns[-1] = speaker, f"{turns[-1][1]} {text}"
        else:
            turns.append((speaker, text))
    return [f"{speaker}: {text}" for speaker, text in turns]


# Pairs and questions ---------------------------------------------------------------------------------------------


def gold_pairs(deck: Deck, language: Language, statements: Sequence[Statement]) -> Iterator[Pair]:
    """One pair for each part of each statement."""
    for statement in statements:
        topic = language.topics[statement.topic]
        for part, value in statement.parts():
            yield Pair(_phrase(deck, topic.pair if part == "value" else topic.pair_date, statement), value)


def question(
    deck: Deck, language: Language, level: Difficulty, known: Known, where: tuple[str, str, str], id: str, kind: str,
    evidence: tuple[Evidence, ...] = (),
) -> Question:  # fmt: skip
    """A question about `where`, (topic, part, person), as of what is known."""
    name, part, person = where
    topic = language.topics[name]
    of_value, of_date = (topic.ask, topic.ask_date) if level.oblique else (topic.plain, topic.plain_date)
    text = deck.draw(of_value if part == "value" else of_date).format(name=person)
    return Question(id, text, known.answers(*where), kind, known.intrusions(*where), name, evidence)


def questions(
    deck: Deck, language: Language, level: Difficulty, script: Script, evidence: dict[tuple[str, str], Evidence], id: str
) -> tuple[Question, ...]:
    """Changes first, up to half of what can be answered; then other facts of shared topics; then what nobody said."""
    rng = deck.rng
    statements = [s for session in script.sessions for s in session]
    known = Known(statements)
    changed = {(s.topic, "value", s.person) for s in statements if s.change}
    shared = [(topic, part) for (topic, part), holders in known.said.items() if len(holders) > 1]
    facts = [(*field, person) for field in shared for person in known.said[field]]
    never = [(*field, person) for field in shared for person in script.people if person not in known.said[field]]

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
        question(deck, language, level, known, where, f"{id}/q{i}", kind(where), stated(*where))
        for i, where in enumerate(asked)
    )
