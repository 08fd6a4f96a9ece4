"""Retrieval over the lines of an episode: BM25, or embeddings (tmem.models.embed)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from ..episode import Episode, Question
from ..models.embed import Embedder

# What a chunk's first line is where it says something about all the others: `DATE: 8 May 2023`, `Date: ...`, `TITLE: Normans`,
# one capitalised word, a colon and at most 100 characters. Roles (`user: ...`) are lower case, and long lines are text.
HEADER = re.compile(r"[A-Z][A-Za-z]*: \S.{0,99}")
LABEL = re.compile(r"\s*[A-Z]+:\s*")  # `CONVERSATION:` below a header says nothing, and would be found for its word


def header(chunk: str) -> str:
    """The first line of a chunk where it says something about all the others; "" where it is one of them."""
    lines = [line for line in chunk.splitlines() if line.strip()]
    return lines[0] if len(lines) > 1 and HEADER.fullmatch(lines[0]) else ""


def headed(chunk: str, text: str) -> str:
    """A part of a chunk, with the chunk's header in front where it has one and `text` does not begin with it."""
    said = header(chunk)
    return text if not said or text.startswith(said) else f"[{said}] {text}"


class Lines:
    """Lines of text with an index over them.

    state: bytes of `text`, by default the lines, and of the embeddings where there are any; the words' index of BM25 follows
    from the text and is not counted. embedded: tokens that the embedding model read.
    """

    def __init__(self, lines: Sequence[str], embed: Embedder | None = None, text: str | None = None):
        self.lines = [line for line in lines if line.strip()]
        self.state = len(("\n".join(self.lines) if text is None else text).encode())
        self.embedded = 0
        self._embed, self._vectors, self._bm25 = embed, None, None
        if not self.lines:
            return
        if embed is not None:
            self._vectors = embed(self.lines)
            self.state += self._vectors.nbytes
            self.embedded = embed.tokens(self.lines)
            return
        import bm25s

        self._tokenize = lambda texts: bm25s.tokenize(texts, stopwords="en", show_progress=False)
        words = self._tokenize(self.lines)
        if any(words.ids):  # else there is nothing to find, and all lines are as good
            self._bm25 = bm25s.BM25()
            self._bm25.index(words, show_progress=False)

    @classmethod
    def of(cls, episode: Episode, embed: Embedder | None = None) -> Lines:
        """The lines of an episode, each with the header of its chunk where that has one (HEADER); headers are kept once, and
        a LABEL below them is none."""
        out, kept = [], []
        for chunk in episode.chunks:
            lines = [line for line in chunk.splitlines() if line.strip()]
            if said := header(chunk):
                lines = [line for line in lines if not LABEL.fullmatch(line)]
            kept += lines
            out += [f"[{said}] {line}" for line in lines[1:]] if said else lines
        return cls(out, embed, "\n".join(kept))

    def tokens(self, texts: Sequence[str]) -> int:
        """How many tokens of the texts the embedding model reads; 0 with BM25."""
        return 0 if self._embed is None else self._embed.tokens(texts)

    def ranked(self, question: str) -> list[int]:
        """Indices of lines, best first."""
        if not self.lines:
            return []
        if self._vectors is not None:
            return np.argsort(-(self._vectors @ self._embed([question])[0]), kind="stable").tolist()
        if self._bm25 is None:
            return list(range(len(self.lines)))
        found, _ = self._bm25.retrieve(self._tokenize([question]), k=len(self.lines), show_progress=False)
        return found[0].tolist()

    def finder(self, agent, budget: int) -> Callable[[Question], str]:
        """What to show beside a question: the best lines until `budget` tokens are used, in order of the text."""

        def find(question: Question) -> str:
            chosen, used = [], 0
            for index in self.ranked(question.text):
                used += agent.chat.count(self.lines[index])
                if used > budget and chosen:
                    break
                chosen.append(index)
            return agent.chat.clip("\n".join(self.lines[i] for i in sorted(chosen)), budget, keep="start")

        return find
