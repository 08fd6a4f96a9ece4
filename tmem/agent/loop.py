"""The episode loop: observe -> write -> learn -> clear the context -> ... -> answer, for many episodes at once.

When a segment of the stream is due depends on token counts alone, so it is cut beforehand. In round j every episode that
still has a j-th segment writes and learns, all in the same batches, each in its own slot.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..adapters.bank import AdapterBank, Snapshot
from ..adapters.calibration import TEXTS
from ..episode import Episode, Pair, Question
from ..models import forward as fw
from ..models.chat import Chat
from ..words import normalise
from .config import AgentConfig
from .decode import Generation, decode
from .learn import Learned, learn
from .probe import probe, speakers
from .scored import probabilities
from .teach import lesson
from .write import Written, parse, write_prompt

DATE = re.compile(r"(?:session )?date: \S.{0,99}", re.IGNORECASE)  # a chunk's first line where the session has one
WRITES = 64  # made at once where they depend on no Δ


@dataclass
class Agent:
    """A model with its chat template, a bank under it, and the settings of the loop."""

    model: object
    chat: Chat
    bank: AdapterBank
    config: AgentConfig

    @classmethod
    def build(cls, model, tokenizer, config: AgentConfig, slots: int, seed: int = 0) -> Agent:
        """Attach a bank of `slots` episodes to a model as `config.adapter` says; `seed` draws its subspace.

        Raises ValueError for a model that tmem.models.forward cannot run.
        """
        fw.parts(model)
        adapter, chat = config.adapter, Chat(tokenizer, model)
        bank = AdapterBank(
            model,
            slots,
            adapter.rank,
            targets=adapter.targets,
            last_layers=min(adapter.last_layers, model.config.num_hidden_layers),
            init=adapter.init,
            train_a=adapter.train_a,
            optimizer=adapter.optimizer,
            seed=seed,
            texts=[chat.plain(text) for text in TEXTS] if adapter.init == "activation" else (),
        )
        return cls(model, chat, bank, config)

    def writers(self, slots: Sequence[int]) -> list[int]:
        """Under whose Δ each of `slots` writes: its own, or none (-1) where `config.write.under_delta` is off."""
        return list(slots) if self.config.write.under_delta else [-1] * len(slots)


@dataclass(frozen=True)
class Action:
    """One generation of a rollout, kept for the policy gradient: what was seen, what was said, under which Δ."""

    kind: str  # "write" or "answer"
    prompt: list[int]
    generation: Generation
    delta: Snapshot | None  # the Δ that produced it; None: Δ = 0, or not kept
    writes: int = 0  # how many writes its Δ had learned


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
    """One write: the text it came from, the pairs, what was dropped, what learning did, and whether it stuck."""

    segment: str
    written: Written
    learned: Learned
    read: int = 0  # tokens of the prompt
    tokens: int = 0  # generated
    finished: bool = True  # False: the token limit ended it
    stuck: list[dict] = field(default_factory=list)  # per pair: paraphrase, said, recalled, other, other_said, leaked

    @property
    def taught(self) -> bool:
        """Whether anything was learned."""
        return bool(self.written.pairs) and self.learned.kept

    def __str__(self) -> str:
        """What the write did, in one line."""
        w, learned, count = self.written, self.learned, len(self.written.pairs)
        kinds = ", ".join(f"{getattr(w, k)} {k}" for k in ("malformed", "empty", "duplicates", "conflicts") if getattr(w, k))
        if self.taught:
            did = f"loss {learned.loss_before:.2f} -> {learned.loss_after:.3f}, ‖ΔW‖ {learned.norm:.1f}"
        elif count:
            did = f"nothing was learned (rolled back: {learned.reason})"
        else:
            did = f"nothing was learned ({'no line was a question/answer pair' if kinds else 'the model wrote nothing'})"
        wrote = f"read {self.read} tokens, wrote {count} {'pair' if count == 1 else 'pairs'}"
        ended = "" if self.finished else "; the token limit cut it off"
        return f"{wrote}: {did}" + (f"; dropped: {kinds}" if kinds else "") + ended


@dataclass
class Rollout:
    """An episode as it was lived: its log, its answers in question order, and its actions when traced."""

    episode: Episode
    key: str
    log: list[LogEntry] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    right: list[float] = field(default_factory=list)  # where answers were scored: the probability of a right one, per question
    actions: list[Action] = field(default_factory=list)
    delta: Snapshot | None = None  # Δ at the end, when traced with snapshots or when nothing was asked
    seconds: float = 0.0  # an equal share of what its batch took

    @property
    def pairs(self) -> list[Pair]:
        """All pairs written."""
        return [p for entry in self.log for p in entry.written.pairs]

    @property
    def learned(self) -> list[Pair]:
        """The pairs of the writes that were kept: what a rolled-back write learned must not be rehearsed."""
        return [p for entry in self.log if entry.learned.kept for p in entry.written.pairs]


def segments(chat: Chat, chunks: Sequence[str], window: int) -> list[str]:
    """Cut a stream into the texts that are written: whole chunks until the context exceeds `window` tokens.

    A chunk longer than the window is cut at line ends (a longer line, at spaces); where it begins with its date, every part
    does. The rest at the end is written too, so that questions meet no raw text.
    """
    out, context, used = [], [], 0
    for piece in (p for chunk in chunks for p in _pieces(chat, chunk, window)):
        size = chat.count(piece)
        if context and used + size > window:
            out.append("\n\n".join(context))
            context, used = [], 0
        context.append(piece)
        used += size
    return out + (["\n\n".join(context)] if context else [])


def _pieces(chat: Chat, chunk: str, window: int) -> list[str]:
    if chat.count(chunk) <= window:
        return [chunk] if chunk.strip() else []
    texts = chunk.splitlines()
    date = texts[:1] if DATE.fullmatch(texts[0]) and 2 * chat.count(texts[0]) < window else []
    room = window - sum(chat.count(line) + 1 for line in date)
    out, lines, used = [], [], 0
    for line in (part for whole in texts[len(date) :] for part in _halved(chat, whole, room)):
        size = chat.count(line) + 1
        if lines and used + size > room:
            out.append("\n".join(date + lines))
            lines, used = [], 0
        lines.append(line)
        used += size
    return out + (["\n".join(date + lines)] if lines else [])


def _halved(chat: Chat, line: str, window: int) -> list[str]:
    """A line in parts of at most `window` tokens, cut at the last space of the first half (at the middle of a word)."""
    if chat.count(line) <= window or len(line) < 2:
        return [line]
    middle = len(line) // 2
    at = line.rfind(" ", 1, middle + 1)
    at = at if at > 0 else middle
    return _halved(chat, line[:at], window) + _halved(chat, line[at:], window)


def first_line(text: str) -> str:
    """The answer proper: what stands before the first line break."""
    return text.split("\n", 1)[0].strip()


def run(
    agent: Agent,
    episodes: Sequence[Episode],
    keys: Sequence[str],
    *,
    temperature: float = 0.0,
    answering: str = "sampled",
    trace: bool = False,
    snapshots: bool = True,
    probing: bool | Sequence[int] = False,
    known: bool = False,
    on_event: Callable[[str, int, int], None] | None = None,
    clock: Clock | None = None,
) -> list[Rollout]:
    """Live every episode once; `keys[i]` seeds episode i's noise. As many run at once as the bank has free slots.

    answering  "sampled" at the temperature of writing; "greedy": the likeliest answers, which are then no actions of the
              policy; "scored": nothing is said, the probability of a right answer is computed (`Rollout.right`);
              "none": nothing is asked, `Rollout.delta` is what was learned
    trace     keep every action with the Δ that produced it, for the policy gradient; without `snapshots` only with the
              number of writes before it, from which Δ can be learned again
    probing   ask paraphrases and wrong-person questions after each write (see agent.probe) of all episodes or of those with
              these indices; costs two answers per pair
    known     the episode's questions stand in the prompt of every write (the paper's protocol)
    on_event  told (phase, done, total) while writing, learning and answering
    clock     is told the seconds of "write", "learn" and "answer"
    """
    out: list[Rollout] = []
    while (at := len(out)) < len(episodes):
        start = time.perf_counter()
        slots = agent.bank.claim(len(episodes) - at)
        size = len(slots)
        rollouts = [Rollout(e, k) for e, k in zip(episodes[at : at + size], keys[at : at + size])]
        try:
            probed = {i - at for i in (range(len(episodes)) if probing is True else probing or ())}
            _live(
                agent, rollouts, slots, temperature, answering, trace and (1 + snapshots), probed, known,
                on_event or (lambda *_: None), Clock() if clock is None else clock,
            )  # fmt: skip
        finally:
            for slot in slots:
                agent.bank.free(slot)
        for rollout in rollouts:
            rollout.seconds = (time.perf_counter() - start) / len(rollouts)
        out += rollouts
    return out


def _live(agent, rollouts, slots, temperature, answering, trace, probing, known, on_event, clock) -> None:
    bank, config = agent.bank, agent.config
    plans = [segments(agent.chat, r.episode.chunks, config.write.window) for r in rollouts]
    deltas: list[Snapshot | None] = [None] * len(rollouts)
    rounds = max((len(p) for p in plans), default=0)
    shown = [" ".join(q.text for q in r.episode.questions) if known else "" for r in rollouts]

    def write(spots: Sequence[tuple[int, int]]) -> dict[tuple[int, int], tuple[list[int], Generation]]:
        """Prompt and generation of every (episode, segment)."""
        prompts = [agent.chat.prompt(write_prompt(plans[i][j], shown[i])) for i, j in spots]
        with clock("write"):
            generations = decode(
                agent.model,
                prompts,
                bank=bank,
                slots=agent.writers([slots[i] for i, _ in spots]),
                end=agent.chat.ends,
                max_new=config.write.max_new,
                temperature=temperature,
                keys=[f"{rollouts[i].key}/write{j}" for i, j in spots],
            )
        return dict(zip(spots, zip(prompts, generations)))

    wrote: dict[tuple[int, int], tuple[list[int], Generation]] = {}
    if not config.write.under_delta:  # what is written depends on no Δ, so the whole streams are written at once
        spots = [(i, j) for i, plan in enumerate(plans) for j in range(len(plan))]
        for at in range(0, len(spots), WRITES):
            on_event("write", at, len(spots))
            wrote |= write(spots[at : at + WRITES])
    for j in range(rounds):
        due = [i for i, plan in enumerate(plans) if j < len(plan)]
        if config.write.under_delta:
            on_event("write", j, rounds)
            wrote |= write([(i, j) for i in due])
        prompts, generations = zip(*(wrote.pop((i, j)) for i in due))
        written = [parse(agent.chat.text(g.ids), finished=g.finished, limit=config.write.max_pairs) for g in generations]
        on_event("learn", j, rounds)
        jobs = [(slots[i], lesson(rollouts[i].learned, w.pairs, config.learn)) for i, w in zip(due, written)]
        with clock("learn"):
            learned = learn(agent.model, bank, jobs, agent.chat, config.learn)
        for i, prompt, generation, w, result in zip(due, prompts, generations, written, learned):
            rollouts[i].log.append(LogEntry(plans[i][j], w, result, len(prompt), len(generation.ids), generation.finished))
            if trace:
                seen = (deltas[i], j) if config.write.under_delta else (None, 0)
                rollouts[i].actions.append(Action("write", prompt, generation, *seen))
                deltas[i] = rollouts[i].delta = bank.snapshot(slots[i], optimizer=False) if trace > 1 else None
        if probed := [(rollouts[i].log[-1], slots[i]) for i in due if i in probing]:
            with clock("probe"):
                _probe(agent, probed)
    if answering == "none":
        for rollout, slot in zip(rollouts, slots):
            rollout.delta = bank.snapshot(slot, optimizer=False)
        return
    on_event("answer", rounds, rounds)
    asked = [(i, q) for i, r in enumerate(rollouts) for q in r.episode.questions]
    if answering == "scored":
        with clock("answer"):
            _score(agent, rollouts, slots, asked)
        return
    prompts = [agent.chat.prompt(q.text) for _, q in asked]
    with clock("answer"):
        generations = decode(
            agent.model,
            prompts,
            bank=bank,
            slots=[slots[i] for i, _ in asked],
            end=agent.chat.ends,
            max_new=config.answer.max_new,
            temperature=0.0 if answering == "greedy" else temperature,
            keys=[f"{rollouts[i].key}/answer/{q.id}" for i, q in asked],
        )
    for (i, _), prompt, generation in zip(asked, prompts, generations):
        rollouts[i].answers.append(first_line(agent.chat.text(generation.ids)))
        if trace and answering == "sampled":
            rollouts[i].actions.append(Action("answer", prompt, generation, deltas[i], len(plans[i])))


def _score(agent: Agent, rollouts: Sequence[Rollout], slots: Sequence[int], asked: Sequence[tuple[int, Question]]) -> None:
    """The probability of any right answer: different strings, so their probabilities add up."""
    items = [(i, q.text, a) for i, q in asked for a in dict.fromkeys(q.answers)]
    found = iter(probabilities(agent, [t for _, t, _ in items], [a for *_, a in items], [slots[i] for i, *_ in items]))
    for i, q in asked:
        rollouts[i].right.append(min(1.0, sum(next(found) for _ in dict.fromkeys(q.answers))))


def _probe(agent: Agent, entries: list[tuple[LogEntry, int]]) -> None:
    asked: list[tuple[LogEntry, int, Pair, str, str | None]] = []
    for entry, slot in entries:
        people = speakers(entry.segment, entry.written.pairs)
        for pair in entry.written.pairs:
            p = probe(pair, people)
            asked.append((entry, slot, pair, p.paraphrase, p.other))
    questions = [(slot, q) for _, slot, _, a, b in asked for q in (a, b) if q is not None]
    said = iter(answer(agent, [q for _, q in questions], [s for s, _ in questions]))
    for entry, _, pair, paraphrased, other in asked:
        gold, first = normalise(pair.answer), next(said)
        second = next(said) if other is not None else None
        entry.stuck.append(
            {
                "question": pair.question,
                "answer": pair.answer,
                "paraphrase": paraphrased,
                "said": first,
                "recalled": normalise(first) == gold,
                "other": other,
                "other_said": second,
                "leaked": second is not None and normalise(second) == gold,
            }
        )


def answer(agent: Agent, questions: Sequence[str], slots: Sequence[int] | None = None) -> list[str]:
    """Greedy short answers to questions (whole user turns), question i under slot `slots[i]` (None or -1: base)."""
    generations = decode(
        agent.model,
        [agent.chat.prompt(q) for q in questions],
        bank=None if slots is None else agent.bank,
        slots=slots,
        end=agent.chat.ends,
        max_new=agent.config.answer.max_new,
    )
    return [first_line(agent.chat.text(g.ids)) for g in generations]
