"""The supervised part: what a good write looks like, and how questions are answered from what was learned."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..adapters.bank import Snapshot
from ..agent.agent import Agent
from ..agent.loop import opened_prompt
from ..agent.passages import cut
from ..agent.teach import Lesson, rehearsal
from ..agent.write import ONE, beside, list_prompt, render, render_one
from ..episode import Episode, Outcome, Pair, Question, Scene
from ..ops import token_logp
from ..words import normalise
from .config import TrainConfig
from .policy import Policy
from .replay import micro_batches
from .rows import Row, grouped, logits_of
from .world import ALONE, World

WORDED = 0.67  # share of the questions beside a passage that are asked as an agent asks
STRANGE = 0.25  # share of the passages beside which another passage's question is asked
SILENT = 0.5  # questions that a found passage does not answer, for each that it does
UNTOLD = 0.5  # and of those that seem to answer something and do not, beside which that is asked
OTHERWISE = 0.25  # share of the questions in the words of an agent that name another word for abstaining than the agent's own
WORDS = ("not mentioned", "no information", "no answer", "I do not know", "none")


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of its right answer, and the Δ under which it is answered (None: Δ = 0).

    begin: how many tokens of the prompt are computed once for all examples that begin alike under the same Δ; 0: none.
    """

    prompt: list[int]
    answer: list[int]
    delta: Snapshot | None = None
    begin: int = 0

    @property
    def trunk(self) -> list[int]:
        return self.prompt[: self.begin]

    @property
    def branch(self) -> list[int]:
        return self.prompt[self.begin :] + self.answer


def row_of(examples: Sequence[Example]) -> Row:
    """Examples that share a trunk."""
    return Row(examples[0].trunk, [e.branch for e in examples], [len(e.prompt) - e.begin for e in examples])


def passages(agent: Agent, episode: Episode) -> list[tuple[str, list[Pair]]]:
    """The texts an agent would write, whole chunks up to its window, each with the gold pairs that then stand.

    A model that only ever saw single chunks writes about the first of several and stops.
    """
    out: list[tuple[str, list[Pair]]] = []
    used = 0
    for chunk, pairs in zip(episode.chunks, episode.pairs):
        size = agent.chat.count(chunk)
        if out and used + size <= agent.config.write.window:
            text, standing = out[-1]
            out[-1] = f"{text}\n\n{chunk}", [*rehearsal(standing, pairs, len(standing)), *pairs]
            used += size
        else:
            out.append((chunk, list(pairs)))
            used = size
    return out


def shown(text: str, pairs: Sequence[Pair], config: TrainConfig, replies: int = 1) -> list[Pair]:
    """The gold pairs of a passage that a supervised example writes: all, or with `warm_pairs` some, in their order.

    Of a list it is 1 to so many: a sample shows the form and leaves to the reward how much to write, and what. Of replies that
    hold a pair each it is so many, where there are as many.
    """
    if not config.warm_pairs:
        return list(pairs)
    draw = random.Random(f"{config.seed}/{text}")
    return _some(pairs, draw.randint(1, config.warm_pairs) if replies == 1 else config.warm_pairs, draw)


def _some(pairs: Sequence[Pair], count: int, draw: random.Random) -> list[Pair]:
    """So many of the pairs, in their order."""
    return [pairs[i] for i in sorted(draw.sample(range(len(pairs)), min(len(pairs), count)))]


@dataclass(frozen=True)
class Examples:
    """Of one step: passages to be written down and actions to be taken in scenes, questions to be answered beside a passage and
    under Δ alone, and what is to be answered as before."""

    writing: list[Example]
    reading: list[Example]
    recalling: list[Example]
    keeping: list[Example]

    @property
    def parts(self) -> tuple[list[Example], ...]:
        return self.writing, self.reading, self.recalling, self.keeping


