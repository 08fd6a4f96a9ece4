"""A GGUF file as an ordinary Hugging Face folder, converted once and kept in the user's cache.

Whatever the file says about the computation is carried over or refused by its name: nothing is left to a default that the file
does not state, and no weight is drawn. The rules are those of llama.cpp, which writes and runs such files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...files.folders import atomic_folder, cache_folder
from .file import parts, read
from .tokenizer import tokenizer_of

# Counts changes of what `_write` makes, so that folders of an older recipe are not used.
_RECIPE = 3

# Families by GGUF's name of the architecture; Mistral's files call themselves llama, which computes the same.
_FAMILIES = ("llama", "qwen2", "qwen3", "gemma")
# Hugging Face's name of a weight by GGUF's. Embedding, norm and head stand alone, the rest in every block.
_ALONE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_BLOCK = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_FACTORS = "rope_freqs.weight"  # what Llama 3 divides the frequencies by
# Keys under the architecture's name that say nothing about the computation, or what is said elsewhere as well.
_NEUTRAL = (
    "context_length", "vocab_size", "rope.scaling.finetuned", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
)  # fmt: skip
# Values with which a key says nothing new; other keys do with 0.
_WITHOUT_EFFECT = {
    "attention.causal": (True,), "tensor_data_layout": ("Meta AI original pth",), "logit_scale": (1.0,),
    "rope.scaling.attn_factor": (1.0,), "rope.scaling.yarn_attn_factor": (1.0,), "rope.scaling.yarn_ext_factor": (0.0, -1.0),
}  # fmt: skip


def folder_of(file: Path) -> Path:
    """Where the conversion of `file` belongs; named by its content, so a changed file gets a new folder."""
    digest = hashlib.sha256(f"{_RECIPE}".encode())
    for part in parts(file):
        if part.is_file():
            digest.update(f":{part.stat().st_size}:".encode())
            with part.open("rb") as f:
                while block := f.read(1 << 22):
                    digest.update(block)
    return cache_folder() / "models" / f"{file.stem}-{digest.hexdigest()[:16]}"


def converted(file: Path) -> Path:
    """The folder with the converted model, made now if it is not there; safe under several processes at once."""
    with file.open("rb") as f:
        if f.read(4) != b"GGUF":
            raise ValueError("it does not begin with the letters GGUF; the file is of another kind or damaged.")
    folder = folder_of(file)
    if not (folder / "config.json").is_file():
        with atomic_folder(folder, "config.json", keep=True) as work:
            _write(file, work)
    return folder


def _write(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    contents = read(file)
    config = _config(contents)
    tokenizer = tokenizer_of(contents.fields, config.max_position_embeddings)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"it has {len(tokenizer)} tokens and embeds {config.vocab_size}; get the file anew.")
    for role in ("bos", "eos", "pad"):
        setattr(config, f"{role}_token_id", getattr(tokenizer, f"{role}_token_id"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    # A quantised matrix is off by far more than the bf16 it was made from; unquantised ones keep every bit in fp32.
    exact = any(t.kind in (0, 1) and len(t.shape) > 1 for t in contents.tensors.values())
    weights = _weights(contents, config, {n: tuple(p.shape) for n, p in model.named_parameters()})
    dtype = torch.float32 if exact else torch.bfloat16
    state = {name: torch.from_numpy(np.ascontiguousarray(values)).to(dtype) for name, values in weights}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.config.dtype = dtype
    _ends(model, contents.fields, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _ends(model, fields: dict, tokenizer) -> None:
    """The tokens that end a generation: the file may name one of a turn and one of a message beside that of a text."""
    also = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")]
    ends = list(dict.fromkeys(i for i in (tokenizer.eos_token_id, *also) if i is not None))
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends or None


def _weights(contents, config, expected: dict[str, tuple[int, ...]]):
    """(name, fp32 values) of every weight of the model. Raises ValueError that names what is absent, too much or misshapen."""
    places = {}
    for name in contents.tensors:
        if (place := _place(name, config)) is not None:
            places[place] = name
        elif name != _FACTORS:
            raise ValueError(f"tensor {name} has no place in a model of family {config.model_type}; choose another model.")
    if absent := sorted(expected.keys() - places.keys()):
        raise ValueError(f"{len(absent)} of the model's {len(expected)} weights are absent, such as {absent[0]}; get it anew.")
    if unread := sorted(places[p] for p in places.keys() - expected.keys()):
        raise ValueError(f"tensor {unread[0]} has no place in a model of family {config.model_type}; choose another model.")
    for place, name in places.items():
        if (shape := contents.tensors[name].shape) != expected[place]:
            raise ValueError(f"tensor {name} has the shape {shape}, the header asks for {expected[place]}; get the file anew.")
    for place, name in places.items():
        values = contents.tensors[name].values()
        if not np.isfinite(values).all():
            raise ValueError(f"tensor {name} holds values that are not finite; get the file anew.")
        if config.model_type == "llama" and (heads := _interleaved(name, config)):
            values = values.reshape(heads, values.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        if config.model_type == "gemma" and "norm" in name:
            values = values - 1  # the file has the factor 1 + w
        yield place, values


def _place(name: str, config) -> str | None:
    """Hugging Face's name of GGUF's tensor `name`."""
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        return None
    if stem in _ALONE:
        return f"{_ALONE[stem]}.{suffix}"
    match stem.split(".", 2):
        case ["blk", number, part] if part in _IN_BLOCK and number.isdecimal():
            return f"model.layers.{int(number)}.{_IN_BLOCK[part]}.{suffix}"
    return None


def _interleaved(name: str, config) -> int:
    """How many heads lie in a tensor whose rotary pairs are neighbours, as llama.cpp has them for llama; 0: it is no such."""
    if ".attn_q." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".attn_k." in name else 0


def _config(contents):
    """The Hugging Face configuration that the header states. Raises ValueError for what no model of the family computes."""
    from transformers import CONFIG_MAPPING

    kind, family = contents.fields.get("general.type", "model"), contents.fields.get("general.architecture")
    if kind != "model":
        raise ValueError(f"it holds no model (general.type is {kind!r}); give the model's own file.")
    if family not in _FAMILIES:
        raise ValueError(f"its architecture is {family!r}, expected {', '.join(_FAMILIES)}; choose another model.")
    said = _Said(contents.fields, family)
    embedding = contents.tensors.get("token_embd.weight")
    if embedding is None:
        raise ValueError("token_embd.weight, the embedding, is not in it; get the file anew.")
    heads, hidden = said.size("attention.head_count"), said.size("embedding_length")
    blocks = said.size("block_count")
    if blocks > len(contents.tensors):
        raise ValueError(f"it states {blocks} blocks and holds {len(contents.tensors)} tensors; get the file anew.")
    head = said.size("attention.key_length", hidden // heads)
    if head % 2:
        raise ValueError(f"its heads have {head} elements, which do not turn in pairs; get the file anew.")
    if said.size("attention.value_length", head) != head:
        raise ValueError(f"its keys have length {head} and its values another (attention.value_length); choose another model.")
    if (turned := said.size("rope.dimension_count", head)) != head:
        raise ValueError(f"positions turn {turned} of {head} elements of a head (rope.dimension_count); choose another model.")
    length = said.size("context_length")
    window = said.number("attention.sliding_window", 0)
    if 0 < window < length:
        raise ValueError(f"it attends to the last {window} tokens alone (attention.sliding_window); choose another model.")
    sizes = {
        "vocab_size": embedding.shape[0], "hidden_size": hidden, "num_hidden_layers": blocks, "num_attention_heads": heads,
        "num_key_value_heads": said.size("attention.head_count_kv", heads), "head_dim": head,
        "intermediate_size": said.size("feed_forward_length"), "max_position_embeddings": length,
        "rms_norm_eps": said.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(said, contents, head), "tie_word_embeddings": "output.weight" not in contents.tensors,
        "attention_bias": family != "qwen2" and any(_is_bias(n, "attn_") for n in contents.tensors),
        "mlp_bias": family == "llama" and any(_is_bias(n, "ffn_") for n in contents.tensors),
    }  # fmt: skip
    if sizes["num_key_value_heads"] > heads or heads % sizes["num_key_value_heads"]:
        raise ValueError(f"{heads} heads do not share {sizes['num_key_value_heads']} (attention.head_count_kv); get it anew.")
    said.all_understood()
    if family in ("qwen2", "gemma"):
        del sizes["mlp_bias"]
    if family == "qwen2":
        if head != hidden // heads:
            raise ValueError(f"its {heads} heads of {head} (attention.key_length) do not make up {hidden}; get it anew.")
        del sizes["attention_bias"], sizes["head_dim"]
    return CONFIG_MAPPING[family](**sizes, architectures=None)


def _is_bias(name: str, part: str) -> bool:
    return name.endswith(".bias") and f".{part}" in name


class _Said:
    """The metadata under the architecture's name; what was asked for is understood."""

    def __init__(self, fields: dict, family: str):
        self._family = family
        self._fields = {k.removeprefix(f"{family}."): v for k, v in fields.items() if k.startswith(f"{family}.")}
        self._asked = set(_NEUTRAL)

    def get(self, key: str, default=None):
        self._asked.add(key)
        return self._fields.get(key, default)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number that is not negative. Raises ValueError where there is another thing, or nothing and no default."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{self._family}.{key} is {_short(value)}, expected a number; get the file anew.")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number of 1 and more."""
        value = self.number(key, default)
        if not isinstance(value, int) or not 1 <= value < 1 << 31:
            raise ValueError(f"{self._family}.{key} is {value}, expected a whole number from 1; get the file anew.")
        return value

    def all_understood(self) -> None:
        """Raise ValueError for a key that was not asked for and is not without effect: it may change what is computed."""
        for key, value in self._fields.items():
            if key not in self._asked and value not in _WITHOUT_EFFECT.get(key, (0,)):
                stated = f"{self._family}.{key} = {_short(value)}"
                raise ValueError(f"it states {stated}, which tmem does not compute; choose another model.")


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _rope(said: _Said, contents, head: int) -> dict:
    """Hugging Face's `rope_parameters`."""
    theta = said.number("rope.freq_base", 10000.0)
    if theta < 1:
        raise ValueError(f"rope.freq_base is {theta}, expected 1 or more; get the file anew.")
    older = said.number("rope.scale_linear", 0.0)
    kind, factor = said.get("rope.scaling.type", "linear"), said.number("rope.scaling.factor", older)
    original = said.number("rope.scaling.original_context_length", 0)
    if extra := sorted(n for n in contents.tensors if n.startswith("rope_factors")):
        raise ValueError(f"its positions depend on the text's length ({extra[0]}, longrope); choose another model.")
    if _FACTORS in contents.tensors:
        if kind not in ("none", "llama3") and factor not in (0.0, 1.0):
            raise ValueError(f"it scales positions twice, by {_FACTORS} and rope.scaling.type {kind!r}; choose another model.")
        return _llama3(contents.tensors[_FACTORS].values().reshape(-1), theta, head, original)
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return {"rope_type": "default", "rope_theta": theta}
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if kind == "yarn" and factor >= 1:
        return _yarn(said, theta, factor, original)
    raise ValueError(f"it scales positions by rope.scaling.type {_short(kind)}, factor {factor:g}; choose another model.")


