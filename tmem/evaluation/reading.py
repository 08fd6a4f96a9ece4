"""Tasks whose episodes a method reads first; then the text is gone, and every question is asked with what it kept."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Sequence

from .. import tasks
from ..agent import log
from ..agent.agent import Agent
from ..agent.config import agent_config
from ..episode import Episode, Question
from ..methods import prompts
from ..methods.methods import METHODS, form_of, methods_of
from ..methods.reader import CONTEXT, Kept, Reader, Said, Settings
from ..models import loading
from ..models.chat import Chat
from ..models.embed import dense, require_dense
from ..tasks import left_out, locomo, longmemeval, metrics
from ..tasks.records import files
from .compute import Sizes
from .config import EvalConfig, Extent
from .facts import strict
from .grading import scored
from .record import Record
from .summary import WRITTEN, summarise
from .work import BESIDE, RunGroup, Tell, Work

AT_LENGTH = 256  # tokens of an answer, unless asked otherwise, where a task wants whole texts
BATCH = 32  # questions asked at once

Item = tuple[Episode, str]  # an episode to run, the id of the episode it belongs to


@dataclasses.dataclass
class Reading(Work):
    """Its items are episodes; with known questions one for each of them. room: tokens of text that a prompt can hold."""

    room: int = CONTEXT

    AT_ONCE = 32

    @classmethod
    def prepare(cls, config: EvalConfig, methods: Sequence[str]) -> Reading:
        if "dense" in methods:
            require_dense()
        left = None
        if config.leave_out:
            left = left_out.read_leave_out(
                config.leave_out, locomo.question_id if config.task == "locomo" else left_out.as_it_is
            )
        episodes = _episodes(config, left)
        settings = agent_config(config.preset)
        learn = dataclasses.replace(settings.learn, unknown=tasks.abstention(config.task))
        settings = dataclasses.replace(settings, learn=learn)
        network, tokenizer = loading.load_model(config.model, adapter=config.adapter, bits=config.bits)
        asked = [q for several in episodes.values() for e in several for q in e.questions]
        positions = network.config.max_position_embeddings
        config, room = _with_room(config, settings.answer.max_new, positions, Chat(tokenizer), asked)
        notes = [*left_out.notes(left), *_notes(episodes[config.seed])]
        embedder = dense().parameters if "dense" in methods else 0
        return cls(config, settings, network, tokenizer, episodes, left, notes, embedder, room)

    @property
    def extent(self) -> Extent:
        task, episodes = self.config.task, self.data[self.config.seed]
        return Extent(
            episodes=len(episodes),
            dated=longmemeval.DATED if task == "longmemeval" else None,
            called=locomo.called(episodes) if task == "locomo" else None,
        )

    @property
    def questions(self) -> dict[tuple[int, str], Question]:
        return {(seed, q.id): q for seed, episodes in self.data.items() for e in episodes for q in e.questions}

    def counts(self) -> dict:
        """How each method is asked."""
        return {"asked": {name: self._form(name) for name in methods_of(self.config.task)}}

    def _form(self, method: str) -> str | None:
        return form_of(method, self.config.prompt, self.config.task in tasks.AT_LENGTH)

    def items(self, seed: int) -> list[Item]:
        if not self.config.known:
            return [(e, e.id) for e in self.data[seed]]
        return [
            (dataclasses.replace(e, id=f"{e.id} {q.id}", questions=(q,)), e.id) for e in self.data[seed] for q in e.questions
        ]

    def group(self, agent: Agent, seed: int, items: Sequence[Item]) -> RunGroup:
        task = self.config.task
        settings = Settings(
            seed=seed, context=self.config.context, room=self.room, abstention=tasks.abstention(task),
            max_new=self.config.answer_tokens, at_length=task in tasks.AT_LENGTH, probing=self.config.probe,
            known=self.config.known,
        )  # fmt: skip
        reader = Reader(agent, settings)
        return lambda method, record, tell: _run(task, method, self._form(method), reader, items, record, tell)

    def summary(self, record: Record, sizes: Sizes) -> dict:
        return summarise(scored(record.answers.rows, record.out), record.readings.rows, self.config.task, sizes)

    def log(self, record: Record) -> list[str] | None:
        """What tmem wrote of each episode, and what it answered from it."""
        readings, answers = record.readings.rows, record.answers.rows
        name = next((m for m in ("tmem", "tmem+retrieval", "pairs") if any(r["method"] == m for r in readings)), None)
        if name is None:
            return None
        texts = []
        for r in (r for r in readings if r["method"] == name):
            asked = [a for a in answers if (a["method"], a["seed"], a["read"]) == (name, r["seed"], r["read"])]
            questions = [{"text": a["question"], "answers": a["answers"], "said": a["prediction"]} for a in asked]
            texts.append(log.readable(r["log"] | {"questions": questions}))
        return texts


def _episodes(config: EvalConfig, left: left_out.LeaveOut | None) -> dict[int, list[Episode]]:
    """By seed. Raises ValueError where there is no question, or for an id to leave out that the data do not have."""
    task, first = config.task, config.seed
    given = {"data": config.data, "limit": config.limit, "split": config.split, "difficulty": config.difficulty}
    given["adversarial"] = config.adversarial
    episodes = {seed: tasks.episodes(task, seed=seed, leave_out=left, **given) for seed in config.replicates}
    if left is not None:
        here = {e.id for e in episodes[first]}
        left.check(lambda id: task == "locomo" and id.partition("/")[0] in {*locomo.CONVERSATIONS} - here)
    if not any(e.questions for e in episodes[first]):
        where = ", ".join(map(str, files(config.data))) or task
        raise ValueError(f"eval: no questions in {where}; give a file with questions.")
    return episodes


def _with_room(config: EvalConfig, usual: int, positions: int, chat: Chat, asked: Sequence[Question]) -> tuple[EvalConfig, int]:
    """The config with its context and its answers' length, and the tokens of text that a prompt has room for.

    usual: tokens of a short answer. positions: what the model holds.

    Raises ValueError where the text and the longest question do not fit.
    """
    max_new = config.answer_tokens or (AT_LENGTH if config.task in tasks.AT_LENGTH else usual)
    longest, which = max((chat.count(q.text), q.id) for q in asked)
    beside = prompts.examples_size(chat, config.prompt) if config.task not in tasks.AT_LENGTH else 0
    room = positions - max_new - longest - beside - BESIDE
    if room < 1:
        raise ValueError(
            f"context: there is room for no text beside question {which[:60]!r} ({longest} tokens) and an answer of {max_new}; "
            f"shorten or remove the question, give a smaller --answer-tokens, {'--prompt instruction, ' if beside else ''}"
            "or a model for longer texts."
        )
    context = min(CONTEXT, room) if config.context is None else config.context
    if context > room:
        raise ValueError(
            f"context: there is room for {room} tokens of text beside the longest question ({which[:60]!r}, {longest} tokens) "
            f"and its answer, got {context}; give a smaller --context or --answer-tokens, or a model for longer texts."
        )
    return dataclasses.replace(config, context=context, answer_tokens=max_new), room


def _notes(episodes: Sequence[Episode]) -> list[str]:
    """What is to be known of how the episodes were read, each once with how many it is true of."""
    counts = collections.Counter(e.note for e in episodes if e.note)
    return [f"{n} of {len(episodes)} episodes: {note}" for note, n in counts.items()]


def _run(task: str, method: str, form: str | None, reader: Reader, items: Sequence[Item], record: Record, tell: Tell) -> None:
    """Read the episodes that have questions left, ask these, and record what was said, batch by batch."""
    seed, answered, read = reader.settings.seed, record.answered(method), record.read(method)
    left = [(e, home, todo) for e, home in items if (todo := [q for q in e.questions if (seed, q.id) not in answered])]
    if not left:
        return
    reader.watch = lambda phase, *_: tell(phase, 0)
    start = time.perf_counter()
    kept = METHODS[method].read(reader, [e for e, *_ in left])
    seconds = (time.perf_counter() - start) / len(left)
    record.readings.append(
        reading_of(task, method, seed, e, home, k, seconds) for (e, home, _), k in zip(left, kept) if (seed, e.id) not in read
    )
    settings = dataclasses.replace(reader.settings, form=form or reader.settings.form)
    todo = [(e, home, k, q) for (e, home, questions), k in zip(left, kept) for q in questions]
    for at in range(0, len(todo), BATCH):
        part = todo[at : at + BATCH]
        start = time.perf_counter()
        said = METHODS[method].ask(reader.agent, [(k, q) for *_, k, q in part], settings)
        seconds = (time.perf_counter() - start) / len(part)
        record.answers.append(answer_of(task, method, seed, e, home, q, a, seconds) for (e, home, _, q), a in zip(part, said))
        tell("answer", at + len(part))


def answer_of(
    task: str, method: str, seed: int, episode: Episode, home: str, question: Question, said: Said, seconds: float
) -> dict:
    """The row of answers.jsonl; home: the id of the episode that `episode` is, or was made from."""
    places = [e.chunk for e in question.evidence]
    last = len(episode.chunks) - 1
    return {
        "seed": seed,
        "method": method,
        "episode": home,
        "read": episode.id,
        "id": question.id,
        "kind": question.kind,
        "category": question.category,
        "question": question.text,
        "answers": list(question.answers),
        "prediction": said.text,
        **tasks.score(task, question, said.text),
        **({} if task in tasks.AT_LENGTH else {"abstained": metrics.abstains(metrics.chosen(said.text, question))}),
        "sessions": len(episode.chunks),
        "position": sum(places) / len(places) / last if places and last else None,  # 0: in the first session, 1: in the last
        "prompt_tokens": said.prompt,
        "read_tokens": said.read,
        "generated_tokens": said.generated,
        "seconds": round(seconds, 4),
    }


def reading_of(task: str, method: str, seed: int, episode: Episode, home: str, kept: Kept, seconds: float) -> dict:
    """The row of readings.jsonl."""
    row = {
        "seed": seed,
        "method": method,
        "episode": home,
        "read": episode.id,
        "state_bytes": kept.state,
        **{f"{k}_tokens": v for k, v in dataclasses.asdict(kept.cost).items()},
        "seconds": round(kept.rollout.seconds if kept.rollout else seconds, 4),  # a rollout may serve several methods
        **({"lost": kept.lost} if kept.lost else {}),  # pairs
    }
    if kept.rollout is None:
        return row
    found = strict(episode, kept.rollout.pairs) if task == "stream" else {}
    return row | {k: found[k] for k in WRITTEN if k in found} | {"log": log.record(kept.rollout)}
