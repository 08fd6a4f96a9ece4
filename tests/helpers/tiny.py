"""Tiny random models and made-up facts that several test files share."""

from pathlib import Path

import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)  # fmt: skip

from tmem.episode import Pair

PLAIN = Path(__file__).with_name("plain.toml")  # the preset that those of tests extend

# Heads of 16: rows of keys start at multiples of 64 bytes, as in every real model. MKL rounds unaligned operands otherwise.
_SIZES = dict(
    vocab_size=160,
    hidden_size=64,
    intermediate_size=80,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    initializer_range=0.2,
    pad_token_id=0,
)
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
    "mistral": (MistralForCausalLM, MistralConfig, {"head_dim": 16, "sliding_window": None}),
    "gemma": (GemmaForCausalLM, GemmaConfig, {"head_dim": 32}),  # heads together wider than the model, as in Gemma 7B
}


def model(family="llama", seed=0, dtype=torch.float32, **sizes):
    """A frozen decoder with random weights; `sizes` override the config."""
    torch.manual_seed(seed)
    network, config, extra = FAMILIES[family]
    return network(config(**{**_SIZES, **extra, **sizes})).to(dtype).eval().requires_grad_(False)


class Letters:
    """A tokenizer of one token per character, enough for the loop: no template, `\\x00` ends an answer."""

    chat_template = None
    eos_token, eos_token_id = "\x00", 0
    bos_token = None

    def __call__(self, text, add_special_tokens=False, split_special_tokens=False, verbose=True):
        return {"input_ids": [min(ord(c), 159) for c in text]}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(i) for i in ids if not (skip_special_tokens and i == 0))


def pairs(n, tag=""):
    """n pairs of different lengths, so that they fall into several length buckets."""
    return [Pair(f"what is {tag}{'x' * (3 * i)}{i}?", f"a{i}{'y' * (i % 3)}") for i in range(n)]
