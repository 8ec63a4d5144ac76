"""What the settings say, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.settings import Settings
from adapters.steps import hashes
from domain.errors import InvalidInput
from domain.footage import HASH_NAMES


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


@pytest.mark.parametrize("text", ["backup", "/a:b", "/a:/b:/c:/d", "/caf\udce9"])
def test_what_can_be_no_further_destinations_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="RUSHES_DESTINATIONS"):
        Settings.load({}, {"RUSHES_DESTINATIONS": text})


def test_further_destinations_are_folders_each_counted_once() -> None:
    assert Settings.load({}, {}).destinations == ()
    settings = Settings.load({}, {"RUSHES_DESTINATIONS": "/b:/a/x/..:/b/:/a"})
    assert settings.destinations == ("/b", "/a")


@pytest.mark.parametrize("text", ["sha256", "md5,md5", "XXH64", ",", "xxh64 md5"])
def test_hashes_that_no_manifest_knows_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="RUSHES_HASHES"):
        Settings.load({}, {"RUSHES_HASHES": text})


def test_hashes_are_xxh64_or_what_is_asked_for_in_that_order() -> None:
    assert Settings.load({}, {}).hashes == ("xxh64",)
    assert Settings.load({}, {"RUSHES_HASHES": "c4, md5"}).hashes == ("c4", "md5")
    assert set(HASH_NAMES) == set(hashes.HASH_NAMES)


def test_a_second_reading_of_the_card_is_a_yes_or_a_no() -> None:
    assert not Settings.load({}, {}).verify_source
    assert Settings.load({}, {"RUSHES_VERIFY_SOURCE": "true"}).verify_source
    with pytest.raises(InvalidInput, match="RUSHES_VERIFY_SOURCE"):
        Settings.load({}, {"RUSHES_VERIFY_SOURCE": "maybe"})
