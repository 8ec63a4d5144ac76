"""A card that fails on demand: a FUSE file system that shows a folder, and lies as it is told.

It runs in a process of its own, so that a test can hold its reads, kill it, and look at
what is really there in the folder behind it.

A ``Fault`` says what happens at which call on which files. Whatever is held is told of, so a
test can wait for it, do what it wants in that very moment, and let it go on: nothing is timed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DEADLINE_S = 20.0

FAIL, HOLD, TURN, APPEND, SPOIL = "fail", "hold", "turn", "append", "spoil"


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    call: ``read``, ``write``, ``open``, ``getattr``, ``readdir``, ``fsync``, ``link``,
        ``create`` and so on, or ``*`` for all of them.
    path: files whose path on the card begins so, as text that ``os.fsencode`` takes.
    do: fail, with ``number``; hold, until it is let go; turn the bits of the byte ``at`` in
        what is read; append a byte to the file; spoil the byte ``at`` for good.
    at: only where this byte is read or written, or is there to be synced.
    first: from which opening of the file on, counted from 0 when the faults are set; of a
        ``getattr``, once it was opened so many times.
    times: how often; 0 is always.
    after: how many such calls go well before.
    """

    call: str
    path: str
    do: str
    at: int = 0
    number: int = errno.EIO
    first: int = 0
    times: int = 0
    after: int = 0


class FaultyCard:
    """The test's side: the mount at ``folder`` of what is in ``behind``."""

    def __init__(self, behind: Path, folder: Path) -> None:
        self.behind = behind
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._heard: list[dict[str, Any]] = []
        self.log = behind.with_name(f"{behind.name}.log")
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faulty_card", str(behind), str(folder)],
                cwd=Path(__file__).parent.parent,
                # libfuse 2, which the driver of FAT brings along. It knows no flags at a rename,
                # and says so; mfusepy with libfuse 3 would drop them, and overwrite.
                env={**os.environ, "FUSE_LIBRARY_NAME": "fuse"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,  # what select doesn't see, nobody may have read
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + DEADLINE_S
        while not os.path.ismount(folder):
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"nothing was mounted: {self.log.read_text()}"
            time.sleep(0.002)

    def set(self, *faults: Fault) -> None:
        """These from now on, and none of those before; what is held goes on."""
        self._tell({"faults": [asdict(fault) for fault in faults]})
        self._hear("set")

    def wait_until_held(self) -> str:
        """The path of a call that is being held now."""
        held: str = self._hear("held")
        return held

    def counts(self) -> Counter[str]:
        """How often each ``call path`` came, since the last time."""
        self._tell({"counts": True})
        return Counter(self._hear("counts"))

    def pull(self) -> None:
        """As a hand would: what drives it is gone in the middle of it, and then the mount is."""
        self._process.kill()
        self._end()

    def take_out(self) -> None:
        if self._process.poll() is None:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._end()

    def _end(self) -> None:
        self._process.wait(DEADLINE_S)
        subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True, check=False)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    def _hear(self, wanted: str) -> Any:
        """What it says of this; what it says of anything else waits to be asked for."""
        assert self._process.stdout is not None
        while not (heard := [each for each in self._heard if wanted in each]):
            ready, _, _ = select.select([self._process.stdout], [], [], DEADLINE_S)
            assert ready, f"no word of {wanted!r} came; the card's log: {self.log.read_text()}"
            line = self._process.stdout.readline()
            assert line, f"the card is gone: {self.log.read_text()}"
            self._heard.append(json.loads(line))
        self._heard.remove(heard[0])
        return heard[0][wanted]


@contextlib.contextmanager
def faulty_card(behind: Path, folder: Path) -> Iterator[FaultyCard]:
    """``behind`` need not be there yet, and may be filled at any time."""
    # Not above: the card's side needs none of it, and starts in half the time without.
    from tests.filesystems import require

    require("fusermount3", "fusefat", fuse=True)
    behind.mkdir(parents=True, exist_ok=True)
    card = FaultyCard(behind, folder)
    try:
        yield card
    finally:
        card.take_out()


