"""Writing: the prompt that asks for question/answer pairs, and the parser of what comes back.

One pair is two lines, `Q: ...` and `A: ...`. The paper asks for a JSON array (arXiv 2606.04536, appendix); two lines hold
the same content in about half the tokens, which is what writing costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..episode import Pair
from ..words import normalise

_PROMPT = (
    "{passage}\n\n"
    "Write each fact above as a question that names the person, and a short answer, on two lines:\n"
    "Q: question\nA: answer"
)
_KNOWN = "\nWhat will be asked later: {question}"


def write_prompt(passage: str, asked: str = "") -> str:
    """The user turn that asks for the pairs of one passage.

    asked: what will be asked, where that is known beforehand (the paper's protocol); usually it is not.
    """
    return _PROMPT.format(passage=passage.strip()) + (_KNOWN.format(question=asked) if asked else "")


def render(pairs: Sequence[Pair]) -> str:
    """Pairs as the text that a writer should produce; `parse(render(p)).pairs == p` for well-formed pairs."""
    return "\n".join(f"Q: {p.question}\nA: {p.answer}" for p in pairs)


@dataclass
class Written:
    """What one write produced and what was dropped from it, counted by reason."""

    pairs: list[Pair] = field(default_factory=list)
    malformed: int = 0  # a line that is no Q or A, a Q without A, an A without Q, a pair cut off by the token limit
    empty: int = 0
    duplicates: int = 0
    conflicts: int = 0  # one question with several answers: the last stands, later statements overwrite earlier ones

    @property
    def dropped(self) -> int:
        return self.malformed + self.empty + self.duplicates + self.conflicts


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
