from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from adapters.steps.cards import (
    FsCards,
    identify,
    is_mounted,
    open_file,
    open_folder,
    parts_of,
)
from adapters.steps.faults import CardFault, CardLost, CardNotThere, FileFault, NotACard
from domain.errors import InvalidPath


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    folder = tmp_path / "mounts"
    (folder / "A001" / "DCIM").mkdir(parents=True)
    return folder


@pytest.fixture
def cards(mounts: Path) -> FsCards:
    return FsCards([str(mounts)])


def test_the_system_s_names_say_which_volumes_there_are(tmp_path: Path) -> None:
    cards = FsCards([], disks=str(tmp_path))
    assert not cards.has_volume("6134-3033")
    (tmp_path / "by-uuid").mkdir()
    (tmp_path / "by-uuid" / "6134-3033").symlink_to("../../sdb1")
    assert cards.has_volume("6134-3033")
    assert not cards.has_volume("6134-3034")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (None, "not text"),
        (7, "not text"),
        (b"{}/A001", "not text"),
        (["{}/A001"], "not text"),
        ("", "empty"),
        ("{}/A\0001", "NUL"),
        ("{}/A\ud800", "encoded"),
        ("A001", "not absolute"),
        ("./A001", "not absolute"),
        ("{}/../mounts/A001", "contains .."),
        ("{}/A001/..", "contains .."),
        ("{}", "root itself"),
        ("{}/", "root itself"),
        ("{}/.//", "root itself"),
        ("{}X/A001", "not below"),
        ("/etc", "not below"),
        ("/", "not below"),
        ("{}/" + "x" * 300, "too long"),
        ("{}/" + "x/" * 3000, "too long"),
    ],
)
def test_a_path_that_can_be_no_card_is_refused(
    cards: FsCards, mounts: Path, path: object, why: str
) -> None:
    if isinstance(path, str):
        path = path.replace("{}", str(mounts))
    with pytest.raises(InvalidPath, match=why) as refused:
        cards.locate(path)
    assert refused.value.field == "sd_path"
    assert "RUSHES_CARD_ROOTS" in refused.value.message
    assert str(mounts) in refused.value.message
    refused.value.message.encode()
    assert len(refused.value.message) < 1_000


def test_every_spelling_of_a_path_becomes_the_same(cards: FsCards, mounts: Path) -> None:
    for spelling in ("{}/A001", "{}//A001", "{}/./A001/.", "/{}/A001//"):
        assert cards.locate(spelling.format(mounts)) == f"{mounts}/A001"


def test_a_place_with_nothing_there_yet_or_a_file_is_accepted(cards: FsCards, mounts: Path) -> None:
    (mounts / "file").touch()
    for name in ("B002", "B002/deeper", "file", "file/deeper"):
        assert cards.locate(f"{mounts}/{name}") == f"{mounts}/{name}"


@pytest.mark.parametrize("target", ["A001", "/etc", "nowhere", "."])
def test_a_link_below_the_root_is_refused_wherever_it_leads(
    cards: FsCards, mounts: Path, target: str
) -> None:
    (mounts / "link").symlink_to(target)
    for path in (f"{mounts}/link", f"{mounts}/link/", f"{mounts}/link/DCIM"):
        with pytest.raises(InvalidPath, match="symbolic link"):
            cards.locate(path)
        with pytest.raises(NotACard, match="link is a symbolic link"):
            cards.open(path)


def test_a_root_may_be_reached_by_a_link_and_both_spellings_are_one_card(
    mounts: Path, tmp_path: Path
) -> None:
    (tmp_path / "media").symlink_to(mounts)
    cards = FsCards([f"{tmp_path}/media"])
    assert cards.locate(f"{tmp_path}/media/A001") == f"{mounts}/A001"
    assert cards.locate(f"{mounts}/A001") == f"{mounts}/A001"
    for root in (f"{tmp_path}/media", str(mounts)):
        with pytest.raises(InvalidPath, match="root itself"):
            cards.locate(root)
    with cards.open(cards.locate(f"{tmp_path}/media/A001")) as card:
        assert card.path == f"{mounts}/A001"


