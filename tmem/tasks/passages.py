"""passages: real text with questions that people asked of it, for training and for its held-out evaluation.

A file holds passages in one of the formats of `squad.passages`; a question may carry tags. By a hash of its document, the
article, story or conversation that its title names, a passage belongs to train, dev or test: all passages of a document are on
one side. A training episode is one passage or several, drawn from the files by their weights. It also asks what its passages
seem to answer and do not, see untold.py.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tmem.episode import Episode, Evidence, Pair, Question
from tmem.tasks import clbench, dates, mixture, parts, people, squad, stream
from tmem.tasks.left_out import LeaveOut
from tmem.tasks.records import Record, check_limit, draw
from tmem.tasks.squad import Passage
from tmem.tasks.task import Task
from tmem.tasks.untold import untold
from tmem.words import normalise

__all__ = ["PLAIN", "SPLITS", "STREAM", "Passages", "document", "episodes", "resolved", "sides", "swapped"]

SPLITS = {"train": 90, "dev": 5, "test": 5}  # per cent of the documents
PLAIN = "plain"  # the kind of a question without tags
STREAM = "stream"  # no file: sessions of generated conversations, in every split those of its own language
_STREAMS = {"train": 300, "dev": 20, "test": 20}  # conversations
_SOURCE = (
    "get train-v1.1.json from https://rajpurkar.github.io/SQuAD-explorer, or give a list of passages, "
    "{title, context, questions: [{question, answer}]}"
)
# What tells parts of a document apart: "Rhine [3]", "Rhine (3)", "Chat session 1 part 2", "wikipedia:37:10", "s03_e23_c01".
_PART = re.compile(
    r"(?:\s+\[[0-9]+\]|\s+\([0-9]+\)|(?:\s+(?:session|part|section|chapter) [0-9]+)+|[:_]c?[0-9]+)$", re.IGNORECASE
)


def episodes(
    path: str | Path | Sequence[str | Path],
    *,
    seed: int = 0,
    limit: int | None = None,
    split: str = "test",
    leave_out: LeaveOut | None = None,
) -> list[Episode]:
    """One episode for each passage of the files that is of `split`, in their order; at most `limit`, drawn by the seed.

    split: "train", "dev", "test", or "all" of files that nothing was trained on. Kind is a question's tags.
    Raises FileNotFoundError, and ValueError for a file of another format, an unknown split or a limit below 1.
    """
    check_limit("passages", limit, "passage")
    if split not in (*SPLITS, "all"):
        raise ValueError(f"passages: split is {split!r}; expected one of {', '.join(SPLITS)}, all.")
    read = squad.passages(path, "passages", _SOURCE, _kind, leave_out)
    kept = [(i, p) for i, (p, side) in enumerate(zip(read, sides(read))) if split in (side, "all")]
    made = [_episode(f"{i}/{p.title}", [p]) for i, p in kept]
    return [made[i] for i in draw([""] * len(made), limit, f"passages/{seed}")]


class Passages(Task):
    """Passages of several files, mixed by weight.

        data           "FILE" or "FILE:WEIGHT" each; "stream" instead of a file is sessions of tmem.tasks.stream
        step           episodes of a training step at most; with it no passage comes twice in an epoch, see tmem.tasks.mixture
        join           a stream has 1 to so many passages, drawn at random; their questions come after the last one
        cut_words      a longer passage is cut at its lines and sentences, see tmem.tasks.parts; 0: none
        swap_names     share of the training passages whose people are called otherwise, see tmem.tasks.people
        resolve_dates  "yesterday" as an answer becomes the day, where the passage begins with its session's date
        questions      that a training episode asks at most; its pairs are all of them; 0: all

    Raises FileNotFoundError, and ValueError for no data, CL-bench, a file of another format, or a weight that is none.
    """

    def __init__(
        self, data: Sequence[str], *, step: int = 1, join: int = 1, cut_words: int = 0, swap_names: float = 0.0,
        resolve_dates: bool = True, questions: int = 0,
    ):  # fmt: skip
        self.step, self.join, self.swap_names, self.questions = step, join, swap_names, questions
        self.weights = mixture.weighted(data)
        if not self.weights:
            raise ValueError(
                "passages: no data; name files of passages with --data FILE or, in [train] of a preset, data. The preset "
                "stream needs none."
            )
        for file in self.files:
            if clbench.is_clbench(file):
                raise ValueError(f"passages: {file}: {clbench.EVALUATION_ONLY}")
        read = [(squad.passages(file, "passages", _SOURCE, _kind) if file in self.files else []) for file in self.weights]
        self.held: dict[str, list[list[Passage]]] = {split: [[] for _ in read] for split in SPLITS}
        side = iter(sides([p for found in read for p in found]))
        for place, found in enumerate(read):
            for passage, split in zip(found, side):
                if split in SPLITS:
                    passage = resolved(passage) if resolve_dates else passage
                    self.held[split][place] += [p for p in parts.cut(passage, cut_words) if p.questions]
        if STREAM in self.weights:
            for split in SPLITS:
                cuts = [part for p in _sessions(split) for part in parts.cut(p, cut_words)]
                self.held[split][list(self.weights).index(STREAM)] = [p for p in cuts if p.questions]
        self.documents: dict[tuple[int, str], list[Passage]] = {}  # of training, by file and title
        for place, file in enumerate(self.held["train"]):
            for p in file:
                self.documents.setdefault((place, document(p.title)), []).append(p)

    @property
    def files(self) -> list[str]:
        """What is read from files."""
        return [name for name in self.weights if name != STREAM]

    def require(self, *splits: str) -> None:
        """ValueError where one of `splits` has no passage with a question."""
        for split in splits:
            if not any(self.held[split]):
                raise ValueError(
                    f"passages: no document of {', '.join(self.weights)} falls to {split}, which takes {SPLITS[split]} % of "
                    f"the documents by a hash of their titles; give files of more documents."
                )

    def episode(self, key: str, split: str) -> Episode:
        """The episode of this key: the next passages of a series in which files are mixed by weight.

        A key "series/step/i" is episode i of a step, a whole number one of a series without a name; any other key is a draw by
        itself. Names are swapped in training alone.
        """
        self.require(split)
        rng, held = random.Random(f"passages/{split}/{key}"), self.held[split]
        series, first = mixture.place(key, self.step)
        chosen, sizes, weights = [], [len(file) for file in held], list(self.weights.values())
        for j in range(rng.randint(1, self.join)):
            file, item = mixture.drawn(sizes, weights, f"{split}/{series}", first * self.join + j)
            passage = held[file][item]
            if split == "train":
                others = self.documents[file, document(passage.title)] if passage.title else []
                never = untold(passage, [p for p in others if p is not passage], rng)
                passage = replace(passage, questions=(*passage.questions, *never))
                passage = swapped(passage, rng) if rng.random() < self.swap_names else passage
            chosen.append(passage)
        episode = _episode(f"passages/{split}/{key}", chosen)
        if split != "train" or not 0 < self.questions < len(episode.questions):
            return episode
        asked = sorted(rng.sample(range(len(episode.questions)), self.questions))
        return replace(episode, questions=tuple(episode.questions[i] for i in asked))


def _sessions(split: str) -> list[Passage]:
    """Sessions of generated conversations in which something is told, each with a question for each fact."""
    out = []
    for number in range(_STREAMS[split]):
        episode = stream.episode(f"passages/{number}", split, 1 + number % len(stream.DIFFICULTIES))
        for i, (text, pairs) in enumerate(zip(episode.chunks, episode.pairs)):
            asked = tuple(Question(f"{number}/{i}/{j}", p.question, (p.answer,), STREAM) for j, p in enumerate(pairs))
            out += [Passage("", text, asked)] if asked else []
    return out


def document(title: str) -> str:
    """What a title says without the part of the document."""
    return _PART.sub("", title.strip())


def sides(passages: Iterable[Passage]) -> list[str]:
    """Of each passage the split that it belongs to, by a hash of its document, or of its text where it has no title.

    "" where the same text stands on another side too, under another title, and that side is nearer to train.
    """
    texts = [(p, normalise(p.text)) for p in passages]
    found = [_side(normalise(document(p.title).replace("_", " ")) or text) for p, text in texts]
    nearest: dict[str, str] = {}
    for split in SPLITS:
        for (_, text), side in zip(texts, found):
            if side == split:
                nearest.setdefault(text, split)
    return [side if nearest[text] == side else "" for (_, text), side in zip(texts, found)]


def _side(name: str) -> str:
    number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % 100
    held_out = [split for split in SPLITS if split != "train" for _ in range(SPLITS[split])]
    return held_out[number] if number < len(held_out) else "train"


def _kind(question: Record) -> str:
    """A question's tags."""
    return "+".join(question.each("tags", str, default=[])) or PLAIN


