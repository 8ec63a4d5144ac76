"""Files with times that no row can keep: of the year 1601, as NTFS writes zero, or 2300."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from domain.footage import LAST_TIME_NS
from tests.adapters.steps.conftest import MTIME_NS
from tests.adapters.steps.finishing import Finishing
from tests.filesystems import FAT32, TMPFS, mounted

IN_1601 = -11_644_473_600 * 10**9
IN_2300 = 10_413_792_000 * 10**9


@pytest.fixture
def rig(tmp_path: Path) -> Finishing:
    return Finishing(tmp_path)


def fill(rig: Finishing) -> None:
    rig.put("a.jpg", b"one", IN_1601)
    rig.put("b.jpg", b"two", IN_2300)
    rig.put("c.jpg", b"three", MTIME_NS)
    rig.put(".DS_Store", b"junk", IN_2300)


def test_they_come_over_and_are_named(rig: Finishing) -> None:
    with mounted(TMPFS, rig.card):
        fill(rig)
        data = rig.taken_in()
        assert data["safe_to_format"], data["reasons"]
        assert data["copied_files"] == 3
        files = {file.path: file for file in rig.card_files.of(1)}
        assert files[b"a.jpg"].mtime_ns == -LAST_TIME_NS
        assert files[b"b.jpg"].mtime_ns == files[b".DS_Store"].mtime_ns == LAST_TIME_NS
        problem = "its time lies outside of 1677 to 2262; it is kept as the nearest"
        named = data["exceptions"]["named"]
        assert [(each["path"], each["problem"]) for each in named] == [
            ("a.jpg", problem),
            ("b.jpg", problem),
        ]
        assert rig.judge(data)["safe_to_format"]
        again = rig.taken_in(2)
        assert (again["copied_files"], again["known_files"]) == (0, 3)
        assert again["safe_to_format"]


def test_a_library_that_has_no_such_times_holds_them_all_the_same(rig: Finishing) -> None:
    with mounted(TMPFS, rig.card), mounted(FAT32, rig.library, 80_000_000):
        fill(rig)
        data = rig.taken_in()
        assert data["copied_files"] == 3
        assert data["safe_to_format"], data["reasons"]
        assert os.stat(rig.job / "c.jpg").st_mtime_ns // 10**9 == pytest.approx(
            MTIME_NS // 10**9, abs=86_400
        )
