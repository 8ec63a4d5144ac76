"""How fast a card is copied and verified, beside what could be typed instead.

Five parts, each with the targets that it has to reach:

* **large** and **small**: 4 GiB in large files, and 10,000 files of 64 KiB; source and
  library on one disk. In each round, in turns, from a card that nothing remembers:

  - Rushes as its user runs it: a card is announced to a started ``rushes serve``. Two
    times are taken: ``copy_files`` alone (hashed while it is copied, synced, read back
    from the device, published, in the ledger), which is what the others are compared
    with, and from the trigger to the verdict (scan, manifest, and another look at it all).
  - ``cp -r`` and one ``sync``; and with a hashing pass (xxh64) over the cold copy.
  - ``rsync -a``, ``sync``; then ``rsync -ac --dry-run`` with both sides cold.
  - ``rclone copy``, ``sync``; then ``rclone check`` with both sides cold, which compares
    MD5; and with ``rclone check --download`` in its place, which compares the bytes.

* **throttled**: card and libraries on disks of their own that are held back to a known
  speed; to one destination, and to two.
* **scan**: a card of 100,000 files that the system remembers.
* **memory**: the server's peak, over all of these and a copy of those 100,000 files.

Dropping what the system remembers is nobody's time. Medians of the rounds are compared.

    python -m benchmarks.offload [--part large --part small ...] [--rounds 3]
        [--gib 4] [--small 10000] [--files 100000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import xxhash

from benchmarks.disks import throttled, why_not

PARTS = ("large", "small", "throttled", "scan", "memory")

LARGE_BYTES = 512 * 1024 * 1024
SMALL_BYTES = 64 * 1024
BUFFER_BYTES = 4 * 1024 * 1024

THROTTLED_BYTES_PER_S = 80 * 1024 * 1024
"""As a card gives them; slow enough that this machine's own disk and cores aren't the limit."""

KEPT_BYTES = 1024 * 1024 * 1024
"""A smaller copy stays until the end. After ten thousand removals some file systems (ext4 without
a journal) search for minutes with every new file: the next one in turn would pay for it."""

THROTTLED_ROUNDS = 1
"""It takes as long as the disks take, every time."""

THROTTLED_FILES = 32
THROTTLED_FILE_BYTES = 32 * 1024 * 1024
"""Many enough that reading back the last one, while nothing else is left to do, is little."""

TINY_BYTES = 1_000
"""Of each of the many files that are scanned, and copied for the sake of memory."""

LONG_AGO_NS = 1_700_000_000 * 10**9
"""What was shot just now is looked at twice before it is copied."""

MOST_MEMORY = 200 * 1000 * 1000

DEADLINE_S = 600.0

RUSHES = "Rushes, copy_files"
TO_VERDICT = "Rushes, trigger to verdict"
CP = "cp -r, sync"
CP_HASHED = "cp -r, sync, cold hashing pass"
RSYNC = "rsync -a, sync, cold rsync -ac"
RCLONE = "rclone copy, sync, cold check"
RCLONE_BYTES = "rclone copy, sync, cold check --download"

PART_OF_IT = {f"  of that {key}": key for key in ("scan_sd", "write_manifest", "verdict")}

Times = Mapping[str, float]
"""Seconds, by what took them."""


# -- cards --------------------------------------------------------------------------------


def shoot(card: Path, count: int, size_bytes: int) -> None:
    """Files that no file system could make smaller."""
    for number in range(count):
        clip = card / "DCIM" / f"{100 + number // 1_000}CLIPS" / f"{number:06}.MP4"
        if number % 1_000 == 0:
            clip.parent.mkdir(parents=True)
        with clip.open("wb") as file:
            for start in range(0, size_bytes, BUFFER_BYTES):
                file.write(os.urandom(min(BUFFER_BYTES, size_bytes - start)))
        os.utime(clip, ns=(LONG_AGO_NS, LONG_AGO_NS))


def files_of(folder: Path) -> Iterator[Path]:
    return (Path(where) / name for where, _, names in os.walk(folder) for name in sorted(names))


def forget(*folders: Path) -> None:
    """So that what is read next comes from the disk."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        for path in (each for folder in folders for each in files_of(folder)):
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


