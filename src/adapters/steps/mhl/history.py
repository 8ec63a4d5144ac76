"""A folder's manifests: what they say of its files, and how one more is added.

The order of writing
    A generation is written beside, synced, read back and published under a name
    that nobody has; then the chain, with the generation's C4 in it, is written
    beside, synced and put in the place of the old one. At every instant the folder
    has a chain that is whole, and no generation that isn't.

    A crash between the two leaves one generation that the chain doesn't know, the
    next in number. Whoever adds the next one reads it to its end and takes it into
    the chain first. More than one, or another number, no crash of ours can leave: it
    is refused, and for a person to sort out. Unfinished ones have names that only we
    give, and go away.

    The same generation added again, as by a step that is run again after a crash, is
    found to be there.

What the generations say together
    The newest generation that knows a file has the last word, hash by hash. One that
    lists it as new (``original``) or with another hash of the same kind replaces what
    was known before; that is counted, since it means that the file was another once. A
    failed hash says that a check found other bytes, so it changes nothing.
"""

from __future__ import annotations

import fcntl
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import BinaryIO

from adapters.steps import kernel
from adapters.steps.cards import open_file
from adapters.steps.faults import LibraryFault, reason
from adapters.steps.hashes import C4
from adapters.steps.library import Folder, unfinished
from adapters.steps.mhl.documents import (
    IGNORED,
    MANIFESTS,
    OWN_IGNORED,
    Action,
    Creator,
    Generation,
    HashedFile,
    ListedFile,
    ManifestFault,
    ManifestReader,
    Process,
    chain_xml,
    hashed_at_text,
    manifest_xml,
    number_of,
    read_chain,
    why_not_listed,
)

CHAIN = b"ascmhl_chain.xml"

MAX_FOLDER_NAME_BYTES = 150
"""Of a manifest's name; with number, time and the end of a part it stays below 255."""


@dataclass(slots=True)
class Known:
    """What the generations say of one file; None where none tells it.

    mtime_ns: when it was changed last, as the first one says that knows it as it should be.
    """

    size_bytes: int | None
    hashes: dict[str, str]
    mtime_ns: int | None = None


@dataclass(slots=True)
class History:
    """All generations of one folder.

    files: by their paths below the folder, in the order in which they came to be known.
    generations: in their order. unchained: the one that the chain doesn't know, if there
    is one. replaced: files that a later generation knows as others than an earlier one.
    """

    files: dict[bytes, Known] = field(default_factory=dict)
    generations: list[Generation] = field(default_factory=list)
    unchained: bytes | None = None
    replaced: set[bytes] = field(default_factory=set)

    def take(self, listed: ListedFile) -> None:
        known = self.files.get(listed.path)
        if listed.previous_path is not None and listed.previous_path != listed.path:
            known = self.files.pop(listed.previous_path, known)
        if known is None:
            known = self.files[listed.path] = Known(
                listed.size_bytes, listed.hashes, listed.mtime_ns if listed.hashes else None
            )
            return
        self.files[listed.path] = known
        is_other = any(
            known.hashes.get(name, value) != value for name, value in listed.hashes.items()
        )
        if is_other:
            self.replaced.add(listed.path)
        if is_other or listed.is_original:
            known.hashes.clear()
            known.mtime_ns = None
        if listed.hashes:  # what only failed tells nothing of how the file should be
            known.hashes.update(listed.hashes)
            known.size_bytes = known.size_bytes if listed.size_bytes is None else listed.size_bytes
            known.mtime_ns = listed.mtime_ns if known.mtime_ns is None else known.mtime_ns


@dataclass(frozen=True, slots=True)
class Counted:
    """Files that are to be listed. listed: how many can be. left_out: the others, and why not."""

    listed: int
    left_out: Sequence[tuple[bytes, str]]

    @classmethod
    def of(cls, files: Iterable[HashedFile]) -> Counted:
        listed = 0
        left_out = []
        for file in files:
            why = why_not_listed(file.path)
            if why is None:
                listed += 1
            else:
                left_out.append((file.path, why))
        return cls(listed, left_out)


@dataclass(frozen=True, slots=True)
class Added:
    """What came of adding a generation.

    generation: None if there was nothing to be listed. left_out: the paths that no
    manifest can list, and why.
    """

    generation: Generation | None
    left_out: Sequence[tuple[bytes, str]]


