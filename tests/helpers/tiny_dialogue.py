"""A tiny environment led by coroutines, as tmem.tasks.verifiers_api.load returns those of the verifiers package."""

import random

from tmem.tasks import verifiers_api
from tmem.tasks.dialogue import Message
from tmem.tasks.verifiers_env import Verifiers


class Guesses:
    """A digit is guessed; the answer to a guess is drawn at random, and random replies vary in score."""

    keys = [f"{i:x}" for i in range(24)]

    def lead(self, place):
        async def lead(ask):
            talk, letters = [Message("user", f"guess {place}")], 0
            while (reply := await ask(talk)) is not None and str(place % 10) not in reply:
                letters += len(set(reply))
                talk = [*talk, Message("assistant", reply), Message("user", random.choice(("no", "not so", "never")))]
            return [{"score": letters / 20, "score_found": float(reply is not None)}]

        return lead


class Guessing(Verifiers):
    """Verifiers with these games, for a preset to name."""

    def __init__(self):
        load, verifiers_api.load = verifiers_api.load, lambda name: Guesses()
        try:
            super().__init__("guesses", turns=3, max_new=6)
        finally:
            verifiers_api.load = load
