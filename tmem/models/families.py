"""Families of decoders as facts, and what of a configuration is not computed.

transformers' modules run inside of the pieces of `forward`. A family is what they leave to whoever calls them one by one: what
is done to embeddings and logits, what each layer sees and where its tokens stand, and which keys of a configuration they read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

APART = "rows_apart"  # how experts are computed, see `experts`; the name that transformers knows it by
FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, as transformers names them
LONGROPE = "longrope"  # frequencies go by the length of a text, see `rope`
ROPES = ("default", "linear", "yarn", "llama3", LONGROPE)  # positions that depend on a row's own text alone

FUSED = MappingProxyType({"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")})
"""Projections that some families have as one linear layer, by its name."""


@dataclass(frozen=True)
class Family:
    """What one family's modules leave to their caller.

    embeds   the key of the configuration that embeddings are multiplied by
    divides  the key that logits are divided by
    windows  the layers that see the last `sliding_window` tokens alone: "none" of them, "all" where that is set, or "some",
             those that `layer_types` names
    ropes    whether each kind of layer has positions of its own
    fused    projections that are one linear layer, some of FUSED
    experts  whether layers choose among experts, which memories adapt and no training does
    norms    what is added to the weights of its RMSNorms, where `pieces` knows its layers; None: it does not
    reads    keys that the modules read, and other families' pass over
    """

    embeds: str | None = None
    divides: str | None = None
    windows: str = "none"
    ropes: bool = False
    fused: tuple[str, ...] = ()
    experts: bool = False
    norms: float | None = None
    reads: frozenset[str] = frozenset()

    @property
    def read(self) -> frozenset[str]:
        """All keys of `UNREAD` that are computed."""
        return self.reads | {self.embeds, self.divides} - {None}


_PARTIAL = frozenset({"partial_rotary_factor"})
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(norms=0.0),
        "mistral": Family(windows="all", norms=0.0),
        "qwen2": Family(windows="some", norms=0.0),
        "qwen3": Family(windows="some", norms=0.0),
        "qwen3_moe": Family(windows="all", experts=True, reads=frozenset({"num_experts", "num_local_experts"})),
        "gemma": Family(norms=1.0),
        "gemma3_text": Family(windows="some", ropes=True, norms=1.0),
        "granite": Family(
            embeds="embedding_multiplier",
            divides="logits_scaling",
            reads=frozenset({"attention_multiplier", "residual_multiplier"}),
        ),
        "smollm3": Family(windows="some", reads=frozenset({"no_rope_layer_interval"})),
        "olmo2": Family(),
        "glm": Family(fused=("gate_up_proj",), reads=_PARTIAL),
        "glm4": Family(fused=("gate_up_proj",), reads=_PARTIAL),
        "phi3": Family(windows="all", fused=("qkv_proj", "gate_up_proj"), reads=_PARTIAL),
    }
)
# Keys of configurations that change what is computed; families whose code does not read them pass over them without a word.
UNREAD = (
    "attn_logit_softcapping", "final_logit_softcapping", "logits_soft_cap", "partial_rotary_factor", "attention_multiplier",
    "embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "scale_emb", "scale_depth", "clip_qkv",
    "num_local_experts", "num_experts", "attention_chunk_size", "no_rope_layer_interval", "attn_temperature_tuning",
    "use_qk_norm", "use_parallel_residual", "alibi", "rope_interleaved",
)  # fmt: skip


def joined(targets: Sequence[str], layers: Collection[str]) -> tuple[str, ...]:
    """`targets` as a model with these linear layers has them: a fused one in the place of its projections.

    Raises ValueError where only some of these are targets.
    """
    of = {part: name for name, parts in FUSED.items() if name in layers for part in parts if part not in layers}
    for target in targets:
        if target in of and (lacks := [part for part in FUSED[of[target]] if part not in targets]):
            raise ValueError(
                f"targets: {target!r} is a part of {of[target]}, which is one linear layer; "
                f"name {' and '.join(lacks)} as well, or {of[target]}."
            )
    return tuple(dict.fromkeys(of.get(target, target) for target in targets))


def trainable(config, bits: str | None = None, *, adapter: bool = False) -> str | None:
    """The bits in which a model's weights lie beneath θ0; None: they are whole. config: of one of FAMILIES.

    bits: asked for. adapter: θ0 is an adapter, which alone is trained over few bits. Raises ValueError for a model that is not
    trained so.
    """
    bits = "nf4" if getattr(config, "quantization_config", None) is not None else bits
    if bits is not None and not adapter:
        raise ValueError(
            f'train: the model\'s weights are in {bits}, and few bits are not trained; set policy = "lora" in [train], which '
            f"trains an adapter over them, or train the whole ones."
        )
    if (most := outgrown(config)) is not None:
        raise ValueError(
            f"train: the model's positions change once a text is longer than {most} tokens (rope_type 'longrope'), and what "
            f"was said before is not computed again in the same way; tmem runs it frozen, train another model."
        )
    if FAMILIES[config.model_type].experts and not adapter:
        raise ValueError(
            f"train: the model is of family {config.model_type!r}, a mixture of experts, whose weights are not trained; set "
            f'policy = "lora" in [train], which trains an adapter on its linear layers, or train another model.'
        )
    return bits


def passed(layer, config) -> int:
    """How many weights of a decoder's layer (a torch module) a token passes: of experts, those that it chooses."""
    sizes = {name: weight.numel() for name, weight in layer.named_parameters()}
    for name, module in layer.named_modules():
        if hasattr(module, "in_features"):  # a weight in few bits has fewer elements than it stands for
            sizes[f"{name}.weight"] = module.in_features * module.out_features
    chosen = sum(size for name, size in sizes.items() if ".experts." in name)
    return sum(sizes.values()) - (chosen - chosen * config.num_experts_per_tok // config.num_experts if chosen else 0)


def kinds(config) -> list[str]:
    """The kind of every layer's attention, FULL or SLIDING. config: of one of FAMILIES."""
    windows = FAMILIES[config.model_type].windows
    if windows == "some":
        return list(config.layer_types)
    return [SLIDING if windows == "all" and config.sliding_window else FULL] * config.num_hidden_layers


def is_nf4(said: Mapping) -> bool:
    """Whether a `quantization_config` says that the weights are in 4 bits by bitsandbytes, of the kind nf4."""
    kind = said.get("quant_method"), said.get("bnb_4bit_quant_type"), said.get("load_in_4bit")
    return kind == ("bitsandbytes", "nf4", True)


def unlike(config) -> str | None:
    """What a configuration asks for that `forward` does not compute, "" for another family; None: nothing."""
    for key in ("quantization_config", "compression_config"):
        if (packed := getattr(config, key, None)) is not None:
            said = packed if isinstance(packed, dict) else packed.to_dict()
            if key != "quantization_config" or not is_nf4(said):
                return f" with quantised weights ({key}: {said.get('quant_method')})"
    if getattr(config, "use_bidirectional_attention", None):
        return " with bidirectional attention"
    ropes, family = getattr(config, "rope_parameters", None) or {}, FAMILIES.get(config.model_type)
    apart = {key: value for key, value in ropes.items() if isinstance(value, dict)}
    every = (ropes, *apart.values())
    for rope in every:
        if rope.get("rope_type") == "dynamic":  # the longest row sets all frequencies: rows do not stand apart
            return f" with positions that depend on the batch's length (rope_type {rope['rope_type']!r})"
    if family is None:
        return ""
    if (but := _windows(config, family)) is not None:
        return but
    if apart and not family.ropes:
        return f" with positions by kind of layer (rope_parameters {min(apart)!r})"
    for rope in apart.values() if family.ropes else (ropes,):
        if rope.get("rope_type") == LONGROPE and (but := _longrope(rope, config, family)) is not None:
            return but
        if (but := _rope(rope)) is not None:
            return but
    for said in (vars(config), *every):
        for key in UNREAD:
            value = said.get(key)
            if (value is True or value and value != 1) and key not in family.read:
                return f" with {key} {value}, which its family's code does not read"
    return None


def _windows(config, family: Family) -> str | None:
    """As `unlike`, of sliding windows and kinds of layers."""
    window, said = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window is not None and family.windows == "none":
        return f" with a sliding window of {window} tokens, which its family's code does not read"
    if window is not None and window < 1:
        return f" with a sliding window of {window} tokens, expected 1 or more"
    known = {FULL} | ({SLIDING} if window is not None else set())
    if family.windows == "some" and (others := set(said) - known):
        return f" with layers of another kind (layer_types {sorted(others)[0]!r})"
    if said is not None and (others := [kind for kind, computed in zip(said, kinds(config)) if kind != computed]):
        return f" with layers of another kind (layer_types {others[0]!r}), which its family's code does not read"
    return None


def _longrope(rope: Mapping, config, family: Family) -> str | None:
    """As `unlike`, of factors by the length of a text."""
    if family.ropes:
        return " with positions by kind of layer that depend on a text's length (rope_type 'longrope')"
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    count = int(head * rope.get("partial_rotary_factor", 1.0)) // 2
    for key in ("short_factor", "long_factor"):
        said = rope.get(key)
        if not (isinstance(said, (list, tuple)) and len(said) == count and all(_above_0(factor) for factor in said)):
            return f" with {key} {str(said)[:40]}, expected {count} numbers above 0"
    most = rope.get("original_max_position_embeddings")
    if not (_above_0(most) and int(most) == most):
        return f" with original_max_position_embeddings {most!r}, expected a number of tokens"
    return None


def outgrown(config) -> int | None:
    """The most tokens of a text whose positions are computed in one way, and those of all its tokens otherwise beyond; None: of
    any length in the same way."""
    ropes = getattr(config, "rope_parameters", None) or {}
    return int(ropes["original_max_position_embeddings"]) if ropes.get("rope_type") == LONGROPE else None


def _above_0(number) -> bool:
    return isinstance(number, (int, float)) and 0 < number < float("inf")


def _rope(rope: Mapping) -> str | None:
    """As `unlike`, of the positions of one kind of layer."""
    kind = rope.get("rope_type", "default")
    if kind not in ROPES:
        return f" with positions by a rule that is not known (rope_type {kind!r})"
    for key in ("rope_theta", "factor"):
        if not _above_0(rope.get(key, 1)):
            return f" with {key} {rope[key]!r}, expected a number above 0"
    if kind == "default" and rope.get("factor", 1) != 1:
        return f" with positions scaled by {rope['factor']} and no rope_type that says how"
    return None
