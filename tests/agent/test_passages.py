"""Passages say when and who: dates and speakers at the cuts of long sessions, here and in the benchmarks' own files."""

import os
import re
from pathlib import Path

import pytest
from tiny import Letters

from tmem import tasks
from tmem.agent.passages import cut, speakers
from tmem.models.chat import Chat

DATA = Path(os.environ.get("TMEM_DATA", Path(__file__).parents[3] / "shared/data"))
DATE = "DATE: 2023/05/20 (Sat)"


def opened(passage):
    """A passage's first line, and the first one that somebody says."""
    first, *body = (line for line in passage.splitlines() if line != "CONVERSATION:")
    return first, body[0]


@pytest.mark.parametrize(
    "names, turn",
    [
        (("user", "assistant"), "1. Buy salt.\nNote: it rains.\nIt cost 3, and more was not to be had.\nNote: bring a bag."),
        (("Ann Lee", "Bo"), "and so on it went, until the evening came, and the night."),
        (("Ann", "Bo"), "one\ntwo\nIngredients: salt\nthree, and then a longer line of words\nfour"),
    ],
)
def test_every_part_of_a_long_turn_begins_with_its_speaker(names, turn):
    """Cut at line ends and at spaces. A name at a line's beginning is text beside roles, and where it stands once."""
    chat = Chat(Letters())
    turns = [turn, *[turn.replace("Ingredients: ", "") for _ in range(3)]]
    text = "\n".join([DATE, *(f"{names[i % 2]}: {said}" for i, said in enumerate(turns))])
    assert speakers([text]) == set(names)
    for window in (64, 80, 96):
        found = cut(chat, [text], window)
        assert len(found) > 4 and all(chat.count(passage) <= window for passage in found)
        assert all(date == DATE and line.startswith(tuple(f"{n}: " for n in names)) for date, line in map(opened, found))
        said = "".join(re.sub(rf"{re.escape(DATE)}|\b(?:{'|'.join(names)}): |\s", "", passage) for passage in found)
        assert said == "".join("".join(turns).split()), "nothing is lost"


def test_a_turn_goes_on_as_its_own_speaker_s():
    talk = ["Ann: " + " ".join(["aaa"] * 30), "Bo: " + " ".join(["bbb"] * 30), "Ann: yes", "Bo: no"]
    found = cut(Chat(Letters()), ["\n".join(talk)], 64)
    assert [passage.partition(": ")[0] for passage in found] == ["Ann"] * 3 + ["Bo"] * (len(found) - 3)
    assert all(passage.startswith("Ann: aaa") for passage in found[:3]) and found[-1].endswith("Ann: yes\nBo: no")


def test_text_that_is_no_conversation_has_no_speakers():
    chat = Chat(Letters())
    for text in ("Petra: hello\n" + "d" * 60, "Rules: " + "word " * 30, "Monday: closed\nTuesday: " + "open " * 20):
        assert speakers([text]) == set()
        assert "".join(cut(chat, [text], 64)).replace("\n", "") == text.replace("\n", "")


@pytest.mark.parametrize(
    "task, file",
    [
        ("locomo", "locomo/locomo5.json"),
        ("locomo", "realtalk/realtalk4.json"),
        ("longmemeval", "longmemeval/longmemeval_reconstructed_dev.json"),
    ],
)
@pytest.mark.parametrize("window", [1500, 2000])  # characters: about 384 and 512 tokens
def test_no_passage_of_a_benchmark_lacks_its_date_or_begins_without_a_speaker(task, file, window):
    if not (DATA / file).exists():
        pytest.skip(f"needs {DATA / file}, the development data")
    episodes = tasks.episodes(task, data=DATA / file, limit=12 if task == "longmemeval" else 1)
    for episode in episodes:
        names = ("user", "assistant", "system")
        if task == "locomo":  # two people; either begins some session
            names = tuple({chunk.splitlines()[2].partition(": ")[0] for chunk in episode.chunks})
        begins = [opened(passage) for passage in cut(Chat(Letters()), episode.chunks, window)]
        undated = sum(not date.startswith("DATE: ") for date, _ in begins)
        unsaid = sum(not line.startswith(tuple(f"{name}: " for name in names)) for _, line in begins)
        assert (undated, unsaid) == (0, 0) and len(begins) >= len(episode.chunks) / 4
