"""The CPU benches under pytest-benchmark, to find what became slower: not a test, and not part of the suite.

    pytest bench/speed.py --benchmark-save=before        # then change the code
    pytest bench/speed.py --benchmark-compare --benchmark-compare-fail=median:10%

Each provider that is ours, alone and not in turns: compare runs of one idle machine. Ratios to others: `tmem bench`.
"""

import pytest

from tmem.bench import BENCHES
from tmem.bench.measure import check

CASES = [
    (name, bench, case)
    for group in BENCHES.values()
    for name, bench in group.items()
    for case in bench.cases(False, "cpu")
    if not getattr(case, "sweep", "")
]


@pytest.mark.parametrize(("name", "bench", "case"), CASES, ids=[f"{n} {c.name} {c.dtype}" for n, _, c in CASES])
def test_speed(benchmark, name, bench, case):
    provider = next(p for label, p in bench.providers(case, "cpu").items() if label.startswith("tmem"))
    check(name, case, "tmem", provider)
    rounds = 3 if getattr(bench, "SLOW", False) else 15
    benchmark.pedantic(provider.call, setup=provider.prepare, rounds=rounds, warmup_rounds=1)
