"""The tournament: which configurations of the Triton kernels are fastest on this card, for its file in triton_kernels/tuned.

A contest is about one place of the table: a kernel, bits of its activations and factors, a rank. It has rounds; each tries
configurations beside the one that holds, over several batches in turns. Who may take part says gate.py; who may not is named
with the reason and not timed. A card takes one winner a place, never a batch its own.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..files.objects import write_json
from ..triton_kernels import configs, winners
from ..triton_kernels.configs import Config
from ..triton_kernels.plan import TILE
from .gate import HOLDS, Entrant, Place, Trials, label, wrong
from .measure import Settings, _in_turns

WIDTHS = {  # columns that are tried
    "shrink": (64, 128, 256),
    "shrink of several factors": (32, 64, 128),
    "expand": (64, 128, 256),
    "backward": (32, 64, 128),
    "gram": (64, 128, 256),
    "gram of few slots": (16, 32, 64),
    "attend": (16, 32, 64, 128),
}
WARPS, STAGES = (4, 8), (2, 3, 4)
FINAL = 4  # of a round's fastest
MARGIN = 0.02  # by which a newcomer must be faster, which the noise of a median is not
HEAT, LAST = Settings(rounds=3, warmup=1), Settings(rounds=9, warmup=1)


def contests() -> list[Place]:
    """Every place that is played for, the most valuable first: bf16 rows and factors, a gradient fp32. fp32 rows are
    not, nor are fp32 factors of 32 ranks."""
    first = [("shrink", 16, 16), ("expand", 16, 16), ("gram", 16, 32), ("gram of few slots", 16, 32), ("backward", 16, 16)]
    attention = [("attend", 16, 16)]
    later = [("shrink of several factors", 16, 16)]
    mixed = [(kernel, 16, 32) for kernel in ("shrink", "expand", "backward", "shrink of several factors")]
    order = [
        (first, (16, 64)), (attention, (128, 64)), (later, (16, 64)),
        (attention, (256,)), (first, (32, 128)), (later, (32,)), (mixed, (16, 64, 128)),
    ]  # fmt: skip
    held = set(configs.places())
    found = [(*kind, rank) for kinds, ranks in order for rank in ranks for kind in kinds]
    return [place for place in found if place in held]


# rounds ------------------------------------------------------------------------------------------------------------------


def tiles(place: Place, now: Callable[[Place], Config]) -> list[Entrant]:
    """Columns, warps, stages. expand has no loop that could be staged."""
    stages = (1,) if place[0] == "expand" else STAGES
    return [
        {place: replace(now(place), bd=bd, warps=warps, stages=depth)}
        for bd, warps, depth in itertools.product(WIDTHS[place[0]], WARPS, stages)
    ]


def regimes(place: Place, now: Callable[[Place], Config]) -> list[Entrant]:
    """With how many rows a segment of few rows computes: 16, or a tile's, which is no regime of its own."""
    return [] if place[0].startswith(("gram", "attend")) else [{place: replace(now(place), few=few)} for few in (16, TILE)]


def sums(place: Place, now: Callable[[Place], Config]) -> list[Entrant]:
    """For backward: in steps of how many rows all gradients of a rank are summed, and shrink and gram in its stead. For attend:
    how many columns a part has, each summed by a program."""
    if place[0] == "attend":
        return [{place: replace(now(place), rows=rows)} for rows in winners.PARTS]
    if place[0] != "backward":
        return []
    linked = [p for p in configs.places() if p[0] in winners.LINKED and p[1] == 16 and p[3] == place[3]]
    together = [
        {p: replace(now(p), rows=rows) for p in linked if now(p).rows or p == place}
        for rows in (winners.SIZES["rows"] if place[2] == 16 else ())
    ]
    return [*together, {place: replace(now(place), rows=0)}]


ROUNDS = (tiles, regimes, sums)


def candidates(place: Place, now: Callable[[Place], Config]) -> int:
    """How many configurations a contest tries, beside what holds."""
    return sum(len(_challengers(make(place, now), now)) for make in ROUNDS)


def expected(place: Place, now: Callable[[Place], Config]) -> float:
    """Seconds, about: compiling, as much as timing."""
    return 4 + 0.5 * candidates(place, now)


def _challengers(entrants: Iterable[Entrant], now: Callable[[Place], Config]) -> list[Entrant]:
    """What each changes of what holds; who changes nothing is left out."""
    changes = ({p: c for p, c in entrant.items() if c != now(p)} for entrant in entrants)
    return [change for change in changes if change]


