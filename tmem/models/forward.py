"""Run a Hugging Face decoder in pieces.

Llama, Mistral, Qwen2, Qwen3 and Gemma share one shape: embed -> layers -> norm -> head. What sets Gemma apart, embeddings
times sqrt(D) and norms that scale by 1 + w, is inside transformers' own modules, which run here as well. Running the pieces
ourselves allows three things that `model(...)` does not: the frozen trunk below the adapted layers runs once per online
update, logits are computed only where there is a label, and the 4-D mask is always explicit, so that a row's bits do not
depend on its neighbours (transformers drops a mask that is all ones, which changes bits).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .attention import choose

# One minibatch holds sequences of one bucket only, right-padded to it: a row's bits depend on its own bucket, never on
# the other rows. Buckets finer than powers of two waste fewer padded tokens.
_BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256)
# An fp32 GEMM of M rows rounds the last M mod 4 rows otherwise than the rest while M < 12 (oneDNN and MKL on x86): batches
# and label lists are filled with dummy rows up to a multiple of this.
ROWS = 4
GROUP = 16  # columns of keys and values that attention sees together, see KVCache


# Families whose forward pass is what `embed`, `layers` and `logits` do; others scale logits or residuals (Gemma 2, Granite) or
# have layers of several kinds (Gemma 3).
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma")
ROPES = ("default", "linear", "yarn", "llama3")  # positions whose frequencies do not depend on what is in the batch
# Keys of relatives' configurations that change what is computed; the families' own code passes over them without a word.
_UNREAD = (
    "attn_logit_softcapping", "final_logit_softcapping", "logits_soft_cap", "partial_rotary_factor", "attention_multiplier",
    "embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "scale_emb", "scale_depth", "clip_qkv",
    "num_local_experts", "num_experts", "attention_chunk_size", "no_rope_layer_interval", "attn_temperature_tuning",
    "use_qk_norm", "use_parallel_residual", "alibi", "rope_interleaved",
)  # fmt: skip


def bucket(length: int) -> int:
    """The padded length, in tokens, of a sequence of `length` tokens: 16, 32, 48, 64, 96, 128, 192, 256, 320, ..."""
    for size in _BUCKETS:
        if length <= size:
            return size
    return -(-length // 64) * 64


def unlike(config) -> str | None:
    """What a configuration asks for that the functions here do not compute, "" for another family; None: nothing."""
    rope = getattr(config, "rope_parameters", None) or {}
    kind, window = rope.get("rope_type", "default"), getattr(config, "sliding_window", None)
    for key in ("quantization_config", "compression_config"):
        if (packed := getattr(config, key, None)) is not None:
            method = packed.get("quant_method") if isinstance(packed, dict) else getattr(packed, "quant_method", None)
            return f" with quantised weights ({key}: {method})"
    if window is not None:
        return f" with a sliding window of {window} tokens"
    if getattr(config, "use_bidirectional_attention", None):
        return " with bidirectional attention"
    if kind in ("dynamic", "longrope"):  # frequencies follow from the longest row: rows would not stand apart
        return f" with positions that depend on the batch's length (rope_type {kind!r})"
    if config.model_type not in FAMILIES:
        return ""
    if kind not in ROPES:
        return f" with positions by a rule that is not known (rope_type {kind!r})"
    for key in ("rope_theta", "factor"):
        if not (isinstance(rope.get(key, 1), (int, float)) and 0 < rope.get(key, 1) < float("inf")):
            return f" with {key} {rope[key]!r}, expected a number above 0"
    if apart := sorted(key for key, value in rope.items() if isinstance(value, dict)):
        return f" with positions by kind of layer (rope_parameters {apart[0]!r})"
    if kind == "default" and rope.get("factor", 1) != 1:
        return f" with positions scaled by {rope['factor']} and no rope_type that says how"
    if others := set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return f" with layers of another kind (layer_types {sorted(others)[0]!r})"
    for key in _UNREAD:
        value = getattr(config, key, None) or rope.get(key)
        if value is True or value and value != 1:
            return f" with {key} {value}, which its family's code does not read"
    return None


def parts(model: nn.Module) -> nn.Module:
    """The decoder inside a causal LM: an object with `embed_tokens`, `layers`, `norm` and `rotary_emb`.

    Raises ValueError for a model that does not have this shape.
    """
    if (but := unlike(model.config)) is not None:
        raise ValueError(
            f"tmem runs models of the families {', '.join(FAMILIES)} without sliding windows; "
            f"{type(model).__name__} is of family {model.config.model_type!r}{but}; choose another model."
        )
    decoder = getattr(model, "model", None)
    missing = [n for n in ("embed_tokens", "layers", "norm", "rotary_emb") if not hasattr(decoder, n)]
    if missing or not hasattr(model, "lm_head"):
        raise ValueError(
            f"tmem runs decoders built like Llama, Qwen or Gemma (model.embed_tokens, model.layers, model.norm, "
            f"model.rotary_emb, lm_head); {type(model).__name__} lacks {', '.join(missing) or 'lm_head'}."
        )
    return decoder


def causal_mask(length: int, device: torch.device | str = "cpu", columns: int | None = None) -> Tensor:
    """bool [1, 1, length, columns or length], True where a query (row) may attend to a key (column).

    Right padding needs nothing more: a real token never looks at a later pad.
    """
    return torch.ones(length, columns or length, dtype=torch.bool, device=device).tril()[None, None]


def continued_mask(before: Tensor, padded: int, length: int, columns: int) -> Tensor:
    """bool [B, 1, length, columns] for `length` more tokens after row b's first `before[b]` (int64 [B, 1]), which stand in
    `padded` columns: they are all seen, the new ones as far as they precede."""
    column = torch.arange(columns, device=before.device)
    new = torch.arange(padded, padded + length, device=before.device)[:, None]
    return ((column < before)[:, None] | ((column >= padded) & (column <= new)))[:, None]


def layers(
    model: nn.Module,
    hidden: Tensor,
    positions: Tensor,
    mask: Tensor,
    *,
    start: int = 0,
    stop: int | None = None,
    cache: KVCache | None = None,
) -> Tensor:
    """Pass `hidden` [B, T, D] through decoder layers `start:stop`; `positions` int64 [1 or B, T], `mask` bool 4-D."""
    decoder = parts(model)
    implementation = model.config._attn_implementation
    if implementation != "sdpa":
        raise ValueError(
            f"forward: the model computes attention by {implementation!r}, which reads masks otherwise; expected 'sdpa', "
            f"call model.set_attn_implementation('sdpa')."
        )
    rotary = decoder.rotary_emb(hidden, position_ids=positions)
    attend_by = choose(hidden, cache is not None)
    for layer in decoder.layers[start:stop]:
        hidden = layer(
            hidden,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            position_embeddings=rotary,
            attend_by=attend_by,
        )
    return hidden


def embed(model: nn.Module, ids: Tensor) -> Tensor:
    """Token ids int64 [B, T] -> embeddings [B, T, D]."""
    return parts(model).embed_tokens(ids)


def logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Last-layer states [..., D] -> fp32 (fp64 for an fp64 model) logits [..., V]: norm, head, up-cast."""
    out = head(model, hidden)
    return out if out.dtype == torch.float64 else out.float()