def test_a_person_s_word_is_taken_wherever_the_roots_are(
    cards: FsCards, mounts: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("mounts/A001")
    (tmp_path / "up").symlink_to(mounts)
    for named, located in (
        (mounts, mounts),
        (f"{tmp_path}/elsewhere", f"{tmp_path}/elsewhere"),
        (f"{tmp_path}//./link/", f"{mounts}/A001"),
        (f"{tmp_path}/up/A001/DCIM", f"{mounts}/A001/DCIM"),
        (f"{tmp_path}/not/yet", f"{tmp_path}/not/yet"),
    ):
        assert cards.locate(str(named), anywhere=True) == str(located)
    with cards.open(cards.locate(str(mounts), anywhere=True)) as card:
        assert card.path == str(mounts)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (None, "not text"),
        (["{}/A001"], "not text"),
        ("", "empty"),
        ("{}/A\0001", "NUL"),
        ("{}/A\ud800", "encoded"),
        ("A001", "not absolute"),
        ("{}/A001/..", "contains .."),
        ("/", "root of the file system"),
        ("//./", "root of the file system"),
        ("{}/to_root", "root of the file system"),
        ("{}/to_bytes", "encoded"),
        ("{}/loop", "symbolic link"),
        ("{}/" + "x" * 300, "too long"),
        ("{}/" + "x/" * 3000, "too long"),
    ],
)
def test_not_everything_is_a_card_on_a_person_s_word(
    cards: FsCards, mounts: Path, path: object, why: str
) -> None:
    (mounts / "to_root").symlink_to("/")
    os.symlink(b"\xff", os.fsencode(mounts / "to_bytes"))
    (mounts / "loop").symlink_to("loop")
    if isinstance(path, str):
        path = path.replace("{}", str(mounts))
    with pytest.raises(InvalidPath, match=why) as refused:
        cards.locate(path, anywhere=True)
    assert refused.value.field == "sd_path"
    assert "RUSHES_CARD_ROOTS" not in refused.value.message
    refused.value.message.encode()
    assert len(refused.value.message) < 1_000


def test_the_deepest_of_nested_roots_counts(mounts: Path, tmp_path: Path) -> None:
    cards = FsCards([str(tmp_path), str(mounts)])
    assert cards.locate(f"{mounts}/A001") == f"{mounts}/A001"
    with pytest.raises(InvalidPath, match="root itself"):
        cards.locate(str(mounts))


def test_the_file_system_s_root_can_be_a_card_root(mounts: Path) -> None:
    cards = FsCards(["/"])
    assert cards.locate(f"{mounts}/A001") == f"{mounts}/A001"
    with pytest.raises(InvalidPath, match="root itself"):
        cards.locate("/")


def test_a_root_that_is_not_absolute_is_a_wrong_setting() -> None:
    with pytest.raises(ValueError, match="not absolute"):
        FsCards(["media"])


def test_opening_says_what_is_wrong(cards: FsCards, mounts: Path) -> None:
    (mounts / "file").touch()
    with pytest.raises(CardNotThere, match=r"card not there: nothing is at .*/B002"):
        cards.open(f"{mounts}/B002")
    with pytest.raises(NotACard, match="is a file, not a card"):
        cards.open(f"{mounts}/file")
    with pytest.raises(NotACard, match="file is a file"):
        cards.open(f"{mounts}/file/deeper")
    with pytest.raises(CardNotThere):
        FsCards([f"{mounts}/no_root"]).open(f"{mounts}/no_root/A001")


def test_a_folder_swapped_for_a_link_after_it_was_located_is_not_followed(
    cards: FsCards, mounts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mounts / "swapped").symlink_to("A001")
    monkeypatch.setattr(cards, "locate", lambda path: path)
    with pytest.raises(NotACard, match="symbolic link"):
        cards.open(f"{mounts}/swapped")


