"""Films by their boxes: whole ones, broken ones, and numbers that were chosen to hurt."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adapters.steps import boxes
from adapters.steps.boxes import CUT_OFF, NO_INDEX, flaw_of
from tests.cards import box, film

FTYP, MDAT, MOOV = box(b"ftyp", b"isom\0\0\0\0"), box(b"mdat", b"x" * 50), box(b"moov", b"index")


def flaw(path: Path, data: bytes, size_bytes: int | None = None) -> str | None:
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return flaw_of(fd, len(data) if size_bytes is None else size_bytes)
    finally:
        os.close(fd)


def long_box(kind: bytes, length: int, data: bytes = b"") -> bytes:
    return (1).to_bytes(4) + kind + length.to_bytes(8) + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"footage",
        b"\0" * 8,
        b"\0" * 100,
        b"\xff" * 100,
        FTYP + MDAT,
        FTYP + MDAT[:-1],
        FTYP + (0).to_bytes(4) + b"mdat" + b"x" * 50,
        FTYP + (0).to_bytes(4) + b"mdat" + MOOV,
        FTYP + (7).to_bytes(4) + b"mdat" + MOOV,
        FTYP + long_box(b"mdat", 2**64 - 1) + MOOV,
        FTYP + long_box(b"mdat", 15)[:8],
        FTYP + long_box(b"mdat", 7) + MOOV,
        FTYP + long_box(b"mdat", 0) + MOOV,
        FTYP + (2**31).to_bytes(4) + b"mdat" + b"x" * 50,
        FTYP + MDAT + b"moo",
        FTYP + MDAT + b"\0\0\0\x08moo",
    ],
)
def test_without_an_index_it_can_t_be_played(tmp_path: Path, data: bytes) -> None:
    assert flaw(tmp_path / "clip.mp4", data) == NO_INDEX


@pytest.mark.parametrize(
    "data",
    [
        FTYP + MDAT + MOOV,
        FTYP + MOOV + MDAT,
        MDAT + MOOV,
        MOOV,
        FTYP + long_box(b"mdat", 16 + 50, b"x" * 50) + MOOV,
        FTYP + box(b"free", b"") + MDAT + MOOV + b"a maker's own trailer",
        FTYP + MDAT + (0).to_bytes(4) + b"moov" + b"to the end",
        FTYP + box(b"uuid", b"\0" * 16) * 20 + MDAT + MOOV,
    ],
)
def test_with_its_index_it_can(tmp_path: Path, data: bytes) -> None:
    assert flaw(tmp_path / "clip.mp4", data) is None


@pytest.mark.parametrize("lost", [1, 4, 5])
def test_an_index_that_is_cut_off_is_none(tmp_path: Path, lost: int) -> None:
    assert flaw(tmp_path / "clip.mp4", (FTYP + MDAT + MOOV)[:-lost]) == CUT_OFF


def test_a_hundred_gigabytes_are_stepped_over(tmp_path: Path) -> None:
    path = tmp_path / "clip.mov"
    size_bytes = 100 * 2**30
    with path.open("wb") as file:
        file.write(FTYP + long_box(b"mdat", size_bytes - len(FTYP) - len(MOOV)))
        file.truncate(size_bytes - len(MOOV))
        file.seek(0, os.SEEK_END)
        file.write(MOOV)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert flaw_of(fd, size_bytes) is None
        assert flaw_of(fd, size_bytes - len(MOOV)) == NO_INDEX
    finally:
        os.close(fd)


def test_of_endlessly_many_boxes_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    real = os.pread

    def counted(fd: int, count: int, at: int) -> bytes:
        reads.append(count)
        return real(fd, count, at)

    monkeypatch.setattr(os, "pread", counted)
    assert flaw(tmp_path / "clip.mp4", box(b"free", b"") * 100_000) is None
    assert len(reads) == boxes.MAX_BOXES
    assert set(reads) == {16}


def test_the_films_of_our_cards_are_whole(tmp_path: Path) -> None:
    data = film("A001", 400)
    assert len(data) == 400
    assert flaw(tmp_path / "clip.mp4", data) is None
