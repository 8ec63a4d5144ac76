"""Every way in, every path that may not come in by it: refused by the use case, whoever asks.

The rules are the real ones (``FsCards``, on real folders); no edge is between.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.steps.cards import FsCards
from application.advance import MAX_PARAMS_BYTES as MAX_STEP_PARAMS_BYTES
from application.authoring import Pipeline, StepContext, external_step, step
from application.ports import AttemptRef, Query
from application.progress import MAX_DETAIL_BYTES
from domain.data import MAX_DATA_BYTES
from domain.errors import InvalidInput, InvalidPath
from domain.execution import MAX_PARAMS_BYTES
from tests.fakes.engine import Engine
from tests.fakes.world import ManualDispatcher


@step(spawns=["clip"])
def scan(context: StepContext) -> None:
    return None


@step(dynamic=True)
def clip(context: StepContext) -> None:
    return None


STEPS = [scan, clip, external_step("render")]


class House:
    """An engine that knows one card root, with a card, and a folder outside with a link to it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.outside = folder / "media", folder / "outside"
        self.card = self.root / "A001"
        self.card.mkdir(parents=True)
        self.outside.mkdir()
        (self.root / "link").symlink_to(self.outside)
        self.engine = Engine(
            Pipeline("card", STEPS, card=True),
            Pipeline("plain", STEPS),
            dispatcher=ManualDispatcher(),
        )
        self.engine.trigger._cards = FsCards([str(self.root)])

    async def begun(self, pipeline_type: str) -> int:
        """Its steps run; the card, where it works on one, is a good one."""
        data = {"sd_path": str(self.card)} if pipeline_type == "card" else {}
        return (await self.engine.trigger(pipeline_type, data)).execution.id

    async def broken(self, pipeline_type: str) -> int:
        """``scan`` has failed."""
        made = await self.begun(pipeline_type)
        await self.engine.advance.fail(AttemptRef(made, "scan", 1), "no", permanent=True)
        return made


@pytest.fixture
async def house(tmp_path: Path) -> House:
    made = House(tmp_path)
    await made.engine.open()
    return made


BAD_PATHS: dict[str, Callable[[House], Any]] = {
    "another folder": lambda house: str(house.outside),
    "a system folder": lambda house: "/etc",
    "the root of the file system": lambda house: "/",
    "the card root": lambda house: str(house.root),
    "a way up": lambda house: f"{house.card}/../../outside",
    "a link out": lambda house: str(house.root / "link"),
    "below a link out": lambda house: str(house.root / "link" / "x"),
    "a name that begins alike": lambda house: f"{house.root}2/A001",
    "relative": lambda house: "media/A001",
    "empty": lambda house: "",
    "with NUL": lambda house: f"{house.card}\0",
    "no text": lambda house: 7,
    "a list": lambda house: [str(house.card)],
    "nothing": lambda house: None,
}


@pytest.mark.parametrize("bad", BAD_PATHS)
async def test_no_trigger_brings_in_a_path_outside_the_roots(house: House, bad: str) -> None:
    with pytest.raises(InvalidPath) as refused:
        await house.engine.trigger("card", {"sd_path": BAD_PATHS[bad](house)})
    assert refused.value.field == "sd_path"
    assert not await house.engine.executions.list(Query())


