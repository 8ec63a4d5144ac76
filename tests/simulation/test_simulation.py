"""The application under faults, on virtual time: thousands of short lives (docs/reliability.md)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.planted import PLANTED
from tests.simulation.run import replay_command, run_many, run_seed

SEEDS = int(os.environ.get("RUSHES_TEST_SEEDS", "500"))
ENOUGH = 200
"""Within how many seeds each planted bug has to be found; most are within the first ten."""

ROOT = Path(__file__).parent.parent.parent


def test_what_is_always_true_holds_for_every_seed() -> None:
    wrong = [(seed, violations) for seed, violations in run_many(0, SEEDS) if violations]
    assert not wrong, "\n".join(
        f"seed {seed}: {violations[0]}\n    {replay_command(seed)}"
        for seed, violations in wrong[:5]
    )


def test_a_seed_gives_the_same_trace_twice_and_in_another_process() -> None:
    """In another process text is hashed otherwise, so nothing may hang on a set's order."""
    for seed in (3, 7, 1_000):
        first, second = (run_seed(seed, tracing=True).trace_lines for _ in range(2))
        assert first
        assert first == second
    elsewhere = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", "1000", "--trace"],
        env={**os.environ, "PYTHONHASHSEED": "4", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert first is not None
    told = elsewhere.stdout.splitlines()[: len(first)]
    assert _digest(told) == _digest(first)


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str) -> None:
    for seed in range(ENOUGH):
        if run_seed(seed, bug=bug).violations:
            assert not run_seed(seed).violations, "it is found without the bug as well"
            return
    raise AssertionError(f"not found in {ENOUGH} seeds: {bug}")


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
