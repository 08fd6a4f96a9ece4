"""Ways to answer questions about a stream, behind one interface: tmem and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..episode import Episode
from .decode import decode
from .episode import Agent, Rollout, first_line, run

# Text methods see the same instruction, so that they differ in what they see and in nothing else.
_WITH_TEXT = "{text}\n\nAnswer from the text above in a few words; if it does not say, answer: unknown.\n{question}"


@dataclass
class Answers:
    """What a method said, per episode in question order; `notes` are for the reader of the table."""

    answers: list[list[str]]
    notes: list[str] = field(default_factory=list)
    rollouts: list[Rollout] | None = None  # tmem and pairs: how the pairs came about


Watch = Callable[[str, int, int], None]


def none(agent: Agent, episodes: Sequence[Episode], run_: Runs) -> Answers:
    """The question alone: what the model knows or guesses without having read."""
    return Answers(_ask(agent, episodes, lambda e, q: q, run_.watch))


def full(agent: Agent, episodes: Sequence[Episode], run_: Runs) -> Answers:
    """The history in the prompt, cut to its last `context` tokens where it is longer."""
    texts = {e.id: "\n\n".join(e.chunks) for e in episodes}
    cut = sum(agent.chat.count(t) > run_.context for t in texts.values())
    clipped = {i: agent.chat.clip(t, run_.context) for i, t in texts.items()}
    said = _ask(agent, episodes, lambda e, q: _WITH_TEXT.format(text=clipped[e.id], question=q), run_.watch)
    return Answers(said, [f"full: {cut} of {len(episodes)} histories cut to their last {run_.context} tokens"])


def retrieval(agent: Agent, episodes: Sequence[Episode], run_: Runs) -> Answers:
    """The lines that BM25 finds for the question, best first until `context`/4 tokens are used, in order of the text."""
    budget = run_.context // 4
    indices = {e.id: _Index(e) for e in episodes}

    def prompt(episode: Episode, question: str) -> str:
        return _WITH_TEXT.format(text=indices[episode.id].find(agent, question, budget), question=question)

    return Answers(_ask(agent, episodes, prompt, run_.watch), [f"retrieval: BM25 over lines, {budget} tokens"])


def tmem(agent: Agent, episodes: Sequence[Episode], run_: Runs) -> Answers:
    """Write, learn, forget the text, answer from the fast weights."""
    rollouts = run_.rollouts(agent, episodes)
    return Answers([r.answers for r in rollouts], rollouts=rollouts)


def pairs(agent: Agent, episodes: Sequence[Episode], run_: Runs) -> Answers:
    """The pairs that tmem wrote, as text in the prompt, without Δ: separates writing well from remembering in weights."""
    rollouts = run_.rollouts(agent, episodes)
    texts = {
        r.episode.id: agent.chat.clip("\n".join(f"{p.question} {p.answer}" for p in r.pairs), run_.context)
        for r in rollouts
    }
    said = _ask(agent, episodes, lambda e, q: _WITH_TEXT.format(text=texts[e.id], question=q), run_.watch)
    return Answers(said, rollouts=rollouts)


METHODS: dict[str, Callable[[Agent, Sequence[Episode], Runs], Answers]] = {
    "none": none,
    "full": full,
    "retrieval": retrieval,
    "pairs": pairs,
    "tmem": tmem,
}


@dataclass
class Runs:
    """Settings shared by the methods of one evaluation, and tmem's rollouts, lived once for `tmem` and `pairs`."""

    seed: int = 0
    context: int = 2048  # tokens of text a prompt may hold
    probing: bool = False
    watch: Watch = lambda *_: None
    _lived: list[Rollout] | None = None

    def rollouts(self, agent: Agent, episodes: Sequence[Episode]) -> list[Rollout]:
        if self._lived is None:
            keys = [f"{self.seed}/{e.id}" for e in episodes]
            self._lived = run(agent, episodes, keys, probing=self.probing, on_event=self.watch)
        return self._lived


def _ask(agent: Agent, episodes, prompt: Callable[[Episode, str], str], watch: Watch) -> list[list[str]]:
    """Greedy answers under the base model; questions go in parts of 32, so that progress shows and memory is bounded."""
    asked = [(i, agent.chat.prompt(prompt(e, q.text))) for i, e in enumerate(episodes) for q in e.questions]
    out: list[list[str]] = [[] for _ in episodes]
    size = 32
    for at in range(0, len(asked), size):
        watch("answer", at, len(asked))
        part = asked[at : at + size]
        found = decode(
            agent.model, [p for _, p in part], end=agent.chat.end, max_new=agent.config.answer.max_new
        )
        for (i, _), generation in zip(part, found):
            out[i].append(first_line(agent.chat.text(generation.ids)))
    return out


class _Index:
    """BM25 over the lines of one episode, each with the header of its chunk."""

    def __init__(self, episode: Episode):
        import bm25s

        self.lines: list[str] = []
        for chunk in episode.chunks:
            header, *rest = chunk.splitlines()
            self.lines += [f"[{header}] {line}" for line in rest if line.strip()] or [header]
        self._tokenize = lambda texts: bm25s.tokenize(texts, stopwords="en", show_progress=False)
        self._bm25 = bm25s.BM25()
        self._bm25.index(self._tokenize(self.lines), show_progress=False)

    def find(self, agent: Agent, question: str, budget: int) -> str:
        ranked, _ = self._bm25.retrieve(self._tokenize([question]), k=len(self.lines), show_progress=False)
        chosen, used = [], 0
        for index in ranked[0].tolist():
            used += agent.chat.count(self.lines[index])
            if used > budget and chosen:
                break
            chosen.append(index)
        return "\n".join(self.lines[i] for i in sorted(chosen))
