"""Who is let in where: every route, message and method against every role and none."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from grpc_reflection.v1alpha import reflection_pb2
from websockets.exceptions import ConnectionClosed, InvalidStatus

from adapters.rpc.pb import pipeline_pb2 as pb
from adapters.settings import Settings
from adapters.websocket.contract import HEARD
from bootstrap import Container
from server import web_routes
from tests.contracts import check_answer
from tests.e2e.server import DEADLINE_S, RUSHES, Server, eventually
from tests.e2e.test_streams import Reflected

MAY = {
    "viewer": {"read", "follow"},
    "operator": {"read", "follow", "trigger", "control"},
    "detector": {"follow", "announce"},
    "service": {"read", "follow", "trigger", "work"},
    "admin": {"read", "follow", "trigger", "control", "work", "announce", "tokens"},
}
"""Once more, and by hand: here it is decided who may what, there it is done."""

ROUTES = {
    "GET /api/pipeline": "read",
    "POST /api/pipeline": "trigger",
    "GET /api/pipeline/{reference}": "read",
    "POST /api/pipeline/{reference}/retry": "control",
    "POST /api/pipeline/{reference}/cancel": "control",
    "POST /api/pipeline/{reference}/pause": "control",
    "POST /api/pipeline/{reference}/resume": "control",
    "POST /api/pipeline/{reference}/rerun": "control",
    "POST /api/pipeline/{reference}/steps/{step_key}/skip": "control",
    "POST /api/pipeline/{reference}/steps/{step_key}/complete": "control",
    "POST /api/steps/claim": "work",
    "POST /api/pipeline/{reference}/steps/{step_key}/heartbeat": "work",
    "POST /api/pipeline/{reference}/steps/{step_key}/report/completed": "work",
    "POST /api/pipeline/{reference}/steps/{step_key}/report/failed": "work",
    "POST /api/pipeline/{reference}/steps/{step_key}/report/released": "work",
    "GET /api/engine": "read",
    "POST /api/engine/pause": "control",
    "POST /api/engine/resume": "control",
    "GET /api/pipeline/{reference}/events": "read",
    "GET /api/events": "read",
    "GET /api/pipelines": "read",
    "GET /api/jobs": "read",
    "GET /api/jobs/{job_id}": "read",
    "GET /api/jobs/{job_id}/report": "read",
    "GET /api/jobs/{job_id}/report.csv": "read",
    "GET /api/jobs/{job_id}/files": "read",
    "POST /api/tickets": "follow",
    "GET /api/tokens": "tokens",
    "POST /api/tokens": "tokens",
    "POST /api/tokens/{token_id}/revoke": "tokens",
    "GET /openapi.json": "read",
    "GET /asyncapi.json": "read",
    "GET /docs": "read",
    "GET /metrics": "read",
    "GET /healthz": None,
    "GET /readyz": None,
}

MESSAGES = {"detector:sd_inserted": "announce", "detector:sd_removed": "announce"}

SERVICE = "/rushes.v1.PipelineService"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
HEALTH = "/grpc.health.v1.Health"

METHODS = {
    f"{SERVICE}/TriggerPipeline": "trigger",
    f"{SERVICE}/GetExecution": "read",
    f"{SERVICE}/ListExecutions": "read",
    f"{SERVICE}/WatchExecution": "read",
    f"{SERVICE}/RetryExecution": "control",
    f"{SERVICE}/CancelExecution": "control",
    f"{SERVICE}/PauseExecution": "control",
    f"{SERVICE}/ResumeExecution": "control",
    f"{SERVICE}/RerunExecution": "control",
    f"{SERVICE}/SkipStep": "control",
    f"{SERVICE}/CompleteStep": "control",
    f"{SERVICE}/GetEngine": "read",
    f"{SERVICE}/PauseEngine": "control",
    f"{SERVICE}/ResumeEngine": "control",
    f"{SERVICE}/ClaimStep": "work",
    f"{SERVICE}/HeartbeatStep": "work",
    f"{SERVICE}/AdvanceStep": "work",
    REFLECTION: "read",
    f"{HEALTH}/Check": None,
    f"{HEALTH}/Watch": None,
}

AT_ONCE = 10
"""Failures from one address that certainly aren't too many: then another one is used."""


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


