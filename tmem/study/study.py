"""`tmem study`: the same training from several seeds, what it gained, and which half of the agent it changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..agent.agent import Agent
from ..files.folders import alone
from ..files.objects import read_object, write_json
from ..models import loading
from ..rl.config import train_config
from ..rl.held_out import MODES
from ..rl.trainer import PHASES, Progress, Trainer
from ..stats import bootstrap
from ..tasks import stream
from .dissect import ability, dissect

COMPARED = (("rl", "warm"), ("rl", "sft"), ("warm", "base"))
DISSECTED = ("warm", "rl")
LOCK = ".study.lock"  # of a study, and of a seed while it is trained and dissected; its training has one more


@alone("out", LOCK)
def run_seeds(
    preset: str, out: Path, *, seeds: int = 5, seed_starts: Callable[[int], None] = lambda _: None, **options
) -> dict:
    """Do seeds 0..seeds-1 into `out`/seed-N, compare them, and return the summary; options: those of `one`.

    What `out` holds is kept and gone on with, so an interrupted study is called again. Held-out episodes differ from seed to
    seed. Raises what Trainer raises; Interrupted after a checkpoint when `stop()` turns true.
    """
    found = []
    for seed in range(seeds):
        seed_starts(seed)
        found.append(one(preset, out / f"seed-{seed}", seed, **options))
    runs, dissections = zip(*found)
    summary = {"preset": preset, "seeds": seeds, "scores": scores(runs), "differences": differences(runs),
               "dissection": [joined(of_difficulty) for of_difficulty in zip(*dissections)]}  # fmt: skip
    write_json(out / "study.json", summary)
    return summary


@alone("folder", LOCK)
def one(
    preset: str, folder: Path, seed: int, *, model: str | None = None, episodes: int = 24,
    progress: Progress | None = None, stop: Callable[[], bool] = lambda: False, **overrides,
) -> tuple[dict, list[dict]]:  # fmt: skip
    """Train one seed into `folder` and dissect it on `episodes` held-out streams, or read what was found before.

    Returns the training's summary with its "per_episode" scores, and the dissections of difficulty 1 and 2.
    Raises ValueError for a training without RL.
    """
    progress = progress or Progress()
    if not (folder / "summary.json").exists():
        if not replace(train_config(preset), **overrides).rl_steps:
            raise ValueError(f"study: RL is compared with its warm start, and in preset {preset} rl_steps is 0; raise it.")
        resume = (folder / "run.json").exists()
        trainer = Trainer(preset, folder, model=model, resume=resume, seed=seed, **overrides)
        summary = trainer.run(progress, stop)
        write_json(folder / "summary.json", {**summary, "per_episode": trainer.state["evaluations"]})
    dissections = []
    for difficulty in (1, 2):
        file = folder / f"dissection-{difficulty}.json"
        if not file.exists():
            write_json(file, _dissected(preset, model, folder, seed, difficulty, episodes, progress))
        dissections.append(read_object(file, crossing=dict, writing=dict, ability=dict, recall=dict))
    return read_object(folder / "summary.json", per_episode=dict), dissections


def _dissected(preset, model, folder, seed, difficulty, count, progress) -> dict:
    from ..agent.config import agent_config

    network, tokenizer = loading.load_model(model)  # A is that of the model as it came, as in training
    agent = Agent.build(network, tokenizer, agent_config(preset), slots=count)
    as_it_came = ability(agent)

    def use(name: str) -> Agent:
        trained, _ = loading.load_model(folder / name, dtype=network.dtype, device=network.device)
        network.load_state_dict(trained.state_dict())
        return agent

    split = read_object(folder / "run.json", TrainConfig=dict)["TrainConfig"]["eval_split"]
    # Other episodes than the evaluations': those start at seed << 20.
    episodes = [stream.episode((seed << 20) + 500_000 + i, split, difficulty) for i in range(count)]
    found = dissect(DISSECTED, use, episodes, lambda note: progress.phase("dissect", 0, 1, f"difficulty {difficulty}: {note}"))
    return {**found, "ability": {"base": as_it_came, **found["ability"]}}


# statistics --------------------------------------------------------------------------------------------------------------


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean of one number per seed, with its 95 % t-interval; a single seed has none: its bounds are null."""
    from scipy.stats import t

    data = np.asarray(values, dtype=np.float64)
    mean, n = float(data.mean()), len(data)
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "values": data.tolist()}
    half = float(t.ppf(0.975, n - 1) * data.std(ddof=1) / n**0.5)
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": data.tolist()}


