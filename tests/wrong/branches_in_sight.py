"""Wrong: what one rollout said is seen by the next one on the same row."""

from tmem.models import masks
from tmem.rl import replay


def backward(*arguments, **options):
    rows = masks.Branches.rows
    masks.Branches.rows = lambda self, start, stop: rows(masks.Branches(self.numbers * 0), start, stop)
    try:
        return replay.backward(*arguments, **options)
    finally:
        masks.Branches.rows = rows