@pytest.mark.parametrize("name", ["library", "destinations"])
async def test_where_footage_goes_is_not_the_triggers_to_say(house: House, name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await house.engine.trigger("card", {"sd_path": str(house.card), name: "/etc"})
    assert refused.value.field == name


PLACES = ("sd_path", "library", "destinations")


async def _handler(house: House, output: dict[str, Any]) -> int:
    made = await house.begun("card")
    await house.engine.advance.complete(AttemptRef(made, "scan", 1), output)
    return made


async def _service(house: House, output: dict[str, Any]) -> int:
    made = await house.begun("card")
    await house.engine.advance.complete_external(made, "render", 1, output)
    return made


async def _person(house: House, output: dict[str, Any]) -> int:
    made = await house.broken("card")
    with pytest.raises(InvalidInput) as refused:
        await house.engine.settle.complete(made, "scan", output)
    assert refused.value.field == "output"
    return made


REPORTS: dict[str, Callable[[House, dict[str, Any]], Awaitable[int]]] = {
    "a handler": _handler,
    "a service outside": _service,
    "a person": _person,
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("who", REPORTS)
async def test_no_output_says_where_footage_comes_from_or_goes(
    house: House, who: str, name: str
) -> None:
    made = await REPORTS[who](house, {name: [str(house.outside)], "more": 1})
    execution = await house.engine.executions.get(made)
    assert str(house.outside) not in str(execution.data)
    assert "more" not in execution.data, "nothing of it is merged"
    assert str(execution.status) == "failed"
    if who != "a person":
        assert repr(name) in str(execution.error_message)


async def test_what_is_run_again_has_the_path_that_was_checked(house: House) -> None:
    made = await house.broken("card")
    again = await house.engine.rerun(made, "scan")
    assert again.execution_data["sd_path"] == str(house.card)


async def test_the_owner_at_this_machine_may_name_any_folder_but_the_root(house: House) -> None:
    named = await house.engine.trigger("card", {"sd_path": str(house.outside)}, anywhere=True)
    assert named.execution.execution_data["sd_path"] == str(house.outside)
    with pytest.raises(InvalidPath):
        await house.engine.trigger("card", {"sd_path": "/"}, anywhere=True)


# -- how much --------------------------------------------------------------------


PART = "x" * (MAX_DATA_BYTES // 5)


async def filled(house: House) -> int:
    """Four parts of five are there: by what was triggered, and by three members of a family."""
    made = (await house.engine.trigger("plain", {"given": PART})).execution.id
    scan = AttemptRef(made, "scan", 1)
    for parameter in "ABCD":
        await house.engine.advance.spawn(scan, "clip", parameter, params={})
    for parameter in "ABC":
        await house.engine.advance.complete(AttemptRef(made, f"clip:{parameter}", 1), {"a": PART})
    return made


async def test_an_output_for_which_the_data_has_no_room_fails_its_step_and_nothing_is_merged(
    house: House,
) -> None:
    made = await filled(house)
    before = (await house.engine.executions.get(made)).data
    for _ in range(2):  # told twice is told once
        await house.engine.advance.complete(AttemptRef(made, "clip:D", 1), {"a": PART, "b": 1})
    execution = await house.engine.executions.get(made)
    assert execution.data == before
    assert (execution.step("clip:D").status, execution.step("clip:D").output) == ("failed", None)
    message = str(execution.error_message)
    assert "clip:D" in message
    assert str(MAX_DATA_BYTES) in message
    assert str(len(PART) + len('{"a":"","b":1}')) in message


async def test_what_just_fits_is_merged(house: House) -> None:
    made = await filled(house)
    data = (await house.engine.executions.get(made)).data
    room = MAX_DATA_BYTES - data_size(data) - len(',"D":{"a":""}')
    await house.engine.advance.complete(AttemptRef(made, "clip:D", 1), {"a": "x" * room})
    execution = await house.engine.executions.get(made)
    assert data_size(execution.data) == MAX_DATA_BYTES
    assert execution.data_bytes == MAX_DATA_BYTES, "counted, as it is when all is encoded"


async def test_a_person_is_told_that_the_data_has_no_room(house: House) -> None:
    made = await filled(house)
    await house.engine.advance.fail(AttemptRef(made, "clip:D", 1), "no", permanent=True)
    with pytest.raises(InvalidInput, match=str(MAX_DATA_BYTES)):
        await house.engine.settle.complete(made, "clip:D", {"a": PART, "b": 1})


def data_size(data: object) -> int:
    return len(json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode())


async def test_the_params_of_spawned_steps_are_bounded_each_and_together(house: House) -> None:
    made = await house.begun("plain")
    scan = AttemptRef(made, "scan", 1)
    spawn = house.engine.advance.spawn
    with pytest.raises(InvalidInput, match=str(MAX_STEP_PARAMS_BYTES)):
        await spawn(scan, "clip", "A", params={"a": "x" * MAX_STEP_PARAMS_BYTES})
    large = {"a": "x" * (MAX_STEP_PARAMS_BYTES - 10)}
    for number in range(MAX_PARAMS_BYTES // MAX_STEP_PARAMS_BYTES):
        await spawn(scan, "clip", str(number), params=large)
    with pytest.raises(InvalidInput, match=str(MAX_PARAMS_BYTES)) as refused:
        await spawn(scan, "clip", "over", params=large)
    assert refused.value.field == "params"
    await spawn(scan, "clip", "0", params=large)  # the same again still changes nothing
    assert "clip:over" not in (await house.engine.executions.get(made)).steps


async def test_what_a_worker_says_beside_its_progress_is_bounded(house: House) -> None:
    made = await house.begun("plain")
    await house.engine.claims("render", "w")
    with pytest.raises(InvalidInput, match=str(MAX_DETAIL_BYTES)):
        await house.engine.advance.beat_external(
            made, "render", 1, progress=1, detail={"a": "x" * MAX_DETAIL_BYTES}
        )
