"""Wrong: the halves are centred once for all groups, so that episodes that are easy or hard as a whole make any reward repeat
itself."""

from tmem.rl import halves


def correlation(groups):
    return halves.correlation([[pair for group in groups for pair in group]])
