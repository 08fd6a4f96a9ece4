"""Episodes, questions and pairs, as tasks see them."""

from tmem.episode import Episode, Pair, Question

__all__ = ["Episode", "Pair", "Question"]
