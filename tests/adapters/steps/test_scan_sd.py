from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from adapters.steps import cards, scan_sd
from adapters.steps.faults import CardFault, CardNotThere, NotACard
from application.authoring import Interrupted
from domain.errors import AttemptOver, InvalidPath
from domain.footage import CardFile, FileKind
from tests.adapters.steps.conftest import MTIME_NS, Rig, snapshot


def inventory(rig: Rig) -> dict[bytes, CardFile]:
    return {file.path: file for file in rig.card_files.of(1)}


def test_a_card_is_listed_whole_and_counted(rig: Rig) -> None:
    rig.put("DCIM/100GOPRO/GX010001.MP4", b"12345")
    rig.put("DCIM/100GOPRO/GX010001.THM", b"123")
    rig.put("DCIM/100GOPRO/._GX010001.MP4", b"j")
    rig.put("PRIVATE/M4ROOT/CLIP/C0001.MXF", b"1234567")
    rig.put("notes.odd", b"12")
    rig.put(".Trashes/501/deleted.mp4", b"never seen")
    rig.put("System Volume Information/IndexerVolumeGuid", b"x")
    data = rig.scan()
    assert data["layouts"] == ["DCIM", "GoPro", "Sony"]
    assert data["file_count"] == 4
    assert data["total_bytes"] == 17
    assert data["by_kind"] == {
        "media": {"files": 2, "bytes": 12},
        "sidecar": {"files": 1, "bytes": 3},
        "other": {"files": 1, "bytes": 2},
        "junk": {"files": 3, "bytes": 1},
    }
    assert data["excluded"] == 3
    fingerprint = data["card"].pop("fingerprint")
    assert len(fingerprint) < 100
    assert fingerprint == rig.scan()["card"]["fingerprint"]
    assert data["card"] == {"identity": f"path:{rig.card}", "label": "A001"}
    assert "note" not in data
    assert inventory(rig)[b"DCIM/100GOPRO/GX010001.MP4"] == CardFile(
        b"DCIM/100GOPRO/GX010001.MP4", FileKind.MEDIA, 5, MTIME_NS
    )
    assert inventory(rig)[b".Trashes"].kind is FileKind.JUNK
    assert b".Trashes/501/deleted.mp4" not in inventory(rig)


def test_names_are_bytes_whatever_they_are(rig: Rig) -> None:
    names = [b"caf\xe9.mp4", b"new\nline.mp4", b"\x1b[2Jclear.mp4", b"n" * 251 + b".mp4", b"\\"]
    for name in names:
        rig.put(b"DCIM/" + name)
    rig.scan()
    assert sorted(inventory(rig)) == sorted(b"DCIM/" + name for name in names)