# playing -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ground:
    """Where a contest is played.

    trials  the batches of a place, each with the provider that runs its kernel
    gate    of some entrants, why each may not take part: "" if it may
    timer   ms of a call
    now     the configuration that holds at a place
    """

    trials: Callable[[Place], Trials]
    gate: Callable[[list[Entrant]], list[str]]
    timer: Callable[[Callable], float]
    now: Callable[[Place], Config]


def play(place: Place, ground: Ground) -> dict:
    """One contest: {"ratio", "winner", "rounds"}. ratio: the winner's time over that of what held before, the geometric mean
    over the batches; winner: records of the card's file for what changed."""
    won: Entrant = {}

    def now(p: Place) -> Config:
        return won.get(p) or ground.now(p)

    trials, ratio, told = ground.trials(place), 1.0, []
    for make in ROUNDS:
        challengers = _challengers(make(place, now), now)
        if challengers:
            best, step, report = _round([{}, *challengers], won, trials, ground)
            won, ratio = won | best, ratio * step
            told.append({"round": make.__name__, **report})
    return {"ratio": ratio, "winner": [winners.row(p, c) for p, c in sorted(won.items())], "rounds": told}


def _round(entrants: list[Entrant], won: Entrant, trials: Trials, ground: Ground) -> tuple[Entrant, float, dict]:
    """The winner, its time over that of what holds (1 where that may not take part), and what is told of all."""
    dropped, sound = {}, {}
    for entrant, reason in zip(entrants, ground.gate([won | entrant for entrant in entrants])):
        if reason := reason or wrong(won | entrant, trials):
            dropped[label(entrant)] = reason
        else:
            sound[label(entrant)] = entrant
    if not sound:
        return {}, 1.0, {"ratio": {}, "us": {}, "dropped": dropped}
    heat = _times(sound, won, trials, ground.timer, HEAT)
    scores = _scores(heat)
    last = [*({HOLDS} & sound.keys()), *sorted(sound.keys() - {HOLDS}, key=lambda name: (scores[name], name))[:FINAL]]
    times = _times({name: sound[name] for name in last}, won, trials, ground.timer, LAST)
    final = _scores(times)
    best = min(final, key=lambda name: (final[name], name))
    base = final.get(HOLDS, final[best])
    if final[best] > (1 - MARGIN) * base and HOLDS in final:
        best = HOLDS
    ratios = {name: round(score / base, 4) for name, score in final.items()}
    us = {name: {batch: round(1e3 * ms, 2) for batch, ms in batches.items()} for name, batches in (heat | times).items()}
    return sound[best], final[best] / base, {"best": best, "ratio": ratios, "us": us, "dropped": dropped}


def _times(
    entrants: dict[str, Entrant], won: Entrant, trials: Trials, timer: Callable, settings: Settings
) -> dict[str, dict[str, float]]:
    """Entrant -> batch -> median ms."""
    ours = {
        (name, case.name): replace(provider, call=_within(won | entrant, provider.call))
        for case, provider in trials.items()
        for name, entrant in entrants.items()
    }
    times = _in_turns(ours, settings, timer)
    return {name: {case.name: statistics.median(times[name, case.name]) for case in trials} for name in entrants}


def _within(entrant: Entrant, call: Callable) -> Callable:
    def called():
        with configs.instead(entrant):
            return call()

    return called


def _scores(times: dict[str, dict[str, float]]) -> dict[str, float]:
    """Geometric mean over the batches of an entrant's time, in ms."""
    return {name: statistics.geometric_mean(batches.values()) for name, batches in times.items()}


# the card's file ---------------------------------------------------------------------------------------------------------


def write_winners(architecture: str, played: dict[str, dict], about: dict) -> Path | None:
    """Put the winners of these contests over what the architecture's file has; None where nothing changes.

    about: where they were found. A later contest goes before an earlier one. Raises ValueError if the
    file is damaged, or would be.
    """
    path = configs.TUNED / f"{architecture}.json"
    rows = {place: winners.row(place, c) for place, c in configs.tuned(architecture).items()}
    before = dict(rows)
    for contest in played.values():
        rows |= {tuple(row[name] for name in winners.PLACE): row for row in contest["winner"]}
    if rows == before:
        return None
    listed = [rows[place] for place in sorted(rows)]
    configs.accepted(architecture, listed)
    path.parent.mkdir(exist_ok=True)
    write_json(path, {**about, "rows": listed})
    configs.forget()
    return path
