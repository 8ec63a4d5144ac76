"""The contracts say all of what there is, and what they show is true to them."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, get_type_hints

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from adapters.rest.contract import OPERATIONS, RENAMED, TYPES
from adapters.rest.documents import INVISIBLE
from adapters.rest.metrics import EXECUTION_WORDS, STEP_WORDS
from adapters.rest.openapi import openapi
from adapters.schemas import event_examples, event_schemas, fact_types
from adapters.settings import Settings
from adapters.websocket.contract import HEARD, SAID
from adapters.websocket.messages import Said
from application.trigger import MAX_MESSAGE_ID, check_message_id
from application.views import message_view
from bootstrap import Container
from domain.errors import InvalidInput
from domain.events import Fact, RecordedFact
from server import web_routes
from tests.contracts import Ref, check
from tools.contracts import documents

OPENAPI = documents()["openapi.json"]
ASYNCAPI = documents()["asyncapi.json"]


def served() -> set[tuple[str, str, str]]:
    return {
        (method, route.path, route.name)
        for route in web_routes(Container(settings=Settings.load({}, {})))
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"  # goes without saying beside GET
    }


def test_every_route_is_in_the_contract_and_nothing_else() -> None:
    told = {
        (method.upper(), path, operation["operationId"])
        for path, methods in OPENAPI["paths"].items()
        for method, operation in methods.items()
    }
    assert told == served()
    assert set(OPERATIONS) == {name for _, _, name in told}


def test_a_route_without_a_line_in_the_table_has_no_contract() -> None:
    async def forgotten(request: Request) -> Response:
        raise AssertionError

    with pytest.raises(LookupError, match="/api/forgotten"):
        openapi([Route("/api/forgotten", forgotten)], "1")


def test_the_websocket_s_address_is_in_the_contract() -> None:
    routes = web_routes(Container(settings=Settings.load({}, {})))
    paths = [route.path for route in routes if isinstance(route, WebSocketRoute)]
    assert [each["address"] for each in ASYNCAPI["channels"].values()] == paths


def refs(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for each in schema.values():
            yield from refs(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from refs(each)


@pytest.mark.parametrize("name", documents())
def test_whatever_a_document_points_to_is_there(name: str) -> None:
    for ref in refs(documents()[name]):
        found: Any = documents()[name]
        for part in ref.removeprefix("#/").split("/"):
            assert part in found, ref
            found = found[part]


@pytest.mark.parametrize("name", documents())
def test_every_schema_is_one(name: str) -> None:
    schemas = documents()[name]["components"]["schemas"]
    assert schemas
    for schema in schemas.values():
        jsonschema_rs.meta.validate(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
        )


def contents() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in OPENAPI["paths"].items():
        for method, operation in methods.items():
            bodies = {"body": operation.get("requestBody", {}), **operation["responses"]}
            for where, told in bodies.items():
                for media_type, content in told.get("content", {}).items():
                    yield f"{method} {path} {where} {media_type}", media_type, content
    for name, response in OPENAPI["components"]["responses"].items():
        for media_type, content in response["content"].items():
            yield name, media_type, content


def test_every_example_is_what_its_schema_says() -> None:
    looked_at = 0
    for where, media_type, content in contents():
        shown = [each["value"] for each in content.get("examples", {}).values()]
        shown += [content["example"]] if "example" in content else []
        assert shown, f"{where} has no example"
        for example in shown:
            if media_type.endswith("json") and "$ref" in content["schema"]:
                check(Ref("openapi.json", content["schema"]["$ref"]), example)
                looked_at += 1
    assert looked_at > len(OPERATIONS)


def test_every_parameter_in_a_path_is_described_and_no_other() -> None:
    for path, methods in OPENAPI["paths"].items():
        named = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        for operation in methods.values():
            told = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
            assert told == named, path
            assert all(p["description"] for p in operation.get("parameters", ()))


def test_every_message_has_an_example_that_is_what_its_schema_says() -> None:
    for name, message in ASYNCAPI["components"]["messages"].items():
        for example in message["examples"]:
            check(Ref("asyncapi.json", f"#/components/messages/{name}/payload"), example["payload"])


def test_everything_that_the_hub_says_is_in_the_contract() -> None:
    said = {type(each) for each in SAID}
    assert said == set(Said.__subclasses__())
    names = {each.__name__ for each in said | {type(each) for each in HEARD}}
    assert names <= set(ASYNCAPI["components"]["messages"])


def kinds(cls: type[Fact]) -> set[type[Fact]]:
    return {cls}.union(*(kinds(each) for each in cls.__subclasses__()))


def test_every_fact_is_in_the_contract() -> None:
    words = {each.type for each in kinds(Fact) if isinstance(vars(each).get("type"), str)}
    told = {each["name"] for each in ASYNCAPI["components"]["messages"].values()}
    assert words <= told
    assert len(words) == len(fact_types())
    assert set(event_examples()) == set(event_schemas())


WORDS = st.text(st.characters(codec="utf-8"), max_size=20)


@pytest.mark.parametrize("kind", fact_types())
def test_whatever_a_fact_says_is_what_its_schema_says(kind: type[Fact]) -> None:
    """Made from its types alone, so that the schema can't follow from the example."""
    hints = get_type_hints(kind)
    names = [each.name for each in fields(kind) if each.name != "at"]
    plain = {int: st.integers(0, 100), str: WORDS}
    made = {name: plain.get(hints[name], st.from_type(hints[name])) for name in names}
    moments = st.datetimes(timezones=st.just(UTC))
    made = {n: moments if hints[n] is datetime else each for n, each in made.items()}

    @settings(max_examples=25)
    @given(at=moments, told=st.fixed_dictionaries(made))
    def holds(at: Any, told: dict[str, Any]) -> None:
        fact = kind(at, **told)
        data = {"execution_id": "019ab0c2-6a5b-7c3e-9d41-2f60a1b7c8d9", **fact.data()}
        message = message_view(RecordedFact(1, 1, fact.type, fact.subject, data, at))
        pointer = f"#/components/messages/{kind.__name__}/payload"
        check(Ref("asyncapi.json", pointer), json.loads(json.dumps(message)))
        check(Ref("openapi.json", f"#/components/schemas/{kind.__name__}"), message)

    holds()