def examples(
    agent: Agent, config: TrainConfig, step: int, everyone: Sequence[Episode], keeping: Sequence[Example] = (),
    world: World = ALONE,
) -> Examples:  # fmt: skip
    """This rank's examples of one step's training episodes, beside those of `keeping`. everyone: the episodes of all ranks.

    Passage j with its gold pairs is to be written under the Δ that learning the gold pairs before it gives, as in a
    rollout: a model that writes well only while it has learned nothing stops writing after its first write. Where a rollout
    writes without Δ (`under_delta` off), so does the example.
    Questions are to be answered under the Δ of all gold pairs, with `unknown` where the episode does not say.
    With `warm_pairs` what is written is only a sample of a passage's gold pairs.
    In the first `warm_plain` steps Δ = 0 and no questions: how to write comes first, and costs half as much to teach.
    The turns of scenes are taken as `Scene.right` says, after the stream was learned; see `_acting`.
    """
    every = [passages(agent, e) for e in everyone]
    episodes, streams, mine = world.share(everyone), world.share(every), set(world.share(range(len(everyone))))
    read = [(i in mine, *passage, never(everyone[i])) for i, stream in enumerate(every) for passage in stream]
    reading = _reading(agent, config, step, read) if config.warm_read else []
    if step < config.warm_plain:
        writing = [w for stream in streams for p in stream for w in _writing(agent, config, *p, None)]
        return Examples([*writing, *_acting(agent, config, episodes, None)[0]], reading, [], [*keeping])
    writing: list[Example] = []
    deltas: list[Snapshot | None] = [None] * len(episodes)
    lessons, under_delta = [Lesson() for _ in episodes], agent.config.write.under_delta
    with agent.bank.borrowed(len(episodes)) as slots:
        for j in range(max(map(len, streams), default=0)):
            due = [i for i, stream in enumerate(streams) if j < len(stream)]
            for i in due:
                writing += _writing(agent, config, *streams[i][j], deltas[i] if under_delta else None)
            agent.teach([slots[i] for i in due], [streams[i][j][1] for i in due], [lessons[i] for i in due])
            for i in due:
                deltas[i] = agent.bank.snapshot(slots[i], optimizer=False)
        acting, beside_text = _acting(agent, config, episodes, Taught(slots, lessons, deltas))
    recalling = [
        Example(agent.chat.prompt(agent.asked(q.text)), agent.chat.answer(_right(agent, q)), delta)
        for i, (delta, episode) in enumerate(zip(deltas, episodes))
        if i not in beside_text
        for q in episode.questions
    ]
    return Examples([*writing, *acting], reading, recalling, [*keeping])


def _writing(agent: Agent, config: TrainConfig, text: str, pairs: list[Pair], delta: Snapshot | None) -> list[Example]:
    """A passage's replies: one with the list of its gold pairs, or one for each of them."""
    chat, replies = agent.chat, agent.config.write.replies
    few = shown(text, pairs, config, replies)
    if replies == 1:
        return [Example(chat.prompt(list_prompt(text)), chat.answer(render(few)), delta)]
    prompt = chat.prompt(beside(text, ONE))
    begin = agent.begin(text, prompt)
    return [Example(prompt, chat.answer(render_one(pair)), delta, begin) for pair in few]


@dataclass
class Taught:
    """What episodes were taught so far: their slots, their lessons, and the Δ that came of it."""

    slots: Sequence[int]
    lessons: Sequence[Lesson]
    deltas: list[Snapshot | None]

    def teach(self, agent: Agent, new: dict[int, Sequence[Pair]]) -> None:
        """Teach some episodes their new pairs."""
        slots = [self.slots[i] for i in new]
        agent.teach(slots, [*new.values()], [self.lessons[i] for i in new])
        for i, slot in zip(new, slots):
            self.deltas[i] = agent.bank.snapshot(slot, optimizer=False)