@dataclass
class Locked:
    """A server with a token of every role."""

    server: Server
    key: str
    tokens: dict[str, str] = field(default_factory=dict)
    addresses: Iterator[int] = field(default_factory=lambda: count(2))

    def headers(self, role: str | None) -> dict[str, str]:
        return bearer(self.tokens[role]) if role in self.tokens else {}

    def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """From an address that nobody else uses. Held against the contract."""
        near = httpx2.HTTPTransport(local_address=f"127.0.0.{next(self.addresses)}")
        with httpx2.Client(transport=near, timeout=DEADLINE_S) as client:
            return answered(client, method, f"{self.server.http}{path}", **more)

    def new(self, role: str, **more: Any) -> dict[str, Any]:
        made = self.server.request(
            "POST",
            "/api/tokens",
            json={"role": role, **more},
            headers={"x-rushes-key": self.key},
        )
        assert made.status_code == 201, made.text
        found: dict[str, Any] = made.json()
        return found

    def revoke(self, token_id: int) -> None:
        gone = self.server.request(
            "POST", f"/api/tokens/{token_id}/revoke", headers={"x-rushes-key": self.key}
        )
        assert gone.status_code == 200, gone.text

    def audit(self) -> list[str]:
        lines = self.server.log.read_text().splitlines()
        return [line.partition("rushes.audit: ")[2] for line in lines if "rushes.audit" in line]


def answered(client: httpx2.Client, method: str, url: str, **more: Any) -> httpx2.Response:
    response = client.request(method, url, **more)
    media_type = response.headers.get("content-type", "").partition(";")[0]
    body = response.json() if media_type.endswith("json") else response.text
    path = httpx2.URL(url).raw_path.decode()
    check_answer(method, path, response.status_code, media_type, response.headers, body)
    return response


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    server = Server(tmp_path_factory.mktemp("locked")).start()
    lock = server.place / "rushes.db.lock"
    assert lock.stat().st_mode & 0o777 == 0o600
    house = Locked(server, json.loads(lock.read_text())["key"])
    for role in MAY:
        house.tokens[role] = house.new(role, name=f"the {role}")["token"]
    yield house
    assert server.stop() == 0
    log = server.log.read_text()
    assert "Traceback" not in log
    secrets = [token.split("_", 2)[2] for token in house.tokens.values()]
    for secret in (house.key, *secrets):
        assert secret not in log


WHO = [None, "wrong", *MAY]


# -- REST ----------------------------------------------------------------------------


def asked_for(route: str) -> tuple[str, str]:
    """A method and a path that name nothing that is there."""
    method, _, path = route.partition(" ")
    return method, re.sub(r"\{\w+\}", "0", path)


def test_the_table_has_every_route_that_is_served(locked: Locked) -> None:
    document = locked.ask("GET", "/openapi.json", headers=locked.headers("viewer")).json()
    told = {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
    }
    served = {
        f"{method} {route.path}"
        for route in web_routes(Container(settings=Settings.load({}, {})))
        for method in (getattr(route, "methods", None) or ())
        if method != "HEAD"
    }
    assert told == served == set(ROUTES)


@pytest.mark.parametrize("role", WHO)
def test_every_route_lets_in_who_may_and_nobody_else(locked: Locked, role: str | None) -> None:
    headers = bearer("rushes_1_wrong") if role == "wrong" else locked.headers(role)
    routes = list(ROUTES.items())
    for start in range(0, len(routes), AT_ONCE):
        near = httpx2.HTTPTransport(local_address=f"127.0.0.{next(locked.addresses)}")
        with httpx2.Client(transport=near, timeout=DEADLINE_S, headers=headers) as client:
            for route, needed in routes[start : start + AT_ONCE]:
                method, path = asked_for(route)
                answer = answered(client, method, f"{locked.server.http}{path}")
                if needed is None or (role in MAY and needed in MAY[role]):
                    assert answer.status_code not in (401, 403, 429), route
                elif role in MAY:
                    assert answer.status_code == 403, route
                    assert answer.json()["code"] == "not_permitted"
                    assert role in answer.json()["detail"]
                    assert needed in answer.json()["detail"]
                else:
                    assert answer.status_code == 401, route
                    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_who_is_not_let_in_learns_not_even_what_there_is(locked: Locked) -> None:
    for method, path in (("GET", "/api/nothing"), ("DELETE", "/api/pipeline"), ("GET", "/")):
        assert locked.ask(method, path).status_code == 401
        answer = locked.ask(method, path, headers=locked.headers("viewer"))
        assert answer.status_code in (404, 405)


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "Bearer",
        "Basic cnVzaGVzOjE=",
        "Bearer rushes_1_",
        "Bearer rushes_99_x",
        "Bearer rushes__x",
        "Bearer rushes_٣_x",
        f"Bearer rushes_{'9' * 400}_x",
        "Bearer " + "x" * 4000,
        "Bearer \xff\xfe",
    ],
)
def test_what_is_no_token_lets_nobody_in(locked: Locked, shown: str) -> None:
    raw = shown.encode("utf-8", "surrogateescape")
    answer = locked.ask("GET", "/api/pipeline", headers={b"authorization": raw})
    assert answer.status_code == 401
    assert shown.partition(" ")[2] not in answer.text or not shown.partition(" ")[2]


