"""Whatever cards bring, insertion after insertion, every library holds the union of it.

Real files on a real disk, the pipeline's own steps, the true store. A card goes on being
shot, loses files, is formatted (and then has the old names, sizes and times again, with
other recordings), has its clock changed, is copied halfway and comes back; another may have
its serial number. RUSHES_CARD_EXAMPLES=500 looks at more lives than the few of every day.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from adapters.persistence.footage import SqlCardFiles, SqlJobs, SqlLedger
from adapters.steps.cards import FsCards, OpenCard
from application.authoring import Interrupted
from application.ports import AttemptRef
from domain.footage import Card
from tests.adapters.steps.conftest import MTIME_NS, NOON, NoonClock
from tests.adapters.steps.finishing import Finishing
from tests.contract.conftest import PAIR, SqlStore

EXAMPLES = int(os.environ.get("RUSHES_CARD_EXAMPLES", "6"))

RECORDINGS = (
    b"DCIM/100CANON/IMG_0001.JPG",
    b"DCIM/100CANON/IMG_0002.JPG",
    b"DCIM/101CANON/IMG_0001.JPG",
    b"PRIVATE/M4ROOT/CLIP/C0001.MP4",
    b"a.mov",
    b"A.mov",
    b"caf\xe9.mov",
    b"new\nline.mov",
)
"""So few that they recur all the time, as counters that are set back make them do."""

BESIDE = (b"MISC/version.txt", b"PRIVATE/M4ROOT/STATUS.BIN", b"DCIM/100CANON/IMG_0001.XMP")
"""With the same bytes whenever a camera writes them."""

MINUTE_NS, HOUR_NS = 60 * 10**9, 3_600 * 10**9


@dataclass
class Slot:
    """A card on its shelf: its files with their bytes and times, and its camera's clock."""

    serial: str | None
    files: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    now_ns: int = MTIME_NS


class SerialCards(FsCards):
    """Cards whose volumes have names of their own, as folders haven't."""

    serial: str | None = None

    def open(self, sd_path: object) -> OpenCard:
        card = super().open(sd_path)
        if self.serial is not None:
            card.card = Card(f"volume:{self.serial}:64", "A001", volume=True)
        return card


class Insertions(Finishing):
    """The steps on one true store; each execution is one insertion."""

    def __init__(self, folder: Path, store: SqlStore, runner: asyncio.Runner) -> None:
        super().__init__(folder)
        clock = NoonClock()
        self.jobs = SqlJobs(store.database, store.executions, clock, store.ids)
        self.card_files = SqlCardFiles(store.database, store.executions)
        self.ledger = SqlLedger(store.database, store.executions)
        self.cards: SerialCards = SerialCards([str(self.mounts)])
        self._store = store
        self._runner = runner
        self._refs: dict[int, AttemptRef] = {}
        self.broken_off: set[str] = set()

    def began(self) -> int:
        data = {"library": str(self.library)}
        execution_id = self._runner.run(self._store.make(PAIR, data=data))
        self._refs[execution_id] = AttemptRef(execution_id, "x", 1)
        return execution_id

    def context(self, step_name: str, execution_id: int, data: dict[str, Any]) -> Any:
        made = super().context(step_name, execution_id, data)
        made.ref = self._refs[execution_id]
        return made

    def do(self, work: Callable[[], Any]) -> Any:
        return self._runner.run(asyncio.to_thread(work))

    def given_up(self, execution_id: int) -> None:
        cancel = self._store.executions.update(execution_id, lambda e: e.cancel(at=NOON))
        self._runner.run(cancel)

    def put_in(self, slot: Slot) -> None:
        shutil.rmtree(self.card)
        self.card.mkdir()
        self.cards.serial = slot.serial
        for path, (content, mtime_ns) in slot.files.items():
            self.put(path, content, mtime_ns)

    def take_in(self, *, broken_off_after: int | None) -> dict[str, Any]:
        """Copied to its end; before that perhaps begun, given up, and begun anew."""
        if broken_off_after is not None:
            execution_id, checks = self.began(), count()
            data = self.do(lambda: self.ready(execution_id))
            self.stopping = lambda: next(checks) >= broken_off_after
            with suppress(Interrupted):
                self.do(lambda: self.copy(execution_id, data))
            self.stopping = lambda: False
            self.given_up(execution_id)
            self.broken_off.add(data["job_name"])
        execution_id = self.began()
        data = self.do(lambda: self.copied(execution_id))
        taken: dict[str, Any] = self.do(lambda: self.judge(data, execution_id))
        self.given_up(execution_id)  # nobody is at it any more
        return taken


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def store(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlStore]:
    store = SqlStore(tmp_path_factory.mktemp("store") / "r.db")
    runner.run(store.open())
    yield store
    runner.run(store.close())


