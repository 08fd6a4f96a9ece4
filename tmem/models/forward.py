"""Run a Hugging Face decoder in pieces.

All families share one shape: embed -> layers -> norm -> head. transformers' own modules run here as well, or their `pieces`,
and what they leave to their caller is in the table of `families`. Running the pieces ourselves allows three things that
`model(...)` does not: the frozen trunk below the adapted layers runs once per online update, logits are computed only where
there is a label, and what each token sees is said by the caller, so that a row's bits do not depend on its neighbours
(transformers looks for padding in the batch, and drops a mask that is all ones, which changes bits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import pieces
from .attention import choose
from .families import APART, FAMILIES, SLIDING, kinds, unlike
from .masks import Branches, Rule, shown
from .rope import positions as standing
from .rope import rotation

# One minibatch holds sequences of one bucket only, right-padded to it: a row's bits depend on its own bucket, never on
# the other rows. Buckets finer than powers of two waste fewer padded tokens.
_BUCKETS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
# An fp32 GEMM of M rows rounds the last M mod 4 rows otherwise than the rest while M < 12 (oneDNN and MKL on x86): batches
# and label lists are filled with dummy rows up to a multiple of this.
ROWS = 4


def bucket(length: int) -> int:
    """The padded length, in tokens, of a sequence of `length` tokens: by 16 up to 128, by 32 up to 256, then by 64."""
    for size in _BUCKETS:
        if length <= size:
            return size
    return -(-length // 64) * 64


def parts(model: nn.Module) -> nn.Module:
    """The decoder inside a causal LM: an object with `embed_tokens`, `layers`, `norm` and `rotary_emb`.

    Raises ValueError for a model that does not have this shape.
    """
    if (but := unlike(model.config)) is not None:
        raise ValueError(
            f"tmem runs models of the families {', '.join(FAMILIES)}; "
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


def layers(
    model: nn.Module,
    hidden: Tensor,
    positions: Tensor,
    mask: Tensor | Rule | None,
    *,
    start: int = 0,
    stop: int | None = None,
    cache: KVCache | None = None,
    by_pieces: bool = False,
    at: Tensor | None = None,
) -> Tensor:
    """Pass `hidden` [B, T, D] through decoder layers `start:stop`; `positions` int64 [1 or B, T].

    mask: the columns that every token sees, bool [1 or B, 1, T, L] or the rule that they follow; None: every row is one text
    from its beginning, padded on the right. They are those of its own text, in their order, itself last; layers with a sliding
    window see the last of these alone. Memory grows as T with a rule or None.
    by_pieces: layers without a cache go by their `pieces` where ops serve these, as in every pass over labels, with gradients
    or without; they have transformers' bits otherwise.
    at: int64 [L], places among the B·T tokens, whose states alone are given, [L, D]. By its pieces the last layer computes no
    others after its attention: its adapters see inputs [L, 1, K].
    Raises ValueError for a model that computes attention or experts otherwise, and for None behind what a cache holds.
    """
    decoder, config = parts(model), model.config
    of, rotaries = surroundings(model, hidden, positions, start=start, stop=stop)
    if mask is None and cache is not None and cache.length:
        raise ValueError(f"forward: the cache holds {cache.length} columns; mask must say which of these every token sees.")
    by_pieces = by_pieces and cache is None and pieces.serve(model, decoder.layers, hidden)
    dropout = model.training and bool(getattr(config, "attention_dropout", 0.0))
    attend_by = {
        kind: choose(hidden, mask, window(config, kind), cache is not None, by_pieces and not dropout) for kind in rotaries
    }
    own = decoder.layers[start:stop]
    for layer, kind in zip(own, of):
        if by_pieces and pieces.whole(layer, hidden.dtype):
            only, plus = at if layer is own[-1] else None, FAMILIES[config.model_type].norms
            hidden = pieces.run(layer, plus, hidden, rotaries[kind], attend_by[kind], only)
            if only is not None:
                return hidden[:, 0]
            continue
        hidden = layer(
            hidden,
            attention_mask=None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            position_embeddings=rotaries[kind],
            attend_by=attend_by[kind],
        )
    return hidden if at is None else hidden.flatten(0, 1).index_select(0, at)


def apart(model: nn.Module) -> bool:
    """Whether no text's bits depend on the others of its row, nor on its place there, in passes by pieces: where ops serve
    these on a CPU, and on a GPU, where none are promised."""
    decoder, some = parts(model), next(model.parameters())
    if some.is_cuda:
        return True
    return (
        pieces.serve(model, decoder.layers, some) and all(pieces.whole(layer, some.dtype) for layer in decoder.layers)
        and not (model.training and getattr(model.config, "attention_dropout", 0.0))
    )  # fmt: skip


def surroundings(
    model: nn.Module, hidden: Tensor, positions: Tensor, *, start: int = 0, stop: int | None = None
) -> tuple[list[str], dict[str, tuple[Tensor, Tensor]]]:
    """The kind of each of the layers, and of every kind the rotary embeddings (cos, sin).

    Raises ValueError for a model that computes attention or experts otherwise than `layers` does.
    """
    decoder, config = parts(model), model.config
    implementation = config._attn_implementation
    if implementation != "sdpa":
        raise ValueError(
            f"forward: the model computes attention by {implementation!r}, which reads masks otherwise; expected 'sdpa', "
            f"call model.set_attn_implementation('sdpa')."
        )
    family, of = FAMILIES[config.model_type], kinds(config)[start:stop]
    if family.experts and config._experts_implementation != APART:
        raise ValueError(
            f"forward: the model computes experts by {config._experts_implementation!r}, whose rounding depends on a row's "
            f"neighbours; call tmem.models.experts.prepare(model)."
        )
    return of, {kind: rotation(decoder, hidden, positions, kind) for kind in dict.fromkeys(of)}


def window(config, kind: str) -> int | None:
    """How many of the last tokens a layer of this kind sees; None: all."""
    return config.sliding_window if kind == SLIDING else None


def embed(model: nn.Module, ids: Tensor) -> Tensor:
    """Token ids int64 [B, T] -> embeddings [B, T, D]."""
    hidden, times = parts(model).embed_tokens(ids), FAMILIES[model.config.model_type].embeds
    return hidden if times is None else hidden * getattr(model.config, times)


def logits(model: nn.Module, hidden: Tensor, normed: bool = False, linear: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Last-layer states [..., D] -> fp32 (fp64 for an fp64 model) logits [..., V]: norm, unless they are `normed`, head,
    up-cast. linear: computes the head's product in place of the module."""
    out = head(model, hidden, normed, linear)
    return out if out.dtype == torch.float64 else out.float()


