"""The library's side of a copy: folders, names, room.

The library itself is where the operator said, links and all. Below it every
folder is opened or made inside the one above it, following no link, and a file
gets its name only if nobody has it.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property

import xxhash

from adapters.steps import kernel
from adapters.steps.cards import OpenCard, open_folder, parts_of
from adapters.steps.disks import require_disk
from adapters.steps.faults import CardLost, FileFault, LibraryFault, reason
from application.authoring import StepContext
from application.ports import Ledger
from domain.footage import same_time, shown

RESERVE_BYTES = 256 * 1024 * 1024
RESERVE_SHARE = 100
"""Room that is left free: ``RESERVE_BYTES``, or one part in so many of a smaller library."""

FAT_FILE_BYTES = 2**32 - 1
_FAT = frozenset({"fuse.fusefat", "msdos", "vfat"})

_PICKY = frozenset({"cifs", "exfat", "fuseblk", "ntfs", "ntfs3", "smb2", "smb3", "smbfs"}) | _FAT
"""Windows' rules for names hold there. Some of them take other names all the same, and
then drop a character, or hide the file from Windows."""

_PLAIN = frozenset({"apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "tmpfs"})
_PLAIN |= {"nfs", "nfs4", "overlay", "xfs", "zfs"}
"""Every name of at most 255 bytes of text can stand there."""

_PROBE = b"rushes-probe"

MAX_OWN_NAMES = 20
"""Files of ours that a folder may hold under one name, told apart by a number."""

MAX_NAME_BYTES = 255
_ID_BYTES = 4
_PART = re.compile(rb"(.+)\.[0-9a-f]{%d}\.(part|take)\Z" % (2 * _ID_BYTES), re.DOTALL)
"""A part; or one that is about to take its name, where that goes in two steps."""

_SUFFIX_BYTES = len(".") + 2 * _ID_BYTES + len(".part")

_ids = itertools.count(int.from_bytes(os.urandom(_ID_BYTES)))
"""Begun at random, so that what an earlier process has left is hardly ever met."""

_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_NAME_REFUSED = frozenset({errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG})

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PART_AGAIN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Library:
    """``ledger``: keeps what disk it was on (``disks``); without one nobody asks."""

    def __init__(self, root: str, ledger: Ledger | None = None) -> None:
        self.root = os.path.normpath(root)
        self._ledger = ledger

    @classmethod
    def all_of(
        cls, context: StepContext, otherwise: str, ledger: Ledger | None = None
    ) -> list[Library]:
        """The execution's library, and the further destinations that it was triggered with.

        They are the execution's, whichever server goes on with it; ``otherwise``: for
        executions from before the library was recorded, this server's.
        """
        data = context.data
        roots = [data.get("library", otherwise), *data.get("destinations", ())]
        libraries = [cls(root, ledger) for root in roots]
        return list({library.root: library for library in libraries}.values())

    def open(self) -> Folder:
        """Made if it isn't there, but not what is above it: that may be a disk to be plugged in.

        Raises ``LibraryFault``, also if the disk that it was on is away: then nothing is made.
        """
        self.require_disk()
        try:
            with suppress(FileExistsError):
                os.mkdir(self.root)
            return self._opened()
        except FileNotFoundError as error:
            raise self._not_connected() from error
        except OSError as error:
            raise self._not_opened(error) from error

    def look(self) -> Folder | None:
        """As it is: nothing is made. None if it isn't there, but what it should be in is.

        Raises ``LibraryFault``, also if the disk that it was on is away.
        """
        self.require_disk()
        try:
            return self._opened()
        except FileNotFoundError:
            if os.path.isdir(os.path.dirname(self.root)):
                return None
            raise self._not_connected() from None
        except OSError as error:
            raise self._not_opened(error) from error

    def _opened(self) -> Folder:
        """Raises ``OSError``; ``LibraryFault`` if its disk has gone in this instant."""
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.require_disk(is_open=True)
        except BaseException:
            kernel.close(fd)
            raise
        return Folder(fd, self.text)

    def require_disk(self, *, is_open: bool = False) -> None:
        """Raises ``LibraryFault`` if the disk that it was on isn't mounted; see ``disks``."""
        if self._ledger is not None:
            require_disk(self.root, self._ledger, is_open=is_open)

    def names(self, path: bytes = b"") -> list[bytes]:
        """What has a name in it, or in this folder of it; nothing, where that can't be listed."""
        try:
            return os.listdir(os.path.join(os.fsencode(self.root), path))
        except OSError:
            return []

    @property
    def text(self) -> str:
        return shown(os.fsencode(self.root))

    def _not_opened(self, error: OSError) -> LibraryFault:
        return LibraryFault(f"the library {self.text} can't be opened: {reason(error)}")

    def _not_connected(self) -> LibraryFault:
        return LibraryFault(
            f"the library {self.text} is not there, nor is the folder that it should be in; "
            "is its disk connected?"
        )

    def problem_beside(self, others: Sequence[Library]) -> str | None:
        """Whether it is, or lies in, one of the others: two copies in one place are one."""
        real = os.path.realpath(self.root)
        for other in others:
            above = os.path.realpath(other.root)
            if real == above:
                return f"the libraries {self.text} and {other.text} are one and the same folder"
            if os.path.commonpath((real, above)) == above:
                return f"the library {self.text} lies inside the library {other.text}"
        return None

    def refuse_card(self, card: OpenCard) -> None:
        """Raises ``LibraryFault`` if the library lies on the card: that is never written to;
        ``CardLost``.
        """
        try:
            on_card = os.fstat(card.fd)
        except OSError as error:
            raise CardLost(f"card lost: {card.path_text}: {reason(error)}") from error
        above = os.path.realpath(self.root)
        while True:
            try:
                if os.path.samestat(os.stat(above), on_card):
                    raise LibraryFault(
                        f"the library {self.text} lies on the card at {card.path_text}; "
                        "cards are never written to"
                    )
            except OSError:
                pass  # it may be yet to be made; what is above it counts as well
            if above == os.path.dirname(above):
                return
            above = os.path.dirname(above)


