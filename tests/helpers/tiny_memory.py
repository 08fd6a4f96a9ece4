"""What a tiny memory does in one process, for tests: `python tests/helpers/tiny_memory.py PRESET STEP...` prints what was seen.

Steps: learn=TAG (four pairs), observe=TEXT, ask=TAG, save=FOLDER, load=FOLDER, forget_moments.
"""

import hashlib
import json
import sys

from tiny import PLAIN, Letters, model, pairs

from tmem import Memory
from tmem.models import loading

PRESET = f"""
extends = "{PLAIN}"
[adapter]
rank = 8
last_layers = 3
[learn]
lr = 0.02
epochs = 30
rehearse = 8
[answer]
max_new = 6
"""


def load(name=None, **_):
    """Stands for loading.load_model."""
    return model(), Letters()


def steps_of(preset: str, *steps: str) -> dict[str, list]:
    """By step, what it told."""
    memory, seen = Memory.from_pretrained(preset=preset), {}
    for step in steps:
        what, _, given = step.partition("=")
        if what == "learn":
            learned = memory.learn(pairs(4, given))
            told = [learned.loss_before, learned.loss_after, learned.norm, learned.kept]
        elif what == "observe":
            told = memory.observe(given)
        elif what == "ask":
            told = [memory.ask(p.question) for p in pairs(4, given)]
        elif what == "save":
            memory.save(given)
            told = None
        elif what == "load":
            memory = Memory.from_pretrained(preset=preset, path=given)
            told = None
        elif what == "forget_moments":
            bank = memory.agent.bank
            told = bank.restore(memory.slot, bank.snapshot(memory.slot, optimizer=False))
        seen.setdefault(step, []).append(told)
    weights = memory.agent.bank.param[memory.slot].numpy().tobytes()
    return seen | {"weights": hashlib.sha256(weights).hexdigest(), "pairs": [[p.question, p.answer] for p in memory.pairs]}


if __name__ == "__main__":
    loading.load_model = load
    print(json.dumps(steps_of(*sys.argv[1:])))
