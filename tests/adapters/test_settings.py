"""What the settings say, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.settings import Settings
from domain.errors import InvalidInput


@pytest.mark.parametrize("text", ["-1", "-0.1", "nan", "inf", "36501", "ten", "1e9", "90 days"])
def test_what_is_no_number_of_days_is_refused_with_where_it_came_from(text: str) -> None:
    for flags, environment, source in (
        ({"keep_days": text}, {}, "--keep-days"),
        ({}, {"RUSHES_KEEP_DAYS": text}, "RUSHES_KEEP_DAYS"),
    ):
        with pytest.raises(InvalidInput, match=source) as refused:
            Settings.load(flags, environment)
        assert refused.value.field == "RUSHES_KEEP_DAYS"
        assert repr(text) in refused.value.message


def test_days_may_be_any_part_of_one_and_none_keeps_everything() -> None:
    assert Settings.load({}, {}).keep_days == 90
    assert Settings.load({}, {"RUSHES_KEEP_DAYS": "0"}).keep_days == 0
    assert Settings.load({"keep_days": "0.5"}, {"RUSHES_KEEP_DAYS": "7"}).keep_days == 0.5


def test_the_settings_file_says_how_long_executions_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "rushes.toml"
    file.write_text("keep_days = 30\n")
    assert Settings.load({}, {}, file).keep_days == 30
    file.write_text("keep_days = -30\n")
    with pytest.raises(InvalidInput, match="keep_days in the settings file"):
        Settings.load({}, {}, file)
