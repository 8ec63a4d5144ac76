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


@pytest.mark.parametrize("text", ["{reel}", "/footage/{date}", "{date}/../{card}", "{clip}", " "])
def test_a_layout_that_could_not_hold_a_card_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="RUSHES_LAYOUT: ") as refused:
        Settings.load({}, {"RUSHES_LAYOUT": text})
    assert refused.value.field == "RUSHES_LAYOUT"


@pytest.mark.parametrize("text", ["footage", "./footage", "/footage/\udcff"])
def test_a_library_that_could_not_be_stored_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="RUSHES_LIBRARY"):
        Settings.load({}, {"RUSHES_LIBRARY": text})


def test_the_layout_is_a_folder_a_job_or_what_is_asked_for() -> None:
    assert Settings.load({}, {}).layout == "{date}_{card}"
    assert Settings.load({}, {"RUSHES_LAYOUT": "{date}/{clip}"}).layout == "{date}/{clip}"


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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RUSHES_HOST", "example.com"),
        ("RUSHES_HOST", "1.2.3"),
        ("RUSHES_HOST", "127.0.0.1:80"),
        ("RUSHES_HOSTS", "*"),
        ("RUSHES_HOSTS", "*.studio.lan"),
        ("RUSHES_HOSTS", "http://rushes.lan"),
        ("RUSHES_HOSTS", "rushes.lan:8000"),
        ("RUSHES_HOSTS", "rushes.lan/x"),
        ("RUSHES_ORIGINS", "*"),
        ("RUSHES_TLS_CERTIFICATE", "server.pem"),
        ("RUSHES_TLS_CA", "ca.pem"),
        ("RUSHES_RATE", "-1"),
        ("RUSHES_RATE", "1.5"),
        ("RUSHES_CONNECTIONS", "0"),
        ("RUSHES_CONNECTIONS", "many"),
        ("RUSHES_INSECURE", "perhaps"),
    ],
)
def test_what_can_t_be_listened_with_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(InvalidInput, match=name) as refused:
        Settings.load({}, {name: text})
    assert refused.value.field == name


def test_a_certificate_and_its_key_go_together() -> None:
    alone = {"RUSHES_TLS_CERTIFICATE": "/server.pem"}
    for environment, missing in (
        (alone, "RUSHES_TLS_KEY"),
        ({"RUSHES_TLS_KEY": "/server.key"}, "RUSHES_TLS_CERTIFICATE"),
        ({"RUSHES_TLS_CLIENT_CA": "/ca.pem"}, "RUSHES_TLS_CERTIFICATE"),
    ):
        with pytest.raises(InvalidInput, match=missing):
            Settings.load({}, environment)
    assert Settings.load({}, alone | {"RUSHES_TLS_KEY": "/server.key"}).tls_certificate


@pytest.mark.parametrize(
    ("text", "host", "beyond", "near"),
    [
        ("", "127.0.0.1", False, "127.0.0.1"),
        ("localhost", "127.0.0.1", False, "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2", False, "127.0.0.2"),
        ("::1", "::1", False, "::1"),
        ("0.0.0.0", "0.0.0.0", True, "127.0.0.1"),
        ("0:0:0:0:0:0:0:0", "::", True, "::1"),
        ("192.168.1.5", "192.168.1.5", True, "192.168.1.5"),
    ],
)
def test_who_can_reach_an_address(text: str, host: str, beyond: bool, near: str) -> None:
    settings = Settings.load({}, {"RUSHES_HOST": text})
    assert (settings.host, settings.beyond_loopback, settings.near_host) == (host, beyond, near)


def test_further_names_of_a_server_are_compared_as_dns_does() -> None:
    environment = {"RUSHES_HOSTS": "Rushes.Studio.LAN, cart-1,[fd00::5]"}
    assert Settings.load({}, environment).hosts == ("rushes.studio.lan", "cart-1", "fd00::5")
