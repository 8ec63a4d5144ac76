"""Disks of a known speed: ext4 on a loop device, held back by the kernel's own throttle.

It needs root, a free loop device and the first version of the ``blkio`` control group,
whose root group also counts what the kernel writes back for others; the second version
can't do that for a whole machine. Reading and writing are held back apart from each other,
as in a disk that does both at its full speed at once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

THROTTLE = Path("/sys/fs/cgroup/blkio")

UNHURRIED = "0"
"""What takes a limit away again."""


def why_not() -> str:
    """Why there can be no such disk here; empty if there can."""
    if os.geteuid() != 0:
        return "only root may make loop devices and mount them"
    lacking = [each for each in ("losetup", "mkfs.ext4", "mount") if shutil.which(each) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if not _limit("read").exists():
        return f"there is no {_limit('read')}"
    if subprocess.run(["losetup", "--find"], capture_output=True, check=False).returncode != 0:
        return "there is no free loop device"
    return ""


@contextmanager
def throttled(folder: Path, size_bytes: int, bytes_per_s: int) -> Iterator[Path]:
    """A new disk, mounted at ``folder``, that reads and writes as fast as this, each."""
    folder.mkdir()
    image = folder.with_suffix(".img")
    with image.open("xb") as file:
        file.truncate(size_bytes)
    with ExitStack() as undoing:
        undoing.callback(image.unlink)
        # Nothing is left to be done in the background once it is mounted.
        at_once = "lazy_itable_init=0,lazy_journal_init=0"
        _run("mkfs.ext4", "-q", "-m", "0", "-E", at_once, str(image))
        device = _run("losetup", "--find", "--show", str(image))
        undoing.callback(_run, "losetup", "--detach", device)
        _run("mount", "-o", "noatime", device, str(folder))
        undoing.callback(_run, "umount", str(folder))
        status = os.stat(device).st_rdev
        number = f"{os.major(status)}:{os.minor(status)}"
        for way in ("read", "write"):
            undoing.callback(_limit(way).write_text, f"{number} {UNHURRIED}")
            _limit(way).write_text(f"{number} {bytes_per_s}")
        yield folder


def _limit(way: str) -> Path:
    return THROTTLE / f"blkio.throttle.{way}_bps_device"


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
