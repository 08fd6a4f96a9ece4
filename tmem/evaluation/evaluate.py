"""`tmem eval`: methods on a task, scored, with intervals, and a record of every reading and every question.

    out/answers.jsonl    a line per seed, method and question: what was asked, said, and how it scored
    out/readings.jsonl   a line per seed, method and episode: what was kept, what it cost, what was written
    out/results.json     the configuration, which processes made it on what machines, and what follows from the other two, made
                         anew after every method's part of a group of episodes (of very many answers more seldom)
    out/episodes.md      what was written and said, for a reader

All methods run a group of episodes before the next one begins. A kill loses one batch of questions at most; `resume`
reads what is there and asks the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..agent.agent import Agent
from ..files.folders import alone
from ..methods.methods import methods_of
from .compute import Sizes
from .config import READ, SEARCH, EvalConfig
from .grading import Judging, grade, protocol_of
from .reading import Reading
from .record import Record, must_be_new
from .searching import Searching
from .work import Work

# The methods that a task is compared by, unless others are named.
USUAL = dict.fromkeys(READ, ("none", "full", "retrieval", "pairs", "tmem")) | {"search": ("none", "full", "mem1", "tmem")}
Watch = Callable[[str, str, int, int], None]


@alone("out")
def evaluate(
    config: EvalConfig, *, out: Path, methods: Sequence[str] | None = None, judging: Judging | None = None,
    slots: int | None = None, resume: bool = False, watch: Watch = lambda *_: None,
) -> dict:  # fmt: skip
    """Have `methods` answer what `config` asks, and keep a record in the folder `out`; returns what results.json holds.

    methods: names of tmem.methods.methods.METHODS; by default those in USUAL. judging: have every answer graded, see
    tmem.evaluation.grading. slots: episodes at once, each with its own Δ. None of the three is a part of the configuration,
    so a run that goes on may change them.
    watch: told the method, the phase, how many questions that method has answered, and of how many.
    Raises ValueError for a task or a method that is not there, a context beyond the model's or results of other settings,
    FileExistsError for results that would be overwritten, FileNotFoundError for missing data or nothing to resume,
    tmem.models.loading.ModelError for a model that cannot be had; all before any work.
    """
    names = chosen(config.task, methods)
    if judging is not None:
        protocol_of(config.task)
    must_be_new(out, resume)
    work = (Searching if config.task in SEARCH else Reading).prepare(config, names)
    record = Record(out, work.results(), resume=resume)
    agent = work.agent(slots)
    sizes = Sizes.of(agent, work.embedder or record.results.get("sizes", {}).get("embedder", 0))
    record.results["sizes"] = sizes.asdict()
    record.begin(agent.bank.slots, lambda: work.summary(record, sizes))
    _run_all(work, agent, names, record, watch)
    record.write.now()
    if (texts := work.log(record)) is not None:
        record.write_log(texts)
    if judging is not None:
        _judge(work, agent, judging, record, watch)
    return record.results


def chosen(task: str, methods: Sequence[str] | None) -> list[str]:
    """Names of methods, each once. Raises ValueError for one that a task has nothing for, or where there is none."""
    every = methods_of(task)
    names = list(dict.fromkeys(USUAL[task] if methods is None else methods))
    unknown = [name for name in names if name not in every]
    if unknown or not names:
        raise ValueError(f"methods of {task}: expected some of {', '.join(every)}, got {', '.join(unknown) or 'none'}.")
    return names


def _run_all(work: Work, agent: Agent, methods: Sequence[str], record: Record, watch: Watch) -> None:
    """Run every method on every group of items. A seed draws the subspace of the fast weights anew."""
    total = len(work.questions)
    for seed, items in work.groups(agent.bank.slots):
        if seed != agent.bank.seed:
            agent.bank.seed = seed
            agent.bank.renew()
        run_group = work.group(agent, seed, items)
        for name in methods:
            run_group(name, record, partial(_tell, watch, name, len(record.answered(name)), total))
            record.write()


def _tell(watch: Watch, method: str, before: int, total: int, phase: str, answered: int) -> None:
    watch(method, phase, before + answered, total)


def _judge(work: Work, agent: Agent, judging: Judging, record: Record, watch: Watch) -> None:
    """A verdict for every answer; the answers stay where the judge refuses."""
    try:
        record.results["judge"] = grade(
            work.config.task, work.questions, record.answers.rows, judging, agent, record.out,
            lambda done, total: watch("judge", "", done, total),
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(
            f"{str(error).rstrip('.')}. All answers are in {record.out}: --resume asks the judge again."
        ) from error
    record.write.now()
