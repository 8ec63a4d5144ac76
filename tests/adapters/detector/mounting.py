"""Real mounts for tests: a tmpfs is put in like a card, and taken out again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.filesystems import unavailable


class Mounts:
    """Mounts below a folder; what is still there at the end is taken away."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._mounted: list[bytes] = []

    def path(self, name: str | bytes) -> Path:
        return Path(os.fsdecode(os.path.join(os.fsencode(self.root), os.fsencode(name))))

    def put(self, name: str | bytes, *, kind: str = "tmpfs", device: str = "none") -> Path:
        """Mount something there; it is empty."""
        path = self.path(name)
        path.mkdir(parents=True, exist_ok=True)
        options = ["-o", "size=16m"] if kind == "tmpfs" else []
        command = ["mount", "-n", "-t", kind, *options, device, os.fsencode(path)]
        mounted = subprocess.run(command, capture_output=True, check=False)
        if mounted.returncode != 0:
            unavailable("this user may not mount a file system")
        self._mounted.append(os.fsencode(path))
        return path

    def take(self, name: str | bytes) -> None:
        """Pulled out: gone from the table at once, whoever still has a file of it open."""
        path = os.fsencode(self.path(name))
        subprocess.run(["umount", "-n", "--lazy", path], check=True)
        self._mounted.remove(path)

    def take_all(self) -> None:
        while self._mounted:
            subprocess.run(["umount", "-n", "--lazy", self._mounted.pop()], check=False)


@contextmanager
def mounting(root: Path) -> Iterator[Mounts]:
    mounts = Mounts(root)
    try:
        yield mounts
    finally:
        mounts.take_all()
