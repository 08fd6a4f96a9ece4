"""The search loop: think, search, read what was found, ..., answer; many trajectories in lock step.

What differs between states is what becomes of what was found. In state "tmem" it is written down as pairs and learned into the
trajectory's own slot, as agent.episode does with a conversation, and leaves the context.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..agent.decode import decode
from ..agent.episode import Agent, LogEntry, segments
from ..agent.learn import learn, rehearsal
from ..agent.write import parse, write_prompt
from ..episode import Pair
from . import search as task
from .corpus import Index

STATES = ("full", "mem1", "tmem", "none")

_LEARNED = "The documents were read and are remembered."
_NOTHING = "Nothing was found."
_UNREADABLE = "Nothing was searched: end your turn with <search> or <answer>."
_LEFT_OUT = "(Earlier turns are left out.)"


@dataclass
class Trajectory:
    """One set of questions as it was worked on: its steps, its writes (state "tmem"), its answer."""

    task: task.Objectives
    key: str
    steps: list[task.Step] = field(default_factory=list)
    log: list[LogEntry] = field(default_factory=list)
    answer: str | None = None
    seconds: float = 0.0  # wall time until the answer, with the others of its batch beside it

    @property
    def learned(self) -> list[Pair]:
        """The pairs of the writes that were kept."""
        return [p for entry in self.log if entry.learned.kept for p in entry.written.pairs]

    def scores(self) -> dict[str, float]:
        """Scores of the answer and costs of the way there, by name; see tasks.search."""
        titles = [title for step in self.steps for title in step.titles]
        left_out = sum(step.left_out > 0 for step in self.steps)
        return {
            **task.score(self.task, self.answer),
            "recall": task.recall(self.task, titles),
            **task.costs(self.steps),
            "cut": left_out,  # steps whose context had no room for all earlier turns
            "seconds": self.seconds,
        }

    def transcript(self) -> str:
        """The trajectory for a reader."""
        lines = [f"# {self.task.id}", f"Questions: {self.task.question}"]
        for i, step in enumerate(self.steps):
            lines.append(f"\n## {i}: {step.kind}, {step.prompt} tokens read, {step.generated} generated")
            lines += [f"({step.left_out} earlier turns left out)"] * bool(step.left_out)
            lines.append(step.text)
            lines += [f"found: {title}" for title in step.titles]
            lines += [f"wrote: {question} {answer}" for question, answer in step.pairs]
        gold = "; ".join(" | ".join(hop.answers) for hop in self.task.hops)
        return "\n".join([*lines, f"\nAnswer: {self.answer}", f"Right: {gold}"])


@dataclass(frozen=True)
class _Settings:
    state: str
    turns: int
    temperature: float
    max_new: int
    context: int
    observation: int
    documents: int


def run(
    agent: Agent,
    tasks: Sequence[task.Objectives],
    index: Index | None,
    *,
    state: str = "tmem",
    turns: int = 6,
    keys: Sequence[str] | None = None,
    temperature: float = 0.0,
    max_new: int = 160,
    context: int = 4096,
    observation: int = 1000,
    documents: int = 3,
    on_event: Callable[[str, int, int], None] | None = None,
) -> list[Trajectory]:
    """Work on every set of questions once. `keys[i]`, by default the set's id, seeds trajectory i's noise.

    state        what a turn sees beside the questions. "full": all earlier turns and replies, the oldest left out where the
                 prompt would exceed `context` tokens (the last one always stays). "mem1": the last turn and its reply.
                 "tmem": the last turn and how many are left; what was found is learned (as many run at once as the bank has
                 free slots). "none": no searching, the questions are answered at once; needs no index.
    turns        generations before the answer is asked for, once
    max_new      tokens of one turn; observation: tokens of one reply's documents; documents: how many a search finds
    on_event     told (phase, done, total) while searching, writing and answering
    Raises ValueError for an unknown state or a setting below 1, RuntimeError for a bank without a free slot.
    """
    if state not in STATES:
        raise ValueError(f"search: no state {state!r}; expected one of {', '.join(STATES)}.")
    for name, value in (("turns", turns), ("max_new", max_new), ("observation", observation), ("documents", documents)):
        if value < 1:
            raise ValueError(f"search: {name} is {value}, expected at least 1.")
    if index is None and state != "none":
        raise ValueError(f"search: state {state!r} searches and got no index; build one with tasks.corpus.Index.")
    keys = [t.id for t in tasks] if keys is None else list(keys)
    if len(keys) != len(tasks):
        raise ValueError(f"search: {len(keys)} keys for {len(tasks)} sets of questions; give one for each.")
    size = agent.bank.used.count(False) if state == "tmem" else max(1, len(tasks))
    if size == 0:
        raise RuntimeError("search: the bank has no free slot; free one or build a larger bank.")
    settings = _Settings(state, turns, temperature, max_new, context, observation, documents)
    out = [Trajectory(t, key) for t, key in zip(tasks, keys)]
    for at in range(0, len(out), size):
        rows = out[at : at + size]
        slots = [agent.bank.alloc() for _ in rows] if state == "tmem" else None
        try:
            _live(agent, rows, slots, index, settings, on_event or (lambda *_: None))
        finally:
            for slot in slots or ():
                agent.bank.free(slot)
    return out


def _live(agent: Agent, rows: list[Trajectory], slots, index, s: _Settings, on_event) -> None:
    start = time.perf_counter()
    for turn in range(0 if s.state == "none" else s.turns):
        active = [i for i, row in enumerate(rows) if row.answer is None]
        if not active:
            break
        on_event("search", turn, s.turns)
        found: dict[int, str] = {}
        for i, step in zip(active, _say(agent, rows, slots, active, s, f"turn{turn}", task.OPEN_TURN)):
            said, row = task.read(step["text"]), rows[i]
            shown, titles = str(said), ()
            if said.answer is not None:
                row.answer, row.seconds = said.answer, time.perf_counter() - start
            else:
                reply = _UNREADABLE
                if said.query is not None:
                    documents = index.find(said.query, s.documents)
                    titles = tuple(d.title for d in documents)
                    reply = agent.chat.clip(task.listing(documents), s.observation, keep="start") or _NOTHING
                if titles and s.state == "tmem":
                    found[i], reply = reply, _LEARNED
                shown += "\n" + task.information(reply, s.turns - turn - 1)
            row.steps.append(task.Step("turn", **step, shown=shown, query=said.query, titles=titles))
        if found:
            on_event("write", turn, s.turns)
            _remember(agent, rows, slots, found, s, f"turn{turn}")
    active = [i for i, row in enumerate(rows) if row.answer is None]
    on_event("answer", s.turns, s.turns)
    for i, step in zip(active, _say(agent, rows, slots, active, s, "answer", task.OPEN_ANSWER)):
        rows[i].steps.append(task.Step("answer", **step))
        rows[i].answer, rows[i].seconds = task.read(step["text"]).answer, time.perf_counter() - start


def _say(agent: Agent, rows, slots, active: list[int], s: _Settings, name: str, opened: str) -> list[dict]:
    """One generation for each active row, which starts with `opened`: the fields of a Step that every kind has."""
    contexts = [_context(agent.chat, rows[i], s, agent.chat.plain(opened)) for i in active]
    generations = decode(
        agent.model,
        [ids for ids, *_ in contexts],
        bank=None if slots is None else agent.bank,
        slots=None if slots is None else [slots[i] for i in active],
        end=agent.chat.end,
        max_new=s.max_new,
        temperature=s.temperature,
        keys=[f"{rows[i].key}/{name}" for i in active],
    )
    return [
        {
            "text": opened + agent.chat.text(g.ids),
            "prompt": len(ids),
            "history": history,
            "generated": len(g.ids),
            "left_out": left_out,
        }
        for g, (ids, history, left_out) in zip(generations, contexts)
    ]


def _context(chat, row: Trajectory, s: _Settings, opened: list[int]) -> tuple[list[int], int, int]:
    """Prompt of a row's next turn, how many of its tokens are history, and how many earlier turns were left out."""
    head = task.prompt(row.task, direct=s.state == "none")
    shown = [step.shown for step in row.steps if step.kind == "turn"]
    first = 0 if s.state == "full" else max(0, len(shown) - 1)  # of the turns shown
    left_out = 0
    while True:
        note = [_LEFT_OUT] * bool(left_out)
        ids = chat.prompt("\n".join([head, *note, *shown[first + left_out :]])) + opened
        if len(ids) <= s.context or first + left_out >= len(shown) - 1:
            return ids, len(ids) - len(chat.prompt(head)), left_out
        left_out += 1


