"""An agent and what it does: say, answer, write, teach. A list goes in, a prompt or a slot each, and a list comes back."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from ..adapters.bank import AdapterBank
from ..adapters.calibration import TEXTS
from ..episode import Pair
from ..models import forward as fw
from ..models.chat import Chat
from ..models.experts import prepare
from .config import AgentConfig
from .decode import Decoding, Generation, decode
from .learn import Learned, learn
from .prefill import keeping
from .recognise import gains
from .renderings import asked_back, worded
from .spans import picked, ranked
from .teach import Lesson, chosen
from .write import Written, answered, asked_of, beside, first_line, list_prompt, parse, parse_answers, stands, together

OPENING = 16  # tokens before a question that are read by themselves, or more


@dataclass(frozen=True)
class Reply:
    """What was said to one prompt: the prompt's token ids, what was generated, and that as text.

    begin: how many tokens of the prompt were read once for all prompts that begin with them.
    untaken: how many tokens were generated to the same prompt and not taken.
    """

    prompt: list[int]
    generation: Generation
    text: str
    begin: int = 0
    untaken: int = 0

    @property
    def read(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)

    @property
    def generated(self) -> int:
        """Tokens that were generated."""
        return len(self.generation.ids) + self.untaken


def least(reply: Reply) -> float:
    """The probability of a reply's least probable token; 1 of an empty one."""
    return math.exp(min(reply.generation.logprobs, default=0.0))


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
        """Tokens of the prompts. Prompts that are the same are read once, and so is what several begin with."""
        prompts = {tuple(r.prompt): r.begin for r in [*self.replies, *self.answers]}
        beginnings = {prompt[:begin] for prompt, begin in prompts.items()}
        return sum(map(len, beginnings)) + sum(len(prompt) - begin for prompt, begin in prompts.items())

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


class Generate(Protocol):
    """What generates for an agent. The arguments are those of `decode`; the same ones give the same generations."""

    def __call__(
        self,
        prompts: Sequence[list[int]],
        *,
        bank: AdapterBank | None,
        slots: Sequence[int] | None,
        end: Set[int],
        max_new: int,
        begins: Sequence[int] | None,
        temperature: float,
        top_p: float,
        keys: Sequence[str] | None,
        ranks: Sequence[int] | None,
    ) -> list[Generation]:
        """A generation after each of `prompts`, token ids, under the Δ of its slot."""
        ...


