"""An episode: a stream of text in chunks, perhaps a scene in which the agent acts, and questions asked afterwards."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Clip", "Episode", "Evidence", "Observation", "Outcome", "Pair", "Question", "Scene"]

Clip = Callable[[str, int], str]
"""The beginning of a text, in so many of the model's tokens at most."""


@dataclass(frozen=True)
class Pair:
    """A self-contained question with its short answer: what a write should look like."""

    question: str
    answer: str


@dataclass(frozen=True)
class Evidence:
    """A passage that a question's answer rests on: `text`, as it stands in chunk number `chunk` of the stream."""

    chunk: int
    text: str


@dataclass(frozen=True)
class Question:
    """A question asked after everything was read.

        id          one of its own among the task's questions
        text        as it is put to the model
        answers     any of them is right
        kind        the task's own label, for reporting by group
        intrusions  values of this episode that belong to another person or to an older fact; naming one of them instead of
                    an answer is a wrong binding (`metrics.intrusion`)
        category    another label of the task
        evidence    where the answer stands, empty where the task does not say
        rubrics     what a judge checks one by one
        choices     what (a) and (b) stand for in `text`, if it offers them

    Where there are rubrics, answers are graded and not compared, and `answers` is empty.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    kind: str
    intrusions: tuple[str, ...] = ()
    category: str = ""
    evidence: tuple[Evidence, ...] = ()
    rubrics: tuple[str, ...] = ()
    choices: tuple[str, str] | tuple[()] = ()


@dataclass(frozen=True)
class Observation:
    """What an agent is shown before it acts.

    text     the user turn: all that it sees beside its Δ
    opened   what its action begins with; the agent says the rest
    kind     of action, for the log
    max_new  tokens of the action, without what opened it
    """

    text: str
    opened: str = ""
    kind: str = "turn"
    max_new: int = 128


@dataclass(frozen=True)
class Outcome:
    """What an action led to.

    passage  text that leaves the context now: it is written down and learned before the next observation; "": none
    asked    what is known to be asked of the passage; it stands in the prompts that write
    pairs    gold pairs of the passage, for supervised steps
    reward   on the way; all of them are added to the reward at the end
    called   "" where no tool was called, "fine", or how the call failed: "timeout", "error" or "garbage"
    """

    passage: str = ""
    asked: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()
    reward: float = 0.0
    called: str = ""


class Scene:
    """An episode's turns, under way: observe, act, observe, ... A class of one's own derives from it.

    recalls  whether its turns are taken under Δ; else that is for the questions afterwards alone
    kept     what stands beside each of the questions afterwards, as if it left the context; without a passage there is none,
             and they are asked of Δ alone
    """

    recalls = True
    kept = Outcome()

    def observe(self) -> Observation | None:
        """What the agent is shown next; None: the scene is over. Asking twice changes nothing."""
        raise NotImplementedError

    def act(self, said: str) -> Outcome:
        """Take an action, with what opened it, and call what tools it asks for (tmem.tasks.tool).

        Whatever was said is an action: one that cannot be understood costs the agent its turn, and raises nothing.
        """
        raise NotImplementedError

    def scores(self) -> list[dict[str, float]]:
        """When it is over: scores by name, one dict with the same names for each objective."""
        raise NotImplementedError

    def right(self) -> str | None:
        """What supervised steps teach to do now, with what opens it; None where that is not known."""
        return None


@dataclass(frozen=True)
class Episode:
    """A stream of text, a scene if there is one, and the questions that are asked at the end.

        id         one of its own among the task's episodes
        chunks     the stream, in order
        pairs      pairs[i]: the gold pairs of chunk i, empty where the task has none
        questions  asked when all was read
        note       what a reader of its scores should know
        begin      makes the scene, anew for every rollout, after the stream was read

    A chunk is one conversation session with a date header.
    """

    id: str
    chunks: tuple[str, ...]
    pairs: tuple[tuple[Pair, ...], ...]
    questions: tuple[Question, ...]
    note: str = ""
    begin: Callable[[Clip], Scene] | None = None
