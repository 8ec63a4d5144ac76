"""Where cards are, which card is there, and how anything on one is opened.

A path on a card is chosen by whoever wrote the card, and the card's own path by
whoever sent the message, so neither is ever handed to the system as a whole:
each component is opened by itself below the one before it, and none may be a
link. Only the card roots, which the operator configured, may be reached by links.

Nothing here writes. Files and folders are opened without touching their access
times where the system lets us.

Whether the card at a path is still the one that was scanned
    A volume tells by its own name. Where there is none to be had, the scan leaves a
    fingerprint: the root folder's device and inode, and a hash of what lies in it at
    the first level (names, kinds, sizes, times). It is the same card if the inode is
    the same, and

    - what lies in it is the same, whatever the device: when a card is mounted again
      its device may have another number; or
    - the device is the same as well, and the folder is no root of a mount or of a
      subvolume: that is one and the same folder, whatever has come into it since.

    With the root of a mount the numbers prove nothing (every FAT root has the same
    inode, and the next card in a slot gets the last one's device), so only what lies
    in it counts. The price is that a card that was changed in between isn't
    recognised, and has to be scanned anew. Left out of the hash is what operating
    systems leave on cards by themselves; and of times whole quarter hours, which is
    how those of a FAT card move with the time zone. A change time would be of no use:
    mounting may set it.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import xxhash

from adapters.steps import kernel
from adapters.steps.faults import (
    CardFault,
    CardLost,
    CardNotThere,
    FileFault,
    NotACard,
    reason,
)
from adapters.steps.hashes import Hashes
from adapters.system import mount_id_of, name_of_device
from domain.errors import InvalidPath
from domain.footage import Card, is_junk, shown

MAX_SHOWN_PATH = 300
"""Characters of a refused path that an error repeats; who sent it may have sent a megabyte."""

MAX_PATH_BYTES = 4_096
"""What the system takes in one call; a longer path can be nobody's mount."""

BUFFER_BYTES = 4 * 1024 * 1024

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PASSING = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A FIFO that was swapped in must not hang us: O_NONBLOCK, then fstat says what it is.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_ATIME = getattr(os, "O_NOATIME", 0)

_GONE = frozenset(
    {errno.ENODEV, errno.ESTALE, errno.ESHUTDOWN, getattr(errno, "ENOMEDIUM", errno.ENODEV)}
)
"""Nothing of the card answers any more. ENXIO may also be a socket, and EIO one bad sector."""

_VOLUME = "volume:"

_QUARTER_HOUR_S = 900

_SECTOR_BYTES = 512
"""What sysfs counts a block device's size in, whatever its real sectors."""


