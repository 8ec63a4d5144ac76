"""One process holds a database: a lock file beside it says who, and where to reach it.

The lock is the operating system's (``flock``): it goes with the process, however
that ends, and is never left behind. What stands in the file is only for those
who find it locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from domain.errors import Unavailable

PATIENCE_S = 0.25
"""How long a lock is asked for again: who only looks (``holder``) has it for an instant."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has the database.

    address: of its HTTP side, as a URL; empty until it listens.
    key: what commands of the same user show, to be taken for that user; who can read it
        is. Empty where the file system can't keep it from others.
    certificate: that the server shows at its address, as PEM; empty if it speaks no TLS.
    """

    pid: int
    address: str = ""
    grpc_address: str = ""
    key: str = ""
    certificate: str = ""

    @property
    def is_service(self) -> bool:
        """Whether it is a ``rushes serve``; a command's own server has no gRPC side."""
        return bool(self.grpc_address)


class DatabaseLock:
    """The lock of one database file, held between ``acquire`` and ``release``."""

    def __init__(self, database: Path) -> None:
        # By what it is, not by how it is called: two names of one file are one database.
        self.path = Path(f"{os.path.realpath(database)}.lock")
        self._database = database
        self._fd: int | None = None
        self._private = False

    def acquire(self) -> None:
        """Raises ``Unavailable``, naming the holder, if another process has the database."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"the lock file {self.path} can't be opened: {error}") from error
        if not _locked(fd):
            os.close(fd)
            holder = self._read()
            who = "another process" if holder is None else f"the server with pid {holder.pid}"
            where = f" at {holder.address}" if holder and holder.address else ""
            if where and holder and not holder.is_service:
                where += ", which a command has started that found none: end that command"
            raise Unavailable(f"the database {self._database} is held by {who}{where}")
        self._fd = fd
        self._private = _for_us_alone(fd)
        self._write(Holder(os.getpid()))

    def announce(
        self, address: str, grpc_address: str, key: str = "", certificate: str = ""
    ) -> None:
        """From now on the holder can be reached there."""
        key = key if self._private else ""
        self._write(Holder(os.getpid(), address, grpc_address, key, certificate))

    def release(self) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    def holder(self) -> Holder | None:
        """Who holds the database now, if anybody does."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return self._read() or Holder(0)
        finally:
            os.close(fd)
        return None

    def _read(self) -> Holder | None:
        try:
            stored = json.loads(self.path.read_bytes())
            return Holder(
                pid=int(stored["pid"]),
                address=str(stored["address"]),
                grpc_address=str(stored["grpc_address"]),
                key=str(stored["key"]),
                certificate=str(stored.get("certificate", "")),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None  # just taken, and not written yet

    def _write(self, holder: Holder) -> None:
        assert self._fd is not None
        # In one write, so that a reader sees the old text, nothing, or the new text.
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(asdict(holder)).encode(), 0)


def _for_us_alone(fd: int) -> bool:
    """Make it so, also of a file that was there; whether it is."""
    with contextlib.suppress(OSError):  # another user's, or a file system without modes
        os.fchmod(fd, 0o600)
    found = os.fstat(fd)
    return found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def _locked(fd: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        else:
            return True
