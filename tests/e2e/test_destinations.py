"""Several destinations, as a person at the cart has them."""

from __future__ import annotations

from pathlib import Path

from tests.cards import files_below, gopro_card, job_folders
from tests.e2e.server import Server
from tests.e2e.test_command_line import CommandLine


def test_a_card_is_ingested_to_two_destinations_and_once_more_when_that_is_wished(
    tmp_path: Path,
) -> None:
    rushes = CommandLine(tmp_path)
    backup = tmp_path / "backup"
    rushes.environment |= {"RUSHES_DESTINATIONS": str(backup), "RUSHES_HASHES": "xxh128,md5"}
    footage = gopro_card(tmp_path / "CARD")
    first = rushes("ingest", str(tmp_path / "CARD"))
    assert first.returncode == 0, first.stderr
    (job,) = job_folders(rushes.library)
    (copy,) = job_folders(backup)
    assert f"copied and verified to {job} and {copy}" in first.stdout
    assert footage.items() <= files_below(job).items()
    assert footage.items() <= files_below(copy).items()

    known = rushes("ingest", str(tmp_path / "CARD"))
    assert f"{len(footage)} files were in the library already" in known.stdout
    again = rushes("ingest", "--again", str(tmp_path / "CARD"))
    assert again.returncode == 0, again.stderr
    for place in (rushes.library, backup):
        jobs = job_folders(place)
        assert len(jobs) == 2
        for each in jobs:
            assert footage.items() <= files_below(each).items()


def test_bad_destinations_hashes_and_layouts_are_named_before_anything_starts(
    tmp_path: Path,
) -> None:
    rushes = CommandLine(tmp_path)
    gopro_card(tmp_path / "CARD")
    for name, value in (
        ("RUSHES_DESTINATIONS", "backup"),
        ("RUSHES_HASHES", "crc32"),
        ("RUSHES_LAYOUT", "{date}/{reel}"),
    ):
        rushes.environment[name] = value
        refused = rushes("ingest", str(tmp_path / "CARD"))
        assert refused.returncode == 2
        assert name in refused.stderr
        assert value in refused.stderr
        del rushes.environment[name]


def test_a_retry_goes_to_the_destinations_and_by_the_layout_that_it_began_with(
    tmp_path: Path,
) -> None:
    """One is missing at first; by the retry the settings have changed, the execution hasn't."""
    backup = tmp_path / "disk" / "backup"
    server = Server(
        tmp_path / "server",
        RUSHES_DESTINATIONS=str(backup),
        RUSHES_LAYOUT="{date}/{card}/{clip}",
    ).start()
    try:
        footage = gopro_card(server.cards / "A001")
        uuid = server.trigger("sd_ingest", sd_path=str(server.cards / "A001"))
        failed = server.ended(uuid)
        assert failed["status"] == "failed"
        assert f"the library {backup} is not there" in failed["error_message"]
        assert job_folders(server.library) == []
        server.stop()
        del server.environment["RUSHES_DESTINATIONS"], server.environment["RUSHES_LAYOUT"]
        server.start()
        backup.parent.mkdir()
        assert server.request("POST", f"/api/pipeline/{uuid}/retry").status_code == 202
        done = server.ended(uuid)
        assert done["status"] == "completed", done
        assert done["execution_data"]["destinations"] == [str(server.library), str(backup)]
        for place in (server.library, backup):
            (day,) = job_folders(place)
            assert sorted(files_below(day / "A001").values()) == sorted(footage.values())
            assert (day / "A001" / "GX010001" / "GX010001.MP4").is_file()
            assert (day / "A001" / "ascmhl").is_dir()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
