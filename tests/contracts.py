"""Holds what a server says against its contracts, to the letter.

A client passes over fields that it doesn't know; here every field has to be in the
contract, or it would never be written there.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jsonschema_rs

from tools.contracts import documents

Schema = dict[str, Any]


def check_answer(
    method: str, path: str, status: int, media_type: str, headers: Any, body: Any
) -> None:
    """``path``: as it was asked for. ``body``: JSON, decoded; of anything else, its text."""
    operation = _operation(method, path)
    if operation is None:
        assert status in (401, 403, 404, 405), (
            f"{method} {path} isn't in the contract, and gave {status}"
        )
        assert media_type == "application/problem+json"
        check(Ref("openapi.json", "#/components/schemas/Problem"), body)
        return
    responses = operation["responses"]
    assert str(status) in responses, f"{method} {path} may not answer with {status}: {body}"
    response = _resolved("openapi.json", responses[str(status)])
    assert media_type in response["content"], f"{method} {path} gave {media_type} with {status}"
    for header in response.get("headers", {}):
        assert header in headers, f"{method} {path} gave no {header} with {status}"
    check(Ref("openapi.json", _pointer(method, path, status, media_type)), body)


def check_message(message: Schema) -> str:
    """A message from the hub. Its name in the contract."""
    name = _names().get(message.get("type", ""), "StepAnnounced")
    check(Ref("asyncapi.json", f"#/components/messages/{name}/payload"), message)
    return name


class Ref(tuple[str, str]):
    """A schema in one of the documents."""

    def __new__(cls, document: str, pointer: str) -> Ref:
        return super().__new__(cls, (document, pointer))


def check(ref: Ref, value: Any, *, strict: bool = True) -> None:
    """Raises ``AssertionError``, naming what in ``value`` isn't as the contract says."""
    validator = _validator(ref, strict)
    wrong = [f"{each.instance_path}: {each.message}" for each in validator.iter_errors(value)]
    assert not wrong, f"{ref[1]} in {ref[0]}: {wrong}"


@cache
def _validator(ref: Ref, strict: bool) -> jsonschema_rs.Draft202012Validator:
    document = documents()[ref[0]]
    root = _closed(document) if strict else document
    return jsonschema_rs.Draft202012Validator(
        {"$ref": ref[1], **{key: root[key] for key in ("components", "paths") if key in root}},
        validate_formats=True,
    )


def _closed(schema: Any) -> Any:
    """The same, with no room for fields that aren't named."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(each) for key, each in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


@cache
def _names() -> dict[str, str]:
    """The names of messages in the contract, by their types."""
    messages = documents()["asyncapi.json"]["components"]["messages"]
    return {message["name"]: name for name, message in messages.items()}


@cache
def _templates() -> list[tuple[re.Pattern[str], str]]:
    """Those without parameters first, as the most particular."""
    paths = sorted(documents()["openapi.json"]["paths"], key=lambda path: path.count("{"))
    return [(re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))), path) for path in paths]


def _template(path: str) -> str | None:
    bare = path.partition("?")[0]
    return next((found for pattern, found in _templates() if pattern.fullmatch(bare)), None)


def _operation(method: str, path: str) -> Schema | None:
    template = _template(path)
    if template is None:
        return None
    found: Schema = documents()["openapi.json"]["paths"][template]
    return found.get(method.lower())


def _pointer(method: str, path: str, status: int, media_type: str) -> str:
    template = _template(path)
    assert template is not None
    named = documents()["openapi.json"]["paths"][template][method.lower()]["responses"][str(status)]
    inner = f"/content/{_escaped(media_type)}/schema"
    if "$ref" in named:
        return f"{named['$ref']}{inner}"
    return f"#/paths/{_escaped(template)}/{method.lower()}/responses/{status}{inner}"


def _escaped(part: str) -> str:
    part = part.replace("~", "~0").replace("/", "~1")
    return part.replace("{", "%7B").replace("}", "%7D")


def _resolved(document: str, schema: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    found: Any = documents()[document]
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    resolved: Schema = found
    return resolved