def head(model: nn.Module, hidden: Tensor) -> Tensor:
    """Last-layer states [..., D] -> logits [..., V] in the model's dtype."""
    return model.lm_head(parts(model).norm(hidden))


def branch_mask(branches: Tensor) -> Tensor:
    """bool [B, 1, T, T] of `branches` int64 [B, T]: a token attends to what precedes it on branch 0, the trunk, and its own."""
    keys, queries = branches[:, None, None, :], branches[:, None, :, None]
    return ((keys == 0) | (keys == queries)).tril()


def token_logits(
    model: nn.Module, ids: Tensor, rows: list[int], columns: list[int],
    positions: Tensor | None = None, branches: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Logits [len(rows), V], in the model's dtype, at positions (row, column) of right-padded `ids` int64 [B, T]; the head
    runs nowhere else.

    positions, branches  int64 [B, T]: where every token stands in its own text, and which one of the texts that share the
                         beginning of the row, branch 0, it belongs to; None: every row is one text
    """
    length = ids.shape[1]
    mask = causal_mask(length, ids.device) if branches is None else branch_mask(branches)
    positions = torch.arange(length, device=ids.device)[None] if positions is None else positions
    hidden = layers(model, embed(model, ids), positions, mask)
    return head(model, hidden[rows, columns])


class KVCache:
    """Keys and values of every layer while prompts are read, `[B, heads, capacity, head_dim]` per layer, allocated once.

    `update` is the only method that attention layers call; it fills columns in lockstep for all rows. Attention sees whole
    groups of 16 columns, the unwritten ones zero and masked: with other lengths the fp32 kernel's scratch rows are unaligned,
    and then a row's bits depend on which thread it falls to.
    """

    def __init__(self, capacity: int):
        self.capacity, self.length = shown(capacity), 0
        self._kv: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def together(cls, parts: Sequence[tuple[KVCache, Tensor]], capacity: int) -> KVCache:
        """The rows (int64 indices) of prefilled caches of one length, one after another."""
        out = cls(capacity)
        out.length = parts[0][0].length
        for layer in parts[0][0]._kv:
            kept = []
            for which in range(2):
                sources = [cache._kv[layer][which][rows, :, : cache.length] for cache, rows in parts]
                total = sources[0].new_zeros(sum(map(len, sources)), sources[0].shape[1], out.capacity, sources[0].shape[3])
                for place, source in zip(total.split([len(s) for s in sources]), sources):
                    place[:, :, : source.shape[2]] = source
                kept.append(total)
            out._kv[layer] = (kept[0], kept[1])
        return out

    def widened(self, rows: Tensor, capacity: int) -> KVCache:
        """`rows` (int64 indices, as often as wanted) of a prefilled cache, with `capacity` columns: the prefill goes on."""
        return self.together([(self, rows)], capacity)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """The keys and the values of a layer."""
        return self._kv[index]

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        if layer_idx not in self._kv:
            shape = (key.shape[0], key.shape[1], self.capacity, key.shape[3])
            self._kv[layer_idx] = (key.new_zeros(shape), value.new_zeros(shape))
        end = self.length + key.shape[2]
        for kept, new in zip(self._kv[layer_idx], (key, value)):
            kept[:, :, self.length : end] = new
        keys, values = self._kv[layer_idx]
        return keys[:, :, : shown(end)], values[:, :, : shown(end)]

    def advance(self, columns: int) -> None:
        """Call once per forward pass, after every layer has written its `columns`."""
        self.length += columns


def shown(length: int) -> int:
    """How many columns attention sees when `length` are written: the mask must be as wide."""
    return -(-length // GROUP) * GROUP


def filled(rows: int) -> int:
    """`rows` rounded up to a multiple of ROWS."""
    return -(-rows // ROWS) * ROWS


def pad(
    sequences: list[list[int]], length: int, fill: int = 0, device: torch.device | str = "cpu", *, dummies: bool = True
) -> Tensor:
    """Right-pad token lists to int64 [filled(len(sequences)), length], without dummy rows [len(sequences), length]."""
    out = torch.full((filled(len(sequences)) if dummies else len(sequences), length), fill, dtype=torch.int64)
    for row, ids in zip(out, sequences):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return out.to(device)
