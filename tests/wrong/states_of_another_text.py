"""Wrong: a row finds the states of another row's texts below its own layers."""

from tmem.rl import rows


def below(*arguments):
    found = rows.below(*arguments)
    return found._replace(at=found.at.roll(1, 0))
