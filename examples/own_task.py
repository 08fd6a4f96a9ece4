"""A task of one's own: `tmem train --preset examples/own_task.toml --out runs/colours` (about two minutes)."""

import random

from tmem.tasks import Episode, Pair, Question, Task

NAMES = {
    "train": ("Ada", "Ben", "Cleo", "Dan", "Edda", "Finn"),
    "dev": ("Gus", "Hela", "Ivo"),
    "test": ("Jana", "Kurt", "Lene", "Max"),
}
COLOURS = ("red", "blue", "green", "grey", "yellow", "brown")


class Colours(Task):
    """Three people, three doors; who has which colour is asked when the talk is gone."""

    def episode(self, key: str, split: str) -> Episode:
        rng = random.Random(f"{split}/{key}")
        facts = dict(zip(rng.sample(NAMES[split], 3), rng.sample(COLOURS, 3)))
        chunk = "\n".join(f"{name}: I painted my door {colour}." for name, colour in facts.items())
        pairs = tuple(Pair(f"What colour is {name}'s door?", colour) for name, colour in facts.items())
        asked = tuple(
            Question(
                f"{key}/{name}", f"{name}'s door has which colour?", (colour,), "colour",
                intrusions=tuple(c for c in facts.values() if c != colour),
            )
            for name, colour in facts.items()
        )  # fmt: skip
        return Episode(f"{split}/{key}", (chunk,), (pairs,), asked)
