"""The search loop: think, search, read what was found, ..., answer; many trajectories in lock step.

The answer is one turn of the agent, as in MEM1, or every question is asked by itself with what is remembered, as after reading
(tmem.methods.reader), and the answers are joined.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..agent.agent import Agent
from ..episode import Question
from ..tasks import search as task
from ..tasks.corpus import Index
from ..tasks.search_scene import SearchScene, engine
from . import prompts
from .reader import Kept, Settings, ask
from .states import State
from .trajectory import SearchConfig, Trajectory

_LEFT_OUT = "(Earlier turns are left out.)"
USUAL = SearchConfig()
_NOTES = "What is known so far:\n{text}"


def run(
    agent: Agent,
    tasks: Sequence[task.Objectives],
    index: Index | None,
    state: State,
    *,
    config: SearchConfig = USUAL,
    keys: Sequence[str] | None = None,
    on_event: Callable[[str, int, int], None] | None = None,
) -> list[Trajectory]:
    """Work on every set of questions once. `keys[i]`, by default the set's id, seeds trajectory i's noise.

    index     of the documents; a state that does not search needs none
    on_event  told (phase, done, total) while searching, writing and answering
    Raises ValueError where a state that searches gets no index, or keys are not as many as tasks; RuntimeError for a bank
    without a free slot.
    """
    if index is None and state.searches:
        raise ValueError("search: this state searches and got no index; build one with tasks.corpus.Index.")
    keys = [t.id for t in tasks] if keys is None else list(keys)
    if len(keys) != len(tasks):
        raise ValueError(f"search: {len(keys)} keys for {len(tasks)} sets of questions; give one for each.")
    out, at = [Trajectory(t, key) for t, key in zip(tasks, keys)], 0
    while at < len(out):
        start, rest = time.perf_counter(), len(out) - at
        with agent.bank.borrowed(rest, 1) if state.delta else contextlib.nullcontext([None] * rest) as slots:
            rows, at = out[at : at + len(slots)], at + len(slots)
            for row, slot in zip(rows, slots):
                row.slot = slot
            batch = _Batch(agent, rows, index, state, config, on_event or (lambda *_: None))
            batch.work()
            kept = [batch.kept(row) for row in rows if config.each and state.fixed is None]
        batch.ask(kept)
        seconds = (time.perf_counter() - start) / len(rows)
        for row in rows:
            row.slot, row.scene, row.seconds = None, None, seconds
    return out


@dataclass
class _Batch:
    """Trajectories that are worked on at once; the rest as `run` has it."""

    agent: Agent
    rows: list[Trajectory]
    index: Index | None
    state: State
    config: SearchConfig
    tell: Callable[[str, int, int], None]

    def work(self) -> None:
        self._begin()
        turns = self.config.turns if self.state.searches else 0
        for turn in range(turns):
            if not self._open:
                break
            self.tell("search", turn, turns)
            if found := self._act(self._open, f"turn{turn}"):
                self.tell("write", turn, turns)
                for keep in self.state.keep:
                    keep(self.agent, found, self.config, f"turn{turn}")
        if rows := self._open:
            self.tell("answer", turns, turns)
            self._act(rows, "answer")

    def kept(self, row: Trajectory) -> Kept:
        """What a row remembers when its search is over; text as long as the context has room for beside a question."""
        config, state, chat = self.config, self.state, self.agent.chat
        room = config.context - self._beside(row)
        turns = row.scene.seen if state.stays else []
        notes = [state.text(self.agent, row, config, room)] if row.notes else []
        text = chat.clip("\n".join([*notes, *turns]), room)
        delta = None if row.slot is None else self.agent.bank.snapshot(row.slot, optimizer=False)
        row.state = max(row.state, self._kept(row, turns))
        return Kept(text=text or None, delta=delta)

    def ask(self, kept: Sequence[Kept]) -> None:
        """Each of the rows' questions by itself; the answer of a row is what was said to all of its own."""
        if not kept:
            return
        self.tell("answer", 0, len(kept))
        asked = [(k, question) for k, row in zip(kept, self.rows) for question in _questions(row)]
        said = iter(ask(self.agent, asked, Settings(form=self._form)))
        for row, own in zip(self.rows, kept):
            answers = [next(said) for _ in row.task.hops]
            history = 0 if own.text is None else self.agent.chat.count(str(own.text))
            row.steps += [task.Step("answer", a.text, a.prompt, history, a.generated) for a in answers]
            row.answer = task.joined([a.text for a in answers])

    @property
    def _form(self) -> str:
        """How a question is worded: text in the form chosen for it, Δ as it was taught."""
        return prompts.AS_TAUGHT if self.state.delta else self.config.each or prompts.FEW_SHOT

    def _beside(self, row: Trajectory) -> int:
        """Tokens that stand beside the text when a row's longest question is asked."""
        return max(len(prompts.ids(self.agent, self._form, "", question.text)) for question in _questions(row))

    @property
    def _open(self) -> list[Trajectory]:
        """The rows that go on."""
        return [row for row in self.rows if row.answer is None and not row.scene.over]

    def _begin(self) -> None:
        config, state = self.config, self.state
        find = None if self.index is None else engine(self.index, config.documents)
        for row in self.rows:
            row.scene = SearchScene(
                row.task, find, self.agent.chat.beginning, turns=config.turns if state.searches else 0,
                observation=config.observation, known=config.known, stays=state.stays, every=state.every,
                each=config.each is not None,
            )  # fmt: skip
            if state.fixed is not None:
                row.answer = "; ".join([state.fixed] * len(row.task.hops))
            if state.given:
                row.notes = {line: line for line in task.listing(task.evidence(row.task)).splitlines()}

    def _act(self, rows: Sequence[Trajectory], name: str) -> list[tuple[Trajectory, str]]:
        """An action of each row; what leaves the context, of the rows that found something."""
        found = []
        for row, step in zip(rows, self._say(rows, name, rows[0].scene.opened)):
            scene = row.scene
            passage, row.answer = scene.act(step["text"]).passage, scene.answer
            if passage:
                found.append((row, passage))
            more = {} if name == "answer" else {"shown": scene.shown, "query": scene.said.query, "titles": scene.titles}
            row.steps.append(task.Step("answer" if name == "answer" else "turn", **step, **more))
        return found

    def _say(self, rows: Sequence[Trajectory], name: str, opened: str) -> list[dict]:
        """One generation for each row, which starts with `opened`: the fields of a Step that every kind has."""
        contexts = [self._context(row, self.agent.chat.said(opened)) for row in rows]
        replies = self.agent.say(
            [ids for ids, *_ in contexts],
            [row.slot for row in rows] if self.state.delta and rows[0].scene.recalls else None,
            max_new=self.config.max_new,
            temperature=self.config.temperature,
            keys=[f"{row.key}/{name}" for row in rows],
        )
        return [
            {
                "text": opened + reply.text,
                "prompt": reply.read,
                "history": history,
                "generated": reply.generated,
                "left_out": left_out,
            }
            for reply, (_, history, left_out) in zip(replies, contexts)
        ]

    def _context(self, row: Trajectory, opened: list[int]) -> tuple[list[int], int, int]:
        """Prompt of a row's next turn, how many of its tokens are history, and how many earlier turns were left out.

        What was kept for it counts into `row.state`.
        """
        chat, state, room = self.agent.chat, self.state, self.config.context
        head = row.scene.instruction
        instruction = len(chat.prompt(head))
        beside = chat.count("\n" + _NOTES.format(text="")) + len(opened)
        notes = state.text(self.agent, row, self.config, room - instruction - beside) if row.notes else ""
        above = [head, _NOTES.format(text=notes)] if notes else [head]
        shown, left_out = row.scene.seen, 0
        while True:
            turns = shown[left_out:]
            ids = chat.prompt("\n".join([*above, *[_LEFT_OUT] * bool(left_out), *turns])) + opened
            if len(ids) <= room or len(turns) <= 1:
                break
            left_out += 1
        row.state = max(row.state, self._kept(row, turns))
        return ids, len(ids) - instruction, left_out

    def _kept(self, row: Trajectory, turns: Sequence[str]) -> int:
        """Bytes of the notes, the turns that are seen again, and Δ."""
        kept = len("\n".join([*row.notes.values(), *turns]).encode())
        if row.slot is not None:
            kept += self.agent.bank.param[row.slot].numel() * self.agent.bank.param.element_size()
        return kept


def _questions(row: Trajectory) -> list[Question]:
    """A row's questions as they are asked one by one."""
    return [Question(hop.id, question, hop.answers, "") for hop, question in zip(row.task.hops, row.scene.questions)]