def read_history(folder: Folder) -> History | None:
    """What the folder's manifests say; None if it has none.

    Raises ``ManifestFault`` if one of them is not as the chain has it, damaged, or away.
    """
    place = _place(folder)
    if place is None:
        return None
    with place:
        history = History()
        chain = _chain(place)
        history.generations += chain
        unchained = _unchained(place, chain)
        if unchained is not None:
            history.unchained = unchained
        for generation in chain:
            for listed in _manifest(place, generation.name, generation.c4):
                history.take(listed)
        if unchained is not None:
            c4 = C4()
            for listed in _manifest(place, unchained, None, c4):
                history.take(listed)
            history.generations.append(_generation(unchained, c4))
        return history if history.generations else None


def add_generation(
    folder: Folder,
    name: bytes,
    files: Iterable[HashedFile],
    *,
    creator: Creator,
    process: Process,
    at: datetime,
    counted: Counted | None = None,
) -> Added:
    """Write the next manifest of this folder, whose own name is ``name``, and chain it.

    Nothing is hashed here: the hashes are the caller's. ``files`` is gone through several
    times and never held, so it is no iterator that comes to an end; ``counted`` are the same
    files, where the caller has counted them. Raises ``ManifestFault`` if the
    manifests that are there don't hold together, and ``LibraryFault``.
    """
    counted = counted or Counted.of(files)
    left_out = counted.left_out
    if not counted.listed:
        return Added(None, left_out)
    with folder.make(MANIFESTS) as place, _alone(place):
        _remove_leftovers(place)
        chain = _settled(place)
        ignored: list[str] = []
        if chain:
            last = chain[-1]
            there = _manifest(place, last.name, last.c4, ignored=ignored)
            if _is_same(there, _listed(files), counted.listed):
                return Added(last, left_out)
        number = chain[-1].number + 1 if chain else 1
        manifest = f"{number:04d}_{_plain(name)}_{at.astimezone(UTC):%Y-%m-%d_%H%M%S}Z.mhl"
        # What the last generation ignored goes on being ignored.
        patterns = list(dict.fromkeys([*(ignored or IGNORED), *OWN_IGNORED]))
        xml = manifest_xml(
            _listed(files), creator=creator, process=process, ignored=patterns, at=at
        )
        generation = _publish(place, manifest.encode(), xml)
        _write_chain(place, [*chain, generation])
        return Added(generation, left_out)


def _listed(files: Iterable[HashedFile]) -> Iterator[HashedFile]:
    return (file for file in files if why_not_listed(file.path) is None)


def _place(folder: Folder) -> Folder | None:
    """The folder with the manifests, if there is one."""
    try:
        return folder.find(MANIFESTS)
    except LibraryFault as fault:
        raise ManifestFault(str(fault)) from fault


