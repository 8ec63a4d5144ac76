"""Kills a real server while it copies cards to two destinations, and looks at what is there.

``python -m tests.chaos.copying --kills 100`` for longer than the tests do it.
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

import xxhash

from tests.e2e.server import Server

LARGE_BYTES = 72 * 1024 * 1024
"""Above what is gone on with after a crash instead of begun anew."""

SLOWEST_KILL_S = 1.2
"""After so long a copy is over, so a kill would hit nothing."""


@dataclass
class Report:
    kills: int = 0
    in_the_copy: int = 0
    parts_left: int = 0
    jobs: int = 0
    files: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.kills} kills, {self.in_the_copy} of them while footage was copied; "
            f"{self.parts_left} times a part was there afterwards",
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

    def run(self) -> Report:
        self._server.start()
        try:
            while self._report.kills < self._kills:
                self._life()
            execution = self._under_way() or self._trigger()
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
        if self._under_way() is None:
            self._trigger()
        process = self._server.process
        assert process is not None
        try:
            process.wait(self._random.random() * SLOWEST_KILL_S)
            self._report.wrong.append("the server ended by itself")
        except subprocess.TimeoutExpired:
            pass
        self._server.kill()
        self._report.kills += 1
        running = self._rows("SELECT step_name FROM pipeline_step WHERE status = 'running'")
        self._report.in_the_copy += ("copy_files",) in running
        self._report.parts_left += bool(self._leftovers())
        self._server.start()

    def _trigger(self) -> str:
        return self._server.trigger("sd_ingest", sd_path=str(self._card), again=True)

    def _under_way(self) -> str | None:
        found = self._server.get("/api/pipeline", status="running")["executions"]
        return found[0]["execution_id"] if found else None

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
                f"{job}/{path.relative_to(destination / job)}": _hash(path)
                for job in jobs
                for path in (destination / job).rglob("*")
                if path.is_file() and path.parent.name in ("100GOPRO", "MISC")
            }
            if found != wanted:
                wrong.append(f"{destination}: the files are not what was on the card")
            self._report.files += len(found)


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
