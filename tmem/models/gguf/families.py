"""How GGUF writes each family, as llama.cpp's converter does: names of tensors, and what it changes about weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

# Hugging Face's name of a weight by GGUF's. Embedding, norm and head stand alone, the rest in every block.
ALONE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_QKV = tuple(_BLOCK[part] for part in ("attn_q", "attn_k", "attn_v"))
_GATE_UP = {"ffn_up": "mlp.gate_up_proj"}


@dataclass(frozen=True)
class Family:
    """What llama.cpp's files of one architecture are.

    model    Hugging Face's `model_type`
    block    names in a block: of one weight, or of several in whose place one tensor stands, one under the other. Tensors of
             one name are joined in the order of this table
    biases   the parts that may have biases by the configuration, "attn" and "ffn"
    swapped  rotary pairs are neighbours in the file, and halves of a head in Hugging Face's weights
    shift    what is added to the weights of norms
    partial  positions may turn a part of a head
    heads    whether heads may be of another length than the width over their number
    """

    model: str
    block: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    biases: tuple[str, ...] = ("attn",)
    swapped: bool = False
    shift: int = 0
    partial: bool = False
    heads: bool = False

    def places(self, part: str) -> tuple[str, ...]:
        """Hugging Face's names, within a block, of GGUF's tensor; none: it has no place."""
        found = self.block.get(part, _BLOCK.get(part, ()))
        return (found,) if isinstance(found, str) else found

    def rank(self, part: str) -> int:
        """Where a tensor stands among those that are joined."""
        return [*self.block].index(part) if part in self.block else -1


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family("llama", biases=("attn", "ffn"), swapped=True, heads=True),
        "qwen2": Family("qwen2", biases=()),
        "qwen3": Family("qwen3", heads=True),
        "qwen3moe": Family(
            "qwen3_moe",
            {
                "ffn_gate_inp": "mlp.gate",
                "ffn_gate_exps": "mlp.experts.gate_up_proj",
                "ffn_up_exps": "mlp.experts.gate_up_proj",
                "ffn_down_exps": "mlp.experts.down_proj",
            },
            heads=True,
        ),
        "gemma": Family("gemma", shift=1, heads=True),
        "gemma3": Family(
            "gemma3_text",
            {
                "post_attention_norm": "post_attention_layernorm",
                "ffn_norm": "pre_feedforward_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
            },
            shift=1,
            heads=True,
        ),
        "granite": Family("granite", biases=("attn", "ffn"), swapped=True),
        "smollm3": Family("smollm3", biases=("attn", "ffn"), swapped=True),
        "olmo2": Family(
            "olmo2",
            {
                "attn_norm": (),
                "ffn_norm": (),
                "post_attention_norm": "post_attention_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
            },
        ),
        "phi3": Family(
            "phi3",
            {**dict.fromkeys(("attn_qkv", "attn_q", "attn_k", "attn_v"), "self_attn.qkv_proj"), **_GATE_UP},
            biases=(),
            partial=True,
        ),
        "chatglm": Family("glm", {"attn_qkv": _QKV, **_GATE_UP}, partial=True, heads=True),
        "glm4": Family(
            "glm4",
            {
                "attn_qkv": _QKV,
                **_GATE_UP,
                "post_attention_norm": "post_self_attn_layernorm",
                "post_ffw_norm": "post_mlp_layernorm",
            },
            partial=True,
            heads=True,
        ),
    }
)
"""By GGUF's name of the architecture. Mistral's files call themselves llama, which computes the same but for the window."""
