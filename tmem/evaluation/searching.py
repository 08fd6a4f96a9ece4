"""The task `search`: several questions at once and a search engine, under each kind of memory (MEM1's protocol)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial

from ..agent import log
from ..agent.agent import Agent
from ..agent.config import agent_config
from ..methods.methods import METHODS
from ..methods.search import run
from ..methods.trajectory import SearchConfig, Trajectory
from ..models import loading
from ..models.embed import dense, require_dense
from ..tasks import corpus, left_out, multihop
from ..tasks.corpus import Index
from ..tasks.multihop import Hop
from ..tasks.records import draw, files
from ..tasks.search import Objectives, compose, summary
from ..terminal.plain import fenced
from .compute import Sizes
from .config import EvalConfig, Extent
from .record import Record
from .summary import summarise
from .work import BESIDE, RunGroup, Tell, Work

OBJECTIVES = 2  # questions at once, unless the file's records ask several
COUNTED = ("counted", "recall", "turns", "searches", "writes", "peak", "mem1_peak", "dependency", "cut")  # of each trajectory
PROMPT = 1024  # tokens of the instruction, at least to be free beside a context
TURN, EACH = 128, 16  # tokens of a turn: so many, and for each objective, of which thoughts and answers say something


@dataclasses.dataclass
class Searching(Work):
    """Its items are sets of questions, of which a `limit` is drawn by the seed.

    f1, em and mem1_f1 are sums over the objectives of a set. "flops" leaves out the search engine, which all methods share.
    documents: to search in. remaining: how many questions make no set.
    """

    documents: Sequence[corpus.Document] = ()
    remaining: int = 0

    AT_ONCE = 16

    @classmethod
    def prepare(cls, config: EvalConfig, methods: Sequence[str]) -> Searching:
        if config.search_by == "dense":
            require_dense()
        left = left_out.read_leave_out(config.leave_out) if config.leave_out else None
        hops = _hops(config, left)
        if config.objectives is None:
            together = max(hop.together for hop in hops)
            config = dataclasses.replace(config, objectives=together if together > 1 else OBJECTIVES)
        sets = compose(hops, config.objectives)
        drawn = _drawn(config, sets)
        documents = corpus.documents(*(config.corpus or files(config.data)))
        settings = agent_config(config.preset)
        network, tokenizer = loading.load_model(config.model, adapter=config.adapter, bits=config.bits)
        config = _with_room(config, network.config.max_position_embeddings)
        remaining = len(hops) - config.objectives * len(sets)
        notes = left_out.notes(left)
        return cls(config, settings, network, tokenizer, drawn, left, notes, documents=documents, remaining=remaining)

    @property
    def extent(self) -> Extent:
        return Extent(episodes=len(self.data[self.config.seed]), dated=None, called=None)

    @property
    def questions(self) -> dict[tuple[int, str], None]:
        return {(seed, t.id): None for seed, sets in self.data.items() for t in sets}

    @cached_property
    def index(self) -> Index:
        """The search engine."""
        return Index(self.documents, dense() if self.config.search_by == "dense" else None)

    def counts(self) -> dict:
        return {"left_out": self.remaining}

    def items(self, seed: int) -> list[Objectives]:
        return self.data[seed]

    def group(self, agent: Agent, seed: int, items: Sequence[Objectives]) -> RunGroup:
        return partial(self._run, agent, seed, items)

    def _run(self, agent: Agent, seed: int, items: Sequence[Objectives], method: str, record: Record, tell: Tell) -> None:
        """Work on the sets that are left, and record their trajectories."""
        answered, read = record.answered(method), record.read(method)
        left = [t for t in items if (seed, t.id) not in answered]
        if not left:
            return
        tell(f"search {len(self.documents)} documents", 0)
        limits = SearchConfig(
            self.config.turns, self.config.answer_tokens, self.config.context, known=self.config.known,
            each=self.config.each,
        )  # fmt: skip
        trajectories = run(
            agent, left, self.index, METHODS[method].search, config=limits, keys=[f"{seed}/{t.id}" for t in left],
            on_event=lambda phase, *_: tell(phase, 0),
        )  # fmt: skip
        record.readings.append(reading_of(method, seed, t) for t in trajectories if (seed, t.task.id) not in read)
        record.answers.append(answer_of(method, seed, t) for t in trajectories)
        tell("answer", len(left))

    def summary(self, record: Record, sizes: Sizes) -> dict:
        found = summarise(record.answers.rows, record.readings.rows, sizes=sizes)
        for name, scores in found["methods"].items():
            rows = [r for r in record.answers.rows if r["method"] == name]
            scores["search"] = summary([{k: r[k] for k in ("em", *COUNTED)} for r in rows])
        return found

    def log(self, record: Record) -> list[str]:
        return [fenced(r["transcript"]) for r in record.readings.rows]


def _hops(config: EvalConfig, left: left_out.LeaveOut | None) -> list[Hop]:
    """The questions of all files. Raises ValueError where there is no file, or one to leave out that they do not have."""
    if not files(config.data):
        raise ValueError("search: no data file given; pass questions of HotpotQA, 2WikiMultihopQA, MuSiQue, FlashRAG or MEM1.")
    hops = multihop.questions(config.data, left)
    if left is not None:
        left.check()
    return hops


def _drawn(config: EvalConfig, sets: Sequence[Objectives]) -> dict[int, list[Objectives]]:
    """The sets of every seed. Raises ValueError where all would take the same."""
    if config.seeds > 1 and (config.limit is None or config.limit >= len(sets)):
        raise ValueError(
            f"search: {config.seeds} seeds would all take the same {len(sets)} sets; give a --limit below that, or leave out "
            "--seeds."
        )
    return {seed: [sets[i] for i in draw([""] * len(sets), config.limit, f"search/{seed}")] for seed in config.replicates}


def _with_room(config: EvalConfig, positions: int) -> EvalConfig:
    """The config with its turns, their length and its context. positions: what the model holds. Raises ValueError for a context
    that is too small for the instruction, or too large for the model."""
    max_new = config.answer_tokens or TURN + EACH * config.objectives
    longest = positions - max_new - BESIDE
    context = min(SearchConfig.context, longest) if config.context is None else config.context
    if not PROMPT <= context <= longest:
        raise ValueError(
            f"context: {context} tokens of text in a prompt; expected at least {PROMPT}, and at most the {max(longest, 0)} "
            f"that this model has room for beside a turn of {max_new}; "
            "give another --context, smaller --answer-tokens or another model."
        )
    turns = 3 * config.objectives if config.turns is None else config.turns
    return dataclasses.replace(config, turns=turns, context=context, answer_tokens=max_new)


def answer_of(method: str, seed: int, t: Trajectory) -> dict:
    """The row of answers.jsonl: scores and counts of a trajectory, and the tokens of its last generation, which held its answer
    or the answer to its last question."""
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
    """The row of readings.jsonl: what was kept, and the tokens of all generations but the last."""
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
        **({"log": {"writes": log.writes(t.log)}} if t.log else {}),
    }
