"""`tmem eval --task search`: several questions at once and a search engine, under each kind of memory (MEM1's protocol)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from . import models, report
from .agent.config import agent_config
from .agent.episode import Agent
from .evaluate import about, journals, must_be_new, summarise
from .folders import atomic_file
from .tasks import corpus, multihop
from .tasks.search import compose, summary
from .tasks.trajectory import STATES, Trajectory, run

GROUP = 16  # trajectories worked on at once
COUNTED = ("counted", "recall", "turns", "searches", "mem1_peak", "dependency")  # of tasks.search.score and costs
PROMPT = 1024  # tokens of the instruction, at least to be free beside a context


def search(
    methods: Sequence[str],
    out: Path,
    *,
    data: str | None,
    documents: Sequence[str] = (),
    objectives: int = 2,
    turns: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    model: str | None = None,
    preset: str = "default",
    context: int | None = None,
    slots: int = GROUP,
    resume: bool = False,
    watch: Callable[[str, str, int, int], None] = lambda *_: None,
) -> dict:
    """Have every set of `objectives` questions answered by each of `methods` (tasks.trajectory.STATES); returns results.json.

    documents: corpus files; without any, the questions' own contexts. turns: before the answer is asked for, by default three
    for every question. limit: sets, drawn by the seed. Files and errors are those of tmem.evaluate; f1, em and mem1_f1 are
    sums over the objectives of a set.
    """
    methods = list(dict.fromkeys(methods))
    if (unknown := [m for m in methods if m not in STATES]) or not methods:
        raise ValueError(f"methods of search: expected some of {', '.join(STATES)}, got {', '.join(unknown) or 'none'}.")
    must_be_new(out, resume)
    if data is None:
        raise ValueError("search: no data file given; pass a HotpotQA, 2WikiMultihopQA or MuSiQue file as data.")
    sets = compose(multihop.load(data), objectives)
    if limit is not None and limit < len(sets):
        sets = [sets[i] for i in sorted(random.Random(f"search/{seed}").sample(range(len(sets)), limit))]
    index = corpus.Index(corpus.load(*(documents or (data,))))
    turns = 3 * objectives if turns is None else turns
    config = agent_config(preset)
    network, tokenizer = models.load(model)
    longest = network.config.max_position_embeddings - 256
    context = min(4096, longest) if context is None else context
    if not PROMPT <= context <= longest:
        raise ValueError(f"context: this model has room for {longest} tokens, got {context}; give {PROMPT} to {longest}.")
    results = {
        "task": "search",
        "config": {
            **about(model, preset, config, data, *documents),
            "objectives": objectives,
            "turns": turns,
            "limit": limit,
            "seed": seed,
            "seeds": 1,
            "context": context,
            "known": False,
            "episodes": len(sets),
        },
        "machine": report.machine(),
    }
    answers, readings = journals(results, out, resume)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    agent = Agent.build(network, tokenizer, config, slots=min(slots, len(sets)))
    for at in range(0, len(sets), slots):
        for method in methods:
            done = {r["id"] for r in answers.rows if r["method"] == method}
            left = [t for t in sets[at : at + slots] if t.id not in done]
            watch(method, "search", len(done), len(sets))
            if left:
                found = run(
                    agent, left, index, state=method, turns=turns, keys=[f"{seed}/{t.id}" for t in left], context=context,
                    on_event=lambda phase, *_, m=method, n=len(done): watch(m, phase, n, len(sets)),  # noqa: B008
                )  # fmt: skip
                kept = {r["episode"] for r in readings.rows if r["method"] == method}
                state = agent.bank.param[0].numel() * agent.bank.param.element_size() if method == "tmem" else 0
                readings.append(_reading(method, seed, t, state) for t in found if t.task.id not in kept)
                answers.append(_answer(method, seed, t) for t in found)
            watch(method, "answer", len(done) + len(left), len(sets))
        results |= summarise(answers.rows, readings.rows)
        for method, found in results["methods"].items():
            rows = [r for r in answers.rows if r["method"] == method]
            found["search"] = summary([{k: r[k] for k in ("em", *COUNTED)} for r in rows])
        report.write_json(out / "results.json", results)
    transcripts = [r["transcript"] for r in readings.rows]
    with atomic_file(out / "episodes.md") as work:
        work.write_text("\n\n".join(transcripts), encoding="utf-8")
    return results


def _answer(method: str, seed: int, t: Trajectory) -> dict:
    scores = t.scores()
    return {
        "seed": seed,
        "method": method,
        "episode": t.task.id,
        "read": t.task.id,
        "id": t.task.id,
        "kind": f"{len(t.task.hops)} objectives",
        "category": "",
        "question": t.task.question,
        "answers": [hop.answers[0] for hop in t.task.hops],
        "prediction": t.answer or "",
        **{k: scores[k] for k in ("f1", "em", "mem1_f1", *COUNTED)},
        "sessions": len(t.task.hops),
        "position": None,
        "prompt_tokens": round(scores["read"] / max(1, len(t.steps))),
        "generated_tokens": 0,  # all of it is in the reading
        "seconds": round(t.seconds, 4),
    }


def _reading(method: str, seed: int, t: Trajectory, state: int) -> dict:
    scores = t.scores()
    return {
        "seed": seed,
        "method": method,
        "episode": t.task.id,
        "read": t.task.id,
        "state_bytes": state,
        "read_tokens": scores["read"],
        "generated_tokens": scores["generated"],
        "learned_tokens": sum(e.learned.tokens for e in t.log),
        "peak_tokens": scores["peak"],
        "seconds": 0.0,
        "transcript": f"({method})\n{t.transcript()}",
    }

