"""verify_folder on a real disk: what it finds, what it mends, what it leaves alone."""

from __future__ import annotations

import csv
import io
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.steps import kernel
from adapters.steps import verify_folder as verify_module
from adapters.steps.faults import LibraryFault
from adapters.steps.mhl.documents import Action, Creator
from adapters.steps.verify_folder import VerifyFolder, verify_folder
from application.authoring import Interrupted, PermanentError
from domain.errors import InvalidInput
from tests.adapters.steps.conftest import NoonClock, Rig, snapshot
from tests.adapters.steps.dying import dies
from tests.adapters.steps.finishing import Finishing
from tests.adapters.steps.mhl.conftest import Reference, Shelf

CREATOR = Creator("cart-1", "Rushes", "0.1.0")
LARGE = 9 * 1024 * 1024
Verify = Callable[..., dict[str, Any]]


@pytest.fixture
def verify(rig: Rig, tmp_path: Path) -> Verify:
    def run(folder: object, **data: object) -> dict[str, Any]:
        if isinstance(folder, Shelf):
            folder = str(folder.root)
        step = VerifyFolder(NoonClock(), [str(tmp_path)], ["/sys"], CREATOR)
        return step(rig.context("verify_files", 1, {"folder": folder, **data}))

    return run


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf")


@pytest.fixture
def reference() -> Reference:
    return Reference()


@pytest.fixture
def full(shelf: Shelf) -> Shelf:
    """Three files and their manifest."""
    shelf.put("A/large.mov", os.urandom(LARGE))
    shelf.add([shelf.hashed("A/large.mov"), shelf.hashed(shelf.put("A/small.mov"), "md5", "c4")])
    shelf.add_new("empty.mov")
    return shelf


@pytest.fixture
def other(full: Shelf, tmp_path: Path) -> Shelf:
    """The same files on another disk; it needs no manifests."""
    twin = Shelf(tmp_path / "other")
    for path in ("A/large.mov", "A/small.mov", "empty.mov"):
        twin.put(path, (full.root / path).read_bytes())
        os.utime(twin.root / path, ns=(10**18, 10**18))
    return twin


def flip(path: Path, at: int = 0) -> bytes:
    """Turn one bit over, as a disk would: the time stays. What the content is then."""
    content = bytearray(path.read_bytes())
    times = path.stat()
    content[at] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return bytes(content)


def found(output: dict[str, Any]) -> dict[str, str]:
    return {each["path"]: each["finding"] for each in output.get("findings", [])}


# -- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        (None, "absolute"),
        (7, "absolute"),
        ("", "absolute"),
        ("shelf", "absolute"),
        ("/a\0b", "absolute"),
        ("/" + "a" * 5_000, "too long"),
        ("/\ud800", "encoded"),
        ("/etc", "refused"),
        ("/", "refused"),
    ],
)
def test_a_folder_that_may_not_be_asked_for_is_refused(
    verify: Verify, full: Shelf, folder: object, why: str
) -> None:
    with pytest.raises(PermanentError, match=why):
        verify(folder)
    if folder is not None:
        with pytest.raises(PermanentError, match=why):
            verify(full, repair_from=folder)


def test_a_way_out_of_the_roots_is_refused(verify: Verify, full: Shelf, tmp_path: Path) -> None:
    (full.root / "out").symlink_to("/etc")
    for way in (f"{full.root}/out", f"{tmp_path}/../../../../../../etc"):
        with pytest.raises(PermanentError, match="refused"):
            verify(way)


@pytest.mark.parametrize("more", [{"write": True}, {"repair_from": "other"}])
def test_nothing_is_written_below_the_card_roots(
    rig: Rig, full: Shelf, other: Shelf, more: dict[str, object]
) -> None:
    step = VerifyFolder(NoonClock(), [str(other.root)], [str(full.root)], CREATOR)
    data = {"folder": str(full.root)}
    assert step(rig.context("verify_files", 1, data))["intact"] is True
    if "repair_from" in more:
        more = {"repair_from": str(other.root)}
    with pytest.raises(PermanentError, match="RUSHES_LIBRARY and RUSHES_VERIFY_ROOTS"):
        step(rig.context("verify_files", 1, data | more))


def test_footage_may_be_repaired_from_a_card(rig: Rig, full: Shelf, other: Shelf) -> None:
    (full.root / "empty.mov").unlink()
    step = VerifyFolder(NoonClock(), [str(full.root)], [str(other.root)], CREATOR)
    data = {"folder": str(full.root), "repair_from": str(other.root)}
    assert step(rig.context("verify_files", 1, data))["repaired_files"] == 1


@pytest.mark.parametrize("write", ["yes", 1, None])
def test_a_write_that_is_neither_yes_nor_no_is_refused(
    verify: Verify, full: Shelf, write: object
) -> None:
    with pytest.raises(PermanentError, match="true or false"):
        verify(full, write=write)


