"""The benchmark of the copy runs, in small; nothing is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import disks, offload


def test_every_way_brings_a_card_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What this machine remembers is other tests' as well.
    monkeypatch.setattr(offload, "forget", lambda *folders: None)
    measured = offload.compare(tmp_path, "small", 3, 70_000, 1)
    printed = capsys.readouterr().out
    for way in (offload.RUSHES, offload.TO_VERDICT, offload.CP, offload.CP_HASHED):
        assert f"  {way} " in printed
    (target,) = measured.targets
    assert offload.CP in target
    assert measured.peaks["small"] > 0
    assert list((tmp_path / "small").iterdir()) == []


def test_a_target_that_is_not_reached_is_said_to_be_missed() -> None:
    measured = offload.Measured()
    measured.target("speed", 0.99, 1.0, "", least=True)
    measured.target("speed", 1.0, 1.0, "", least=True)
    measured.target("memory", 201.0, 200.0, " MB", least=False)
    measured.target("memory", 200.0, 200.0, " MB", least=False)
    assert [each.split()[0] for each in measured.targets] == ["MISSED", "reached"] * 2


def test_what_can_t_be_measured_here_is_said_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "THROTTLE", tmp_path / "no such control group")
    measured = offload.hold_back(tmp_path, 1)
    assert len(measured.targets) == 2
    for target in measured.targets:
        assert "not measured" in target
