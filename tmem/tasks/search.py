"""Multi-objective search as in MEM1 (arXiv 2506.15841, MIT-MI/MEM1): several questions at once, a search engine, one answer.

What the agent says is a turn: `<think>`, then `<search>` or `<answer>`. What comes back is `<information>`. Nothing here
runs a model.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from .corpus import Document
from .metrics import squad, token_f1
from .multihop import Hop

__all__ = [
    "CONSTANT", "OPEN_ANSWER", "OPEN_SEARCH", "OPEN_TURN", "Objectives", "Said", "Step", "asked", "compared", "compose",
    "costs", "escape", "evidence", "information", "joined", "listing", "prompt", "read", "recall", "score", "summary",
]  # fmt: skip

# What a turn starts with: a small model left to itself does not keep to the form. When no turns are left, only an answer is.
OPEN_TURN, OPEN_SEARCH, OPEN_ANSWER = "<think>", "<search>", "<answer>"
CONSTANT = "no"  # what HotpotQA's questions are answered with most often: a score for asking about nothing

_EXAMPLE = """\
Questions (2): Which river flows through the city where Marie Curie was born?; Who wrote the novel Dracula?"""

_ANSWERED = "<answer>Vistula; Bram Stoker</answer>"

_PROMPT = f"""\
Answer several questions with the help of a search engine that finds encyclopedia articles.
Each of your turns has two parts. In <think> you note, question by question, what you know by now and what is missing. Then \
comes either <search> with one short query, or, once you know enough, <answer> with a short answer to every question, in \
their order and separated by semicolons. After a search you are shown <information> and take your next turn.

Example
{_EXAMPLE}
<think>1: I need the city where Marie Curie was born. 2: not known yet.</think>
<search>Marie Curie birthplace</search>
<information>
[4 turns left]
Doc 1 (Title: Marie Curie) Marie Curie was born in Warsaw in 1867. She studied physics in Paris.
</information>
<think>1: the city is Warsaw; which river flows through it? 2: not known yet.</think>
<search>Warsaw river</search>
<information>
[3 turns left]
Doc 1 (Title: Warsaw) Warsaw is the capital of Poland and lies on the Vistula.
</information>
<think>1: Vistula. 2: I need the writer of Dracula.</think>
<search>Dracula novel author</search>
<information>
[2 turns left]
Doc 1 (Title: Dracula) Dracula is a novel of 1897 by Bram Stoker, set in Transylvania and England.
</information>
<think>1: Vistula. 2: Bram Stoker. Both are known.</think>
{_ANSWERED}

Now it is your turn.
Questions ({{count}}): {{question}}"""

_DIRECT = f"""\
Answer every question in a few words, in their order and separated by semicolons.

Example
{_EXAMPLE}
{_ANSWERED}

