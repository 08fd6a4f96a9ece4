"""Memory: a model that reads, learns what it reads into fast weights, and answers from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from . import models
from .agent.config import agent_config
from .agent.decode import decode
from .agent.episode import Agent, LogEntry, answer, segments
from .agent.learn import Learned, learn, rehearsal
from .agent.write import parse, write_prompt
from .episode import Pair
from .folders import atomic_file


class Memory:
    """One episode of parametric memory.

    >>> m = Memory.from_pretrained()
    >>> m.learn([("What is the name of Ada's dog?", "Biscuit")])
    >>> m.ask("How is Ada's dog called?")
    'Biscuit'

    `observe` collects text; once more than the preset's window of tokens is waiting, the model writes pairs from it and
    learns them, and the text is gone. `ask` answers from the fast weights and the text still waiting. `pairs` is
    everything learned so far, `log` what each write did.
    """

    def __init__(self, agent: Agent):
        self.agent = agent
        self.slot = agent.bank.alloc()
        self.pairs: list[Pair] = []
        self.log: list[LogEntry] = []
        self._context: list[str] = []

    @classmethod
    def from_pretrained(cls, model: str | None = None, *, preset: str = "default", path: str | None = None) -> Memory:
        """A memory on `model` (None: the default model; else a folder, a .gguf file or a hub id), empty or from `path`.

        Raises tmem.models.ModelError if the model cannot be had, ValueError for an unknown preset.
        """
        network, tokenizer = models.load(model)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        memory = cls(Agent.build(network, tokenizer, agent_config(preset), slots=1))
        if path is not None:
            memory._load(Path(path))
        return memory

    def observe(self, text: str) -> list[LogEntry]:
        """Read text. Whatever exceeds the window is written and learned now; returns what was (often nothing)."""
        self._context.append(text)
        window = self.agent.config.write.window
        due = segments(self.agent.chat, self._context, window)
        self._context = due[-1:]
        return [self._write(segment) for segment in due[:-1]]

    def write(self) -> list[LogEntry]:
        """Write and learn what is still waiting, and let go of the text."""
        due, self._context = self._context, []
        return [self._write(s) for s in segments(self.agent.chat, due, self.agent.config.write.window)]

    def learn(self, pairs: Sequence[tuple[str, str] | Pair]) -> Learned:
        """Learn question/answer pairs directly. Raises ValueError for an empty list or an empty question or answer."""
        pairs = [p if isinstance(p, Pair) else Pair(*p) for p in pairs]
        if not pairs or not all(p.question.strip() and p.answer.strip() for p in pairs):
            raise ValueError("learn: expected at least one (question, answer) pair, none of them empty.")
        agent, config = self.agent, self.agent.config.learn
        job = (self.slot, rehearsal(self.pairs, pairs, config.rehearse))
        result = learn(agent.model, agent.bank, [job], agent.chat, config)[0]
        if result.kept:
            self.pairs += pairs
        return result

    def ask(self, question: str) -> str:
        """A short answer, greedy, from the fast weights; text that still waits in the context is in the prompt."""
        if self._context:
            question = "\n\n".join(self._context) + "\n\n" + question
        return answer(self.agent, [question], [self.slot])[0]

    def forget(self) -> None:
        """Δ = 0, no pairs, no waiting text."""
        self.agent.bank.reset(self.slot)
        self.pairs, self.log, self._context = [], [], []

    def save(self, path: str | Path) -> None:
        """Write the fast weights as a PEFT adapter folder, with the pairs beside them in tmem.json."""
        self.agent.bank.save(self.slot, path)
        record = {"pairs": [[p.question, p.answer] for p in self.pairs], "context": self._context}
        with atomic_file(Path(path) / "tmem.json") as work:
            work.write_text(json.dumps(record, indent=1, ensure_ascii=False))

    def _load(self, path: Path) -> None:
        slot = self.agent.bank
        self.agent.bank.free(self.slot)
        self.slot = slot.load(path)
        if (path / "tmem.json").is_file():
            record = json.loads((path / "tmem.json").read_text())
            self.pairs = [Pair(q, a) for q, a in record["pairs"]]
            self._context = list(record["context"])

    def _write(self, segment: str) -> LogEntry:
        agent = self.agent
        generation = decode(
            agent.model,
            [agent.chat.prompt(write_prompt(segment))],
            bank=agent.bank,
            slots=[self.slot],
            end=agent.chat.end,
            max_new=agent.config.write.max_new,
        )[0]
        written = parse(agent.chat.text(generation.ids), finished=generation.finished, limit=agent.config.write.max_pairs)
        learned = self.learn(written.pairs) if written.pairs else Learned(0.0, 0.0, 0.0, True, "nothing to learn")
        entry = LogEntry(segment, written, learned)
        self.log.append(entry)
        return entry
