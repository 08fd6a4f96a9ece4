"""Writing: the prompts that ask for question/answer pairs, and the parser of what comes back.

One pair is two lines, `Q: ...` and `A: ...`. The paper asks for a JSON array (arXiv 2606.04536, appendix); two lines hold
the same content in about half the tokens, which is what writing costs.

A write is one reply that lists the pairs, or many replies to one prompt that hold a pair each, the answer first: a span of the
passage (see spans.py), then what it answers. Such replies know nothing of each other, and share the prompt, which is read once.
What they ask is then answered from the passage: a question tells apart what the span alone leaves open, and what the passage
does not answer is no pair.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..episode import Pair
from ..words import POLAR, content, identity, normalise
from .passages import absolute

_LIST = "Write each fact above as a question that names the person, and a short answer, on two lines:\nQ: question\nA: answer"
_KNOWN = "\nWhat will be asked later: "
DROPPED = ("malformed", "empty", "duplicates", "conflicts", "unanswered")  # why something that was written is no pair
RELUCTANT = 2.0  # nats by which an abstention must be likelier than what the passage says
ONE, ANSWER, QUESTION = "Write one answer and its question.", "A:", "Q:"  # of many replies: what asks for one, and its parts


def list_prompt(passage: str, known: Sequence[str] = ()) -> str:
    """The user turn that asks for all pairs of one passage. known: what will be asked, where that is
    known beforehand (the paper's protocol)."""
    return beside(passage, _LIST) + (_KNOWN + " ".join(known) if known else "")


def beside(passage: str, words: str) -> str:
    """The user turn that says something about a passage."""
    return f"{passage.strip()}\n\n{words}"


def render(pairs: Sequence[Pair]) -> str:
    """Pairs as the list that a writer should produce; `parse(render(p)).pairs == p` for well-formed pairs."""
    return "\n".join(f"Q: {p.question}\nA: {p.answer}" for p in pairs)


def render_one(pair: Pair) -> str:
    """A pair as one of many replies, the answer first."""
    return f"{ANSWER} {pair.answer}\n{QUESTION} {pair.question}"


@dataclass
class Written:
    """What one write produced and what was dropped from it, counted by reason."""

    pairs: list[Pair] = field(default_factory=list)
    malformed: int = 0  # a line that is no Q or A, a Q without A, an A without Q, a pair cut off by the token limit
    empty: int = 0
    duplicates: int = 0
    conflicts: int = 0  # one question with several answers: the last stands, later statements overwrite earlier ones
    unanswered: int = 0  # a question that the passage does not answer
    sure: dict[str, float] = field(default_factory=dict, compare=False, repr=False)  # of known questions, see `sureness`
    silent: list[str] = field(default_factory=list, compare=False, repr=False)  # known questions that it does not answer

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
    key = identity(pair.question)
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


def asked_of(answers: Sequence[str], texts: Sequence[str], finished: Sequence[bool]) -> Written:
    """Pairs of spans and the questions that were said to them: of equal questions the first.

    A question that its token limit cut off counts as malformed.
    """
    out = Written()
    found: dict[str, Pair] = {}
    for answer, text, whole in zip(answers, texts, finished, strict=True):
        question = first_line(text)
        if not whole:
            out.malformed += 1
        elif not normalise(question):
            out.empty += 1
        elif identity(question) in found:
            out.duplicates += 1
        else:
            found[identity(question)] = Pair(question, answer)
    out.pairs = list(found.values())
    return out


def answered(drawn: Written, texts: Sequence[str], unknown: str, passage: str, limit: int) -> Written:
    """Drawn pairs with what was answered to their questions from the passage; at most `limit`, a new answer before a known one.

    An abstention, and an answer that does not stand in the passage, are no pairs and count as unanswered. Of "yesterday" and
    its like the date is the answer, where the passage has one. Of an answer one
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
            by_answer.setdefault(key, []).append(Pair(pair.question, absolute(said, passage)))
    rounds = max(map(len, by_answer.values()), default=0)
    out.pairs = [pairs[j] for j in range(rounds) for pairs in by_answer.values() if j < len(pairs)][:limit]
    return out


def together(written: Sequence[Written]) -> Written:
    """Of several passages' writes one. Of one question in two of them the later answer stands, as in a list; of a known
    question the surest."""
    out = Written(**{kind: sum(getattr(w, kind) for w in written) for kind in DROPPED})
    found: dict[str, Pair] = {}
    count = sum(len(w.pairs) for w in written)
    for w in written:
        kept = surest(w, out.sure)
        out.conflicts += kept.conflicts - w.conflicts
        for pair in kept.pairs:
            _keep(out, found, pair, count)
        out.sure |= kept.sure
        out.silent += w.silent
    out.pairs = list(found.values())
    return out


def sureness(question: str, passage: str, logprobs: Sequence[float]) -> float:
    """How much speaks for what was answered to a known question from this passage, beside other passages' answers.

    Mean log-probability of the answer's tokens, plus the share of the question's words, of those that carry meaning, that stand
    in the passage. On 30 questions of a LoCoMo conversation of 49 passages the last answer had F1 0.05, the likeliest 0.20, the
    one that this takes 0.26, which is also what the right passage's own answer has.
    """
    asked = content(question)
    return sum(logprobs) / max(1, len(logprobs)) + len(asked & content(passage)) / max(1, len(asked))


def surest(written: Written, before: Mapping[str, float], unknown: str = "") -> Written:
    """A write without the answers to known questions for which an earlier answer, with the sureness `before`, is surer.

    unknown: what is learned for a known question that no passage has answered yet; "": nothing is.
    """
    beaten = {key for key, sure in written.sure.items() if before.get(key, -math.inf) > sure}
    out = dataclasses.replace(written, pairs=[p for p in written.pairs if identity(p.question) not in beaten])
    out.sure = {key: sure for key, sure in written.sure.items() if key not in beaten}
    out.conflicts += len(written.pairs) - len(out.pairs)
    if unknown:
        settled = {*before, *(identity(p.question) for p in written.pairs)}
        left = {key: q for q in written.silent if (key := identity(q)) not in settled}
        out.pairs += [Pair(question, unknown) for question in left.values()]
    return out


def stands(said: Sequence[tuple[str, float]], unknown: str, passage: str) -> int:
    """Which of several answers to one question from a passage is taken, of each its text and the log-probability of it all.

    The likeliest that stands in the passage. So does a yes or no, and an abstention, less `RELUCTANT`. Where none does, the
    likeliest. Greedy decoding follows the likeliest first token. All abstentions begin alike and answers do not, so an
    abstention may have the likeliest beginning without being likelier than an answer. `tools/writer_scores.py` says what this
    gains.
    """
    text, key = f" {normalise(passage)} ", normalise(unknown)
    worth = []
    for answer, logp in said:
        words = normalise(answer)
        abstains = words == key
        worth.append((abstains or words in POLAR or f" {words} " in text, logp - RELUCTANT * abstains))
    return max(range(len(said)), key=lambda k: worth[k])


def parse_answers(
    questions: Sequence[str], texts: Sequence[str], logprobs: Sequence[Sequence[float]], unknown: str, passage: str
) -> Written:
    """Pairs of known questions and what was answered to each from the passage, with the log-probabilities of its tokens.

    An abstention is no pair.
    """
    out = Written()
    found: dict[str, Pair] = {}
    for question, text, said_with in zip(questions, texts, logprobs, strict=True):
        said = first_line(text)
        if not normalise(said):
            out.empty += 1
        elif normalise(said) == normalise(unknown):
            out.unanswered += 1
            out.silent.append(question)
        else:
            _keep(out, found, Pair(question, absolute(said, passage)), len(questions))
            out.sure[identity(question)] = sureness(question, passage, said_with)
    out.pairs = list(found.values())
    return out


def first_line(text: str) -> str:
    """An answer proper: what stands before the first line break."""
    return text.split("\n", 1)[0].strip()
