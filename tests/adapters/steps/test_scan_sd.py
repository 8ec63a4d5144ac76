from __future__ import annotations

import errno
import inspect
import os
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.steps import boxes, cards, scan_sd
from adapters.steps.cards import FsCards
from adapters.steps.faults import (
    CardFault,
    CardLost,
    CardNotThere,
    FilesMissing,
    NotACard,
    StillWritten,
)
from application.authoring import Interrupted
from domain.errors import AttemptOver, InvalidPath
from domain.footage import CardFile, FileKind
from tests.adapters.steps.conftest import MTIME_NS, NOON, Rig, snapshot
from tests.cards import EXAMPLES, CardExample, film


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
    assert data["layouts"] == ["GoPro", "Sony XAVC"]
    assert data["clip_count"] == 2
    assert data["file_count"] == 4
    assert data["total_bytes"] == 17
    assert data["by_kind"] == {
        "media": {"files": 2, "bytes": 12},
        "thumbnail": {"files": 1, "bytes": 3},
        "other": {"files": 1, "bytes": 2},
        "junk": {"files": 3, "bytes": 1},
    }
    assert data["excluded"] == 3
    fingerprint = data["card"].pop("fingerprint")
    assert len(fingerprint) < 100
    assert fingerprint == rig.scan()["card"]["fingerprint"]
    assert data["card"] == {"identity": f"path:{rig.card}", "label": "A001", "generation": 1}
    assert "note" not in data
    clip = b"DCIM/100GOPRO/GX010001.MP4"
    assert inventory(rig)[clip] == CardFile(clip, FileKind.MEDIA, 5, MTIME_NS, clip, boxes.NO_INDEX)
    thumbnail = inventory(rig)[b"DCIM/100GOPRO/GX010001.THM"]
    assert (thumbnail.clip, thumbnail.problem) == (clip, None)
    assert inventory(rig)[b".Trashes"].kind is FileKind.JUNK
    assert b".Trashes/501/deleted.mp4" not in inventory(rig)


def test_names_are_bytes_whatever_they_are(rig: Rig) -> None:
    names = [b"caf\xe9.mp4", b"new\nline.mp4", b"\x1b[2Jclear.mp4", b"n" * 251 + b".mp4", b"\\"]
    for name in names:
        rig.put(b"DCIM/" + name)
    rig.scan()
    assert sorted(inventory(rig)) == sorted(b"DCIM/" + name for name in names)
    assert {path for path, file in inventory(rig).items() if "UTF-8" in (file.problem or "")} == {
        b"DCIM/caf\xe9.mp4"
    }


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
    assert data["excluded_named"] == {
        "link": ["dangling", "in", "out"], "special": ["fifo", "socket"],
    }  # fmt: skip
    exceptions = {each["path"]: each["problem"] for each in data["exceptions"]["named"]}
    assert exceptions == {
        "DCIM/clip.mp4": boxes.NO_INDEX,
        "out": "a symbolic link, not followed",
        "in": "a symbolic link, not followed",
        "dangling": "a symbolic link, not followed",
        "fifo": "a named pipe, no file",
        "socket": "a socket, no file",
    }
    assert (data["exceptions"]["total"], data["exceptions"]["remarked"]) == (6, 1)
    # A file of the card's own is what people have to know of first.
    assert data["exceptions"]["named"][0]["path"] == "DCIM/clip.mp4"


def test_a_device_is_listed_and_not_opened(rig: Rig) -> None:
    try:
        os.mknod(rig.card / "null.mp4", 0o20666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("making device nodes takes privileges")
    assert rig.scan()["exceptions"]["named"] == [
        {"path": "null.mp4", "kind": "special", "problem": "a device, no file"}
    ]


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
    output = rig.scanner(wait)(rig.context("scan_sd", 1, data))
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
    for _ in range(400):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("clip.mp4", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))) + 60, limits[1])
    )
    try:
        assert rig.ingest()["copied_files"] == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        subprocess.run(["rm", "-rf", rig.card, rig.library], check=True)


