"""LoCoMo (snap-research/locomo, CC BY-NC 4.0): long conversations of two people, in the official locomo10.json format.

A conversation is one episode, read once; one chunk is one of its sessions. Other conversations in these fields are read alike
and do not go by LoCoMo's name, REALTALK (arXiv 2502.13270) among them. The file is the user's own and is never part of this
project.
"""

import random
import re
from collections.abc import Iterable
from pathlib import Path

from tmem.episode import Episode, Evidence, Question
from tmem.tasks.left_out import LeaveOut
from tmem.tasks.metrics import ABSTENTIONS, chosen
from tmem.tasks.records import Record, check_limit, read

__all__ = ["ADVERSARIAL", "CONVERSATIONS", "DATE_SUFFIX", "KINDS", "called", "chosen", "episodes", "question_id"]

KINDS = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
COMMONSENSE = "commonsense"  # REALTALK's category 3

# Those of locomo10.json, in its order.
CONVERSATIONS = tuple(f"conv-{n}" for n in (26, 30, 41, 42, 43, 44, 47, 48, 49, 50))

# The official runner appends this to temporal questions; chunks start with the DATE and CONVERSATION it refers to.
DATE_SUFFIX = "Use DATE of CONVERSATION to answer with an approximate date."

# How category 5, whose questions the text does not answer, is put: openly, or as the official runner's choice of two.
ADVERSARIAL = ("open", "choice")

_SOURCE = "get locomo10.json from https://github.com/snap-research/locomo (folder data)"


def episodes(
    path: str | Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    date_suffix: str = DATE_SUFFIX,
    adversarial: str = "open",
    leave_out: LeaveOut | None = None,
) -> list[Episode]:
    """One episode for each conversation of the file, in its order.

    limit: at most so many questions per conversation, drawn without replacement; the draw depends on the seed and the
    conversation's id alone, so every method is asked the same. Questions keep the order of the file, and their id is
    "sample_id/index in the file".
    Category 5 has the one answer "No information available"; its adversarial answer is the question's intrusion. With
    `adversarial` "choice" the question offers the first and the intrusion as (a) and (b), in an order drawn from the seed
    and its id. Temporal questions (category 2) end with `date_suffix`; "" leaves them as they are. Evidence is the chunk's
    line of every known turn that the file names. Those that `leave_out` names are not there, and not drawn.
    Raises FileNotFoundError, and ValueError for a file of another format, a limit below 1 or an unknown `adversarial`.
    """
    check_limit("locomo", limit, "question per conversation")
    if adversarial not in ADVERSARIAL:
        raise ValueError(f"locomo: adversarial is {adversarial!r}, expected one of {', '.join(ADVERSARIAL)}")
    choice_seed = seed if adversarial == "choice" else None
    records = read(path, "locomo", _SOURCE)
    left = leave_out or LeaveOut()
    return [_episode(record.named("sample_id"), seed, limit, date_suffix, choice_seed, left) for record in records]


def called(episodes: Iterable[Episode]) -> str | None:
    """What conversations in LoCoMo's fields are called where they are not its own, None where they are."""
    ids = [e.id for e in episodes]
    if all(id in CONVERSATIONS for id in ids):
        return None
    return f"{'REALTALK' if all(map(_realtalk, ids)) else 'conversations'} (LoCoMo's format)"


def question_id(id: str, sample: str) -> str:
    """The id that `episodes` gives the question which others call "locomo_0_qa1", question 1 of LoCoMo's first conversation.

    sample: the conversation's name, where it is said. Any other id is returned as it is.
    """
    numbers = re.fullmatch(r"locomo_([0-9]{1,6})_qa([0-9]{1,9})", id)
    if not numbers:
        return id
    conversation, question = map(int, numbers.groups())
    if not sample and conversation >= len(CONVERSATIONS):
        return id
    return f"{sample or CONVERSATIONS[conversation]}/{question}"


def _realtalk(sample: str) -> bool:
    return sample.lower().startswith("realtalk")


def _episode(
    record: Record, seed: int, limit: int | None, date_suffix: str, choice_seed: int | None, left: LeaveOut
) -> Episode:
    sample, qa = record.get("sample_id", str), record.each("qa", dict)
    conversation = Record(record.get("conversation", dict), f"{record.where}, `conversation`")
    # Some dates have no session, and sessions are not always listed in order: number them, take those with turns.
    keys = (re.fullmatch(r"session_([0-9]{1,6})", key) for key in conversation)
    chunks, lines = [], {}
    for number in sorted(int(key[1]) for key in keys if key):
        turns = conversation.each(f"session_{number}", dict, default=())
        if turns:
            said = [_line(turn) for turn in turns]
            for turn, line in zip(turns, said):
                for id in _turn_ids(turn.get("dia_id", str, default="")):
                    lines.setdefault(id, Evidence(len(chunks), line))
            date = conversation.get(f"session_{number}_date_time", str)
            chunks.append("\n".join((f"DATE: {date}", "CONVERSATION:", *said)))
    if not chunks:
        raise ValueError(f"{record.where} has no sessions; expected session_1, session_2, ...")
    drawn = [i for i, asked in enumerate(qa) if not left.names(f"{sample}/{i}", asked.get("question", str))]
    if limit is not None and limit < len(drawn):
        drawn = sorted(random.Random(f"locomo/{seed}/{sample}").sample(drawn, limit))
    questions = tuple(_question(f"{sample}/{i}", qa[i], lines, date_suffix, choice_seed) for i in drawn)
    return Episode(id=sample, chunks=tuple(chunks), pairs=((),) * len(chunks), questions=questions)


def _line(turn: Record) -> str:
    caption = turn.get("blip_caption", str, default="")
    return f"{turn.get('speaker', str)}: {turn.get('text', str)}" + (f" [shares {caption}]" if caption else "")


def _turn_ids(text: str) -> list[tuple[int, int]]:
    """(session, turn) of every "D1:3" in a text; the file also has "D8:6; D9:17", "D30:05" and "D:11:26"."""
    return [(int(session), int(turn)) for session, turn in re.findall(r"D:?([0-9]{1,6}):([0-9]{1,6})", text)]


def _question(id: str, qa: Record, lines: dict, date_suffix: str, choice_seed: int | None) -> Question:
    category, text = qa.get("category", int), qa.get("question", str)
    kind = COMMONSENSE if category == 3 and _realtalk(id) else KINDS.get(category)
    if kind is None:
        raise ValueError(f"{qa.where}: `category` is {str(category)[:20]}; expected one of 1 to 5.")
    intrusions: tuple[str, ...] = ()
    choices: tuple[str, str] | tuple[()] = ()
    if category == 5:
        answers = ABSTENTIONS[:1]
        if qa.get("adversarial_answer", str, int, float, default="") != "":
            intrusions = (qa.answer("adversarial_answer"),)
    else:
        answers = (qa.answer("answer"),)
    if category == 2 and date_suffix:
        text = f"{text} {date_suffix}"
    if intrusions and choice_seed is not None:
        choices = tuple(random.Random(f"locomo/{choice_seed}/{id}/choice").sample((ABSTENTIONS[0], intrusions[0]), 2))
        text = f"{text} Choose the right answer: (a) {choices[0]} (b) {choices[1]}"
    named = dict.fromkeys(turn for entry in qa.each("evidence", str, default=()) for turn in _turn_ids(entry))
    evidence = tuple(lines[turn] for turn in named if turn in lines)
    return Question(id, text, answers, kind, intrusions, str(category), evidence, choices=choices)
