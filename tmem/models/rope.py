"""Where tokens stand: the rotation of queries and keys.

With `longrope` all tokens of a text are rotated by the short factors while it is no longer than the model was first trained on,
and by the long ones beyond. transformers lets the longest row of a batch decide. Here every row decides for itself, so that its
bits do not depend on its neighbours. Keys that were kept are computed again once a text outgrows the short factors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .families import FAMILIES, outgrown


def positions(config, lengths: Sequence[int], width: int, device: torch.device | str = "cpu") -> Tensor:
    """int64 [1, width], or [rows, width] where a row's length matters: padding stands where the last of its tokens does."""
    at = torch.arange(width, device=device)[None]
    if outgrown(config) is None:
        return at
    return at.minimum(torch.tensor(lengths, device=device)[:, None] - 1)


def rotation(decoder: nn.Module, hidden: Tensor, positions: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """cos and sin [1 or B, T, R] in the dtype of `hidden`, for layers of a kind; positions int64 [1 or B, T].

    A row's largest position says how long its text is.
    """
    rotary, config = decoder.rotary_emb, decoder.config
    if (most := outgrown(config)) is None:
        return rotary(hidden, positions, *((kind,) if FAMILIES[config.model_type].ropes else ()))
    long = (positions.amax(-1, keepdim=True) >= most)[..., None]
    short_by, long_by = _frequencies(rotary, most, hidden.device)
    angles = positions[..., None].float() * torch.where(long, long_by, short_by)
    angles = torch.cat((angles, angles), -1)
    return tuple((wave * rotary.attention_scaling).to(hidden.dtype) for wave in (angles.cos(), angles.sin()))


def _frequencies(rotary: nn.Module, most: int, device: torch.device) -> Tensor:
    """[2, R / 2] of texts to `most` tokens and of longer ones, made once: a captured step may not copy from the host."""
    kept = vars(rotary).setdefault("_by_length", {})
    if device not in kept:
        with torch.inference_mode(False):
            both = [ROPE_INIT_FUNCTIONS["longrope"](rotary.config, "cpu", seq_len=n)[0] for n in (most, most + 1)]
            kept[device] = torch.stack(both).to(device)
    return kept[device]
