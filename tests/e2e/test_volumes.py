"""Cards that are file systems with serial numbers of their own, as the system tells of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from adapters.system import name_of_device
from tests.cards import SHOT_AT, contents, files_below
from tests.e2e.server import Message, Server, eventually
from tests.faulty_card import FAIL, Fault, faulty_card
from tests.filesystems import EXT4, MEBIBYTE, Mount, formatted, require

NAMES = [f"DCIM/100CANON/IMG_{number:04}.JPG" for number in range(1, 5)]
CARD_BYTES = 8 * MEBIBYTE

_NAMED = """
until mkdir -p /dev/disk/by-uuid /dev/disk/by-label &&
    ln -sf "$1" "/dev/disk/by-uuid/$2" && ln -sf "$1" "/dev/disk/by-label/$3"
do :; done 2> /dev/null  # another test may just take the folders away
echo
cat > /dev/null
for name in "by-uuid/$2" "by-label/$3"; do
    if [ "$(readlink "/dev/disk/$name")" = "$1" ]; then rm "/dev/disk/$name"; fi
done
rmdir /dev/disk/by-uuid /dev/disk/by-label /dev/disk 2> /dev/null
exit 0
"""
"""What udev does, where there is none; undone as soon as its input ends, whoever was killed."""


@contextmanager
def card(
    place: Path, folder: Path, serial: str, label: str = "", *, is_named: bool = True
) -> Iterator[Mount]:
    """A new one, formatted with this serial number and mounted at ``folder``.

    label: the beginning of the serial number, if none is given. The system has one place for
        each, and other tests may run at the same time.
    is_named: the system calls it so; otherwise another volume, or none yet.
    """
    require("mkfs.ext4", "losetup", fuse=False)
    format = ("mkfs.ext4", "-q", "-m", "0", "-U", serial, "-L", label or serial[:8], "{device}")
    with formatted(replace(EXT4, format=format), place, CARD_BYTES) as mount:
        mount.put_in(folder)
        shutil.rmtree(folder / "lost+found")
        with named(mount) if is_named else nullcontext():
            yield mount


@contextmanager
def named(mount: Mount) -> Iterator[None]:
    """While it is mounted, the system calls it by what its superblock says."""
    device = mount.device
    tags = [
        subprocess.run(
            ["blkid", "--probe", "--output", "value", "--match-tag", tag, device],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for tag in ("UUID", "LABEL")
    ]
    if os.path.exists("/run/udev/control"):
        number = os.stat(mount.folder).st_dev
        eventually(lambda: name_of_device("/dev/disk/by-uuid", number), bool)
        yield
        return
    with subprocess.Popen(
        ["sh", "-c", _NAMED, "udev", device, *tags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as udev:
        assert udev.stdout is not None
        assert udev.stdout.readline() == b"\n"
        yield


def shoot(folder: Path, said: str, names: list[str] = NAMES, size: int = 5_000) -> dict[str, bytes]:
    """Recordings whose names, sizes and times don't tell what was recorded."""
    footage = {name: contents(f"{said} {name}", size) for name in names}
    for name, data in footage.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        os.utime(folder / name, (SHOT_AT, SHOT_AT))
    return footage


def taken_in(server: Server, folder: Path) -> dict[str, Any]:
    """What an insertion of the card at ``folder`` came to."""
    return ended(server, server.announce(folder, str(uuid4()))["data"]["execution_id"])


def ended(server: Server, execution_id: str) -> dict[str, Any]:
    execution = server.ended(execution_id)
    assert execution["status"] == "completed", execution["error_message"]
    data: dict[str, Any] = execution["execution_data"]
    return data


