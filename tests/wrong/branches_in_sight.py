"""Wrong: what one rollout said is seen by the next one on the same row."""

from tmem.models import masks
from tmem.rl import replay


def backward(*arguments, **options):
    rows, runs = masks.Branches.rows, masks.Branches.runs
    masks.Branches.rows = lambda self, start, stop: rows(masks.Branches(self.numbers * 0), start, stop)
    masks.Branches.runs = property(lambda self: runs.fget(masks.Branches(self.numbers * 0)))
    try:
        return replay.backward(*arguments, **options)
    finally:
        masks.Branches.rows, masks.Branches.runs = rows, runs
