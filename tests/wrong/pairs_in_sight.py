"""Wrong: what is learned of one pair sees the pairs before it on the same row."""

from tmem.models import masks


def gradient(of, *arguments):
    rows, runs, joined = masks.Branches.rows, masks.Branches.runs, masks.Joined.of
    masks.Branches.rows = lambda self, start, stop: rows(masks.Branches(self.numbers * 0), start, stop)
    masks.Branches.runs = property(lambda self: runs.fget(masks.Branches(self.numbers * 0)))
    masks.Joined.of = lambda numbers: joined([[0] * len(row) for row in numbers])
    try:
        return of(*arguments)
    finally:
        masks.Branches.rows, masks.Branches.runs, masks.Joined.of = rows, runs, joined