def test_the_owner_of_this_machine_needs_no_token_and_a_wrong_key_is_none(locked: Locked) -> None:
    for key, status in ((locked.key, 200), ("", 401), (f"{locked.key}x", 401)):
        answer = locked.ask("GET", "/api/tokens", headers={"x-rushes-key": key})
        assert answer.status_code == status
    both = {"x-rushes-key": locked.key, **locked.headers("viewer")}
    assert locked.ask("GET", "/api/tokens", headers=both).status_code == 403, (
        "who shows a token means to be no more than that"
    )


def test_a_list_of_tokens_says_who_and_no_secret(locked: Locked) -> None:
    listed = locked.ask("GET", "/api/tokens", headers=locked.headers("admin"))
    found = {each["name"]: each for each in listed.json()["tokens"]}
    for role, token in locked.tokens.items():
        each = found[f"the {role}"]
        assert each["role"] == role
        assert token.startswith(f"rushes_{each['id']}_")
        assert token not in listed.text
        assert token.split("_", 2)[2] not in listed.text
    assert found["the admin"]["last_used_at"] is not None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"role": "owner"}, "role"),
        ({}, "role"),
        ({"role": "viewer", "name": "x" * 101}, "name"),
        ({"role": "viewer", "name": "a\nb"}, "name"),
        ({"role": "viewer", "expires_in_s": 0}, "expires_in_s"),
        ({"role": "viewer", "expires_in_s": 1e12}, "expires_in_s"),
        ({"role": "viewer", "secret": "mine"}, "secret"),
    ],
)
def test_a_token_that_makes_no_sense_is_not_made(
    locked: Locked, body: dict[str, Any], said: str
) -> None:
    answer = locked.ask("POST", "/api/tokens", json=body, headers=locked.headers("admin"))
    assert answer.status_code == 400
    assert answer.json()["field"] == said


# -- WebSocket -----------------------------------------------------------------------


def test_the_table_has_every_message_that_is_heard() -> None:
    assert {each.type for each in HEARD} == set(MESSAGES)


@pytest.mark.parametrize("shown", [None, "wrong"])
def test_a_websocket_without_a_token_is_refused_before_it_is_one(
    locked: Locked, shown: str | None
) -> None:
    headers = {} if shown is None else bearer(shown)
    address = f"127.0.0.{next(locked.addresses)}"
    with pytest.raises(InvalidStatus) as refused:
        with locked.server.client(additional_headers=headers, source_address=(address, 0)):
            pass
    assert refused.value.response.status_code == 401
    assert refused.value.response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("role", MAY)
def test_every_message_is_heard_from_who_may_say_it(locked: Locked, role: str) -> None:
    headers = locked.headers(role)
    with locked.server.client("detector", additional_headers=headers) as client:
        for each in MESSAGES:
            answer = client.ask({"type": each, "data": {"message_id": "m", "sd_path": "/"}})
            code = answer["data"].get("code")
            assert (code == "not_permitted") is (MESSAGES[each] not in MAY[role])
        assert client.ask("{}")["type"] == "error", "the connection stays"


# -- gRPC ----------------------------------------------------------------------------


