"""Whoever asks: the same checks, and once per message."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from application.authoring import Pipeline, StepContext, step
from application.json_values import MAX_DEPTH, MAX_OBJECT_BYTES
from application.ports import Query
from application.trigger import MAX_MESSAGE_ID
from domain.errors import (
    InvalidDefinition,
    InvalidInput,
    InvalidPath,
    MessageConflict,
    PipelineNotFound,
    Unavailable,
)
from tests.fakes.engine import LIBRARY, Engine
from tests.fakes.world import AllCards, ManualDispatcher


@step()
def scan(context: StepContext) -> None:
    return None


@pytest.fixture
async def engine() -> Engine:
    return await Engine(
        Pipeline("plain", [scan]),
        Pipeline("card", [scan], card=True),
        dispatcher=ManualDispatcher(),
    ).open()


async def nothing_happened(engine: Engine) -> bool:
    return not await engine.executions.list(Query()) and not await engine.log()


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def circular() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = [value, value]
    return value


async def test_what_a_pipeline_s_own_check_refuses_is_never_begun() -> None:
    def check(data: Mapping[str, Any]) -> None:
        if "folder" not in data:
            raise InvalidInput("which folder?", field="folder")

    engine = await Engine(
        Pipeline("checked", [scan], check=check), dispatcher=ManualDispatcher()
    ).open()
    with pytest.raises(InvalidInput, match="which folder"):
        await engine.trigger("checked", {"a": 1})
    assert await nothing_happened(engine)
    assert (await engine.trigger("checked", {"folder": "/a"})).execution.status == "running"


async def test_a_trigger_is_answered_with_the_running_execution(engine: Engine) -> None:
    answer = await engine.trigger("plain", {"a": 1}, message_id="m")
    assert answer.duplicate is None
    assert answer.execution.status == "running"
    assert answer.execution.message_id == "m"
    assert answer.execution.execution_data == {"a": 1}
    assert [each.status for each in answer.execution.steps] == ["running"]


async def test_a_pipeline_that_isnt_installed_is_refused_with_those_that_are(
    engine: Engine,
) -> None:
    with pytest.raises(PipelineNotFound, match=r"'ghost' \(there are: card, plain\)"):
        await engine.trigger("ghost", {})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (None, "null"),
        ("text", "text"),
        (3, "a number"),
        (True, "a boolean"),
        ([], "a list"),
        ([["a", 1]], "a list"),
        ({1: 2}, "text keys"),
        ({"a": {1: 2}}, "text keys"),
        ({"a": [{None: 2}]}, "text keys"),
        ({"a": float("nan")}, "JSON"),
        ({"a": [float("inf")]}, "JSON"),
        ({"a": object()}, "JSON"),
        ({"a": b"bytes"}, "JSON"),
        ({"a": {1, 2}}, "JSON"),
        ({"a": "\ud800"}, "Unicode"),
        ({"\udcff": 1}, "Unicode"),
        ({"a": "x" * MAX_OBJECT_BYTES}, str(MAX_OBJECT_BYTES)),
        (nested(MAX_DEPTH), "deeply"),
        (nested(100_000), "deeply"),
        (circular(), "deeply"),
        ({"a": 10**5000}, "JSON"),
    ],
)
async def test_data_that_is_no_json_object_is_refused(
    engine: Engine, data: object, why: str
) -> None:
    with pytest.raises(InvalidInput, match=why) as refused:
        await engine.trigger("plain", data)
    assert refused.value.field == "data"
    assert await nothing_happened(engine)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"": "", "\0": "\0"},
        {"a": [1, 2.5, None, True, {"b": []}]},
        {"big": 2**200},
        {"emoji": "🎬"},
        nested(MAX_DEPTH - 1),
        {"a": "x" * (MAX_OBJECT_BYTES - 9)},
    ],
)
async def test_whatever_json_knows_is_taken_as_it_is(engine: Engine, data: dict[str, Any]) -> None:
    answer = await engine.trigger("plain", data)
    assert answer.execution.execution_data == data


async def test_any_mapping_is_an_object_and_what_is_taken_is_a_copy(engine: Engine) -> None:
    inner = {"b": 1}
    answer = await engine.trigger("plain", MappingProxyType({"a": inner}))
    inner["b"] = 2
    found = await engine.status.get(answer.execution.id)
    assert found.execution_data == {"a": {"b": 1}}


@pytest.mark.parametrize(
    "message_id",
    [
        "", "x" * (MAX_MESSAGE_ID + 1), 3, True, [], {}, b"m", "a\nb", "\x1b[2J", "\0",
        "\ud800", "a\u2028b", "a\u202eb", "a\u200bb",
    ],
)  # fmt: skip
async def test_a_message_id_that_cant_be_shown_or_stored_is_refused(
    engine: Engine, message_id: object
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await engine.trigger("plain", {}, message_id=message_id)
    assert refused.value.field == "message_id"
    refused.value.message.encode()
    assert await nothing_happened(engine)


@pytest.mark.parametrize("message_id", ["m", "x" * MAX_MESSAGE_ID, "ü 🎬", "urn:a/b?c=d"])
async def test_any_text_that_can_be_shown_is_a_message_id(engine: Engine, message_id: str) -> None:
    answer = await engine.trigger("plain", {}, message_id=message_id)
    assert answer.execution.message_id == message_id


async def test_a_pipeline_for_cards_needs_a_card(engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="sd_path is missing") as refused:
        await engine.trigger("card", {})
    assert refused.value.field == "sd_path"


@pytest.mark.parametrize("sd_path", [None, 3, "", "relative", "/a/../b", "/a\0b", [], {}])
async def test_a_card_path_that_cant_be_one_is_refused(engine: Engine, sd_path: object) -> None:
    with pytest.raises(InvalidPath):
        await engine.trigger("card", {"sd_path": sd_path})
    assert await nothing_happened(engine)


async def test_a_card_path_is_stored_in_one_spelling(engine: Engine) -> None:
    answer = await engine.trigger("card", {"sd_path": "/media//A001/", "more": 1})
    assert answer.execution.execution_data == {
        "sd_path": "/media/A001",
        "more": 1,
        "library": LIBRARY,
    }
    again = await engine.trigger("card", {"sd_path": "/media/./A001"})
    assert (again.duplicate, again.execution.id) == ("card", answer.execution.id)


async def test_the_next_card_in_a_slot_is_told_from_the_last_one_where_we_see_both_s_numbers(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def announced(serial: object) -> str | None:
        data = {"sd_path": "/media/A001", "volume": {"uuid": serial}}
        return (await engine.trigger("card", data)).duplicate

    assert await announced("1AF3-00C2") is None
    assert await announced("1AF3-00C2") == "card"
    assert await announced(None) == await announced("no number") == "card"
    monkeypatch.setattr(AllCards, "has_volume", lambda cards, serial: False)
    assert await announced("9C1F-23AB") == "card", "the scan would take either for the other"
    monkeypatch.undo()
    assert await announced("9C1F-23AB") is None


async def test_a_card_s_footage_stays_with_the_library_that_it_was_triggered_for(
    engine: Engine,
) -> None:
    data = {"sd_path": "/media/A001"}
    answer = await engine.trigger("card", data, message_id="m")
    assert answer.execution.execution_data["library"] == LIBRARY
    assert data == {"sd_path": "/media/A001"}
    other = engine.trigger_of("/another/library")
    again = await other("card", data, message_id="m")
    assert (again.duplicate, again.execution.id) == ("message", answer.execution.id)
    assert again.execution.execution_data["library"] == LIBRARY


@pytest.mark.parametrize("library", ["/etc", LIBRARY, None, ["/x"]])
async def test_a_client_never_says_where_footage_goes(engine: Engine, library: object) -> None:
    with pytest.raises(InvalidInput, match="library is the server's to say") as refused:
        await engine.trigger("card", {"sd_path": "/media/A001", "library": library})
    assert refused.value.field == "library"
    assert await nothing_happened(engine)


async def test_further_destinations_are_kept_with_the_library_and_are_the_server_s_to_say(
    engine: Engine,
) -> None:
    trigger = engine.trigger_of("/library", "/backup", "/raid")
    with pytest.raises(InvalidInput, match="destinations is the server's to say"):
        await trigger("card", {"sd_path": "/media/A001", "destinations": ["/backup"]})
    assert await nothing_happened(engine)
    answer = await trigger("card", {"sd_path": "/media/A001"}, message_id="m")
    assert answer.execution.execution_data["library"] == "/library"
    assert answer.execution.execution_data["destinations"] == ["/library", "/backup", "/raid"]
    again = await engine.trigger("card", {"sd_path": "/media/A001"}, message_id="m")
    assert again.duplicate == "message"


@pytest.mark.parametrize("again", ["yes", 1, None, []])
async def test_again_is_a_plain_yes_or_no(engine: Engine, again: object) -> None:
    with pytest.raises(InvalidInput, match="again is true") as refused:
        await engine.trigger("card", {"sd_path": "/media/A001", "again": again})
    assert refused.value.field == "again"
    assert await nothing_happened(engine)
    answer = await engine.trigger("card", {"sd_path": "/media/A001", "again": True})
    assert answer.execution.execution_data["again"] is True


async def test_another_pipelines_library_is_only_data(engine: Engine) -> None:
    answer = await engine.trigger("plain", {"library": "of the town"})
    assert answer.execution.execution_data == {"library": "of the town"}
    assert (await engine.trigger("plain", {})).execution.execution_data == {}


async def test_another_pipelines_sd_path_is_only_data(engine: Engine) -> None:
    one = await engine.trigger("plain", {"sd_path": "anything"})
    two = await engine.trigger("plain", {"sd_path": "anything"})
    assert one.execution.id != two.execution.id


async def test_the_same_message_is_answered_and_another_with_its_id_is_a_conflict(
    engine: Engine,
) -> None:
    data = OrderedDict(sd_path="/media/A001", size=1)
    first = await engine.trigger("card", data, message_id="m")
    data.move_to_end("sd_path")
    again = await engine.trigger("card", data, message_id="m")
    assert (again.duplicate, again.execution.id) == ("message", first.execution.id)
    for pipeline_type, other in (("card", {**data, "size": 2}), ("plain", data)):
        with pytest.raises(MessageConflict):
            await engine.trigger(pipeline_type, other, message_id="m")


async def test_a_whole_number_is_one_however_it_is_written(engine: Engine) -> None:
    first = await engine.trigger("plain", {"a": [3.0, {"b": -0.0}]}, message_id="m")
    again = await engine.trigger("plain", {"a": [3, {"b": 0}]}, message_id="m")
    assert (again.duplicate, again.execution) == ("message", first.execution)
    with pytest.raises(MessageConflict):
        await engine.trigger("plain", {"a": [3.5, {"b": 0}]}, message_id="m")
    with pytest.raises(MessageConflict):
        await engine.trigger("plain", {"a": [True, {"b": 0}]}, message_id="m")


async def test_what_cant_be_stored_is_not_answered_as_if_it_were(engine: Engine) -> None:
    engine.executions.refuse_commits = 1
    with pytest.raises(Unavailable):
        await engine.trigger("plain", {}, message_id="m")
    assert await nothing_happened(engine)
    assert (await engine.trigger("plain", {}, message_id="m")).duplicate is None


def test_two_pipelines_of_one_type_are_refused() -> None:
    with pytest.raises(InvalidDefinition, match="two pipelines of type 'plain'"):
        Engine(Pipeline("plain", [scan]), Pipeline("plain", [scan]))


def test_a_pool_that_doesnt_exist_is_refused_with_its_step() -> None:
    @step(pool="gpu")
    def render(context: StepContext) -> None:
        return None

    with pytest.raises(InvalidDefinition, match=r"'render' wants pool 'gpu'"):
        Engine(Pipeline("plain", [render]))


def test_what_is_no_step_and_names_that_are_a_text_are_refused() -> None:
    with pytest.raises(InvalidDefinition, match="decorate it"):
        Pipeline("plain", [lambda context: None])  # type: ignore[list-item]
    with pytest.raises(InvalidDefinition, match="'scan'"):
        step(depends_on="scan")(lambda context: None)
    with pytest.raises(InvalidDefinition, match="'scan'"):
        step(name="x", after="scan")(lambda context: None)
