from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from adapters.rpc.messages import (
    MAX_DEPTH,
    execution_message,
    json_of,
    status_filter,
    struct_of,
)
from adapters.rpc.pb import pipeline_pb2 as pb
from application.json_values import MAX_EXACT
from application.views import ExecutionView
from domain.execution import ExecutionStatus
from domain.step import StepStatus


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"end": True}
    for _ in range(levels - 1):
        value = {"next": value}
    return value


@pytest.mark.parametrize("value", [
    None, True, False, "", "Ünïcode", 0, 3, -3, 0.5, MAX_EXACT, -MAX_EXACT, [], {}, [None],
    {"a": {"b": [1, {"c": []}]}},
])  # fmt: skip
def test_json_survives_the_way_there_and_back(value: object) -> None:
    back = json_of(Struct.FromString(struct_of({"value": value}).SerializeToString()))
    assert back == {"value": value}
    assert type(back["value"]) is type(value)


def test_numbers_that_a_double_does_not_hold_exactly_stay_doubles() -> None:
    back = json_of(struct_of({"n": MAX_EXACT + 2}))
    assert back == {"n": float(MAX_EXACT + 2)}
    assert isinstance(back["n"], float)


def test_numbers_that_are_none_stay_as_they_are_for_others_to_refuse() -> None:
    struct = Struct()
    struct.update({"nan": math.nan, "inf": math.inf})
    back = json_of(struct)
    assert math.isnan(back["nan"])
    assert back["inf"] == math.inf


def test_a_number_beyond_all_doubles_is_shown_as_text() -> None:
    assert json_of(struct_of({"n": 10**400})) == {"n": "1" + "0" * 400}


def test_a_value_that_says_nothing_is_null() -> None:
    struct = Struct()
    struct.fields["nothing"].Clear()
    assert json_of(struct) == {"nothing": None}


def test_a_tuple_is_a_list() -> None:
    assert json_of(struct_of({"steps": ("a", "b")})) == {"steps": ["a", "b"]}


def test_what_is_no_json_is_a_bug() -> None:
    with pytest.raises(TypeError, match="object is no JSON"):
        struct_of({"what": object()})


@pytest.mark.parametrize("levels", [MAX_DEPTH, MAX_DEPTH + 1, 500])
def test_what_is_nested_too_deeply_for_readers_is_shown_as_text(levels: int) -> None:
    page = pb.ListExecutionsResponse()
    page.executions.add().execution_data.CopyFrom(struct_of(nested(levels)))
    read = pb.ListExecutionsResponse.FromString(page.SerializeToString())
    value: Any = json_of(read.executions[0].execution_data)
    for _ in range(MAX_DEPTH - 1):
        value = value["next"]
    assert value == ({"end": True} if levels == MAX_DEPTH else {"next": value["next"]})
    assert levels == MAX_DEPTH or isinstance(value["next"], str)


def test_every_status_has_its_number() -> None:
    for status in ExecutionStatus:
        number = pb.ExecutionStatus.Value(f"EXECUTION_STATUS_{status.name}")
        assert status_filter(number) is status
    assert status_filter(pb.EXECUTION_STATUS_UNSPECIFIED) is None
    assert {f"STEP_STATUS_{status.name}" for status in StepStatus} | {
        "STEP_STATUS_UNSPECIFIED"
    } == set(pb.StepStatus.keys())


def test_an_execution_is_shown_with_its_times_and_without_what_it_does_not_have() -> None:
    view = ExecutionView(
        id=7,
        uuid="u",
        execution_id="u",
        message_id=None,
        pipeline_type="film",
        status="running",
        job_id=None,
        progress=12,
        execution_data={},
        error_message=None,
        warnings=("late",),
        waits_for=["render"],
        paused_at=None,
        engine_paused_at=None,
        rerun_of=None,
        created_at="2026-11-22T08:29:00.123Z",
        started_at=None,
        completed_at=None,
        updated_at="2026-11-22T08:29:01.000Z",
        steps=[],
    )
    assert MessageToDict(execution_message(view), preserving_proto_field_name=True) == {
        "execution_id": "u",
        "id": "7",
        "pipeline_type": "film",
        "status": "EXECUTION_STATUS_RUNNING",
        "progress": 12,
        "execution_data": {},
        "warnings": ["late"],
        "waits_for": ["render"],
        "created_at": "2026-11-22T08:29:00.123Z",
        "updated_at": "2026-11-22T08:29:01Z",
    }
