"""Cards and libraries on the file systems that they are on, and on one that fails on demand.

What must hold whatever happens is in ``account``: everything in the library is whole and in
the ledger, and what isn't there was named.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from adapters.steps import kernel
from adapters.steps.cards import FsCards
from adapters.steps.faults import CardLost, CardNotThere, FilesMissing, LibraryFault, OffloadFault
from domain.footage import FileKind, shown
from tests.adapters.steps.conftest import MTIME_NS, Rig, snapshot
from tests.cards import contents, files_below, gopro_card
from tests.faulty_card import APPEND, FAIL, HOLD, SPOIL, TURN, Fault, FaultyCard, faulty_card
from tests.filesystems import (
    ALL,
    EXFAT,
    EXT4,
    FAT32,
    NTFS_IGNORING_CASE,
    TMPFS,
    FileSystem,
    Mount,
    formatted,
    mounted,
)

GIBIBYTE = 1024**3

BIG = "DCIM/100GOPRO/GX010001.MP4"
"""A file of several buffers, so that a fault may come in its middle."""

BIG_BYTES = 13_000_000

SMALL = "DCIM/100GOPRO/GX010002.MP4"

PART = f"2026-11-22_A001/{BIG}."
"""How the big file's part begins, in the library; nobody else's does."""


def fill(folder: Path) -> dict[str, bytes]:
    """A card's worth of footage; what is to arrive."""
    footage = gopro_card(folder)
    # What a driver shows beside what we wrote is no part of any card.
    shutil.rmtree(folder / "lost+found", ignore_errors=True)
    return footage


def fill_big(folder: Path) -> dict[str, bytes]:
    footage = {BIG: contents("big", BIG_BYTES), SMALL: contents("small", 30_000)}
    for path, data in footage.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        os.utime(place, ns=(MTIME_NS, MTIME_NS))
    return footage


def fill_only_big(folder: Path) -> dict[str, bytes]:
    """So that nothing else is under way at that moment."""
    footage = fill_big(folder)
    (folder / SMALL).unlink()
    del footage[SMALL]
    return footage


def account(rig: Rig, on_card: dict[str, bytes], fault: OffloadFault | None = None) -> None:
    """The library's files are the ledger's, each whole; what is missing, the fault names."""
    arrived = {path: data for path, data in rig.arrived().items() if not path.endswith(b".bad")}
    assert not [path for path in arrived if path.endswith(b".part")], "a part was left"
    recorded = {copy.path: copy for copy in rig.ledger.copies}
    fold = bytes.lower  # of the file systems here, one doesn't keep upper and lower case
    assert {fold(path) for path in arrived} == {fold(path) for path in recorded}
    for copy in recorded.values():
        data = next(data for path, data in arrived.items() if fold(path) == fold(copy.path))
        assert data == on_card[os.fsdecode(copy.file.path)], f"{copy.path!r} isn't the card's"
    here = {os.fsdecode(copy.file.path) for copy in recorded.values()}
    missing = [path for path in on_card if path not in here]
    if fault is None:
        assert not missing
    elif isinstance(fault, FilesMissing):
        for path in missing:
            assert shown(os.fsencode(path)) in str(fault)


# -- cards ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_a_card_of_every_file_system_comes_over_whole_and_stays_as_it_is(
    rig: Rig, kind: FileSystem
) -> None:
    with mounted(kind, rig.card) as card:
        footage = fill(card.folder)
        if kind is NTFS_IGNORING_CASE:
            footage = {path.lower(): data for path, data in footage.items()}
        before = untouched(card.folder)
        output = rig.ingest()
        assert output["copied_files"] == len(footage)
        assert output["left_out"]["junk"] == 1
        account(rig, footage)
        assert files_below(rig.job) == footage
        assert untouched(card.folder) == before
        again = rig.ingest(2)
        assert again["copied_files"] == 0
        assert again["known_files"] == len(footage)


def test_a_driver_in_user_space_is_asked_for_one_thing_at_a_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead: list[str] = []
    monkeypatch.setattr(
        kernel,
        "read_ahead",
        lambda fd, size_bytes: ahead.append(os.readlink(f"/proc/self/fd/{fd}")),
    )
    with mounted(FAT32, rig.card) as card:
        footage = fill(card.folder)
        rig.ingest()
        account(rig, footage)
        assert ahead, "the copies on a disk of the system's own are read ahead"
        assert not [path for path in ahead if path.startswith(f"{card.folder}/")]


