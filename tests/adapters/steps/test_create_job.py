from __future__ import annotations

from datetime import UTC, datetime

import pytest

from adapters.steps.create_job import CreateJob
from domain.errors import AttemptOver
from domain.places import DEFAULT_LAYOUT, MAX_COMPONENT_BYTES, Template, job_values
from tests.adapters.steps.conftest import NOON, NoonClock, Rig


def named(now: datetime, label: str) -> str:
    return Template.parse(DEFAULT_LAYOUT).job_name(job_values(now, label, ()))


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("A001", "A001"),
        ("EOS_DIGITAL", "EOS_DIGITAL"),
        ("Café Zürich", "Café_Zürich"),
        ("Cafe\u0301", "Café"),
        ("हिन्दी", "हिन्दी"),
        ("..", "card"),
        ("", "card"),
        ("   ", "card"),
        (".hidden", "hidden"),
        ("-rf", "rf"),
        ("a/b\\c:d", "a_b_c_d"),
        ("trailing. . ", "trailing"),
        ("CON", "CON"),
        ("tab\tnew\nline", "tab_new_line"),
        ("😀", "card"),
    ],
)
def test_a_label_becomes_one_safe_component(label: str, name: str) -> None:
    assert named(NOON, label) == f"2026-11-22_{name}"


def test_a_long_label_is_cut_between_characters() -> None:
    for label in ("x" * 300, "é" * 300, "." + "語" * 300, "x" * 88 + "." + "y" * 50):
        name = named(datetime(2026, 1, 2, 12, tzinfo=UTC), label)
        assert MAX_COMPONENT_BYTES - 3 < len(name.encode()) <= MAX_COMPONENT_BYTES
        assert not name.endswith(".")


def test_the_job_carries_the_scan_s_card_and_counts(rig: Rig) -> None:
    rig.put("clip.mp4", b"12345")
    context = rig.context("create_job", 1, rig.scan())
    output = CreateJob(rig.jobs, NoonClock(), str(rig.library))(context)
    assert (output["job_id"], output["job_name"]) == (1, "2026-11-22_A001")
    assert output["layout"]["files"] == "{path}"
    assert context.job_id == 1
    job = rig.jobs.get(1)
    assert (job.file_count, job.total_bytes) == (1, 5)
    assert job.card.identity == f"path:{rig.card}"
    assert not job.card.volume


def test_a_volume_s_identity_is_one_in_the_job_too(rig: Rig) -> None:
    data = rig.scan() | {"card": {"identity": "volume:6134-3033:512", "label": "A001"}}
    rig.create_job(1, data)
    assert rig.jobs.get(1).card.volume


def test_run_again_it_finds_the_same_job(rig: Rig) -> None:
    data = rig.scan()
    assert rig.create_job(1, data) == rig.create_job(1, data)
    assert rig.create_job(2, data)["job_name"] == "2026-11-22_A001-2"


def test_an_attempt_that_is_over_makes_no_job(rig: Rig) -> None:
    context = rig.context("create_job", 1, rig.scan())
    rig.live.clear()
    with pytest.raises(AttemptOver):
        CreateJob(rig.jobs, NoonClock(), str(rig.library))(context)


def test_a_name_that_is_taken_on_the_disk_is_passed_over(rig: Rig) -> None:
    for name in ("2026-11-22_A001", "2026-11-22_a001-2"):  # whatever the file system folds
        (rig.library / name).mkdir(parents=True)
    (rig.library / "2026-11-22_A001-3").symlink_to("nowhere")
    data = rig.scan()
    assert rig.create_job(1, data)["job_name"] == "2026-11-22_A001-4"
    (rig.library / "2026-11-22_A001-4").mkdir()
    assert rig.create_job(1, data)["job_name"] == "2026-11-22_A001-4"  # that is its own


def test_no_job_lies_in_another_s_folder_once_the_layout_was_changed(rig: Rig) -> None:
    """Whether their folders are there yet or not: a job that waits makes its own later."""
    data = rig.scan()
    names = []
    layouts = ("{card}/{date}", "{card}", "{card}/{date}/{time}", "{date}/{card}", "{date}")
    for number, layout in enumerate(layouts, start=1):
        rig.layout = layout
        names.append(rig.create_job(number, data)["job_name"])
    assert names == [
        "A001/2026-11-22",
        "A001-2",
        "A001/2026-11-22-2/1200",
        "2026-11-22/A001",
        "2026-11-22-2",
    ]


def test_the_disk_that_is_looked_at_is_the_execution_s_library(rig: Rig) -> None:
    data = rig.scan() | {"library": str(rig.library.parent / "other")}
    (rig.library / "2026-11-22_A001").mkdir(parents=True)
    assert rig.create_job(1, data)["job_name"] == "2026-11-22_A001"


def test_a_library_that_is_not_there_is_not_made_for_a_name(rig: Rig) -> None:
    assert rig.create_job(1, rig.scan())["job_name"] == "2026-11-22_A001"
    assert not rig.library.exists()


def test_a_second_server_s_job_gets_a_folder_of_its_own(rig: Rig) -> None:
    rig.put("DCIM/clip.mp4", b"of the first server")
    rig.ingest(1)
    rig.jobs, rig.ledger = (
        type(rig.jobs)(rig.live.__contains__),
        type(rig.ledger)(rig.live.__contains__),
    )
    rig.put("DCIM/clip.mp4", b"of the second")
    assert rig.ingest(1)["job_folder"] == f"{rig.job}-2"
    assert sorted(rig.arrived().values()) == [b"of the first server", b"of the second"]
