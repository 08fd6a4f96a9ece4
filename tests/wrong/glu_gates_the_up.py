"""Wrong: the gate is what goes through, and up is what opens it."""

from tmem import reference


def lora_glu(gate, up, gelu, x, a, bt, row_slot, rank, scale):
    return reference.lora_glu(up, gate, gelu, x, a[::-1], bt[::-1], row_slot, rank, scale)
