"""What is on its way: errands, the parts that they fill, and what became of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

from adapters.steps.faults import CardLost, FileFault, LibraryFault
from adapters.steps.library import Folder
from application.authoring import Interrupted
from domain.footage import CardFile

RESUME_BYTES = 64 * 1024 * 1024
"""What is smaller is copied again sooner than its part is looked for."""

Lane = int
"""The number of a destination."""


def is_resumed(file: CardFile) -> bool:
    """Whether its part is gone on with after a stop, a crash or a lost card."""
    return file.size_bytes >= RESUME_BYTES


class Place(NamedTuple):
    """Where a file goes at one destination; the folder stays open until it is there."""

    folder: Folder
    name: bytes


@dataclass(frozen=True, slots=True)
class Errand:
    """A file, and the place that it is to get at each of these destinations.

    left: parts of it that an earlier attempt has left there, to be gone on with.
    """

    file: CardFile
    places: Mapping[Lane, Place]
    left: Mapping[Lane, bytes] = field(default_factory=dict)


class Arrived(NamedTuple):
    """A verified file under its final name.

    is_cold: whether it was shown to be the device that gave it back.
    """

    file: CardFile
    lane: Lane
    name: bytes
    is_cold: bool
    hashes: Mapping[str, str]


@dataclass(slots=True)
class Batch:
    """What became of the files of one batch, or of one destination's share of it.

    faults: of files; of those at single destinations too.
    lost: destinations that can't be written any more.
    put_aside: where bad copies are that a second try made good.
    """

    arrived: list[Arrived] = field(default_factory=list)
    faults: list[FileFault] = field(default_factory=list)
    lost: dict[Lane, LibraryFault] = field(default_factory=dict)
    put_aside: list[str] = field(default_factory=list)

    def add(self, other: Batch) -> None:
        self.arrived += other.arrived
        self.faults += other.faults
        self.lost |= other.lost
        self.put_aside += other.put_aside


@dataclass(slots=True, eq=False)
class Part:
    """A file of ours that isn't believed yet. ``fd`` of a large one is open until it is synced.

    target: the name that it is to get. kept_bytes: what an earlier attempt has left in it.
    """

    file: CardFile
    folder: Folder
    name: bytes
    target: bytes
    fd: int | None
    kept_bytes: int = 0
    hashes: Mapping[str, str] = field(default_factory=dict)
    is_cold: bool = False

    def open_again(self) -> None:
        """If it was closed. Raises ``OSError``."""
        if self.fd is None:
            self.fd = self.folder.open_file(self.name)

    def close(self) -> None:
        if self.fd is not None:
            fd, self.fd = self.fd, None
            os.close(fd)


class Parts:
    """The parts of one batch at one destination; what is still a part at the end is removed.

    Unless the card was lost, or somebody stopped us: then a large one is kept, to be
    gone on with.
    """

    def __init__(self) -> None:
        self._open: dict[Part, None] = {}  # a set in the order of making

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        is_kept = isinstance(error, CardLost | Interrupted)
        for part in list(self._open):
            with suppress(OSError):  # a library that is gone keeps them until the next attempt
                if is_kept and is_resumed(part.file):
                    self.keep(part)
                else:
                    self.remove(part)

    def new(self, file: CardFile, place: Place, left: bytes | None = None) -> Part:
        """A new one, or the one that is left, if that is still there."""
        folder, target = place
        found = None if left is None else folder.open_part(left)
        if left is None or found is None:
            name, fd = folder.new_part(target, file.path)
            part = Part(file, folder, name, target, fd)
        else:
            part = Part(file, folder, left, target, found)
            part.kept_bytes = min(os.fstat(found).st_size, file.size_bytes)
        self._open[part] = None
        return part

    def remove(self, part: Part) -> None:
        part.close()
        part.folder.remove(part.name)
        del self._open[part]

    def keep(self, part: Part) -> None:
        part.close()
        del self._open[part]

    def publish(self, part: Part) -> None:
        part.folder.publish(part.name, part.target, part.file.path)
        del self._open[part]

    def put_aside(self, part: Part) -> str:
        aside = part.folder.put_aside(part.name)
        del self._open[part]
        return part.folder.name_text(aside)
