"""The search loop: think, search, read what was found, ..., answer; many trajectories in lock step.

What differs between states is what a turn sees of the trajectory so far, and what becomes of what was found: see `STATES`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..agent.decode import Generation, decode
from ..agent.learn import learn
from ..agent.loop import Agent, LogEntry
from ..agent.passages import cut
from ..agent.teach import chosen
from ..agent.write import parse, write_prompt
from ..episode import Pair, Question
from ..tasks import search as task
from ..tasks.corpus import Index
from ..words import normalise
from .folds import NOTES, SUMMARY
from .retrieve import Lines

_LEARNED = "The documents were read and are remembered."
_NOTHING = "Nothing was found."
_UNREADABLE = "Nothing was searched: end your turn with <search> or <answer>."
_LEFT_OUT = "(Earlier turns are left out.)"
_MEMORY = "What is known so far:\n{text}"


@dataclass
class Trajectory:
    """One set of questions as it was worked on.

    memory: the lines of text that its state keeps, by what tells them apart. slot: of its Δ, while it is worked on. log: its
    writes, where they were learned. state: bytes, the most that was kept from one turn to the next: these lines, the turns that
    are seen again, and Δ. seconds: an equal share of what its batch took.
    """

    task: task.Objectives
    key: str
    steps: list[task.Step] = field(default_factory=list)
    log: list[LogEntry] = field(default_factory=list)
    memory: dict[str, str] = field(default_factory=dict)
    slot: int | None = None
    answer: str | None = None
    state: int = 0
    seconds: float = 0.0

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
    state: State
    turns: int
    temperature: float
    max_new: int
    context: int
    observation: int
    documents: int

    @property
    def budget(self) -> int:
        """Tokens of text that a turn may be shown of what was kept, and that a summary may be long."""
        return max(1, self.context // 8)


# states ---------------------------------------------------------------------------------------------------------------

# What is made of what some rows found: (row, its text) of each, settings, the name of the turn.
Keep = Callable[[Agent, Sequence[tuple[Trajectory, str]], _Settings, str], None]


def _written(agent: Agent, found: Sequence[tuple[Trajectory, str]], s: _Settings, name: str) -> None:
    """Pairs, written by tmem's prompt: learned into the row's Δ, or, where it has none, kept as text, a question a line."""
    config = agent.config
    for said in _said(agent, found, s, name, lambda _, segment: write_prompt(segment), config.write.max_new):
        written = [parse(agent.chat.text(g.ids), finished=g.finished, limit=config.write.max_pairs) for *_, g in said]
        if s.state.delta:
            jobs = [(row.slot, chosen(row.learned, w.pairs, config.learn)) for (row, *_), w in zip(said, written)]
            learned = learn(agent.model, agent.bank, jobs, agent.chat, config.learn)
            for (row, segment, ids, g), w, result in zip(said, written, learned):
                row.log.append(LogEntry(segment, w, result, len(ids), len(g.ids), g.finished))
        for (row, _, ids, g), w in zip(said, written):
            row.steps.append(_write(agent, ids, g, tuple((p.question, p.answer) for p in w.pairs)))
            if not s.state.delta:
                _add(row, ((p.question, f"{p.question} {p.answer}") for p in w.pairs), anew=True)


def _summarised(agent: Agent, found: Sequence[tuple[Trajectory, str]], s: _Settings, name: str) -> None:
    """One text, written anew with every piece (MemAgent, arXiv 2507.02259)."""

    def prompt(row: Trajectory, segment: str) -> str:
        return SUMMARY.format(state="\n".join(row.memory.values()) or "(none)", segment=segment)

    for said in _said(agent, found, s, name, prompt, s.budget):
        for row, _, ids, g in said:
            row.steps.append(_write(agent, ids, g))
            row.memory = {line: task.escape(line) for line in agent.chat.text(g.ids).splitlines()}


def _noted(agent: Agent, found: Sequence[tuple[Trajectory, str]], s: _Settings, name: str) -> None:
    """Facts as lines of text, each once (after Mem0, arXiv 2504.19413)."""
    for said in _said(agent, found, s, name, lambda _, segment: NOTES.format(segment=segment), agent.config.write.max_new):
        for row, _, ids, g in said:
            row.steps.append(_write(agent, ids, g))
            lines = agent.chat.text(g.ids).splitlines()
            _add(row, zip(lines, lines))


def _stored(agent: Agent, found: Sequence[tuple[Trajectory, str]], s: _Settings, name: str) -> None:
    """What was found as it is, a document a line, each once."""
    for row, text in found:
        passages = [rest for line in text.splitlines() for rest in line.split(" ", 2)[2:]]  # without "Doc 1"
        _add(row, zip(passages, passages))


def _add(row: Trajectory, lines: Iterable[tuple[str, str]], *, anew: bool = False) -> None:
    """Lines with what tells them apart; one that is there already is left as it is or, `anew`, written over."""
    for key, line in lines:
        if (key := normalise(key)) and (anew or key not in row.memory):
            row.memory[key] = task.escape(line)


def _all(agent: Agent, row: Trajectory, s: _Settings, room: int) -> str:
    """All lines; where they are longer than there is room, the beginning of each."""
    lines = list(row.memory.values())
    if agent.chat.count("\n".join(lines)) > room:
        lines = [agent.chat.clip(line, max(1, room // len(lines) - 1), keep="start") for line in lines]  # and a line break
    return "\n".join(lines)


def _newest(agent: Agent, row: Trajectory, s: _Settings, room: int) -> str:
    """The last `budget` tokens of the lines."""
    return agent.chat.clip("\n".join(row.memory.values()), s.budget)


def _nearest(agent: Agent, row: Trajectory, s: _Settings, room: int) -> str:
    """The lines that BM25 finds for the questions, best first until `budget` tokens are used, in their order."""
    asked = Question(row.task.id, row.task.question, (), "")
    return Lines(list(row.memory.values())).finder(agent, s.budget)(asked)


@dataclass(frozen=True)
class State:
    """What a turn sees beside the questions, and what becomes of what was found.

    searches  False: the questions are answered at once
    fixed     what every question is answered with, without the model
    given     the lines at the beginning are the passages that the answers rest on
    every     all earlier turns are seen, the oldest left out where the context is full; else the last one alone
    stays     what was found stands in the reply to its turn; else it leaves the context and is handed to each of `keep`
    text      what is seen of the lines that are kept
    delta     has fast weights of its own
    """

    searches: bool = True
    fixed: str | None = None
    given: bool = False
    every: bool = False
    stays: bool = False
    keep: tuple[Keep, ...] = ()
    text: Callable[[Agent, Trajectory, _Settings, int], str] = _all
    delta: bool = False


STATES: dict[str, State] = {
    "none": State(searches=False),
    "constant": State(searches=False, fixed=task.CONSTANT),
    "full": State(every=True, stays=True),
    "mem1": State(stays=True),
    "oracle": State(searches=False, given=True),
    "summary": State(keep=(_summarised,), text=_newest),
    "notes": State(keep=(_noted,), text=_nearest),
    "retrieval": State(keep=(_stored,), text=_nearest),
    "pairs": State(keep=(_written,), text=_newest),
    "tmem": State(keep=(_written,), delta=True),
    "tmem+retrieval": State(keep=(_written, _stored), text=_nearest, delta=True),
}


# the loop -------------------------------------------------------------------------------------------------------------


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

    state        what a turn sees beside the questions, one of STATES. All that search see their last turn and what is left.
                 "full": all earlier turns and replies, the oldest left out where the prompt would exceed `context` tokens
                 (the last one always stays). "mem1": the reply to the last turn. In the others what was found leaves the
                 context. "tmem": it is written as pairs and learned (as many run at once as the bank has free slots).
                 "pairs": the newest pairs are shown, none is learned. "summary": a text that is written anew. "notes",
                 "retrieval": of facts that the model noted, or of the documents found, the lines that BM25 finds for the
                 questions. "tmem+retrieval": both. An eighth of the context is for such text. "none", "oracle", "constant":
                 nothing is searched, the questions are answered at once: alone, with the passages that they rest on, or
                 always alike; no index is needed.
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
    s = _Settings(STATES[state], turns, temperature, max_new, context, observation, documents)
    if index is None and s.state.searches:
        raise ValueError(f"search: state {state!r} searches and got no index; build one with tasks.corpus.Index.")
    keys = [t.id for t in tasks] if keys is None else list(keys)
    if len(keys) != len(tasks):
        raise ValueError(f"search: {len(keys)} keys for {len(tasks)} sets of questions; give one for each.")
    out, at = [Trajectory(t, key) for t, key in zip(tasks, keys)], 0
    while at < len(out):
        start, rest = time.perf_counter(), len(out) - at
        slots = agent.bank.claim(rest) if s.state.delta else [None] * rest
        rows, at = out[at : at + len(slots)], at + len(slots)
        try:
            for row, slot in zip(rows, slots):
                row.slot = slot
            _live(agent, rows, index, s, on_event or (lambda *_: None))
        finally:
            for row, slot in zip(rows, slots):
                row.slot = None
                if slot is not None:
                    agent.bank.free(slot)
        seconds = (time.perf_counter() - start) / len(rows)
        for row in rows:
            row.seconds = seconds
    return out


def _live(agent: Agent, rows: list[Trajectory], index: Index | None, s: _Settings, on_event) -> None:
    for row in rows:
        if s.state.fixed is not None:
            row.answer = "; ".join([s.state.fixed] * len(row.task.hops))
        if s.state.given:
            row.memory = {line: line for line in task.listing(task.evidence(row.task)).splitlines()}
    for turn in range(s.turns if s.state.searches else 0):
        active = [row for row in rows if row.answer is None]
        if not active:
            break
        on_event("search", turn, s.turns)
        found: list[tuple[Trajectory, str]] = []
        for row, step in zip(active, _turn(agent, active, s, f"turn{turn}", task.OPEN_TURN)):
            said = task.read(step["text"])
            shown, titles, row.answer = str(said), (), said.answer
            if said.answer is None:
                reply = _UNREADABLE
                if said.query is not None:
                    documents = index.find(said.query, s.documents)
                    titles = tuple(d.title for d in documents)
                    reply = agent.chat.clip(task.listing(documents), s.observation, keep="start") or _NOTHING
                if titles and not s.state.stays:
                    found.append((row, reply))
                    reply = _LEARNED
                shown += "\n" + task.information(reply, s.turns - turn - 1)
            row.steps.append(task.Step("turn", **step, shown=shown, query=said.query, titles=titles))
        if found:
            on_event("write", turn, s.turns)
            for keep in s.state.keep:
                keep(agent, found, s, f"turn{turn}")
    if active := [row for row in rows if row.answer is None]:
        on_event("answer", s.turns, s.turns)
        for row, step in zip(active, _turn(agent, active, s, "answer", task.OPEN_ANSWER)):
            row.steps.append(task.Step("answer", **step))
            row.answer = task.read(step["text"]).answer


def _turn(agent: Agent, rows: Sequence[Trajectory], s: _Settings, name: str, opened: str) -> list[dict]:
    """One generation for each row, which starts with `opened`: the fields of a Step that every kind has."""
    contexts = [_context(agent, row, s, agent.chat.said(opened)) for row in rows]
    generations = decode(
        agent.model,
        [ids for ids, *_ in contexts],
        bank=agent.bank if s.state.delta else None,
        slots=[row.slot for row in rows] if s.state.delta else None,
        end=agent.chat.ends,
        max_new=s.max_new,
        temperature=s.temperature,
        keys=[f"{row.key}/{name}" for row in rows],
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


def _context(agent: Agent, row: Trajectory, s: _Settings, opened: list[int]) -> tuple[list[int], int, int]:
    """Prompt of a row's next turn, how many of its tokens are history, and how many earlier turns were left out.

    What was kept for it counts into `row.state`.
    """
    head = task.prompt(row.task, direct=not s.state.searches)
    instruction = len(agent.chat.prompt(head))
    beside = agent.chat.count("\n" + _MEMORY.format(text="")) + len(opened)
    memory = s.state.text(agent, row, s, s.context - instruction - beside) if row.memory else ""
    above = [head, _MEMORY.format(text=memory)] if memory else [head]
    shown = [step.shown for step in row.steps if step.kind == "turn"]
    first = 0 if s.state.every else max(0, len(shown) - 1)  # of the turns shown
    left_out = 0
    while True:
        turns = shown[first + left_out :]
        ids = agent.chat.prompt("\n".join([*above, *[_LEFT_OUT] * bool(left_out), *turns])) + opened
        if len(ids) <= s.context or len(turns) <= 1:
            break
        left_out += 1
    kept = len("\n".join([*row.memory.values(), *turns]).encode())
    if row.slot is not None:
        kept += agent.bank.param[row.slot].numel() * agent.bank.param.element_size()
    row.state = max(row.state, kept)
    return ids, len(ids) - instruction, left_out


def _said(
    agent: Agent, found: Sequence[tuple[Trajectory, str]], s: _Settings, name: str, prompt: Callable[[Trajectory, str], str],
    max_new: int,
) -> Iterator[list[tuple[Trajectory, str, list[int], Generation]]]:  # fmt: skip
    """What the model says to what was found, in pieces of at most the write window.

    Round by round (row, piece, prompt ids, generation) of the rows that have a further piece.
    """
    plans = [cut(agent.chat, [text], agent.config.write.window) for _, text in found]
    for j in range(max(map(len, plans))):
        due = [(row, plan[j]) for (row, _), plan in zip(found, plans) if j < len(plan)]
        prompts = [agent.chat.prompt(prompt(row, segment)) for row, segment in due]
        generations = decode(
            agent.model,
            prompts,
            bank=agent.bank if s.state.delta else None,
            slots=agent.writers([row.slot for row, _ in due]) if s.state.delta else None,
            end=agent.chat.ends,
            max_new=max_new,
            temperature=s.temperature,
            keys=[f"{row.key}/{name}/write{j}" for row, _ in due],
        )
        yield [(row, segment, ids, g) for (row, segment), ids, g in zip(due, prompts, generations)]


def _write(agent: Agent, ids: list[int], g: Generation, pairs: tuple[tuple[str, str], ...] = ()) -> task.Step:
    return task.Step("write", agent.chat.text(g.ids), len(ids), 0, len(g.ids), pairs=pairs)