def told(data: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """The generation, and how many files are new, known, and to be compared."""
    intake = data["intake"]
    new, known, to_hash = (intake[each]["files"] for each in ("new", "known", "to_hash"))
    return data["card"]["generation"], new, known, to_hash


def in_library(server: Server, data: Mapping[str, Any]) -> dict[str, bytes]:
    return files_below(server.library / data["job_name"])


@pytest.fixture
def serial() -> str:
    return str(uuid4())


def test_a_format_that_keeps_the_serial_number_begins_a_new_generation(
    server: Server, tmp_path: Path, serial: str
) -> None:
    folder = server.cards / "formatted"
    names = [f"DCIM/100CANON/IMG_{number:04}.JPG" for number in range(11, 15)]  # no other card's
    with card(tmp_path / "1", folder, serial):
        monday = shoot(folder, "monday", names)
        first = taken_in(server, folder)
        assert first["card"]["identity"] == f"volume:{serial}:{CARD_BYTES}"
        assert first["card"]["label"] == serial[:8]
        assert told(first) == (1, 4, 0, 0)
    with card(tmp_path / "2", folder, serial):
        tuesday = shoot(folder, "tuesday", names)  # sizes and times are monday's as well
        second = taken_in(server, folder)
        assert second["card"]["identity"] == first["card"]["identity"]
        assert told(second) == (2, 0, 0, 4)
        assert "filled anew (generation 2)" in second["card_note"]
        assert (second["copied_files"], second["known_files"]) == (4, 0)
        assert second["safe_to_format"]
        tuesday |= shoot(folder, "tuesday", ["DCIM/100CANON/IMG_0005.JPG"])
        third = taken_in(server, folder)
        assert told(third) == (2, 1, 4, 0)
        assert third["safe_to_format"]
    with card(tmp_path / "3", folder, serial):
        wednesday = shoot(folder, "wednesday", ["DCIM/101CANON/IMG_0006.JPG"])
        fourth = taken_in(server, folder)
        assert told(fourth) == (3, 1, 0, 0)
        assert fourth["safe_to_format"]
    assert in_library(server, first) == monday
    assert in_library(server, second) | in_library(server, third) == tuesday
    assert in_library(server, fourth) == wednesday


def test_a_card_is_the_same_one_wherever_and_however_it_is_mounted(
    server: Server, tmp_path: Path, serial: str
) -> None:
    with card(tmp_path, server.cards / "reader", serial) as mount:
        footage = shoot(mount.folder, "once")
        first = taken_in(server, mount.folder)
        mount.take_out()
        protected = ("mount", "-t", "ext4", "-o", "ro", "{device}", "{folder}")
        mount.kind = replace(mount.kind, mount=protected)
        mount.put_in(server.cards / "another" / "reader")
        with named(mount):
            second = taken_in(server, mount.folder)
        assert second["card"]["identity"] == first["card"]["identity"]
        assert told(second) == (1, 0, 4, 0)
        assert (second["copied_files"], second["known_files"]) == (0, 4)
        assert second["safe_to_format"]
    assert in_library(server, first) == footage
    assert not (server.library / second["job_name"]).exists()


def test_the_next_card_in_a_slot_is_no_duplicate_of_the_one_that_was_pulled(
    start_server: Callable[..., Server], tmp_path: Path, serial: str
) -> None:
    server = start_server()
    folder = server.cards / "reader"

    def announced(serial: str) -> Message:
        volume = {"uuid": serial, "label": "A001"}
        return server.announce(folder, str(uuid4()), volume=volume)["data"]

    assert server.request("POST", "/api/engine/pause").status_code == 200
    with card(tmp_path / "1", folder, serial, is_named=False) as first:
        with named(first):
            footage = [shoot(folder, "first")]
            pulled = announced(serial)
            assert announced(serial)["duplicate"] == "card"
        first.take_out()
        with card(tmp_path / "2", folder, next_serial := str(uuid4())):
            footage.append(shoot(folder, "second"))
            put_in = announced(next_serial)
            assert put_in["duplicate"] is None
            assert announced(next_serial)["execution_id"] == put_in["execution_id"]
            # Whoever doesn't say which card means the one that is there.
            anybody = server.announce(folder, str(uuid4()))["data"]
            assert (anybody["duplicate"], anybody["execution_id"]) == (
                "card",
                put_in["execution_id"],
            )
            assert server.request("POST", "/api/engine/resume").status_code == 200
            done = ended(server, put_in["execution_id"])
            failed = server.ended(pulled["execution_id"])
            assert "another card is at" in failed["error_message"]
        first.put_in(folder)
        with named(first):
            retried = f"/api/pipeline/{pulled['execution_id']}/retry"
            assert server.request("POST", retried).status_code == 202
            taken = ended(server, pulled["execution_id"])
    assert [in_library(server, each) for each in (taken, done)] == footage


def test_two_cards_with_one_label_at_once_are_two_cards(
    server: Server, tmp_path: Path, serial: str
) -> None:
    folders = [server.cards / "left" / "A001", server.cards / "right" / "A001"]
    with (
        card(tmp_path / "left", folders[0], serial, "TWINS"),
        card(tmp_path / "right", folders[1], str(uuid4()), "TWINS"),
    ):
        footage = [shoot(folder, folder.parent.name) for folder in folders]
        with server.client("detector") as detector:
            under_way = [
                detector.announce(str(folder), str(uuid4()))["data"]["execution_id"]
                for folder in folders
            ]
        both = [ended(server, each) for each in under_way]
    assert len({each["card"]["identity"] for each in both}) == 2
    assert [each["copied_files"] for each in both] == [4, 4]
    assert [in_library(server, each) for each in both] == footage
    assert all(each["safe_to_format"] for each in both)


def test_a_copied_card_in_a_second_reader_is_read_before_anything_is_known(
    server: Server, tmp_path: Path, serial: str
) -> None:
    """Both have one serial number, and the system gives that name to one of them only."""
    with card(tmp_path / "1", server.cards / "original", serial) as original:
        shoot(original.folder, "original")
        first = taken_in(server, original.folder)
        with card(tmp_path / "2", server.cards / "clone", serial, is_named=False) as clone:
            shoot(clone.folder, "original", NAMES[:2])
            own = shoot(clone.folder, "clone", NAMES[2:])
            second = taken_in(server, clone.folder)
            assert second["card"]["identity"] == f"path:{clone.folder}"
            assert told(second) == (1, 0, 0, 4)
            assert (second["copied_files"], second["known_files"]) == (2, 2)
            assert second["safe_to_format"]
        assert told(taken_in(server, original.folder)) == (1, 0, 4, 0)
    assert first["safe_to_format"]
    assert in_library(server, second) == own


def test_a_verdict_that_is_asked_for_after_a_format_is_no_word_on_the_new_footage(
    start_server: Callable[..., Server], tmp_path: Path, serial: str
) -> None:
    server = start_server()
    folder = server.cards / "formatted"
    with card(tmp_path / "1", folder, serial):
        shoot(folder, "monday")
        first = server.ended(server.announce(folder, "monday")["data"]["execution_id"])
        assert first["execution_data"]["safe_to_format"]
        assert judged_again(server, first)["safe_to_format"]
        # The camera was short of room.
        (folder / NAMES[0]).unlink()
        assert judged_again(server, first)["safe_to_format"]
    with card(tmp_path / "2", folder, serial):
        tuesday = shoot(folder, "tuesday")
        judged = judged_again(server, first)
        assert not judged["safe_to_format"]
        assert judged["verdict"]["words"] == (
            f"NOT safe to format: the card at {folder} was filled anew since it was scanned: a "
            "recording on it has the name, size and time of a known one, but other bytes; a new "
            "run scans what is there"
        )
        second = taken_in(server, folder)
        assert second["safe_to_format"]
        assert in_library(server, second) == tuesday


def judged_again(server: Server, execution: Mapping[str, Any]) -> dict[str, Any]:
    again = server.request(
        "POST", f"/api/pipeline/{execution['uuid']}/rerun", json={"from_step": "verdict"}
    )
    assert again.status_code == 201, again.text
    return ended(server, again.json()["execution_id"])


def test_a_retry_after_a_format_takes_nothing_on_the_new_card_for_copied(
    start_server: Callable[..., Server], tmp_path: Path, serial: str
) -> None:
    with faulty_card(tmp_path / "disk", tmp_path / "mounted") as disk:
        server = start_server(RUSHES_LIBRARY=str(disk.folder / "library"))
        folder = server.cards / "formatted"
        with card(tmp_path / "1", folder, serial):
            monday = shoot(folder, "monday", size=1_200_000)
            disk.set(Fault("write", "library/", FAIL, at=1_000_000, after=2))
            failed = server.ended(server.announce(folder, "monday")["data"]["execution_id"])
            assert failed["status"] == "failed"
            disk.set()
            arrived = files_below(disk.folder / "library")
            assert 0 < len(set(arrived.values()) & set(monday.values())) < 4
        with card(tmp_path / "2", folder, serial):
            tuesday = shoot(folder, "tuesday", size=1_200_000)
            retry = f"/api/pipeline/{failed['execution_id']}/retry"
            assert server.request("POST", retry).status_code == 202
            refused = server.ended(failed["execution_id"])
            assert refused["status"] == "failed"
            assert "was filled anew since it was scanned" in refused["error_message"]
            assert not set(files_below(disk.folder / "library").values()) & set(tuesday.values())
            taken = taken_in(server, folder)
            assert taken["safe_to_format"], taken["verdict"]
            assert files_below(disk.folder / "library" / taken["job_name"]) == tuesday
