"""The episode loop: observe -> write -> learn -> clear the context -> ... -> answer, for many episodes at once.

When a passage of the stream is due depends on token counts alone, so it is cut beforehand. In round j every episode that
still has a j-th passage writes and learns, all in the same batches, each in its own slot. Then come the turns of those episodes
that have a scene. In turn t every scene that is not over acts once; what leaves its context then is written and learned as a
stream of its own, before turn t + 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ..adapters.bank import Snapshot
from ..episode import Episode, Observation, Outcome, Pair, Question, Scene
from .agent import Agent, Draft
from .decode import Generation
from .learn import Learned
from .passages import cut
from .probe import asked_back
from .scored import Likelihood, likelihoods
from .teach import Lesson
from .write import DROPPED, Written, beside, first_line, surest

WRITES = 64  # made at once where they depend on no Δ


@dataclass(frozen=True)
class Action:
    """One generation of a rollout, kept for the policy gradient: what was seen, what was said, under which Δ."""

    kind: str  # "write", "answer", or in a scene the observation's
    prompt: list[int]
    generation: Generation
    delta: Snapshot | None  # the Δ that produced it; None: Δ = 0, or not kept
    writes: int = 0  # how many writes its Δ had learned
    place: int = 0  # the entry of the rollout's log that it is part of, the question that it answers, or the turn of its scene


class Clock(dict):
    """Seconds by name: `with clock("write"): ...` adds to clock["write"]."""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self[name] = self.get(name, 0.0) + time.perf_counter() - start


@dataclass
class LogEntry:
    """One write: the passage it came from, the pairs, what was dropped, what learning did, and whether it stuck."""

    passage: str
    written: Written
    learned: Learned
    read: int = 0  # tokens of the prompts, one that several replies share once
    tokens: int = 0  # generated
    finished: bool = True  # False: the token limit ended it, or one of its replies
    stuck: list[dict] = field(default_factory=list)  # what `probe.asked_back` found, a pair each

    @classmethod
    def of(cls, draft: Draft, learned: Learned) -> LogEntry:
        """The entry of a write that was learned."""
        return cls(draft.passage, draft.written, learned, draft.read, draft.generated, draft.finished)

    @property
    def taught(self) -> bool:
        """Whether anything was learned."""
        return bool(self.written.pairs) and self.learned.kept

    def __str__(self) -> str:
        """What the write did, in one line."""
        w, learned, count = self.written, self.learned, len(self.written.pairs)
        kinds = ", ".join(f"{getattr(w, k)} {k}" for k in DROPPED if getattr(w, k))
        if self.taught:
            did = f"loss {learned.loss_before:.2f} -> {learned.loss_after:.3f}, ‖ΔW‖ {learned.norm:.1f}"
        elif count:
            did = f"nothing was learned (rolled back: {learned.reason})"
        else:
            did = f"nothing was learned ({'no line was a question/answer pair' if kinds else 'the model wrote nothing'})"
        wrote = f"read {self.read} tokens, wrote {count} {'pair' if count == 1 else 'pairs'}"
        ended = "" if self.finished else "; the token limit cut it off"
        return f"{wrote}: {did}" + (f"; dropped: {kinds}" if kinds else "") + ended


@dataclass(frozen=True)
class Turn:
    """One turn of a scene: what was seen, what was said, with what opened it, and what that led to."""

    seen: Observation
    said: str
    outcome: Outcome


@dataclass
class Rollout:
    """What an agent did in one episode: its log, its answers in question order, and its actions when traced."""

    episode: Episode
    key: str
    log: list[LogEntry] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    likely: list[Likelihood] = field(default_factory=list)  # where answers were scored: of the right ones, per question
    scene: Scene | None = None
    turns: list[Turn] = field(default_factory=list)  # of the scene
    actions: list[Action] = field(default_factory=list)
    delta: Snapshot | None = None  # Δ at the end, when traced with snapshots or when nothing was asked
    seconds: float = 0.0  # an equal share of what its batch took
    lesson: Lesson = field(default_factory=Lesson)  # what it was taught
    sure: dict[str, float] = field(default_factory=dict)  # of known questions: how sure the answer is that it was taught

    @property
    def pairs(self) -> list[Pair]:
        """All pairs written, those of writes that were rolled back too."""
        return [p for entry in self.log for p in entry.written.pairs]


@dataclass(frozen=True)
class RunOptions:
    """How episodes are run.

    temperature  of writing, of a scene's actions, and of answers that are sampled
    answering    "sampled"; "greedy": the likeliest answers, which are then no actions of the policy; "scored": nothing is said,
                 how likely the right answers are is computed (`Rollout.likely`); "none": nothing is asked, `Rollout.delta`
                 is what was learned
    trace        keep every action with the Δ that produced it, for the policy gradient; without `snapshots` only with the
                 number of writes before it, from which Δ can be learned again
    probing      ask paraphrases and wrong-person questions after each write (see agent.probe) of all episodes or of those with
                 these indices; costs two answers per pair
    known        the episode's questions stand in the prompt of every write (the paper's protocol)
    """

    temperature: float = 0.0
    answering: str = "sampled"
    trace: bool = False
    snapshots: bool = True
    probing: bool | Sequence[int] = False
    known: bool = False


def run(
    agent: Agent,
    episodes: Sequence[Episode],
    keys: Sequence[str],
    *,
    on_event: Callable[[str, int, int], None] | None = None,
    clock: Clock | None = None,
    **options,
) -> list[Rollout]:
    """Run every episode once; `keys[i]` seeds episode i's noise. As many run at once as the bank has free slots.

    on_event  told (phase, done, total) while writing, learning, acting and answering
    clock     is told the seconds of "write", "learn" and "answer", of scenes also "act" and "tool"
    options   fields of `RunOptions`
    """
    rollouts, how, at = [Rollout(e, k) for e, k in zip(episodes, keys)], RunOptions(**options), 0
    probed = set(range(len(rollouts)) if how.probing is True else how.probing or ())
    on_event, clock = on_event or (lambda *_: None), Clock() if clock is None else clock
    while at < len(rollouts):
        start = time.perf_counter()
        with agent.bank.borrowed(len(rollouts) - at, 1) as slots:
            part = rollouts[at : at + len(slots)]
            batch = _Batch(agent, part, slots, how, {i - at for i in probed}, on_event, clock)
            batch.read()
            batch.play()
            batch.ask()
        at += len(part)
        for rollout in part:
            rollout.seconds = (time.perf_counter() - start) / len(part)
    return rollouts


def opened_prompt(agent: Agent, seen: Observation) -> list[int]:
    """Token ids of what is seen, and of what the action begins with."""
    return agent.chat.prompt(seen.text) + (agent.chat.said(seen.opened) if seen.opened else [])


def _asked(agent: Agent, rollout: Rollout, question: Question) -> str:
    """A question as it is asked at the end, beside what the scene kept."""
    text = rollout.scene.kept.passage if rollout.scene else ""
    return beside(text, agent.asked(question.text)) if text else agent.asked(question.text)


@dataclass
class _Batch:
    """Episodes that run at once, each in its slot; `probed`: the places of those whose pairs are asked back."""

    agent: Agent
    rollouts: list[Rollout]
    slots: list[int]
    how: RunOptions
    probed: set[int]
    tell: Callable[[str, int, int], None]
    clock: Clock

    def read(self) -> None:
        """Write and learn every passage of the streams."""
        asked = [[q.text for q in r.episode.questions] if self.how.known else [] for r in self.rollouts]
        self._absorb([r.episode.chunks for r in self.rollouts], asked)

    def play(self) -> None:
        """Take the turns of all scenes; what leaves a context is written and learned before the next turn."""
        for rollout in self.rollouts:
            if rollout.episode.begin is not None:
                rollout.scene = rollout.episode.begin(self.agent.chat.beginning)
        scenes, turn = {i: r.scene for i, r in enumerate(self.rollouts) if r.scene is not None}, 0
        while seen := {i: found for i, scene in scenes.items() if (found := scene.observe()) is not None}:
            self.tell("act", turn, turn)
            for i, said in self._act(seen).items():
                with self.clock("tool"):
                    outcome = scenes[i].act(said)
                self.rollouts[i].turns.append(Turn(seen[i], said, outcome))
            left = {i: self.rollouts[i].turns[-1].outcome for i in seen}
            streams = [[left[i].passage] if i in left and left[i].passage else [] for i in range(len(self.rollouts))]
            self._absorb(streams, [left[i].asked if i in left else () for i in range(len(streams))], f"/turn{turn}")
            turn += 1

    def _act(self, seen: dict[int, Observation]) -> dict[int, str]:
        """What some rollouts say to what they see, with what opened it. Those who may say as much speak in one batch."""
        out: dict[int, str] = {}
        for most in sorted({s.max_new for s in seen.values()}):
            mine = [i for i in seen if seen[i].max_new == most]
            with self.clock("act"):
                replies = self.agent.say(
                    [opened_prompt(self.agent, seen[i]) for i in mine],
                    [self.slots[i] if self.rollouts[i].scene.recalls else -1 for i in mine],
                    max_new=most,
                    temperature=self.how.temperature,
                    keys=[f"{self.rollouts[i].key}/act{len(self.rollouts[i].turns)}" for i in mine],
                )
            for i, reply in zip(mine, replies):
                rollout = self.rollouts[i]
                if self.how.trace:
                    under = (rollout.delta, len(rollout.log)) if rollout.scene.recalls else (None, 0)
                    rollout.actions.append(Action(seen[i].kind, reply.prompt, reply.generation, *under, len(rollout.turns)))
                out[i] = seen[i].opened + reply.text
        return out

    def _absorb(self, texts: Sequence[Sequence[str]], asked: Sequence[Sequence[str]], at: str = "") -> None:
        """Write and learn each rollout's texts, passage by passage. asked: what is known to be asked; at: names their noise."""
        agent, under_delta = self.agent, self.agent.config.write.under_delta
        streams = [cut(agent.chat, own, agent.config.write.window) for own in texts]
        rounds, every = max(map(len, streams), default=0), agent.config.learn.every
        drafts = {} if under_delta else self._written_at_once(streams, asked, at)
        for j in range(0, rounds, every):
            due = {i: [(i, k) for k in range(j, min(j + every, len(p)))] for i, p in enumerate(streams) if j < len(p)}
            if under_delta:
                self.tell("write", j, rounds)
                drafts = self._write(streams, [spot for spots in due.values() for spot in spots], asked, at)
            self.tell("learn", j, rounds)
            joined = {i: Draft.joined([drafts.pop(spot) for spot in spots]) for i, spots in due.items()}
            self._learn(joined, "" if at else agent.config.learn.unknown)
            if mine := [i for i in due if i in self.probed]:
                with self.clock("probe"):
                    asked_back(agent, [self.rollouts[i].log[-1] for i in mine], [self.slots[i] for i in mine])

    def _written_at_once(self, streams: list[list[str]], asked, at: str) -> dict[tuple[int, int], Draft]:
        """Every passage of every rollout: what is written depends on no Δ.

        Rollouts of one text, such as those of known questions, are at the same passage then, which is read once for all.
        """
        rounds, drafts = max(map(len, streams), default=0), {}
        spots = [(i, j) for j in range(rounds) for i, passages in enumerate(streams) if j < len(passages)]
        for start in range(0, len(spots), WRITES):
            self.tell("write", start, len(spots))
            drafts |= self._write(streams, spots[start : start + WRITES], asked, at)
        return drafts

    def _write(self, streams: list[list[str]], spots: list[tuple[int, int]], asked, at: str) -> dict[tuple[int, int], Draft]:
        """The drafts of (rollout, passage)."""
        with self.clock("write"):
            drafts = self.agent.write(
                [streams[i][j] for i, j in spots],
                [self.slots[i] for i, _ in spots],
                [asked[i] for i, _ in spots],
                temperature=self.how.temperature,
                keys=[f"{self.rollouts[i].key}{at}/write{j}" for i, j in spots],
            )
        return dict(zip(spots, drafts))

    def _learn(self, drafts: dict[int, Draft], unknown: str) -> None:
        """Learn a draft each of some rollouts, and log it. unknown: see `surest`; in a scene a later turn may answer yet."""
        slots, rollouts = [self.slots[i] for i in drafts], [self.rollouts[i] for i in drafts]
        drafts = {i: replace(d, written=surest(d.written, self.rollouts[i].sure, unknown)) for i, d in drafts.items()}
        with self.clock("learn"):
            learned = self.agent.teach(slots, [d.written.pairs for d in drafts.values()], [r.lesson for r in rollouts])
        for slot, rollout, draft, result in zip(slots, rollouts, drafts.values(), learned):
            if self.how.trace:
                seen = (rollout.delta, len(rollout.log)) if self.agent.config.write.under_delta else (None, 0)
                rollout.actions += [Action("write", r.prompt, r.generation, *seen, len(rollout.log)) for r in draft.replies]
                rollout.delta = self.agent.bank.snapshot(slot, optimizer=False) if self.how.snapshots else None
            rollout.log.append(LogEntry.of(draft, result))
            if result.kept:
                rollout.sure |= draft.written.sure

    def ask(self) -> None:
        """The questions of all rollouts, or what was learned where nothing is asked."""
        if self.how.answering == "none":
            for rollout, slot in zip(self.rollouts, self.slots):
                rollout.delta = self.agent.bank.snapshot(slot, optimizer=False)
            return
        rounds = max((len(r.log) for r in self.rollouts), default=0)
        self.tell("answer", rounds, rounds)
        agent, asked = self.agent, [(r, slot, q) for r, slot in zip(self.rollouts, self.slots) for q in r.episode.questions]
        if not asked:
            return
        with self.clock("answer"):
            if self.how.answering == "scored":
                found = likelihoods(agent, [q for *_, q in asked], [slot for _, slot, _ in asked])
                for (rollout, *_), likely in zip(asked, found):
                    rollout.likely.append(likely)
                return
            sampled = self.how.answering != "greedy" and self.how.temperature > 0.0
            replies = agent.say(
                [_asked(agent, r, q) for r, _, q in asked],
                [slot for _, slot, _ in asked],
                max_new=agent.config.answer.max_new,
                temperature=self.how.temperature if sampled else 0.0,
                keys=[f"{r.key}/answer/{q.id}" for r, _, q in asked],
                questions=True,
            )
            answers = [first_line(r.text) for r in replies] if sampled else agent.settled(
                [q.text for *_, q in asked], replies, [slot for _, slot, _ in asked]
            )  # fmt: skip
        for (rollout, *_), reply, answer in zip(asked, replies, answers):
            if self.how.trace and self.how.answering == "sampled":
                seen = (rollout.delta, len(rollout.log))
                rollout.actions.append(Action("answer", reply.prompt, reply.generation, *seen, len(rollout.answers)))
            rollout.answers.append(answer)
