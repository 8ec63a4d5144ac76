"""JSON Schemas, made from the types that the program itself works with.

Every door's contract is put together from them, so none can say anything that the
types don't. Of a class, the first words of its docstring become the description, and
what stands behind ``name:`` that of the field.

What clients are told of executions is the same at every door, and is described here once.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, get_type_hints

import msgspec

from application.feed import StepProgress
from application.views import message_view
from domain.events import Announced, Fact, PipelineFailed, PipelineStarted, RecordedFact

REF = "#/components/schemas/{name}"

EXAMPLE_AT = datetime(2026, 11, 22, 8, 29, 0, 123_000, UTC)
EXAMPLE_UUID = "019ab0c2-6a5b-7c3e-9d41-2f60a1b7c8d9"
EXAMPLE_MESSAGE = "cart-2/1763800140"

_SAMPLES: Mapping[str, Any] = {
    # Of each field of each fact, by its name, for the examples.
    "pipeline_type": "sd_ingest",
    "steps": ("scan_sd", "create_job", "copy_files"),
    "kept": (),
    "warnings": (),
    "progress": 75,
    "step_name": "copy_files",
    "step_key": "copy_files",
    "spawned_by": "list_clips",
    "attempt": 1,
    "message": "step copy_files, attempt 1: card lost",
    "error": "card lost",
    "cancelled": ("copy_files",),
    "reopened": ("copy_files",),
    "next_attempt_at": EXAMPLE_AT,
    "word": "card:verdict",
    "said": {"job_id": 3, "job_name": "2026-11-22_A001", "safe_to_format": True},
}

_PROGRESS = {"type": "integer", "minimum": 0, "maximum": 100}
_TIME = {"type": "string", "format": "date-time"}
_UUID = {"type": "string", "format": "uuid"}


def components(
    types: Sequence[type[Any]], *, ref: str = REF, renamed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The schemas of these types, by name. ``renamed``: what some are called outside.

    A type that another one mentions has to be there too.
    """
    named = dict(renamed or {})
    made = msgspec.json.schema_components(types, ref_template=ref)[1]
    by_name = {each.__name__: each for each in types}
    found = {}
    for name, schema in sorted(made.items()):
        _refine(by_name[name], schema)
        schema["title"] = named.get(name, name)
        found[named.get(name, name)] = _renamed(schema, ref, named)
    return found


def _refine(cls: type[Any], schema: dict[str, Any]) -> None:
    told = _Told(cls)
    schema.pop("description", None)
    if told.summary:
        schema["description"] = told.summary
    if issubclass(cls, Enum):
        return
    properties = schema.get("properties", {})
    for name, field in properties.items():
        _refine_field(name, field)
        if name in told.fields:
            # Beside a $ref too, which 2020-12 allows.
            field["description"] = told.fields[name]
    if is_dataclass(cls):
        # Encoded as a whole: a default is never left out.
        schema["required"] = [each.name for each in fields(cls) if each.name in properties]
        for field in properties.values():
            field.pop("default", None)


def _refine_field(name: str, schema: dict[str, Any]) -> None:
    """What a name says beyond its type: the words for times, ids and progress are fixed."""
    for each in (schema, *schema.get("anyOf", ())):
        if each.get("type") == "string" and name.endswith("_at"):
            each.update(_TIME)
        elif each.get("type") == "string" and name in ("uuid", "execution_id"):
            each.update(_UUID)
        elif each.get("type") == "integer" and name == "progress":
            each.update(_PROGRESS)


def _renamed(schema: Any, ref: str, names: Mapping[str, str]) -> Any:
    if isinstance(schema, dict):
        return {
            key: _renamed_ref(value, ref, names) if key == "$ref" else _renamed(value, ref, names)
            for key, value in schema.items()
        }
    return [_renamed(each, ref, names) for each in schema] if isinstance(schema, list) else schema


def _renamed_ref(target: str, ref: str, names: Mapping[str, str]) -> str:
    name = target.removeprefix(ref.format(name=""))
    return ref.format(name=names.get(name, name))


class _Told:
    """What a docstring tells: of the class (``summary``), and of its fields."""

    def __init__(self, cls: type[Any]) -> None:
        text = inspect.cleandoc(cls.__doc__ or "") if "__doc__" in vars(cls) else ""
        if is_dataclass(cls) and text.startswith(f"{cls.__name__}("):
            text = ""  # what dataclass writes itself
        known = getattr(cls, "__annotations__", {})
        parts = re.split(r"(?:^|(?<=[.] ))(\w+): ", text, flags=re.MULTILINE)
        told = [parts[0]]
        self.fields: dict[str, str] = {}
        for name, words in zip(parts[1::2], parts[2::2], strict=True):
            if name in known:
                self.fields[name] = plain(words)
            else:
                told.append(f"{name}: {words}")
        self.summary = plain("".join(told))