def _acting(
    agent: Agent, config: TrainConfig, episodes: Sequence[Episode], taught: Taught | None
) -> tuple[list[Example], set[int]]:
    """What is right in every turn of the scenes, under the Δ of the gold pairs of what left the context before, and what is to
    be written of that; and which episodes' questions were asked beside what their scenes kept.

    A scene ends where it does not know what is right; without `taught` where something is learned that its next turns recall.
    """
    out: list[Example] = []
    begun = {i: e.begin(agent.chat.beginning) for i, e in enumerate(episodes) if e.begin is not None}
    scenes = {i: scene for i, scene in begun.items() if type(scene).right is not Scene.right}  # the others never know it
    while scenes:
        left: dict[int, Outcome] = {}
        said: list[tuple[list[int], list[int], Snapshot | None]] = []
        for i, scene in [*scenes.items()]:
            seen = scene.observe()
            right = None if seen is None else scene.right()
            if seen is None or right is None:
                del scenes[i]
                continue
            if not right.startswith(seen.opened):
                raise ValueError(f"scene: right() begins with {right[:20]!r}, and the action is opened with {seen.opened!r}.")
            chat, rest = agent.chat, right[len(seen.opened) :]
            answer = [*chat.plain(rest), chat.end] if seen.opened else chat.answer(right)
            said.append((opened_prompt(agent, seen), answer, taught.deltas[i] if taught and scene.recalls else None))
            outcome = scene.act(right)
            if outcome.passage:
                left[i] = outcome
        out += _said(said)
        under = taught if agent.config.write.under_delta else None
        for i, outcome in left.items():
            out += _written(agent, config, outcome, under.deltas[i] if under else None)
        if taught:
            taught.teach(agent, {i: outcome.pairs for i, outcome in left.items() if outcome.pairs})
        else:
            scenes = {i: scene for i, scene in scenes.items() if i not in left or not scene.recalls}
    kept = {i: scene.kept for i, scene in begun.items() if scene.kept.passage}
    for found in kept.values():
        answers = {p.question: p.answer for p in found.pairs}
        out += _beside(agent, config, found.passage, found.asked, answers, agent.config.learn.unknown, None)
    return out, {*kept}


def _said(said: Sequence[tuple[list[int], list[int], Snapshot | None]]) -> list[Example]:
    """Prompts, answers and Δ as examples; what all prompts under no Δ begin with is computed once."""
    first = [prompt for prompt, _, delta in said if delta is None]
    begin = min(len(os.path.commonprefix(first)), *(len(p) - 1 for p in first)) if len(first) > 1 else 0
    return [Example(prompt, answer, delta, begin if delta is None else 0) for prompt, answer, delta in said]


def _written(agent: Agent, config: TrainConfig, outcome: Outcome, delta: Snapshot | None) -> list[Example]:
    """What is to be written of what left the context, passage by passage as the agent cuts it.

    A pair belongs to the passages in which its answer stands, and to the last one where it stands in none. A passage without a
    pair is no example: most have none, and a model that is shown them abstains. So of the known questions that a passage does
    not answer only some are asked, half as many as it answers.
    """
    chat, passages = agent.chat, cut(agent.chat, [outcome.passage], agent.config.write.window)
    stands = [[f" {normalise(p.answer)} " in f" {normalise(text)} " for p in outcome.pairs] for text in passages]
    out: list[Example] = []
    for k, text in enumerate(passages):
        own = [
            p for j, p in enumerate(outcome.pairs) if stands[k][j] or k + 1 == len(passages) and not any(s[j] for s in stands)
        ]
        if not own:
            continue
        if not outcome.asked:
            out += _writing(agent, config, text, own, delta)
        elif agent.config.write.replies == 1:
            out.append(Example(chat.prompt(list_prompt(text, outcome.asked)), chat.answer(render(own)), delta))
        else:
            answers = {p.question: p.answer for p in own}
            out += _beside(agent, config, text, outcome.asked, answers, agent.config.write.unknown, delta)
    return out


def _beside(
    agent: Agent, config: TrainConfig, text: str, asked: Sequence[str], answers: dict[str, str], unknown: str,
    delta: Snapshot | None,
) -> list[Example]:  # fmt: skip
    """Known questions beside a text, one by one: all that it answers, and of the others half as many."""
    chat, out = agent.chat, []
    draw = random.Random(f"{config.seed}/{text}")
    share = SILENT * len(answers) / max(1, len(asked) - len(answers))
    for question in (q for q in asked if q in answers or draw.random() < share):
        prompt = chat.prompt(beside(text, agent.beside(question, unknown)))
        out.append(Example(prompt, chat.answer(answers.get(question, unknown)), delta, agent.begin(text, prompt)))
    return out


