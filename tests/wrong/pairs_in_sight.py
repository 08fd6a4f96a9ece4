"""Wrong: what is learned of one pair sees the pairs before it on the same row."""

from tmem.models import masks


def gradient(of, *arguments):
    rows, runs = masks.Branches.rows, masks.Branches.runs
    masks.Branches.rows = lambda self, start, stop: rows(masks.Branches(self.numbers * 0), start, stop)
    masks.Branches.runs = property(lambda self: runs.fget(masks.Branches(self.numbers * 0)))
    try:
        return of(*arguments)
    finally:
        masks.Branches.rows, masks.Branches.runs = rows, runs
