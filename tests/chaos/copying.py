"""Kills a real server while it copies cards to two destinations, and looks at what is there.

``python -m tests.chaos.copying --kills 100`` for longer than the tests do it.

At the end every byte is verified; nothing was overwritten, be it somebody else's or a file
that once stood under its final name; no part is left; and the ledger, the files and the
manifests agree.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from xml.etree import ElementTree as ET

import xxhash

from tests.e2e.server import Server, eventually, steps

LARGE_BYTES = 72 * 1024 * 1024
"""Above what is gone on with after a crash instead of begun anew."""

AIMED = 0.75
"""The share of kills that wait until the card is being copied; the others come at any time."""

SLOWEST_AIMED_S = 0.3
SLOWEST_KILL_S = 1.2
"""After so long a copy, or all of it, is over, so a kill would hit nothing."""

MOST_TRIES = 10
"""Times as many kills as asked for, until one has come in the middle of a copy."""

MANIFEST = "{urn:ASC:MHL:v2.0}"


@dataclass
class Report:
    kills: int = 0
    in_the_copy: int = 0
    parts_left: int = 0
    given_up: int = 0
    jobs: int = 0
    files: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.kills} kills, {self.in_the_copy} of them while footage was copied; "
            f"{self.parts_left} times a part was there afterwards; {self.given_up} times the copy "
            "was killed so often in a row that it was given up, and retried",
            f"{self.jobs} jobs, {self.files} files looked at",
            *(f"WRONG: {each}" for each in self.wrong),
        ]
        return "\n".join(lines if self.wrong else [*lines, "nothing is wrong"])


class CopyChaos:
    def __init__(self, place: Path, *, seed: int, kills: int) -> None:
        self._random = Random(seed)
        self._kills = kills
        self._backup = place / "backup"
        self._backup.mkdir()
        self._server = Server(place, RUSHES_DESTINATIONS=str(self._backup))
        self._card = self._server.cards / "A001"
        self._footage = self._shoot()
        self._theirs = self._server.library / "theirs.mp4"
        self._theirs.write_bytes(b"nobody touches this")
        self._report = Report()
        self._published: dict[Path, tuple[int, int]] = {}

    def run(self) -> Report:
        self._server.start()
        try:
            # A fast disk may be done each time before it is killed: then a few more are tried.
            while self._report.kills < self._kills or (
                not self._report.in_the_copy and self._report.kills < MOST_TRIES * self._kills
            ):
                self._life()
            execution = self._under_way()
            ended = self._server.ended(execution)
            if ended["status"] != "completed":
                self._report.wrong.append(f"the last execution ended so: {ended}")
        finally:
            process = self._server.process
            if process is not None and process.poll() is None:
                self._server.kill()
        self._look()
        return self._report

    def _life(self) -> None:
        execution = self._under_way()
        process = self._server.process
        assert process is not None
        slowest_s = SLOWEST_KILL_S
        if self._random.random() < AIMED:
            self._wait_for_the_copy(execution)
            slowest_s = SLOWEST_AIMED_S
        try:
            process.wait(self._random.random() * slowest_s)
            self._report.wrong.append("the server ended by itself")
        except subprocess.TimeoutExpired:
            pass
        self._server.kill()
        self._report.kills += 1
        running = self._rows("SELECT step_name FROM pipeline_step WHERE status = 'running'")
        self._report.in_the_copy += ("copy_files",) in running
        self._report.parts_left += bool(self._leftovers())
        self._note_what_is_published()
        self._server.start()

    def _wait_for_the_copy(self, execution: str) -> None:
        eventually(
            lambda: steps(self._server.execution(execution))["copy_files"]["status"],
            lambda status: status != "pending",
        )

    def _trigger(self) -> str:
        return self._server.trigger("sd_ingest", sd_path=str(self._card), again=True)

    def _under_way(self) -> str:
        """The execution that runs; the one that was given up goes on, as a person would have it."""
        for status in ("running", "failed"):
            for found in self._server.get("/api/pipeline", status=status)["executions"]:
                execution: str = found["execution_id"]
                if status == "failed":
                    if "lost its worker" not in found["error_message"]:
                        self._report.wrong.append(f"an execution failed: {found['error_message']}")
                        continue
                    self._server.request("POST", f"/api/pipeline/{execution}/retry")
                    self._report.given_up += 1
                return execution
        return self._trigger()

    def _rows(self, query: str) -> list[tuple[object, ...]]:
        database = sqlite3.connect(f"file:{self._server.place}/rushes.db?mode=ro", uri=True)
        try:
            return list(database.execute(query))
        finally:
            database.close()

    def _shoot(self) -> dict[str, str]:
        """Paths and hashes of what is on the card."""
        footage = {}
        sizes = {"DCIM/100GOPRO/GX010001.MP4": LARGE_BYTES, "DCIM/100GOPRO/GX010002.MP4": 3 << 20}
        sizes |= {f"MISC/{number:03}.bin": 100 * number for number in range(150)}
        for path, size in sizes.items():
            content = self._random.randbytes(size)
            place = self._card / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            os.utime(place, ns=(10**18, 10**18))
            footage[path] = xxhash.xxh64_hexdigest(content)
        return footage

    def _note_what_is_published(self) -> None:
        """What has its final name keeps it, and stays the file that it is."""
        for destination in (self._server.library, self._backup):
            for path in _footage(destination):
                status = path.stat()
                now = (status.st_ino, status.st_mtime_ns)
                if self._published.setdefault(path, now) != now:
                    self._report.wrong.append(f"{path} was overwritten")

    def _leftovers(self) -> list[Path]:
        """Of the copies, and of what is written about them."""
        return [
            place
            for root in (self._server.library, self._backup)
            for pattern in ("*.part", "*.bad")
            for place in root.rglob(pattern)
        ]

    def _look(self) -> None:
        wrong = self._report.wrong
        if self._theirs.read_bytes() != b"nobody touches this":
            wrong.append("a file that was there before is another now")
        wrong += [f"{place} is left over" for place in self._leftovers()]
        self._note_what_is_published()
        wrong += [f"{path} is gone" for path in self._published if not path.exists()]
        jobs = [str(name) for (name,) in self._rows("SELECT name FROM job WHERE status = 'copied'")]
        self._report.jobs = len(jobs)
        if not jobs:
            wrong.append("no job came to its end")
        for destination in (self._server.library, self._backup):
            ledger = {
                os.fsdecode(path): str(hash)
                for path, hash in self._rows(
                    "SELECT c.path, f.hash FROM imported_copy c JOIN imported_file f "
                    f"ON f.id = c.imported_file_id WHERE c.destination = '{destination}'"
                )
                if isinstance(path, bytes)
            }
            wanted = {f"{job}/{path}": hash for job in jobs for path, hash in self._footage.items()}
            if ledger != wanted:
                wrong.append(f"{destination}: the ledger is not what was copied")
            found = {
                str(path.relative_to(destination)): _hash(path) for path in _footage(destination)
            }
            if found != wanted:
                wrong.append(f"{destination}: the files are not what was on the card")
            if _listed(destination) != wanted:
                wrong.append(f"{destination}: the manifests are not what was copied")
            self._report.files += len(found)


def _footage(destination: Path) -> list[Path]:
    """What has a final name in jobs' folders."""
    return [
        path
        for path in destination.glob("*/*/**/*")
        if path.is_file()
        and path.suffix in (".MP4", ".bin")
        and path.relative_to(destination).parts[1] in ("DCIM", "MISC")
    ]


def _listed(destination: Path) -> dict[str, str]:
    """Paths and hashes of what the manifests have."""
    return {
        f"{manifest.parent.parent.name}/{each.findtext(f'{MANIFEST}path')}": str(
            each.findtext(f"{MANIFEST}xxh64")
        )
        for manifest in destination.glob("*/ascmhl/*.mhl")
        for each in ET.parse(manifest).iter(f"{MANIFEST}hash")
    }


def _hash(path: Path) -> str:
    digest = xxhash.xxh64()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = CopyChaos(Path(folder), seed=given.seed, kills=given.kills).run()
    print(f"seed {given.seed}\n{report}")
    sys.exit(bool(report.wrong))


if __name__ == "__main__":
    main()