def test_a_folder_that_is_not_there_is_named(verify: Verify, tmp_path: Path) -> None:
    with pytest.raises(LibraryFault, match="nowhere"):
        verify(str(tmp_path / "nowhere"))


def test_a_folder_without_manifests_is_not_said_to_be_intact(verify: Verify, shelf: Shelf) -> None:
    shelf.put("a.mov")
    with pytest.raises(PermanentError, match="no manifest"):
        verify(shelf)
    (shelf.root / "ascmhl").mkdir()
    with pytest.raises(PermanentError, match="list no file"):
        verify(shelf)


def test_who_names_a_folder_within_is_told_which_one_has_the_manifests(
    verify: Verify, full: Shelf
) -> None:
    with pytest.raises(PermanentError, match=f"; {full.root} has manifests: verify that"):
        verify(str(full.root / "A"))


def test_a_folder_is_not_repaired_from_itself(verify: Verify, full: Shelf) -> None:
    with pytest.raises(PermanentError, match="itself"):
        verify(full, repair_from=str(full.root))


# -- what is found -------------------------------------------------------------------


def test_what_is_as_it_was_is_intact_and_nothing_is_touched(verify: Verify, full: Shelf) -> None:
    before = snapshot(full.root)
    output = verify(full)
    assert snapshot(full.root) == before
    assert output["intact"] is True
    assert output["good_files"] == output["listed_files"] == 3
    assert output["bad_files"] == output["unlisted_files"] == 0
    assert output["checked_bytes"] == sum(path.stat().st_size for path in full.root.rglob("*.mov"))
    assert output["generations"] == 2
    assert "findings" not in output


