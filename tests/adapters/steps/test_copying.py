"""The recipe, with a device that lies."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import xxhash

from adapters.steps import copying, kernel, library, streams
from adapters.steps.cards import OpenCard
from adapters.steps.copying import Copier
from adapters.steps.faults import CardLost, FileFault, LibraryFault
from adapters.steps.library import Folder, Library
from adapters.steps.parts import Batch, Errand, Part, Place
from application.authoring import Interrupted
from domain.footage import CardFile, FileKind
from tests.adapters.steps.conftest import MTIME_NS, Rig

CLIP = b"clip.mp4"


@pytest.fixture
def card(rig: Rig) -> Iterator[OpenCard]:
    with rig.cards.open(str(rig.card)) as card:
        yield card


@pytest.fixture
def folder(rig: Rig) -> Iterator[Folder]:
    with Library(str(rig.library)).open() as folder:
        yield folder


def on_card(rig: Rig, name: bytes = CLIP, content: bytes = b"footage") -> CardFile:
    rig.put(name, content)
    return CardFile(name, FileKind.MEDIA, len(content), MTIME_NS)


def copier(
    card: OpenCard,
    kind: type[Copier] = Copier,
    check: Callable[[], None] = lambda: None,
    moved: Callable[[CardFile, int], None] = lambda file, count: None,
) -> Copier:
    return kind(card, check=check, moved=moved)


def errands(folder: Folder, files: Sequence[CardFile]) -> list[Errand]:
    return [Errand(file, {0: Place(folder, file.path)}) for file in files]


def bring(copier: Copier, folder: Folder, files: Sequence[CardFile]) -> Batch:
    """As ``copy_files`` does it, to one destination."""
    with copier:
        batch = copier.copy(errands(folder, files))
    for fault in batch.lost.values():
        raise fault
    return batch


def hashes(batch: Batch) -> dict[bytes, str]:
    return {each.file.path: each.hashes["xxh64"] for each in batch.arrived}


class BadDevice(Copier):
    """Flips a byte of the first ``bad_copies`` copies once they are synced."""

    bad_copies = 1

    def _sync(self, parts: Sequence[Part]) -> None:
        super()._sync(parts)
        if self.bad_copies:
            self.bad_copies -= 1
            flip(Path(parts[0].folder.text) / os.fsdecode(parts[0].name))


class HopelessDevice(BadDevice):
    bad_copies = 99


class BadReader(Copier):
    """A card reader that gives something else each time, and a device that shows it."""

    card: Path

    def _sync(self, parts: Sequence[Part]) -> None:
        super()._sync(parts)
        flip(Path(parts[0].folder.text) / os.fsdecode(parts[0].name))
        flip(self.card)


def flip(place: Path) -> None:
    status = place.stat()
    content = bytearray(place.read_bytes())
    content[0] = (content[0] + 1) % 256
    place.write_bytes(content)
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))


def names(rig: Rig) -> list[str]:
    return sorted(os.listdir(rig.library))


@pytest.mark.parametrize(
    "size", [0, 1, copying.BUFFER_BYTES - 1, copying.BUFFER_BYTES, copying.BUFFER_BYTES * 4 + 1]
)
def test_a_copy_has_the_bytes_the_time_and_the_hash(
    rig: Rig, card: OpenCard, folder: Folder, size: int
) -> None:
    content = os.urandom(size)
    file = on_card(rig, content=content)
    batch = bring(copier(card), folder, [file])
    assert hashes(batch) == {CLIP: xxhash.xxh64_hexdigest(content)}
    assert [(each.file.path, each.lane, each.name) for each in batch.arrived] == [(CLIP, 0, CLIP)]
    assert not batch.faults
    assert (rig.library / "clip.mp4").read_bytes() == content
    assert (rig.library / "clip.mp4").stat().st_mtime_ns == MTIME_NS
    assert names(rig) == ["clip.mp4"]


def test_written_pages_are_pushed_out_window_by_window(
    rig: Rig, card: OpenCard, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "WINDOW_BYTES", copying.BUFFER_BYTES)
    windows: list[tuple[int, int]] = []
    real = kernel.start_writing_back

    def start(fd: int, offset: int, length: int) -> None:
        windows.append((offset, length))
        real(fd, offset, length)

    monkeypatch.setattr(kernel, "start_writing_back", start)
    bring(copier(card), folder, [on_card(rig, content=os.urandom(copying.BUFFER_BYTES * 3))])
    size = copying.BUFFER_BYTES
    assert windows == [(0, size), (size, size), (2 * size, size)]


def test_several_files_share_one_sync_where_that_is_enough(
    rig: Rig, card: OpenCard, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [on_card(rig, b"%d.thm" % number, b"%d" % number) for number in range(5)]
    synced: list[int] = []
    monkeypatch.setattr(kernel, "sync_file", synced.append)
    monkeypatch.setattr(kernel, "sync_file_system", lambda fd: True)
    assert len(bring(copier(card), folder, files).arrived) == 5
    assert synced == []
    monkeypatch.setattr(kernel, "sync_file_system", lambda fd: False)
    more = [on_card(rig, b"%d.lrv" % number, b"%d" % number) for number in range(5)]
    assert len(bring(copier(card), folder, more).arrived) == 5
    assert len(synced) == 5


def test_a_byte_that_the_device_turned_is_caught_and_the_file_copied_again(
    rig: Rig, card: OpenCard, folder: Folder
) -> None:
    batch = bring(copier(card, BadDevice), folder, [on_card(rig), on_card(rig, b"other", b"12")])
    assert hashes(batch) == {
        CLIP: xxhash.xxh64_hexdigest(b"footage"),
        b"other": xxhash.xxh64_hexdigest(b"12"),
    }
    assert (rig.library / "clip.mp4").read_bytes() == b"footage"
    (aside,) = batch.put_aside
    assert aside.endswith(".bad")
    assert Path(aside).read_bytes() == b"gootage"
    assert len(names(rig)) == 3


def test_a_library_that_is_wrong_twice_is_named_and_what_was_wrong_is_not_published(
    rig: Rig, card: OpenCard, folder: Folder
) -> None:
    with pytest.raises(LibraryFault, match=r"clip\.mp4: the library's side is wrong") as caught:
        bring(copier(card, HopelessDevice), folder, [on_card(rig), on_card(rig, b"other", b"12")])
    bad = [name for name in names(rig) if name.endswith(".bad")]
    assert len(bad) == 2
    assert all(name in str(caught.value) for name in bad)
    assert set(names(rig)) - set(bad) <= {"other"}


def test_a_card_that_reads_differently_each_time_is_named_and_others_go_on(
    rig: Rig, card: OpenCard, folder: Folder
) -> None:
    file, other = on_card(rig), on_card(rig, b"other", b"12")
    reader = copier(card, BadReader)
    assert isinstance(reader, BadReader)
    reader.card = rig.card / "clip.mp4"
    batch = bring(reader, folder, [file, other])
    (fault,) = batch.faults
    assert "the card's side is wrong" in str(fault)
    assert list(hashes(batch)) == [b"other"]
    assert not (rig.library / "clip.mp4").exists()


def test_a_file_that_grows_or_shrinks_or_is_rewritten_meanwhile_is_not_published(
    rig: Rig, card: OpenCard, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = rig.card / "clip.mp4"
    changes: list[Callable[[], object]] = [
        lambda: place.write_bytes(b"footage and more"),
        lambda: place.write_bytes(b"foo"),
        lambda: place.write_bytes(b"FOOTAGE"),
    ]
    for change in changes:
        file = on_card(rig)

        def moved(file: CardFile, count: int, change: Callable[[], object] = change) -> None:
            change()

        batch = bring(copier(card, moved=moved), folder, [file])
        (fault,) = batch.faults
        assert "changed while it was being copied" in str(fault)
        assert names(rig) == []


def test_a_file_that_is_not_the_scan_s_is_refused(rig: Rig, card: OpenCard, folder: Folder) -> None:
    file = on_card(rig)
    rig.put(CLIP, b"longer than before")
    assert "is not what the scan found" in str(bring(copier(card), folder, [file]).faults[0])
    rig.put(CLIP, b"footage", mtime_ns=MTIME_NS + 60_000_000_000)
    assert "is not what the scan found" in str(bring(copier(card), folder, [file]).faults[0])
    rig.put(CLIP, b"footage", mtime_ns=MTIME_NS - 3_600_000_000_000)
    assert bring(copier(card), folder, [file]).faults == []


def test_a_stop_leaves_no_part(rig: Rig, card: OpenCard, folder: Folder) -> None:
    files = [on_card(rig, b"%d.mp4" % number, b"x" * 1000) for number in range(4)]
    files.append(on_card(rig, b"big.mp4", b"x" * (copying.BUFFER_BYTES * 3)))
    for stop_at in range(1, 17):  # every time that it is asked
        calls = 0

        def check(stop_at: int = stop_at) -> None:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise Interrupted

        with pytest.raises(Interrupted):
            bring(copier(card, check=check), folder, files)
        for name in names(rig):
            assert name.endswith(".mp4")
            (rig.library / name).unlink()


def test_an_error_in_the_reading_thread_is_the_card_s(
    rig: Rig, card: OpenCard, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = on_card(rig, content=b"x" * (copying.BUFFER_BYTES * 3))
    real, calls = os.readv, 0

    def readv(fd: int, buffers: Sequence[bytearray]) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(error, os.strerror(error))
        return real(fd, buffers)

    monkeypatch.setattr(os, "readv", readv)
    error = 5
    batch = bring(copier(card), folder, [file])
    assert "can't be read from the card: input/output error" in str(batch.faults[0])
    assert names(rig) == []
    error, calls = 19, 0
    with pytest.raises(CardLost):
        bring(copier(card), folder, [file])
    assert names(rig) == []


def test_a_reading_that_ends_early_is_no_copy(
    rig: Rig, card: OpenCard, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "readv", lambda fd, buffers: 0)
    (fault,) = bring(copier(card), folder, [on_card(rig)]).faults
    assert "0 bytes came of 7" in str(fault)
    assert names(rig) == []


def test_a_new_folder_is_durable_before_it_is_used(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    mkdir = os.mkdir

    def make(name: bytes, *, dir_fd: int) -> None:
        steps.append(f"make {name.decode()}")
        mkdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", make)
    monkeypatch.setattr(
        kernel, "sync_folder", lambda fd: steps.append(os.readlink(f"/proc/self/fd/{fd}")[-7:])
    )
    with folder.make(b"job/DCIM"):
        assert steps == ["make job", "library", "make DCIM", "ary/job"]


def test_an_error_while_reading_back_is_the_library_s(
    rig: Rig, card: OpenCard, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Folder, name: bytes) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Folder, "open_file", fail)
    with pytest.raises(LibraryFault, match=r"the library can't be written at .*input/output"):
        bring(copier(card), folder, [on_card(rig)])
    assert names(rig) == []


def test_what_has_the_name_is_never_replaced_whichever_call_publishes(
    rig: Rig, card: OpenCard, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flagged in (True, False):
        if not flagged:
            monkeypatch.setattr(kernel, "_rename_flagged", None)
        place = rig.library / "clip.mp4"
        place.write_bytes(b"somebody else's")
        (fault,) = bring(copier(card), folder, [on_card(rig)]).faults
        assert f"{place} exists and is not the same; it was left as it is" in str(fault)
        assert place.read_bytes() == b"somebody else's"
        place.unlink()
        assert bring(copier(card), folder, [on_card(rig)]).faults == []
        assert place.read_bytes() == b"footage"
        assert place.stat().st_nlink == 1
        assert names(rig) == ["clip.mp4"]
        place.unlink()


def test_where_no_name_can_be_given_in_one_step_it_is_given_in_two(
    rig: Rig, card: OpenCard, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(kernel, "_rename_flagged", None)
    monkeypatch.setattr(os, "link", no_links)
    assert not bring(copier(card), folder, [on_card(rig)]).faults
    assert names(rig) == ["clip.mp4"]


def test_a_system_that_knows_none_of_the_special_calls_still_copies(
    rig: Rig, card: OpenCard, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in ("_rename_flagged", "_syncfs", "_fallocate", "_sync_file_range"):
        monkeypatch.setattr(kernel, call, None)
    monkeypatch.delattr(os, "posix_fadvise")
    monkeypatch.setattr(copying, "WINDOW_BYTES", copying.BUFFER_BYTES)
    big = on_card(rig, content=os.urandom(copying.BUFFER_BYTES * 3))
    assert len(bring(copier(card), folder, [big, on_card(rig, b"small")]).arrived) == 2


def test_names_of_255_bytes_get_parts_of_their_own(folder: Folder) -> None:
    for stem in (b"x" * 255, "é".encode() * 127 + b"x", b"\xff" * 255):
        one, other = stem, stem[:-1] + b"y"
        parts = []
        for name in (one, other):
            part, fd = folder.new_part(name, name)
            os.close(fd)
            assert len(part) <= 255
            parts.append(part)
        folder.remove_leftovers({one})
        assert folder.status(parts[0], one) is None
        assert folder.status(parts[1], other) is not None
        folder.remove(parts[1])
    part, fd = folder.new_part("é".encode() * 127 + b"x", b"")
    os.close(fd)
    part.decode()


def test_a_link_in_the_library_is_not_followed(rig: Rig, folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (rig.library / "job").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileFault, match="exists and is no folder"):
        folder.make(b"job/DCIM")
    assert folder.find(b"job") is None
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_name_that_the_library_refuses_is_named(folder: Folder) -> None:
    name = b"\x1b" + b"x" * 300
    for refuse in (folder.make, lambda name: folder.status(name, name)):
        with pytest.raises(FileFault, match=r"the library refuses the name .*\\x1bxxx"):
            refuse(name)


def test_what_does_not_fit_a_fat_file_system_is_refused_before_it_is_written(
    folder: Folder,
) -> None:
    largest = (b"A001.mxf", library.FAT_FILE_BYTES + 1)
    (problem,) = folder.problems(largest, file_system_of=lambda fd: "vfat")
    assert re.search(r"FAT file system.*4 GiB.*A001\.mxf", problem)
    assert folder.problems(largest, file_system_of=lambda fd: "ext4") == []


def test_the_order_is_sync_forget_read_back_publish_sync_the_folder(
    rig: Rig, card: OpenCard, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def noted(step: str, owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: object, **options: object) -> object:
            steps.append(step)
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    noted("write", os, "write")
    noted("time", os, "utime")
    noted("sync", kernel, "sync_file")
    noted("forget", kernel, "forget_cached")
    noted("open anew", Folder, "open_file")
    noted("publish", kernel, "rename_without_replacing")
    noted("sync folder", kernel, "sync_folder")
    file = on_card(rig)
    steps.clear()
    bring(copier(card), folder, [file])
    assert steps == [
        "write",
        "time",
        "open anew",
        "sync",
        "open anew",
        "forget",
        "publish",
        "sync folder",
    ]


def test_small_files_are_opened_before_their_turn_and_not_one_stays_open(
    rig: Rig, card: OpenCard, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [on_card(rig, b"%02d.mp4" % number) for number in range(40)]
    (rig.card / "05.mp4").unlink()
    (rig.card / "20.mp4").write_bytes(b"longer than before")
    order: list[str] = []
    real = OpenCard.open_with_status

    def open_file(self: OpenCard, path: bytes) -> tuple[int, os.stat_result]:
        order.append(f"open {path.decode()}")
        return real(self, path)

    def moved(file: CardFile, count: int) -> None:
        order.append(f"read {file.path.decode()}")

    monkeypatch.setattr(OpenCard, "open_with_status", open_file)
    before = len(os.listdir("/proc/self/fd"))
    with copier(card, moved=moved) as given:
        batch = given.copy(errands(folder, files))
    assert order.index("read 00.mp4") == streams.FILES_AHEAD + 1
    assert order.index("read 01.mp4") == streams.FILES_AHEAD + 3
    assert [fault.path for fault in batch.faults] == [b"05.mp4", b"20.mp4"]
    assert len(batch.arrived) == 38
    if kernel.file_system_of(folder.fd) != "tmpfs":
        assert all(each.is_cold for each in batch.arrived)
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the card's last folder

    def stop() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        bring(copier(card, check=stop), folder, [on_card(rig, b"a%d" % each) for each in range(9)])
    assert len(os.listdir("/proc/self/fd")) <= before + 1