class FsCards:
    """The cards that file systems show. Port: ``Cards``.

    roots: the folders strictly below which a card may be.
    disks and devices: where the system tells about its volumes.
    """

    def __init__(
        self,
        roots: Sequence[str],
        *,
        disks: str = "/dev/disk",
        devices: str = "/sys/dev/block",
    ) -> None:
        for root in roots:
            if not os.path.isabs(root):
                raise ValueError(f"card root {root!r} is not absolute")
        self._roots = tuple(os.path.normpath(root) for root in roots)
        self._disks = disks
        self._devices = devices

    def has_volume(self, serial: str) -> bool:
        return os.path.lexists(os.path.join(self._disks, "by-uuid", serial))

    def locate(self, sd_path: object, *, anywhere: bool = False) -> str:
        if anywhere:
            return self._named(sd_path)
        root, parts = self._place(sd_path)
        reached = root
        for part in parts:
            reached = os.path.join(reached, part)
            try:
                if stat.S_ISLNK(os.lstat(reached).st_mode):
                    raise self._refusal(sd_path, f"{_path_text(reached)} is a symbolic link")
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise self._refusal(sd_path, "it is too long") from None
                break  # nothing there (yet), or not to be seen: opening it will tell
        return os.path.join(root, *parts)

    def open(self, sd_path: object) -> OpenCard:
        """Find the card that is there now. Raises ``InvalidPath`` and ``CardFault``.

        ``sd_path`` is what ``locate`` answered when the card was announced, so no
        component of it is a link unless somebody has put one there since. The card
        roots aren't asked again: a card that was taken in under other settings, or
        that a person named, is still that card.
        """
        path = self._checked(sd_path)
        text = _path_text(path)
        try:
            top = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fd = open_folder(top, "/".join(_components(path)).encode())
            finally:
                kernel.close(top)
        except (FileNotFoundError, NotADirectoryError) as error:
            obstacle = _obstacle(path)
            if obstacle is not None:
                raise NotACard(obstacle) from error
            raise CardNotThere(f"card not there: nothing is at {text}") from error
        except OSError as error:
            if error.errno in _GONE:
                raise CardNotThere(f"card not there: {text}: {reason(error)}") from error
            raise CardFault(f"the card at {text} can't be opened: {reason(error)}") from error
        try:
            card = identify(fd, path, disks=self._disks, devices=self._devices)
            return OpenCard(self, fd, path, card)
        except OSError as error:
            kernel.close(fd)
            raise CardFault(f"the card at {text} doesn't answer: {reason(error)}") from error

    def find(self, sd_path: object, identity: str) -> OpenCard:
        """The card that was scanned: where it was, or wherever its volume is mounted now.

        What has no name of its own is looked for at its path only, and what is there is
        answered. Raises as ``open`` does.
        """
        try:
            there = self.open(sd_path)
        except CardFault:
            if is_volume(identity) and (card := self._mounted(sd_path, identity)) is not None:
                return card
            raise
        if there.card.identity == identity or not is_volume(identity):
            return there
        try:
            card = self._mounted(sd_path, identity)
            if card is None and not there.card.volume:  # a mount point without its mount
                raise CardNotThere(
                    f"card not there: no card is mounted at {there.path_text}, nor this one "
                    "anywhere else"
                )
        except BaseException:
            kernel.close(there.fd)
            raise
        if card is None:
            return there
        kernel.close(there.fd)
        return card

    def _mounted(self, sd_path: object, identity: str) -> OpenCard | None:
        """The volume among the mounts where cards may be, or beside which it was."""
        import psutil  # takes long to import, and is asked only for a card that isn't where it was

        places = [*map(os.path.realpath, self._roots), os.path.dirname(self._checked(sd_path))]
        for mount in psutil.disk_partitions(all=True):
            path = mount.mountpoint
            if not any(path != place and _is_below(path, place) for place in places):
                continue
            try:
                card = self.open(path)
            except (CardFault, InvalidPath):
                continue
            if card.card.identity == identity:
                return card
            kernel.close(card.fd)
        return None

    def _named(self, sd_path: object) -> str:
        """Where a person's own word leads to: links are followed, and the roots aren't asked."""

        def refusal(why: str) -> InvalidPath:
            return _refused(sd_path, why)

        real = _plausible(os.path.realpath(_plausible(sd_path, refusal)), refusal)
        if not _components(real):
            raise refusal("it is the root of the file system")
        try:
            if stat.S_ISLNK(os.lstat(real).st_mode):
                raise refusal("it is a symbolic link that leads to itself")
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise refusal("it is too long") from None
        return real

    def _checked(self, sd_path: object) -> str:
        """Raises ``InvalidPath`` for what could be no path of a card, wherever the roots are."""
        return _plausible(sd_path, lambda why: self._refusal(sd_path, why))

    def _place(self, sd_path: object) -> tuple[str, list[str]]:
        """The root as it really is, and the components below it."""
        path = self._checked(sd_path)
        parts = _components(path)
        # The deepest root wins: one root may lie below another, even as a link.
        deepest: tuple[int, str] | None = None
        for root in self._roots:
            real = os.path.realpath(root)
            for spelling in (root, real):
                above = _components(spelling)
                if parts == above:
                    raise self._refusal(sd_path, "it is a card root itself")
                if parts[: len(above)] == above and (deepest is None or len(above) > deepest[0]):
                    deepest = (len(above), real)
        if deepest is None:
            raise self._refusal(sd_path, "it is not below a card root")
        return deepest[1], parts[deepest[0] :]

    def _refusal(self, sd_path: object, why: str) -> InvalidPath:
        roots = ", ".join(map(_path_text, self._roots)) or "none"
        return _refused(
            sd_path,
            f"{why}; cards are looked for strictly below the card roots ({roots}), which the "
            "setting RUSHES_CARD_ROOTS names",
        )


