"""Long runs, and replays: ``python -m tests.simulation --seeds 1000000``, ``--seed 42 --trace``."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.planted import PLANTED
from tests.simulation.run import replay_command, run_many, run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one")
    parser.add_argument("--workers", type=int, default=None, help="processes; default all cores")
    parser.add_argument("--keep-going", action="store_true", help="don't end with the first ten")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--trace", action="store_true", help="with a readable trace")
    parser.add_argument("--bug", choices=sorted(PLANTED), help="with this bug planted")
    asked = parser.parse_args()
    if asked.seed is not None:
        world = run_seed(asked.seed, tracing=asked.trace, bug=asked.bug)
        print("\n".join(world.trace_lines or ()))
        print("\n".join(world.violations) or f"seed {asked.seed}: nothing wrong")
        return 1 if world.violations else 0
    began = time.monotonic()
    failed, kinds, done = 0, Counter[str](), 0
    for seed, violations in run_many(asked.first, asked.seeds, asked.bug, asked.workers):
        done += 1
        if violations:
            failed += 1
            kinds[violations[0].split(":")[0]] += 1
            if failed <= 10 or asked.keep_going:
                print(f"seed {seed}: {violations[0]}\n    {replay_command(seed, asked.bug)}")
            if failed == 10 and not asked.keep_going:
                break
        if done % 10_000 == 0:
            print(f"{done} seeds, {time.monotonic() - began:.0f} s", flush=True)
    took = time.monotonic() - began
    print(f"{done} seeds in {took:.1f} s, {failed} of them with something wrong {dict(kinds)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
