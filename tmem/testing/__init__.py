"""What the tests and the benchmarks share, and what another engine for many adapters can be held against.

`make_case` makes random ragged inputs, `dense` the values in fp64, `assert_close` compares with a tolerance, and
`check_promises` tries what tmem.ops promises on any implementation that is given as two functions.
"""

from .cases import TOLERANCES, Case, alone, assert_close, make_case, rel_rms, renamed, segments
from .formula import by_autograd, dense
from .promises import PROMISES, check_promises, company_with_base

__all__ = [
    "check_promises", "PROMISES", "company_with_base", "by_autograd", "dense", "Case", "make_case", "segments",
    "alone", "renamed", "assert_close", "rel_rms", "TOLERANCES",
]  # fmt: skip