def untouched(folder: Path) -> dict[bytes, Any]:
    """All that must stay as it is.

    But for the times of reading, of which FAT's driver tells today's, and for the files' numbers,
    which drivers in user space give out anew for what nobody has asked for in a while.
    """
    found = {}
    for path, entry in snapshot(folder).items():
        mode, _, *others = entry["status"][:7]
        found[path] = (mode, *others, entry["status"][8], entry.get("content"))
    return found


@pytest.fixture
def volumes(rig: Rig, tmp_path: Path) -> Callable[[Mount, str], None]:
    """Has the system name the volume in a mount's device, as udev does."""
    disks = tmp_path / "disk"
    (disks / "by-uuid").mkdir(parents=True)

    def name(mount: Mount, serial: str) -> None:
        (disks / "by-uuid" / serial).unlink(missing_ok=True)
        (disks / "by-uuid" / serial).symlink_to(mount.device)

    rig.cards = FsCards([str(rig.mounts)], disks=str(disks))
    return name


def test_a_volume_is_known_by_its_serial_though_its_times_are_coarser(
    rig: Rig, tmp_path: Path, volumes: Callable[[Mount, str], None]
) -> None:
    """exFAT's driver keeps whole seconds: the ledger's time is the card's, not the copy's."""
    with formatted(EXFAT, tmp_path) as card:
        card.put_in(rig.card)
        volumes(card, "1234-ABCD")
        footage = fill(card.folder)
        data = rig.scan(1)
        assert data["card"]["identity"].startswith("volume:1234-ABCD:")
        rig.copy(1, rig.create_job(1, data))
        account(rig, footage)
        new = contents("one more", 4_000)
        (card.folder / "DCIM/100GOPRO/GX010003.MP4").write_bytes(new)
        os.utime(card.folder / "DCIM/100GOPRO/GX010003.MP4", ns=(MTIME_NS + 1, MTIME_NS + 1))
        output = rig.ingest(2)
        assert (output["copied_files"], output["known_files"]) == (1, len(footage))
        account(rig, footage | {"DCIM/100GOPRO/GX010003.MP4": new})


@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "America/Los_Angeles", "Pacific/Kiritimati"])
def test_times_of_fat_in_another_zone_bring_nothing_twice(
    rig: Rig, tmp_path: Path, zone: str
) -> None:
    with formatted(FAT32, tmp_path) as card:
        card.put_in(rig.card, environment={"TZ": "UTC"})
        footage = fill(card.folder)
        odd = card.folder / BIG
        os.utime(odd, (1_700_000_001, 1_700_000_001))
        assert odd.stat().st_mtime % 2 == 0, "this driver keeps odd seconds: not FAT's times"
        rig.ingest(1)
        at_home = odd.stat().st_mtime
        card.take_out()
        card.put_in(rig.card, environment={"TZ": zone})
        assert odd.stat().st_mtime != at_home, "this driver knows no zones: nothing was shown"
        output = rig.ingest(2)
        assert (output["copied_files"], output["known_files"]) == (0, len(footage))
        account(rig, footage)


def test_a_card_that_is_mounted_in_another_zone_before_the_retry_is_gone_on_with(
    rig: Rig, tmp_path: Path
) -> None:
    with formatted(FAT32, tmp_path) as card:
        card.put_in(rig.card, environment={"TZ": "UTC"})
        footage = fill(card.folder)
        data = rig.ready()
        card.take_out()
        card.put_in(rig.card, environment={"TZ": "Asia/Kathmandu"})
        assert rig.copy(1, data)["copied_files"] == len(footage)
        account(rig, footage)