def _remember(agent: Agent, rows, slots, found: dict[int, str], s: _Settings, name: str) -> None:
    """Write what was found as pairs and learn them, row by row its own, in pieces of at most the write window."""
    config = agent.config
    plans = {i: segments(agent.chat, [text], config.write.window) for i, text in found.items()}
    instruction = len(agent.chat.prompt(write_prompt("")))
    for j in range(max(map(len, plans.values()))):
        due = [i for i, plan in plans.items() if j < len(plan)]
        prompts = [agent.chat.prompt(write_prompt(plans[i][j])) for i in due]
        generations = decode(
            agent.model,
            prompts,
            bank=agent.bank,
            slots=agent.writers([slots[i] for i in due]),
            end=agent.chat.end,
            max_new=config.write.max_new,
            temperature=s.temperature,
            keys=[f"{rows[i].key}/{name}/write{j}" for i in due],
        )
        texts = [agent.chat.text(g.ids) for g in generations]
        written = [parse(t, finished=g.finished, limit=config.write.max_pairs) for t, g in zip(texts, generations)]
        keep = config.learn.rehearse
        jobs = [(slots[i], rehearsal(rows[i].learned, w.pairs, keep) if w.pairs else []) for i, w in zip(due, written)]
        learned = learn(agent.model, agent.bank, jobs, agent.chat, config.learn)
        for i, ids, g, text, w, result in zip(due, prompts, generations, texts, written, learned):
            rows[i].log.append(LogEntry(plans[i][j], w, result, len(g.ids), g.finished))
            pairs = tuple((p.question, p.answer) for p in w.pairs)
            rows[i].steps.append(task.Step("write", text, len(ids), len(ids) - instruction, len(g.ids), pairs=pairs))