def test_a_message_with_a_field_that_the_contract_does_not_have_is_noticed() -> None:
    message = event_examples()["StepStarted"]
    message["data"]["colour"] = "blue"
    with pytest.raises(AssertionError, match="colour"):
        check(Ref("asyncapi.json", "#/components/messages/StepStarted/payload"), message)
    del message["data"]["colour"], message["data"]["attempt"]
    with pytest.raises(AssertionError, match="attempt"):
        check(Ref("asyncapi.json", "#/components/messages/StepStarted/payload"), message)


def test_the_pattern_of_message_ids_is_what_is_checked() -> None:
    """For each character that JSON has and that Unicode knows."""
    pattern = OPENAPI["components"]["schemas"]["TriggerRequest"]["properties"]["message_id"]
    assert INVISIBLE in pattern["anyOf"][0]["pattern"]
    visible = re.compile(pattern["anyOf"][0]["pattern"])
    characters = [
        character
        for character in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(character) not in ("Cn", "Cs")
    ]
    taken = "".join(each for each in characters if visible.fullmatch(each))
    for start in range(0, len(taken), MAX_MESSAGE_ID):
        check_message_id(taken[start : start + MAX_MESSAGE_ID])
    refused = set(characters) - set(taken)
    assert len(refused) > 100
    for each in refused:
        with pytest.raises(InvalidInput):
            check_message_id(each)


def test_views_are_called_by_what_they_show() -> None:
    schemas = OPENAPI["components"]["schemas"]
    assert not [name for name in schemas if name.endswith("View")]
    assert set(RENAMED) <= {each.__name__ for each in TYPES}


def test_every_fact_about_an_execution_or_a_step_is_a_figure_too() -> None:
    uncounted = {"pipeline:paused", "pipeline:resumed", "pipeline:step_spawned"}
    assert {each.type for each in fact_types()} - uncounted == {*EXECUTION_WORDS, *STEP_WORDS}
