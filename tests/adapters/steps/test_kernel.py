"""Whether a file's bytes come from the device, asked of the real system."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from adapters.steps import kernel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems can't tell")


@pytest.fixture(params=["cachestat", "mincore"])
def told_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which call says what is in memory; older kernels have only the second."""
    if request.param == "mincore":
        monkeypatch.setattr(kernel, "_cachestat", None)
    return str(request.param)


def written(folder: Path, size_bytes: int) -> int:
    place = folder / "copy"
    place.write_bytes(os.urandom(size_bytes))
    return os.open(place, os.O_RDONLY)


@pytest.mark.parametrize(
    ("code", "is_fault"),
    [(errno.EPERM, False), (errno.EINVAL, False), (errno.EOVERFLOW, False), (errno.EIO, True)],
)
def test_a_file_that_can_t_have_its_time_is_no_worse_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_fault: bool
) -> None:
    def refuse(*what: object, **how: object) -> None:
        raise OSError(code, os.strerror(code))

    fd = written(tmp_path, 1)
    try:
        kernel.set_time(fd, 10**18)
        assert os.fstat(fd).st_mtime_ns == 10**18
        monkeypatch.setattr(os, "utime", refuse)
        with pytest.raises(OSError) if is_fault else nullcontext():
            kernel.set_time(fd, 0)
    finally:
        os.close(fd)


@pytest.mark.usefixtures("told_by")
@pytest.mark.parametrize("size_bytes", [1, 4_096, 5_000_001])
def test_what_was_just_written_is_in_memory_until_it_is_dropped(
    tmp_path: Path, size_bytes: int
) -> None:
    fd = written(tmp_path, size_bytes)
    if kernel.file_system_of(fd) == "tmpfs":
        pytest.skip("here memory is the device")
    assert not kernel.is_cold(fd)
    kernel.sync_file(fd)
    kernel.forget_cached(fd)
    assert kernel.is_cold(fd)
    os.pread(fd, 1, size_bytes - 1)
    assert not kernel.is_cold(fd)
    os.close(fd)


@pytest.mark.usefixtures("told_by")
def test_an_empty_file_has_nothing_that_could_be_in_memory(tmp_path: Path) -> None:
    fd = written(tmp_path, 0)
    assert kernel.is_cold(fd)
    os.close(fd)


def test_a_file_longer_than_one_look_is_looked_at_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_cachestat", None)
    monkeypatch.setattr(kernel, "_LOOK_BYTES", 1024 * 1024)
    fd = written(tmp_path, 3 * 1024 * 1024 + 1)
    if kernel.file_system_of(fd) == "tmpfs":
        pytest.skip("here memory is the device")
    kernel.sync_file(fd)
    kernel.forget_cached(fd)
    assert kernel.is_cold(fd)
    os.pread(fd, 1, 3 * 1024 * 1024)
    assert not kernel.is_cold(fd)
    os.close(fd)


@pytest.mark.usefixtures("told_by")
def test_where_memory_is_the_device_nothing_is_cold() -> None:
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        pytest.skip("no tmpfs to be had")
    fd = os.open(shared, os.O_TMPFILE | os.O_RDWR)
    os.write(fd, b"footage")
    kernel.sync_file(fd)
    kernel.forget_cached(fd)
    assert not kernel.is_cold(fd)
    os.close(fd)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "fuseblk", "9p"])
def test_where_somebody_else_s_memory_may_answer_nothing_is_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    fd = written(tmp_path, 10)
    kernel.sync_file(fd)
    kernel.forget_cached(fd)
    monkeypatch.setattr(kernel, "file_system_of", lambda fd: kind)
    assert not kernel.is_cold(fd)
    os.close(fd)


def test_where_no_call_tells_nothing_is_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = written(tmp_path, 10)
    kernel.sync_file(fd)
    kernel.forget_cached(fd)
    for call in ("_cachestat", "_mincore"):
        monkeypatch.setattr(kernel, call, None)
    assert not kernel.is_cold(fd)
    os.close(fd)


def test_where_one_call_is_refused_the_other_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    fd = written(tmp_path, 10)
    monkeypatch.setattr(kernel, "_cachestat", refuse)
    assert not kernel.is_cold(fd)
    if kernel.file_system_of(fd) != "tmpfs":
        kernel.sync_file(fd)
        kernel.forget_cached(fd)
        assert kernel.is_cold(fd)
    os.close(fd)
