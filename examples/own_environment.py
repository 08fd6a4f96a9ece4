"""An environment with a tool: `tmem train --preset examples/own_environment.toml --out runs/doors` (some minutes)."""

import random

from tmem.episode import Episode, Observation, Outcome, Pair, Scene
from tmem.tasks import Environment
from tmem.tasks.tool import Tool

COLOURS = ("red", "blue", "green", "grey", "yellow", "brown")


class Doors(Environment):
    """A note says which code opens a door. A tool fetches it, and when it was read it is gone."""

    def episode(self, key: str, split: str) -> Episode:
        rng = random.Random(f"{split}/{key}")
        colour, code = rng.choice(COLOURS), str(rng.randrange(1000, 10000))
        return Episode(f"{split}/{key}", (), (), (), begin=lambda clip: Door(colour, code, clip))


class Door(Scene):
    """Two turns: fetch the note of a colour, then say the code."""

    def __init__(self, colour, code, clip):
        self.asked = f"Which code opens the {colour} door?"
        self.colour, self.code, self.clip, self.said = colour, code, clip, []
        self.fetch = Tool({colour: f"The {colour} door opens with the code {code}."}.__getitem__, seconds=5.0)

    def observe(self):
        if not self.said:
            return Observation(f"{self.asked} A note of which colour do you need?", "Note:", "call", 8)
        return Observation(self.asked, "Code:", "answer", 8) if len(self.said) == 1 else None

    def act(self, said):
        self.said.append(said.partition(":")[2].strip())
        if len(self.said) == 2:
            return Outcome()
        note, how = self.fetch(self.said[0])  # how: "fine", or "timeout", "error" or "garbage", which are counted
        if note is None:
            return Outcome(called=how)
        return Outcome(self.clip(note, 100), (self.asked,), (Pair(self.asked, self.code),), reward=0.1, called=how)

    def scores(self):
        return [{"right": float(self.said[1] == self.code)}]

    def right(self):
        return f"Note: {self.colour}" if not self.said else f"Code: {self.code}"
