"""What the detector's settings may be."""

from __future__ import annotations

import pytest

from adapters.settings import Settings
from domain.errors import InvalidInput


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("server", "localhost:8000"),
        ("server", "localhost"),
        ("server", "ftp://localhost"),
        ("server", "http://"),
        ("server", "http://localhost:port"),
        ("server", "http://localhost:65536"),
        ("server", "http://localhost:0"),
        ("server", "http://[::1"),
        ("server", "http://localhost/elsewhere"),
        ("server", "http://localhost/ws?since=1"),
        ("watch", "maybe"),
        ("watch_roots", "here"),
        ("watch_roots", "/media:here"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(setting: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=f"RUSHES_{setting.upper()}") as refused:
        Settings.load({}, {f"RUSHES_{setting.upper()}": value})
    assert refused.value.field == f"RUSHES_{setting.upper()}"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("", ""),
        ("http://localhost:8000", "ws://localhost:8000/ws"),
        ("http://localhost:8000/", "ws://localhost:8000/ws"),
        ("https://rushes.example", "wss://rushes.example/ws"),
        ("ws://[::1]:8000/ws", "ws://[::1]:8000/ws"),
    ],
)
def test_a_server_is_named_by_its_address(url: str, address: str) -> None:
    assert Settings.load({"server": url}, {}).server == address


@pytest.mark.parametrize(("said", "is_meant"), [("yes", True), ("TRUE", True), ("0", False)])
def test_watching_is_on_or_off(said: str, is_meant: bool) -> None:
    assert Settings.load({"watch": said}, {}).watch is is_meant
    assert not Settings.load({}, {}).watch
