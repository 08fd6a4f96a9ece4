"""An agent and what it does: say, answer, write, teach. A list goes in, a prompt or a slot each, and a list comes back."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from .write import Written, answered, beside, first_line, parse, parse_answers, parse_many, prompts, together


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
    """A write that is not learned yet: the passage, what was said to it, and the pairs read out of that.

    answers: what was said to the questions of many replies.
    """

    passage: str
    replies: list[Reply]
    written: Written
    answers: list[Reply] = field(default_factory=list)

    @classmethod
    def joined(cls, drafts: Sequence[Draft]) -> Draft:
        """Several passages' drafts as one, for what is learned in one update."""
        return cls(
            "\n\n".join(d.passage for d in drafts), [r for d in drafts for r in d.replies],
            together([d.written for d in drafts]), [r for d in drafts for r in d.answers],
        )  # fmt: skip

    @property
    def read(self) -> int:
        """Tokens of the prompts. Prompts that are the same are read once."""
        return sum(map(len, {tuple(r.prompt) for r in [*self.replies, *self.answers]}))

    @property
    def generated(self) -> int:
        """Tokens that were generated."""
        return sum(r.generated for r in [*self.replies, *self.answers])

    @property
    def text(self) -> str:
        """What was said."""
        return "\n".join(r.text for r in self.replies)

    @property
    def finished(self) -> bool:
        """Whether no reply was ended by the token limit."""
        return all(r.generation.finished for r in self.replies)


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
        known: Sequence[Sequence[str]] | None = None,
        *,
        temperature: float = 0.0,
        keys: Sequence[str] | None = None,
    ) -> list[Draft]:
        """The pairs that the model writes from each passage, under its slot's Δ unless the settings let it write without.

        known   what will be asked of each passage, where the prompt may say so (the paper's protocol)
        Where a write is many replies they are drawn at temperature 1 at least, by the key, or else by the passage itself: at 0
        all would be one.
        """
        config = self.config.write
        known = known or [()] * len(passages)
        several = config.replies > 1
        turns = [prompts(p, config.replies, asked, self.asked) for p, asked in zip(passages, known, strict=True)]
        under = self.writers(slots) if slots is not None else [-1] * len(passages)
        spots = [(i, turn) for i, own in enumerate(turns) for turn in own]
        ids = [self.chat.prompt(turn) for _, turn in spots]
        found = iter(self.say(
            ids,
            None if slots is None else [under[i] for i, _ in spots],
            max_new=config.max_new,
            begins=[self.begin(passages[i], prompt) for (i, _), prompt in zip(spots, ids)] if several else None,
            temperature=max(temperature, 1.0) if several and not any(known) else temperature,
            keys=[f"{own}/{k}" if several else own for own, turn in zip(keys or passages, turns) for k in range(len(turn))],
        ))  # fmt: skip
        drafts = []
        for passage, asked, own in zip(passages, known, turns):
            replies = [next(found) for _ in own]
            drafts.append(Draft(passage, replies, self._written(replies, asked)))
        return self._answered(drafts, None if slots is None else under) if several and not any(known) else drafts

    def _written(self, replies: Sequence[Reply], known: Sequence[str]) -> Written:
        """The pairs of one passage's replies."""
        config, texts, finished = self.config.write, [r.text for r in replies], [r.generation.finished for r in replies]
        if config.replies == 1:
            return parse(texts[0], finished=finished[0], limit=config.max_pairs)
        if known:
            return parse_answers(known, texts, self.config.learn.unknown)
        return parse_many(texts, finished)

    def _answered(self, drafts: Sequence[Draft], under: Sequence[int] | None) -> list[Draft]:
        """Drafts of many replies with their questions answered from the passages, greedily."""
        spots = [(i, p.question) for i, draft in enumerate(drafts) for p in draft.written.pairs]
        ids = [self.chat.prompt(beside(drafts[i].passage, self.asked(question))) for i, question in spots]
        found = iter(self.say(
            ids, None if under is None else [under[i] for i, _ in spots], max_new=self.config.answer.max_new,
            begins=[self.begin(drafts[i].passage, prompt) for (i, _), prompt in zip(spots, ids)],
        ))  # fmt: skip
        out, unknown, limit = [], self.config.learn.unknown, self.config.write.max_pairs
        for draft in drafts:
            answers = [next(found) for _ in draft.written.pairs]
            written = answered(draft.written, [r.text for r in answers], unknown, draft.passage, limit)
            out.append(Draft(draft.passage, draft.replies, written, answers))
        return out

    def begin(self, passage: str, prompt: list[int]) -> int:
        """How many tokens of a prompt stand there whatever is said of the passage."""
        return len(os.path.commonprefix([prompt, self.chat.prompt(passage.strip())]))

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
