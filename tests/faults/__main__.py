"""Causes every fault of the table and counts those that are survived: `python -m tests.faults`.

Needs a quarter of an hour on 2 free cores; full disks need root. A fault is survived when every
test of its row passes, those that are marked slow as well.
"""

import sys
from collections import Counter, defaultdict

import pytest

from tests.faults.test_table import TABLE, TESTS


class Outcomes:
    """A plugin of pytest that counts what became of each test function."""

    def __init__(self) -> None:
        self.of: dict[str, Counter[str]] = defaultdict(Counter)
        """FILE::FUNCTION → passed, failed or skipped → cases."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after each part of a test."""
        if report.when == "call" or report.outcome != "passed":
            self.of[report.nodeid.partition("[")[0].removeprefix("tests/")][report.outcome] += 1


def main() -> int:
    """Runs all tests of the table in this process, one by one."""
    names = sorted({name for row in TABLE for name in row.tests})
    outcomes = Outcomes()
    paths = [f"{TESTS}/{name}" for name in names]
    pytest.main(["-m", "slow or not slow", *paths, *sys.argv[1:]], plugins=[outcomes])
    survived = 0
    for row in TABLE:
        cases: Counter[str] = sum((outcomes.of[name] for name in row.tests), Counter())
        is_survived = all(set(outcomes.of[name]) == {"passed"} for name in row.tests)
        survived += is_survived
        counts = ", ".join(f"{n} {outcome}" for outcome, n in cases.items()) or "not run"
        print(f"{'survived' if is_survived else 'NOT':<9} {row.fault}: {counts}")
    total: Counter[str] = sum(outcomes.of.values(), Counter())
    print(f"{survived} of {len(TABLE)} faults survived, {total['passed']} of {total.total()} cases")
    return int(survived < len(TABLE))


if __name__ == "__main__":
    sys.exit(main())
