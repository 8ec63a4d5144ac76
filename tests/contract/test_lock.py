"""The lock file's key is for the user alone whom the server runs for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.persistence.lock import DatabaseLock


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[DatabaseLock]:
    made = DatabaseLock(tmp_path / "r.db")
    yield made
    made.release()


@pytest.mark.parametrize("before", [None, 0o644, 0o666])
def test_nobody_else_can_read_it_also_where_it_was_there_before(
    lock: DatabaseLock, before: int | None
) -> None:
    if before is not None:
        lock.path.touch()
        lock.path.chmod(before)
    previous = os.umask(0)
    try:
        lock.acquire()
    finally:
        os.umask(previous)
    lock.announce("http://127.0.0.1:1", "", "the key")
    assert lock.path.stat().st_mode & 0o777 == 0o600
    found = lock.holder()
    assert found is not None
    assert found.key == "the key"


def test_no_key_is_written_where_it_is_not_for_us_alone(
    lock: DatabaseLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card reader's file system, which gives every file to whoever mounted it."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    lock.acquire()
    lock.announce("http://127.0.0.1:1", "", "the key")
    assert "the key" not in lock.path.read_text()
    found = lock.holder()
    assert found is not None
    assert found.address == "http://127.0.0.1:1"
