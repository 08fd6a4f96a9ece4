"""Tiny GGUF files, written by the rules of llama.cpp's converter from models that transformers runs."""

import math

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map

WORDS = ["<unk>", "<s>", "</s>", "<|im_end|>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "▁ab", "ab"]
KINDS = [2, 3, 3, 3, *[6] * 256, *[1] * 6]
SCORES = [0.0] * 260 + [-1.0, -2.0, -3.0, -0.2, -0.3, -0.1]


def bytes_vocabulary():
    """Byte-level tokens in GPT-2's spelling, three control tokens, and two merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    return ["<s>", "<|im_end|>", "<|eot_id|>", *sorted(ByteLevel.alphabet()), "he", "Ġhe"], ["h e", "Ġ he"]


def interleaved(weight, heads):
    """Rotary halves [heads, 2, D/2] as neighbours."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


# What converts, and GGUF's name of its architecture.
ARCHS = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "gemma": "gemma",
    "gemma3_text": "gemma3", "granite": "granite", "smollm3": "smollm3", "olmo2": "olmo2", "phi3": "phi3", "glm": "chatglm",
    "glm4": "glm4",
}  # fmt: skip
SWAPPED = ("llama", "granite", "smollm3")  # rotary pairs are neighbours


def tensors_of(model):
    """GGUF's tensors of a model, fp32 by name. The names are those of llama.cpp's package."""
    config, arch, out = model.config, arch_of(model), {}
    (kind,) = (kind for kind, name in MODEL_ARCH_NAMES.items() if name == arch)
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        values = weight.detach().float().numpy()
        if arch in SWAPPED and ("q_proj" in name or "k_proj" in name):
            values = interleaved(values, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if arch.startswith("gemma") and "norm" in name:
            values = values + 1
        if name.endswith("experts.gate_up_proj"):
            halves = zip(("gate_proj", "up_proj"), np.split(values, 2, 1))
            parts = {name.replace("gate_up_proj", f"{half}.weight"): values for half, values in halves}
        else:
            parts = {name if "experts" not in name else f"{name}.weight": values}
        for stem, values in parts.items():
            own = names.get_name(stem, (".weight", ".bias")) or stem.replace("lm_head", "output")
            out[own] = np.ascontiguousarray(values)
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        for kind in ("long", "short"):
            out[f"rope_factors_{kind}.weight"] = np.array(rope[f"{kind}_factor"], np.float32)
    return out


def arch_of(model):
    return ARCHS.get(model.config.model_type, model.config.model_type)


def fields_of(model):
    """What the converter states of a model, by key without the architecture's name."""
    c, family = model.config, model.config.model_type
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    fields = {
        "context_length": c.max_position_embeddings, "embedding_length": c.hidden_size, "block_count": c.num_hidden_layers,
        "feed_forward_length": c.intermediate_size, "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads, "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "rope.freq_base": float(rope["rope_theta"]), "attention.key_length": head, "attention.value_length": head,
        "rope.dimension_count": int(head * rope.get("partial_rotary_factor", 1)), "vocab_size": c.vocab_size,
    }  # fmt: skip
    if rope["rope_type"] == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "longrope":
        most = rope["original_max_position_embeddings"]
        factor = math.sqrt(1 + math.log(c.max_position_embeddings / most) / math.log(most))
        fields |= {"rope.scaling.attn_factor": factor, "rope.scaling.original_context_length": most}
    if family in ("mistral", "phi3"):
        fields["attention.sliding_window"] = c.sliding_window or 0
    if family == "granite":
        fields |= {"embedding_scale": c.embedding_multiplier, "residual_scale": c.residual_multiplier,
                   "logit_scale": c.logits_scaling, "attention.scale": c.attention_multiplier}  # fmt: skip
    if family == "gemma3_text":
        near = c.rope_parameters["sliding_attention"]
        fields |= {"attention.sliding_window": c.sliding_window, "rope.freq_base_swa": float(near["rope_theta"]),
                   "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in c.layer_types]}  # fmt: skip
    if family == "qwen3_moe":
        fields |= {"expert_count": c.num_experts, "expert_used_count": c.num_experts_per_tok,
                   "expert_feed_forward_length": c.moe_intermediate_size}  # fmt: skip
    return fields


def write(path, model, *, fields=(), tensors=(), kind="gpt2", without=(), top=(), kinds=None, template=None):
    """A GGUF file. fields: under the architecture's name, None takes one away; top: full keys; tensors: more of them;
    without: tensors left out; kinds: a quantisation of all matrices."""
    writer = GGUFWriter(path, arch_of(model))
    own = {f"{arch_of(model)}.{key}": value for key, value in {**fields_of(model), **dict(fields)}.items()}
    for key, value in {**own, **dict(top)}.items():
        if value is not None:
            _add(writer, key, value)
    _add_tokenizer(writer, kind, dict(top), template)
    for name, values in sorted({**tensors_of(model), **dict(tensors)}.items(), reverse=True):  # no order is promised
        if name not in without:
            if kinds is not None and values.ndim > 1 and "ffn_gate_inp" not in name:
                from gguf.quants import quantize

                writer.add_tensor(name, quantize(values, kinds), raw_dtype=kinds)
            else:
                writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_tokenizer(writer, kind, top, template):
    writer.add_tokenizer_model(kind)
    if kind == "gpt2":
        tokens, merges = bytes_vocabulary()
        if "tokenizer.ggml.pre" not in top:
            writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
        writer.add_token_merges(merges)
        ids = {"bos": 0, "eos": 1}
    else:
        writer.add_token_list(WORDS)
        writer.add_token_types(KINDS)
        writer.add_token_scores(SCORES)
        ids = {"unknown": 0, "bos": 1, "eos": 2}
    for role, index in ids.items():
        if f"tokenizer.ggml.{role}_token_id" not in top:
            writer.add_uint32(f"tokenizer.ggml.{role}_token_id", index)
    if template is not None:
        writer.add_chat_template(template)


Q8 = GGMLQuantizationType.Q8_0
