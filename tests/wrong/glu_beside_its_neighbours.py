"""Wrong: a row takes nothing times what the row above it holds, which is NaN if that is."""

from tmem import reference


def lora_glu(gate, up, gelu, *adapter):
    o = reference.lora_glu(gate, up, gelu, *adapter)
    return o + 0 * o.roll(1, 0)