def test_a_card_without_a_volume_of_its_own_is_its_path(cards: FsCards, mounts: Path) -> None:
    with cards.open(f"{mounts}/A001") as card:
        assert card.card.identity == f"path:{mounts}/A001"
        assert card.card.label == "A001"
        assert not card.card.volume


def test_a_mounted_volume_is_known_by_serial_and_size(tmp_path: Path) -> None:
    """A stand-in for a mounted disk: /proc's device, with a node of its number."""
    fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        device = os.fstat(fd).st_dev
        for folder, name in (("by-uuid", "6134-3033"), ("by-label", r"MY\x20CARD\x1b")):
            (tmp_path / folder).mkdir()
            try:
                os.mknod(tmp_path / folder / name, 0o60600, device)
            except PermissionError:
                pytest.skip("making device nodes takes privileges")
        (tmp_path / f"{os.major(device)}:{os.minor(device)}").mkdir()
        size = tmp_path / f"{os.major(device)}:{os.minor(device)}" / "size"
        size.write_text("1000\n")
        card = identify(fd, "/proc", disks=str(tmp_path), devices=str(tmp_path))
        assert card.identity == "volume:6134-3033:512000"
        assert card.label == r"MY CARD\x1b"
        assert card.volume

        size.unlink()
        (tmp_path / "by-label" / r"MY\x20CARD\x1b").unlink()
        card = identify(fd, "/proc", disks=str(tmp_path), devices=str(tmp_path))
        assert card.identity.startswith("volume:6134-3033:")
        assert card.label == "proc"
        assert not identify(fd, "/proc", disks=f"{tmp_path}/none").volume
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", [b"../x", b"a/../../x", b"/etc/passwd", b"a//b", b"./a", b"a\0b"])
def test_a_path_from_an_inventory_can_lead_nowhere_else(path: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no plain relative path"):
        parts_of(path)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(ValueError, match="no plain relative path"):
            open_file(fd, path)
        with pytest.raises(ValueError, match="no plain relative path"):
            open_folder(fd, path)
    finally:
        os.close(fd)


def test_links_on_the_card_are_not_followed(cards: FsCards, mounts: Path) -> None:
    root = mounts / "A001"
    (root / "DCIM" / "clip").write_bytes(b"x")
    (root / "folder").symlink_to("DCIM")
    (root / "file").symlink_to("DCIM/clip")
    with cards.open(str(root)) as card:
        os.close(card.open_file(b"DCIM/clip"))
        (root / "DCIM" / "deeper").mkdir()
        (root / "DCIM" / "deeper" / "clip").touch()
        for path in (b"folder/clip", b"folder/deeper/clip", b"file"):
            with pytest.raises(FileFault):
                card.open_file(path)


def test_a_fifo_or_socket_in_a_file_s_place_does_not_hang(cards: FsCards, mounts: Path) -> None:
    root = mounts / "A001"
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        cwd = os.open(root, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{cwd}/socket")
        os.close(cwd)
    signal.alarm(10)
    try:
        with cards.open(str(root)) as card:
            with pytest.raises(FileFault, match="no regular file"):
                card.open_file(b"fifo")
            with pytest.raises(FileFault, match="can't be read"):
                card.open_file(b"socket")
    finally:
        signal.alarm(0)


def test_a_failing_file_is_a_lost_card_only_if_the_card_is_gone(
    cards: FsCards, mounts: Path
) -> None:
    root = mounts / "A001"
    with cards.open(str(root)) as card:
        assert isinstance(card.fault(OSError(5, "EIO"), b"clip"), FileFault)
        assert isinstance(card.fault(OSError(19, "ENODEV"), b"clip"), CardLost)
        root.rename(mounts / "elsewhere")
        assert isinstance(card.fault(OSError(5, "EIO"), b"clip"), CardLost)
        root.mkdir()
        assert isinstance(card.fault(OSError(5, "EIO"), b"clip"), CardLost)


def fingerprint(cards: FsCards, path: Path) -> str:
    with cards.open(str(path)) as card:
        return card.fingerprint()


def taken_for_the_same(cards: FsCards, path: Path, then: str) -> bool:
    with cards.open(str(path)) as card:
        return card.is_as(then)


def test_a_folder_is_the_same_card_whatever_has_come_into_it(cards: FsCards, mounts: Path) -> None:
    then = fingerprint(cards, mounts / "A001")
    (mounts / "A001" / "new.mp4").touch()
    assert taken_for_the_same(cards, mounts / "A001", then)


def test_another_folder_in_its_place_is_another_card(cards: FsCards, mounts: Path) -> None:
    then = fingerprint(cards, mounts / "A001")
    (mounts / "A001").rename(mounts / "kept")  # so that its inode isn't given out again
    (mounts / "A001" / "DCIM").mkdir(parents=True)
    assert not taken_for_the_same(cards, mounts / "A001", then)


def test_on_another_device_number_the_listing_decides(cards: FsCards, mounts: Path) -> None:
    card = mounts / "A001"
    (card / "clip.mp4").write_bytes(b"x")
    os.utime(card / "clip.mp4", (900, 900))
    _, *rest = fingerprint(cards, card).split(":")
    remounted = ":".join(["ffff", *rest])
    assert taken_for_the_same(cards, card, remounted)
    os.utime(card / "clip.mp4", (1_800, 1_800))  # another time zone
    (card / ".Trashes").mkdir()  # what an operating system leaves
    os.utime(card, (5, 5))
    assert taken_for_the_same(cards, card, remounted)
    os.utime(card / "clip.mp4", (1_860, 1_860))
    assert not taken_for_the_same(cards, card, remounted)
    os.utime(card / "clip.mp4", (900, 900))
    (card / "another.mp4").touch()
    assert not taken_for_the_same(cards, card, remounted)


def test_a_mount_s_root_is_told_by_its_listing_alone(
    cards: FsCards, mounts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every FAT card's root has inode 1, and the next card in a slot gets the device's number."""
    then = fingerprint(cards, mounts / "A001")
    monkeypatch.setattr("adapters.steps.cards.is_mounted", lambda fd: True)
    assert taken_for_the_same(cards, mounts / "A001", then)
    (mounts / "A001" / "clip.mp4").touch()
    assert not taken_for_the_same(cards, mounts / "A001", then)


def test_what_is_in_the_card_s_mount_is_the_card_s_whatever_its_device_number(
    cards: FsCards, mounts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each subvolume of a btrfs has a number of its own."""
    (mounts / "A001" / "DCIM" / "clip.mp4").touch()
    with cards.open(f"{mounts}/A001") as card:
        card.device = -1
        os.close(card.open_file(b"DCIM/clip.mp4"))
        monkeypatch.setattr("adapters.steps.cards.mount_id_of", lambda *where: None)
        with pytest.raises(FileFault, match="no regular file of this card"):
            card.open_file(b"DCIM/clip.mp4")


def test_a_folder_that_is_mounted_at_a_second_place_is_a_mount_and_no_volume(
    mounts: Path, tmp_path: Path
) -> None:
    place = mounts / "A001"
    bind = ["mount", "--bind", str(mounts / "A001" / "DCIM"), str(place)]
    if subprocess.run(bind, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            assert is_mounted(fd)
            (tmp_path / "by-uuid").mkdir()
            os.mknod(tmp_path / "by-uuid" / "6134-3033", 0o60600, os.fstat(fd).st_dev)
            assert not identify(fd, str(place), disks=str(tmp_path)).volume
        finally:
            os.close(fd)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_no_descriptor_is_left_open(cards: FsCards, mounts: Path) -> None:
    gc.collect()  # what others have forgotten isn't closed in the middle of it
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with cards.open(f"{mounts}/A001") as card:
            with pytest.raises(FileFault):
                card.open_file(b"DCIM/nothing")
        with pytest.raises(CardFault):
            cards.open(f"{mounts}/nothing/there")
    assert len(os.listdir("/proc/self/fd")) == before
