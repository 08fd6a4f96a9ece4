"""The Hugging Face configuration that a GGUF file's header states."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..families import FULL, SLIDING
from .families import FAMILIES
from .file import Contents
from .rope import rope_of
from .said import Said, short

_BIASES = {"attn": "attention_bias", "ffn": "mlp_bias"}  # of the parts of a block
# llama.cpp's values where a Gemma 3 states none.
_EVERY, _NEAR_THETA = 6, 10000.0
_LARGEST = 62  # blocks of the one Gemma 3 whose attention is scaled by another length than its heads'


def config_of(contents: Contents):
    """Raises ValueError for what no model of the family computes."""
    from transformers import CONFIG_MAPPING

    kind, name = contents.fields.get("general.type", "model"), contents.fields.get("general.architecture")
    if kind != "model":
        raise ValueError(f"it holds no model (general.type is {kind!r}); give the model's own file.")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise ValueError(f"its architecture is {name!r}, expected {', '.join(FAMILIES)}; choose another model.")
    said = Said(contents.fields, name)
    embedding = contents.tensors.get("token_embd.weight")
    if embedding is None:
        raise ValueError("token_embd.weight, the embedding, is not in it; get the file anew.")
    heads, hidden = said.size("attention.head_count"), said.size("embedding_length")
    blocks = said.size("block_count")
    if blocks > len(contents.tensors):
        raise ValueError(f"it states {blocks} blocks and holds {len(contents.tensors)} tensors; get the file anew.")
    head = said.size("attention.key_length", hidden // heads)
    if said.size("attention.value_length", head) != head:
        raise ValueError(f"its keys have length {head} and its values another (attention.value_length); choose another model.")
    if not family.heads and head * heads != hidden:
        raise ValueError(f"its {heads} heads of {head} (attention.key_length) do not make up {hidden}; get it anew.")
    turned = said.size("rope.dimension_count", head)
    if turned > head or turned != head and not family.partial:
        raise ValueError(f"positions turn {turned} of {head} elements of a head (rope.dimension_count); choose another model.")
    if turned % 2:
        raise ValueError(f"positions turn {turned} elements of its heads, which do not turn in pairs; get the file anew.")
    rope = rope_of(said, contents, turned)
    if family.partial:
        rope["partial_rotary_factor"] = _share(turned, head)
    states = {
        "vocab_size": embedding.shape[0], "hidden_size": hidden, "num_hidden_layers": blocks, "num_attention_heads": heads,
        "num_key_value_heads": said.size("attention.head_count_kv", heads),
        "max_position_embeddings": said.size("context_length"),
        "rms_norm_eps": said.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope, "tie_word_embeddings": "output.weight" not in contents.tensors,
        **({"head_dim": head} if family.heads else {}),
        **{_BIASES[part]: any(_is_bias(n, part) for n in contents.tensors) for part in family.biases},
    }  # fmt: skip
    if states["num_key_value_heads"] > heads or heads % states["num_key_value_heads"]:
        raise ValueError(f"{heads} heads do not share {states['num_key_value_heads']} (attention.head_count_kv); get it anew.")
    model = family.model
    window = said.number("attention.sliding_window", 0)
    if model == "llama" and 0 < window < states["max_position_embeddings"]:
        model = "mistral"
        states = {key: value for key, value in states.items() if key not in _BIASES.values()}
    states |= _OF_FAMILY.get(model, _unwindowed)(said, states, head)
    if "intermediate_size" not in states:
        states["intermediate_size"] = said.size("feed_forward_length")
    said.all_understood()
    return CONFIG_MAPPING[model](**states, architectures=None)


def _is_bias(name: str, part: str) -> bool:
    return name.endswith(".bias") and f".{part}_" in name


def _share(turned: int, head: int) -> float:
    """The least factor with which Hugging Face's int(head · factor) is `turned`, and not one less."""
    share = turned / head
    return share if int(head * share) == turned else math.nextafter(share, 1.0)


def _unwindowed(said: Said, states: Mapping, head: int) -> dict:
    window = said.number("attention.sliding_window", 0)
    if 0 < window < states["max_position_embeddings"]:
        raise ValueError(f"it attends to the last {window} tokens alone (attention.sliding_window); choose another model.")
    return {}


