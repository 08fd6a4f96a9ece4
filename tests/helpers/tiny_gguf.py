"""Tiny GGUF files, written by the rules of llama.cpp's converter from models that transformers runs."""

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

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


NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def tensors_of(model):
    """GGUF's tensors of a model, fp32 by name."""
    config, arch, out = model.config, arch_of(model), {}
    for name, weight in model.named_parameters():
        values, (stem, suffix) = weight.detach().float().numpy(), name.rsplit(".", 1)
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            values = interleaved(values, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if arch == "gemma" and "norm" in name:
            values = values + 1
        stem = stem.replace("model.embed_tokens", "token_embd").replace("lm_head", "output")
        if stem.startswith("model.layers."):
            number, part = stem.removeprefix("model.layers.").split(".", 1)
            stem = f"blk.{number}.{NAMES[part]}"
        out[f"{stem.replace('model.norm', 'output_norm')}.{suffix}"] = np.ascontiguousarray(values)
    return out


def arch_of(model):
    return {"mistral": "llama"}.get(model.config.model_type, model.config.model_type)


def fields_of(model):
    """What the converter states of a model, by key without the architecture's name."""
    c = model.config
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    return {
        "context_length": c.max_position_embeddings, "embedding_length": c.hidden_size, "block_count": c.num_hidden_layers,
        "feed_forward_length": c.intermediate_size, "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads, "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "rope.freq_base": float(c.rope_parameters["rope_theta"]), "attention.key_length": head, "attention.value_length": head,
        "rope.dimension_count": head, "vocab_size": c.vocab_size,
    }  # fmt: skip


def write(path, model, *, fields=(), tensors=(), kind="gpt2", without=(), top=(), kinds=None, template=None):
    """A GGUF file. fields: under the architecture's name, None takes one away; top: full keys; tensors: more of them;
    without: tensors left out; kinds: a quantisation of all matrices."""
    writer = GGUFWriter(path, arch_of(model))
    own = {f"{arch_of(model)}.{key}": value for key, value in {**fields_of(model), **dict(fields)}.items()}
    for key, value in {**own, **dict(top)}.items():
        if value is not None:
            _add(writer, key, value)
    _add_tokenizer(writer, kind, dict(top), template)
    for name, values in {**tensors_of(model), **dict(tensors)}.items():
        if name not in without:
            if kinds is not None and values.ndim > 1:
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