@contextmanager
def _alone(place: Folder) -> Iterator[None]:
    """Two writers at once would both take the same number. The lock dies with its process."""
    try:
        fcntl.flock(place.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LibraryFault(
            f"another process is writing manifests at {place.text}; try again when it is done"
        ) from None
    except OSError:
        pass  # no locks here: a name that is taken is noticed all the same
    yield  # closing the folder lets go of it


def _remove_leftovers(place: Folder) -> None:
    """What a crash left of ours: it has no names but those that we give, and we are alone."""
    with place.faults():
        targets = {unfinished(os.fsencode(entry)) for entry in os.listdir(place.fd)}
    place.remove_leftovers(
        {
            name
            for name in targets
            if name is not None and (name == CHAIN or number_of(name) is not None)
        }
    )


def _settled(place: Folder) -> list[Generation]:
    """The chain, with the generation in it that a crash may have kept out."""
    chain = _chain(place)
    for generation in chain:
        if _size(place, generation.name) is None:
            raise _missing(place, generation)
    unchained = _unchained(place, chain)
    if unchained is None:
        return chain
    c4 = C4()
    for _ in _manifest(place, unchained, None, c4):
        pass
    chain = [*chain, _generation(unchained, c4)]
    _write_chain(place, chain)
    return chain


def _unchained(place: Folder, chain: Sequence[Generation]) -> bytes | None:
    """The one manifest that the chain doesn't know and that may follow it, if there is one."""
    chained = {generation.name for generation in chain}
    try:
        names = {os.fsencode(entry) for entry in os.listdir(place.fd)}
    except OSError as error:
        raise _unreadable(place.text, error) from error
    # One whose name was just being taken is empty, and no generation yet.
    taking = {unfinished(name) for name in names}
    found = sorted(
        name
        for name in names
        if number_of(name) is not None
        and name not in chained
        and not (name in taking and _size(place, name) == 0)
    )
    if not found:
        return None
    after = chain[-1].number if chain else 0
    if len(found) > 1 or number_of(found[0]) != after + 1:
        raise ManifestFault(
            f"{place.name_text(found[-1])} is not in the chain, whose last generation is "
            f"{after}: it was added or the chain was lost; it was left as it is"
        )
    return found[0]


def _is_same(there: Iterable[ListedFile], files: Iterable[HashedFile], count: int) -> bool:
    """Whether a generation lists just these, hashed at the same time. Reads it to its end."""
    found: dict[bytes, object] = {}
    for listed in there:
        if len(found) <= count:  # more can't be just these
            times = set(listed.hashed_at.values())
            found[listed.path] = (listed.is_original, listed.hashes, times)
    wanted = {
        file.path: (False, {}, set())
        if file.action is Action.FAILED
        else (file.action is Action.ORIGINAL, dict(file.hashes), {hashed_at_text(file)})
        for file in files
    }
    return found == wanted


def _publish(place: Folder, name: bytes, pieces: Iterator[bytes]) -> Generation:
    part, fd = place.new_part(name, MANIFESTS + b"/" + name)
    c4 = C4()
    try:
        with place.faults():
            with open(fd, "wb") as file:
                for piece in pieces:
                    c4.update(piece)
                    file.write(piece)
                file.flush()
                kernel.sync_file(fd)
                kernel.forget_cached(fd)
            for _ in _manifest(place, part, c4.hexdigest()):
                pass
        place.publish(part, name, MANIFESTS + b"/" + name)
    except BaseException:
        with suppress(OSError):
            place.remove(part)
        raise
    with place.faults():
        kernel.sync_folder(place.fd)
    return _generation(name, c4)


def _write_chain(place: Folder, generations: Sequence[Generation]) -> None:
    part, fd = place.new_part(CHAIN, MANIFESTS + b"/" + CHAIN)
    try:
        with place.faults():
            with open(fd, "wb") as file:
                file.write(chain_xml(generations))
                file.flush()
                kernel.sync_file(fd)
            # The one file that is replaced: it is a list that grows.
            os.rename(part, CHAIN, src_dir_fd=place.fd, dst_dir_fd=place.fd)
            kernel.sync_folder(place.fd)
    except BaseException:
        with suppress(OSError):
            place.remove(part)
        raise


def _chain(place: Folder) -> list[Generation]:
    """Empty where there is none."""
    if _size(place, CHAIN) is None:
        return []
    with _opened(place, CHAIN) as file:
        return read_chain(file, place.name_text(CHAIN))


def _manifest(
    place: Folder,
    name: bytes,
    wanted: str | None,
    c4: C4 | None = None,
    ignored: list[str] | None = None,
) -> Iterator[ListedFile]:
    """The files of a manifest; what it ignores is added to ``ignored`` at the end.

    Raises ``ManifestFault``, at its end if it isn't the one that is wanted.
    """
    c4 = C4() if c4 is None else c4
    with _opened(place, name) as file:
        reader = ManifestReader(file, place.name_text(name), c4.update)
        yield from reader
    if wanted is not None and c4.hexdigest() != wanted:
        raise ManifestFault(
            f"{place.name_text(name)} is not what it was when it was written: its C4 is "
            f"{c4.hexdigest()}, not {wanted}"
        )
    if ignored is not None:
        ignored += reader.ignored


@contextmanager
def _opened(place: Folder, name: bytes) -> Iterator[BinaryIO]:
    """A regular file of this folder, for reading."""
    try:
        with open(open_file(place.fd, name), "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ManifestFault(f"{place.name_text(name)} is no regular file")
            yield file
    except FileNotFoundError as error:
        raise ManifestFault(f"{place.name_text(name)} is missing") from error
    except OSError as error:
        raise _unreadable(place.name_text(name), error) from error


def _size(place: Folder, name: bytes) -> int | None:
    try:
        return os.stat(name, dir_fd=place.fd, follow_symlinks=False).st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(place.name_text(name), error) from error


def _missing(place: Folder, generation: Generation) -> ManifestFault:
    return ManifestFault(f"{place.name_text(generation.name)} is missing, but is in the chain")


def _unreadable(where: str, error: OSError) -> ManifestFault:
    return ManifestFault(f"{where} can't be read: {reason(error)}")


def _generation(name: bytes, c4: C4) -> Generation:
    number = number_of(name)
    assert number is not None
    return Generation(number, name, c4.hexdigest())


def _plain(name: bytes) -> str:
    """The folder's name as far as every reader of a manifest's name can take it."""
    text = unicodedata.normalize("NFC", name.decode("utf-8", "surrogateescape"))
    safe = "".join(each if each.isprintable() and each != "/" else "_" for each in text)
    return safe.encode()[:MAX_FOLDER_NAME_BYTES].decode("utf-8", "ignore") or "_"