def never(episode: Episode) -> list[str]:
    """What an episode asks and no passage of it answers."""
    return [q.text for q in episode.questions if q.category == "abstention"]


def _right(agent: Agent, question: Question) -> str:
    return agent.config.learn.unknown if question.category == "abstention" else question.answers[0]


def _reading(
    agent: Agent, config: TrainConfig, step: int, read: Sequence[tuple[bool, str, list[Pair], list[str]]]
) -> list[Example]:  # fmt: skip
    """Of every passage that is this rank's some gold pairs, asked beside it, and now and then what it does not answer: a
    question of another passage of the step, whichever rank has that, and one of those that it seems to answer.

    Most are asked in the words of `Agent.beside`, and some of these with another word for abstaining, which is then right;
    others bare: a model that is asked in one wording alone forgets the others.
    """
    chat, out = agent.chat, []
    for i, (mine, text, pairs, untold) in enumerate(read):
        if not mine:
            continue
        draw = random.Random(f"{config.seed}/read/{step}/{i}")
        few = shown(text, pairs, config, agent.config.write.replies)
        asked = [
            (agent.beside(p.question, _word(agent, draw)) if draw.random() < WORDED else p.question, p.answer)
            for p in _some(few, -(-len(few) // 2), draw)
        ]
        own = {normalise(p.question) for p in pairs}
        strange = [p.question for _, _, other, _ in [*read[:i], *read[i + 1 :]] for p in other]
        others = [question for question in strange if normalise(question) not in own]
        for found, share in ((others, STRANGE), (untold, UNTOLD)):
            if found and draw.random() < share:
                word = _word(agent, draw)
                asked.append((agent.beside(draw.choice(found), word), word))
        for words, answer in asked:
            prompt = chat.prompt(beside(text, words))
            out.append(Example(prompt, chat.answer(answer), None, agent.begin(text, prompt)))
    return out


def _word(agent: Agent, draw: random.Random) -> str:
    """The word for abstaining that a question names: the agent's own, or another one."""
    return draw.choice(WORDS) if draw.random() < OTHERWISE else agent.config.write.unknown


def backward(
    agent: Agent, policy: Policy, parts: Sequence[Sequence[Example]], micro_tokens: int, scales: Sequence[float] = (1.0,),
    counts: Sequence[float] | None = None,
) -> list[float]:  # fmt: skip
    """Accumulate, for every part, `scales[i]` times the gradient of the mean over its examples of their mean token loss.

    Returns that mean (nats) of every part. Every example weighs the same however long it is, and its loss does not depend on
    which others share the batch; examples of several parts share rows. Δ is a constant. `counts`: examples of all ranks, if
    there are more; the losses of the ranks are then parts of one. All ranks must call this together.
    """
    device, counts = agent.bank.device, counts or [len(part) for part in parts]
    batch = [(n, e) for n, part in enumerate(parts) for e in part]
    shared = grouped(batch, lambda x: (id(x[1].delta) if x[1].begin else id(x[1]), x[1].trunk), lambda x: len(x[1].branch))
    rows = [row_of([e for _, e in row]) for row in shared]
    deltas = [row[0][1].delta for row in shared]
    totals = torch.zeros(len(parts), dtype=torch.float64)
    groups = micro_batches([row.ids for row in rows], micro_tokens, deltas, agent.bank)
    with policy.updating(len(groups)):
        for group in groups:
            members = [x for i in group for x in shared[i]]
            of = torch.tensor([n for n, e in members for _ in e.answer], device=device)
            weights = torch.tensor([1.0 / (len(e.answer) * counts[n]) for n, e in members for _ in e.answer], device=device)
            with agent.bank.holding([deltas[i] for i in group]) as slots, agent.bank.route(slots, learn=False):
                said = torch.tensor([token for i in group for token in rows[i].said], device=device)
                logp, _ = token_logp(logits_of(policy, agent.bank, [rows[i] for i in group]), said)
                losses = -logp * weights
                (losses * torch.tensor(scales, device=device)[of]).sum().backward()
            totals.index_add_(0, of.cpu(), losses.detach().double().cpu())
    return totals.tolist()