deeds = st.one_of(
    st.tuples(st.just("shoot"), st.sampled_from(RECORDINGS)),
    st.tuples(st.just("write"), st.sampled_from(BESIDE)),
    st.tuples(st.just("delete"), st.sampled_from(RECORDINGS + BESIDE)),
    st.tuples(st.just("format"), st.just(b"")),
    st.tuples(st.just("travel"), st.sampled_from((b"1", b"3", b"-4"))),
)
insertions = st.tuples(
    st.integers(0, 2),
    st.lists(deeds, min_size=1, max_size=8),
    st.none() | st.integers(0, 12),
)


def happens(slot: Slot, deed: str, what: bytes, numbers: Iterator[int]) -> None:
    match deed:
        case "shoot":  # no two recordings are alike, but all have one size
            slot.now_ns += MINUTE_NS
            slot.files[what] = (b"%08d" % next(numbers), slot.now_ns)
        case "write":
            slot.now_ns += MINUTE_NS
            slot.files[what] = (b"the same", slot.now_ns)
        case "delete":
            slot.files.pop(what, None)
        case "format":  # and the camera's clock is set back
            slot.files.clear()
            slot.now_ns = MTIME_NS
        case "travel":
            moved = int(what) * HOUR_NS
            slot.now_ns += abs(moved)
            slot.files = {path: (said, at + moved) for path, (said, at) in slot.files.items()}


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    serials=st.sampled_from([("AA", "BB", "CC"), ("AA", "AA", "BB"), ("AA", "AA", None)]),
    life=st.lists(insertions, min_size=1, max_size=6),
    is_twofold=st.booleans(),
)
def test_the_library_holds_the_union_of_what_cards_brought_each_intact(
    store: SqlStore,
    runner: asyncio.Runner,
    tmp_path_factory: pytest.TempPathFactory,
    serials: tuple[str | None, ...],
    life: list[tuple[int, list[tuple[str, bytes]], int | None]],
    is_twofold: bool,
) -> None:
    note(f"{serials=} {life=} {is_twofold=}")
    folder = tmp_path_factory.mktemp("life")
    rig = Insertions(folder, store, runner)
    rig.further = [folder / "second"] if is_twofold else []
    for library in (rig.library, *rig.further):
        library.mkdir()
    slots, numbers = [Slot(serial) for serial in serials], count()
    seen: set[tuple[bytes, bytes]] = set()
    stood: dict[Path, dict[bytes, tuple[bytes, int, int]]] = {}
    for number, happened, broken_off_after in life:
        slot = slots[number]
        for deed, what in happened:
            happens(slot, deed, what, numbers)
        rig.put_in(slot)
        taken = rig.take_in(broken_off_after=broken_off_after)
        # An empty folder may be where the card isn't mounted.
        is_card = bool(slot.files) or slot.serial is not None
        assert taken["safe_to_format"] == is_card, taken["verdict"]["reasons"]
        seen |= {(path, content) for path, (content, _) in slot.files.items()}
        for library in (rig.library, *rig.further):
            stands = standing(library)
            before = stood.get(library, {})
            assert before == {place: stands.get(place) for place in before}, "touched"
            brought = Counter((below_job(place), each[0]) for place, each in stands.items())
            assert brought.keys() == seen
            # A job that was given up may leave what it had published, but not told the ledger.
            ended = [place for place in stands if job_of(place) not in rig.broken_off]
            once = Counter((below_job(place), stands[place][0]) for place in ended)
            assert all(number == 1 for number in once.values())
            stood[library] = stands
    shutil.rmtree(folder)


def standing(library: Path) -> dict[bytes, tuple[bytes, int, int]]:
    """Every file: its bytes, which file it is, and when it was last changed."""
    found = {}
    for where, _, names in os.walk(os.fsencode(library)):
        for name in names:
            place = os.path.join(where, name)
            status = os.lstat(place)
            with open(place, "rb") as file:
                found[os.path.relpath(place, os.fsencode(library))] = (
                    file.read(),
                    status.st_ino,
                    status.st_mtime_ns,
                )
    return found


def job_of(place: bytes) -> str:
    return os.fsdecode(place.partition(b"/")[0])


def below_job(place: bytes) -> bytes:
    """The path on the card; a second file of one name in one job would show."""
    return place.partition(b"/")[2]
