"""Seeds, one or many."""

from __future__ import annotations

import gc
import itertools
import logging
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tests.simulation.planted import planted, store_of
from tests.simulation.world import World

CHUNK = 25
"""Seeds that a worker takes at a time."""


@contextmanager
def burying() -> Iterator[None]:
    """A process that dies leaves coroutines behind, and what they want to say then is no news."""
    hook, collecting = sys.unraisablehook, gc.isenabled()
    sys.unraisablehook = lambda unraisable: None
    logging.disable(logging.CRITICAL)
    gc.disable()  # what a run leaves is collected between runs, and only that is gone through
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
            gc.collect()
    finally:
        gc.unfreeze()
        sys.unraisablehook = hook
        logging.disable(logging.NOTSET)
        if collecting:
            gc.enable()


def run_seed(seed: int, *, tracing: bool = False, bug: str | None = None) -> World:
    """One run; what was wrong is in its ``violations``."""
    with burying(), planted(bug):
        return _run(seed, tracing, bug)


def _run(seed: int, tracing: bool, bug: str | None) -> World:
    world = World(seed, tracing=tracing, store=store_of(bug))
    world.run()
    return world


def run_chunk(chunk: tuple[int, int, str | None]) -> list[tuple[int, list[str]]]:
    first, count, bug = chunk
    with burying(), planted(bug):
        return [(seed, _run(seed, False, bug).violations) for seed in range(first, first + count)]


def run_many(
    first: int, count: int, bug: str | None = None, workers: int | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Each seed with what was wrong; in order, on all cores."""
    starts = range(first, first + count, CHUNK)
    chunks = [(start, min(CHUNK, first + count - start), bug) for start in starts]
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(chunks) == 1:
        yield from itertools.chain.from_iterable(map(run_chunk, chunks))
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for found in pool.imap(run_chunk, chunks):
            yield from found


def replay_command(seed: int, bug: str | None = None) -> str:
    planted_bug = f" --bug '{bug}'" if bug else ""
    return f"python -m tests.simulation --seed {seed} --trace{planted_bug}"
