"""verifiers: environments of the `verifiers` package, unchanged, as scenes (dialogue.py). Its generation 1, `verifiers.v1`.

This environment's episodes are the tasks of a taskset, each of which belongs to train, dev or test by a hash of its key. What
touches the package is verifiers_api.py.
"""

from __future__ import annotations

from functools import partial

from ..episode import Clip, Episode
from . import mixture, verifiers_api
from .dialogue import SECONDS, Dialogue
from .searches import SPLITS, side
from .task import Environment

__all__ = ["Verifiers"]


class Verifiers(Environment):
    """The tasks of an environment.

        name     of an installed environment, or a .py file that defines one, as the user typed it: it is imported
        turns    replies of an episode at most
        max_new  tokens of a reply
        step     episodes of a training step at most; with it no task comes twice in an epoch, see tmem.tasks.mixture
        seconds  that it may take for what it does between two replies

    Raises ValueError where the package is not installed, and where the environment cannot be loaded or needs what is not here:
    a second model, a container, tools that run elsewhere.
    """

    def __init__(self, name: str, *, turns: int = 3, max_new: int = 96, step: int = 1, seconds: float = SECONDS):
        if not name:
            raise ValueError(
                "verifiers: no environment; name one with --environment NAME or, in [train] of a preset, environment."
            )
        self.name, self.turns, self.max_new, self.step, self.seconds = name, turns, max_new, step, seconds
        self.loaded = verifiers_api.load(name)
        self.held: dict[str, list[int]] = {split: [] for split in SPLITS}
        for place, key in enumerate(self.loaded.keys):
            self.held[side(key)].append(place)

    @property
    def files(self) -> list[str]:
        """The file that defines it, if one was named: a run goes on only where it is the same."""
        return [self.name] if self.name.endswith(".py") else []

    @property
    def trained(self) -> list[str]:
        """Keys of the tasks of train."""
        return [self.loaded.keys[place] for place in self.held["train"]]

    def require(self, *splits: str) -> None:
        """ValueError where one of `splits` has no task."""
        for split in splits:
            if not self.held[split]:
                raise ValueError(
                    f"verifiers: none of the {len(self.loaded.keys)} tasks of {self.name} falls to {split}, which takes "
                    f"{SPLITS[split]} % of them by a hash of their keys; take an environment of more tasks."
                )

    def episode(self, key: str, split: str) -> Episode:
        """The next task of a series; keys as in Passages.episode."""
        self.require(split)
        held, (series, first) = self.held[split], mixture.place(key, self.step)
        _, item = mixture.drawn([len(held)], [1.0], f"{split}/{series}", first)
        name = f"verifiers/{split}/{key}"
        return Episode(name, (), (), (), begin=partial(self._scene, held[item], name))

    def _scene(self, place: int, name: str, clip: Clip) -> Dialogue:
        lead = self.loaded.lead(place)
        return Dialogue(lead, clip, seed=name, turns=self.turns, max_new=self.max_new, seconds=self.seconds)
