"""How fast a card is copied and verified, beside what could be typed instead.

In each round, in turns, on the same disk and from a card that nothing remembers:

* **rushes**: the pipeline's own ``copy_files``, ledger and all, to one destination and
  to two; hashed while it is copied, synced, read back from the device, published.
* **bare**: a loop that reads, writes, syncs, drops from memory and reads back, hashing
  both; no names, no order, no ledger. What a machine can do at most if it does one
  thing after the other.
* **cp**: ``cp -r``, one sync, and a hashing pass over the cold copy.
* **rsync**, if it is there: ``rsync -a``, a sync, and ``rsync -ac --dry-run`` over a
  cold copy.

A card of a few large files, then one of many small ones. Medians are printed.

    python -m benchmarks.offload [--gib 4] [--small 10000] [--rounds 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash

from benchmarks.engine import place
from bootstrap import Container, Settings, running

LARGE_BYTES = 512 * 1024 * 1024
SMALL_BYTES = 64 * 1024
BUFFER_BYTES = 4 * 1024 * 1024

LONG_AGO_NS = 1_700_000_000 * 10**9
"""What was shot just now is looked at twice before it is copied."""


def shoot(card: Path, count: int, size: int) -> None:
    """Files that no file system could make smaller."""
    for number in range(count):
        clip = card / "DCIM" / f"{100 + number // 1_000}CLIPS" / f"{number:05}.MP4"
        clip.parent.mkdir(parents=True, exist_ok=True)
        with clip.open("wb") as file:
            for start in range(0, size, BUFFER_BYTES):
                file.write(os.urandom(min(BUFFER_BYTES, size - start)))
        os.utime(clip, ns=(LONG_AGO_NS, LONG_AGO_NS))


def files_of(folder: Path) -> Iterator[Path]:
    return (Path(where) / name for where, _, names in os.walk(folder) for name in sorted(names))


def forget(folder: Path) -> None:
    """So that what is read next comes from the disk."""
    os.sync()
    for path in files_of(folder):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def hashed(path: Path) -> str:
    digest = xxhash.xxh64()
    buffer = bytearray(BUFFER_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def bare(card: Path, place: Path) -> None:
    buffer = bytearray(BUFFER_BYTES)
    for path in files_of(card):
        target = place / path.relative_to(card)
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = xxhash.xxh64()
        with path.open("rb", buffering=0) as source, target.open("wb", buffering=0) as file:
            while count := source.readinto(buffer):
                chunk = memoryview(buffer)[:count]
                digest.update(chunk)
                file.write(chunk)
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if hashed(target) != digest.hexdigest():
            raise SystemExit(f"{target} is not what was read")


def cp(card: Path, place: Path) -> None:
    subprocess.run(["cp", "-r", str(card), str(place)], check=True)
    forget(place)
    for path in files_of(place):
        hashed(path)


def rsync(card: Path, place: Path) -> None:
    subprocess.run(["rsync", "-a", f"{card}/", str(place)], check=True)
    forget(place)
    forget(card)
    subprocess.run(["rsync", "-ac", "--dry-run", f"{card}/", str(place)], check=True)


def rushes(card: Path, place: Path, destinations: int) -> float:
    """The seconds that ``copy_files`` took; the rest of the pipeline isn't the copy."""
    return asyncio.run(ingest(card, place, destinations))


async def ingest(card: Path, place: Path, destinations: int) -> float:
    roots = [place / f"to-{number}" for number in range(destinations)]
    settings = Settings.load(
        {
            "database_url": f"sqlite:///{place}/rushes.db",
            "library": str(roots[0]),
            "destinations": os.pathsep.join(map(str, roots[1:])),
            "card_roots": str(card.parent),
        },
        {},
    )
    container = Container(settings=settings)
    async with running(container):
        answer = await container.trigger()("sd_ingest", {"sd_path": str(card)})
        executions = container.executions()
        while True:
            execution = await executions.get(answer.execution.id)
            step = execution.step("copy_files")
            if step.completed_at is not None and step.started_at is not None:
                return (step.completed_at - step.started_at).total_seconds()
            if execution.error_message:
                raise SystemExit(execution.error_message)
            await asyncio.sleep(0.02)


def timed(work: Callable[[Path, Path], object], card: Path, place: Path) -> float:
    forget(card)
    place.mkdir()
    began = time.monotonic()
    given = work(card, place)
    seconds = given if isinstance(given, float) else time.monotonic() - began
    shutil.rmtree(place)
    os.sync()
    return seconds


def compare(folder: Path, name: str, count: int, size: int, rounds: int) -> None:
    card = folder / name / "A001"
    shoot(card, count, size)
    ways: dict[str, Callable[[Path, Path], object]] = {
        "rushes": lambda card, place: rushes(card, place, 1),
        "bare": bare,
        "cp": lambda card, place: cp(card, place / "copy"),
        "rushes, 2 destinations": lambda card, place: rushes(card, place, 2),
    }
    if shutil.which("rsync"):
        ways["rsync"] = rsync
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            taken[way].append(timed(work, card, folder / "place"))
    ours = statistics.median(taken["rushes"])
    print(f"\n{name}: {count} files, {count * size / 1e9:.2f} GB")
    for way, seconds in taken.items():
        median = statistics.median(seconds)
        print(
            f"  {way:<24}{median:8.2f} s {count * size / median / 1e6:8.0f} MB/s "
            f"{count / median:8.0f} files/s   rushes is {median / ours:5.2f} times as fast"
            f"   ({min(seconds):.2f} to {max(seconds):.2f} s)"
        )
    shutil.rmtree(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gib", type=float, default=4.0, help="of large files")
    parser.add_argument("--small", type=int, default=10_000, help="files of 64 KiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="on the disk in question (the system's default)")
    arguments = parser.parse_args()
    with place(arguments.folder) as folder:
        print(f"machine: {os.cpu_count()} cores; everything on the disk of {folder.parent}")
        large = round(arguments.gib * 2**30 / LARGE_BYTES)
        if large:
            compare(folder, "large", large, LARGE_BYTES, arguments.rounds)
        if arguments.small:
            compare(folder, "small", arguments.small, SMALL_BYTES, arguments.rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of this process: {peak:.0f} MB")


if __name__ == "__main__":
    main()