# -- Rushes -------------------------------------------------------------------------------


class Served:
    """A ``rushes serve`` with a database and libraries of its own."""

    def __init__(self, folder: Path, libraries: Sequence[Path], cards: Path) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RUSHES_")},
            "RUSHES_PORT": "0",
            "RUSHES_GRPC_PORT": "0",
            "RUSHES_DATABASE_URL": f"sqlite:///{folder}/rushes.db",
            "RUSHES_LIBRARY": str(libraries[0]),
            "RUSHES_DESTINATIONS": os.pathsep.join(map(str, libraries[1:])),
            "RUSHES_CARD_ROOTS": str(cards),
        }
        self._log = folder / "server.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).with_name("rushes")), "serve"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"rushes serve did not start: {self._log.read_text()}")
        self._url = line.split()[-1]

    def ask(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            f"{self._url}{path}",
            method=method,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)

    def trigger(self, card: Path) -> str:
        body = {"pipeline_type": "sd_ingest", "data": {"sd_path": str(card)}}
        return str(self.ask("POST", "/api/pipeline", body)["execution_id"])

    def until(self, execution_id: str, step_key: str) -> dict[str, Any]:
        """The execution, once that step has completed."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            execution: dict[str, Any] = self.ask("GET", f"/api/pipeline/{execution_id}")
            if execution["error_message"]:
                raise SystemExit(execution["error_message"])
            if _step(execution, step_key)["status"] == "completed":
                return execution
            time.sleep(0.05)  # seldom enough that answering is no work beside the copy
        raise SystemExit(f"{step_key} has not completed after {DEADLINE_S:g} s")

    @property
    def peak_bytes(self) -> int:
        """The most memory that it has had."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(DEADLINE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


def _step(execution: Mapping[str, Any], step_key: str) -> dict[str, Any]:
    return next(step for step in execution["steps"] if step["step_key"] == step_key)


def _seconds(step: Mapping[str, Any]) -> float:
    return _between(step["started_at"], step["completed_at"])


def _between(begun: str, ended: str) -> float:
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()


@dataclass
class Measured:
    """What has been found out: peaks of memory, and each target with what became of it."""

    peaks: dict[str, int] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)

    def target(self, what: str, value: float, limit: float, unit: str, *, least: bool) -> None:
        reached = value >= limit if least else value <= limit
        bound = "at least" if least else "at most"
        verdict = "reached" if reached else "MISSED"
        self.targets.append(f"  {verdict:<8} {what}: {value:.2f}{unit} ({bound} {limit:g}{unit})")

    def unmeasured(self, what: str, why: str) -> None:
        self.targets.append(f"  {'-':<8} {what}: not measured, {why}")

    def peak(self, of: str, peak_bytes: int) -> None:
        self.peaks[of] = max(self.peaks.get(of, 0), peak_bytes)


@contextmanager
def served(
    folder: Path, libraries: Sequence[Path], cards: Path, measured: Measured, name: str
) -> Iterator[Served]:
    server = Served(folder, libraries, cards)
    try:
        yield server
        measured.peak(name, server.peak_bytes)
    finally:
        server.stop()


def ingested(
    card: Path, folder: Path, libraries: Sequence[Path], measured: Measured, name: str
) -> Times:
    """A whole ingest, which has to end with the verdict that the card may be formatted."""
    with served(folder, libraries, card.parent, measured, name) as server:
        forget(card)
        execution = server.until(server.trigger(card), "verdict")
    if execution["execution_data"]["safe_to_format"] is not True:
        raise SystemExit(f"this card is not safe: {execution['execution_data']}")
    return {
        RUSHES: _seconds(_step(execution, "copy_files")),
        TO_VERDICT: _between(execution["created_at"], _step(execution, "verdict")["completed_at"]),
        **{what: _seconds(_step(execution, key)) for what, key in PART_OF_IT.items()},
    }


# -- what could be typed instead ----------------------------------------------------------


