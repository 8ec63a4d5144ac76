"""The tests' own equipment: nothing of it may stay behind, and nothing be left out unseen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.filesystems import DEADLINE_S, EXFAT, EXT4, FAT32, require

KILLED = """
import os, signal, sys
from contextlib import ExitStack
from pathlib import Path
from tests.faulty_card import faulty_card
from tests.filesystems import EXFAT, EXT4, FAT32, mounted

place = Path(sys.argv[1])
with ExitStack() as stack:
    for kind in (EXFAT, EXT4, FAT32):
        stack.enter_context(mounted(kind, place / kind.name))
    stack.enter_context(faulty_card(place / "behind", place / "faulty"))
    for line in open("/proc/mounts", errors="replace"):  # others' have names of all sorts
        if str(place) in line:
            print(line)
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_test_leaves_nothing_mounted_and_no_loop_device(tmp_path: Path) -> None:
    require(*EXFAT.commands, *EXT4.commands, *FAT32.commands, fuse=True)
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert died.stdout.count(str(tmp_path)) == 4, "it wasn't killed with everything mounted"
    deadline = time.monotonic() + DEADLINE_S
    while left := left_of(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def left_of(place: Path) -> list[str]:
    mounts = Path("/proc/mounts").read_text(errors="replace").splitlines()
    loops = subprocess.run(["losetup", "--all"], capture_output=True, text=True, check=True)
    return [line for line in (*mounts, *loops.stdout.splitlines()) if str(place) in line]


@pytest.mark.parametrize(
    ("user", "command", "why"),
    [
        (1000, "sh", "only root may mount"),
        (0, "no-such-command", "not installed: no-such-command"),
    ],
)
def test_what_can_t_be_had_is_skipped_with_the_reason_or_fails_where_nothing_may_be_skipped(
    monkeypatch: pytest.MonkeyPatch, user: int, command: str, why: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.delenv("RUSHES_SKIP_NOTHING", raising=False)
    with pytest.raises(pytest.skip.Exception, match=why):
        require(command, fuse=False)
    monkeypatch.setenv("RUSHES_SKIP_NOTHING", "true")
    with pytest.raises(pytest.fail.Exception, match=f"{why}.*nothing may be skipped"):
        require(command, fuse=False)
