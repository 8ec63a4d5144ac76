"""A library whose layout somebody has written: where files go, and what stands by them there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adapters.steps.faults import FilesMissing, LibraryFault
from domain.places import AS_ON_THE_CARD
from tests.adapters.steps.finishing import Finishing
from tests.adapters.steps.mhl.conftest import SCHEMA, Reference
from tests.cards import files_below

BY_CLIP = "{year}/{date}/{card}/{clip}"
JOB = "2026/2026-11-22/A001"
ONE, TWO = "DCIM/100GOPRO/GX010001.LRV", "DCIM/100GOPRO/GX010002.LRV"


@pytest.fixture
def rig(tmp_path: Path) -> Finishing:
    rig = Finishing(tmp_path)
    rig.layout = BY_CLIP
    return rig


def shoot(rig: Finishing) -> dict[str, bytes]:
    """Two clips with proxies and something beside; by where they are to be in the job's folder."""
    wanted = {}
    for number in (1, 2):
        for name in (f"GX01000{number}.MP4", f"GL01000{number}.LRV"):
            content = os.urandom(1_000 + number)
            rig.put(f"DCIM/100GOPRO/{name}", content)
            wanted[f"{JOB}/GX01000{number}/{name}"] = content
    rig.put("MISC/version.txt", b"{}")
    return wanted | {f"{JOB}/MISC/version.txt": b"{}"}


def test_a_card_that_makes_sense_only_whole_stays_so(rig: Finishing) -> None:
    footage = {
        "CONTENTS/VIDEO/0001AB.MXF": b"essence",
        "CONTENTS/CLIP/0001AB.XML": b"<P2Main/>",
        "LASTCLIP.TXT": b"0001AB",
    }
    for path, content in footage.items():
        rig.put(path, content)
    data = rig.ready()
    assert data["layout"]["files"] == AS_ON_THE_CARD
    rig.copy(1, data)
    assert files_below(rig.library) == {f"{JOB}/{path}": each for path, each in footage.items()}


@pytest.mark.parametrize("label", ["../../etc", "..", "CON", "x" * 255, "a\nb", "ascmhl"])
def test_no_label_leads_out_of_the_library(rig: Finishing, label: str) -> None:
    rig.put(ONE)
    rig.layout = "{card}/{card}"
    data = rig.scan()
    data["card"]["label"] = label
    rig.copy(1, rig.create_job(1, data))
    (path,) = rig.arrived()
    assert path.endswith(ONE.encode())
    assert path.count(b"/") == 2 + ONE.count("/")
    assert set(os.listdir(rig.library.parent)) == {"library", "mounts"}


def test_a_folder_of_somebody_else_s_isn_t_the_job_s(rig: Finishing) -> None:
    (rig.library / "2026/2026-11-22/a001").mkdir(parents=True)
    (rig.library / "2026/2026-11-22/A001-2").symlink_to("nowhere")
    rig.put(ONE)
    assert rig.ready()["job_name"] == f"{JOB}-3"


