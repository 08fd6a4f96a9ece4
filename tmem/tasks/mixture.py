"""Files that are drawn from by weight: how they are named, and which passage of which file comes when."""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

__all__ = ["drawn", "place", "weighted"]

_NUMBER = re.compile(r"[0-9]{1,18}")
_KEY = re.compile(r"(.*)/([0-9]{1,12})/([0-9]{1,12})")


def weighted(names: Iterable[str]) -> dict[str, float]:
    """The files of "FILE" or "FILE:WEIGHT", each with its weight, which is 1 where none is said.

    Raises ValueError for a weight that is no number above 0, for a file that is named twice, and for "a:2" where both a file
    "a" and a file "a:2" exist.
    """
    found: dict[str, float] = {}
    for name in names:
        path, weight = _parted(name)
        if path in found:
            raise ValueError(f"data: {path} is named twice; name it once, with a weight: {path}:2.")
        found[path] = weight
    return found


def _parted(name: str) -> tuple[str, float]:
    path, colon, said = name.rpartition(":")
    try:
        weight = float(said) if colon and path else None
    except ValueError:
        weight = None
    if weight is None:
        return name, 1.0
    if os.path.exists(name):
        if os.path.exists(path):
            raise ValueError(f"data: {name!r} is a file, and so is {path!r} with the weight {said}; rename one of them.")
        return name, 1.0
    if not 0 < weight < math.inf:
        raise ValueError(f"data: {name!r}: the weight is {said}; expected a number above 0, as in {path}:0.5.")
    return path, weight


def place(key: str, step: int) -> tuple[str, int]:
    """The series of an episode's key, and which of its episodes this is.

    "series/number/i" is episode i of a step of `step` episodes, a whole number one of a series without a name; any other key
    is a series by itself.
    """
    if _NUMBER.fullmatch(key):
        return "", int(key)
    found = _KEY.fullmatch(key)
    return (found[1], int(found[2]) * step + int(found[3])) if found else (key, 0)


def drawn(sizes: Sequence[int], weights: Sequence[float], series: str, place: int) -> tuple[int, int]:
    """(file, item) at a place of an endless series, in which files have shares by their weights.

    sizes: items of each file. An epoch is as long as all files together. It takes of each file its share of that, in another
    order every time: no item of a file comes twice before all of it came. Raises ValueError where there is no item at all.
    """
    counts = _counts(tuple(sizes), tuple(weights))
    epoch, place = divmod(place, sum(counts))
    return _epoch(tuple(sizes), counts, series, epoch)[place]


def _counts(sizes: tuple[int, ...], weights: tuple[float, ...]) -> tuple[int, ...]:
    """How many items of an epoch are of each file: at least 1 of one that has some."""
    total = sum(weight for size, weight in zip(sizes, weights) if size)
    if not total:
        raise ValueError("data: there is nothing to draw; expected at least one passage with a question.")
    return tuple(max(1, round(sum(sizes) * weight / total)) if size else 0 for size, weight in zip(sizes, weights))


@lru_cache(maxsize=8)
def _epoch(sizes: tuple[int, ...], counts: tuple[int, ...], series: str, epoch: int) -> list[tuple[int, int]]:
    order = []
    for file, (size, count) in enumerate(zip(sizes, counts)):
        for number in range(epoch * count, (epoch + 1) * count):
            turn, place = divmod(number, size)
            order.append((file, _shuffled(size, f"{series}/{file}/{turn}")[place]))
    random.Random(f"{series}/{epoch}").shuffle(order)
    return order


@lru_cache(maxsize=64)
def _shuffled(size: int, key: str) -> list[int]:
    return random.Random(key).sample(range(size), size)