class OpenCard:
    """A card that was found, bound to its mount: what comes to its path later isn't it."""

    def __init__(self, cards: FsCards, fd: int, path: str, card: Card) -> None:
        self._cards = cards
        self.fd = fd
        self.path = path
        self.card = card
        self.device = os.fstat(fd).st_dev
        self._mount_id = mount_id_of(b"", fd)
        self._folders: dict[int, tuple[bytes, int]] = {}

    def __enter__(self) -> OpenCard:
        return self

    def __exit__(self, *of_the_block: object) -> None:
        for _, folder in self._folders.values():
            kernel.close(folder)
        kernel.close(self.fd)

    @property
    def path_text(self) -> str:
        return _path_text(self.path)

    def fingerprint(self) -> str:
        """What tells it from another card at its path; the module says how. Raises ``OSError``."""
        root = os.fstat(self.fd)
        return f"{root.st_dev:x}:{root.st_ino:x}:{_listing_hash(self.fd)}"

    def is_as(self, fingerprint: str) -> bool:
        """Whether this is the card that once had this fingerprint. Raises ``OSError``."""
        device, inode, listing = fingerprint.split(":")
        now_device, now_inode, now_listing = self.fingerprint().split(":")
        if inode != now_inode:
            return False
        return listing == now_listing or (
            device == now_device
            and not is_mounted(self.fd)
            and self.device == _device_above(self.fd)
        )

    def has(self, found: os.stat_result, name: bytes, folder: int) -> bool | None:
        """Whether what ``name`` is in an open folder is part of this card, or mounted there.

        found: its status. name: empty for ``folder`` itself. None where the system doesn't
        tell: another device number may be a mount's, and a subvolume's of this very card.
        """
        if found.st_dev == self.device:
            return True
        mount_id = mount_id_of(name, folder)
        return None if mount_id is None else mount_id == self._mount_id

    def open_file(self, path: bytes) -> int:
        """A regular file of this card, for reading. Raises ``FileFault`` and ``CardLost``."""
        return self.open_with_status(path)[0]

    def open_with_status(self, path: bytes) -> tuple[int, os.stat_result]:
        """As ``open_file``; with what it was when it was opened."""
        above, _, name = path.rpartition(b"/")
        try:
            fd = open_file_in(self._folder(above), name)
            try:
                found = os.fstat(fd)
                if stat.S_ISREG(found.st_mode) and self.has(found, b"", fd):
                    return fd, found
                raise FileFault(
                    path, "is no regular file of this card any more; a new run scans it again"
                )
            except BaseException:
                kernel.close(fd)
                raise
        except OSError as error:
            raise self.fault(error, path) from error

    def _folder(self, path: bytes) -> int:
        """It stays open for the thread that asked, as its last one: files mostly come in order.

        Raises ``OSError``.
        """
        thread = threading.get_ident()
        last = self._folders.get(thread)
        if last is not None and last[0] == path:
            return last[1]
        fd = open_folder(self.fd, path)
        self._folders[thread] = (path, fd)
        if last is not None:
            kernel.close(last[1])
        return fd

    def hashes_of(
        self, path: bytes, names: Iterable[str], check: Callable[[], None]
    ) -> Mapping[str, str]:
        """What its bytes are, by the hashes' names. Raises ``FileFault`` and ``CardLost``."""
        hashes = Hashes(set(names))
        buffer = bytearray(BUFFER_BYTES)
        fd = self.open_file(path)
        try:
            kernel.forget_cached(fd)
            kernel.read_sequentially(fd)
            while count := os.readv(fd, [buffer]):
                check()
                hashes.update(memoryview(buffer)[:count])
        except OSError as error:
            raise self.fault(error, path) from error
        finally:
            kernel.close(fd)
        return hashes.values()

    def fault(self, error: OSError, path: bytes) -> CardLost | FileFault:
        """What a failed call on the card means: this file, or the whole card."""
        if error.errno in _GONE or not self._still_there():
            return CardLost(f"{self.path_text}: {reason(error)} at {shown(path)}")
        return FileFault(path, f"can't be read from the card: {reason(error)}", error.errno)

    def _still_there(self) -> bool:
        try:
            with self._cards.open(self.path) as now:
                return now.card.identity == self.card.identity and os.path.samestat(
                    os.fstat(now.fd), os.fstat(self.fd)
                )
        except (OSError, CardFault, InvalidPath):
            return False


def identify(
    fd: int, path: str, *, disks: str = "/dev/disk", devices: str = "/sys/dev/block"
) -> Card:
    """Which card is open as ``fd``.

    By its volume, if it is the root of one that the system has names for; otherwise it has
    only its path, as a folder of some disk has that is mounted a second time there.
    """
    folder_name = shown(os.fsencode(os.path.basename(path)))
    device = os.fstat(fd).st_dev
    if device != _device_above(fd):
        serial = name_of_device(os.path.join(disks, "by-uuid"), device)
        if serial is not None:
            label = name_of_device(os.path.join(disks, "by-label"), device)
            size_bytes = _device_bytes(devices, device)
            if size_bytes is None:
                room = os.fstatvfs(fd)
                size_bytes = room.f_blocks * room.f_frsize
            return Card(
                identity=f"{volume_identity(shown(serial))}{size_bytes}",
                label=shown(label) if label else folder_name,
                volume=True,
            )
    return Card(identity=f"path:{shown(os.fsencode(path))}", label=folder_name, volume=False)


