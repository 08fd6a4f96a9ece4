"""`tmem eval`: methods on a task, scored, with intervals, a chart and a record of every question."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import models, tasks
from .agent.config import agent_config
from .agent.episode import Agent, Rollout
from .agent.log import readable, record
from .agent.methods import METHODS, Answers, Runs
from .episode import Episode
from .folders import atomic_file
from .report import bootstrap, write_json

CONTEXT = 2048  # tokens of text in a prompt, unless asked otherwise
QUESTION = 128  # tokens kept for the instruction and the question beside the text


def evaluate(
    task: str,
    methods: Sequence[str],
    out: Path,
    *,
    data: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    split: str = "test",
    difficulty: int = 1,
    model: str | None = None,
    preset: str = "default",
    context: int | None = None,
    probing: bool = False,
    slots: int = 32,
    resume: bool = False,
    watch: Callable[[str, str, int, int], None] = lambda *_: None,
) -> dict:
    """Run `methods` on a task and write results.json and the episodes' logs into `out`; returns the results.

    They are written after each method; `resume` keeps the methods that `out` holds from the same settings, data and weights.
    `watch(method, phase, done, total)` is told what is going on. Raises ValueError for an unknown method or task,
    a context beyond the model's or results of other settings, FileExistsError for results that would be overwritten,
    FileNotFoundError for missing data or nothing to resume, tmem.models.ModelError for a model that cannot be had; all
    before any work.
    """
    unknown = [m for m in methods if m not in METHODS]
    methods = list(dict.fromkeys(methods))
    if unknown or not methods:
        raise ValueError(f"methods: expected some of {', '.join(METHODS)}, got {', '.join(unknown) or 'none'}.")
    if (out / "results.json").exists() and not resume:
        raise FileExistsError(f"eval: {out} already holds results; add to them with --resume, or give another --out.")
    episodes = tasks.load(task, data=data, seed=seed, limit=limit, split=split, difficulty=difficulty)
    if not any(e.questions for e in episodes):
        raise ValueError(f"eval: no questions in {data or task}; give a file with questions.")
    config = agent_config(preset)
    network, tokenizer = models.load(model)
    room = network.config.max_position_embeddings - config.answer.max_new - QUESTION
    context = min(CONTEXT, room) if context is None else context
    if context > room:
        raise ValueError(f"context: this model has room for {room} tokens of text, got {context}; give a smaller --context.")
    results: dict = {
        "task": task,
        "config": {
            "model": model or models.DEFAULT,
            "preset": str(preset),
            "settings": dataclasses.asdict(config),
            "data": data and Path(data).name,
            "data_blake2b": data and _digest(Path(data)),
            "weights_blake2b": _digest(*sorted(models.resolve(model).glob("*.safetensors"))),
            "limit": limit,
            "seed": seed,
            "split": split if task == "stream" else None,
            "difficulty": difficulty if task == "stream" else None,
            "context": context,
            "probe": probing,
            "episodes": len(episodes),
        },
        "methods": {},
        "questions": [],
    }
    if resume:
        _take_over(results, out)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    agent = Agent.build(network, tokenizer, config, slots=min(slots, len(episodes)))
    runs = Runs(seed=seed, context=context, probing=probing)
    for name in methods:
        if name in results["methods"]:
            continue
        runs.watch = lambda phase, done, total, name=name: watch(name, phase, done, total)
        start = time.perf_counter()
        found = METHODS[name](agent, episodes, runs)
        rows = _records(task, name, episodes, found)
        results["questions"] += rows
        results["methods"][name] = _summarise(rows, found, time.perf_counter() - start)
        out.mkdir(parents=True, exist_ok=True)
        if found.rollouts is not None:
            _write_logs(out, found.rollouts)
        write_json(out / "results.json", results)
    return results


def _digest(*files: Path) -> str:
    """What files hold, in 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _take_over(results: dict, out: Path) -> None:
    """Add the methods and questions that `out` holds. Raises ValueError if they were made with other settings."""
    file = out / "results.json"
    if not file.exists():
        raise FileNotFoundError(f"resume: {out} holds no results.json; leave out --resume.")
    held = json.loads(file.read_text())
    config = json.loads(json.dumps(results["config"]))
    changed = [k for k in config if held.get("config", {}).get(k) != config[k]]
    if held.get("task") != results["task"] or changed:
        raise ValueError(
            f"resume: {out} was made with other settings ({', '.join(changed) or 'task'}); "
            f"use the same flags, or give another --out."
        )
    results["methods"], results["questions"] = held["methods"], held["questions"]


def _records(task: str, method: str, episodes: Sequence[Episode], found: Answers) -> list[dict]:
    return [
        {
            "method": method,
            "episode": episode.id,
            "id": question.id,
            "kind": question.kind,
            "category": question.category,
            "question": question.text,
            "answers": list(question.answers),
            "prediction": said,
            **tasks.score(task, question, said),
        }
        for episode, answers in zip(episodes, found.answers)
        for question, said in zip(episode.questions, answers)
    ]


def _summarise(rows: list[dict], found: Answers, seconds: float) -> dict:
    clusters = [r["episode"] for r in rows]
    out: dict = {"n": len(rows), "seconds": round(seconds, 2), "notes": found.notes}
    for metric in ("f1", "em", "intrusion", "official_f1"):
        if metric in rows[0]:
            mean, low, high = bootstrap([r[metric] for r in rows], clusters)
            out[metric], out[f"{metric}_ci"] = mean, [low, high]
    kinds = sorted({r["kind"] for r in rows})
    out["f1_by_kind"] = {k: _mean([r["f1"] for r in rows if r["kind"] == k]) for k in kinds}
    if found.rollouts is not None:
        log = [entry for r in found.rollouts for entry in r.log]
        out["writes"] = len(log)
        out["pairs_per_write"] = _mean([len(e.written.pairs) for e in log])
        out["dropped"] = {k: sum(getattr(e.written, k) for e in log) for k in ("malformed", "empty", "duplicates", "conflicts")}
        out["rolled_back"] = sum(not e.learned.kept for e in log)
        probes = [p for e in log for p in e.stuck]
        if probes:
            out["stuck"] = _mean([p["recalled"] for p in probes])
            asked = [p["leaked"] for p in probes if p["other"] is not None]
            out["leaked"] = _mean(asked) if asked else None
    return out


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _write_logs(out: Path, rollouts: Sequence[Rollout]) -> None:
    with atomic_file(out / "episodes.md") as work:
        work.write_text("\n\n".join(readable(record(r)) for r in rollouts))
