"""Hugging Face's `rope_parameters` from what a GGUF file says about positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .file import Contents
from .said import Said, short

FACTORS = "rope_freqs.weight"  # what Llama 3 divides the frequencies by
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"  # the same of longrope, by the length of a text
TENSORS = (FACTORS, LONG, SHORT)


def rope_of(said: Said, contents: Contents, turned: int) -> dict:
    """turned: how many elements of a head positions turn. Raises ValueError for what is not computed."""
    theta = said.number("rope.freq_base", 10000.0)
    if theta < 1:
        raise ValueError(f"rope.freq_base is {theta}, expected 1 or more; get the file anew.")
    older = said.number("rope.scale_linear", 0.0)
    kind, factor = said.get("rope.scaling.type", "linear"), said.number("rope.scaling.factor", older)
    original = said.number("rope.scaling.original_context_length", 0)
    if kind == "longrope" or any(name in contents.tensors for name in (LONG, SHORT)):
        if kind not in ("none", "longrope") and factor not in (0.0, 1.0) or FACTORS in contents.tensors:
            raise ValueError(f"it scales positions twice, by {LONG} and another law; choose another model.")
        return {"rope_type": "longrope", "rope_theta": theta, **_longrope(said, contents, turned, original)}
    if FACTORS in contents.tensors:
        if kind not in ("none", "llama3") and factor not in (0.0, 1.0):
            raise ValueError(f"it scales positions twice, by {FACTORS} and rope.scaling.type {kind!r}; choose another model.")
        return _llama3(contents.tensors[FACTORS].values().reshape(-1), theta, turned, original)
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return {"rope_type": "default", "rope_theta": theta}
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if kind == "yarn" and factor >= 1:
        return _yarn(said, theta, factor, original)
    raise ValueError(f"it scales positions by rope.scaling.type {short(kind)}, factor {factor:g}; choose another model.")


def _longrope(said: Said, contents: Contents, turned: int, original: float) -> dict:
    """The file states the factor on cos and sin itself, which Hugging Face derives from the lengths where nothing is said."""
    if not original:
        raise ValueError("rope.scaling.original_context_length, which longrope starts from, is not in it; get the file anew.")
    found = {}
    for key, name in (("short_factor", SHORT), ("long_factor", LONG)):
        if name not in contents.tensors:
            raise ValueError(f"its positions depend on the text's length, and {name} is not in it; get the file anew.")
        factors = contents.tensors[name].values().reshape(-1)
        if len(factors) != turned // 2 or not (np.isfinite(factors).all() and (factors > 0).all()):
            raise ValueError(f"{name} has {len(factors)} divisors for {turned} elements, or some below 0; get the file anew.")
        found[key] = factors.tolist()
    return {
        **found,
        "original_max_position_embeddings": int(original),
        "attention_factor": said.number("rope.scaling.attn_factor", 1.0),
    }


def _yarn(said: Said, theta: float, factor: float, original: float) -> dict:
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
        raise ValueError(f"{FACTORS} has {factors.size} divisors for heads of {head}, or some below 1; get the file anew.")
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
    raise ValueError(f"{FACTORS} divides positions by what is not Llama 3's law; choose another model.")
