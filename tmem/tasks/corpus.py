"""The articles that a search finds: any corpus file, and an index over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..models.embed import Embedder
from . import multihop
from .records import Record, content, listed

__all__ = ["Document", "Index", "documents"]

_SOURCE = "give a .json or .jsonl corpus with `text` (and `title`) or `contents`, or a question file to search its contexts"


class Document(NamedTuple):
    """An article, or a passage of one."""

    title: str
    text: str


def documents(*paths: str | Path) -> list[Document]:
    """The documents of all files, each once, in their order; documents without text are left out.

    A file (.json, or .jsonl with a record a line) holds {title: [sentences]} or records with text and perhaps title, with
    contents ("title\\ntext", or text alone), or those of a question file, whose contexts are then the corpus.
    Raises FileNotFoundError, and ValueError that names the file, the record and the field for anything else.
    """
    if not paths:
        raise ValueError("corpus: no file given; pass a corpus, or the question file to search its own contexts")
    out: dict[Document, None] = {}
    for path in paths:
        documents = [Document(title.strip(), text.strip()) for title, text in _entries(path) if text.strip()]
        if not documents:
            raise ValueError(f"corpus: {path} has no document with text; expected at least one.")
        out |= dict.fromkeys(documents)
    return list(out)


def _entries(path: str | Path) -> Iterator[tuple[str, str]]:
    found, where = content(path, "corpus", _SOURCE), f"corpus: {path}"
    if isinstance(found, dict):
        for title, sentences in found.items():
            article = Record({"title": title, "sentences": sentences}, f"{where}, article {title!r}")
            yield article.get("title", str), multihop.joined(article, "sentences")
        return
    for record in listed(found, where, _SOURCE):
        question = multihop.home(record)
        if "paragraphs" in question or "context" in question:
            yield from multihop.contexts(question)
        elif multihop.is_question(record):
            raise ValueError(f"{record.where} is a question without articles; give those to search in with --corpus.")
        else:
            yield _article(record)


def _article(record: Record) -> tuple[str, str]:
    """Title and text of a document: of its fields, or of contents, whose first of several lines is the title."""
    title = record.get("title", str, default="")
    if "contents" not in record or "text" in record:
        return title, record.get("text", str)
    contents = record.get("contents", str)
    first, _, rest = contents.strip().partition("\n")
    named = first.strip().strip('"')
    if not rest or (title and title != named):
        return title, contents
    return named, rest


class Index:
    """A search over titles and texts: by words (BM25), or, with `embed`, by meaning (embeddings of all documents).

    embed: unit vectors [n, d] of n texts, see agent.retrieve.dense. Raises ValueError where nothing can be searched.
    """

    def __init__(self, documents: Sequence[Document], embed: Embedder | None = None):
        self.documents = [Document(*d) for d in documents]
        texts = [f"{d.title} {d.text}" for d in self.documents]
        self._scores = _by_words(texts) if embed is None else _by_meaning(texts, embed)

    def find(self, query: str, k: int = 3) -> list[Document]:
        """At most `k` documents, best first, equal ones in the order of the corpus; none for a query without a word.

        By words: of those that share a word with the query. By meaning: of those at an acute angle to it.
        """
        scores = self._scores(query)
        best = np.argsort(-scores, kind="stable")[:k]
        return [self.documents[i] for i in best if scores[i] > 0]


def _by_words(texts: Sequence[str]) -> Callable[[str], np.ndarray]:
    import bm25s

    def words(several: Sequence[str]) -> list[list[str]]:
        return bm25s.tokenize(several, stopwords="en", return_ids=False, show_progress=False)

    found = words(texts) if texts else []
    if not any(found):
        raise ValueError(f"corpus: none of {len(texts)} documents has a word to search for; give a corpus with text")
    index = bm25s.BM25()
    index.index(found, show_progress=False)

    def scores(query: str) -> np.ndarray:
        (asked,) = words([query])
        return index.get_scores(asked) if asked else np.zeros(len(texts))

    return scores


def _by_meaning(texts: Sequence[str], embed: Embedder) -> Callable[[str], np.ndarray]:
    if not texts:
        raise ValueError("corpus: none of 0 documents has a word to search for; give a corpus with text")
    vectors = embed(texts)
    return lambda query: vectors @ embed([query])[0] if query.strip() else np.zeros(len(texts))