@pytest.mark.parametrize("kind", [EXFAT, FAT32], ids=lambda kind: kind.name)
def test_a_card_pulled_in_the_middle_of_a_file_is_lost_and_gone_on_with(
    rig: Rig, tmp_path: Path, kind: FileSystem
) -> None:
    with formatted(kind, tmp_path) as card:
        card.put_in(rig.card)
        footage = fill_big(card.folder)
        card.take_out()  # so that nothing of it is in memory
        card.put_in(rig.card)
        data = rig.ready()

        def pull(fraction: float, detail: dict[str, Any]) -> None:
            if fraction and detail["file"] == BIG:
                rig.on_report = lambda fraction, detail: None
                card.pull()

        rig.on_report = pull
        with pytest.raises(CardLost) as lost:
            rig.copy(1, data)
        assert "card lost" in str(lost.value)
        assert "retry" in str(lost.value)
        account(rig, footage, lost.value)
        assert BIG not in files_below(rig.library)

        card.put_in(rig.card)
        rig.copy(1, data)
        account(rig, footage)


def test_another_card_in_the_slot_is_refused_and_nothing_of_it_is_read(
    rig: Rig, tmp_path: Path, volumes: Callable[[Mount, str], None]
) -> None:
    with (
        formatted(EXFAT, tmp_path / "one") as one,
        formatted(EXFAT, tmp_path / "other") as other,
    ):
        one.put_in(rig.card)
        volumes(one, "1111-1111")
        footage = fill(one.folder)
        data = rig.ready()
        one.take_out()
        other.put_in(tmp_path / "elsewhere")
        fill(other.folder)
        other.take_out()
        device = one.device
        other.put_in(rig.card)
        assert other.device == device, "the next card got another device: nothing is shown"
        os.rename(tmp_path / "disk/by-uuid/1111-1111", tmp_path / "disk/by-uuid/2222-2222")
        with pytest.raises(OffloadFault, match="another card"):
            rig.copy(1, data)
        account(rig, footage, OffloadFault())
        assert rig.arrived() == {}


def test_a_volume_is_found_wherever_it_is_mounted_now(
    rig: Rig, tmp_path: Path, volumes: Callable[[Mount, str], None]
) -> None:
    with (
        formatted(EXFAT, tmp_path / "one") as card,
        formatted(EXFAT, tmp_path / "other") as other,
    ):
        other.put_in(rig.mounts / "A002")
        volumes(other, "2222-2222")
        card.put_in(rig.card)
        volumes(card, "1111-1111")
        fill(card.folder)
        identity = rig.scan()["card"]["identity"]
        for where in ("A001", "A0011", "elsewhere/A001"):
            card.take_out()
            card.put_in(rig.mounts / where)
            volumes(card, "1111-1111")
            with rig.cards.find(str(rig.card), identity) as found:
                assert (found.path, found.card.identity) == (str(card.folder), identity)

        other.take_out()
        other.put_in(rig.card)
        volumes(other, "2222-2222")
        with rig.cards.find(str(rig.card), identity) as found:
            assert found.path == str(card.folder), "the next card was taken for this one"
        card.take_out()
        with rig.cards.find(str(rig.card), identity) as found:
            assert found.card.identity != identity
        other.take_out()
        for path in (rig.card, rig.card / "not there"):
            with pytest.raises(CardNotThere):
                rig.cards.find(str(path), identity)

        card.put_in(tmp_path / "where no cards are")
        volumes(card, "1111-1111")
        with pytest.raises(CardNotThere):
            rig.cards.find(str(rig.card / "not there"), identity)


def test_a_card_pulled_and_put_in_elsewhere_is_gone_on_with(
    rig: Rig, tmp_path: Path, volumes: Callable[[Mount, str], None]
) -> None:
    with formatted(EXFAT, tmp_path) as card:
        card.put_in(rig.card)
        volumes(card, "1234-ABCD")
        footage = fill_big(card.folder)
        data = rig.ready()
        card.pull()
        card.put_in(rig.mounts / "A0011")
        volumes(card, "1234-ABCD")
        assert rig.copy(1, data)["copied_files"] == len(footage)
        account(rig, footage)


# -- libraries ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_a_library_on_every_file_system_holds_the_card(rig: Rig, kind: FileSystem) -> None:
    footage = fill_big(rig.card) | fill(rig.card)
    with mounted(kind, rig.library, 80_000_000):
        output = rig.ingest()
        assert output["verified"] == len(footage)
        account(rig, footage)
        assert rig.ingest(2)["known_files"] == len(footage)


