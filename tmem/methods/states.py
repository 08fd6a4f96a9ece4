"""What a search remembers: what a turn sees of the trajectory so far, and what becomes of what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..agent.agent import Agent, Draft, Reply
from ..agent.loop import LogEntry
from ..agent.passages import cut
from ..agent.write import surest
from ..episode import Question
from ..tasks import search as task
from ..words import normalise
from .folds import NOTES, SUMMARY
from .retrieve import Lines
from .trajectory import SearchConfig, Trajectory

Found = Sequence[tuple[Trajectory, str]]  # some rows, each with the text of what it found
# Takes what was found into what is kept; the last argument names the turn.
Keep = Callable[[Agent, Found, SearchConfig, str], None]


def written(agent: Agent, found: Found, config: SearchConfig, name: str) -> None:
    """Pairs, written by tmem's prompt: learned into the row's Δ, or, where it has none, kept as text, a question a line.

    Of a known question the surest answer is kept; one without an answer may yet be answered, so nothing is learned of it.
    """
    for j, due in _rounds(agent, found):
        rows, passages = zip(*due)
        slots = None if rows[0].slot is None else [row.slot for row in rows]
        known = [row.scene.questions for row in rows] if config.known else None
        drafts = agent.write(passages, slots, known, temperature=config.temperature, keys=_keys(rows, name, j))
        drafts = [replace(d, written=surest(d.written, row.sure)) for row, d in zip(rows, drafts)]
        if slots is not None:
            learned = agent.teach(slots, [d.written.pairs for d in drafts], [row.lesson for row in rows])
            for row, draft, result in zip(rows, drafts, learned):
                row.log.append(LogEntry.of(draft, result))
        for row, draft in zip(rows, drafts):
            pairs = draft.written.pairs
            row.steps.append(_step(draft, tuple((p.question, p.answer) for p in pairs)))
            if slots is None:
                _add(row, ((p.question, f"{p.question} {p.answer}") for p in pairs), anew=True)
            if slots is None or row.log[-1].learned.kept:
                row.sure |= draft.written.sure


def summarised(agent: Agent, found: Found, config: SearchConfig, name: str) -> None:
    """One text, written anew with every passage (MemAgent, arXiv 2507.02259)."""
    for j, due in _rounds(agent, found):
        prompts = [SUMMARY.format(state="\n".join(r.notes.values()) or "(none)", passage=text) for r, text in due]
        for (row, _), reply in zip(due, _said(agent, due, prompts, config.notes, config, name, j)):
            row.steps.append(_step(reply))
            row.notes = {line: task.escape(line) for line in reply.text.splitlines()}


def noted(agent: Agent, found: Found, config: SearchConfig, name: str) -> None:
    """Facts as lines of text, each once (after Mem0, arXiv 2504.19413)."""
    for j, due in _rounds(agent, found):
        prompts = [NOTES.format(passage=text) for _, text in due]
        for (row, _), reply in zip(due, _said(agent, due, prompts, agent.config.write.max_new, config, name, j)):
            row.steps.append(_step(reply))
            lines = reply.text.splitlines()
            _add(row, zip(lines, lines))


def stored(agent: Agent, found: Found, config: SearchConfig, name: str) -> None:
    """What was found as it is, a document a line, each once."""
    for row, text in found:
        documents = [rest for line in text.splitlines() for rest in line.split(" ", 2)[2:]]  # without "Doc 1"
        _add(row, zip(documents, documents))


def everything(agent: Agent, row: Trajectory, config: SearchConfig, room: int) -> str:
    """All lines; where they are longer than there is room, the beginning of each."""
    lines = list(row.notes.values())
    if agent.chat.count("\n".join(lines)) > room:
        lines = [agent.chat.clip(line, max(1, room // len(lines) - 1), keep="start") for line in lines]  # and a line break
    return "\n".join(lines)


def newest(agent: Agent, row: Trajectory, config: SearchConfig, room: int) -> str:
    """The last `config.notes` tokens of the lines."""
    return agent.chat.clip("\n".join(row.notes.values()), config.notes)


def nearest(agent: Agent, row: Trajectory, config: SearchConfig, room: int) -> str:
    """The lines that BM25 finds for the questions, best first until `config.notes` tokens are used, in their order."""
    asked = Question(row.task.id, row.task.question, (), "")
    return Lines(list(row.notes.values())).finder(agent, config.notes)(asked)


@dataclass(frozen=True)
class State:
    """How a method remembers in a search. All that search see the questions, their last turn and what is named here.

    searches  False: the questions are answered at once
    fixed     what every question is answered with, without the model
    given     the notes at the beginning are the passages that the answers rest on
    every     all earlier turns are seen, the oldest left out where the context is full; else the last one alone
    stays     what was found stands in the reply to its turn; else it leaves the context and is handed to each of `keep`
    text      what is seen of the notes; its last argument is the tokens that there is room for
    delta     has fast weights of its own, so that as many are worked on at once as the bank has free slots
    """

    searches: bool = True
    fixed: str | None = None
    given: bool = False
    every: bool = False
    stays: bool = False
    keep: tuple[Keep, ...] = ()
    text: Callable[[Agent, Trajectory, SearchConfig, int], str] = everything
    delta: bool = False


def _rounds(agent: Agent, found: Found) -> Iterator[tuple[int, Found]]:
    """What was found in passages of at most the write window: round by round those of the rows that have a further one."""
    streams = [cut(agent.chat, [text], agent.config.write.window) for _, text in found]
    for j in range(max(map(len, streams))):
        yield j, [(row, passages[j]) for (row, _), passages in zip(found, streams) if j < len(passages)]


def _said(
    agent: Agent, due: Found, prompts: Sequence[str], max_new: int, config: SearchConfig, name: str, j: int
) -> list[Reply]:
    return agent.say(prompts, max_new=max_new, temperature=config.temperature, keys=_keys([row for row, _ in due], name, j))


def _keys(rows: Sequence[Trajectory], name: str, j: int) -> list[str]:
    return [f"{row.key}/{name}/write{j}" for row in rows]


def _step(said: Reply | Draft, pairs: tuple[tuple[str, str], ...] = ()) -> task.Step:
    return task.Step("write", said.text, said.read, 0, said.generated, pairs=pairs)


def _add(row: Trajectory, lines: Iterable[tuple[str, str]], *, anew: bool = False) -> None:
    """Lines with what tells them apart; one that is there already is left as it is or, `anew`, written over."""
    for key, line in lines:
        if (key := normalise(key)) and (anew or key not in row.notes):
            row.notes[key] = task.escape(line)