def plain(text: str) -> str:
    """A docstring's words as one paragraph a blank line, in Markdown."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(" ".join(each.split()) for each in paragraphs).replace("``", "`")


# -- what everybody is told of executions ------------------------------------------------


def fact_types() -> list[type[Fact]]:
    """Every kind of fact that there is, but what steps announce in words of their own."""
    found = {each.type: each for each in _kinds(Fact) if isinstance(vars(each).get("type"), str)}
    return [found[word] for word in sorted(found)]


def _kinds(cls: type[Fact]) -> Iterator[type[Fact]]:
    yield cls
    for each in cls.__subclasses__():
        yield from _kinds(each)


def event_schemas() -> dict[str, dict[str, Any]]:
    """One schema for each kind of message about an execution, by its name in contracts."""
    found = {each.__name__: _fact_schema(each) for each in fact_types()}
    found["StepProgress"] = _message_schema(
        "How far a running attempt has come. Nobody has to remember it, so it has no id: "
        "who comes back with `since` isn't told it again. At most four a second a step.",
        {"const": StepProgress.type},
        {
            "step_name": {"type": "string"},
            "step_key": {"type": "string"},
            "attempt": {"type": "integer"},
            "progress": {
                "type": "number",
                "minimum": 0,
                "maximum": 100,
                "description": "of the step",
            },
            "detail": {"type": "object", "description": "what the step says beside it"},
        },
        has_id=False,
    )
    found["StepAnnounced"] = _message_schema(
        "A step's own word, which no other message says, and what the step tells with it: "
        "`card:verdict` of `sd_ingest`, for one.",
        # The first words that are Rushes' own are refused where a step announces.
        {
            "type": "string",
            "pattern": "^(?!(pipeline|hub|detector):)[a-z][a-z0-9_]*:[a-z][a-z0-9_]*$",
        },
        {
            "step_name": {"type": "string"},
            "step_key": {"type": "string"},
            "attempt": {"type": "integer"},
        },
        open_ended=True,
    )
    return found


def event_examples() -> dict[str, dict[str, Any]]:
    """A message of each kind, as it is really written."""
    whose = {"execution_id": EXAMPLE_UUID, "message_id": EXAMPLE_MESSAGE}
    found = {}
    for number, kind in enumerate([*fact_types(), Announced]):
        names = [each.name for each in fields(kind) if each.name != "at"]
        fact = kind(EXAMPLE_AT, **{name: _SAMPLES[name] for name in names})
        told = RecordedFact(
            1042 + number, 7, fact.type, fact.subject, {**whose, **fact.data()}, EXAMPLE_AT
        )
        name = "StepAnnounced" if kind is Announced else kind.__name__
        found[name] = message_view(told)
    detail = {"bytes_done": 1_048_576, "bytes_total": 4_194_304}
    data = {"step_name": "copy_files", "step_key": "copy_files", "attempt": 1, "progress": 25.0}
    found["StepProgress"] = message_view(
        StepProgress(7, {**whose, **data, "detail": detail}, EXAMPLE_AT)
    )
    return found


def _fact_schema(kind: type[Fact]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    names = [each.name for each in fields(kind) if each.name != "at"]
    shape = msgspec.defstruct(f"{kind.__name__}Data", [(name, hints[name]) for name in names])
    data = next(iter(msgspec.json.schema_components([shape])[1].values()))["properties"]
    for name, schema in data.items():
        _refine_field(name, schema)
        if name == "progress":
            schema["description"] = "of the execution"
    if kind is PipelineFailed:
        data = {"error": {"type": "object", "properties": data, "required": names}}
    optional = ("kept",) if kind is PipelineStarted else ()
    return _message_schema(_Told(kind).summary, {"const": kind.type}, data, optional=optional)


def _message_schema(
    description: str,
    kind: dict[str, Any],
    data: Mapping[str, Any],
    *,
    optional: Sequence[str] = (),
    has_id: bool = True,
    open_ended: bool = False,
) -> dict[str, Any]:
    told = {
        "execution_id": _UUID,
        "message_id": {"type": "string", "description": "if the trigger had one"},
        **data,
    }
    inner: dict[str, Any] = {
        "type": "object",
        "properties": told,
        "required": ["execution_id", *(name for name in data if name not in optional)],
    }
    if open_ended:
        inner["additionalProperties"] = True
    identified = {"id": {"type": "integer", "description": "what `since` takes"}} if has_id else {}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {**identified, "type": kind, "timestamp": _TIME, "data": inner},
        "required": [*identified, "type", "timestamp", "data"],
    }
    return {"description": description, **schema} if description else schema