def resolved(passage: Passage) -> Passage:
    """The passage with dates for answers such as "yesterday", where its first line says when it was; both are right then."""
    at = dates.when(parts.dated(passage.text))
    if at is None:
        return passage

    def dated(question: Question) -> Question:
        date = dates.resolved(question.answers[0], at)
        return replace(question, answers=(date, *question.answers)) if date else question

    return replace(passage, questions=tuple(map(dated, passage.questions)))


def swapped(passage: Passage, rng: random.Random) -> Passage:
    """The passage with other people in it, in its title, its text, its questions and their answers alike."""
    said = [passage.title, passage.text, *(text for q in passage.questions for text in (q.text, *q.answers))]
    other = partial(people.renamed, names=people.swaps("\n".join(said), rng))

    def asked(question: Question) -> Question:
        evidence = tuple(replace(e, text=other(e.text)) for e in question.evidence)
        answers = tuple(dict.fromkeys(map(other, question.answers)))
        return replace(question, text=other(question.text), answers=answers, evidence=evidence)

    return Passage(other(passage.title), other(passage.text), tuple(map(asked, passage.questions)))


def _episode(id: str, passages: Sequence[Passage]) -> Episode:
    """Passages read one after another. Of questions in the same words the first one stands, for only it has one answer.

    Its pairs are the answers that a passage gives; a passage without pairs answers none.
    """
    pairs: list[tuple[Pair, ...]] = []
    asked: list[Question] = []
    met: set[str] = set()
    for chunk, passage in enumerate(passages):
        own = [q for q in passage.questions if len(passages) == 1 or normalise(q.text) not in met]
        met.update(normalise(q.text) for q in own)
        pairs.append(tuple(Pair(q.text, q.answers[0]) for q in own if q.category != "abstention"))
        prefix = f"{chunk}/" if len(passages) > 1 else ""
        asked += [replace(q, id=f"{prefix}{q.id}", evidence=_evidence(chunk, passage.text, q)) for q in own]
    return Episode(id, tuple(map(parts.chunk, passages)), tuple(pairs), tuple(asked))


def _evidence(chunk: int, text: str, question: Question) -> tuple[Evidence, ...]:
    found = parts.standing(text, question)
    return (Evidence(chunk, found),) if found else ()