def test_a_link_in_the_way_is_not_followed(rig: Finishing, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    rig.library.mkdir()
    (rig.library / "2026").symlink_to(tmp_path / "elsewhere")
    rig.put(ONE)
    with pytest.raises(Exception, match="2026 exists and is no folder"):
        rig.ingest()
    assert os.listdir(tmp_path / "elsewhere") == []


def test_no_job_s_folder_lies_in_another_s_though_the_layout_was_changed(rig: Finishing) -> None:
    rig.put(ONE)
    rig.layout = "{year}"
    assert rig.ready(1)["job_name"] == "2026"
    rig.layout = "{year}/{card}"
    assert rig.ready(2)["job_name"] == "2026-2/A001"
    (rig.library / "2026-2/A001").mkdir(parents=True)
    rig.layout = "{year}"
    assert rig.ready(3)["job_name"] == "2026-3"


def test_files_come_to_their_clips_with_a_manifest_a_verdict_and_a_report(
    rig: Finishing, tmp_path: Path
) -> None:
    wanted = shoot(rig)
    rig.further = [tmp_path / "second"]
    done = rig.taken_in()
    for library in (rig.library, *rig.further):
        assert files_below(library) == wanted
        assert sorted(os.listdir(library)) == ["2026", "reports"]
        assert len(list((library / JOB / "ascmhl").glob("*.mhl"))) == 1
    assert done["safe_to_format"] is True, done["verdict"]["reasons"]
    assert "renamed" not in done
    assert done["job_folder"] == str(rig.library / JOB)
    reference = Reference()
    for manifest in done["manifests"]:
        place = Path(manifest["path"])
        assert place.parent.parent.relative_to(tmp_path).parts[1:] == tuple(JOB.split("/"))
        verified = reference("ascmhl-debug", "verify", place.parent.parent)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        schema = ("-xsd", str(SCHEMA / "ASCMHL.xsd"))
        checked = reference("ascmhl-debug", "xsd-schema-check", *schema, place)
        assert checked.returncode == 0, checked.stdout
    assert all(Path(path).name.startswith("2026_2026-11-22_A001_") for path in done["reports"])


def test_what_comes_later_gets_a_folder_and_a_manifest_of_its_own(rig: Finishing) -> None:
    wanted = shoot(rig)
    rig.taken_in()
    rig.put("DCIM/100GOPRO/GX010003.MP4", b"one more")
    done = rig.taken_in(2)
    assert (done["copied_files"], done["known_files"]) == (1, len(wanted))
    assert files_below(rig.library)[f"{JOB}-2/GX010003/GX010003.MP4"] == b"one more"
    assert len(list((rig.library / f"{JOB}-2/ascmhl").glob("*.mhl"))) == 1
    assert done["safe_to_format"] is True


def test_two_clips_of_one_name_stand_beside_one_another(rig: Finishing) -> None:
    contents = {}
    for number in (100, 101, 102):
        contents[number] = b"clip %d" % number
        rig.put(f"DCIM/{number}MEDIA/DSC_0001.MP4", contents[number])
    output = rig.ingest()
    assert files_below(rig.library) == {
        f"{JOB}/DSC_0001/DSC_0001.MP4": contents[100],
        f"{JOB}/DSC_0001/DSC_0001%~2.MP4": contents[101],
        f"{JOB}/DSC_0001/DSC_0001%~3.MP4": contents[102],
    }
    assert output["renamed"]["total"] == 2
    assert {
        "path": "DCIM/101MEDIA/DSC_0001.MP4",
        "destination": str(rig.library),
        "stored_as": "DSC_0001/DSC_0001%~2.MP4",
    } in output["renamed"]["named"]
    assert rig.ingest(2)["known_files"] == 3


def test_a_retry_goes_on_at_the_same_places_though_the_layout_was_changed(
    rig: Finishing,
) -> None:
    wanted = shoot(rig)
    late = Path(os.fsdecode(rig.put("DCIM/100GOPRO/GX010003.MP4")))
    data = rig.ready()
    late.rename(late.with_suffix(".away"))
    with pytest.raises(FilesMissing):
        rig.copy(1, data)
    late.with_suffix(".away").rename(late)
    assert {os.fsdecode(path) for path in rig.arrived()} == wanted.keys()
    rig.layout = "{date}_{card}"
    rig.copy(1, data)
    arrived = {os.fsdecode(path) for path in rig.arrived()}
    assert arrived == {*wanted, f"{JOB}/GX010003/GX010003.MP4"}


def test_what_a_crash_left_is_found_in_its_place(rig: Finishing) -> None:
    rig.put("DCIM/100GOPRO/GX010001.MP4", b"footage")
    data = rig.ready()
    folder = rig.library / JOB / "GX010001"
    folder.mkdir(parents=True)
    (folder / "GX010001.MP4.01234567.part").write_bytes(b"foot")
    rig.copy(1, data)
    assert files_below(rig.library) == {f"{JOB}/GX010001/GX010001.MP4": b"footage"}


def test_what_a_crash_left_goes_when_the_card_is_ingested_anew_by_another_layout(
    rig: Finishing,
) -> None:
    rig.put("DCIM/100GOPRO/GX010001.MP4", b"footage")
    rig.ready(1)
    folder = rig.library / JOB / "GX010001"
    folder.mkdir(parents=True)
    (folder / "GX010001.MP4.01234567.part").write_bytes(b"foot")
    (folder / "other.MP4.01234567.part").write_bytes(b"somebody else's")
    rig.live.clear()
    rig.layout = "{date}_{card}"
    rig.ingest(2)
    assert set(files_below(rig.library)) == {
        f"{JOB}/GX010001/other.MP4.01234567.part",
        "2026-11-22_A001/DCIM/100GOPRO/GX010001.MP4",
    }


def test_a_file_of_somebody_else_s_in_a_file_s_place_is_left(rig: Finishing) -> None:
    rig.put("DCIM/100GOPRO/GX010001.MP4", b"footage")
    data = rig.ready()
    there = rig.library / JOB / "GX010001" / "GX010001.MP4"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"somebody else's")
    assert rig.copy(1, data)["renamed"]["total"] == 1
    assert there.read_bytes() == b"somebody else's"
    assert there.with_name("GX010001%~2.MP4").read_bytes() == b"footage"


def test_an_execution_from_before_there_were_layouts_keeps_the_card_s_folders(
    rig: Finishing,
) -> None:
    rig.put(ONE)
    data = rig.ready()
    del data["layout"]
    rig.copy(1, data)
    assert list(files_below(rig.library)) == [f"{JOB}/{ONE}"]


def test_a_library_that_is_away_is_not_made_for_a_deeper_job(rig: Finishing) -> None:
    rig.put(ONE)
    data = rig.ready()
    rig.library = rig.library / "not" / "mounted"
    data["library"] = str(rig.library)
    with pytest.raises(LibraryFault, match="is its disk connected"):
        rig.copy(1, data)
    assert not rig.library.parent.exists()