def test_names_that_differ_only_in_case_never_replace_one_another(rig: Rig) -> None:
    """On such a library there is room for one of them under its name."""
    footage = {"DCIM/A.MP4": b"large letters", "DCIM/a.mp4": b"small letters"}
    for path, data in footage.items():
        rig.put(path, data)
    with mounted(NTFS_IGNORING_CASE, rig.library):
        fault = None
        try:
            rig.ingest()
        except FilesMissing as missing:
            fault = missing
        assert len(set(rig.arrived().values())) == len(rig.ledger.copies)
        account(rig, footage, fault)


@pytest.mark.parametrize(
    "kind", [EXT4, NTFS_IGNORING_CASE, EXFAT, FAT32], ids=lambda kind: kind.name
)
def test_what_comes_under_the_final_name_meanwhile_is_not_replaced(
    rig: Rig, kind: FileSystem
) -> None:
    """By a rename with a flag, by a hard link, and by taking the name with an empty file."""
    footage = fill_big(rig.card)
    with mounted(kind, rig.library, 80_000_000):
        data = rig.ready()
        stranger = rig.job / BIG

        def come(fraction: float, detail: dict[str, Any]) -> None:
            if detail["file"] == BIG and stranger.parent.exists():
                rig.on_report = lambda fraction, detail: None
                stranger.write_bytes(b"somebody else's")

        rig.on_report = come
        with suppress(FilesMissing):  # unless the other name is free for it
            rig.copy(1, data)
        assert stranger.read_bytes() == b"somebody else's"
        arrived = rig.arrived()
        for copy in rig.ledger.copies:
            names = {path for path in arrived if path.lower() == copy.path.lower()}
            assert {arrived[path] for path in names} == {footage[os.fsdecode(copy.file.path)]}


def write_for_ever(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(64 * 1024))


@pytest.mark.parametrize("kind", [EXT4, TMPFS, NTFS_IGNORING_CASE], ids=lambda kind: kind.name)
def test_a_library_that_fills_up_on_the_way_keeps_what_is_whole_and_goes_on_later(
    rig: Rig, kind: FileSystem
) -> None:
    """Filled at the first sign of life: where room is taken beforehand, another file hits it."""
    footage = fill_big(rig.card)
    with mounted(kind, rig.library):
        data = rig.ready()
        ballast = rig.library / "ballast"

        def fill_up(fraction: float, detail: dict[str, Any]) -> None:
            rig.on_report = lambda fraction, detail: None
            with pytest.raises(OSError) as none_left:
                write_for_ever(ballast)
            assert none_left.value.errno == errno.ENOSPC

        rig.on_report = fill_up
        with pytest.raises(LibraryFault, match="full") as full:
            rig.copy(1, data)
        ballast.unlink()
        account(rig, footage, full.value)
        rig.copy(1, data)
        account(rig, footage)


def test_what_fat_can_t_hold_is_refused_before_a_byte_is_copied(rig: Rig) -> None:
    """4 GiB that take no room: nothing of it may be read to find that out."""
    rig.put("DCIM/A.MP4")
    huge = rig.card / "DCIM/HUGE.MP4"
    huge.touch()
    os.truncate(huge, 4 * GIBIBYTE)
    os.utime(huge, ns=(MTIME_NS, MTIME_NS))
    with mounted(FAT32, rig.library):
        with pytest.raises(LibraryFault) as refused:
            rig.ingest()
        assert "4 GiB" in str(refused.value)
        assert "DCIM/HUGE.MP4" in str(refused.value)
        assert os.listdir(rig.library) == []


def test_a_hundred_gigabytes_without_room_are_refused_without_reading_them(
    rig: Rig, tmp_path: Path
) -> None:
    with faulty_card(tmp_path / "behind", rig.card) as card, mounted(EXT4, rig.library):
        huge = card.behind / "HUGE.MXF"
        huge.touch()
        os.truncate(huge, 100 * 10**9)
        os.utime(huge, ns=(MTIME_NS, MTIME_NS))
        card.set(Fault("read", "HUGE.MXF", FAIL))
        with pytest.raises(LibraryFault) as refused:
            rig.ingest()
        assert "not enough room" in str(refused.value)
        assert "100.0 GB" in str(refused.value)
        assert card.counts()["read HUGE.MXF"] == 0
        assert rig.arrived() == {}