class Standing:
    """Whether files stand in the library; it is opened when the first one is asked about.

    Files are best asked about folder by folder: the last one's is kept open.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._root: Folder | None = None
        self._is_open = False
        self._folder: Folder | None = None
        self._path: bytes | None = None

    def __enter__(self) -> Standing:
        return self

    def __exit__(self, *of_the_block: object) -> None:
        for folder in (self._folder, self._root):
            if folder is not None:
                kernel.close(folder.fd)

    def holds(self, path: bytes, size_bytes: int) -> bool:
        """Whether a regular file of this size is there, reached by no link.

        Raises ``LibraryFault`` if that can't be seen, as when the library's disk is away.
        """
        if not self._is_open:
            self._root, self._is_open = self._library.look(), True
        if self._root is None:
            return False
        above, _, name = path.rpartition(b"/")
        if above != self._path:
            if self._folder is not None:
                kernel.close(self._folder.fd)
            self._folder, self._path = None, None
            self._folder, self._path = self._root.find(above), above
        if self._folder is None:
            return False
        try:
            found = self._folder.status(name, path)
        except FileFault:
            return False
        return found is not None and stat.S_ISREG(found.st_mode) and found.st_size == size_bytes


@dataclass(frozen=True, slots=True)
class LeftPart:
    """What an earlier attempt has written of a file; ``room_bytes`` is what it takes."""

    name: bytes
    room_bytes: int


class Folder:
    """An open folder. ``text`` is its place, for people."""

    def __init__(self, fd: int, text: str) -> None:
        self.fd = fd
        self.text = text

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *of_the_block: object) -> None:
        kernel.close(self.fd)

    @contextmanager
    def faults(self) -> Iterator[None]:
        """What fails in here is the library's fault."""
        try:
            yield
        except OSError as error:
            raise self.fault(error) from error

    def fault(self, error: OSError) -> LibraryFault:
        if error.errno == errno.ENOSPC:
            return LibraryFault(f"the library is full: no space is left at {self.text}")
        return LibraryFault(f"the library can't be written at {self.text}: {reason(error)}")

    @cached_property
    def device(self) -> int:
        """The number of what it is on. Raises ``OSError``."""
        return os.fstat(self.fd).st_dev

    def name_text(self, name: bytes) -> str:
        return f"{self.text}/{shown(name)}"

    def find(self, path: bytes) -> Folder | None:
        """A folder below, if there is such a folder."""
        text = self.name_text(path) if path else self.text
        try:
            return Folder(open_folder(self.fd, path), text)
        except OSError as error:
            if error.errno in _NOT_THERE | _NAME_REFUSED:
                return None
            raise self.fault(error) from error

    def walk(self) -> Iterator[tuple[Folder, list[bytes]]]:
        """This and every folder below, open until the next one, with the names in it.

        No link is followed. Raises ``LibraryFault``.
        """
        left = [b""]
        while left:
            path = left.pop()
            folder = self.find(path)
            if folder is None:
                continue
            with folder, self.faults():
                with os.scandir(folder.fd) as entries:
                    found = [
                        (os.fsencode(entry.name), entry.is_dir(follow_symlinks=False))
                        for entry in entries
                    ]
                yield folder, [name for name, _ in found]
            left += [
                b"/".join(filter(None, (path, name))) for name, is_folder in found if is_folder
            ]

    def make(self, path: bytes) -> Folder:
        """A folder below, with those above it, each of them durable before it is used.

        Raises ``FileFault`` if the library refuses a name, ``LibraryFault``.
        """
        folder = Folder(os.dup(self.fd), self.text)
        try:
            for part in parts_of(path):
                below = folder._make_one(part, path)
                kernel.close(folder.fd)
                folder = below
            return folder
        except BaseException:
            kernel.close(folder.fd)
            raise

    def _make_one(self, name: bytes, path: bytes) -> Folder:
        try:
            try:
                os.mkdir(name, dir_fd=self.fd)
                kernel.sync_folder(self.fd)
            except FileExistsError:
                pass
            return Folder(open_folder(self.fd, name), self.name_text(name))
        except OSError as error:
            if error.errno in _NAME_REFUSED:
                raise self._refused(name, path, error) from error
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise FileFault(
                    path, f"{self.name_text(name)} exists and is no folder; it was left as it is"
                ) from error
            raise self.fault(error) from error

    def status(self, name: bytes, path: bytes) -> os.stat_result | None:
        """What has this name. Raises ``FileFault`` if the library refuses such a name."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _NAME_REFUSED:
                raise self._refused(name, path, error) from error
            raise self.fault(error) from error

    def new_part(self, name: bytes, path: bytes) -> tuple[bytes, int]:
        """A file of ours that will be ``name``; it is open for writing, and nobody else's."""
        while True:
            part = _stem(name) + _next_id() + b".part"
            try:
                return part, os.open(part, _NEW_FILE, 0o666, dir_fd=self.fd)
            except FileExistsError:
                continue
            except OSError as error:
                if error.errno in _NAME_REFUSED:
                    raise self._refused(name, path, error) from error
                raise self.fault(error) from error

    def open_file(self, name: bytes) -> int:
        return os.open(name, _READ, dir_fd=self.fd)

    def remove(self, part: bytes) -> None:
        """Away with one of our own parts, if it is still there."""
        try:
            os.unlink(part, dir_fd=self.fd)
        except FileNotFoundError:
            pass

    def open_part(self, part: bytes) -> int | None:
        """A part that an attempt left behind, for reading and writing, if it is there."""
        with self.faults():
            try:
                fd = os.open(part, _PART_AGAIN, dir_fd=self.fd)
            except OSError as error:
                if error.errno in _NOT_THERE:
                    return None
                raise
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return fd
            kernel.close(fd)
        return None

    def remove_leftovers(
        self, ours: Collection[bytes], kept: Collection[bytes] = ()
    ) -> Mapping[bytes, LeftPart]:
        """Parts that an attempt left behind, of the files in ``ours`` and of no others.

        A file of the card may look like one of our parts; it is in ``ours`` then.
        Of each of those in ``kept`` the longest part stays, and is answered.
        """
        stems = {_stem(name): name for name in ours}
        staying: dict[bytes, tuple[int, bytes, int]] = {}
        with self.faults():
            for entry in os.listdir(self.fd):
                part = os.fsencode(entry)
                match = _PART.match(part)
                if match is None or match[1] not in stems or part in ours:
                    continue
                found = os.stat(part, dir_fd=self.fd, follow_symlinks=False)
                if not stat.S_ISREG(found.st_mode):
                    continue
                name = stems[match[1]]
                if match[2] == b"take":
                    # Nobody makes an empty file of this name in the same instant.
                    kernel.release_claim(name, dir_fd=self.fd)
                    waiting, part = part, part.removesuffix(b".take") + b".part"
                    os.rename(waiting, part, src_dir_fd=self.fd, dst_dir_fd=self.fd)
                shorter = part
                if name in kept:
                    this = (found.st_size, part, found.st_blocks * 512)
                    longest = max(this, staying.get(name, this))
                    shorter = staying[name][1] if longest is this and name in staying else part
                    staying[name] = longest
                    if shorter == longest[1]:
                        continue
                self.remove(shorter)
        return {name: LeftPart(part, room) for name, (_, part, room) in staying.items()}

    @cached_property
    def is_picky(self) -> bool | None:
        """Whether Windows' rules for names hold here; None if only trying tells."""
        kind = kernel.file_system_of(self.fd)
        return True if kind in _PICKY else False if kind in _PLAIN else None

    def takes(self, name: bytes) -> bool:
        """Whether a file can have this name here. It is tried out, and leaves nothing."""
        try:
            part, fd = self.new_part(name, name)
        except FileFault:
            return False
        kernel.close(fd)
        with self.faults():
            is_there = os.fsdecode(part) in os.listdir(self.fd)
            self.remove(part)
        return is_there and not name.endswith((b".", b" "))

    def can_publish(self) -> bool:
        """Whether a name can be given here without maybe taking it from another file.

        It is tried out, except where it is known, and leaves nothing.
        """
        if self.is_picky is False:
            return True
        self.remove_leftovers({_PROBE})
        names = []
        for _ in range(3):
            name, fd = self.new_part(_PROBE, _PROBE)
            kernel.close(fd)
            names.append(name)
        one, other, free = names
        with self.faults():
            try:
                self.remove(free)
                try:
                    kernel.rename_without_replacing(one, free, dir_fd=self.fd)
                except kernel.CannotPublish:
                    self._move_over_claim(one, free)
                    try:
                        self._move_over_claim(other, free)
                    except FileExistsError:
                        return True
                    return False  # it has taken the name from another file
            finally:
                for name in names:
                    self.remove(name)
        return True

    def mixes_up(self, path: bytes) -> bool:
        """Whether this entry answers to its name in other capitals too."""
        above, _, name = path.rpartition(b"/")
        other = name.swapcase()
        if other == name:
            return bool(self.is_picky)
        folder = self.find(above)
        if folder is None:
            return False
        with folder:
            try:
                os.stat(other, dir_fd=folder.fd, follow_symlinks=False)
                # Not by their inodes: through FUSE one file may have two.
                return os.fsdecode(other) not in os.listdir(folder.fd)
            except OSError:
                return False

    def set_time(self, mtime_ns: int) -> None:
        """The folder's own. Raises ``OSError``."""
        os.utime(self.fd, ns=(mtime_ns, mtime_ns))

    def keep_time(self, name: bytes, mtime_ns: int) -> None:
        """Give a file its time again, where a rename has changed it. Raises ``OSError``."""
        found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        if not same_time(found.st_mtime_ns, mtime_ns):
            kernel.set_time(name, mtime_ns, dir_fd=self.fd)

    def move(self, name: bytes, to: bytes) -> None:
        """Give one of our files another name, the best way that there is here.

        Raises ``FileExistsError`` if the name is taken, ``OSError``.
        """
        try:
            kernel.rename_without_replacing(name, to, dir_fd=self.fd)
        except kernel.CannotPublish:
            self._move_over_claim(name, to)

    def _move_over_claim(self, name: bytes, to: bytes) -> None:
        """In two steps. What waits says so by its own name, which is nobody else's.

        After a crash between the steps that tells our empty file from somebody's.
        """
        mtime_ns = os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mtime_ns
        waiting = _stem(to) + _next_id() + b".take"
        os.rename(name, waiting, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        try:
            kernel.rename_over_claim(waiting, to, dir_fd=self.fd)
        except OSError:
            os.rename(waiting, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            raise
        self.keep_time(to, mtime_ns)

    def publish(self, part: bytes, name: bytes, path: bytes) -> None:
        """Give the part its final name. Raises ``FileFault`` if the name is taken or refused."""
        try:
            self.move(part, name)
        except FileExistsError as error:
            raise self.taken(name, path) from error
        except OSError as error:
            if error.errno in _NAME_REFUSED:
                raise self._refused(name, path, error) from error
            raise self.fault(error) from error

    @property
    def _unsafe(self) -> str:
        return (
            f"the file system at {self.text} gives names away that are taken, so nothing can be "
            "put there without risk to what is there"
        )

    def put_aside(self, part: bytes) -> bytes:
        """A copy that turned out bad gets a name that says so, and keeps the sectors it is on."""
        aside = part.removesuffix(b".part") + b".bad"
        with self.faults():
            self.move(part, aside)
        return aside

    def taken(self, name: bytes, path: bytes) -> FileFault:
        return FileFault(
            path, f"{self.name_text(name)} exists and is not the same; it was left as it is"
        )

    def _refused(self, name: bytes, path: bytes, error: OSError) -> FileFault:
        return FileFault(
            path, f"the library refuses the name {self.name_text(name)}: {reason(error)}"
        )

    def problems(
        self,
        largest: tuple[bytes, int],
        *,
        file_system_of: Callable[[int], str] = kernel.file_system_of,
    ) -> list[str]:
        """Why files, of which this is the largest, couldn't be written here, whatever the room."""
        with self.faults():
            there = os.fstatvfs(self.fd)
            writable = os.access(".", os.W_OK | os.X_OK, dir_fd=self.fd)
        found = []
        if there.f_flag & os.ST_RDONLY:
            found.append(f"the library {self.text} is on a file system that is read-only")
        elif not writable:
            found.append(f"the library {self.text} may not be written to by this user")
        elif not self.can_publish():
            found.append(self._unsafe)
        path, largest_bytes = largest
        if largest_bytes > FAT_FILE_BYTES and file_system_of(self.fd) in _FAT:
            found.append(
                f"the library {self.text} is on a FAT file system, which can't hold files of "
                f"4 GiB or more, and {shown(path)} has {largest_bytes} bytes"
            )
        return found

    def room(self, sizes: Iterable[int]) -> Room:
        """What there is, and what these files would take of it."""
        with self.faults():
            there = os.fstatvfs(self.fd)
            device = os.fstat(self.fd).st_dev
        block = there.f_frsize or 1
        # Some drivers don't tell (FAT through FUSE): then only writing shows whether it is full.
        is_told = there.f_blocks > 0
        return Room(
            device=device,
            needed_bytes=sum(-(-size // block) * block for size in sizes),
            reserve_bytes=min(RESERVE_BYTES, there.f_blocks * block // RESERVE_SHARE),
            free_bytes=there.f_bavail * block if is_told else sys.maxsize,
        )


@dataclass(frozen=True, slots=True)
class Room:
    device: int
    needed_bytes: int
    reserve_bytes: int
    free_bytes: int

    def problem(self, places: Sequence[str], file_count: int) -> str | None:
        """What is to be said of the libraries at these places, which are on one file system."""
        if self.needed_bytes + self.reserve_bytes <= self.free_bytes:
            return None
        one = len(places) == 1
        return (
            f"not enough room in the {'library' if one else 'libraries'} {' and '.join(places)}"
            f"{'' if one else ', which are on one file system'}: {file_count} files need "
            f"{_amount(self.needed_bytes)} and {_amount(self.reserve_bytes)} are kept free, "
            f"but only {_amount(self.free_bytes)} are there"
        )


def unfinished(name: bytes) -> bytes | None:
    """What a part of ours is to become, if this is the name of one (and that wasn't too long)."""
    match = _PART.match(name)
    return match[1] if match else None


def _stem(name: bytes) -> bytes:
    """What the names of a file's parts begin with; another file's never begin so."""
    if len(name) + _SUFFIX_BYTES <= MAX_NAME_BYTES:
        return name
    mark = b"~" + xxhash.xxh64(name).hexdigest().encode()
    head = name[: MAX_NAME_BYTES - _SUFFIX_BYTES - len(mark)]
    # Not through the middle of a character: some file systems take only whole ones.
    whole = head.decode("utf-8", "ignore").encode()
    return (whole if head.startswith(whole) else head) + mark


def _next_id() -> bytes:
    """A part's own digits, with the dot before them."""
    return b".%0*x" % (2 * _ID_BYTES, next(_ids) % (1 << 8 * _ID_BYTES))


def _amount(size_bytes: int) -> str:
    """``12.3 GB``, as disks are sold."""
    if size_bytes < 1_000_000:
        return f"{size_bytes} bytes"
    if size_bytes < 1_000_000_000:
        return f"{size_bytes / 1e6:.1f} MB"
    return f"{size_bytes / 1e9:.1f} GB"
