"""Learning to write from prose as well as from talk: generated streams, and passages of a SQuAD file that lies beside.

tmem train --preset examples/reading.toml --out runs/reading      (TMEM_PASSAGES=FILE says where the passages are)
"""

import os
import random
from functools import lru_cache
from hashlib import blake2b

from tmem.episode import Episode, Pair
from tmem.tasks import Task, episodes, stream

SPLITS = ("train", "test", "train", "dev", "train")  # of articles, by a hash of the title: none is in two splits


@lru_cache(maxsize=1)
def passages() -> dict[str, list[Episode]]:
    """The passages of each split, with their questions as gold pairs."""
    out: dict[str, list[Episode]] = {split: [] for split in SPLITS}
    for episode in episodes("squad", data=os.environ.get("TMEM_PASSAGES", "train-v1.1.json")):
        title = episode.id.split("/", 1)[1]
        pairs = tuple(Pair(q.text, q.answers[0]) for q in episode.questions if q.category != "abstention")
        split = SPLITS[blake2b(title.encode(), digest_size=2).digest()[0] % len(SPLITS)]
        out[split].append(Episode(episode.id, episode.chunks, (pairs,), episode.questions))
    return out


class Reading(Task):
    """Every second episode is a passage; the others are streams of difficulty 1, a third of them 2."""

    def episode(self, key: str, split: str) -> Episode:
        rng = random.Random(f"reading/{split}/{key}")
        if rng.random() < 0.5:
            return rng.choice(passages()[split])
        return stream.episode(f"reading/{key}", split, rng.choice((1, 1, 2)), 8 if split == "train" else None)