# -- a card that fails ------------------------------------------------------------------


@pytest.fixture
def failing(rig: Rig, tmp_path: Path) -> Iterator[FaultyCard]:
    with faulty_card(tmp_path / "behind", rig.card) as card:
        yield card


def test_a_file_that_breaks_off_is_named_and_the_others_arrive(
    rig: Rig, failing: FaultyCard
) -> None:
    footage = fill_big(failing.behind)
    data = rig.ready()
    failing.set(Fault("read", BIG, FAIL, at=BIG_BYTES // 2))
    with pytest.raises(FilesMissing) as missing:
        rig.copy(1, data)
    assert "input/output error" in str(missing.value)
    account(rig, footage, missing.value)
    assert SMALL in files_below(rig.job)
    failing.set()
    assert rig.copy(1, data)["copied_files"] == len(footage)
    account(rig, footage)


def test_a_file_that_breaks_off_once_it_is_open_is_named_and_the_others_arrive(
    rig: Rig, failing: FaultyCard
) -> None:
    footage = fill_big(failing.behind)
    data = rig.ready()
    failing.set(Fault("getattr", BIG, FAIL, first=1))
    with pytest.raises(FilesMissing) as missing:
        rig.copy(1, data)
    assert "input/output error" in str(missing.value)
    account(rig, footage, missing.value)
    assert SMALL in files_below(rig.job)


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENXIO, errno.EIO, errno.ENOTCONN])
def test_a_card_where_nothing_answers_any_more_is_lost(
    rig: Rig, failing: FaultyCard, number: int
) -> None:
    footage = gopro_card(failing.behind, clips=4, clip_bytes=1_500_000)
    data = rig.ready()

    def lose(fraction: float, detail: dict[str, Any]) -> None:
        if fraction > 0.3:
            rig.on_report = lambda fraction, detail: None
            failing.set(Fault("*", "", FAIL, number=number))

    rig.on_report = lose
    with pytest.raises(OffloadFault) as lost:
        rig.copy(1, data)
    account(rig, footage, lost.value)
    assert isinstance(lost.value, CardLost), lost.value
    failing.set()
    rig.copy(1, data)
    account(rig, footage)


def test_a_card_that_is_pulled_and_put_in_again_is_gone_on_with(rig: Rig, tmp_path: Path) -> None:
    with faulty_card(tmp_path / "behind", rig.card) as card:
        footage = fill_big(card.behind)
        data = rig.ready()

        def pull(fraction: float, detail: dict[str, Any]) -> None:
            rig.on_report = lambda fraction, detail: None
            card.pull()

        rig.on_report = pull
        with pytest.raises(CardLost) as lost:
            rig.copy(1, data)
        account(rig, footage, lost.value)
        with pytest.raises(OffloadFault):
            rig.copy(1, data)
        account(rig, footage, lost.value)
    with faulty_card(tmp_path / "behind", rig.card):
        rig.copy(1, data)
        account(rig, footage)


def test_a_card_pulled_while_it_is_scanned_is_lost_and_scanned_whole_once_it_is_back(
    rig: Rig, tmp_path: Path
) -> None:
    with faulty_card(tmp_path / "behind", rig.card) as card:
        footage = fill(card.behind)
        card.set(Fault("readdir", "DCIM/100GOPRO", HOLD))

        def pull() -> None:
            card.wait_until_held()
            card.pull()

        hand = threading.Thread(target=pull)
        hand.start()
        with pytest.raises(CardLost, match="card lost"):
            rig.scan()
        hand.join()
    with faulty_card(tmp_path / "behind", rig.card):
        assert rig.ingest()["copied_files"] == len(footage)
        account(rig, footage)


