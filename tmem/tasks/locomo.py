"""LoCoMo (snap-research/locomo, CC BY-NC 4.0): long conversations of two people, in the official locomo10.json format.

A conversation is one episode, read once; one chunk is one of its sessions. The file is the user's own and is never
part of this project.
"""

import json
import random
from pathlib import Path

from tmem.episode import Episode, Question

__all__ = ["ABSTENTIONS", "DATE_SUFFIX", "KINDS", "load"]

KINDS = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}

# The official runner appends this to temporal questions; chunks start with the DATE and CONVERSATION it refers to.
DATE_SUFFIX = "Use DATE of CONVERSATION to answer with an approximate date."

# Category 5 asks about what was never said. The official gold is the first; all of them count as right.
ABSTENTIONS = ("No information available", "Not mentioned", "unknown")


def load(path: str | Path, *, seed: int = 0, limit: int | None = None, date_suffix: str = DATE_SUFFIX) -> list[Episode]:
    """One episode for each conversation of the file, in its order.

    limit: at most so many questions per conversation, drawn without replacement; the draw depends on the seed and the
    conversation's id alone, so every method is asked the same. Questions keep the order of the file, and their id is
    "sample_id/index in the file".
    Category 5 has the answers "No information available", "Not mentioned" and "unknown"; its adversarial answer is the
    question's intrusion. Temporal questions (category 2) end with `date_suffix`; "" leaves them as they are.
    Raises FileNotFoundError, and ValueError for a file of another format or a limit below 1.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise ValueError(f"locomo: limit is {limit}, expected at least 1 question per conversation")
    if not path.is_file():
        raise FileNotFoundError(
            f"locomo: no file at {path}; get locomo10.json from https://github.com/snap-research/locomo (folder data)"
        )
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"locomo: {path} is not JSON ({error}); expected the official locomo10.json") from error
    if not isinstance(records, list) or not records:
        raise ValueError(f"locomo: {path} holds {type(records).__name__}, expected a non-empty list of conversations")
    try:
        return [_episode(record, seed, limit, date_suffix) for record in records]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"locomo: {path} is not in the official format ({type(error).__name__}: {error}); "
            "expected records with sample_id, conversation and qa"
        ) from error


def _episode(record: dict, seed: int, limit: int | None, date_suffix: str) -> Episode:
    sample, conversation, qa = record["sample_id"], record["conversation"], record["qa"]
    # Some dates have no session, and sessions are not always listed in order: number them, take those with turns.
    numbers = sorted(int(key[8:]) for key in conversation if key.startswith("session_") and key[8:].isdigit())
    chunks = tuple(
        _chunk(conversation[f"session_{n}_date_time"], conversation[f"session_{n}"])
        for n in numbers
        if conversation[f"session_{n}"]
    )
    if not chunks:
        raise ValueError(f"locomo: conversation {sample} has no sessions, expected session_1, session_2, ...")
    chosen = range(len(qa))
    if limit is not None and limit < len(qa):
        chosen = sorted(random.Random(f"locomo/{seed}/{sample}").sample(chosen, limit))
    questions = tuple(_question(f"{sample}/{i}", qa[i], date_suffix) for i in chosen)
    return Episode(id=sample, chunks=chunks, pairs=((),) * len(chunks), questions=questions)


def _chunk(date: str, turns: list[dict]) -> str:
    lines = [f"DATE: {date}", "CONVERSATION:"]
    for turn in turns:
        caption = turn.get("blip_caption")
        lines.append(f"{turn['speaker']}: {turn['text']}" + (f" [shares {caption}]" if caption else ""))
    return "\n".join(lines)


def _question(id: str, qa: dict, date_suffix: str) -> Question:
    category, text = qa["category"], qa["question"]
    if category not in KINDS:
        raise ValueError(f"locomo: question {id} has category {category!r}, expected one of 1 to 5")
    intrusions: tuple[str, ...] = ()
    if category == 5:
        answers = ABSTENTIONS
        intrusions = (str(qa["adversarial_answer"]),) if "adversarial_answer" in qa else ()
    else:
        answers = (str(qa["answer"]),)
    if category == 2 and date_suffix:
        text = f"{text} {date_suffix}"
    return Question(id, text, answers, KINDS[category], intrusions, str(category))