class Faults:
    """Folders of the card that answer with an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._of: dict[bytes, int] = {}
        self._real = cards.open_folder
        monkeypatch.setattr(scan_sd, "open_folder", self._open)

    def give(self, code: int, *folders: bytes) -> None:
        self._of.update(dict.fromkeys(folders, code))

    def _open(self, start: int, path: bytes) -> int:
        if path in self._of:
            raise OSError(self._of[path], "no")
        return self._real(start, path)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


@pytest.mark.parametrize(
    ("code", "why"),
    [(errno.EACCES, "permission denied"), (errno.EIO, "input/output error")],
)
def test_a_folder_that_can_t_be_read_is_listed_and_then_missed(
    rig: Rig, faults: Faults, code: int, why: str
) -> None:
    rig.put(b"bad\x1b/clip.mp4")
    rig.put("good/clip.jpg")
    faults.give(code, b"bad\x1b")
    data = rig.scan()
    assert data["exceptions"] == {
        "total": 1,
        "remarked": 1,
        "named": [
            {
                "path": r"bad\x1b",
                "kind": "unreadable",
                "problem": f"the folder can't be read: {why}",
            }
        ],
    }
    assert data["file_count"] == 2
    with pytest.raises(FilesMissing, match=r"1 of 2 files could not be copied .*bad\\x1b"):
        rig.copy(1, rig.create_job(1, data))
    assert list(rig.arrived()) == [b"2026-11-22_A001/good/clip.jpg"]


def test_a_root_that_can_t_be_read_fails_the_scan(rig: Rig, faults: Faults) -> None:
    rig.put("clip.mp4")
    faults.give(errno.EACCES, b"")
    with pytest.raises(CardFault, match=r"can't be read at its root: permission denied"):
        rig.scan()
    assert inventory(rig) == {}


def test_a_card_that_goes_while_it_is_scanned_is_lost(rig: Rig, faults: Faults) -> None:
    rig.put("a/clip.mp4")
    faults.give(errno.ENODEV, b"a")
    with pytest.raises(CardLost, match=r"card lost: .*no such device at a"):
        rig.scan()
    faults.give(errno.EIO, b"a", b"b", b"c")
    rig.put("b/clip.mp4")
    assert rig.scan()["exceptions"]["total"] == 2
    rig.put("c/clip.mp4")
    with pytest.raises(CardLost, match=r"3 input/output errors in a row, the last at [abc]"):
        rig.scan()


def test_permissions_are_found_as_the_system_enforces_them(tmp_path: Path) -> None:
    """Tests may run as root, which may do everything; a child without those privileges may not."""
    script = f"""
import os
from pathlib import Path
from tests.adapters.steps.conftest import Rig
rig = Rig(Path({str(tmp_path)!r}))
for name in ("film.mp4", "still.jpg", "listed/clip.mp4", "closed/clip.mp4", "good.jpg"):
    rig.put(name)
os.chmod(rig.card / "film.mp4", 0)
os.chmod(rig.card / "still.jpg", 0)
os.chmod(rig.card / "listed", 0o444)
os.chmod(rig.card / "closed", 0)
data = rig.scan()
for each in data["exceptions"]["named"]:
    print(each["path"], each["kind"], each["problem"], sep=" | ")
