from __future__ import annotations

from pathlib import Path

from tests.chaos.copying import CopyChaos


def test_a_copy_to_two_destinations_killed_again_and_again_is_whole_in_the_end(
    tmp_path: Path,
) -> None:
    report = CopyChaos(tmp_path, seed=4, kills=20).run()
    assert not report.wrong, str(report)
    assert report.kills == 20
    assert report.in_the_copy
    assert report.jobs
