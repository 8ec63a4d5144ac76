"""The destinations of a copy: what each of them has, is to get, and calls it.

Names
    A file keeps its name wherever it can. Where it can't, ``domain.names`` has the rule
    for another one; folders follow it too. Files that a destination would mix up are
    numbered in the order of their paths, so every attempt finds the same names. A name
    that somebody else's file has in the job's folder is taken, and the next number is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from adapters.steps import kernel
from adapters.steps.faults import LibraryFault
from adapters.steps.library import MAX_OWN_NAMES, Folder, Library, Standing
from adapters.steps.parts import Lane
from domain.footage import CardFile
from domain.names import MAX_NAME_BYTES, folded, stored_name
from domain.places import Places


class Destination:
    """What one of them has, and is to get.

    copied, known, missing: the files (by path) that this job has brought, that were there,
    and that were known and are there no longer. new: those to be brought. left: parts of
    large ones that an earlier attempt has left. places: where files stand, below the
    destination, of those that were asked about.
    """

    def __init__(self, lane: Lane, library: Library) -> None:
        self.lane = lane
        self.library = library
        self.standing = Standing(library)
        self.copied: dict[bytes, int] = {}
        self.known: set[bytes] = set()
        self.missing: set[bytes] = set()
        self.new: set[bytes] = set()
        self.left: dict[bytes, bytes] = {}
        self.places: dict[bytes, bytes] = {}
        self.fault: LibraryFault | None = None
        self.job_folder: Folder | None = None
        self._numbers: dict[bytes, int] = {}
        self._components: dict[bytes, bytes] = {}

    def open(self, job_name: bytes) -> None:
        """The job's folder, made if need be."""
        with self.library.open() as root:
            self.job_folder = root.make(job_name)

    def close(self) -> None:
        self.standing.__exit__(None, None, None)
        if self.job_folder is not None:
            kernel.close(self.job_folder.fd)

    def has(self, path: bytes) -> bool:
        return path in self.copied or path in self.known

    def folder_path(self, path: bytes) -> bytes:
        """What this folder is called here, below the job's folder."""
        return b"/".join(map(self._component, path.split(b"/"))) if path else path

    def number(self, files: Sequence[CardFile], places: Places, job_name: bytes) -> None:
        """Tell apart what this destination would mix up, and what has one place."""
        assert self.job_folder is not None
        with self.library.open() as root:
            mixes_up = root.mixes_up(job_name)
        if not mixes_up and places.are_as_on_the_card:
            return
        seen: Counter[bytes | str] = Counter()
        for file in files:
            above, name = split(places.of(file))
            path = self.folder_path(above) + b"/" + self._component(name)
            key = folded(path) if mixes_up else path
            seen[key] += 1
            if seen[key] > 1:
                self._numbers[file.path] = seen[key]

    def names(self, path: bytes) -> Iterator[bytes]:
        """The names that a file may have, the best first."""
        _, name = split(path)
        first = self._numbers.get(path, 1)
        if first == 1:
            yield self._checked(name)
            first = 2
        for number in range(first, first + MAX_OWN_NAMES):
            yield stored_name(name, number)

    def _component(self, name: bytes) -> bytes:
        """The name, or what it becomes where the destination can't hold it."""
        if name not in self._components:
            self._components[name] = self._checked(name)
        return self._components[name]

    def _checked(self, name: bytes) -> bytes:
        folder = self.job_folder
        assert folder is not None
        if folder.is_picky is False and len(name) <= MAX_NAME_BYTES:
            return name
        other = stored_name(name)
        if other == name:
            return name
        if folder.is_picky or len(name) > MAX_NAME_BYTES:
            return other
        if folder.is_picky is None and not folder.takes(name):
            return other
        return name


class Destinations:
    """All of them, by their numbers; those that have failed stay in the list."""

    def __init__(self, libraries: Sequence[Library]) -> None:
        self.all = [Destination(lane, library) for lane, library in enumerate(libraries)]

    def __enter__(self) -> Destinations:
        return self

    def __exit__(self, *failure: object) -> None:
        for each in self.all:
            each.close()

    @property
    def working(self) -> list[Destination]:
        return [each for each in self.all if each.fault is None]

    def lose(self, lane: Lane, fault: LibraryFault) -> None:
        """Raises ``LibraryFault`` if that was the last."""
        self.all[lane].fault = self.all[lane].fault or fault
        if not self.working:
            raise self.fault()

    def fault(self) -> LibraryFault:
        """Of all that have failed."""
        faults = [each.fault for each in self.all if each.fault is not None]
        if len(self.all) == 1:
            return faults[0]
        return LibraryFault(
            f"{len(faults)} of {len(self.all)} destinations failed: "
            + "; ".join(map(str, dict.fromkeys(map(str, faults))))
        )


def split(path: bytes) -> tuple[bytes, bytes]:
    """The folder, and the name in it."""
    folder, _, name = path.rpartition(b"/")
    return folder, name


def with_those_above(path: bytes) -> Iterator[bytes]:
    while path:
        yield path
        path = split(path)[0]
