"""One set of questions as it is searched for: the turns of an agent with a search engine, and what it is told (MEM1's format).

Whether what was found stays in the context is the agent's memory's business: here it leaves it as a passage, unless `stays`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from ..episode import Clip, Observation, Outcome, Pair, Scene
from ..words import POLAR, normalise
from . import search
from .corpus import Document, Index
from .multihop import Hop
from .search import Objectives
from .tool import Tool

_LEARNED = "The documents were read and are remembered."
_NOTHING = "Nothing was found."
_FAILED = "The search failed."
_UNREADABLE = "Nothing was searched: end your turn with <search> or <answer>."
_UNKNOWN = "not known yet"
DOCUMENTS, OBSERVATION = 3, 1000  # that a search finds, and tokens of them that are shown or read
SECONDS = 30.0  # of a search


def engine(index: Index, documents: int = DOCUMENTS, seconds: float = SECONDS) -> Tool[list[Document]]:
    """An index as a tool: a query's documents, best first."""
    return Tool(partial(index.find, k=documents), seconds, _are_documents)


def _are_documents(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(d, tuple) and len(d) == 2 and all(isinstance(part, str) for part in d) for d in value
    )


class SearchScene(Scene):
    """A search under way.

        task     the questions
        find     the search engine, see `engine`; None: there is none, and whoever searches is told that it failed
        clip     cuts a text to so many tokens
        turns    before the answer is asked for
        max_new  tokens of a turn
        known    the questions stand in the prompts that write down what was found
        stays    what was found stands in the reply to its turn, instead of leaving the context
        every    all earlier turns are seen, else the last one alone
        each     every question is asked by itself when the turns are used up, beside what `stays`. So a turn is a query alone,
                 and none needs what was learned. Behind its query it notes what is known, where what stays is not seen again

    After each action: `said`, as it was understood; `shown`, the turn and its reply as the next may see them; `titles` that it
    found; `answer`, None until there is one.
    """

    def __init__(
        self, task: Objectives, find: Tool[list[Document]] | None, clip: Clip, *, turns: int, max_new: int = 128,
        observation: int = OBSERVATION, known: bool = True, stays: bool = False, every: bool = False, each: bool = False,
    ):  # fmt: skip
        self.each, self.recalls, self.every, self.notes = each, not each, every, each and stays and not every
        self.task, self.find, self.clip, self.turns, self.max_new = task, find, clip, turns, max_new
        self.observation, self.known, self.stays = observation, known, stays
        self.history: list[str] = []  # the turns with their replies
        self.taken = 0
        self.said, self.shown, self.titles = search.Said(), "", ()
        self.answer: str | None = None
        self.met: dict[str, Document] = {}  # the evidence that was found, by title
        self.asked: set[str] = set()  # queries

    @property
    def questions(self) -> tuple[str, ...]:
        """As they are known to be asked."""
        return tuple(map(_question, self.task.hops))

    @property
    def over(self) -> bool:
        """Whether the agent has no more turn."""
        return self.taken >= self.turns if self.each else self.answer is not None

    @property
    def opened(self) -> str:
        """What the next action begins with."""
        if self.each:
            return search.OPEN_SEARCH
        return search.OPEN_TURN if self.taken < self.turns else search.OPEN_ANSWER

    @property
    def seen(self) -> list[str]:
        """The turns that the next one sees."""
        return self.history if self.every else self.history[-1:]

    @property
    def instruction(self) -> str:
        """What every turn sees above them."""
        return search.prompt(self.task, direct=not self.turns, each=self.each, notes=self.notes)

    @property
    def kept(self) -> Outcome:
        """The turns that are seen, where what was found stays in them and every question is asked by itself."""
        text = "\n".join(self.seen) if self.stays and self.each else ""
        return Outcome(text, self.questions, self._pairs(self.met.values())) if text else Outcome()

    def observe(self) -> Observation | None:
        """The instruction with the questions, and the turns that are seen again."""
        if self.over:
            return None
        text = "\n".join([self.instruction, *self.seen])
        return Observation(text, self.opened, "turn" if self.taken < self.turns else "answer", self.max_new)

    def act(self, said: str) -> Outcome:
        """Search, or answer. Without a turn left only an answer is read."""
        last, self.said, self.titles = self.taken >= self.turns, search.read(said, self.notes), ()
        self.taken += 1
        self.shown = str(self.said)
        if self.each:
            self.shown = self.shown.removeprefix("<think></think>\n")
        else:
            self.answer = (self.said.answer or "") if last else self.said.answer
        if self.answer is not None:
            return Outcome()
        reply, outcome = self._reply(self.said.query)
        self.shown += "\n" + search.information(reply, self.turns - self.taken)
        self.history.append(self.shown)
        return outcome

    def _reply(self, query: str | None) -> tuple[str, Outcome]:
        """What a turn is answered with, and what that means for the agent."""
        if query is None:
            return _UNREADABLE, Outcome()
        found, how = self.find(query) if self.find else (None, "error")
        if found is None:
            return _FAILED, Outcome(called=how)
        self.titles, new = tuple(d.title for d in found), self._new(found)
        text = self.clip(search.listing(found), self.observation)
        self.asked.add(normalise(query))
        if self.stays or not text:
            return text or _NOTHING, Outcome(called=how)
        return _LEARNED, Outcome(text, self.questions if self.known else (), self._pairs(new), called=how)

    def scores(self) -> list[dict[str, float]]:
        """f1 and em of every question, all 0 where there are not as many answers; `counted`, whether there are; `found`, the
        share of all evidence that was found. Where each question is asked by itself, `found` alone."""
        found = search.recall(self.task, list(self.met)) or 0.0
        if self.each:
            return [{"found": found}]
        parts = [p.strip() for p in (self.answer or "").split(";")]
        counted = float(len(parts) == len(self.task.hops) and self.answer is not None)
        said = [search.compared(parts[i] if counted else "", hop.answers) for i, hop in enumerate(self.task.hops)]
        return [{"f1": f1, "em": em, "counted": counted, "found": found} for em, f1 in said]

    # what is right to do, by the supporting facts ----------------------------------------------------------------------

    def right(self) -> str | None:
        """Search for the first question whose evidence was not found, in its own words, then for the articles that it names;
        answer when there is nothing left to search for. None where the data name no evidence, and where every question is asked
        by itself instead of that answer."""
        if not all(hop.evidence for hop in self.task.hops):
            return None
        query = next(filter(None, map(self._query, self.task.hops)), None)
        if self.each:
            known = " ".join(f"{p.question} {search.escape(p.answer)}" for p in self._pairs(self.met.values()))
            return query and f"<search>{query}</search>" + f"\n<think>{known}</think>" * bool(self.notes and known)
        answer = f"<answer>{'; '.join(hop.answers[0] for hop in self.task.hops)}</answer>"
        if self.taken >= self.turns:
            return answer
        known = [self._answered(hop) or _UNKNOWN for hop in self.task.hops]
        think = " ".join(f"{i}: {search.escape(note)}." for i, note in enumerate(known, 1))
        return f"<think>{think}</think>\n{answer if query is None else f'<search>{query}</search>'}"

    def _query(self, hop: Hop) -> str | None:
        if self._answered(hop) or set(hop.evidence) <= self.met.keys():
            return None
        named = [t for t in hop.evidence if t not in self.met and _stands(t, hop.question)]
        return next((q for q in (search.escape(hop.question), *named) if normalise(q) not in self.asked), None)

    def _new(self, found: Sequence[Document]) -> list[Document]:
        """The evidence among documents that was not found before, which it is from now on."""
        wanted = {title for hop in self.task.hops for title in hop.evidence}
        new = [d for d in found if d.title in wanted and d.title not in self.met]
        self.met.update((d.title, d) for d in new)
        return new

    def _answered(self, hop: Hop) -> str:
        """The answer that stands in what was found of a question's evidence; a yes or no when all of it was found; ""."""
        if normalise(hop.answers[0]) in POLAR:
            return hop.answers[0] if set(hop.evidence) <= self.met.keys() else ""
        text = " ".join(d.text for title, d in self.met.items() if title in hop.evidence)
        return next((a for a in hop.answers if _stands(a, text)), "")

    def _pairs(self, new: Iterable[Document]) -> tuple[Pair, ...]:
        """Of every question that new evidence answers the pair to learn."""
        found = {d.title for d in new}
        told = [(hop, self._answered(hop)) for hop in self.task.hops if found & set(hop.evidence)]
        return tuple(Pair(_question(hop), answer) for hop, answer in told if answer)


def _question(hop: Hop) -> str:
    """A question as it is known to be asked."""
    return search.escape(search.asked(hop))


def _stands(words: str, text: str) -> bool:
    return f" {normalise(words)} " in f" {normalise(text)} "
