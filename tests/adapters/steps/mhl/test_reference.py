"""What the reference implementation says of our manifests, and we of its."""

from __future__ import annotations

import os
import unicodedata
from datetime import timedelta
from pathlib import Path

import pytest

from adapters.steps.hashes import HASH_NAMES
from adapters.steps.mhl.documents import Action
from tests.adapters.steps.mhl.conftest import Reference, Shelf

MANY = 10_000


def test_it_finds_what_is_wrong(shelf: Shelf, reference: Reference) -> None:
    """The judge can say no: a changed file, a file too many, a form that is none."""
    shelf.add_new("a.mov", "b.mov")
    reference.accepts(shelf)
    content = (shelf.root / "a.mov").read_bytes()
    (shelf.root / "a.mov").write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(AssertionError, match="hash mismatch"):
        reference.accepts(shelf)
    (shelf.root / "a.mov").write_bytes(content)
    shelf.put("c.mov")
    with pytest.raises(AssertionError, match="found new file"):
        reference.accepts(shelf)
    (shelf.root / "c.mov").unlink()
    reference.accepts(shelf)
    shelf.chain.write_text(shelf.chain.read_text().replace("<c4>", "<c5>").replace("</c4", "</c5"))
    with pytest.raises(AssertionError):
        reference.accepts(shelf)


def test_it_accepts_each_of_our_generations(shelf: Shelf, reference: Reference) -> None:
    shelf.add_new("DCIM/100GOPRO/GX010001.MP4", "DCIM/100GOPRO/GX010002.MP4", "MISC/version.txt")
    reference.accepts(shelf)
    shelf.add_new("DCIM/100GOPRO/GX010003.MP4")
    reference.accepts(shelf)
    shelf.add([shelf.hashed("MISC/version.txt", action=Action.VERIFIED)])
    reference.accepts(shelf)
    shelf.add([shelf.hashed("MISC/version.txt", hashes={"xxh64": 16 * "0"}, action=Action.FAILED)])
    reference.accepts(shelf)


def test_it_accepts_every_kind_of_hash(shelf: Shelf, reference: Reference) -> None:
    for name in HASH_NAMES:
        shelf.add([shelf.hashed(shelf.put(f"{name}.mov"), name)])
    shelf.add([shelf.hashed(shelf.put("all.mov"), *HASH_NAMES), shelf.hashed(shelf.put("0", b""))])
    reference.accepts(shelf)


def test_it_accepts_names_as_they_come(shelf: Shelf, reference: Reference) -> None:
    names = [
        "with spaces .mov",
        " .mov",
        unicodedata.normalize("NFC", "Übung/größer.mov"),
        unicodedata.normalize("NFD", "Übung/größer.mov"),
        "new\nline.mov",
        "return\r.mov",
        "tab\t.mov",
        "<&>\"']]>.mov",
        "&#10;.mov",
        "back\\slash.mov",
        "🎬.mov",
        "x" * 251 + ".mov",
        "/".join(["deep"] * 64),
    ]
    added = shelf.add_new(*names)
    assert not added.left_out
    reference.accepts(shelf)
    assert list(shelf.read().files) == [os.fsencode(name) for name in names]


def test_it_accepts_a_manifest_without_the_names_that_none_can_carry(
    shelf: Shelf, reference: Reference
) -> None:
    added = shelf.add_new("good.mov", b"caf\xe9.mov", "bell\x07.mov")
    assert len(added.left_out) == 2
    for path, _ in added.left_out:
        os.unlink(os.path.join(os.fsencode(shelf.root), path))
    reference.accepts(shelf)


def test_it_misses_none_of_our_bad_copies(shelf: Shelf, reference: Reference) -> None:
    shelf.add_new("a.mov")
    shelf.put("a.mov.0123abcd.bad")
    shelf.put("a.mov.0123abcd.part")
    reference.accepts(shelf)


