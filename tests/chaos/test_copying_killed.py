from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.copying import CopyChaos


@pytest.mark.parametrize("seed", [1, 3])
def test_a_copy_to_two_destinations_killed_again_and_again_is_whole_in_the_end(
    tmp_path: Path, seed: int
) -> None:
    report = CopyChaos(tmp_path, seed=seed, kills=4).run()
    assert not report.wrong, str(report)
    assert report.kills >= 4
    assert report.in_the_copy
    assert report.jobs