def _windowed(said: Said, states: Mapping, head: int) -> dict:
    """Every layer sees a window. One as long as the context hides nothing."""
    window = said.number("attention.sliding_window", 0)
    return {"sliding_window": int(window) if 0 < window < states["max_position_embeddings"] else None}


def _phi3(said: Said, states: Mapping, head: int) -> dict:
    rope = states["rope_parameters"]
    if rope["rope_type"] not in ("default", "longrope"):
        raise ValueError(f"it scales positions by {rope['rope_type']}, which a phi3 does not; choose another model.")
    original = rope.get("original_max_position_embeddings", states["max_position_embeddings"])
    return {**_windowed(said, states, head), "original_max_position_embeddings": original}


def _granite(said: Said, states: Mapping, head: int) -> dict:
    """What the file leaves out, or has as 0, is not scaled."""
    if said.get("rope.scaling.finetuned", True) is False:
        raise ValueError("its tokens have no positions (rope.scaling.finetuned is false); choose another model.")
    return {
        **_unwindowed(said, states, head),
        "embedding_multiplier": said.number("embedding_scale", 0) or 1.0,
        "residual_multiplier": said.number("residual_scale", 0) or 1.0,
        "logits_scaling": said.number("logit_scale", 0) or 1.0,
        "attention_multiplier": said.number("attention.scale", 0) or head**-0.5,
    }


def _smollm3(said: Said, states: Mapping, head: int) -> dict:
    """llama.cpp leaves out the positions of every fourth layer, which no key states."""
    return {**_unwindowed(said, states, head), "no_rope_layer_interval": 4}


def _gemma3(said: Said, states: Mapping, head: int) -> dict:
    rope = states["rope_parameters"]
    if rope["rope_type"] not in ("default", "linear"):
        raise ValueError(f"it scales positions by {rope['rope_type']}, and those of near layers not; choose another model.")
    blocks, heads = states["num_hidden_layers"], states["num_attention_heads"]
    near = {"rope_type": "default", "rope_theta": said.number("rope.freq_base_swa", _NEAR_THETA)}
    return {
        "rope_parameters": {FULL: rope, SLIDING: near},
        "sliding_window": said.size("attention.sliding_window"),
        "layer_types": _layers(said, blocks),
        "query_pre_attn_scalar": states["hidden_size"] // heads if blocks == _LARGEST else head,
    }


def _layers(said: Said, blocks: int) -> list[str]:
    """Which layers see a window: all but every nth, or those that the file lists."""
    pattern = said.get("attention.sliding_window_pattern", _EVERY)
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern >= 0:
        pattern = [pattern == 0 or (i + 1) % pattern != 0 for i in range(blocks)]
    if not isinstance(pattern, list) or len(pattern) != blocks or any(near not in (0, 1) for near in pattern):
        raise ValueError(
            f"attention.sliding_window_pattern is {short(pattern)}, expected a number or one for each of {blocks} blocks; "
            f"get the file anew."
        )
    return [SLIDING if near else FULL for near in pattern]


def _qwen3_moe(said: Said, states: Mapping, head: int) -> dict:
    used = said.size("expert_used_count")
    width = said.size("feed_forward_length")
    if said.get("expert_gating_func", 1) not in (0, 1):
        raise ValueError("its experts are not weighted by a softmax (expert_gating_func); choose another model.")
    return {
        **_unwindowed(said, states, head),
        "intermediate_size": width,
        "num_experts": said.size("expert_count"),
        "num_experts_per_tok": used,
        "moe_intermediate_size": said.size("expert_feed_forward_length", width // used),
        "norm_topk_prob": bool(said.get("expert_weights_norm", True)),
    }


_OF_FAMILY: Mapping[str, Callable[[Said, Mapping, int], dict]] = {
    "mistral": _windowed,
    "phi3": _phi3,
    "granite": _granite,
    "smollm3": _smollm3,
    "gemma3_text": _gemma3,
    "qwen3_moe": _qwen3_moe,
}