def hashed(path: Path) -> str:
    digest = xxhash.xxh64()
    buffer = bytearray(BUFFER_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def timed(*commands: Sequence[str | Path]) -> float:
    began = time.monotonic()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def cp(card: Path, copy: Path) -> Times:
    forget(card)
    copied = timed(["cp", "-r", card, copy], ["sync"])
    forget(copy)
    began = time.monotonic()
    for path in files_of(copy):
        hashed(path)
    return {CP: copied, CP_HASHED: copied + time.monotonic() - began}


def rsync(card: Path, copy: Path) -> Times:
    forget(card)
    copied = timed(["rsync", "-a", f"{card}/", copy], ["sync"])
    forget(card, copy)
    return {RSYNC: copied + timed(["rsync", "-ac", "--dry-run", f"{card}/", copy])}


def rclone(card: Path, copy: Path) -> Times:
    forget(card)
    copied = timed(["rclone", "--quiet", "copy", card, copy], ["sync"])
    forget(card, copy)
    check = ["rclone", "--quiet", "check"]
    by_hash = timed([*check, card, copy])
    forget(card, copy)
    return {
        RCLONE: copied + by_hash,
        RCLONE_BYTES: copied + timed([*check, "--download", card, copy]),
    }


def beside(card: Path, way: Callable[[Path, Path], Times]) -> Callable[[Path], Times]:
    return lambda here: way(card, here / "copy")


# -- the parts ----------------------------------------------------------------------------


def compare(folder: Path, name: str, count: int, size_bytes: int, rounds: int) -> Measured:
    measured = Measured()
    card = folder / name / "A001"
    shoot(card, count, size_bytes)
    ways: dict[str, Callable[[Path], Times]] = {
        "rushes": lambda here: ingested(card, here, [here / "library"], measured, name),
        "cp": beside(card, cp),
    }
    for peer, way in (("rsync", rsync), ("rclone", rclone)):
        if shutil.which(peer):
            ways[peer] = beside(card, way)
    taken: dict[str, list[float]] = {}
    total_bytes = count * size_bytes
    for number in range(rounds):
        for way, go in ways.items():
            here = folder / f"{name}-{number}-{way}"
            here.mkdir()
            for what, seconds in go(here).items():
                taken.setdefault(what, []).append(seconds)
            if total_bytes > KEPT_BYTES:
                shutil.rmtree(here)
    medians = {what: statistics.median(seconds) for what, seconds in taken.items()}
    print(f"\n{name}: {count} files, {total_bytes / 1e9:.2f} GB; medians of {rounds}")
    print(f"  {'':<42}{'s':>8}{'from':>8}{'to':>8}{'MB/s':>8}{'files/s':>9}{'times ours':>12}")
    for what, median in medians.items():
        line = f"  {what:<42}{median:8.2f}{min(taken[what]):8.2f}{max(taken[what]):8.2f}"
        if what not in PART_OF_IT:
            line += f"{total_bytes / median / 1e6:8.0f}{count / median:9.0f}"
            line += f"{median / medians[RUSHES]:12.2f}"
        print(line)
    goals = {CP_HASHED: 1.05, RSYNC: 2.0, RCLONE: 5.0} if name == "large" else {CP: 1.0}
    for what, least in goals.items():
        speed = f"{name}: copy_files to {what}, speed"
        if what in medians:
            measured.target(speed, medians[what] / medians[RUSHES], least, "", least=True)
        else:
            measured.unmeasured(speed, f"{what.split()[0]} is not installed")
    shutil.rmtree(card)
    return measured


def hold_back(folder: Path, rounds: int) -> Measured:
    """Card and libraries on disks of their own."""
    measured = Measured()
    speed = "throttled: of a disk's speed, to one destination"
    second = "throttled: the time with a second destination"
    if why := why_not():
        measured.unmeasured(speed, why)
        measured.unmeasured(second, why)
        return measured
    total_bytes = THROTTLED_FILES * THROTTLED_FILE_BYTES
    taken: dict[int, list[float]] = {1: [], 2: []}
    with ExitStack() as undoing:
        (folder / "cards").mkdir()
        card, *libraries = (
            undoing.enter_context(throttled(folder / name, 2 * total_bytes, THROTTLED_BYTES_PER_S))
            for name in ("cards/A001", "one", "two")
        )
        shoot(card, THROTTLED_FILES, THROTTLED_FILE_BYTES)
        for _ in range(rounds):
            for destinations in taken:
                here = folder / "round"
                here.mkdir()
                roots = [each / "library" for each in libraries[:destinations]]
                times = ingested(card, here, roots, measured, "throttled")
                taken[destinations].append(times[RUSHES])
                for root in roots:
                    shutil.rmtree(root)
                shutil.rmtree(here)
    one, two = (statistics.median(seconds) for seconds in taken.values())
    print(
        f"\nthrottled: {THROTTLED_FILES} files, {total_bytes / 1e9:.2f} GB; card and libraries "
        f"on disks of {THROTTLED_BYTES_PER_S / 1e6:.0f} MB/s each way; medians of {rounds}"
    )
    for count, seconds in taken.items():
        median = statistics.median(seconds)
        print(
            f"  {f'Rushes, copy_files, destinations: {count}':<42}{median:8.2f} s"
            f"{total_bytes / median / 1e6:8.0f} MB/s   ({min(seconds):.2f} to {max(seconds):.2f} s)"
        )
    measured.target(speed, total_bytes / one / THROTTLED_BYTES_PER_S, 0.9, "", least=True)
    measured.target(second, two / one, 1.3, "", least=False)
    return measured


def scan(folder: Path, count: int, rounds: int) -> Measured:
    """Only the scan: the execution is cancelled once it is over."""
    measured = Measured()
    card = folder / "scan" / "A001"
    shoot(card, count, TINY_BYTES)
    taken = []
    for _ in range(rounds):
        here = folder / "round"
        here.mkdir()
        with served(here, [here / "library"], card.parent, measured, "scan") as server:
            os.sync()
            execution_id = server.trigger(card)
            taken.append(_seconds(_step(server.until(execution_id, "scan_sd"), "scan_sd")))
            server.ask("POST", f"/api/pipeline/{execution_id}/cancel")
        shutil.rmtree(here)
    median = statistics.median(taken)
    print(
        f"\nscan: {count} files, warm; scan_sd with its inventory: {median:.2f} s, "
        f"{count / median:.0f} files/s   ({min(taken):.2f} to {max(taken):.2f} s)"
    )
    measured.target(f"scan of {count} files", median, 3.0, " s", least=False)
    shutil.rmtree(card)
    return measured


def fill(folder: Path, count: int) -> Measured:
    """A card of very many files, all the way."""
    measured = Measured()
    card = folder / "many" / "A001"
    shoot(card, count, TINY_BYTES)
    here = folder / "round"
    here.mkdir()
    times = ingested(card, here, [here / "library"], measured, f"{count} files")
    print(
        f"\nmany: {count} files of {TINY_BYTES} bytes, {count / times[RUSHES]:.0f} files/s copied"
    )
    for what, seconds in times.items():
        print(f"  {what:<42}{seconds:8.2f} s")
    shutil.rmtree(here)
    shutil.rmtree(card)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="all, if none is named")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gib", type=float, default=4.0, help="of large files")
    parser.add_argument("--small", type=int, default=10_000, help="files of 64 KiB")
    parser.add_argument("--files", type=int, default=100_000, help="to scan, and for memory")
    parser.add_argument("--folder", help="on the disk in question (the system's default)")
    given = parser.parse_args()
    parts = given.part or PARTS
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rushes-bench-", dir=given.folder) as made:
        folder = Path(made)
        print(f"machine: {os.cpu_count()} cores; everything on the disk of {folder.parent}")
        run: dict[str, Callable[[], Measured]] = {
            "large": lambda: compare(
                folder, "large", round(given.gib * 2**30 / LARGE_BYTES), LARGE_BYTES, given.rounds
            ),
            "small": lambda: compare(folder, "small", given.small, SMALL_BYTES, given.rounds),
            "throttled": lambda: hold_back(folder, min(given.rounds, THROTTLED_ROUNDS)),
            "scan": lambda: scan(folder, given.files, given.rounds),
            "memory": lambda: fill(folder, given.files),
        }
        found = [run[part]() for part in PARTS if part in parts]
    print("\ntargets")
    for measured in found:
        for name, peak_bytes in measured.peaks.items():
            measured.target(
                f"{name}: the server's peak memory",
                peak_bytes / 1e6,
                MOST_MEMORY / 1e6,
                " MB",
                least=False,
            )
        print(*measured.targets, sep="\n")
    print(f"\ntook {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