print(data["file_count"])
"""
    command = [sys.executable, "-c", script]
    if os.geteuid() == 0:
        dropped = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
        try:
            subprocess.run([*dropped, "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no way to do without root's privileges here")
        command = [*dropped, *command]
    here = Path(inspect.getfile(FsCards)).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "closed | unreadable | the folder can't be read: permission denied",
        "film.mp4 | media | can't be read: permission denied",
        "listed/clip.mp4 | unreadable | it can't be read: permission denied",
        "still.jpg | media | can't be read: permission denied",
        "5",
    ], done.stderr


# -- what is still being written ------------------------------------------------------

NOON_NS = int(NOON.timestamp()) * 10**9


def scanning(rig: Rig, while_waiting: Callable[[int], object]) -> dict[str, Any]:
    """A scan with something going on between two looks; ``while_waiting`` is told which."""

    def wait(seconds: float) -> None:
        rig.waits.append(seconds)
        while_waiting(len(rig.waits))

    step = rig.scanner(wait)
    return step(rig.context("scan_sd", 1, {"sd_path": str(rig.card)}))


def test_a_file_that_never_stops_growing_fails_the_scan_and_is_named(rig: Rig) -> None:
    rig.put("done.mp4")
    rig.put("DCIM/grow\x1bing.mp4", mtime_ns=NOON_NS)

    def grow(look: int) -> None:
        rig.put("DCIM/grow\x1bing.mp4", b"x" * (100 + look), mtime_ns=NOON_NS + look)

    with pytest.raises(
        StillWritten, match=r"still being written to: DCIM/grow\\x1bing.mp4 changed"
    ):
        scanning(rig, grow)
    assert rig.waits == [scan_sd.LOOKS_APART_S] * scan_sd.LOOKS
    assert inventory(rig) == {}


def test_what_stops_growing_is_taken_as_it_is_then_with_what_has_come(rig: Rig) -> None:
    rig.put("a.mp4", b"1", mtime_ns=NOON_NS)

    def finish(look: int) -> None:
        if look == 1:
            rig.put("a.mp4", b"123", mtime_ns=NOON_NS)
            rig.put("b.mp4", b"12", mtime_ns=NOON_NS)

    assert scanning(rig, finish)["file_count"] == 2
    assert {path: file.size_bytes for path, file in inventory(rig).items()} == {
        b"a.mp4": 3,
        b"b.mp4": 2,
    }
    assert len(rig.waits) == 2


def test_what_gets_its_final_name_meanwhile_is_found_under_it(rig: Rig) -> None:
    rig.put("clip.tmp", mtime_ns=NOON_NS)
    scanning(
        rig, lambda look: (rig.card / "clip.tmp").rename(rig.card / "clip.mp4") if look == 1 else 0
    )
    assert list(inventory(rig)) == [b"clip.mp4"]


def test_a_file_that_is_written_over_in_place_is_growing_too(rig: Rig) -> None:
    rig.put("clip.mp4", mtime_ns=NOON_NS)
    with pytest.raises(StillWritten):
        scanning(rig, lambda look: rig.put("clip.mp4", mtime_ns=NOON_NS + look))


@pytest.mark.parametrize("shift_s", [0, 9, -9, 3_600, -5 * 900 + 3])
def test_what_was_written_just_now_is_looked_at_twice_in_whatever_zone(
    rig: Rig, shift_s: int
) -> None:
    rig.put("clip.mp4", mtime_ns=NOON_NS + shift_s * 10**9)
    rig.scan()
    assert rig.waits == [scan_sd.LOOKS_APART_S]


@pytest.mark.parametrize("shift_s", [-60, -450, 60, 2 * 86_400])
def test_what_was_written_long_ago_is_not_waited_for(rig: Rig, shift_s: int) -> None:
    rig.put("clip.mp4", mtime_ns=NOON_NS + shift_s * 10**9)
    rig.scan()
    assert rig.waits == []


def test_a_stop_is_obeyed_between_two_looks(rig: Rig) -> None:
    rig.put("clip.mp4", mtime_ns=NOON_NS)

    def stop(look: int) -> None:
        rig.stopping = lambda: True

    with pytest.raises(Interrupted):
        scanning(rig, stop)


# -- makers' cards --------------------------------------------------------------------


@pytest.mark.parametrize("build", EXAMPLES)
def test_a_maker_s_card_is_scanned_into_clips_and_comes_over_whole(
    rig: Rig, build: Callable[[], CardExample]
) -> None:
    card = build()
    footage = card.build(rig.card)
    data = rig.scan()
    assert data["layouts"] == sorted(data["layouts"])
    assert set(data["layouts"]) == {layout.value for layout in card.layouts}
    assert data["clip_count"] == len(card.takes)
    assert data["exceptions"] == {"total": 0, "remarked": 0, "named": []}
    found = inventory(rig)
    for take in card.takes:
        assert {found[path.encode()].clip for path in take.paths} == {take.media[0].encode()}
    for path, kind in card.loose.items():
        assert (found[path.encode()].kind, found[path.encode()].clip) == (kind, None)
    folders = {path.decode() for path, file in found.items() if file.kind is FileKind.FOLDER}
    assert folders == set(card.folders)
    assert len(found) == len(card.paths) + len(card.folders)
    rig.copy(1, rig.create_job(1, data))
    assert rig.arrived() == {
        f"2026-11-22_A001/{path}".encode(): content for path, content in footage.items()
    }


def test_a_folder_that_nothing_copied_would_bring_along_is_listed(rig: Rig) -> None:
    rig.put("CONTENTS/VIDEO/0001AB.MXF")
    rig.put("CONTENTS/ICON/.DS_Store")
    (rig.card / "CONTENTS/AUDIO").mkdir()
    (rig.card / "CONTENTS/VOICE/deeper/deepest").mkdir(parents=True)
    (rig.card / "CONTENTS/PROXY").mkdir()
    (rig.card / "CONTENTS/PROXY/link").symlink_to("nowhere")
    (rig.card / ".Trashes").mkdir()
    data = rig.scan()
    folders = {path for path, file in inventory(rig).items() if file.kind is FileKind.FOLDER}
    assert folders == {
        b"CONTENTS/ICON",
        b"CONTENTS/AUDIO",
        b"CONTENTS/VOICE/deeper/deepest",
        b"CONTENTS/PROXY",
    }
    assert data["by_kind"]["folder"] == {"files": 4, "bytes": 0}
    assert data["file_count"] == 1
    assert data["excluded"] == 3
    assert rig.copy(1, rig.create_job(1, data))["copied_files"] == 1


def test_a_card_with_nothing_but_folders_is_empty(rig: Rig) -> None:
    (rig.card / "CONTENTS/VIDEO").mkdir(parents=True)
    data = rig.scan()
    assert data["note"] == "the card is empty"
    assert data["layouts"] == ["Panasonic P2"]


def test_a_film_that_broke_off_is_listed_and_copied(rig: Rig) -> None:
    rig.put("DCIM/100GOPRO/GX010001.MP4", film("whole", 500))
    rig.put("DCIM/100GOPRO/GX010002.MP4", film("broken", 500)[:-8])
    rig.put("DCIM/100GOPRO/GX010003.JPG", b"no film")
    data = rig.scan()
    assert data["exceptions"]["named"] == [
        {"path": "DCIM/100GOPRO/GX010002.MP4", "kind": "media", "problem": boxes.NO_INDEX}
    ]
    assert rig.copy(1, rig.create_job(1, data))["copied_files"] == 3


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
        rig.scanner()(context)
    assert list(inventory(rig)) == [b"clip.mp4"]


def test_the_output_carries_counts_and_no_inventory(rig: Rig, tmp_path: Path) -> None:
    for number in range(200):
        rig.put(f"DCIM/{number}.jpg", b"")
    assert stat.S_ISDIR(os.stat(rig.card).st_mode)
    for number in range(30):
        rig.put(b"\xff" * 200 + b"%d.jpg" % number, b"")
    data = rig.scan()
    assert data["exceptions"]["total"] == 30
    assert len(data["exceptions"]["named"]) == scan_sd.MAX_NAMED
    assert all(len(each["path"]) <= 500 for each in data["exceptions"]["named"])
    del data["exceptions"]
    assert len(str(data)) < 1_000
