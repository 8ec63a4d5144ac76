"""The benchmark of the copy runs, in small; nothing is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import offload


def test_every_way_brings_a_card_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offload.compare(tmp_path, "tiny", 3, 70_000, 1)
    printed = capsys.readouterr().out
    for way in ("rushes", "bare", "cp", "rushes, 2 destinations"):
        assert f"  {way} " in printed
    assert list((tmp_path / "tiny").iterdir()) == []


def test_a_copy_that_is_not_what_was_read_ends_the_bare_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offload.shoot(tmp_path / "A001", 1, 10)
    monkeypatch.setattr(offload, "hashed", lambda path: "another")
    with pytest.raises(SystemExit, match="is not what was read"):
        offload.bare(tmp_path / "A001", tmp_path / "to")
