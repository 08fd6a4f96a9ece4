"""What a GGUF file says under the name of its architecture, and that nothing of it is passed over."""

from __future__ import annotations

import math
from collections.abc import Mapping

# Keys that say nothing about the computation, or what is said elsewhere as well.
_NEUTRAL = (
    "context_length", "vocab_size", "rope.scaling.finetuned", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
)  # fmt: skip
# Values with which a key says nothing new; other keys do with 0.
_WITHOUT_EFFECT = {
    "attention.causal": (True,), "tensor_data_layout": ("Meta AI original pth",), "logit_scale": (1.0,),
    "rope.scaling.attn_factor": (1.0,), "rope.scaling.yarn_attn_factor": (1.0,), "rope.scaling.yarn_ext_factor": (0.0, -1.0),
    "expert_weights_scale": (0.0, 1.0),
}  # fmt: skip


class Said:
    """The metadata under the architecture's name; what was asked for is understood."""

    def __init__(self, fields: Mapping, family: str):
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
            raise ValueError(f"{self._family}.{key} is {short(value)}, expected a number; get the file anew.")
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
                stated = f"{self._family}.{key} = {short(value)}"
                raise ValueError(f"it states {stated}, which tmem does not compute; choose another model.")


def short(value) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
