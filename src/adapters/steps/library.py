"""The library's side of a copy: folders, names, room.

The library itself is where the operator said, links and all. Below it every
folder is opened or made inside the one above it, following no link, and a file
gets its name only if nobody has it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import TracebackType

import xxhash

from adapters.steps import kernel
from adapters.steps.cards import OpenCard, open_folder, parts_of
from adapters.steps.faults import FileFault, LibraryFault, reason
from application.authoring import StepContext
from domain.footage import shown

RESERVE_BYTES = 256 * 1024 * 1024
RESERVE_SHARE = 100
"""Room that is left free: ``RESERVE_BYTES``, or one part in so many of a smaller library."""

FAT_FILE_BYTES = 2**32 - 1
_FAT = frozenset({"vfat", "msdos"})

MAX_NAME_BYTES = 255
_ID_BYTES = 4
_PART = re.compile(rb"(.+)\.[0-9a-f]{%d}\.part\Z" % (2 * _ID_BYTES), re.DOTALL)
_SUFFIX_BYTES = len(".") + 2 * _ID_BYTES + len(".part")

_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_NAME_REFUSED = frozenset({errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG})

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Library:
    def __init__(self, root: str) -> None:
        self.root = os.path.normpath(root)

    @classmethod
    def of(cls, context: StepContext, otherwise: str) -> Library:
        """The execution's, whichever server goes on with it.

        ``otherwise``: for executions from before it was recorded, this server's.
        """
        return cls(context.data.get("library", otherwise))

    def open(self) -> Folder:
        """Made if it isn't there, but not what is above it: that may be a disk to be plugged in."""
        place = self.text
        try:
            try:
                os.mkdir(self.root)
            except FileExistsError:
                pass
            fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise self._not_connected() from error
        except OSError as error:
            raise LibraryFault(f"the library {place} can't be opened: {reason(error)}") from error
        return Folder(fd, place)

    def look(self) -> Folder | None:
        """As it is: nothing is made. None if it isn't there, but what it should be in is."""
        try:
            fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if os.path.isdir(os.path.dirname(self.root)):
                return None
            raise self._not_connected() from None
        except OSError as error:
            raise LibraryFault(
                f"the library {self.text} can't be opened: {reason(error)}"
            ) from error
        return Folder(fd, self.text)

    def names(self) -> list[bytes]:
        """What has a name in it now; nothing, where it isn't there or can't be listed."""
        try:
            return [os.fsencode(name) for name in os.listdir(self.root)]
        except OSError:
            return []

    @property
    def text(self) -> str:
        return shown(os.fsencode(self.root))

    def _not_connected(self) -> LibraryFault:
        return LibraryFault(
            f"the library {self.text} is not there, nor is the folder that it should be in; "
            "is its disk connected?"
        )

    def refuse_card(self, card: OpenCard) -> None:
        """Raises ``LibraryFault`` if the library lies on the card: that is never written to."""
        on_card = os.fstat(card.fd)
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for folder in (self._folder, self._root):
            if folder is not None:
                os.close(folder.fd)

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
                os.close(self._folder.fd)
            self._folder, self._path = None, None
            self._folder, self._path = self._root.find(above), above
        if self._folder is None:
            return False
        try:
            found = self._folder.status(name, path)
        except FileFault:
            return False
        return found is not None and stat.S_ISREG(found.st_mode) and found.st_size == size_bytes