def test_the_table_has_every_method_that_is_served(locked: Locked) -> None:
    channel = grpc.intercept_channel(
        grpc.insecure_channel(locked.server.grpc), Showing(locked.tokens["viewer"])
    )
    reflected = Reflected(channel, SERVICE[1:])
    services = {f"/{name}" for name in reflected.services}
    assert services == {SERVICE, HEALTH, REFLECTION.rpartition("/")[0]}
    ours = {each.name for each in pb.DESCRIPTOR.services_by_name["PipelineService"].methods}
    assert {name for name in METHODS if name.startswith(SERVICE)} == {
        f"{SERVICE}/{name}" for name in ours
    }


class Showing(grpc.StreamStreamClientInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        shown = details._replace(metadata=[("authorization", f"Bearer {self._token}")])
        return continuation(shown, requests)


def code_of(channel: grpc.Channel, method: str, metadata: list[tuple[str, str]]) -> tuple[Any, str]:
    """How it ends, or None for a stream that has begun and goes on; and why."""
    more: dict[str, Any] = {"metadata": metadata, "timeout": DEADLINE_S}
    try:
        if method == REFLECTION:
            asked = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
            stream = channel.stream_stream(method)(iter([asked]), **more)
            next(stream)
        elif method.endswith(("/WatchExecution", "/Watch")):
            stream = channel.unary_stream(method)(b"", **more)
            if stream.initial_metadata() is not None and not stream.done():
                stream.cancel()
                return None, ""
            next(stream)
        else:
            channel.unary_unary(method)(b"", **more)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return None, ""


@pytest.mark.parametrize("role", [None, *MAY])
def test_every_method_lets_in_who_may_and_nobody_else(locked: Locked, role: str | None) -> None:
    metadata = list(locked.headers(role).items())
    with grpc.insecure_channel(locked.server.grpc) as channel:
        for method, needed in METHODS.items():
            code, why = code_of(channel, method, metadata)
            if needed is None or (role is not None and needed in MAY[role]):
                assert code not in SHUT_OUT, (method, why)
            elif role is None:
                assert code is grpc.StatusCode.UNAUTHENTICATED, method
            else:
                assert code is grpc.StatusCode.PERMISSION_DENIED, method
                assert role in why
                assert needed in why
        if role in MAY:
            assert code_of(channel, f"{SERVICE}/Format", metadata)[0] is (
                grpc.StatusCode.UNIMPLEMENTED
            )
        else:
            wrong = [("authorization", "Bearer rushes_1_wrong")]
            code, why = code_of(channel, f"{SERVICE}/ListExecutions", wrong)
            assert code is grpc.StatusCode.UNAUTHENTICATED
            assert "wrong" not in why


SHUT_OUT = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


# -- tickets -------------------------------------------------------------------------


def test_a_ticket_is_good_once_and_for_streams_alone(locked: Locked) -> None:
    def ticket(role: str) -> str:
        made = locked.ask("POST", "/api/tickets", headers=locked.headers(role))
        assert made.status_code == 201
        text: str = made.json()["ticket"]
        return text

    http = locked.server.http
    stream = {"accept": "text/event-stream"}
    tickets = [ticket("viewer") for _ in range(3)]
    with httpx2.stream(
        "GET", f"{http}/api/events?ticket={tickets[0]}", headers=stream, trust_env=False
    ) as response:
        assert response.status_code == 200
    again = locked.ask("GET", f"/api/events?ticket={tickets[0]}", headers=stream)
    assert again.status_code == 401
    assert tickets[0] not in again.text
    assert locked.ask("GET", f"/api/pipeline?ticket={tickets[1]}").status_code == 401
    with locked.server.client(f"frontend&ticket={tickets[2]}") as frontend:
        answer = frontend.announce("/", "m")
        assert answer["type"] == "error"
    of_detector = ticket("detector")
    refused = locked.ask("GET", f"/api/events?ticket={of_detector}", headers=stream)
    assert refused.status_code == 403
    assert locked.ask("POST", "/api/tickets").status_code == 401
    log = locked.server.log.read_text()
    for each in (*tickets, of_detector):
        assert each not in log
    assert "ticket=" not in log


# -- revoked -------------------------------------------------------------------------


def test_whoever_is_connected_with_a_token_is_let_go_when_it_is_revoked(locked: Locked) -> None:
    service, other = locked.new("service", name="to be revoked"), locked.tokens["viewer"]
    token = service["token"]
    metadata = [("authorization", f"Bearer {token}")]
    with ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(locked.server.grpc))
        watching = channel.unary_stream(f"{SERVICE}/WatchExecution")(b"", metadata=metadata)
        assert watching.initial_metadata() is not None
        wanted = pb.ClaimStepRequest(step_name="never", worker_id="w", wait_s=DEADLINE_S)
        claiming = channel.unary_unary(f"{SERVICE}/ClaimStep").future(
            wanted.SerializeToString(), metadata=metadata
        )
        client = locked.server.client
        frontend = stack.enter_context(client(additional_headers=bearer(token)))
        stays = stack.enter_context(client(additional_headers=bearer(other)))
        events = stack.enter_context(
            httpx2.stream(
                "GET",
                f"{locked.server.http}/api/events",
                headers={"accept": "text/event-stream", **bearer(token)},
                trust_env=False,
                timeout=DEADLINE_S,
            )
        )
        assert events.status_code == 200
        locked.revoke(service["id"])
        with pytest.raises(ConnectionClosed) as closed:
            frontend.socket.recv(timeout=DEADLINE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        assert list(events.iter_lines()) == []
        for call in (watching, claiming):
            with pytest.raises(grpc.RpcError) as ended:
                next(call) if call is watching else call.result(timeout=DEADLINE_S)
            assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
        assert stays.ask("{}")["type"] == "error"
    answer = locked.ask("GET", "/api/pipeline", headers=bearer(token))
    assert answer.status_code == 401


def test_a_token_that_expires_is_good_until_then_and_ends_what_it_has_opened(
    locked: Locked,
) -> None:
    made = locked.new("viewer", name="short", expires_in_s=1)
    headers = bearer(made["token"])
    with locked.server.client(additional_headers=headers) as frontend:
        with pytest.raises(ConnectionClosed) as closed:
            frontend.socket.recv(timeout=DEADLINE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
    answer = locked.ask("GET", "/api/pipeline", headers=headers)
    assert answer.status_code == 401
    assert "expired" in answer.json()["detail"]


# -- the audit -----------------------------------------------------------------------


def test_the_audit_names_who_from_where_what_and_what_came_of_it(locked: Locked) -> None:
    tokens = {
        role: locked.new(role, name=f"this {role}")["token"]
        for role in ("operator", "viewer", "detector")
    }
    operator = bearer(tokens["operator"])
    made = locked.server.request(
        "POST",
        "/api/pipeline?note=quiet",
        json={"pipeline_type": "diamond", "data": {"text": "a b"}},
        headers=operator,
    )
    execution = made.json()["execution_id"]
    locked.server.request("POST", f"/api/pipeline/{execution}/retry", headers=operator)
    locked.server.request("GET", f"/api/pipeline/{execution}?note=quiet", headers=operator)
    locked.server.request("GET", "/api/tokens?note=quiet", headers=operator)
    with grpc.insecure_channel(locked.server.grpc) as channel:
        raw = pb.GetExecutionRequest(execution_id=execution).SerializeToString()
        metadata = list(bearer(tokens["viewer"]).items())
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(f"{SERVICE}/CancelExecution")(raw, metadata=metadata)
        metadata = list(operator.items())
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(f"{SERVICE}/RetryExecution")(raw, metadata=metadata)
    card = locked.server.cards / "audited"
    headers = bearer(tokens["detector"])
    with locked.server.client("detector", additional_headers=headers) as detector:
        accepted = detector.announce(str(card), "audited")["data"]["execution_id"]
    operator_is, viewer_is, detector_is = (
        f'who="this {role}" token={token.split("_")[1]} role={role} from=127.0.0.1'
        for role, token in tokens.items()
    )
    path = f"/api/pipeline/{execution}"
    rpc = SERVICE[1:]
    lines = [
        f'{operator_is} what="POST /api/pipeline" execution={execution} outcome=201',
        f'{operator_is} what="POST {path}/retry" execution={execution} outcome=409',
        f'{operator_is} what="GET /api/tokens" outcome=403',
        f"{viewer_is} what={rpc}/CancelExecution outcome=PERMISSION_DENIED",
        f"{operator_is} what={rpc}/RetryExecution execution={execution} "
        "outcome=FAILED_PRECONDITION",
        f"{detector_is} what=detector:sd_inserted execution={accepted} outcome=accepted",
    ]
    eventually(locked.audit, lambda found: set(lines) <= set(found))
    assert "quiet" not in locked.server.log.read_text()
    assert not [line for line in locked.audit() if f"GET {path}" in line]


def test_a_name_can_forge_no_line(locked: Locked) -> None:
    made = locked.new("viewer", name='x" role=admin outcome=200')
    locked.ask("POST", "/api/engine/pause%0A2026 INFO", headers=bearer(made["token"]))
    wanted = 'who="x\\" role=admin outcome=200"'
    (line,) = eventually(
        lambda: [each for each in locked.audit() if each.startswith(wanted)], lambda found: found
    )
    assert 'what="POST /api/engine/pause\\n2026 INFO" outcome=404' in line


def test_a_flood_of_refusals_is_counted_not_written(locked: Locked) -> None:
    address = f"127.0.0.{next(locked.addresses)}"
    near = httpx2.HTTPTransport(local_address=address)
    with httpx2.Client(transport=near, timeout=DEADLINE_S) as client:
        for _ in range(100):
            response = client.get(f"{locked.server.http}/api/pipeline")
            assert response.status_code in (401, 429)
    locked.ask("POST", "/api/nothing", headers=locked.headers("viewer"))
    eventually(locked.audit, lambda found: "POST /api/nothing" in found[-1])
    assert 0 < sum(f"from={address} " in line for line in locked.audit()) <= 20


# -- the command line ----------------------------------------------------------------


def test_the_first_token_locks_and_the_last_one_revoked_unlocks(
    start_server: Callable[..., Server],
) -> None:
    server = start_server(RUSHES_WATCH="yes")
    eventually(server.log.read_text, lambda log: "connected to" in log)

    def rushes(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RUSHES, *arguments],
            env={**server.environment, **more},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    assert server.request("GET", "/api/tokens").status_code == 401
    assert server.request("POST", "/api/tickets").status_code == 201
    with server.client() as frontend:
        made = rushes("token", "new", "--role", "viewer", "--name", "wall")
        assert made.returncode == 0, made.stderr
        token = made.stdout.strip()
        assert re.fullmatch(r"rushes_1_[\w-]{43}", token)
        with pytest.raises(ConnectionClosed):
            frontend.socket.recv(timeout=DEADLINE_S)
    assert server.request("GET", "/api/pipeline").status_code == 401
    assert server.request("GET", "/api/pipeline", headers=bearer(token)).status_code == 200
    refused = rushes("engine", "pause", RUSHES_TOKEN=token)
    assert refused.returncode == 2
    assert "viewer" in refused.stderr
    assert "RUSHES_TOKEN" in refused.stderr
    wrong = rushes("list", RUSHES_TOKEN=f"{token}x")
    assert wrong.returncode == 2
    assert "RUSHES_TOKEN" in wrong.stderr
    assert token not in wrong.stderr
    listed = rushes("token", "list")
    assert "wall" in listed.stdout, "the same user on the same machine needs no token"
    assert token.split("_", 2)[2] not in listed.stdout
    assert "no connection" not in server.log.read_text(), "nor does the detector in the server"
    assert rushes("token", "revoke", "1").returncode == 0
    assert server.request("GET", "/api/pipeline").status_code == 200
    assert server.stop() == 0
    log = Path(server.log).read_text()
    assert token not in log
    assert "who=owner role=admin" in log


def test_a_detector_of_the_same_user_needs_no_token_and_a_stranger_s_does(
    locked: Locked, tmp_path: Path
) -> None:
    def first_words(address: str, **settings: str) -> str:
        detector = subprocess.Popen(
            [RUSHES, "detect", "--server", address],
            env={**locked.server.environment, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert detector.stdout is not None
        line = detector.stdout.readline()
        detector.terminate()
        detector.communicate(timeout=DEADLINE_S)
        return line

    http = locked.server.http
    assert "connected to" in first_words(http.replace("127.0.0.1", "localhost"))
    elsewhere = f"sqlite:///{tmp_path}/r.db"
    refused = first_words(
        http, RUSHES_DATABASE_URL=elsewhere, RUSHES_TOKEN="rushes_9_another_server_s"
    )
    assert "RUSHES_TOKEN is not good there" in refused
    assert "another_server" not in refused
