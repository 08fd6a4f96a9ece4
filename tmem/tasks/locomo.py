"""LoCoMo (snap-research/locomo, CC BY-NC 4.0): long conversations of two people, in the official locomo10.json format.

A conversation is one episode, read once; one chunk is one of its sessions. The file is the user's own and is never
part of this project.
"""

import random
import re
from pathlib import Path

from tmem.episode import Episode, Evidence, Question
from tmem.tasks.metrics import ABSTENTIONS, chosen
from tmem.tasks.records import Record, check_limit, read

__all__ = ["ADVERSARIAL", "DATE_SUFFIX", "KINDS", "chosen", "load"]

KINDS = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}

# The official runner appends this to temporal questions; chunks start with the DATE and CONVERSATION it refers to.
DATE_SUFFIX = "Use DATE of CONVERSATION to answer with an approximate date."

# How category 5, which asks about what was never said, is put: openly, or as the official runner's choice of two.
ADVERSARIAL = ("open", "choice")

_SOURCE = "get locomo10.json from https://github.com/snap-research/locomo (folder data)"


def load(
    path: str | Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    date_suffix: str = DATE_SUFFIX,
    adversarial: str = "open",
) -> list[Episode]:
    """One episode for each conversation of the file, in its order.

    limit: at most so many questions per conversation, drawn without replacement; the draw depends on the seed and the
    conversation's id alone, so every method is asked the same. Questions keep the order of the file, and their id is
    "sample_id/index in the file".
    Category 5 has the one answer "No information available"; its adversarial answer is the question's intrusion. With
    `adversarial` "choice" the question offers the first and the intrusion as (a) and (b), in an order drawn from the seed
    and its id. Temporal questions (category 2) end with `date_suffix`; "" leaves them as they are. Evidence is the chunk's
    line of every known turn that the file names.
    Raises FileNotFoundError, and ValueError for a file of another format, a limit below 1 or an unknown `adversarial`.
    """
    check_limit("locomo", limit, "question per conversation")
    if adversarial not in ADVERSARIAL:
        raise ValueError(f"locomo: adversarial is {adversarial!r}, expected one of {', '.join(ADVERSARIAL)}")
    choice_seed = seed if adversarial == "choice" else None
    records = read(path, "locomo", _SOURCE)
    return [_episode(record.named("sample_id"), seed, limit, date_suffix, choice_seed) for record in records]


def _episode(record: Record, seed: int, limit: int | None, date_suffix: str, choice_seed: int | None) -> Episode:
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
    drawn = range(len(qa))
    if limit is not None and limit < len(qa):
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
    if category not in KINDS:
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
    return Question(id, text, answers, KINDS[category], intrusions, str(category), evidence, choices=choices)
