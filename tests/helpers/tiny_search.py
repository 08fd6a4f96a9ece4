"""A tiny search for tests: made-up questions, their corpus, and an environment that a random model's actions vary in."""

import json
import tempfile
from pathlib import Path

from tmem.tasks.search_scene import SearchScene
from tmem.tasks.searches import Searches

WHAT = ("toy", "town", "river", "song", "kite", "ship", "bread", "lamp", "tree", "coin", "drum", "gate") * 2
CORPUS = {f"Zib{i}": f"Zib{i} is a {what} that Ada{i} made." for i, what in enumerate(WHAT)}
QUESTIONS = [
    {
        "_id": f"q{i}", "question": f"Who made the {what} Zib{i}?", "answer": f"Ada{i}", "supporting_facts": [[f"Zib{i}", 0]],
        "context": [[f"Zib{i}", [CORPUS[f"Zib{i}"]]]],
    }
    for i, what in enumerate(WHAT)
]  # fmt: skip


def files(folder: Path) -> tuple[str, str]:
    """The questions and the corpus as files."""
    data, corpus = folder / "questions.json", folder / "corpus.json"
    data.write_text(json.dumps(QUESTIONS))
    corpus.write_text(json.dumps({title: [text] for title, text in CORPUS.items()}))
    return str(data), str(corpus)


class Shouted(SearchScene):
    """Whose turns all search, whatever was said, and whose score is how many letters were."""

    letters = 0

    def act(self, said):
        self.letters += len(set(said))
        query = self.task.hops[-1].question
        return super().act(said if self.taken == self.turns else f"<search>{query}</search>")

    def scores(self):
        return [{"shout": self.letters / 20, **row} for row in super().scores()]


class Sought(Searches):
    """Searches that are judged by `Shouted`."""

    def __init__(self):
        with tempfile.TemporaryDirectory() as folder:
            data, corpus = files(Path(folder))
            super().__init__([data], [corpus], objectives=2, turns=2, max_new=6)

    files = ()  # those of the folder are gone

    def _scene(self, task, clip):
        return Shouted(task, self.find, clip, turns=self.turns, max_new=self.max_new)
