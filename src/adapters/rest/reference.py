"""The contracts as one page for people.

Plain HTML, made here: field machines are offline, and a page that runs no script can
be locked up completely (``pages.py``).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 2rem 1rem; }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); }
h3 { text-transform: capitalize; margin: 2rem 0 .5rem; }
code, pre, .verb { font: 14px/1.45 ui-monospace, monospace; }
pre { overflow: auto; padding: .75rem; border: 1px solid var(--line); border-radius: 6px; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; }
details > :not(summary) { margin-left: 1rem; margin-right: 1rem; }
summary { padding: .45rem .75rem; cursor: pointer; }
summary span { opacity: .75; margin-left: .75rem; }
.verb { display: inline-block; min-width: 3.2rem; font-weight: 700; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
td, th { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0; }
td { border-top: 1px solid var(--line); }
"""

STYLE_HASH = "sha256-" + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
"""For the Content-Security-Policy: this style and no other."""


def page(openapi: Mapping[str, Any], asyncapi: Mapping[str, Any]) -> str:
    body = "".join([*_rest(openapi), *_websocket(asyncapi), *_types(openapi)])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Rushes {escape(openapi['info']['version'])}</title>"
        f"<style>{STYLE}</style></head><body>{body}</body></html>"
    )


def _rest(document: Mapping[str, Any]) -> Iterator[str]:
    info = document["info"]
    yield f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
    yield (
        '<p><a href="#rest">REST</a> (<a href="/openapi.json">OpenAPI</a>), '
        '<a href="#websocket">WebSocket</a> (<a href="/asyncapi.json">AsyncAPI</a>), '
        '<a href="#types">types</a></p>'
    )
    yield f'<h2 id="rest">REST</h2>{_text(info["description"])}'
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            shown = "".join(_operation(method, path, operation, document))
            by_tag.setdefault(operation["tags"][0], []).append(shown)
    for tag, operations in by_tag.items():
        yield f"<h3>{escape(tag)}</h3>{''.join(operations)}"


def _operation(
    method: str, path: str, operation: Mapping[str, Any], document: Mapping[str, Any]
) -> Iterator[str]:
    yield (
        "<details><summary>"
        f'<b class="verb">{method.upper()}</b><code>{escape(path)}</code>'
        f"<span>{escape(operation['summary'])}</span></summary>"
        f'<div id="{escape(operation["operationId"])}">'
    )
    yield _text(operation.get("description", ""))
    parameters = operation.get("parameters", ())
    if parameters:
        rows = (
            (_code(each["name"]), each["in"], _kind(each["schema"]), _inline(each["description"]))
            for each in parameters
        )
        yield _table(("parameter", "in", "type", ""), rows)
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        yield f"<p>Body: {_kind(content['schema'])}</p>{_pre(content['example'])}"
    rows_of = []
    for status, response in operation["responses"].items():
        found = _resolved(response, document)
        kinds = " or ".join(
            f"{_kind(each['schema'])} <code>{escape(media_type)}</code>"
            for media_type, each in found["content"].items()
        )
        rows_of.append((status, _inline(found["description"]), kinds))
    yield _table(("status", "", "body"), rows_of)
    for response in operation["responses"].values():
        content = response.get("content", {}).get("application/json", {})
        if "example" in content:
            yield _pre(content["example"])
            break
    yield "</div></details>"


def _websocket(document: Mapping[str, Any]) -> Iterator[str]:
    yield f'<h2 id="websocket">WebSocket</h2>{_text(document["info"]["description"])}'
    query = document["channels"]["ws"]["bindings"]["ws"]["query"]["properties"]
    yield "<p><code>/ws</code></p>" + _table(
        ("query", "type", ""),
        ((_code(name), _kind(each), _inline(each["description"])) for name, each in query.items()),
    )
    for operation in document["operations"].values():
        yield f"<h3>{escape(operation['title'])}</h3>"
        for each in operation["messages"]:
            message = document["components"]["messages"][each["$ref"].rpartition("/")[2]]
            data = _resolved(message["payload"]["properties"]["data"], document)
            yield (
                f"<details><summary><code>{escape(message['title'])}</code></summary>"
                f"{_text(message.get('description', ''))}{_fields(data)}"
                f"{_pre(message['examples'][0]['payload'])}</details>"
            )


def _types(document: Mapping[str, Any]) -> Iterator[str]:
    yield '<h2 id="types">Types</h2>'
    for name, schema in document["components"]["schemas"].items():
        words = " ".join(_code(each) for each in schema.get("enum", ()))
        yield (
            # A link into a closed <details> opens it; one to itself would not.
            f"<details><summary><code>{escape(name)}</code></summary>"
            f'<div id="type-{escape(name)}">'
            f"{_text(schema.get('description', ''))}{words and f'<p>{words}</p>'}"
            f"{_fields(schema)}</div></details>"
        )


def _fields(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    return _table(
        ("field", "type", ""),
        (
            (
                _code(name) + ("" if name in required else " <i>(may be missing)</i>"),
                _kind(each),
                _inline(each.get("description", "")),
            )
            for name, each in schema.get("properties", {}).items()
        ),
    )


def _kind(schema: Mapping[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#type-{escape(name)}">{escape(name)}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if "const" in schema:
        return _code(schema["const"])
    if "enum" in schema:
        return " or ".join(_code(each) for each in schema["enum"])
    words = escape(str(schema.get("format", schema.get("type", "anything"))))
    if schema.get("type") == "array":
        words += f" of {_kind(schema['items'])}" if schema.get("items") else ""
    if schema.get("type") == "object" and schema.get("properties"):
        words += " with " + ", ".join(_code(name) for name in schema["properties"])
    if "minimum" in schema and "maximum" in schema:
        words += f" from {schema['minimum']} to {schema['maximum']}"
    if "default" in schema:
        words += f", else {_code(json.dumps(schema['default']))}"
    return words


def _resolved(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in schema:
        return schema
    found: Any = document
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    resolved: Mapping[str, Any] = found
    return resolved


def _table(heads: tuple[str, ...], rows: Any) -> str:
    shown = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    return f"<table><tr>{head}</tr>{shown}</table>" if shown else ""


def _text(markdown: str) -> str:
    return "".join(f"<p>{_inline(each)}</p>" for each in markdown.split("\n\n") if each.strip())


def _inline(markdown: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(markdown))


def _code(text: object) -> str:
    return f"<code>{escape(str(text))}</code>"


def _pre(example: object) -> str:
    shown = example if isinstance(example, str) else json.dumps(example, indent=2)
    return f"<pre>{escape(shown)}</pre>"
