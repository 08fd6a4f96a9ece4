"""An agent and what it does: say, answer, write, teach. A list goes in, a prompt or a slot each, and a list comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..adapters.bank import AdapterBank
from ..adapters.calibration import TEXTS
from ..episode import Pair
from ..models import forward as fw
from ..models.chat import Chat
from .config import AgentConfig
from .decode import Generation, decode
from .learn import Learned, learn
from .renderings import worded
from .teach import Lesson, chosen
from .write import Written, parse, write_prompt


@dataclass(frozen=True)
class Reply:
    """What was said to one prompt: the prompt's token ids, what was generated, and that as text."""

    prompt: list[int]
    generation: Generation
    text: str

    @property
    def read(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)

    @property
    def generated(self) -> int:
        """Tokens that were generated."""
        return len(self.generation.ids)


@dataclass(frozen=True)
class Draft:
    """A write that is not learned yet: the passage, what was said to it, and the pairs read out of that."""

    passage: str
    reply: Reply
    written: Written


@dataclass
class Agent:
    """A model with its chat template, a bank under it, and the settings of the loop."""

    model: Any
    chat: Chat
    bank: AdapterBank
    config: AgentConfig

    @classmethod
    def build(cls, model, tokenizer, config: AgentConfig, slots: int, seed: int = 0) -> Agent:
        """Freeze a model and attach a bank of `slots` episodes to it as `config.adapter` says; `seed` draws its subspace.

        Raises ValueError for a model that tmem.models.forward cannot run.
        """
        fw.parts(model)
        model.requires_grad_(False)
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

    def say(
        self,
        prompts: Sequence[str | list[int]],
        slots: Sequence[int] | None = None,
        *,
        max_new: int,
        begins: Sequence[int] | None = None,
        temperature: float = 0.0,
        keys: Sequence[str] | None = None,
    ) -> list[Reply]:
        """What the model says to each prompt under the Δ of its slot (-1, or no slots at all: the model alone).

        prompts   user turns as text, or token ids
        The others are those of `decode`.
        """
        ids = [p if isinstance(p, list) else self.chat.prompt(p) for p in prompts]
        bank = None if slots is None else self.bank
        found = decode(
            self.model, ids, bank=bank, slots=slots, end=self.chat.ends, max_new=max_new, begins=begins,
            temperature=temperature, keys=keys,
        )  # fmt: skip
        return [Reply(p, g, self.chat.text(g.ids)) for p, g in zip(ids, found)]

    def asked(self, question: str) -> str:
        """The question in the words in which Δ is asked: one of the renderings in which pairs are taught."""
        return worded(self.config.answer.asked, question, self.config.learn.unknown)

    def rendered(self, question: str) -> list[str]:
        """The question in all words in which a pair of it is taught."""
        return [worded(template, question, self.config.learn.unknown) for template in self.config.learn.renderings]

    def answer(self, questions: Sequence[str], slots: Sequence[int] | None = None) -> list[str]:
        """Short answers to questions, worded by `asked`, greedy; slots as in `say`."""
        prompts = [self.asked(q) for q in questions]
        return [first_line(r.text) for r in self.say(prompts, slots, max_new=self.config.answer.max_new)]

    def write(
        self,
        passages: Sequence[str],
        slots: Sequence[int] | None = None,
        known: Sequence[str] | None = None,
        *,
        temperature: float = 0.0,
        keys: Sequence[str] | None = None,
    ) -> list[Draft]:
        """The pairs that the model writes from each passage, under its slot's Δ unless the settings let it write without.

        known   what will be asked of each passage, where the prompt may say so (the paper's protocol)
        """
        config = self.config.write
        prompts = [write_prompt(p, asked) for p, asked in zip(passages, known or [""] * len(passages), strict=True)]
        under = None if slots is None else self.writers(slots)
        replies = self.say(prompts, under, max_new=config.max_new, temperature=temperature, keys=keys)
        written = [parse(r.text, finished=r.generation.finished, limit=config.max_pairs) for r in replies]
        return [Draft(*one) for one in zip(passages, replies, written)]

    def teach(
        self,
        slots: Sequence[int],
        new: Sequence[Sequence[Pair]],
        lessons: Sequence[Lesson],
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[Learned]:
        """Slot i learns its new pairs, with what `teach.chosen` adds; lessons[i], what it was taught before, then has them too.

        What is rolled back (see `learn`) is not remembered, so that it is not rehearsed. `on_step`: see `learn`.
        """
        config = self.config.learn
        jobs = [(s, chosen(past.pairs, pairs, config)) for s, pairs, past in zip(slots, new, lessons, strict=True)]
        found = learn(self.model, self.bank, jobs, self.chat, config, on_step)
        for past, pairs, learned in zip(lessons, new, found):
            if learned.kept:
                past.remember(pairs)
        return found


def first_line(text: str) -> str:
    """The answer proper: what stands before the first line break."""
    return text.split("\n", 1)[0].strip()