Now it is your turn.
Questions ({{count}}): {{question}}"""

# Where every question is asked by itself afterwards. No example: whoever searches so was taught to.
_SEARCH = """\
Find articles that answer the questions, with a search engine. {turn}
{questions}"""
_QUERY = "Each of your turns is one query."
_NOTED = f"{_QUERY} Behind it you note in <think> every question that you know the answer to, with the answer."

_TAG = re.compile(r"<(/?)(think|search|answer)>", re.IGNORECASE)
_INFORMATION = re.compile(r"<information>.*?(?:</information>|\Z)", re.IGNORECASE | re.DOTALL)
_STRUCTURE = re.compile(r"<(?=\s*/?\s*(?:think|search|answer|information)\b)", re.IGNORECASE)
_SPACED = str.maketrans(dict.fromkeys(string.punctuation, " "))


@dataclass(frozen=True)
class Objectives:
    """Questions to be answered together, in one trajectory."""

    id: str
    hops: tuple[Hop, ...]

    @property
    def question(self) -> str:
        """All questions as one, each ending with a question mark."""
        return "; ".join(map(asked, self.hops))


def asked(hop: Hop) -> str:
    """A question with its question mark."""
    return hop.question if hop.question.endswith("?") else f"{hop.question}?"


def compose(hops: Sequence[Hop], n: int) -> list[Objectives]:
    """`n` consecutive questions of one file each, unshuffled. Those left over at a file's end are left out.

    Questions that their record asks together stay together. Raises ValueError where that is not `n` at once, where every
    file has fewer than `n`, or `n` is below 1.
    """
    if other := next((hop for hop in hops if hop.together not in (1, n)), None):
        raise ValueError(
            f"search: {other.source} asks {other.together} questions at once ({other.id[:60]!r}), not {n}; "
            f"give --objectives {other.together}."
        )
    sources = [list(some) for _, some in groupby(hops, key=lambda hop: (hop.source, hop.together))]
    most = max(map(len, sources), default=0)
    if not 1 <= n <= most:
        raise ValueError(f"search: {n} questions at a time out of {most}; expected from 1 to {most}")
    sets = [tuple(some[at : at + n]) for some in sources for at in range(0, len(some) - n + 1, n)]
    return [Objectives(f"{i}x{n}/{s[0].id}", s) for i, s in enumerate(sets)]


# what the agent sees --------------------------------------------------------------------------------------------------


def prompt(task: Objectives, *, direct: bool = False, each: bool = False, notes: bool = False) -> str:
    """The instruction with a worked example, and the questions; `direct`: to be answered without a search. each: only the
    search, without an example, as every question is asked by itself afterwards; `notes`: and a turn notes what is known."""
    if each:
        questions = "\n".join(f"{i}. {escape(asked(hop))}" for i, hop in enumerate(task.hops, 1))
        return _SEARCH.format(turn=_NOTED if notes else _QUERY, questions=questions)
    return (_DIRECT if direct else _PROMPT).format(count=len(task.hops), question=escape(task.question))


def escape(text: str) -> str:
    """Text on one line, in which no tag of a turn can be read."""
    return _STRUCTURE.sub("&lt;", " ".join(text.split()))


def listing(documents: Sequence[Document]) -> str:
    """One numbered line per document, with its title."""
    return "\n".join(f"Doc {i} (Title: {escape(d.title)}) {escape(d.text)}" for i, d in enumerate(documents, 1))


def evidence(task: Objectives) -> list[Document]:
    """The passages that the answers rest on, each once; none where the data name none."""
    return list(dict.fromkeys(Document(*passage) for hop in task.hops for passage in hop.passages))


def information(text: str, left: int) -> str:
    """The reply to a turn: how many turns are left, then `text`."""
    hint = f"{left} turns left" if left > 1 else "1 turn left" if left else "no turns left, answer now"
    return f"<information>\n[{hint}]\n{text}\n</information>"


# what the agent says --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """One turn, as it was understood: at most one of `query` and `answer` is not None."""

    think: str = ""
    query: str | None = None
    answer: str | None = None

    def __str__(self) -> str:
        """The turn in the form asked for, as later turns see it."""
        parts = {"think": self.think, "search": self.query, "answer": self.answer}
        return "\n".join(f"<{tag}>{escape(body)}</{tag}>" for tag, body in parts.items() if body is not None)


def read(text: str, notes: bool = False) -> Said:
    """Understand a generated turn; `notes`: its thought stands behind its query.

    Blocks do not nest: each ends at its closing tag, at the next tag, or, where none follows, at the end of its line (a
    thought at the end of the text). The first search or answer decides what the turn is; what follows was said without
    having seen a reply, only a corrected answer, the last one, stands. <information> that the model made up is not read.
    Text before the first tag counts as a thought where there is no other.
    """
    before, *rest = _TAG.split(_INFORMATION.sub("\n", text))
    opened = []
    for at in range(0, len(rest), 3):
        slash, tag, body = rest[at : at + 3]
        if not slash:
            closed = at + 3 < len(rest)
            whole = closed or tag.lower() == "think"
            opened.append((tag.lower(), body.strip() if whole else body.strip().split("\n", 1)[0].strip()))
    first = next((i for i, (tag, _) in enumerate(opened) if tag != "think"), len(opened))
    thoughts = opened[first:] if notes else opened[:first]
    think = next((body for tag, body in thoughts if tag == "think" and body), before.strip())
    if first == len(opened):
        return Said(think)
    if opened[first][0] == "search":
        return Said(think, query=opened[first][1])
    return Said(think, answer=[body for tag, body in opened if tag == "answer"][-1])


def joined(answers: Sequence[str]) -> str:
    """Answers to single questions as the one answer to all of them: `score` finds as many parts again."""
    return "; ".join(answer.replace(";", ",") for answer in answers)


# scores ---------------------------------------------------------------------------------------------------------------


def compared(said: str, answers: Sequence[str]) -> tuple[float, float]:
    """em and f1 of what was said to one question, in 0..1, as SQuAD compares: lower case, no punctuation, no articles; with the
    best of the right answers."""
    if not said:
        return 0.0, 0.0
    words = squad(said)
    return float(words in map(squad, answers)), max(token_f1(words.split(), squad(a).split()) for a in answers)


def score(task: Objectives, answer: str | None) -> dict[str, float]:
    """em, f1 and mem1_f1 of an answer, each a sum over the N objectives (0..N); `counted`: 1.0 if it had N parts.

    The answer is split at semicolons; where the count is not N everything is 0. em and f1 are those of `compared`. mem1_f1 is
    that of MEM1's eval.py: F1 over sets of words, punctuation a space, articles kept.
    """
    parts = [p.strip() for p in (answer or "").split(";")]
    counted = answer is not None and len(parts) == len(task.hops)
    pairs = [(part, hop.answers) for part, hop in zip(parts, task.hops) if part] if counted else []
    return {
        "em": sum((compared(*pair)[0] for pair in pairs), 0.0),
        "f1": sum((compared(*pair)[1] for pair in pairs), 0.0),
        "mem1_f1": sum((max(_set_f1(p, a) for a in answers) for p, answers in pairs), 0.0),
        "counted": float(counted),
    }


def _set_f1(prediction: str, gold: str) -> float:
    said, right = (set(text.lower().translate(_SPACED).split()) for text in (prediction, gold))
    return 2 * len(said & right) / (len(said) + len(right)) if said and right else 0.0


def recall(task: Objectives, titles: Sequence[str]) -> float | None:
    """Share of the articles that the answers rest on which a search found; None where the data name none."""
    wanted = {title for hop in task.hops for title in hop.evidence}
    return len(wanted & set(titles)) / len(wanted) if wanted else None


# costs ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One generation of a trajectory, for its log and its costs.

    kind: "turn", "write" (of what a search found: pairs, notes, a summary) or "answer" (asked for when no turns are left).
    text: what was said, the tag that opened it included. shown: the turn and its reply as later turns may see them. prompt:
    tokens read; history: those of them that stand beside the instruction and the questions (0 of a write). generated: tokens,
    those behind a closing tag too. left_out: earlier turns that the context had no room for.
    """

    kind: str
    text: str
    prompt: int
    history: int
    generated: int
    shown: str = ""
    query: str | None = None
    titles: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()  # question, answer
    left_out: int = 0


