"""The short form of ``make chaos``: a real server, really killed."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.harness import Chaos


def test_a_server_killed_again_and_again_never_loses_its_place(tmp_path: Path) -> None:
    report = Chaos(tmp_path, seed=6, kills=5).run()
    assert not report.wrong, str(report)
    assert report.kills >= 5
    assert report.facts
