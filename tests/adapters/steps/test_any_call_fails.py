"""A card or a disk that goes away at any call whatever: the step says so in its own words.

From some call on, every call fails. What must come of it is one of the offload's own faults,
or a result; no descriptor that stays open; and a step that does its work once all is well.
``RUSHES_TEST_SWEEP=100000`` tries every call there is, with each error, in some minutes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.steps.cards import FsCards
from adapters.steps.copying import SMALL_BYTES
from adapters.steps.faults import OffloadFault
from adapters.steps.verify_folder import VerifyFolder
from application.authoring import PermanentError
from tests.adapters.steps.conftest import NoonClock
from tests.adapters.steps.finishing import CREATOR, Finishing
from tests.cards import contents, film, p2_index, put
from tests.faulty_card import FAIL, Fault, FaultyCard, faulty_card

ERRORS = (errno.EIO, errno.ENODEV, errno.ENOTCONN)
PLACES = int(os.environ.get("RUSHES_TEST_SWEEP", "2"))
"""Calls from which on all fail, of each step and each disk."""

FILM, PROXY = "DCIM/100GOPRO/GX010001.MP4", "DCIM/100GOPRO/GX010001.LRV"

Data = dict[str, Any]


class Bench(Finishing):
    """A card and a library that can fail, and everything anew for each trial."""

    def __init__(self, folder: Path, card: FaultyCard, library: FaultyCard) -> None:
        super().__init__(folder / "unused")
        self._folder = folder
        self.disks = {"card": card, "library": library}
        self.anew()

    def anew(self) -> None:
        card, library = self.disks.values()
        for disk in (card, library):
            disk.set()
        name = str(len(os.listdir(self._folder)))
        fresh = Finishing(self._folder / name)
        for port in ("jobs", "card_files", "ledger", "live", "libraries"):
            setattr(self, port, getattr(fresh, port))
        self.card, self.library = card.folder, library.folder / name
        self.cards = FsCards([str(self.card.parent)])

    def verify(self, data: Data, **more: object) -> Data:
        step = VerifyFolder(NoonClock(), [str(self.library), str(self._folder)], [], CREATOR)
        asked = {"folder": str(self.job), "write": True, "report": f"{self.library}/seen.csv"}
        return step(self.context("verify_files", 1, asked | more))

    def repair(self, data: Data) -> Data:
        there = self.disks["library"].behind / self.library.name / self.job.name
        twin = self._folder / self.library.name / "twin"
        if not twin.exists():
            shutil.copytree(there, twin)
        (there / FILM).unlink(missing_ok=True)
        (there / PROXY).write_bytes(b"damaged")
        return self.verify(data, repair_from=str(twin))


STEPS: dict[str, Callable[[Bench, Data], Data]] = {
    "scan_sd": lambda rig, data: rig.scan(),
    "create_job": lambda rig, data: rig.create_job(1, data),
    "copy_files": lambda rig, data: data | rig.copy(1, data),
    "write_manifest": lambda rig, data: rig.manifest(data),
    "verdict": lambda rig, data: rig.judge(data),
    "write_report": lambda rig, data: rig.report(data),
    "verify_folder": lambda rig, data: rig.verify(data),
    "repair": lambda rig, data: rig.repair(data),
}
"""In their order: each is given what those before it have left."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    place = tmp_path_factory.mktemp("bench")
    (place / "trials").mkdir()
    with (
        faulty_card(place / "behind", place / "mounts" / "A001") as card,
        faulty_card(place / "disk", place / "library") as library,
    ):
        for path, data in (
            ("CONTENTS/CLIP/0001AB.XML", p2_index("0001AB")),
            ("CONTENTS/VIDEO/0001AB.MXF", contents("mxf", 9_000)),
            (FILM, film("film", 30_000)),
            (PROXY, contents("proxy", SMALL_BYTES + 1)),
        ):
            put(card.behind / path, data)
        (card.behind / "MISC").mkdir()
        yield Bench(place / "trials", card, library)


def open_files(bench: Bench) -> list[str]:
    """What this process has open on the two disks."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    disks = tuple(f"{disk.folder}" for disk in bench.disks.values())
    return [path for path in found if path.startswith(disks)]


def prepared(bench: Bench, name: str) -> Data:
    """Everything anew, and the steps before this one done."""
    bench.anew()
    data: Data = {}
    for step in itertools.takewhile(lambda each: each != name, STEPS):
        data = STEPS[step](bench, data)
    return data


@pytest.mark.parametrize(
    ("which", "name"),
    [
        *(("card", name) for name in ("scan_sd", "copy_files", "verdict")),
        *(("library", name) for name in ("copy_files", "write_manifest", "verdict")),
        *(("library", name) for name in ("write_report", "verify_folder", "repair")),
    ],
)
def test_a_disk_that_fails_from_any_call_on_is_told_of_in_the_offload_s_own_words(
    bench: Bench, which: str, name: str
) -> None:
    disk, step = bench.disks[which], STEPS[name]
    data = prepared(bench, name)
    disk.counts()
    step(bench, data)
    calls = disk.counts().total()
    assert calls > 10
    trials = list(itertools.product(range(calls), ERRORS))
    for after, number in random.Random(f"{which} {name}").sample(trials, min(PLACES, len(trials))):
        data = prepared(bench, name)
        disk.set(Fault("*", "", FAIL, number=number, after=after))
        try:
            with contextlib.suppress(OffloadFault, PermanentError):
                step(bench, data)
            assert not open_files(bench)
            disk.set()
            step(bench, data)
        except BaseException as error:
            error.add_note(f"{os.strerror(number)} from call {after} of {calls} on")
            raise