def over_episodes(values: Sequence[float]) -> dict[str, float]:
    """Mean with a 95 % bootstrap interval over episodes, those of all seeds together."""
    return dict(zip(("mean", "low", "high"), bootstrap(values, range(len(values)))))


def scores(runs: Sequence[dict]) -> dict:
    """{phase: {mode: {score: {"seeds": t-interval, "episodes": bootstrap}}}} of every number that all episodes have."""
    out: dict = {}
    for phase in PHASES:
        for mode in MODES:
            rows = [run["per_episode"][phase][mode] for run in runs]
            names = [k for k in rows[0][0] if all(k in e for r in rows for e in r)]
            out.setdefault(phase, {})[mode] = {
                k: {
                    "seeds": over_seeds([float(np.mean([e[k] for e in r])) for r in rows]),
                    "episodes": over_episodes([e[k] for r in rows for e in r]),
                }
                for k in names
            }
    return out


def differences(runs: Sequence[dict], score: str = "f1") -> dict:
    """{"rl - warm": {mode: {"seeds", "episodes"}}}: paired, episode by episode of the same seed."""
    out: dict = {}
    for better, than in COMPARED:
        for mode in MODES:
            pairs = [(run["per_episode"][better][mode], run["per_episode"][than][mode]) for run in runs]
            out.setdefault(f"{better} - {than}", {})[mode] = _paired(pairs, score)
    return out


def _paired(pairs: Sequence[tuple[Sequence[dict], Sequence[dict]]], score: str = "f1") -> dict:
    """Intervals over seeds and episodes of what the first rows of each seed's pair have more than the second."""
    gaps = [[a[score] - b[score] for a, b in zip(*pair, strict=True)] for pair in pairs]
    return {"seeds": over_seeds([float(np.mean(g)) for g in gaps]), "episodes": over_episodes([x for g in gaps for x in g])}


def joined(dissections: Sequence[dict]) -> dict:
    """Dissections of several seeds as one: every score with its t-interval over seeds; "writers": how much better each
    answerer's F1 is with the pairs that the last model wrote than with those of the first, paired by episode.

    General ability is that of the models which all seeds have measured.
    """
    crossing = {
        answerer: {
            condition: _means_of([d["crossing"][answerer][condition] for d in dissections])
            for condition in dissections[0]["crossing"][answerer]
        }
        for answerer in dissections[0]["crossing"]
    }
    writing = {w: _means_of([d["writing"][w] for d in dissections]) for w in dissections[0]["writing"]}
    able = {
        m: {k: over_seeds([d["ability"][m][k] for d in dissections]) for k in dissections[0]["ability"][m]}
        for m in dissections[0]["ability"]
        if all(m in d["ability"] for d in dissections)
    }
    first, *_, last = dissections[0]["writing"]
    writers = {
        answerer: _paired([(d["crossing"][answerer][last], d["crossing"][answerer][first]) for d in dissections])
        for answerer in dissections[0]["crossing"]
    }
    return {"crossing": crossing, "writers": writers, "writing": writing, "ability": able,
            "recall": {m: _matrix([d["recall"][m] for d in dissections]) for m in dissections[0]["recall"]}}  # fmt: skip


def _means_of(per_seed: Sequence[Sequence[dict[str, float]]]) -> dict:
    """The interval over seeds of each score's mean over the episodes that have it."""
    names = dict.fromkeys(k for rows in per_seed for r in rows for k in r)
    out = {}
    for name in names:
        found = [[r[name] for r in rows if name in r] for rows in per_seed]
        out[name] = over_seeds([float(np.mean(f)) for f in found if f])
    return out


def _matrix(matrices: Sequence[Sequence[Sequence[float | None]]]) -> list[list[float | None]]:
    """The mean of each cell over the seeds that have it."""
    out = []
    for j in range(max(map(len, matrices))):
        rows = [m[j] for m in matrices if j < len(m)]
        cells = [[r[i] for r in rows if r[i] is not None] for i in range(j + 1)]
        out.append([sum(c) / len(c) if c else None for c in cells])
    return out