def test_it_accepts_a_generation_of_ours_upon_its_own(shelf: Shelf, reference: Reference) -> None:
    shelf.put("A/one.mov")
    shelf.put("two.mov")
    created = reference("ascmhl", "create", shelf.root, "-h", "xxh64", "-h", "md5")
    assert created.returncode == 0, created.stderr
    shelf.add_new("three.mov")
    shelf.add([shelf.hashed("A/one.mov", action=Action.VERIFIED)])
    reference.accepts(shelf)
    history = shelf.read()
    assert set(history.files) == {b"A/one.mov", b"two.mov", b"three.mov"}
    assert set(history.files[b"two.mov"].hashes) == {"xxh64", "md5"}
    assert [generation.number for generation in history.generations] == [1, 2, 3]


def test_it_adds_a_generation_upon_ours(shelf: Shelf, reference: Reference) -> None:
    shelf.add_new("A/one.mov", "two.mov")
    shelf.put("three.mov")
    created = reference("ascmhl", "create", shelf.root, "-h", "xxh64")
    assert created.returncode == 0, created.stderr
    reference.accepts(shelf)
    history = shelf.read()
    assert set(history.files) == {b"A/one.mov", b"two.mov", b"three.mov"}
    assert [generation.number for generation in history.generations] == [1, 2]
    assert not history.replaced
    shelf.now += timedelta(days=1)
    shelf.add_new("four.mov")
    reference.accepts(shelf)


def test_it_accepts_ours_above_a_folder_that_came_with_manifests(
    shelf: Shelf, reference: Reference
) -> None:
    """As from a card that another tool has sealed: its manifests are copied, not listed."""
    shelf.put("CARD/clip.mov")
    assert reference("ascmhl", "create", shelf.root / "CARD").returncode == 0
    paths = sorted(path for path in shelf.root.rglob("*") if path.is_file())
    names = [str(path.relative_to(shelf.root)) for path in paths]
    added = shelf.add([shelf.hashed(name) for name in [*names, os.fsdecode(shelf.put("b.mov"))]])
    assert sorted(shelf.read().files) == [b"CARD/clip.mov", b"b.mov"]
    assert {path.split(b"/")[1] for path, _ in added.left_out} == {b"ascmhl"}
    reference.accepts(shelf)


def test_a_damage_that_it_recorded_doesnt_change_what_we_expect(
    shelf: Shelf, reference: Reference
) -> None:
    shelf.add_new("a.mov")
    good = shelf.read().files[b"a.mov"].hashes
    shelf.put("a.mov", b"damaged")
    assert reference("ascmhl", "create", shelf.root, "-h", "xxh64").returncode != 0
    assert len(shelf.manifests) == 2
    assert shelf.read().files[b"a.mov"].hashes == good


def test_we_find_a_file_that_it_saw_renamed(shelf: Shelf, reference: Reference) -> None:
    shelf.add_new("old.mov", "other.mov")
    (shelf.root / "old.mov").rename(shelf.root / "new.mov")
    created = reference("ascmhl", "create", "-dr", shelf.root, "-h", "xxh64")
    assert created.returncode == 0, created.stdout + created.stderr
    assert set(shelf.read().files) == {b"new.mov", b"other.mov"}


def test_both_refuse_a_manifest_that_was_tampered_with(shelf: Shelf, reference: Reference) -> None:
    shelf.add_new("a.mov")
    manifest = shelf.manifests[0]
    manifest.write_text(manifest.read_text().replace("cart-1", "cart-2"))
    assert reference("ascmhl-debug", "verify", shelf.root).returncode != 0
    with pytest.raises(Exception, match="not what it was"):
        shelf.read()


def test_a_manifest_of_ten_thousand_files_is_of_the_right_form(
    shelf: Shelf, reference: Reference, tmp_path: Path
) -> None:
    """Its verify takes a time that grows with the square of the files; the form it can check."""
    file = shelf.hashed(shelf.put("a"))
    names = [b"DCIM/%03d/clip %05d.mov" % (number // 100, number) for number in range(MANY)]
    shelf.add([type(file)(name, 10, 0, file.hashes, file.hashed_at) for name in names])
    checked = reference(
        "ascmhl-debug",
        "xsd-schema-check",
        "-xsd",
        Path(__file__).parent / "schema" / "ASCMHL.xsd",
        shelf.manifests[0],
    )
    assert checked.returncode == 0, checked.stdout
    assert list(shelf.read().files) == names
