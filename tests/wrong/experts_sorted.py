"""Wrong: a step at fixed addresses sorts tokens by experts, and asks the device how many each has."""

from tmem.adapters import experts as adapted
from tmem.models import experts


def compute(of, *arguments, **options):
    right = experts.fixed
    experts.fixed = adapted.fixed = lambda: False
    try:
        return of(*arguments, **options)
    finally:
        experts.fixed = adapted.fixed = right