def serve(behind: str, folder: str) -> None:
    """The card's side. It ends with its mount, or when the test's process does."""
    import mfusepy

    telling = threading.Lock()

    def tell(message: dict[str, Any]) -> None:
        with telling:
            print(json.dumps(message), flush=True)

    class Card(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def __init__(self) -> None:
            self.faults: list[Fault] = []
            self.met: Counter[Fault] = Counter()
            self.used: Counter[Fault] = Counter()
            self.openings: Counter[str] = Counter()
            self.of_handle: dict[int, int] = {}
            self.counts: Counter[str] = Counter()
            self.let_go = threading.Event()
            self.mutex = threading.Lock()

        def there(self, path: str) -> bytes:
            return os.path.join(os.fsencode(behind), os.fsencode(path.lstrip("/")))

        def set(self, faults: list[Fault]) -> None:
            with self.mutex:
                self.faults = faults
                self.met.clear()
                self.used.clear()
                self.openings.clear()
                self.let_go.set()
                self.let_go = threading.Event()

        def matching(
            self, call: str, path: str, start: int = 0, end: int = 1 << 62, opening: int = 0
        ) -> list[Fault]:
            path = path.lstrip("/")
            with self.mutex:
                self.counts[f"{call} {path}"] += 1
                meant = [
                    fault
                    for fault in self.faults
                    if fault.call in (call, "*")
                    and path.startswith(fault.path)
                    and start <= fault.at < end
                    and opening >= fault.first
                ]
                self.met.update(meant)
                found = [
                    fault
                    for fault in meant
                    if self.met[fault] > fault.after
                    and (fault.times == 0 or self.used[fault] < fault.times)
                ]
                self.used.update(found)
                let_go = self.let_go
            for fault in found:
                if fault.do == FAIL:
                    raise OSError(fault.number, os.strerror(fault.number))
                if fault.do == HOLD:
                    tell({"held": path})
                    let_go.wait()
                if fault.do == APPEND:
                    with open(self.there(path), "ab") as file:
                        file.write(b"+")
                if fault.do == SPOIL:
                    with open(self.there(path), "r+b") as file:
                        file.seek(fault.at)
                        byte = file.read(1)
                        file.seek(fault.at)
                        file.write(bytes([byte[0] ^ 0xFF]))
            return found

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            self.matching("getattr", path, opening=self.openings[path])
            found = os.lstat(self.there(path))
            names = ("mode", "nlink", "uid", "gid", "size", "blocks")
            times = {f"st_{t}time": getattr(found, f"st_{t}time_ns") for t in "amc"}
            return {f"st_{n}": getattr(found, f"st_{n}") for n in names} | times

        def readdir(self, path: str, fh: int) -> list[str]:
            self.matching("readdir", path)
            return [".", "..", *map(os.fsdecode, os.listdir(self.there(path)))]

        def opened(self, path: str, fd: int) -> int:
            with self.mutex:
                self.of_handle[fd] = self.openings[path]
                self.openings[path] += 1
            return fd

        def open(self, path: str, flags: int) -> int:
            self.matching("open", path)
            return self.opened(path, os.open(self.there(path), flags & ~os.O_NOATIME))

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            self.matching("create", path)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            return self.opened(path, os.open(self.there(path), flags, mode))

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            end = offset + size
            found = self.matching("read", path, offset, end, self.of_handle.get(fh, 0))
            data = bytearray(os.pread(fh, size, offset))
            for fault in found:
                if fault.do == TURN and fault.at - offset < len(data):
                    data[fault.at - offset] ^= 0xFF
            return bytes(data)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            self.matching("write", path, offset, offset + len(data))
            return os.pwrite(fh, data, offset)

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            self.matching("fsync", path, end=os.fstat(fh).st_size)
            os.fsync(fh)
            return 0

        def flush(self, path: str, fh: int) -> int:
            # Nothing to be done; but with it a close asks us, as it asks the drivers of real
            # file systems, and so fails once we are gone.
            self.matching("flush", path)
            return 0

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

        def link(self, target: str, source: str) -> int:
            self.matching("link", target)
            os.link(self.there(source), self.there(target), follow_symlinks=False)
            return 0

        def rename(self, old: str, new: str) -> int:
            self.matching("rename", old)
            os.rename(self.there(old), self.there(new))
            return 0

        def unlink(self, path: str) -> int:
            self.matching("unlink", path)
            os.unlink(self.there(path))
            return 0

        def mkdir(self, path: str, mode: int) -> int:
            self.matching("mkdir", path)
            os.mkdir(self.there(path), mode)
            return 0

        def rmdir(self, path: str) -> int:
            self.matching("rmdir", path)
            os.rmdir(self.there(path))
            return 0

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            self.matching("truncate", path)
            os.truncate(self.there(path), length)
            return 0

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
            self.matching("utimens", path)
            os.utime(self.there(path), ns=times)
            return 0

        def chmod(self, path: str, mode: int) -> int:
            self.matching("chmod", path)
            os.chmod(self.there(path), mode)
            return 0

        def statfs(self, path: str) -> dict[str, int]:
            self.matching("statfs", path)
            found = os.statvfs(behind)
            sizes = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail")
            names = [f"f_{name}" for name in (*sizes, "namemax")]
            return {name: getattr(found, name) for name in names}

        def readlink(self, path: str) -> str:
            self.matching("readlink", path)
            return os.fsdecode(os.readlink(self.there(path)))

    card = Card()

    def obey() -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "faults" in message:
                card.set([Fault(**fault) for fault in message["faults"]])
                tell({"set": len(message["faults"])})
            else:
                with card.mutex:
                    counts, card.counts = card.counts, Counter()
                tell({"counts": counts})
        # The test is over, or dead.
        subprocess.run(["umount", "--lazy", folder], capture_output=True, check=False)
        os._exit(0)

    threading.Thread(target=obey, daemon=True).start()
    # No cache of names and attributes: what the test changes behind it is seen at once.
    mfusepy.FUSE(
        card,
        folder,
        foreground=True,
        allow_other=True,
        attr_timeout=0,
        entry_timeout=0,
        big_writes=True,
        fsname="faulty-card",
        subtype="faulty",
    )


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
