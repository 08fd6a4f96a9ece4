"""Memory: a model that reads, learns what it reads into fast weights, and answers from them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import torch

from . import models
from .agent.config import agent_config
from .agent.decode import decode
from .agent.episode import Agent, LogEntry, answer, segments
from .agent.learn import Learned, learn
from .agent.lesson import lesson
from .agent.write import normalise, parse, write_prompt
from .episode import Pair
from .memory_file import read_memory, write_memory
from .peft_io import load_peft, peft_files


class Memory:
    """One episode of parametric memory.

    >>> m = Memory.from_pretrained()
    >>> m.learn([("What is the name of Ada's dog?", "Biscuit")])
    >>> m.ask("How is Ada's dog called?")
    'Biscuit'

    Where it was told of several people, it mostly answers "unknown" to what it was not told of one of them
    (`LearnConfig.contrast`); the preset "default" learns in half the time and answers with somebody else's.
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
    def from_pretrained(cls, model: str | None = None, *, preset: str = "careful", path: str | None = None) -> Memory:
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
        return self._write_down_to(1, [*self._context, text])

    def write(self) -> list[LogEntry]:
        """Write and learn what is still waiting, and let go of the text."""
        return self._write_down_to(0, self._context)

    def _write_down_to(self, waiting: int, texts: list[str]) -> list[LogEntry]:
        """Text leaves the context only when it is learned: what interrupts a write loses nothing."""
        self._context = segments(self.agent.chat, texts, self.agent.config.write.window)
        entries = []
        while len(self._context) > waiting:
            entries.append(self._write(self._context[0]))
            self._context.pop(0)
        return entries

    def learn(self, pairs: Sequence[tuple[str, str] | Pair]) -> Learned:
        """Learn question/answer pairs directly; of several answers to one question the last stands.

        Raises ValueError for an empty list or an empty question or answer.
        """
        pairs = [p if isinstance(p, Pair) else Pair(*p) for p in pairs]
        if not pairs or not all(p.question.strip() and p.answer.strip() for p in pairs):
            raise ValueError("learn: expected at least one (question, answer) pair, none of them empty.")
        pairs = list({normalise(p.question): p for p in pairs}.values())
        agent, config = self.agent, self.agent.config.learn
        job = (self.slot, lesson(self.pairs, pairs, config))
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
        """Write the fast weights as a PEFT adapter folder, with pairs and waiting text in its tmem.json; atomic.

        tmem.json also holds a digest of the folder's files, which is checked when it is opened (folders of before have none).
        The optimizer's moments are not kept: learning goes on from a fresh optimizer.
        """
        bank = self.agent.bank
        bank._check(self.slot, "save")
        write_memory(Path(path), peft_files(bank, self.slot), self._made_with(), self.pairs, self._context)

    def _load(self, path: Path) -> None:
        files, made_with, pairs, context = read_memory(path)
        other = [k for k, v in self._made_with().items() if made_with.get(k) != v]
        if other:
            was = ", ".join(f"{k} {made_with.get(k)}" for k in other)
            raise ValueError(f"load: {path} was made with {was}; open it with the same model and preset.")
        self.agent.bank.free(self.slot)
        self.slot = load_peft(self.agent.bank, path, files)
        self.pairs, self._context = pairs, context

    def _made_with(self) -> dict:
        """What fast weights mean nothing without."""
        bank, config = self.agent.bank, self.agent.model.config
        return {
            "model": f"{config.model_type}, {config.num_hidden_layers} layers of {config.hidden_size}",
            "weights": _fingerprint(self.agent.model), "targets": list(bank.targets), "last_layers": bank.last_layers,
            "init": bank.init,
        }

    def _write(self, segment: str) -> LogEntry:
        agent = self.agent
        generation = decode(
            agent.model,
            [agent.chat.prompt(write_prompt(segment))],
            bank=agent.bank,
            slots=agent.writers([self.slot]),
            end=agent.chat.end,
            max_new=agent.config.write.max_new,
        )[0]
        written = parse(agent.chat.text(generation.ids), finished=generation.finished, limit=agent.config.write.max_pairs)
        if written.pairs:
            learned = self.learn(written.pairs)
        else:
            learned = learn(agent.model, agent.bank, [(self.slot, [])], agent.chat, agent.config.learn)[0]
        entry = LogEntry(segment, written, learned)
        self.log.append(entry)
        return entry


def _fingerprint(model: torch.nn.Module) -> str:
    """A hash of the first value of every row of every weight, in bf16: trained weights differ from those they began as."""
    digest = blake2b(digest_size=8)
    for weight in filter(torch.Tensor.numel, model.parameters()):
        rows = weight.shape[0] if weight.dim() else 1
        first = weight.detach().reshape(rows, -1)[:, 0].to(torch.bfloat16)
        digest.update(first.view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()
