"""Tiny random models and made-up facts that several test files share."""

from pathlib import Path

import torch
import transformers
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
from tmem.models.experts import prepare

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
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
MORE = {  # what of a computation lies outside of the layers, or inside of them alone
    "granite": ("Granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.7,
                            "logits_scaling": 4.0}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2, **_ENDS}),
    "olmo2": ("Olmo2", _ENDS),
    "glm": ("Glm", {"head_dim": 16, **_ENDS}),
    "glm4": ("Glm4", {"head_dim": 16, **_ENDS}),
    "mistral+window": ("Mistral", {"head_dim": 16, "sliding_window": 24}),
    "qwen3+windows": ("Qwen3", {"head_dim": 16, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2}),
    "smollm3+windows": ("SmolLM3", {"use_sliding_window": True, "sliding_window": 24, "no_rope_layer_interval": 2, **_ENDS}),
    "gemma3_text": ("Gemma3", {
        "head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3}}}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48,
                               "norm_topk_prob": True}),
    "qwen3_moe+dense": ("Qwen3Moe", {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
                                     "mlp_only_layers": [1]}),
    "phi3": ("Phi3", {"partial_rotary_factor": 0.75, **_ENDS}),
    "phi3+window": ("Phi3", {"sliding_window": 24, **_ENDS}),
}  # fmt: skip


def model(family="llama", seed=0, dtype=torch.float32, **sizes):
    """A frozen decoder with random weights; `sizes` override the config."""
    torch.manual_seed(seed)
    network, config, extra = FAMILIES[family] if family in FAMILIES else _more(family)
    made = network(config(**{**_SIZES, **extra, **sizes})).to(dtype).eval().requires_grad_(False)
    prepare(made)
    return made


def _more(family):
    name, extra = MORE[family]
    config = {"Gemma3": "Gemma3Text"}.get(name, name)
    return getattr(transformers, f"{name}ForCausalLM"), getattr(transformers, f"{config}Config"), extra


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
