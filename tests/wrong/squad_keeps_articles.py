"""Wrong: SQuAD's scores normalise as the plain ones do, so "the" before an answer costs."""

from tmem.tasks.metrics import em as squad_em
from tmem.tasks.metrics import f1 as squad_f1

__all__ = ["squad_em", "squad_f1"]
