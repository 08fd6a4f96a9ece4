"""What the tests and the benchmarks share, and what another engine for many adapters can be held against.

`check_promises` tries the `PROMISES` of tmem.ops on any implementation that is given as one function or two. `make_case` makes
random ragged inputs, `dense` their values in fp64, and `assert_close` compares with a tolerance. `TOLERANCES` has one for each
dtype.
"""

from .cases import TOLERANCES, Case, alone, assert_close, make_case, rel_rms, renamed, segments
from .formula import by_autograd, dense
from .promises import PROMISES, check_promises

__all__ = [
    "check_promises", "PROMISES", "by_autograd", "dense", "Case", "make_case", "segments",
    "alone", "renamed", "assert_close", "rel_rms", "TOLERANCES",
]  # fmt: skip