def test_a_file_that_grows_while_it_is_read_is_not_published(rig: Rig, failing: FaultyCard) -> None:
    footage = fill_big(failing.behind)
    data = rig.ready()
    failing.set(Fault("read", BIG, APPEND, at=BIG_BYTES // 2, times=1))
    with pytest.raises(FilesMissing) as missing:
        rig.copy(1, data)
    assert "changed while it was being copied" in str(missing.value)
    account(rig, footage, missing.value)
    assert BIG not in files_below(rig.job)


def test_a_folder_that_changes_while_it_is_scanned_is_told_as_it_is_in_the_end(
    rig: Rig, failing: FaultyCard
) -> None:
    """Gone between the listing and the look: not copied, and not passed over in silence."""
    footage = gopro_card(failing.behind)
    gone = "DCIM/100GOPRO/GX010001.MP4"
    failing.set(Fault("getattr", gone, FAIL, number=errno.ENOENT))
    with pytest.raises(FilesMissing) as missing:
        rig.ingest()
    account(rig, footage, missing.value)
    assert gone in str(missing.value)


def test_entries_that_refuse_to_be_looked_at_are_named_and_the_others_arrive(
    rig: Rig, failing: FaultyCard
) -> None:
    footage = gopro_card(failing.behind, clips=3)
    (failing.behind / "LOCKED").mkdir()
    failing.set(
        Fault("getattr", "DCIM/100GOPRO/GX010001.MP4", FAIL),
        Fault("open", "DCIM/100GOPRO/GX010002.MP4", FAIL, number=errno.EACCES),
        Fault("readdir", "LOCKED", FAIL, number=errno.EACCES),
    )
    data = rig.ready()
    assert data["by_kind"][FileKind.UNREADABLE.value]["files"] == 2
    with pytest.raises(FilesMissing) as missing:
        rig.copy(1, data)
    account(rig, footage, missing.value)
    for name in ("GX010001.MP4", "GX010002.MP4", "LOCKED"):
        assert name in str(missing.value)
    assert len(rig.ledger.copies) == len(footage) - 2


def test_bytes_that_turn_on_the_way_in_are_the_card_s_fault(
    rig: Rig, failing: FaultyCard, tmp_path: Path
) -> None:
    """The library spoils the first copy, so the card is read again, and reads differently."""
    footage = fill_big(failing.behind)
    data = rig.ready()
    failing.set(Fault("read", BIG, TURN, at=BIG_BYTES // 2, first=1, times=1))
    with faulty_card(tmp_path / "disk", rig.library) as library:
        library.set(Fault("fsync", PART, SPOIL, at=5, times=1))
        with pytest.raises(FilesMissing, match="the card's side is wrong") as missing:
            rig.copy(1, data)
        account(rig, footage, missing.value)
        assert BIG not in files_below(rig.job)


def test_a_second_reading_that_differs_is_found_where_one_is_wished_for(
    rig: Rig, failing: FaultyCard
) -> None:
    """No call fails and the copy is what was read: nothing else could tell."""
    footage = fill_big(failing.behind)
    rig.settings["verify_source"] = True
    data = rig.ready()
    failing.set(Fault("read", BIG, TURN, at=BIG_BYTES // 2, first=1, times=1))
    with pytest.raises(FilesMissing, match="the card's side is wrong") as missing:
        rig.copy(1, data)
    account(rig, footage, missing.value)
    assert rig.copy(1, data)["copied_files"] == len(footage)
    account(rig, footage)


def test_a_card_that_reads_differently_once_is_not_believed_when_it_repeats_itself(
    rig: Rig, failing: FaultyCard, tmp_path: Path
) -> None:
    """Two readings alike after one unlike them: nobody knows which of them is the footage."""
    footage = fill_big(failing.behind)
    data = rig.ready()
    failing.set(Fault("read", BIG, TURN, at=BIG_BYTES // 2, first=1))
    with faulty_card(tmp_path / "disk", rig.library) as library:
        library.set(Fault("fsync", PART, SPOIL, at=5, times=1))
        with pytest.raises(FilesMissing, match="the card's side is wrong") as missing:
            rig.copy(1, data)
        account(rig, footage, missing.value)
        assert BIG not in files_below(rig.job)


# -- a library that fails -----------------------------------------------------------------


@pytest.fixture
def failing_library(rig: Rig, tmp_path: Path) -> Iterator[FaultyCard]:
    with faulty_card(tmp_path / "disk", rig.library) as library:
        yield library


def test_a_byte_that_the_disk_turned_is_caught_and_copied_again(
    rig: Rig, failing_library: FaultyCard
) -> None:
    footage = fill_big(rig.card)
    data = rig.ready()
    failing_library.set(Fault("fsync", PART, SPOIL, at=BIG_BYTES - 1, times=1))
    output = rig.copy(1, data)
    account(rig, footage)
    (bad,) = output["bad_copies"]
    spoilt = Path(bad).read_bytes()
    assert len(spoilt) == BIG_BYTES
    assert spoilt[:-1] == footage[BIG][:-1]
    assert spoilt[-1] != footage[BIG][-1]


def test_a_disk_that_turns_bytes_each_time_is_named_and_nothing_is_published(
    rig: Rig, failing_library: FaultyCard
) -> None:
    footage = fill_big(rig.card)
    data = rig.ready()
    failing_library.set(Fault("fsync", PART, SPOIL, at=7))
    with pytest.raises(LibraryFault, match="the library's side is wrong") as wrong:
        rig.copy(1, data)
    account(rig, footage, wrong.value)
    assert BIG not in files_below(rig.job)
    failing_library.set()
    rig.copy(1, data)
    account(rig, footage)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("create", PART, FAIL, number=errno.EROFS), "read-only file system"),
        (Fault("write", PART, FAIL, at=BIG_BYTES // 2), "input/output error"),
        (Fault("write", PART, FAIL, at=BIG_BYTES // 2, number=errno.ENOSPC), "full"),
        (Fault("write", PART, FAIL, at=BIG_BYTES // 2, number=errno.EDQUOT), "quota"),
        (Fault("write", PART, FAIL, at=BIG_BYTES // 2, number=errno.EFBIG), "file too large"),
        (Fault("fsync", PART, FAIL), "input/output error"),
        (Fault("read", PART, FAIL, at=BIG_BYTES // 2), "input/output error"),
        (Fault("link", f"2026-11-22_A001/{BIG}", FAIL), "input/output error"),
    ],
    ids=lambda each: each.call if isinstance(each, Fault) else str(each).split()[0],
)
def test_a_library_s_error_ends_the_copy_and_the_retry_makes_it_good(
    rig: Rig, failing_library: FaultyCard, fault: Fault, says: str
) -> None:
    footage = fill_big(rig.card)
    data = rig.ready()
    failing_library.set(fault)
    with pytest.raises(LibraryFault) as wrong:
        rig.copy(1, data)
    assert says in str(wrong.value)
    assert str(rig.library) in str(wrong.value)
    failing_library.set()
    account(rig, footage, wrong.value)
    rig.copy(1, data)
    account(rig, footage)


@contextmanager
def unplugged(disk: FaultyCard, call: str) -> Iterator[None]:
    """While this goes on the disk is pulled, in the middle of such a call for the big file."""

    def pull() -> None:
        disk.wait_until_held()
        disk.pull()

    disk.set(Fault(call, PART, HOLD))
    hand = threading.Thread(target=pull)
    hand.start()
    yield
    hand.join()


@pytest.mark.parametrize("call", ["write", "fsync", "read"])
def test_a_library_that_is_unplugged_says_so_and_is_gone_on_with(
    rig: Rig, tmp_path: Path, call: str
) -> None:
    footage = fill_only_big(rig.card)
    data = rig.ready()
    with faulty_card(tmp_path / "disk", rig.library) as library:
        with unplugged(library, call), pytest.raises(LibraryFault) as gone:
            rig.copy(1, data)
        assert str(rig.library) in str(gone.value)
    with faulty_card(tmp_path / "disk", rig.library):
        rig.copy(1, data)
        account(rig, footage)


@pytest.mark.parametrize("call", ["write", "read"])
def test_of_two_disks_the_one_that_is_unplugged_takes_nothing_from_the_other(
    rig: Rig, tmp_path: Path, call: str
) -> None:
    footage = fill_only_big(rig.card)
    backup = tmp_path / "backup"
    rig.further = [backup]
    data = rig.ready()
    with faulty_card(tmp_path / "disk", backup) as disk:
        with unplugged(disk, call), pytest.raises(OffloadFault) as gone:
            rig.copy(1, data)
        assert str(backup) in str(gone.value)
        assert "1 of 2 destinations" in str(gone.value)
    assert files_below(rig.job) == footage
    with faulty_card(tmp_path / "disk", backup):
        rig.copy(1, data)
        assert files_below(backup / rig.job.name) == footage
    assert len(rig.ledger.copies) == 2 * len(footage)


# -- what may be on a card ---------------------------------------------------------------


def test_hostile_entries_are_listed_never_opened_and_never_followed(
    rig: Rig, failing: FaultyCard
) -> None:
    footage = gopro_card(failing.behind)
    behind = os.fsencode(failing.behind)
    os.symlink("/etc/passwd", behind + b"/DCIM/passwd.MP4")
    os.symlink("/etc", behind + b"/DCIM/etc")
    os.symlink(".", behind + b"/DCIM/loop")
    os.symlink("one", behind + b"/other")
    os.symlink("other", behind + b"/one")
    os.mkfifo(behind + b"/DCIM/pipe.MP4")
    os.mknod(behind + b"/DCIM/disk.MP4", 0o600 | 0o060000, os.makedev(7, 0))
    os.mknod(behind + b"/DCIM/zero.MP4", 0o600 | 0o020000, os.makedev(1, 5))
    os.mknod(behind + b"/DCIM/socket.MP4", 0o600 | 0o140000)
    output = rig.ingest()
    assert output["left_out"] == {"junk": 1, "link": 5, "special": 4}
    account(rig, footage)


def test_names_of_all_sorts_come_over_as_the_bytes_that_they_are(
    rig: Rig, failing: FaultyCard
) -> None:
    names = [
        b"caf\xe9.MP4",
        b"two\nlines.MP4",
        b"\x1b]0;title\x07.MP4",
        b"x" * 255,
        "é".encode() * 127,
        b"A.MP4",
        b"a.mp4",
        b" .MP4 ",
        b"-rf",
        b"a.MP4.0123abcd.part",
        "\u202egpj.MP4".encode(),
    ]
    footage = {}
    for number, name in enumerate(names):
        path = os.fsencode(failing.behind) + b"/" + name
        footage[os.fsdecode(name)] = contents(f"name {number}", 2_000)
        with open(path, "wb") as file:
            file.write(footage[os.fsdecode(name)])
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
    rig.ingest()
    arrived = {os.path.basename(path): data for path, data in rig.arrived().items()}
    assert arrived == {os.fsencode(path): data for path, data in footage.items()}


def test_a_folder_64_deep_comes_over(rig: Rig) -> None:
    deep = "/".join(f"{depth:02}-{'d' * 40}" for depth in range(64))
    with mounted(EXFAT, rig.card) as card:
        here = os.open(card.folder, os.O_RDONLY)
        for part in deep.split("/"):  # no single call takes a path as long as this
            os.mkdir(part, dir_fd=here)
            below = os.open(part, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        with open(os.open("A.MP4", os.O_WRONLY | os.O_CREAT, dir_fd=here), "wb") as file:
            file.write(b"deep down")
        os.utime("A.MP4", ns=(MTIME_NS, MTIME_NS), dir_fd=here)
        os.close(here)
        assert rig.ingest()["copied_files"] == 1
        account(rig, {f"{deep}/A.MP4": b"deep down"})


@pytest.mark.skipif(
    "RUSHES_TEST_LARGE" not in os.environ, reason="takes a minute: set RUSHES_TEST_LARGE"
)
def test_a_hundred_thousand_small_files_come_over(rig: Rig) -> None:
    with mounted(EXT4, rig.card, 2_000_000_000):  # enough for so many inodes
        for number in range(100_000):
            rig.put(f"DCIM/{number // 1_000:03}/{number:06}.JPG", b"%d" % number)
        output = rig.ingest()
        assert output["copied_files"] == 100_000
        arrived = hashlib.sha256()
        wanted = hashlib.sha256()
        for number in range(100_000):
            arrived.update((rig.job / f"DCIM/{number // 1_000:03}/{number:06}.JPG").read_bytes())
            wanted.update(b"%d" % number)
        assert arrived.digest() == wanted.digest()
        assert len(rig.ledger.copies) == 100_000
