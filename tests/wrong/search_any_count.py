"""Wrong: what was answered is compared as far as it goes, whether or not every question has an answer."""

from tmem.tasks import search


def score(task, answer):
    parts = ((answer or "").split(";") + [""] * len(task.hops))[: len(task.hops)]
    return search.score(task, ";".join(parts))
