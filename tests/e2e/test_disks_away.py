"""Destinations on disks that come and go, as shuttle drives do: real ones, that are mounted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cards import files_below, gopro_card
from tests.e2e.server import Server
from tests.filesystems import EXT4, MEBIBYTE, Mount, formatted


class Cart:
    """A server whose second destination is the shuttle drive, and cards that go into it.

    at: where the drive is mounted. backup: the destination.
    """

    def __init__(self, place: Path, at: Path, below: str) -> None:
        self.at = at
        self.backup = at / below
        self.server = Server(place, RUSHES_DESTINATIONS=str(self.backup))
        self.footage: dict[str, dict[str, bytes]] = {}

    def ingest(self, card: str) -> Any:
        self.footage[card] = gopro_card(self.server.cards / card)
        sd_path = str(self.server.cards / card)
        return self.server.ended(self.server.trigger("sd_ingest", sd_path=sd_path))

    def retry(self, execution: Any) -> Any:
        uuid = execution["execution_id"]
        assert self.server.request("POST", f"/api/pipeline/{uuid}/retry").status_code == 202
        return self.server.ended(uuid)

    def verdict_again(self, execution: Any) -> Any:
        path = f"/api/pipeline/{execution['execution_id']}/rerun"
        answer = self.server.request("POST", path, json={"from_step": "verdict"})
        assert answer.status_code == 201, answer.text
        return self.server.ended(answer.json()["execution_id"])

    def has(self, place: Path, card: str) -> bool:
        return set(self.footage[card].values()) <= set(files_below(place).values())

    def assert_safe(self, execution: Any, card: str) -> None:
        assert execution["status"] == "completed", execution
        assert execution["execution_data"]["safe_to_format"] is True
        assert self.has(self.server.library, card)
        assert self.has(self.backup, card)


@pytest.fixture
def drives(tmp_path: Path) -> Iterator[list[Mount]]:
    with ExitStack() as stack:
        places = (tmp_path / "images" / name for name in ("one", "other"))
        yield [stack.enter_context(formatted(EXT4, each, 32 * MEBIBYTE)) for each in places]


@pytest.fixture(
    params=[("media", ""), ("media", "Rushes"), ("server/media", "Rushes")],
    ids=["the drive itself", "a folder on it", "in the home"],
)
def cart(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cart]:
    """What is in the home is made at the start, where it may be."""
    media, below = request.param
    cart = Cart(tmp_path / "server", tmp_path / media / "SHUTTLE", below)
    yield cart
    if cart.server.process is not None and cart.server.process.poll() is None:
        cart.server.kill()


@pytest.mark.parametrize("mount_point", ["stays", "goes"])
def test_a_drive_that_is_away_gets_nothing_and_nothing_is_safe_there(
    cart: Cart, drives: list[Mount], mount_point: str
) -> None:
    one, other = drives
    one.put_in(cart.at)
    cart.server.start()
    first = cart.ingest("A001")
    cart.assert_safe(first, "A001")

    one.take_out()
    if mount_point == "goes":
        cart.at.rmdir()
    failed = cart.ingest("A002")
    for _ in range(2):
        assert failed["status"] == "failed"
        assert f"{cart.at} is not mounted" in failed["error_message"]
        assert not cart.has(cart.server.library, "A002")
        assert mount_point == "goes" or not list(cart.at.iterdir())
        assert mount_point == "stays" or not cart.at.exists()
        data = cart.verdict_again(first)["execution_data"]
        assert data["safe_to_format"] is False
        assert f"{cart.at} is not mounted" in data["verdict"]["reasons"][0]
        # The next server knows it as well, and makes nothing as it starts.
        assert cart.server.stop() == 0
        cart.server.start()
        failed = cart.retry(failed)

    one.put_in(cart.at)
    cart.assert_safe(cart.retry(failed), "A002")
    assert cart.verdict_again(first)["execution_data"]["safe_to_format"] is True

    one.take_out()
    other.put_in(cart.at)
    cart.assert_safe(cart.ingest("A003"), "A003")
    assert not cart.has(cart.backup, "A001")
    assert cart.verdict_again(first)["execution_data"]["safe_to_format"] is False


def test_a_folder_that_a_disk_was_mounted_on_is_used_once_somebody_says_so(
    cart: Cart, drives: list[Mount]
) -> None:
    one, _ = drives
    one.put_in(cart.at)
    cart.server.start()
    cart.assert_safe(cart.ingest("A001"), "A001")

    one.take_out()
    failed = cart.ingest("A002")
    assert f"an empty file rushes-destination in {cart.backup}" in failed["error_message"]
    cart.backup.mkdir(exist_ok=True)
    (cart.backup / "rushes-destination").touch()
    cart.assert_safe(cart.retry(failed), "A002")
    assert not (cart.backup / "rushes-destination").exists()
    cart.assert_safe(cart.ingest("A003"), "A003")

    # A disk is on it again: the word was for what was there then.
    one.put_in(cart.at)
    cart.assert_safe(cart.ingest("A004"), "A004")
    one.take_out()
    assert cart.ingest("A005")["status"] == "failed"