class Folder:
    """An open folder. ``text`` is its place, for people."""

    def __init__(self, fd: int, text: str) -> None:
        self.fd = fd
        self.text = text

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self.fd)

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

    def make(self, path: bytes) -> Folder:
        """A folder below, with those above it, each of them durable before it is used.

        Raises ``FileFault`` if the library refuses a name, ``LibraryFault``.
        """
        folder = Folder(os.dup(self.fd), self.text)
        try:
            for part in parts_of(path):
                below = folder._make_one(part, path)
                os.close(folder.fd)
                folder = below
            return folder
        except BaseException:
            os.close(folder.fd)
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
            part = _stem(name) + b"." + secrets.token_hex(_ID_BYTES).encode() + b".part"
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

    def remove_leftovers(self, ours: Collection[bytes]) -> None:
        """Parts that an attempt left behind, of the files in ``ours`` and of no others.

        A file of the card may look like one of our parts; it is in ``ours`` then.
        """
        stems = {_stem(name) for name in ours}
        with self.faults():
            for entry in os.listdir(self.fd):
                name = os.fsencode(entry)
                match = _PART.match(name)
                if match is None or match[1] not in stems or name in ours:
                    continue
                if stat.S_ISREG(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode):
                    self.remove(name)

    def publish(self, part: bytes, name: bytes, path: bytes) -> None:
        """Give the part its final name. Raises ``FileFault`` if the name is taken or refused."""
        try:
            kernel.rename_without_replacing(part, name, dir_fd=self.fd)
        except FileExistsError as error:
            raise self.taken(name, path) from error
        except kernel.CannotPublish as error:
            raise LibraryFault(
                f"the file system at {self.text} can neither rename without replacing nor make "
                "hard links, so nothing can be put there without risk to what is there"
            ) from error
        except OSError as error:
            if error.errno in _NAME_REFUSED:
                raise self._refused(name, path, error) from error
            raise self.fault(error) from error

    def put_aside(self, part: bytes) -> bytes:
        """A copy that turned out bad gets a name that says so, and keeps the sectors it is on."""
        aside = part.removesuffix(b".part") + b".bad"
        with self.faults():
            kernel.rename_without_replacing(part, aside, dir_fd=self.fd)
        return aside

    def taken(self, name: bytes, path: bytes) -> FileFault:
        return FileFault(
            path, f"{self.name_text(name)} exists and is not the same; it was left as it is"
        )

    def _refused(self, name: bytes, path: bytes, error: OSError) -> FileFault:
        return FileFault(
            path, f"the library refuses the name {self.name_text(name)}: {reason(error)}"
        )

    def check_room(
        self,
        sizes: Collection[int],
        largest: tuple[bytes, int],
        *,
        file_system_of: Callable[[int], str] = kernel.file_system_of,
    ) -> None:
        """Whether files of these sizes can be written here. Raises ``LibraryFault``."""
        with self.faults():
            there = os.fstatvfs(self.fd)
            writable = os.access(".", os.W_OK | os.X_OK, dir_fd=self.fd)
        if there.f_flag & os.ST_RDONLY:
            raise LibraryFault(f"the library {self.text} is on a file system that is read-only")
        if not writable:
            raise LibraryFault(f"the library {self.text} may not be written to by this user")
        path, largest_bytes = largest
        if largest_bytes > FAT_FILE_BYTES and file_system_of(self.fd) in _FAT:
            raise LibraryFault(
                f"the library {self.text} is on a FAT file system, which can't hold files of "
                f"4 GiB or more, and {shown(path)} has {largest_bytes} bytes"
            )
        block = there.f_frsize
        needed = sum(-(-size // block) * block for size in sizes)
        reserve = min(RESERVE_BYTES, there.f_blocks * block // RESERVE_SHARE)
        free = there.f_bavail * block
        if needed + reserve > free:
            raise LibraryFault(
                f"not enough room in the library {self.text}: {len(sizes)} files need "
                f"{_amount(needed)} and {_amount(reserve)} are kept free, "
                f"but only {_amount(free)} are there"
            )


def _stem(name: bytes) -> bytes:
    """What the names of a file's parts begin with; another file's never begin so."""
    if len(name) + _SUFFIX_BYTES <= MAX_NAME_BYTES:
        return name
    mark = b"~" + xxhash.xxh64(name).hexdigest().encode()
    head = name[: MAX_NAME_BYTES - _SUFFIX_BYTES - len(mark)]
    # Not through the middle of a character: some file systems take only whole ones.
    whole = head.decode("utf-8", "ignore").encode()
    return (whole if head.startswith(whole) else head) + mark


def _amount(size_bytes: int) -> str:
    """``12.3 GB``, as disks are sold."""
    if size_bytes < 1_000_000:
        return f"{size_bytes} bytes"
    if size_bytes < 1_000_000_000:
        return f"{size_bytes / 1e6:.1f} MB"
    return f"{size_bytes / 1e9:.1f} GB"
