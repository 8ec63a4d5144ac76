"""write_manifest: one generation for each job's folder, made of what the ledger has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from adapters.steps.hashes import Hashes
from adapters.steps.library import Library
from adapters.steps.mhl.history import History, read_history
from adapters.steps.write_manifest import ManifestsMissing
from tests.adapters.steps.conftest import snapshot
from tests.adapters.steps.finishing import Finishing
from tests.adapters.steps.mhl.conftest import SCHEMA, Reference

CLIPS = {"DCIM/100GOPRO/GX010001.LRV": b"one", "DCIM/100GOPRO/GX010002.LRV": b"two", "n.txt": b""}


@pytest.fixture
def rig(tmp_path: Path) -> Finishing:
    return Finishing(tmp_path)


@pytest.fixture
def shot(rig: Finishing) -> dict[str, Any]:
    for path, content in CLIPS.items():
        rig.put(path, content)
    return rig.copied()


def history(folder: Path) -> History:
    with Library(str(folder)).open() as opened:
        found = read_history(opened)
    assert found is not None
    return found


def xxh64(content: bytes) -> dict[str, str]:
    hashes = Hashes(["xxh64"])
    hashes.update(content)
    return hashes.values()


def test_a_card_s_own_history_is_left_as_it_came(rig: Finishing) -> None:
    rig.put("ascmhl/0001_A001_2026-11-21_100000Z.mhl", b"<hashlist/>")
    rig.put("ascmhl/ascmhl_chain.xml", b"<ascmhldirectory/>")
    rig.put("DCIM/A.LRV", b"footage")
    shot = rig.copied()
    before = snapshot(rig.library)
    done = rig.manifest(shot)
    assert done["manifests"] == []
    assert done["manifest_note"] == (
        f"{rig.library}: the card brought manifests of its own (ascmhl); they were copied as "
        "they are, and none was added"
    )
    assert snapshot(rig.library) == before
    # To have gone on with it would have changed what was copied.
    assert rig.judge(done)["safe_to_format"]


@pytest.mark.parametrize("name", ["ASCMHL/0001.mhl", "ascmhl"])
def test_also_in_capitals_and_where_it_is_a_file(rig: Finishing, name: str) -> None:
    rig.put(name, b"not ours")
    rig.put("A.LRV", b"footage")
    done = rig.manifest(rig.copied())
    assert "manifest_note" in done
    assert sorted(os.listdir(rig.job)) == sorted([name.split("/")[0], "A.LRV"])


def test_a_history_deeper_in_the_card_is_neither_listed_nor_touched(rig: Finishing) -> None:
    rig.put("A002/ascmhl/0001_A002_2026-11-21_100000Z.mhl", b"<hashlist/>")
    rig.put("A.LRV", b"footage")
    done = rig.manifest(rig.copied())
    (manifest,) = done["manifests"]
    assert manifest["left_out"] == [
        "A002/ascmhl/0001_A002_2026-11-21_100000Z.mhl: it belongs to a manifest itself"
    ]
    assert list(history(rig.job).files) == [b"A.LRV"]
    assert rig.judge(done)["safe_to_format"]


def test_a_job_s_folder_that_is_away_fails_and_is_named(
    rig: Finishing, shot: dict[str, Any]
) -> None:
    rig.job.rename(rig.library / "elsewhere")
    with pytest.raises(ManifestsMissing, match="2026-11-22_A001 is not there any more"):
        rig.manifest(shot)
    assert os.listdir(rig.library) == ["elsewhere"]


def test_one_destination_that_is_away_doesn_t_keep_the_other_from_its_manifest(
    rig: Finishing, tmp_path: Path
) -> None:
    rig.put("A.LRV", b"footage")
    shot = rig.copied(destinations=[str(tmp_path / "second")])
    rig.library.rename(tmp_path / "unplugged")
    with pytest.raises(ManifestsMissing, match=r"its disk connected|not there any more"):
        rig.manifest(shot)
    assert not rig.library.exists()
    assert list(history(tmp_path / "second" / rig.job.name).files) == [b"A.LRV"]


def test_names_that_no_manifest_can_list_are_left_out_and_named(rig: Finishing) -> None:
    rig.put(b"caf\xe9.LRV", b"latin-1")
    rig.put(b"bell\x07.LRV", b"a control character")
    rig.put("A.LRV", b"footage")
    (manifest,) = rig.manifest(rig.copied())["manifests"]
    assert (manifest["files"], manifest["left_out_files"]) == (1, 2)
    assert manifest["left_out"] == [
        "bell\\x07.LRV: the name holds a character that XML can't carry",
        "caf\\xe9.LRV: the name is not UTF-8",
    ]
    assert list(history(rig.job).files) == [b"A.LRV"]


def test_where_nothing_can_be_listed_there_is_no_manifest(rig: Finishing) -> None:
    rig.put(b"caf\xe9.LRV", b"latin-1")
    (manifest,) = rig.manifest(rig.copied())["manifests"]
    assert manifest["path"] is None
    assert os.listdir(rig.job) == [os.fsdecode(b"caf\xe9.LRV")]


def test_every_file_is_listed_with_the_hash_that_the_copy_found(
    rig: Finishing, shot: dict[str, Any]
) -> None:
    for path in CLIPS:
        os.unlink(rig.arrived_as(path))  # so nothing can be hashed again
    (manifest,) = rig.manifest(shot)["manifests"]
    assert manifest["files"] == 3
    assert Path(manifest["path"]).is_file()
    found = history(rig.job)
    assert {path.decode(): known.hashes for path, known in found.files.items()} == {
        path: xxh64(content) for path, content in CLIPS.items()
    }
    assert {known.size_bytes for known in found.files.values()} == {0, 3}


def test_a_step_that_runs_again_finds_its_own_generation(
    rig: Finishing, shot: dict[str, Any]
) -> None:
    first = rig.manifest(shot)
    before = snapshot(rig.library)
    assert rig.manifest(shot) == first
    assert set(snapshot(rig.library)) == set(before)
    assert len(history(rig.job).generations) == 1


def test_each_job_s_folder_has_its_own_and_lists_only_what_it_holds(
    rig: Finishing, shot: dict[str, Any]
) -> None:
    rig.manifest(shot)
    rig.put("DCIM/100GOPRO/GX010003.LRV", b"three")
    rig.manifest(rig.copied(2), 2)
    second = rig.library / "2026-11-22_A001-2"
    assert list(history(second).files) == [b"DCIM/100GOPRO/GX010003.LRV"]
    assert len(history(rig.job).files) == 3


def test_the_reference_implementation_accepts_it(rig: Finishing, shot: dict[str, Any]) -> None:
    rig.put("Straße & <b>/Ö.LRV".encode(), b"a name that has to be escaped")
    (manifest,) = rig.manifest(rig.copied(2), 2)["manifests"]
    reference = Reference()
    verified = reference("ascmhl-debug", "verify", rig.library / "2026-11-22_A001-2")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    xsd = SCHEMA / "ASCMHL.xsd"
    checked = reference("ascmhl-debug", "xsd-schema-check", "-xsd", xsd, manifest["path"])
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_job_that_had_nothing_to_copy_gets_none(rig: Finishing, shot: dict[str, Any]) -> None:
    assert rig.manifest(rig.copied(2), 2)["manifests"] == []
    assert os.listdir(rig.library) == [rig.job.name]
