"""Wrong: a reading holds the tokens of all generations, the answer's among them, and the answer's row holds those again."""

from tmem.evaluation import searching


def reading_of(method, seed, t):
    scores = t.scores()
    row = searching.reading_of(method, seed, t)
    return row | {"read_tokens": scores["read"], "generated_tokens": scores["generated"]}