def head(model: nn.Module, hidden: Tensor, normed: bool = False, linear: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Last-layer states [..., D] -> logits [..., V] in the model's dtype."""
    hidden = hidden if normed else parts(model).norm(hidden)
    out, over = (linear or model.lm_head)(hidden), FAMILIES[model.config.model_type].divides
    return out if over is None else out / getattr(model.config, over)


class Below(NamedTuple):
    """Texts as the first layers compute them, before other rows of the same tokens go on from there.

    ids        int64 [B', T'], right-padded
    positions  int64 [B', T'], and so are the branches: see token_logits
    at         int64 [B, T]: where each of the other rows' tokens stands among the B'·T'
    layers     how many compute them so
    """

    ids: Tensor
    positions: Tensor
    branches: Tensor
    at: Tensor
    layers: int


def token_logits(
    model: nn.Module, ids: Tensor, rows: list[int], columns: list[int], positions: Tensor | None = None,
    branches: Tensor | None = None, below: Below | None = None, *, narrow: bool = False,
) -> Tensor:  # fmt: skip
    """Logits [len(rows), V], in the model's dtype, at positions (row, column) of right-padded `ids` int64 [B, T]; the head
    runs nowhere else.

    Of a row the tokens up to the last position asked for are its text.

    positions, branches  int64 [B, T]: where every token stands in its own text, and which one of the texts that share the
                         beginning of the row, branch 0, it belongs to; None: every row is one text
    below                the same tokens in other rows, for the first layers
    narrow               nor does the last layer after its attention: `layers` with `at`
    """
    length = ids.shape[1]
    if positions is None:
        ends = [1] * len(ids)
        for row, column in zip(rows, columns):
            ends[row] = max(ends[row], column + 1)
        positions = standing(model.config, ends, length, ids.device)
    mask = None if branches is None else Branches.counted(branches)
    at = torch.tensor([row * length + column for row, column in zip(rows, columns)], device=ids.device) if narrow else None
    if below is None:
        hidden, start = embed(model, ids), 0
    else:
        others, start = Branches.counted(below.branches), below.layers
        hidden = layers(model, embed(model, below.ids), below.positions, others, stop=start, by_pieces=True)
        hidden = hidden.flatten(0, 1).index_select(0, below.at.flatten()).unflatten(0, below.at.shape)
    hidden = layers(model, hidden, positions, mask, start=start, by_pieces=True, at=at)
    return head(model, hidden[rows, columns] if at is None else hidden)


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
                total = sources[0].new_empty(sum(map(len, sources)), sources[0].shape[1], out.capacity, sources[0].shape[3])
                total[:, :, out.length :] = 0
                for place, source in zip(total.split([len(s) for s in sources]), sources):
                    place[:, :, : out.length] = source
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
            self._kv[layer_idx] = (key.new_empty(shape), value.new_empty(shape))
            for kept in self._kv[layer_idx]:
                kept[:, :, self.length + key.shape[2] :] = 0
        end = self.length + key.shape[2]
        for kept, new in zip(self._kv[layer_idx], (key, value)):
            kept[:, :, self.length : end] = new
        keys, values = self._kv[layer_idx]
        return keys[:, :, : shown(end)], values[:, :, : shown(end)]

    def advance(self, columns: int) -> None:
        """Call once per forward pass, after every layer has written its `columns`."""
        self.length += columns


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
