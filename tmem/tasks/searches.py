"""search: several questions at once and a search engine, for training and for its held-out evaluation.

A question belongs to train, dev or test by a hash of its words. An episode asks one question or several of its split, and its
scene is that of search_scene.py.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import partial

from ..episode import Episode, Question
from ..words import normalise
from . import corpus, mixture, multihop, search
from .multihop import Hop
from .search import Objectives
from .search_scene import SearchScene, engine
from .task import Environment

__all__ = ["MEMORIES", "SPLITS", "Searches", "side"]

SPLITS = {"train": 60, "dev": 20, "test": 20}  # per cent of the questions: their files are small

# What the turns of a method are like, as its State has it (tmem.methods).
MEMORIES = {"tmem": {}, "mem1": {"stays": True}, "full": {"stays": True, "every": True}}


class Searches(Environment):
    """Questions of several files, mixed by weight.

        data        "FILE" or "FILE:WEIGHT" each, in a format of multihop.questions
        documents   files to search in; none: the questions' own contexts
        objectives  an episode asks 1 to so many questions, drawn at random
        turns       before the answer is asked for
        max_new     tokens of a turn
        each        every question is asked by itself when the search is over; else a turn answers them all
        method      whose turns they are: what was found leaves the context ("tmem"), or stays in the last turn ("mem1") or in
                    all ("full"), and there each question is asked beside it
        step        episodes of a training step at most; with it no question comes twice in an epoch, see tmem.tasks.mixture

    Raises FileNotFoundError, and ValueError for no data, a file of another format, or records that ask several questions.
    """

    def __init__(
        self, data: Sequence[str], documents: Sequence[str] = (), *, objectives: int = 1, turns: int = 3, max_new: int = 96,
        each: bool = False, method: str = "tmem", step: int = 1,
    ):  # fmt: skip
        self.objectives, self.turns, self.max_new, self.each, self.step = objectives, turns, max_new, each, step
        self.memory = MEMORIES[method]
        self.weights = mixture.weighted(data)
        if not self.weights:
            raise ValueError("search: no data; name files of questions with --data FILE or, in [train] of a preset, data.")
        self.held: dict[str, list[list[Hop]]] = {split: [[] for _ in self.weights] for split in SPLITS}
        for place, file in enumerate(self.weights):
            for hop in multihop.questions(file):
                if hop.together > 1:
                    raise ValueError(f"search: {file} asks {hop.together} questions at once; give a file of single questions.")
                self.held[side(hop.question)][place].append(hop)
        self.corpus = tuple(documents)
        self.find = engine(corpus.Index(corpus.documents(*(self.corpus or self.weights))))

    @property
    def files(self) -> list[str]:
        """What is read from files, each once."""
        return list(dict.fromkeys([*self.weights, *self.corpus]))

    @property
    def trained(self) -> list[str]:
        """Ids of the questions of train."""
        return [hop.id for file in self.held["train"] for hop in file]

    def require(self, *splits: str) -> None:
        """ValueError where one of `splits` has fewer questions than an episode may ask."""
        for split in splits:
            if sum(map(len, self.held[split])) < self.objectives:
                raise ValueError(
                    f"search: fewer than {self.objectives} questions of {', '.join(self.weights)} fall to {split}, which takes "
                    f"{SPLITS[split]} % of them by a hash of their words; give files of more questions."
                )

    def episode(self, key: str, split: str) -> Episode:
        """The next questions of a series in which files are mixed by weight; keys as in Passages.episode."""
        self.require(split)
        rng, held = random.Random(f"search/{split}/{key}"), self.held[split]
        series, first = mixture.place(key, self.step)
        drawn: dict[str, Hop] = {}
        for j in range(rng.randint(1, self.objectives)):
            file, item = mixture.drawn(
                [len(own) for own in held], list(self.weights.values()), f"{split}/{series}", first * self.objectives + j
            )
            drawn.setdefault(held[file][item].id, held[file][item])
        task = Objectives(f"search/{split}/{key}", tuple(drawn.values()))
        asked = [Question(f"{task.id}/{hop.id}", search.asked(hop), hop.answers, hop.source.stem) for hop in task.hops]
        return Episode(task.id, (), (), tuple(asked if self.each else ()), begin=partial(self._scene, task))

    def score(self, question: Question, answer: str) -> dict[str, float]:
        """em and f1, as in an evaluation; see tmem.tasks.search.compared."""
        return dict(zip(("em", "f1"), search.compared(answer, question.answers)))

    def _scene(self, task: Objectives, clip) -> SearchScene:
        return SearchScene(task, self.find, clip, turns=self.turns, max_new=self.max_new, each=self.each, **self.memory)


def side(question: str) -> str:
    """The split of a question."""
    number = int.from_bytes(hashlib.blake2b(normalise(question).encode(), digest_size=8).digest(), "big") % 100
    return [split for split in SPLITS for _ in range(SPLITS[split])][number]
