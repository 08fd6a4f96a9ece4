"""A tiny decoder with random weights, which takes the default model's place where a run only has to show that it runs."""

from __future__ import annotations

import torch

from . import loading

SIZES = (
    ("vocab_size", 160), ("hidden_size", 64), ("intermediate_size", 80), ("num_hidden_layers", 3),
    ("num_attention_heads", 4), ("num_key_value_heads", 2),
)  # fmt: skip


def default_or_tiny(quick: bool, device: str, dtype: torch.dtype) -> tuple:
    """The default model, or, `quick`, a tiny one of the default's vocabulary; and its tokenizer."""
    if not quick:
        return loading.load_model(device=device, dtype=dtype)
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = loading.load_tokenizer()
    sizes = {**dict(SIZES), "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True, initializer_range=0.1))
    return model.to(device, dtype).eval().requires_grad_(False), tokenizer
