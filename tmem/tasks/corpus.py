"""The articles that a search finds: any corpus file, and BM25 over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import multihop

__all__ = ["Document", "Index", "load"]


class Document(NamedTuple):
    """An article, or a passage of one."""

    title: str
    text: str


def load(*paths: str | Path) -> list[Document]:
    """The documents of all files, each once, in their order; documents without text are left out.

    A file (.json, or .jsonl with a record a line) holds {title: [sentences]} or records with title and text, with contents
    ("title\\ntext"), or those of a question file, whose contexts are then the corpus.
    Raises FileNotFoundError, and ValueError that names the file, the record and the field for anything else.
    """
    if not paths:
        raise ValueError("corpus: no file given; pass a corpus, or the question file to search its own contexts")
    out: dict[Document, None] = {}
    for path in paths:
        found = multihop.read(path, "corpus")
        if isinstance(found, dict):
            entries = [(multihop.clean(t, f"corpus: {path}"), multihop.joined(s, f"corpus: {path}: article {t!r}"))
                       for t, s in found.items()]  # fmt: skip
        elif isinstance(found, list):
            entries = [e for i, record in enumerate(found) for e in _entries(record, f"corpus: {path}: record {i}")]
        else:
            raise ValueError(f"corpus: {path} holds {multihop.kind(found)}, expected an object or a list of documents")
        documents = [Document(title.strip(), text.strip()) for title, text in entries if text.strip()]
        if not documents:
            raise ValueError(f"corpus: {path} has no document with text, expected at least one")
        out |= dict.fromkeys(documents)
    return list(out)


def _entries(record, where: str) -> list[tuple[str, str]]:
    if not isinstance(record, dict):
        raise ValueError(f"{where} is {multihop.kind(record)}, expected an object with title and text")
    if "paragraphs" in record or "context" in record:
        return multihop.contexts(record, where)
    if "contents" in record:
        title, _, text = multihop.clean(record["contents"], f"{where}: contents").partition("\n")
        return [(title.strip().strip('"'), text)]
    for field in ("title", "text"):
        if field not in record:
            raise ValueError(f"{where} has no {field}; expected title and text, contents, or a question with its context")
    return [tuple(multihop.clean(record[field], f"{where}: {field}") for field in ("title", "text"))]


class Index:
    """BM25 over titles and texts. Raises ValueError where no document has a word to search for."""

    def __init__(self, documents: Sequence[Document]):
        import bm25s

        self.documents = [Document(*d) for d in documents]
        self._tokenize = lambda texts: bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
        words = self._tokenize([f"{d.title} {d.text}" for d in self.documents]) if documents else []
        if not any(words):
            raise ValueError(f"corpus: none of {len(words)} documents has a word to search for; give a corpus with text")
        self._bm25 = bm25s.BM25()
        self._bm25.index(words, show_progress=False)

    def find(self, query: str, k: int = 3) -> list[Document]:
        """At most `k` documents that share a word with the query, best first, equal ones in the order of the corpus."""
        (words,) = self._tokenize([query])
        if not words:
            return []
        scores = self._bm25.get_scores(words)
        best = np.argsort(-scores, kind="stable")[:k]
        return [self.documents[i] for i in best if scores[i] > 0]
