"""Writing: the prompts that ask for question/answer pairs, and the parser of what comes back.

One pair is two lines, `Q: ...` and `A: ...`. The paper asks for a JSON array (arXiv 2606.04536, appendix); two lines hold
the same content in about half the tokens, which is what writing costs.

A write is one reply that lists the pairs, or many replies to one prompt that hold a pair each, the answer first: something of
the text is chosen, then what it answers. Such replies are drawn side by side, know nothing of each other, and share the
prompt, which is read once. What they ask is then answered from the passage: a question tells apart what a drawn answer may
have mistaken, and what the passage does not answer is no pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..episode import Pair
from ..words import normalise

_LIST = "Write each fact above as a question that names the person, and a short answer, on two lines:\nQ: question\nA: answer"
_KNOWN = "\nWhat will be asked later: "
DROPPED = ("malformed", "empty", "duplicates", "conflicts", "unanswered")  # why something that was written is no pair
ONE = "Write one answer and its question."  # of many replies


def list_prompt(passage: str, known: Sequence[str] = ()) -> str:
    """The user turn that asks for all pairs of one passage. known: see `prompts`."""
    return beside(passage, _LIST) + (_KNOWN + " ".join(known) if known else "")


def prompts(passage: str, replies: int, known: Sequence[str] = (), asked: Callable[[str], str] = str) -> list[str]:
    """The user turns of one passage's replies.

    replies  1: the reply lists the pairs; more: so many replies that hold one pair each
    known    what will be asked, where that is known beforehand (the paper's protocol). Then a pair's question is there
             already, and each of its replies is an answer from the text
    asked    words such a question
    """
    if replies == 1:
        return [list_prompt(passage, known)]
    return [beside(passage, asked(q)) for q in known] if known else [beside(passage, ONE)] * replies


def beside(passage: str, words: str) -> str:
    """The user turn that says something about a passage."""
    return f"{passage.strip()}\n\n{words}"


def render(pairs: Sequence[Pair]) -> str:
    """Pairs as the list that a writer should produce; `parse(render(p)).pairs == p` for well-formed pairs."""
    return "\n".join(f"Q: {p.question}\nA: {p.answer}" for p in pairs)


def render_one(pair: Pair) -> str:
    """A pair as one of many replies, the answer first."""
    return f"A: {pair.answer}\nQ: {pair.question}"


@dataclass
class Written:
    """What one write produced and what was dropped from it, counted by reason."""

    pairs: list[Pair] = field(default_factory=list)
    malformed: int = 0  # a line that is no Q or A, a Q without A, an A without Q, a pair cut off by the token limit
    empty: int = 0
    duplicates: int = 0
    conflicts: int = 0  # one question with several answers: the last stands, later statements overwrite earlier ones
    unanswered: int = 0  # a question that the passage does not answer

    @property
    def dropped(self) -> int:
        return sum(getattr(self, kind) for kind in DROPPED)


def parse(text: str, *, finished: bool = True, limit: int = 64) -> Written:
    """Read pairs out of generated text. `finished=False`: the text was cut off, so an unterminated last line is dropped.

    At most `limit` pairs are kept; later ones count as malformed.
    """
    out = Written()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not finished and lines:
        lines.pop()
        out.malformed += 1
    found: dict[str, Pair] = {}
    question: str | None = None
    for line in lines:
        kind, _, body = line.partition(":")
        body = body.strip()
        if kind == "Q":
            out.malformed += question is not None
            question = body
        elif kind == "A" and question is not None:
            if not normalise(question) or not normalise(body):
                out.empty += 1
            else:
                _keep(out, found, Pair(question, body), limit)
            question = None
        else:
            out.malformed += 1
    out.malformed += question is not None
    out.pairs = list(found.values())
    return out


def _keep(out: Written, found: dict[str, Pair], pair: Pair, limit: int) -> None:
    key = normalise(pair.question)
    if key in found:
        same = normalise(found[key].answer) == normalise(pair.answer)
        out.duplicates += same
        out.conflicts += not same
        if not same:
            found[key] = pair
    elif len(found) >= limit:
        out.malformed += 1
    else:
        found[key] = pair


def parse_many(texts: Sequence[str], finished: Sequence[bool]) -> Written:
    """Read the pairs out of many replies: of every question the first pair, in the order of the replies.

    A reply that its token limit cut off, or that is not an answer and its question, counts as malformed.
    """
    out = Written()
    found: dict[str, Pair] = {}
    for text, whole in zip(texts, finished, strict=True):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not whole or len(lines) != 2 or not (lines[0].startswith("A:") and lines[1].startswith("Q:")):
            out.malformed += 1
            continue
        pair = Pair(lines[1][2:].strip(), lines[0][2:].strip())
        if not normalise(pair.question) or not normalise(pair.answer):
            out.empty += 1
        elif normalise(pair.question) in found:
            out.duplicates += 1
        else:
            found[normalise(pair.question)] = pair
    out.pairs = list(found.values())
    return out


def answered(drawn: Written, texts: Sequence[str], unknown: str, passage: str, limit: int) -> Written:
    """Drawn pairs with what was answered to their questions from the passage; at most `limit`, a new answer before a known one.

    An abstention, and an answer that does not stand in the passage, are no pairs and count as unanswered. Of an answer one
    question is kept, then, as far as there is room, a second of each, and so on.
    """
    out = Written([], drawn.malformed, drawn.empty, drawn.duplicates, drawn.conflicts)
    by_answer: dict[str, list[Pair]] = {}
    for pair, text in zip(drawn.pairs, texts, strict=True):
        said = first_line(text)
        key = normalise(said)
        if not key or key == normalise(unknown) or f" {key} " not in f" {normalise(passage)} ":
            out.unanswered += 1
        else:
            by_answer.setdefault(key, []).append(Pair(pair.question, said))
    rounds = max(map(len, by_answer.values()), default=0)
    out.pairs = [pairs[j] for j in range(rounds) for pairs in by_answer.values() if j < len(pairs)][:limit]
    return out


def together(written: Sequence[Written]) -> Written:
    """Of several passages' writes one. Of one question in two of them the later answer stands, as in a list."""
    out = Written(**{kind: sum(getattr(w, kind) for w in written) for kind in DROPPED})
    found: dict[str, Pair] = {}
    pairs = [pair for w in written for pair in w.pairs]
    for pair in pairs:
        _keep(out, found, pair, len(pairs))
    out.pairs = list(found.values())
    return out


def parse_answers(questions: Sequence[str], texts: Sequence[str], unknown: str) -> Written:
    """Pairs of known questions and what was answered to each. An abstention is no pair."""
    out = Written()
    found: dict[str, Pair] = {}
    for question, text in zip(questions, texts, strict=True):
        said = first_line(text)
        if not normalise(said):
            out.empty += 1
        elif normalise(said) == normalise(unknown):
            out.unanswered += 1
        else:
            _keep(out, found, Pair(question, said), len(questions))
    out.pairs = list(found.values())
    return out


def first_line(text: str) -> str:
    """An answer proper: what stands before the first line break."""
    return text.split("\n", 1)[0].strip()