@pytest.mark.parametrize("at", [0, LARGE // 2, LARGE - 1])
def test_one_bit_is_found_wherever_it_is(verify: Verify, full: Shelf, at: int) -> None:
    flip(full.root / "A/large.mov", at)
    output = verify(full)
    assert output["intact"] is False
    assert found(output) == {"A/large.mov": "changed"}
    assert "xxh64" in output["findings"][0]["detail"]
    assert output["good_files"] == 2


def test_each_kind_of_damage_is_named(verify: Verify, full: Shelf, tmp_path: Path) -> None:
    for name in ("link", "folder", "fifo", "shorter", "gone", "good"):
        full.add_new(name)
    (full.root / "link").rename(tmp_path / "away")
    (full.root / "link").symlink_to(tmp_path / "away")
    for name in ("folder", "fifo", "gone"):
        (full.root / name).unlink()
    (full.root / "folder").mkdir()
    os.mkfifo(full.root / "fifo")
    (full.root / "shorter").write_bytes(b"")
    (full.root / "A/small.mov").unlink()
    (full.root / "A/large.mov").unlink()
    (full.root / "A").rmdir()
    output = verify(full)
    assert found(output) == {
        "link": "changed",
        "folder": "changed",
        "fifo": "changed",
        "shorter": "changed",
        "gone": "missing",
        "A/large.mov": "missing",
        "A/small.mov": "missing",
    }
    assert output["damage"] == {"changed": 4, "missing": 3}
    assert output["good_files"] == 2


def test_a_disk_that_gives_errors_is_named_file_by_file(
    verify: Verify, full: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.readv
    large = os.stat(full.root / "A/large.mov")

    def failing(fd: int, buffers: Any) -> int:
        if os.path.samestat(os.fstat(fd), large):
            raise OSError(5, "Input/output error")
        return real(fd, buffers)

    monkeypatch.setattr(os, "readv", failing)
    output = verify(full)
    assert found(output) == {"A/large.mov": "unreadable"}
    assert "input/output error" in output["findings"][0]["detail"]


def test_what_is_in_no_manifest_is_named_and_is_no_damage(verify: Verify, full: Shelf) -> None:
    full.put("B/extra.mov")
    full.put(b"caf\xe9\x1b.mov")
    for junk in (".DS_Store", "A/._small.mov", "Thumbs.db", ".Trashes/501/deleted.mov"):
        full.put(junk)
    output = verify(full)
    assert output["intact"] is True
    assert output["unlisted_files"] == 2
    assert output["unlisted"] == ["caf\\xe9\\x1b.mov", "B/extra.mov"]


def test_a_manifest_that_was_tampered_with_is_named(verify: Verify, full: Shelf) -> None:
    flip(full.manifests[0], 200)
    output = verify(full)
    assert output["intact"] is False
    assert found(output) == {"ascmhl": "manifest"}
    assert output["good_files"] == 0


def test_hashes_of_kinds_that_are_unknown_here_are_not_called_good(
    verify: Verify, full: Shelf
) -> None:
    full.chain.unlink()
    full.manifests[1].unlink()
    text = full.manifests[0].read_text().replace("<xxh64", "<blake3").replace("</xxh64", "</blake3")
    full.manifests[0].write_text(text)
    output = verify(full)
    assert output["intact"] is False
    assert found(output) == {"A/large.mov": "unchecked"}


def test_letters_that_were_composed_anew_on_the_way_are_the_same_file(
    verify: Verify, full: Shelf
) -> None:
    composed = unicodedata.normalize("NFC", "Übung/größer.mov")
    full.add_new(composed)
    (full.root / composed).rename(full.root / "away")
    (full.root / composed).parent.rmdir()
    full.put(unicodedata.normalize("NFD", composed), (full.root / "away").read_bytes())
    (full.root / "away").unlink()
    output = verify(full)
    assert output["intact"] is True
    assert output["good_files"] == 4
    assert output["unlisted_files"] == 0


def test_of_two_names_that_differ_only_in_how_letters_are_composed_neither_is_the_other(
    verify: Verify, tmp_path: Path
) -> None:
    composed, apart = (unicodedata.normalize(form, "Übung.mov") for form in ("NFC", "NFD"))
    shelf, other = Shelf(tmp_path / "one"), Shelf(tmp_path / "other")
    for each in (shelf, other):
        names = (each.put(composed, b"one"), each.put(apart, b"two"))
        each.add([each.hashed(name) for name in names])
    (shelf.root / apart).unlink()
    output = verify(shelf)
    assert found(output) == {apart: "missing"}
    assert verify(shelf, repair_from=str(other.root))["repaired_files"] == 1
    assert verify(shelf)["intact"]
    assert (shelf.root / composed).read_bytes() == b"one"
    assert (shelf.root / apart).read_bytes() == b"two"


def test_a_library_s_own_reports_are_nothing_that_a_manifest_should_list(
    verify: Verify, tmp_path: Path
) -> None:
    library = Shelf(tmp_path / "library")
    job = Shelf(library.root / "one")
    job.add_new("a.mov", "reports/of the card.csv")
    job.put("reports/strange.csv")
    for name in ("one_2026-11-22_120000Z.html", "one.csv", "odd.mov", "below/one.csv"):
        library.put(f"reports/{name}")
    output = verify(library)
    assert sorted(output["unlisted"]) == [
        "one/reports/strange.csv",
        "reports/below/one.csv",
        "reports/odd.mov",
    ]
    assert verify(job)["unlisted"] == ["reports/strange.csv"]


def test_every_folder_of_a_library_answers_for_its_own_files(
    verify: Verify, tmp_path: Path
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    for day in ("one", "two", "three"):
        Shelf(library / day).add_new("a.mov", "b.mov")
    Shelf(library / "loose").put("c.mov")
    flip(library / "two" / "b.mov")
    flip(library / "three" / "ascmhl" / "0001_shelf_2026-11-22_120000Z.mhl", 200)
    output = verify(str(library))
    assert found(output) == {"two/b.mov": "changed", "three/ascmhl": "manifest"}
    assert output["good_files"] == 3
    assert output["unlisted"] == ["loose/c.mov", "three/a.mov", "three/b.mov"]


def test_a_generation_that_the_chain_doesnt_know_counts_and_is_told(
    verify: Verify, full: Shelf
) -> None:
    full.add_new("late.mov")
    text = full.chain.read_text()
    full.chain.write_text(text[: text.index('  <hashlist sequencenr="3"')] + "</ascmhldirectory>")
    flip(full.root / "late.mov")
    output = verify(full)
    assert found(output) == {"late.mov": "changed"}
    assert "0003_shelf" in output["notes"][0]


def test_a_folder_that_cant_be_looked_into_is_told(
    verify: Verify, full: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    full.put("closed/x.mov")
    closed = os.stat(full.root / "closed")
    real = os.scandir

    def failing(place: Any) -> Any:
        if isinstance(place, int) and os.path.samestat(os.fstat(place), closed):
            raise PermissionError(13, "Permission denied")
        return real(place)

    monkeypatch.setattr(os, "scandir", failing)
    output = verify(full)
    assert output["intact"] is True
    assert output["notes"] == ["closed: can't be looked into: permission denied"]


def test_names_in_the_output_are_bounded_and_counts_are_not(verify: Verify, shelf: Shelf) -> None:
    shelf.add_new(*(f"{number:03}.mov" for number in range(300)))
    for number in range(300):
        (shelf.root / f"{number:03}.mov").rename(shelf.root / f"{number:03}.other")
    output = verify(shelf)
    assert output["damage"] == {"missing": 300}
    assert len(output["findings"]) == 200
    assert output["unlisted_files"] == 300
    assert len(output["unlisted"]) == 20


def test_a_folder_that_goes_away_is_not_said_to_be_damaged(
    verify: Verify, full: Shelf, rig: Rig, tmp_path: Path
) -> None:
    flip(full.root / "A/large.mov")
    rig.on_report = lambda fraction, detail: (
        full.root.rename(tmp_path / "gone") if full.root.exists() else None
    )
    with pytest.raises(LibraryFault, match="is gone"):
        verify(full)


def test_progress_rises_to_the_whole_of_the_bytes(verify: Verify, full: Shelf, rig: Rig) -> None:
    (full.root / "A/small.mov").unlink()
    verify(full)
    fractions = [fraction for fraction, _ in rig.reports]
    assert fractions == sorted(fractions)
    assert len(fractions) > 3
    fraction, detail = rig.reports[-1]
    assert fraction == 1.0
    assert detail["files_done"] == detail["files_total"] == 3
    assert detail["bytes_done"] == detail["bytes_total"]


def test_it_stops_within_a_large_file(verify: Verify, full: Shelf, rig: Rig) -> None:
    rig.stopping = lambda: len(rig.reports) > 1
    with pytest.raises(Interrupted):
        verify(full)
    assert len(rig.reports) == 2


def test_what_is_read_is_dropped_from_memory_before(
    verify: Verify, full: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    real_forget, real_read = kernel.forget_cached, os.readv

    def forget(fd: int, *more: int) -> None:
        calls.append(("forget", os.fstat(fd).st_ino))
        real_forget(fd, *more)

    def read(fd: int, buffers: Any) -> int:
        calls.append(("read", os.fstat(fd).st_ino))
        return real_read(fd, buffers)

    monkeypatch.setattr(kernel, "forget_cached", forget)
    monkeypatch.setattr(os, "readv", read)
    verify(full)
    large = (full.root / "A/large.mov").stat().st_ino
    assert [what for what, inode in calls if inode == large] == [
        "forget",
        *["read"] * 4,
        "forget",
    ]


# -- a generation of what was found --------------------------------------------------


def test_what_was_found_is_written_only_where_that_is_asked_for(
    verify: Verify, full: Shelf, reference: Reference
) -> None:
    output = verify(full, write=True)
    assert output["intact"] is True
    assert [Path(path) for path in output["written"]] == [full.manifests[2]]
    text = full.manifests[2].read_text()
    assert text.count(f'action="{Action.VERIFIED}"') == 4
    assert "<process>in-place</process>" in text
    reference.accepts(full)
    assert verify(full)["generations"] == 3


def test_damage_is_written_as_failed_and_is_still_found_later(
    verify: Verify, full: Shelf, reference: Reference
) -> None:
    flip(full.root / "A/large.mov")
    (full.root / "A/small.mov").write_bytes(b"shorter")
    (full.root / "empty.mov").unlink()
    assert found(verify(full, write=True)) == {
        "A/large.mov": "changed",
        "A/small.mov": "changed",
        "empty.mov": "missing",
    }
    text = full.manifests[2].read_text()
    assert text.count('action="failed"') == 3
    assert "empty.mov" not in text
    assert found(verify(full)) == {
        "A/large.mov": "changed",
        "A/small.mov": "changed",
        "empty.mov": "missing",
    }
    judged = reference("ascmhl-debug", "verify", full.root)
    assert judged.returncode != 0


def test_each_folder_gets_a_generation_under_its_own_name(verify: Verify, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    for day in ("one", "two"):
        Shelf(library / day).add_new("a.mov")
    verify(str(library), write=True)
    names = sorted(path.name for path in library.rglob("0002*.mhl"))
    assert names == ["0002_one_2026-11-22_120000Z.mhl", "0002_two_2026-11-22_120000Z.mhl"]


# -- repair --------------------------------------------------------------------------


def test_what_is_damaged_or_missing_comes_from_the_other_folder(
    verify: Verify, full: Shelf, other: Shelf
) -> None:
    bad = flip(full.root / "A/large.mov", 77)
    times = {path: (full.root / path).stat().st_mtime_ns for path in ("A/large.mov", "A/small.mov")}
    (full.root / "A/small.mov").unlink()
    before = snapshot(other.root)
    output = verify(full, repair_from=str(other.root))
    assert snapshot(other.root) == before
    assert output["intact"] is True
    assert output["repaired_files"] == 2
    for path in ("A/large.mov", "A/small.mov"):
        assert (full.root / path).read_bytes() == (other.root / path).read_bytes()
    # The other copy was made without their times. The manifest counts in seconds.
    assert (full.root / "A/large.mov").stat().st_mtime_ns == times["A/large.mov"]
    small_ns = (full.root / "A/small.mov").stat().st_mtime_ns
    assert small_ns == times["A/small.mov"] // 10**9 * 10**9
    (aside,) = output["put_aside"]
    assert Path(aside).read_bytes() == bad
    assert Path(aside).parent == full.root / "A"
    names = sorted(path.name for path in (full.root / "A").iterdir())
    assert names == ["large.mov", Path(aside).name, "small.mov"]
    assert verify(full)["intact"] is True


@pytest.mark.parametrize("is_dated", [False, True])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_mended_file_has_the_time_that_is_the_likeliest(
    verify: Verify, shelf: Shelf, tmp_path: Path, is_dated: bool, is_there: bool
) -> None:
    file = shelf.hashed(shelf.put("a.mov"))
    shelf.add([replace(file, mtime_ns=10**18 if is_dated else 2**80)])
    twin = Shelf(tmp_path / "twin")
    twin.put("a.mov", (shelf.root / "a.mov").read_bytes())
    os.utime(twin.root / "a.mov", ns=(1, 2 * 10**18))
    if is_there:
        (shelf.root / "a.mov").write_bytes(b"spoilt")
        os.utime(shelf.root / "a.mov", ns=(1, 10**18 + 5 * 10**8))
    else:
        (shelf.root / "a.mov").unlink()
    assert verify(shelf, repair_from=str(twin.root))["intact"] is True
    mtime_ns = (shelf.root / "a.mov").stat().st_mtime_ns
    assert (
        mtime_ns
        == {
            (True, True): 10**18 + 5 * 10**8,
            (True, False): 10**18,
            (False, True): 10**18 + 5 * 10**8,
            (False, False): 2 * 10**18,
        }[is_dated, is_there]
    )


@pytest.mark.parametrize("how", ["flipped", "rewritten", "gone"])
def test_a_card_whose_copy_was_mended_is_safe_to_format(
    tmp_path: Path, verify: Verify, how: str
) -> None:
    cards = Finishing(tmp_path / "cards")
    for name in ("clip1.jpg", "clip2.jpg"):
        cards.put(name, b"footage of " + name.encode())
    data = cards.taken_in()
    assert data["safe_to_format"]
    backup = tmp_path / "backup"
    shutil.copytree(cards.job, backup, copy_function=shutil.copyfile)  # without their times
    copy = cards.job / "clip1.jpg"
    if how == "flipped":
        flip(copy)
    elif how == "rewritten":
        copy.write_bytes(b"spoilt")
    else:
        copy.unlink()
    assert not cards.judge(data)["safe_to_format"] or how == "flipped"
    output = verify(str(cards.job), repair_from=str(backup))
    assert (output["intact"], output["repaired_files"]) == (True, 1)
    assert cards.judge(data)["safe_to_format"]


def test_a_repaired_folder_pleases_the_reference(
    verify: Verify, full: Shelf, other: Shelf, reference: Reference
) -> None:
    """Ours knows its own bad copies by their names, from the generation on that it wrote."""
    flip(full.root / "A/large.mov", 77)
    assert verify(full, repair_from=str(other.root), write=True)["intact"] is True
    reference.accepts(full)


def test_a_whole_folder_that_is_gone_comes_back(verify: Verify, full: Shelf, other: Shelf) -> None:
    for name in ("large.mov", "small.mov"):
        (full.root / "A" / name).unlink()
    (full.root / "A").rmdir()
    output = verify(full, repair_from=str(other.root))
    assert output["repaired_files"] == 2
    assert "put_aside" not in output


@pytest.mark.parametrize("as_large", [True, False])
def test_nothing_comes_from_a_folder_that_is_damaged_too(
    verify: Verify, full: Shelf, other: Shelf, as_large: bool
) -> None:
    flip(full.root / "A/large.mov", 77)
    if as_large:
        flip(other.root / "A/large.mov", 78)
    else:
        (other.root / "A/large.mov").write_bytes(b"short")
    (full.root / "empty.mov").unlink()
    (other.root / "empty.mov").unlink()
    before = snapshot(full.root)
    output = verify(full, repair_from=str(other.root))
    assert output["intact"] is False
    assert found(output) == {"A/large.mov": "changed", "empty.mov": "missing"}
    details = [each["detail"] for each in output["findings"]]
    assert "not repaired" in details[0]
    assert "damaged too" in details[0]
    assert "not at" in details[1]
    after = snapshot(full.root)
    contents = {path: entry.get("content") for path, entry in after.items()}
    assert contents == {path: entry.get("content") for path, entry in before.items()}


def test_links_in_the_other_folder_are_not_followed(
    verify: Verify, full: Shelf, other: Shelf, tmp_path: Path
) -> None:
    (full.root / "empty.mov").unlink()
    (other.root / "empty.mov").rename(tmp_path / "away")
    (other.root / "empty.mov").symlink_to(tmp_path / "away")
    output = verify(full, repair_from=str(other.root))
    assert found(output) == {"empty.mov": "missing"}


def test_a_link_is_put_aside_and_what_it_led_to_is_left_alone(
    verify: Verify, full: Shelf, other: Shelf, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (full.root / "empty.mov").unlink()
    (full.root / "empty.mov").symlink_to(tmp_path / "secret")
    output = verify(full, repair_from=str(other.root))
    assert output["repaired_files"] == 1
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert not (full.root / "empty.mov").is_symlink()
    (aside,) = output["put_aside"]
    assert os.readlink(aside) == str(tmp_path / "secret")


def test_a_folder_in_the_place_of_a_file_stays(verify: Verify, full: Shelf, other: Shelf) -> None:
    (full.root / "empty.mov").unlink()
    (full.root / "empty.mov").mkdir()
    full.put("empty.mov/inside")
    output = verify(full, repair_from=str(other.root))
    assert found(output) == {"empty.mov": "changed"}
    assert (full.root / "empty.mov/inside").exists()


def test_a_disk_that_gives_back_other_bytes_is_named_and_nothing_is_published(
    verify: Verify, full: Shelf, other: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = flip(full.root / "A/large.mov", 77)
    real = kernel.sync_file

    def sync_and_spoil(fd: int) -> None:
        real(fd)
        os.pwrite(fd, b"spoilt", 1_000)
        real(fd)

    monkeypatch.setattr(kernel, "sync_file", sync_and_spoil)
    with pytest.raises(LibraryFault, match="the library's side is wrong"):
        verify(full, repair_from=str(other.root))
    assert (full.root / "A/large.mov").read_bytes() == bad
    assert sorted(path.suffix for path in (full.root / "A").iterdir()) == [".bad", ".mov", ".mov"]


def test_a_repair_that_is_stopped_leaves_no_part(
    verify: Verify, full: Shelf, other: Shelf, rig: Rig
) -> None:
    (full.root / "A/large.mov").unlink()
    rig.stopping = lambda: any(full.root.rglob("*.part"))
    with pytest.raises(Interrupted):
        verify(full, repair_from=str(other.root))
    assert sorted(path.name for path in (full.root / "A").iterdir()) == ["small.mov"]


def test_a_part_that_a_killed_repair_left_is_removed(
    verify: Verify, full: Shelf, other: Shelf
) -> None:
    (full.root / "A/large.mov").rename(full.root / "A/large.mov.0123abcd.part")
    (full.root / "A/other.mov.0123abcd.part").write_bytes(b"somebody else's")
    assert verify(full, repair_from=str(other.root))["repaired_files"] == 1
    assert sorted(path.name for path in (full.root / "A").iterdir()) == [
        "large.mov",
        "other.mov.0123abcd.part",
        "small.mov",
    ]


CALLS = (
    (os, "write"),
    (os, "utime"),
    (os, "unlink"),
    (kernel, "sync_file"),
    (kernel, "sync_folder"),
    (kernel, "rename_without_replacing"),
)


def test_killed_at_any_point_of_a_repair_the_next_one_mends_the_rest(
    verify: Verify, full: Shelf, other: Shelf, tmp_path: Path
) -> None:
    good = {path: (other.root / path).read_bytes() for path in ("A/large.mov", "A/small.mov")}
    died = 0
    for point in range(1, 100):
        bad = flip(full.root / "A/large.mov", point)
        (full.root / "A/small.mov").unlink()
        is_dead = dies(lambda: verify(full, repair_from=str(other.root)), point, CALLS)
        for path, content in good.items():
            if (full.root / path).exists():
                assert (full.root / path).read_bytes() in (content, bad)
        assert verify(full, repair_from=str(other.root))["intact"] is True
        names = sorted(path.name for path in (full.root / "A").iterdir())
        assert [name for name in names if name.endswith(".mov")] == ["large.mov", "small.mov"]
        asides = [name for name in names if name.endswith(".bad")]
        assert len(names) == 3, f"parts are left: {names}"
        assert [(full.root / "A" / name).read_bytes() for name in asides] == [bad]
        (full.root / "A" / asides[0]).unlink()
        if not is_dead:
            break
        died += 1
    assert died > 10, "it didn't die at all the points that there are"


def test_the_pipeline_has_one_step_among_the_copies() -> None:
    pipeline = verify_folder(clock=NoonClock(), roots=[], card_roots=[], creator=CREATOR)
    (spec,) = pipeline.definition.steps
    assert (pipeline.type, spec.name, spec.pool) == ("verify_folder", "verify_files", "copy")
    assert not pipeline.card


# -- going on ------------------------------------------------------------------------


class Cart:
    """Verifies a folder again and again, as one execution's attempts would."""

    def __init__(self, rig: Rig, tmp_path: Path, shelf: Shelf) -> None:
        self.rig = rig
        self.shelf = shelf
        self.roots = [str(tmp_path)]
        self.data: dict[str, Any] = {"folder": str(shelf.root)}

    def attempt(self) -> dict[str, Any]:
        context = self.rig.context("verify_files", 1, dict(self.data))
        context.checkpoint = self.rig.checkpoints[-1] if self.rig.checkpoints else None
        self.rig.reports.clear()
        step = VerifyFolder(NoonClock(), self.roots, [], CREATOR)
        return step(context)

    def killed_at(self, name: str) -> None:
        """When this file's first byte has been read."""
        self.rig.stopping = lambda: (
            bool(self.rig.reports) and (self.rig.reports[-1][1]["file"] == name)
        )
        with pytest.raises(Interrupted):
            self.attempt()
        self.rig.stopping = lambda: False

    def read(self) -> set[str]:
        """The files of which the last attempt has read bytes."""
        told = Counter(detail["file"] for _, detail in self.rig.reports)
        return {name for name, times in told.items() if times > 1}


@pytest.fixture
def cart(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cart:
    """A shelf of four files that takes two looks at the stop-watch each to be noted."""
    monkeypatch.setattr(verify_module, "NOTE_EVERY_S", 1.0)
    shelf = Shelf(tmp_path / "shelf")
    shelf.add_new("A/1.mov", "A/2.mov", "A/3.mov", "A/4.mov")
    return Cart(rig, tmp_path, shelf)


def test_after_a_crash_it_goes_on_and_says_what_it_would_have_said(cart: Cart) -> None:
    shelf = cart.shelf.root
    (shelf / "A/1.mov").write_bytes(b"footage of A/1.mow")
    whole = cart.attempt()
    cart.rig.checkpoints.clear()
    cart.killed_at("A/3.mov")
    assert cart.rig.checkpoints[-1]["files"] == 2
    assert cart.attempt() == whole
    assert cart.read() == {"A/1.mov", "A/3.mov", "A/4.mov"}  # what was bad is read again


def test_what_was_read_before_is_read_again_if_it_isnt_there_as_it_was(cart: Cart) -> None:
    shelf = cart.shelf.root
    cart.killed_at("A/4.mov")
    (shelf / "A/1.mov").unlink()
    (shelf / "A/2.mov").write_bytes(b"longer than it was, by far")
    output = cart.attempt()
    assert found(output) == {"A/1.mov": "missing", "A/2.mov": "changed"}
    assert output["good_files"] == 2


def test_other_manifests_than_those_it_began_with_make_it_begin_anew(cart: Cart) -> None:
    cart.killed_at("A/4.mov")
    cart.shelf.add_new("A/0.mov")
    assert cart.attempt()["good_files"] == 5
    assert len(cart.read()) == 5


def test_a_disk_that_went_away_leaves_no_word_of_files_that_are_missing(cart: Cart) -> None:
    shelf = cart.shelf.root
    away = shelf.with_name("away")

    def pull(fraction: float, detail: dict[str, Any]) -> None:
        if detail["file"] == "A/3.mov":
            shelf.rename(away)
            shutil.move(away / "A", away / "B")
            cart.rig.on_report = lambda fraction, detail: None

    cart.rig.on_report = pull
    with pytest.raises(LibraryFault, match="is gone"):
        cart.attempt()
    shutil.move(away / "B", away / "A")
    away.rename(shelf)
    assert all(not each["again"] for each in cart.rig.checkpoints)
    assert cart.attempt()["intact"] is True


def test_several_folders_are_gone_on_with_and_sealed_once_each(
    cart: Cart, tmp_path: Path, reference: Reference
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    for day in ("one", "two"):
        Shelf(library / day).add_new("a.mov", "b.mov", "c.mov")
    (library / "one" / "b.mov").write_bytes(b"footage of b.mow")
    cart.data = {"folder": str(library), "write": True}
    cart.killed_at("one/c.mov")
    cart.killed_at("two/b.mov")
    output = cart.attempt()
    assert found(output) == {"one/b.mov": "changed"}
    assert output["good_files"] == 5
    assert len(output["written"]) == 2
    for day in ("one", "two"):
        assert len(list((library / day / "ascmhl").glob("*.mhl"))) == 2
    verified = reference("ascmhl-debug", "verify", library / "two")
    assert verified.returncode == 0, verified.stdout
    sealed = (library / "one/ascmhl").glob("0002*.mhl")
    text = next(sealed).read_text()
    assert text.count('action="verified"') == 2
    assert text.count('action="failed"') == 1


def test_what_was_repaired_before_a_crash_is_still_told_of(cart: Cart, tmp_path: Path) -> None:
    shelf, other = cart.shelf.root, Shelf(tmp_path / "other")
    other.put("A/1.mov", (shelf / "A/1.mov").read_bytes())
    (shelf / "A/1.mov").write_bytes(b"footage of A/1.mow")
    cart.data["repair_from"] = str(other.root)
    cart.killed_at("A/3.mov")
    output = cart.attempt()
    assert (output["intact"], output["repaired_files"], output["good_files"]) == (True, 1, 3)
    assert len(output["put_aside"]) == 1


def test_a_folder_with_too_much_damage_leaves_no_endless_checkpoint(
    cart: Cart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "MAX_NOTED", 1)
    for number in (1, 2, 3):
        (cart.shelf.root / f"A/{number}.mov").unlink()
    cart.killed_at("A/4.mov")
    assert max(len(each["again"]) for each in cart.rig.checkpoints) == 1
    assert cart.attempt()["bad_files"] == 3


def test_the_rate_and_the_time_left_are_told(cart: Cart) -> None:
    shelf = cart.shelf.root
    cart.rig.stopping = lambda: False
    (shelf / "A/1.mov").write_bytes(b"x")
    cart.attempt()
    told = [detail for _, detail in cart.rig.reports if "bytes_per_s" in detail]
    assert told
    assert all(detail["bytes_per_s"] > 0 and detail["seconds_left"] >= 0 for detail in told)


# -- the report ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (7, "path of a"),
        ("here.csv", "absolute"),
        ("/tmp/report.pdf", r"\.csv or \.html"),
        ("/tmp/.csv", r"\.csv or \.html"),
        ("/etc/report.csv", "refused"),
    ],
)
def test_a_report_that_may_not_be_written_is_refused(
    verify: Verify, full: Shelf, report: object, why: str
) -> None:
    with pytest.raises(PermanentError, match=why):
        verify(full, report=report)


def test_a_report_names_every_file_and_runs_nothing(
    verify: Verify, full: Shelf, other: Shelf, tmp_path: Path
) -> None:
    nasty = "=cmd|'<script>.mov"
    full.add_new(nasty, "gone.mov")
    (full.root / "gone.mov").unlink()
    flip(full.root / "A/small.mov")
    full.put("unlisted.mov")
    place = tmp_path / "report.csv"
    output = verify(full, repair_from=str(other.root), report=str(place))
    assert output["report"] == str(place)
    rows = list(csv.reader(io.StringIO(place.read_text("utf-8-sig"))))
    assert rows[0] == ["path", "finding", "detail", "size_bytes", "hashes"]
    assert {row[0]: row[1] for row in rows[1:] if not row[0].endswith(".bad")} == {
        "A/large.mov": "good",
        "A/small.mov": "repaired",
        "empty.mov": "good",
        f"'{nasty}": "good",
        "gone.mov": "missing",
        "unlisted.mov": "in no manifest",
    }
    assert "xxh64:" in rows[1][4]
    (full.root / "<b>&.mov").write_bytes(b"")
    page = tmp_path / "report.html"
    verify(full, report=str(page))
    text = page.read_text()
    assert "NOT intact" in text
    assert "gone.mov" in text
    assert "&lt;b&gt;&amp;.mov" in text
    assert "<b>" not in text
    assert "A/large.mov" not in text  # a page has what is wrong


def test_a_report_replaces_nothing_and_leaves_no_part(
    verify: Verify, full: Shelf, rig: Rig, tmp_path: Path
) -> None:
    place = tmp_path / "report.csv"
    place.write_text("somebody's")
    rig.stopping = lambda: bool(rig.reports)
    with pytest.raises(Interrupted):
        verify(full, report=str(place))
    rig.stopping = lambda: False
    assert [path.name for path in tmp_path.glob("report*")] == ["report.csv"]
    (tmp_path / "report.csv.01234567.part").write_text("of a crash")
    output = verify(full, report=str(place))
    assert place.read_text() == "somebody's"
    assert output["report"] == str(tmp_path / "report%~2.csv")
    assert len(list(tmp_path.glob("report*"))) == 2


def test_what_is_refused_is_refused_before_there_is_an_execution(tmp_path: Path) -> None:
    ports = {"roots": [str(tmp_path)], "card_roots": ["/mnt"]}
    pipeline = verify_folder(clock=NoonClock(), creator=CREATOR, **ports)
    assert pipeline.check is not None
    pipeline.check({"folder": str(tmp_path)})
    for data, field in (
        ({"folder": "/etc"}, "folder"),
        ({"folder": str(tmp_path), "repair_from": "/etc"}, "repair_from"),
        ({"folder": "/mnt", "write": True}, "folder"),
        ({"folder": str(tmp_path), "report": "/etc/a.csv"}, "report"),
        ({"folder": str(tmp_path), "write": "yes"}, "write"),
    ):
        with pytest.raises(InvalidInput) as refused:
            pipeline.check(data)
        assert refused.value.field == field