def test_links_fifos_and_sockets_are_listed_and_not_followed(rig: Rig) -> None:
    rig.put("DCIM/clip.mp4")
    (rig.card / "out").symlink_to("/etc")
    (rig.card / "in").symlink_to("DCIM")
    (rig.card / "dangling").symlink_to("nowhere")
    os.mkfifo(rig.card / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        fd = os.open(rig.card, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{fd}/socket")
        os.close(fd)
        data = rig.scan()
    kinds = {path: file.kind for path, file in inventory(rig).items()}
    assert kinds == {
        b"DCIM/clip.mp4": FileKind.MEDIA,
        b"out": FileKind.LINK,
        b"in": FileKind.LINK,
        b"dangling": FileKind.LINK,
        b"fifo": FileKind.SPECIAL,
        b"socket": FileKind.SPECIAL,
    }
    assert data["excluded"] == 5


def test_nothing_on_the_card_changes_not_even_access_times(rig: Rig) -> None:
    rig.put("DCIM/100CANON/MVI_0001.MP4")
    rig.put("empty", b"")
    for where, _, names in os.walk(rig.card):
        for name in [*names, "."]:
            os.utime(os.path.join(where, name), ns=(1, MTIME_NS))
    before = snapshot(rig.card)
    rig.ingest()
    assert snapshot(rig.card) == before


def test_an_empty_card_and_one_without_media_complete_and_say_so(rig: Rig) -> None:
    assert rig.scan()["note"] == "the card is empty"
    rig.put("readme.txt")
    assert rig.scan()["note"] == "no media found on the card"
    rig.put("clip.mp4")
    assert "note" not in rig.scan()


def test_it_waits_a_little_for_a_card_that_is_not_there_and_then_says_so(rig: Rig) -> None:
    rig.card.rmdir()
    with pytest.raises(CardNotThere, match=r"card not there: nothing is at .*/A001"):
        rig.scan()
    assert sum(rig.waits) == pytest.approx(scan_sd.SETTLE_S)


def test_it_finds_a_card_that_comes_while_it_waits(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.card.rmdir()

    def wait(seconds: float) -> None:
        rig.waits.append(seconds)
        if len(rig.waits) == 3:
            rig.card.mkdir()  # the mount point ...
        if len(rig.waits) == 5:
            rig.put("DCIM/clip.mp4")  # ... and then what is mounted

    data = {"sd_path": str(rig.card)}
    output = scan_sd.ScanSd(rig.cards, rig.card_files, wait=wait)(rig.context("scan_sd", 1, data))
    assert output["file_count"] == 1
    assert len(rig.waits) == 5


def test_a_file_or_a_forbidden_path_is_not_waited_for(rig: Rig) -> None:
    rig.card.rmdir()
    rig.card.touch()
    with pytest.raises(NotACard, match="is a file"):
        rig.scan()
    for path in (["no text"], "relative", f"{rig.mounts}/../etc"):
        with pytest.raises(InvalidPath):
            rig.scan(sd_path=path)
    assert rig.waits == []


def test_a_very_deep_card_is_walked_with_few_descriptors(rig: Rig) -> None:
    fd = os.open(rig.card, os.O_RDONLY)
    for _ in range(1_200):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("clip.mp4", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    try:
        assert rig.ingest()["copied_files"] == 1
    finally:
        subprocess.run(["rm", "-rf", rig.card, rig.library], check=True)


def test_a_folder_that_can_t_be_read_fails_the_scan_and_is_named(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.put(b"bad\x1b/clip.mp4")
    rig.put("good/clip.mp4")
    real = cards.open_folder

    def refuse(start: int, path: bytes) -> int:
        if path.startswith(b"bad"):
            raise PermissionError(13, "no")
        return real(start, path)

    monkeypatch.setattr(scan_sd, "open_folder", refuse)
    with pytest.raises(CardFault, match=r"can't be read at bad\\x1b: permission denied"):
        rig.scan()
    assert inventory(rig) == {}


def test_another_file_system_mounted_on_the_card_is_no_part_of_it(rig: Rig) -> None:
    rig.put("clip.mp4")
    place = rig.card / "mounted"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting takes privileges")
    try:
        (place / "foreign.mp4").touch()
        rig.scan()
    finally:
        subprocess.run(["umount", place], check=True)
    assert {path: file.kind for path, file in inventory(rig).items()} == {
        b"clip.mp4": FileKind.MEDIA,
        b"mounted": FileKind.SPECIAL,
    }


def test_many_files_are_reported_and_a_stop_is_obeyed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_sd, "REPORT_EVERY", 10)
    for number in range(35):
        rig.put(f"DCIM/{number}.jpg", b"")
    rig.scan()
    assert [detail["files"] for _, detail in rig.reports] == [10, 20, 30]
    looks = iter([False, False, True])
    rig.stopping = lambda: next(looks)
    with pytest.raises(Interrupted):
        rig.scan()


def test_an_attempt_that_is_over_leaves_the_inventory_alone(rig: Rig) -> None:
    rig.put("clip.mp4")
    rig.scan()
    rig.put("more.mp4")
    context = rig.context("scan_sd", 1, {"sd_path": str(rig.card)})
    rig.live.clear()
    with pytest.raises(AttemptOver):
        scan_sd.ScanSd(rig.cards, rig.card_files, wait=rig.waits.append)(context)
    assert list(inventory(rig)) == [b"clip.mp4"]


def test_the_output_carries_counts_and_no_inventory(rig: Rig, tmp_path: Path) -> None:
    for number in range(200):
        rig.put(f"DCIM/{number}.jpg", b"")
    assert stat.S_ISDIR(os.stat(rig.card).st_mode)
    assert len(str(rig.scan())) < 1_000