def costs(steps: Sequence[Step]) -> dict[str, float]:
    """Counts over a trajectory, in tokens where not said otherwise.

    peak: the longest prompt with what was generated after it, writes among them. mem1_peak: MEM1's, in which instruction and
    questions do not count, nor writes, nor turns after the tenth; in the model's own tokens, where MEM1 takes another
    model's. dependency: sum of prompt × generated. read, generated: sums over all steps. turns, searches, writes: how many.
    """
    turns = [s for s in steps if s.kind != "write"]
    return {
        "peak": max((s.prompt + s.generated for s in steps), default=0),
        "mem1_peak": max((s.history + s.generated for s in turns[:10]), default=0),
        "dependency": sum(s.prompt * s.generated for s in steps),
        "read": sum(s.prompt for s in steps),
        "generated": sum(s.generated for s in steps),
        "turns": len(turns),
        "searches": sum(s.query is not None for s in turns),
        "writes": len(steps) - len(turns),
    }


def summary(rows: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Means over the trajectories with a value, None where there is none; mem1_peak, as in MEM1, over those with em above 0."""
    if not rows:
        raise ValueError("search: no trajectory to sum up; expected at least one")
    having = {name: [r[name] for r in rows if r[name] is not None] for name in rows[0]}
    having["mem1_peak"] = [r["mem1_peak"] for r in rows if r["em"]]
    return {name: sum(values) / len(values) if values else None for name, values in having.items()}