def _yarn(said: _Said, theta: float, factor: float, original: float) -> dict:
    if not original:
        raise ValueError("rope.scaling.original_context_length, which yarn starts from, is not in it; get the file anew.")
    if said.get("rope.scaling.yarn_ext_factor", -1.0) not in (1.0, -1.0):  # -1: what the type says
        raise ValueError("it mixes yarn with another scaling (rope.scaling.yarn_ext_factor); choose another model.")
    if said.number("rope.scaling.yarn_log_multiplier", 0.0):
        raise ValueError("it scales attention by a law of its own (rope.scaling.yarn_log_multiplier); choose another model.")
    scale = said.number("rope.scaling.attn_factor", 1.0) * said.number("rope.scaling.yarn_attn_factor", 1.0)
    return {
        "rope_type": "yarn", "rope_theta": theta, "factor": factor, "original_max_position_embeddings": int(original),
        "attention_factor": scale * (1 + 0.1 * math.log(factor)),
        "beta_fast": said.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": said.number("rope.scaling.yarn_beta_slow", 1.0),
    }  # fmt: skip


def _llama3(factors: np.ndarray, theta: float, head: int, original: float) -> dict:
    """The parameters of Llama 3's scaling that give these divisors of the frequencies [head / 2].

    Divisors: 1 for wavelengths below original / high, `factor` above original / low, and between them 1 / divisor is linear in
    1 / wavelength. The files tell the divisors alone. Raises ValueError where no such parameters give them.
    """
    if factors.shape != (head // 2,) or not (np.isfinite(factors).all() and (factors >= 1).all()):
        raise ValueError(f"{_FACTORS} has {factors.size} divisors for heads of {head}, or some below 1; get the file anew.")
    factor = float(factors.max())
    if factor == 1.0:
        return {"rope_type": "default", "rope_theta": theta}
    turns = theta ** -(np.arange(0, head, 2) / head) / (2 * math.pi)  # 1 / wavelength
    lengths: Sequence[float] = [original] if original else [8192, *(2**k for k in range(4, 25))]
    tried = [(1.0, 4.0, length) for length in lengths]
    ramp = (factors > 1) & (factors < factor)
    if ramp.sum() > 1:  # smooth = (original / wavelength - low) / (high - low)
        smooth = (1 / factors[ramp] - 1 / factor) / (1 - 1 / factor)
        slope, offset = np.polyfit(turns[ramp], smooth, 1)
        width = lengths[0] / slope
        tried.append((-offset * width, (1 - offset) * width, lengths[0]))
    for low, high, length in tried:
        if high > low > 0:
            smooth = ((length * turns - low) / (high - low)).clip(0, 1)
            if np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-4):
                return {
                    "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": float(low),
                    "high_freq_factor": float(high), "original_max_position_embeddings": int(length),
                }  # fmt: skip
    raise ValueError(f"{_FACTORS} divides positions by what is not Llama 3's law; choose another model.")
