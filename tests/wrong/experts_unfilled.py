"""Wrong: an expert multiplies as many rows as tokens chose it, which depends on its neighbours."""

from tmem.models import experts


def compute(of, *arguments):
    right = experts.filled
    experts.filled = lambda rows: rows
    try:
        return of(*arguments)
    finally:
        experts.filled = right
