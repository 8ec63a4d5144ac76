from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters.detector.mounting import Mounts, mounting


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    (tmp_path / "cards").mkdir()
    with mounting(tmp_path / "cards") as below:
        yield below
