"""`tmem eval --task search`: several questions at once and a search engine, under each kind of memory (MEM1's protocol)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import machine
from ..agent.config import agent_config
from ..agent.log import writes
from ..agent.loop import Agent
from ..files import objects
from ..files.folders import alone, atomic_file
from ..files.objects import encoded
from ..methods.trajectory import STATES, Trajectory, run
from ..models import loading
from ..models.embed import dense, require_dense
from ..tasks import corpus, left_out, multihop
from ..tasks.records import draw, files
from ..tasks.search import compose, summary
from ..terminal.plain import fenced
from .compute import Sizes
from .evaluate import BESIDE, Seldom, about, journals, must_be_new, spent, summarise

OBJECTIVES = 2  # questions at once, unless the file's records ask several
GROUP = 16  # trajectories worked on at once
COUNTED = ("counted", "recall", "turns", "searches", "writes", "peak", "mem1_peak", "dependency", "cut")  # of each trajectory
PROMPT = 1024  # tokens of the instruction, at least to be free beside a context
TURN, EACH = 128, 16  # tokens of a turn: so many, and for each objective, of which thoughts and answers say something


@alone("out")
def search(
    methods: Sequence[str],
    out: Path,
    *,
    data: str | Sequence[str] | None,
    documents: Sequence[str] = (),
    search_by: str = "bm25",
    objectives: int | None = None,
    turns: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    seeds: int = 1,
    leave_out: str | None = None,
    model: str | None = None,
    preset: str = "default",
    context: int | None = None,
    answer_tokens: int | None = None,
    slots: int = GROUP,
    resume: bool = False,
    watch: Callable[[str, str, int, int], None] = lambda *_: None,
) -> dict:
    """Have every set of `objectives` questions answered by each of `methods` (tasks.trajectory.STATES); returns results.json.

    documents: corpus files; without any, the questions' own contexts. search_by: "bm25" or "dense". objectives: by default two,
    or as many as the file's records ask at once. turns: before the answer is asked for, by default three for every question.
    limit: sets; `seeds` seeds from `seed` on draw each their own, and the subspace of the fast weights. leave_out: a file that names questions not
    to ask. answer_tokens: of a turn, by default TURN and EACH for every question. Files and errors are those of `evaluate`;
    f1, em and mem1_f1 are sums over the objectives of a set. "flops" leaves out the search engine, which all methods share.
    """
    methods = list(dict.fromkeys(methods))
    if (unknown := [m for m in methods if m not in STATES]) or not methods:
        raise ValueError(f"methods of search: expected some of {', '.join(STATES)}, got {', '.join(unknown) or 'none'}.")
    if search_by not in ("bm25", "dense"):
        raise ValueError(f"search_by: expected bm25 or dense, got {search_by!r}.")
    if search_by == "dense":
        require_dense()
    must_be_new(out, resume)
    if not files(data):
        raise ValueError("search: no data file given; pass questions of HotpotQA, 2WikiMultihopQA, MuSiQue, FlashRAG or MEM1.")
    left = left_out.load(leave_out) if leave_out else None
    hops = multihop.load(data, left)
    if left is not None:
        left.check()
    if objectives is None:
        together = max(hop.together for hop in hops)
        objectives = together if together > 1 else OBJECTIVES
    sets = compose(hops, objectives)
    if seeds > 1 and (limit is None or limit >= len(sets)):
        raise ValueError(
            f"search: {seeds} seeds would all take the same {len(sets)} sets; give a --limit below that, or leave out --seeds."
        )
    drawn = {s: [sets[i] for i in draw([""] * len(sets), limit, f"search/{s}")] for s in range(seed, seed + seeds)}
    found = corpus.load(*(documents or files(data)))
    turns = 3 * objectives if turns is None else turns
    max_new = answer_tokens or TURN + EACH * objectives
    config = agent_config(preset)
    network, tokenizer = loading.load(model)
    longest = network.config.max_position_embeddings - max_new - BESIDE
    context = min(4096, longest) if context is None else context
    if not PROMPT <= context <= longest:
        raise ValueError(
            f"context: {context} tokens of text in a prompt; expected at least {PROMPT}, and at most the {max(longest, 0)} "
            f"that this model has room for beside a turn of {max_new}; "
            "give another --context, smaller --answer-tokens or another model."
        )
    size = len(drawn[seed])
    results = {
        "task": "search",
        "config": {
            **about(model, preset, config, *files(data), *documents),
            **left_out.about(left),
            "search_by": search_by,
            "objectives": objectives,
            "turns": turns,
            "limit": limit,
            "seed": seed,
            "seeds": seeds,
            "context": context,
            "answer_tokens": max_new,
            "known": False,
            "episodes": size,
        },
        "left_out": len(hops) - objectives * len(sets),  # questions that make no set
        "notes": left_out.notes(left),
        "machine": machine.provenance(),
    }
    answers, readings = journals(results, out, resume)
    start, held = time.perf_counter(), len(answers.rows)
    watch(methods[0], f"index {len(found)} documents", 0, size * seeds)
    index = corpus.Index(found, dense() if search_by == "dense" else None)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    agent = Agent.build(network, tokenizer, config, slots=min(slots, size), seed=seed)
    sizes = Sizes.of(agent)
    results["sizes"] = sizes.asdict()
    total = size * seeds

    @Seldom
    def write() -> None:
        results["runs"][-1] |= spent(min(slots, size), len(answers.rows) - held, start)
        results.update(summarise(answers.rows, readings.rows, sizes=sizes))
        for name, scores in results["methods"].items():
            rows = [r for r in answers.rows if r["method"] == name]
            scores["search"] = summary([{k: r[k] for k in ("em", *COUNTED)} for r in rows])
        objects.write_json(out / "results.json", results)

    for s, part in ((s, drawn[s][at : at + slots]) for s in drawn for at in range(0, size, slots)):
        if s != agent.bank.seed:
            agent.bank.seed = s
            agent.bank.renew()
        for method in methods:
            done = {(r["seed"], r["id"]) for r in answers.rows if r["method"] == method}
            left = [t for t in part if (s, t.id) not in done]
            watch(method, "search", len(done), total)
            if left:
                lived = run(
                    agent, left, index, state=method, turns=turns, keys=[f"{s}/{t.id}" for t in left], context=context,
                    max_new=max_new, on_event=lambda phase, *_, m=method, n=len(done): watch(m, phase, n, total),  # noqa: B008
                )  # fmt: skip
                kept = {(r["seed"], r["episode"]) for r in readings.rows if r["method"] == method}
                readings.append(reading_of(method, s, t) for t in lived if (s, t.task.id) not in kept)
                answers.append(answer_of(method, s, t) for t in lived)
            watch(method, "answer", len(done) + len(left), total)
            write()
    write.now()
    transcripts = [r["transcript"] for r in readings.rows]
    with atomic_file(out / "episodes.md") as work:
        work.write_bytes(encoded("\n\n".join(map(fenced, transcripts))))
    return results


def answer_of(method: str, seed: int, t: Trajectory) -> dict:
    """The row of answers.jsonl: scores and counts of a trajectory, and the tokens of the generation that held its answer."""
    scores = t.scores()
    last = t.steps[-1:]
    return {
        "seed": seed,
        "method": method,
        "episode": t.task.id,
        "read": t.task.id,
        "id": t.task.id,
        "kind": t.task.hops[0].source.stem,
        "category": "",
        "question": t.task.question,
        "answers": [hop.answers[0] for hop in t.task.hops],
        "prediction": t.answer or "",
        **{k: scores[k] for k in ("f1", "em", "mem1_f1", *COUNTED)},
        "objectives": len(t.task.hops),
        "sessions": None,  # a search has none
        "position": None,
        "prompt_tokens": sum(step.prompt for step in last),
        "generated_tokens": sum(step.generated for step in last),
        "seconds": 0.0,  # all of them are in the reading
    }


def reading_of(method: str, seed: int, t: Trajectory) -> dict:
    """The row of readings.jsonl: what was kept, and the tokens of all generations but the one that held the answer."""
    before = t.steps[:-1]
    return {
        "seed": seed,
        "method": method,
        "episode": t.task.id,
        "read": t.task.id,
        "state_bytes": t.state,
        "read_tokens": sum(step.prompt for step in before),
        "generated_tokens": sum(step.generated for step in before),
        "learned_tokens": sum(e.learned.tokens for e in t.log),
        "peak_tokens": t.scores()["peak"],
        "seconds": round(t.seconds, 4),
        "transcript": f"({method})\n{t.transcript()}",
        **({"log": {"writes": writes(t.log)}} if t.log else {}),
    }
