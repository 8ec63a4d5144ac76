"""Generations on a real disk: written, interrupted, tampered with, read."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from adapters.steps import kernel
from adapters.steps.faults import FileFault, LibraryFault
from adapters.steps.mhl.documents import Action, ManifestFault
from tests.adapters.steps.dying import dies
from tests.adapters.steps.mhl.conftest import NOON, Shelf


def test_a_folder_without_manifests_has_no_history(shelf: Shelf) -> None:
    assert shelf.history() is None
    (shelf.root / "ascmhl").mkdir()
    assert shelf.history() is None


def test_what_was_written_is_read(shelf: Shelf) -> None:
    first = shelf.hashed(shelf.put("A/one.mov"), "xxh64", "md5", "c4")
    shelf.add([first])
    shelf.add_new("two.mov")
    history = shelf.read()
    assert list(history.files) == [b"A/one.mov", b"two.mov"]
    assert history.files[b"A/one.mov"].hashes == first.hashes
    assert history.files[b"A/one.mov"].size_bytes == first.size_bytes
    assert [generation.number for generation in history.generations] == [1, 2]
    assert [manifest.name for manifest in shelf.manifests] == [
        "0001_shelf_2026-11-22_120000Z.mhl",
        "0002_shelf_2026-11-22_120100Z.mhl",
    ]
    assert history.unchained is None
    assert not history.replaced


def test_names_that_no_manifest_can_carry_are_left_out_and_told(shelf: Shelf) -> None:
    added = shelf.add_new(b"caf\xe9.mov", b"bell\x07.mov", "good.mov")
    assert [path for path, _ in added.left_out] == [b"caf\xe9.mov", b"bell\x07.mov"]
    assert list(shelf.read().files) == [b"good.mov"]


def test_without_a_file_to_be_listed_nothing_is_written(shelf: Shelf) -> None:
    assert shelf.add_new(b"caf\xe9.mov").generation is None
    assert shelf.add([]).generation is None
    assert not (shelf.root / "ascmhl").exists()


def test_composed_and_decomposed_letters_stay_two_names(shelf: Shelf) -> None:
    names = ["u\u0308.mov".encode(), "\u00fc.mov".encode()]
    shelf.add_new(*names)
    assert list(shelf.read().files) == names


@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("A\nB", "0001_A_B_2026-11-22_120000Z.mhl"),
        ("\x1b[31m", "0001__[31m_2026-11-22_120000Z.mhl"),
        ("caf\udce9", "0001_caf__2026-11-22_120000Z.mhl"),
        ("", "0001___2026-11-22_120000Z.mhl"),
        ("\u00fc" * 127, f"0001_{'ü' * 75}_2026-11-22_120000Z.mhl"),
    ],
)
def test_any_folder_name_makes_a_name_that_every_reader_takes(
    shelf: Shelf, name: str, manifest: str
) -> None:
    shelf.add([shelf.hashed(shelf.put("a"))], name)
    assert [each.name for each in shelf.manifests] == [manifest]
    assert list(shelf.read().files) == [b"a"]


def test_times_that_no_calendar_has_are_left_out(shelf: Shelf) -> None:
    file = shelf.hashed(shelf.put("a"))
    shelf.add([replace(file, mtime_ns=2**80)])
    assert "lastmodificationdate" not in shelf.manifests[0].read_text()


def test_when_a_file_was_changed_is_for_the_first_to_say_who_knows_it_as_it_is(
    shelf: Shelf,
) -> None:
    first = shelf.hashed(shelf.put("a"))
    shelf.add([replace(first, mtime_ns=10**9)])
    later = replace(shelf.hashed("a", action=Action.VERIFIED), mtime_ns=5 * 10**9)
    shelf.add([later])
    assert shelf.read().files[b"a"].mtime_ns == 10**9
    shelf.put("a", b"another take")
    shelf.add([replace(shelf.hashed("a"), mtime_ns=7 * 10**9)])
    assert shelf.read().files[b"a"].mtime_ns == 7 * 10**9


def test_the_same_generation_again_is_found_to_be_there(shelf: Shelf) -> None:
    file = shelf.hashed(shelf.put("a"))
    first, second = shelf.add([file]), shelf.add([file])
    assert first.generation == second.generation
    assert len(shelf.manifests) == 1
    shelf.add([shelf.hashed("a", action=Action.VERIFIED)])
    assert len(shelf.manifests) == 2, "verified later, so it is another"


def test_what_was_ignored_goes_on_being_ignored(shelf: Shelf) -> None:
    shelf.add_new("a")
    text = shelf.manifests[0].read_text()
    assert "<pattern>.DS_Store</pattern>" in text
    shelf.chain.unlink()
    shelf.manifests[0].write_text(text.replace("<pattern>.DS_Store<", "<pattern>*.tmp<"))
    shelf.add_new("b")
    assert "<pattern>*.tmp</pattern>" in shelf.manifests[1].read_text()


def test_a_name_that_somebody_takes_meanwhile_is_left_to_them(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add_new("a")
    theirs = shelf.root / "ascmhl" / "0002_shelf_2026-11-22_120100Z.mhl"
    real = kernel.sync_file

    def quicker(fd: int) -> None:
        theirs.write_bytes(b"theirs")
        real(fd)

    monkeypatch.setattr(kernel, "sync_file", quicker)
    with pytest.raises(FileFault, match=r"0002_.* exists"):
        shelf.add_new("b")
    assert theirs.read_bytes() == b"theirs"
    assert sorted(shelf.manifests) == [shelf.manifests[0], theirs]
    assert not list((shelf.root / "ascmhl").glob("*.part"))


def test_a_full_disk_leaves_no_part_and_all_as_it_was(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add_new("a")
    before = {path: path.read_bytes() for path in (shelf.root / "ascmhl").iterdir()}

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kernel, "sync_file", full)
    with pytest.raises(LibraryFault, match="full"):
        shelf.add_new("b")
    assert {path: path.read_bytes() for path in (shelf.root / "ascmhl").iterdir()} == before


# -- what generations say together ---------------------------------------------------


def test_a_failed_check_changes_nothing_of_what_is_known(shelf: Shelf) -> None:
    good = shelf.hashed(shelf.put("a"))
    shelf.add([good])
    shelf.add([shelf.hashed("a", hashes={"xxh64": 16 * "0"}, action=Action.FAILED)])
    history = shelf.read()
    assert history.files[b"a"].hashes == good.hashes
    assert not history.replaced


def test_a_verified_hash_of_another_kind_is_known_beside_the_first(shelf: Shelf) -> None:
    shelf.add([shelf.hashed(shelf.put("a"), "xxh64")])
    shelf.add([shelf.hashed("a", "md5", action=Action.VERIFIED)])
    assert set(shelf.read().files[b"a"].hashes) == {"xxh64", "md5"}


def test_the_latest_contents_count_and_are_told(shelf: Shelf) -> None:
    shelf.add([shelf.hashed(shelf.put("a"), "xxh64", "md5")])
    later = shelf.hashed(shelf.put("a", b"another take"), "xxh64")
    shelf.add([later])
    history = shelf.read()
    assert history.files[b"a"].hashes == later.hashes
    assert history.files[b"a"].size_bytes == 12
    assert history.replaced == {b"a"}


def test_a_file_that_was_renamed_is_looked_for_under_its_new_name(shelf: Shelf) -> None:
    shelf.add_new("old.mov")
    shelf.add_new("new.mov")
    text = shelf.manifests[1].read_text()
    shelf.manifests[1].unlink()
    generations = shelf.chain.read_text()
    cut = generations.index('  <hashlist sequencenr="2"')
    shelf.chain.write_text(generations[:cut] + "</ascmhldirectory>\n")
    renamed = text.replace("</hash>", "<previousPath>old.mov</previousPath></hash>")
    shelf.manifests[0].with_name("0002_renamed.mhl").write_text(renamed)
    assert list(shelf.read().files) == [b"new.mov"]


# -- tampered with -------------------------------------------------------------------


def test_a_manifest_that_was_changed_is_named(shelf: Shelf) -> None:
    shelf.add_new("a")
    shelf.add_new("b")
    content = shelf.manifests[0].read_bytes()
    shelf.manifests[0].write_bytes(content.replace(b"cart-1", b"cart-2"))
    with pytest.raises(ManifestFault, match=r"0001_.* is not what it was"):
        shelf.read()


def test_a_manifest_that_was_cut_is_named(shelf: Shelf) -> None:
    shelf.add_new("a")
    content = shelf.manifests[0].read_bytes()
    shelf.manifests[0].write_bytes(content[:-30])
    with pytest.raises(ManifestFault, match=r"0001_.* is damaged or not complete"):
        shelf.read()
    with pytest.raises(ManifestFault, match=r"0001_.* is damaged or not complete"):
        shelf.add_new("b")


def test_a_manifest_that_was_removed_is_named(shelf: Shelf) -> None:
    shelf.add_new("a")
    shelf.add_new("b")
    shelf.manifests[0].unlink()
    for act in (shelf.read, lambda: shelf.add_new("c")):
        with pytest.raises(ManifestFault, match=r"0001_.* is missing"):
            act()


def test_a_manifest_that_was_swapped_for_a_link_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    shelf.add_new("a")
    away = shelf.manifests[0].rename(tmp_path / "elsewhere.mhl")
    (shelf.root / "ascmhl" / "0001_shelf_2026-11-22_120000Z.mhl").symlink_to(away)
    with pytest.raises(ManifestFault, match="can't be read"):
        shelf.read()


def test_manifests_are_not_written_through_a_link(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (shelf.root / "ascmhl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileFault, match="is no folder"):
        shelf.add_new("a")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_fifo_for_a_manifest_hangs_nobody(shelf: Shelf) -> None:
    shelf.add_new("a")
    os.mkfifo(shelf.root / "ascmhl" / "0002_b.mhl")
    with pytest.raises(ManifestFault, match="no regular file"):
        shelf.read()


def test_a_lost_chain_of_many_is_not_made_up(shelf: Shelf) -> None:
    shelf.add_new("a")
    shelf.add_new("b")
    shelf.chain.unlink()
    for act in (shelf.read, lambda: shelf.add_new("c")):
        with pytest.raises(ManifestFault, match="not in the chain"):
            act()
    assert len(shelf.manifests) == 2


def test_a_broken_generation_of_another_tool_is_left_for_a_person(shelf: Shelf) -> None:
    shelf.add_new("a")
    broken = shelf.root / "ascmhl" / "0002_other.mhl"
    broken.write_bytes(shelf.manifests[0].read_bytes()[:-30])
    with pytest.raises(ManifestFault, match=r"0002_other\.mhl is damaged or not complete"):
        shelf.add_new("b")
    assert broken.exists()
    assert len(shelf.manifests) == 2


# -- crashes and others at work ------------------------------------------------------


def test_while_another_process_writes_nothing_is_added(shelf: Shelf) -> None:
    shelf.add_new("a")
    fd = os.open(shelf.root / "ascmhl", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        with pytest.raises(LibraryFault, match="another process"):
            shelf.add_new("b")
    finally:
        os.close(fd)
    shelf.add_new("b")
    assert len(shelf.read().generations) == 2


CALLS = (
    (os, "mkdir"),
    (os, "open"),
    (os, "rename"),
    (kernel, "sync_file"),
    (kernel, "sync_folder"),
    (kernel, "rename_without_replacing"),
)


@pytest.mark.parametrize("generations", [0, 1])
def test_killed_at_any_point_the_next_one_finds_all_in_order(
    tmp_path: Path, generations: int
) -> None:
    """SIGKILL before each call that changes something on the disk, one after the other."""
    adopted = died = 0
    for point in range(1, 100):
        shelf = Shelf(tmp_path / f"shelf-{point}")
        for _ in range(generations):
            shelf.add_new("a")
        shelf.now = NOON
        files = [shelf.hashed(shelf.put(name)) for name in ("b", "c")]
        if not dies(lambda: shelf.add(files), point, CALLS):  # noqa: B023
            break
        died += 1
        before = len(shelf.manifests)
        had_chained = shelf.chain.exists() and shelf.chain.read_text().count("<c4>")
        adopted += before > had_chained
        history = shelf.history()
        assert set(history.files if history else ()) in (
            {b"a"} if generations else set(),
            {b"a", b"b", b"c"} if generations else {b"b", b"c"},
        )
        # The step is run again, and then another one adds the next generation.
        shelf.now = NOON
        shelf.add([shelf.hashed(name) for name in ("b", "c")])
        shelf.now += timedelta(hours=1)
        shelf.add_new("d")
        history = shelf.read()
        assert [each.number for each in history.generations] == list(range(1, generations + 3))
        assert history.unchained is None
        assert sorted(name.suffix for name in (shelf.root / "ascmhl").iterdir()) == sorted(
            [".xml", *(generations + 2) * [".mhl"]]
        ), "unfinished ones are left"
    assert died > 10, "it didn't die at all the points that there are"
    assert adopted, "it never died between the manifest and the chain"