def is_mounted(fd: int) -> bool:
    """Whether an open folder is the root of a mount.

    Where the system doesn't tell of mounts, the device numbers do, and a subvolume passes for
    one. Raises ``OSError``.
    """
    mount_id, above = mount_id_of(b"", fd), mount_id_of(b"..", fd)
    if mount_id is None or above is None:
        return os.fstat(fd).st_dev != _device_above(fd)
    return mount_id != above


def _device_above(fd: int) -> int:
    return os.stat("..", dir_fd=fd).st_dev


def _listing_hash(fd: int) -> str:
    entries = []
    with os.scandir(fd) as found:
        for entry in found:
            name = os.fsencode(entry.name)
            if is_junk(name):
                continue
            status = entry.stat(follow_symlinks=False)
            seconds = status.st_mtime_ns // 1_000_000_000 % _QUARTER_HOUR_S
            entries.append((name, stat.S_IFMT(status.st_mode), status.st_size, seconds))
    return xxhash.xxh64(repr(sorted(entries)).encode()).hexdigest()


def volume_identity(serial: str) -> str:
    """How the identities of volumes with this serial number begin; their size follows."""
    return f"{_VOLUME}{serial}:"


def is_volume(identity: str) -> bool:
    """Whether ``identify`` made this of a volume's own name."""
    return identity.startswith(_VOLUME)


def parts_of(path: bytes) -> list[bytes]:
    """The components of a relative path; nothing that leads anywhere else gets through."""
    parts = path.split(b"/") if path else []
    if any(part in (b"", b".", b"..") or b"\0" in part for part in parts):
        raise ValueError(f"{shown(path)} is no plain relative path")
    return parts


def open_folder(start: int, path: bytes) -> int:
    """A folder below an open one, component by component, following no link."""
    parts = parts_of(path)
    fd = os.dup(start)
    try:
        for number, part in enumerate(parts, start=1):
            below = _open(part, _FOLDER if number == len(parts) else _PASSING, fd)
            kernel.close(fd)
            fd = below
        return fd
    except BaseException:
        kernel.close(fd)
        raise


def open_file(start: int, path: bytes) -> int:
    """A file below an open folder; whether it is a regular one is for ``fstat`` to say."""
    *folders, name = parts_of(path)
    parent = open_folder(start, b"/".join(folders))
    try:
        return open_file_in(parent, name)
    finally:
        kernel.close(parent)


def open_file_in(folder: int, name: bytes) -> int:
    """As ``open_file``, of an open folder's own entry."""
    return _open(name, _FILE, folder)


def _open(name: bytes, flags: int, folder: int) -> int:
    try:
        return os.open(name, flags | _NO_ATIME, dir_fd=folder)
    except PermissionError:
        if not _NO_ATIME:
            raise
        return os.open(name, flags, dir_fd=folder)  # only owners may leave access times alone


def _plausible(sd_path: object, refusal: Callable[[str], InvalidPath]) -> str:
    """It, if a system could take it for an absolute path. Raises what ``refusal`` makes."""
    if not isinstance(sd_path, str):
        raise refusal("it is not text")
    if not sd_path:
        raise refusal("it is empty")
    if "\0" in sd_path:
        raise refusal("it contains a NUL")
    try:
        length = len(sd_path.encode())
    except UnicodeEncodeError:
        raise refusal("it can't be encoded") from None
    if length >= MAX_PATH_BYTES:
        raise refusal("it is too long")
    if not sd_path.startswith("/"):
        raise refusal("it is not absolute")
    if ".." in _components(sd_path):
        raise refusal("it contains ..")
    return sd_path


def _refused(sd_path: object, why: str) -> InvalidPath:
    which = _path_text(sd_path) if isinstance(sd_path, str) else type(sd_path).__name__
    return InvalidPath(f"sd_path {which!r} is refused: {why}", field="sd_path")


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _is_below(path: str, place: str) -> bool:
    above = _components(place)
    return _components(path)[: len(above)] == above


def _obstacle(path: str) -> str | None:
    """The first component that is there and is no folder."""
    reached = ""
    for part in _components(path):
        reached += f"/{part}"
        try:
            mode = os.lstat(reached).st_mode
        except OSError:
            return None
        if stat.S_ISLNK(mode):
            return f"{_path_text(reached)} is a symbolic link, not a card"
        if not stat.S_ISDIR(mode):
            return f"{_path_text(reached)} is a file, not a card"
    return None


def _path_text(path: str) -> str:
    text = shown(path.encode("utf-8", "surrogatepass"))
    return text if len(text) <= MAX_SHOWN_PATH else text[:MAX_SHOWN_PATH] + "..."


def _device_bytes(devices: str, device: int) -> int | None:
    try:
        with open(f"{devices}/{os.major(device)}:{os.minor(device)}/size", "rb") as size:
            return int(size.read(32)) * _SECTOR_BYTES
    except (OSError, ValueError):
        return None