@dataclass
class Agent:
    """A model with its chat template, a bank under it, and the settings of the loop.

    elsewhere: what generates instead of the model here, such as tmem.rl.workers; a generation that is watched stays here.
    """

    model: Any
    chat: Chat
    bank: AdapterBank
    config: AgentConfig
    elsewhere: Generate | None = None

    @classmethod
    def build(cls, model, tokenizer, config: AgentConfig, slots: int, seed: int = 0) -> Agent:
        """Freeze a model and attach a bank of `slots` episodes to it as `config.adapter` says; `seed` draws its subspace.

        Raises ValueError for a model that tmem.models.forward cannot run.
        """
        fw.parts(model)
        prepare(model)
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
        top_p: float = 1.0,
        keys: Sequence[str] | None = None,
        ranks: Sequence[int] | None = None,
        watch: Callable[[int, int], bool] | None = None,
        questions: bool = False,
    ) -> list[Reply]:
        """What the model says to each prompt under the Δ of its slot (-1, or no slots at all: the model alone).

        prompts   user turns as text, or token ids
        questions  many are asked: the words before each are read once for all under one Δ, in a pass of their own
        The others are those of `decode`.
        """
        ids = [p if isinstance(p, list) else self.chat.prompt(p) for p in prompts]
        if questions:
            begins = self.opened(ids)
        bank = None if slots is None else self.bank
        generate: Generate = partial(decode, self.model, watch=watch)
        if self.elsewhere is not None and watch is None:
            generate = self.elsewhere
        found = generate(
            ids, bank=bank, slots=slots, end=self.chat.ends, max_new=max_new, begins=begins, temperature=temperature,
            top_p=top_p, keys=keys, ranks=ranks,
        )  # fmt: skip
        return [self.replied(p, g, begin) for p, g, begin in zip(ids, found, begins or [0] * len(ids))]

    def opened(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """How many tokens of each prompt are the words before a question; 0 where they are fewer than OPENING."""
        probes = [self.chat.prompt(self.asked(question)) for question in ("What is it?", "Who was there?")]
        opening = list(os.path.commonprefix(probes))
        found = [len(os.path.commonprefix([opening, list(prompt)[:-1]])) for prompt in prompts]
        return [begin if begin >= OPENING else 0 for begin in found]

    def decoding(self) -> Decoding:
        """A batch that prompts join and leave at any step, under the Δ of their slots; what it says has `chat.ends` as ends."""
        return Decoding(self.model, self.bank, self.chat.ends)

    def replied(self, prompt: Sequence[int], generation: Generation, begin: int = 0) -> Reply:
        """What was generated after a prompt, as text."""
        return Reply(list(prompt), generation, self.chat.text(generation.ids), begin)

    def asked(self, question: str) -> str:
        """The question in the words in which Δ is asked: one of the renderings in which pairs are taught."""
        return worded(self.config.answer.asked, question, self.config.learn.unknown)

    def beside(self, question: str, unknown: str = "") -> str:
        """The question in the words in which it is asked beside its passage, while that is written down.

        unknown: another word for abstaining than the settings'.
        """
        return worded(self.config.answer.asked, question, unknown or self.config.write.unknown)

    def settled(self, questions: Sequence[str], replies: Sequence[Reply], slots: Sequence[int]) -> list[str]:
        """What greedy replies to `asked` answer out of the Δ of their slots: their first lines, or the abstention.

        An answer is an abstention where a token of the reply was less probable than `config.answer.sure`, or where Δ does not
        know the question again from the answer, by `config.answer.gain` (see tmem.agent.recognise). What was learned is mostly
        answered in tokens that are nearly certain. What was never told is guessed: in some tokens that are not, or with the
        answer to another question.
        """
        config, unknown = self.config.answer, self.config.learn.unknown
        said = [unknown if least(r) < config.sure else first_line(r.text) for r in replies]
        given = [i for i, text in enumerate(said) if text.strip() and text != unknown and slots[i] >= 0]
        if given and config.gain > 0.0:
            found = gains(self, [questions[i] for i in given], [said[i] for i in given], [slots[i] for i in given])
            for i, gain in zip(given, found):
                said[i] = said[i] if gain >= config.gain else unknown
        return said

    def asked_back(self, answer: str) -> str:
        """The words in which the question of an answer is asked back."""
        return asked_back(self.config.learn.reverse, answer)

    def rendered(self, question: str) -> list[str]:
        """The question in all words in which a pair of it is taught."""
        return [worded(template, question, self.config.learn.unknown) for template in self.config.learn.renderings]

    def answer(self, questions: Sequence[str], slots: Sequence[int] | None = None) -> list[str]:
        """Short answers to questions, worded by `asked`, greedy; slots as in `say`. See `settled`."""
        said = self.say([self.asked(q) for q in questions], slots, max_new=self.config.answer.max_new, questions=True)
        return self.settled(questions, said, [-1] * len(questions) if slots is None else slots)

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

        known        what will be asked of each passage, where the prompt may say so (the paper's protocol). With many replies a
                     pair's question is there already, and each reply is an answer from the text
        temperature  of what is said, and of which spans are asked about; the round trip's answers are greedy
        keys         of the noise, one a passage; the passage itself where none are given
        """
        under, keys = None if slots is None else self.writers(slots), keys or passages
        if self.config.write.replies == 1:
            return self._listed(passages, under, known or [()] * len(passages), temperature, keys)
        if known and any(known):
            return self._known(passages, under, known, temperature, keys)
        with keeping():
            drafts = self._asked_of_spans(passages, under, temperature, keys)
        return self._answered(drafts, under)

    def _listed(self, passages, under, known, temperature: float, keys: Sequence[str]) -> list[Draft]:
        """Writes that are one reply, the list of the pairs."""
        config, prompts = self.config.write, [list_prompt(p, asked) for p, asked in zip(passages, known, strict=True)]
        said = self.say(prompts, under, max_new=config.max_new, temperature=temperature, keys=keys)
        written = [parse(r.text, finished=r.generation.finished, limit=config.max_pairs) for r in said]
        return [Draft(p, [reply], pairs) for p, reply, pairs in zip(passages, said, written)]

    def _known(self, passages, under, known, temperature: float, keys: Sequence[str]) -> list[Draft]:
        """Writes that answer known questions, a reply each."""
        spots = [(i, q) for i, asked in enumerate(known) for q in asked]
        noise = [f"{keys[i]}/{k}" for i, asked in enumerate(known) for k in range(len(asked))]
        starts = 1 if temperature > 0.0 else self.config.write.starts
        found, drafts = self._beside(passages, under, spots, starts, temperature, noise), []
        for passage, asked in zip(passages, known, strict=True):
            replies = [next(found) for _ in asked]
            logprobs = [r.generation.logprobs for r in replies]
            written = parse_answers(asked, [r.text for r in replies], logprobs, self.config.write.unknown, passage)
            drafts.append(Draft(passage, replies, written))
        return drafts

    def _asked_of_spans(self, passages, under, temperature: float, keys: Sequence[str]) -> list[Draft]:
        """Spans of each passage and a question to each; both are replies of the write."""
        config = self.config.write
        each = [
            ranked(self.model, self.bank, self.chat, p, None if under is None else under[i]) for i, p in enumerate(passages)
        ]
        taken = [picked(r.spans, config.replies, temperature, key) for r, key in zip(each, keys)]
        spots = [(i, span) for i, spans in enumerate(taken) for span in spans]
        found = iter(self.say(
            [[*each[i].prompt, *span.ids, *each[i].then] for i, span in spots],
            None if under is None else [under[i] for i, _ in spots],
            max_new=config.max_new, begins=[len(each[i].prompt) for i, _ in spots], temperature=temperature,
            keys=[f"{keys[i]}/{k}" for i, spans in enumerate(taken) for k in range(len(spans))],
        ))  # fmt: skip
        drafts = []
        for passage, at, spans in zip(passages, each, taken):
            asked = [next(found) for _ in spans]
            written = asked_of([s.text for s in spans], [r.text for r in asked], [r.generation.finished for r in asked])
            whole = len(at.prompt)
            said = [Reply(at.prompt, Generation([*s.ids, at.then[0]], s.logprobs, True), s.text, whole) for s in spans]
            drafts.append(Draft(passage, [*said, *asked], written))
        return drafts

    def _answered(self, drafts: Sequence[Draft], under: Sequence[int] | None) -> list[Draft]:
        """Drafts with their questions answered from the passages, greedily."""
        spots = [(i, p.question) for i, draft in enumerate(drafts) for p in draft.written.pairs]
        found = self._beside([draft.passage for draft in drafts], under, spots)
        out, unknown, limit = [], self.config.write.unknown, self.config.write.max_pairs
        for draft in drafts:
            answers = [next(found) for _ in draft.written.pairs]
            written = answered(draft.written, [r.text for r in answers], unknown, draft.passage, limit)
            out.append(Draft(draft.passage, draft.replies, written, answers))
        return out

    def _beside(
        self, passages, under, spots: Sequence[tuple[int, str]], starts: int = 1, temperature: float = 0.0,
        keys: Sequence[str] | None = None,
    ) -> Iterator[Reply]:  # fmt: skip
        """What is said to questions beside passages: (which passage, the question) each. A passage is read once for all of
        them, and so are the words that come before each question.

        starts: a reply is begun with each of so many likeliest tokens, and `stands` says which is taken; greedy only.
        """
        openings = [self.chat.prompt(beside(passage, self.beside(""))) for passage in passages]
        asked = [(i, self.chat.prompt(beside(passages[i], self.beside(question)))) for i, question in spots]
        each = [spot for spot in asked for _ in range(starts)]
        said = self.say(
            [prompt for _, prompt in each], None if under is None else [under[i] for i, _ in each],
            max_new=self.config.answer.max_new,
            begins=[len(os.path.commonprefix([prompt, openings[i]])) for i, prompt in each], temperature=temperature,
            keys=keys, ranks=[*range(starts)] * len(spots),
        )  # fmt: skip
        for k, (i, _) in enumerate(spots):
            yield self._taken(said[k * starts : (k + 1) * starts], passages[i])

    def _taken(self, replies: Sequence[Reply], passage: str) -> Reply:
        """Of greedy replies to one question beside a passage the one that stands, with the cost of all."""
        tried = [reply for reply in replies if reply.generation.ids]
        said = [(first_line(reply.text), sum(reply.generation.logprobs)) for reply in tried]
        reply = tried[stands(said, self.config.write.unknown, passage)]
        return replace(reply, untaken=sum(r.generated for r in replies) - reply.generated)

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
