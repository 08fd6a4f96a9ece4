"""Wrong: rows that stand one behind another are taken for texts that share the beginning of the first."""

from tmem import reference


def attend_branches(q, k, v, runs, scale, window):
    runs = runs.reshape(1, -1) if len(q) == 1 else runs
    return reference.attend_branches(q, k, v, runs, scale, window)
