"""The OpenAPI 3.1 document: the routes that are served, as ``contract.py`` describes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.routing import Route

from adapters.rest.access import NEEDS
from adapters.rest.api import MAX_BODY_BYTES, NO_JSON
from adapters.rest.contract import OPERATIONS, RENAMED, TYPES, Answer, Operation, Parameter
from adapters.rest.documents import Problem
from adapters.rest.problems import document, http_document
from adapters.schemas import components, event_schemas
from adapters.status_codes import INTERNAL, status_of
from domain import errors
from domain.access import Permission, Role

_ABOUT = """\
Start pipelines, see how they get on, and put right what went wrong.

Everything is JSON. An error is a problem document (RFC 9457), whose `code` is for programs
and `detail` for people. Times are RFC 3339 in UTC. More fields may come in later versions:
what you don't know, pass over. What happens is best followed over the WebSocket, or as
server-sent events; see also `/asyncapi.json`.

Once there are tokens, everything but `/healthz` and `/readyz` takes one (`Authorization:
Bearer`), and each operation a permission that its role has. A browser opens an event stream with
a ticket (`POST /api/tickets`) in its address: `?ticket=`.

A browser's page is let in only from this server, or from an origin that `RUSHES_ORIGINS` names.
"""


def openapi(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """``version``: of the server. Raises ``LookupError`` for a route that isn't in the table."""
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for route in routes:
        if route.name not in OPERATIONS:
            raise LookupError(f"route {route.path} ({route.name}) has no line in OPERATIONS")
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths[route.path][method.lower()] = _operation(route.name, OPERATIONS[route.name])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Rushes",
            "version": version,
            "summary": "A card goes in, verified footage comes out",
            "description": _ABOUT,
        },
        "servers": [{"url": "/", "description": "this server"}],
        "paths": dict(paths),
        "components": {
            "schemas": _schemas(),
            "responses": _RESPONSES,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "made by `rushes token new`; taken once there is one",
                }
            },
        },
        # Either: without tokens nothing is asked for.
        "security": [{}, {"token": []}],
    }


def _schemas() -> dict[str, Any]:
    schemas = components(TYPES, renamed=RENAMED)
    # The views say these as text; what they can be is what the state machines know.
    for name, status in (("Execution", "ExecutionStatus"), ("Step", "StepStatus")):
        schemas[name]["properties"]["status"] = {"$ref": f"#/components/schemas/{status}"}
    schemas["TriggerRequest"]["examples"] = [
        msgspec.to_builtins(OPERATIONS["trigger_pipeline"].body)
    ]
    facts = {name: each for name, each in event_schemas().items() if name != "StepProgress"}
    schemas["Event"] = {
        "title": "Event",
        "description": "What happened, as the WebSocket tells it too.",
        "anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in facts],
    }
    schemas["EventPage"]["properties"]["events"]["items"] = {"$ref": "#/components/schemas/Event"}
    return {**schemas, **{name: {"title": name, **each} for name, each in facts.items()}}


def _operation(name: str, operation: Operation) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": name,
        "tags": [operation.tag],
        "summary": operation.summary,
    }
    needed = NEEDS[name]
    told = (operation.description, "" if needed is None else f"Permission: `{needed}`.")
    if any(told):
        made["description"] = "\n\n".join(filter(None, told))
    if operation.parameters:
        made["parameters"] = [each.to_dict() for each in operation.parameters]
    refusals: defaultdict[int, list[Problem]] = defaultdict(list)
    for error in operation.refuses:
        refusals[int(status_of(error).http)].append(document(error))
    for each in operation.parameters:
        if 400 not in refusals and each.schema.get("type") == "integer":
            refusals[400].append(document(_no_number(each)))
    if operation.body is not None:
        made["requestBody"] = {
            "required": True,
            "content": {"application/json": _content(operation.body)},
        }
    responses = {str(status): _answer(each) for status, each in operation.answers.items()}
    responses |= {str(status): _refusal(each) for status, each in refusals.items()}
    shared = [
        "403",
        "429",
        "500",
        "503",
        *(("401",) if needed is not None else ()),
        *(("413", "415") if operation.body is not None else ()),
    ]
    responses |= {status: {"$ref": f"#/components/responses/{_name(status)}"} for status in shared}
    if "404" not in responses and operation.parameters and _in_path(operation):
        responses["404"] = {"$ref": f"#/components/responses/{_name('404')}"}
    made["responses"] = dict(sorted(responses.items()))
    return made


def _no_number(parameter: Parameter) -> errors.InvalidInput:
    least, most = parameter.schema["minimum"], parameter.schema["maximum"]
    return errors.InvalidInput(
        f"{parameter.name} must be a whole number from {least} to {most}, not 'x'",
        field=parameter.name,
    )


def _in_path(operation: Operation) -> bool:
    return any(each.where == "path" for each in operation.parameters)


def _answer(answer: Answer) -> dict[str, Any]:
    made: dict[str, Any] = {
        "description": answer.description,
        "content": {answer.media_type: _content(answer.example), **answer.other},
    }
    if answer.location:
        made["headers"] = {
            "location": {"schema": {"type": "string"}, "description": "where the execution is"}
        }
    return made


def _content(example: Any) -> dict[str, Any]:
    if isinstance(example, str):
        return {"schema": {"type": "string"}, "example": example}
    kind = type(example).__name__
    named = {"$ref": f"#/components/schemas/{RENAMED.get(kind, kind)}"}
    return {
        "schema": {"type": "object"} if isinstance(example, dict) else named,
        "example": msgspec.to_builtins(example),
    }


def _refusal(problems: Sequence[Problem]) -> dict[str, Any]:
    codes = sorted({each.code for each in problems})
    return {
        "description": " or ".join(f"`{code}`" for code in codes),
        "content": {
            "application/problem+json": {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "examples": {each.code: {"value": msgspec.to_builtins(each)} for each in problems},
            }
        },
    }


def _name(status: str) -> str:
    return HTTPStatus(int(status)).phrase.title().replace(" ", "")


_POST = "POST /api/pipeline"
_RESPONSES = {
    _name(str(problem.status)): {
        **_refusal([problem]),
        "description": why,
    }
    for problem, why in (
        (
            document(errors.NotPermitted(Role.VIEWER, Permission.TRIGGER)),
            "a role that lacks the permission, a page from elsewhere, or a `Host` that isn't "
            "this server",
        ),
        (
            document(errors.Unauthenticated("a token is needed, and none was shown")),
            "no token, or one that isn't good",
        ),
        (http_document(404, "Not Found", "GET /api/jobs/"), "there is nothing of that name"),
        (
            http_document(413, "Content Too Large", _POST),
            f"the body has more than {MAX_BODY_BYTES} bytes",
        ),
        (
            document(errors.TooManyRequests("192.0.2.7 asks more than 500 times a second", 1)),
            "asked too often; `Retry-After` says in how many seconds it may be asked again",
        ),
        (http_document(415, NO_JSON, _POST), "the body isn't `application/json`"),
        (
            msgspec.structs.replace(
                document(errors.RushesError("internal error")),
                code=INTERNAL.code,
                type=f"urn:rushes:problem:{INTERNAL.code}",
                title=INTERNAL.code,
            ),
            "a bug; what it was is in the log",
        ),
        (document(errors.Unavailable("the database is closed")), "not now; try again later"),
    )
}
