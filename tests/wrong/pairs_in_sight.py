"""Wrong: what is learned of one pair sees the pairs before it on the same row."""

from tmem.models import masks


def gradient(of, *arguments):
    rows = masks.Branches.rows
    masks.Branches.rows = lambda self, start, stop: rows(masks.Branches(self.numbers * 0), start, stop)
    try:
        return of(*arguments)
    finally:
        masks.Branches.rows = rows
