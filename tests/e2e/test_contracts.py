"""Each contract held against a running server.

Beside this, whatever any test of this folder is answered over REST and told over the
WebSocket is held against the contracts too (``server.py``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck

from tests.cards import gopro_card
from tests.contracts import check_message
from tests.e2e.server import Server, eventually
from tools.contracts import documents

EXAMPLES = 5
"""Of each operation, beside those at the bounds of its schemas: enough for every kind of slip
without taking long. ``st run URL/openapi.json`` goes on for as long as anybody likes."""

openapi = schemathesis.openapi.from_dict(documents()["openapi.json"])
openapi.config.seed = 1
# What is well formed may still be about something that is over.
openapi.config.checks.positive_data_acceptance.expected_statuses.append("410")


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Leaves out what is refused for a reason that no schema can give.

    Two message_ids that contradict each other; and what a pipeline needs in its data.
    """
    body = case.body if isinstance(case.body, dict) else {}
    named = [name for name in case.headers or {} if name.lower() == "idempotency-key"]
    if named and body.get("message_id") is not None:
        return False
    return body.get("pipeline_type") != "sd_ingest" or "sd_path" in (body.get("data") or {})


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that nobody else uses: its engine is paused, too. Cards may be where the
    contract's examples say."""
    place = tmp_path_factory.mktemp("exposed")
    running = Server(place, RUSHES_CARD_ROOTS="/media").start()
    running.ended(running.trigger("diamond", text="a b"))
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


@openapi.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_rest_keeps_its_contract(case: schemathesis.Case, exposed: Server) -> None:
    case.call_and_validate(base_url=exposed.http)


def test_each_document_is_what_the_tools_wrote(exposed: Server) -> None:
    for name, document in documents().items():
        assert exposed.get(f"/{name}") == document


def test_every_kind_of_message_of_a_busy_server_is_in_the_contract(
    exposed: Server, tmp_path: Path
) -> None:
    """Whatever ``receive`` gives out has been held against the contract there."""
    gate = tmp_path / "gate"
    with exposed.client("frontend", since=0) as frontend, exposed.client("detector") as detector:
        for each in ("diamond", "lucky", "words"):
            exposed.trigger(each, text="a b")
        exposed.trigger("slow")
        waiting = exposed.trigger("waiting", until=str(tmp_path / "until"))
        rerun = exposed.trigger("diamond", text="c d")
        retried, skipped = (exposed.trigger("gate", gate=str(gate)) for _ in range(2))
        for each in (retried, skipped):
            assert exposed.ended(each)["status"] == "failed"
        gate.touch()
        post = lambda path, **more: exposed.request("POST", f"/api/pipeline/{path}", **more)  # noqa: E731
        assert post(f"{retried}/retry").status_code == 202
        assert post(f"{skipped}/steps/open_gate/skip").status_code == 200
        assert post(f"{waiting}/pause").status_code == 200
        assert post(f"{waiting}/resume").status_code == 200
        frontend.until(lambda m: m["type"] == "pipeline:step_progress")
        assert post(f"{waiting}/cancel").status_code == 202
        exposed.ended(rerun)
        assert post(f"{rerun}/rerun", json={"from_step": "join"}).status_code == 201
        assert detector.announce("/media/contract", "card")["type"] == "detector:accepted"
        assert detector.ask("{}")["type"] == "error"
        removed = {"type": "detector:sd_removed", "sd_path": "/media/contract"}
        assert detector.ask(removed)["type"] == "detector:accepted"
        frontend.until(lambda m: m["type"] == "card:removed")
        beyond = exposed.client("frontend", since=10**9)
        with beyond as late:
            assert late.receive()["type"] == "hub:reset"
        wanted = set(documents()["asyncapi.json"]["channels"]["ws"]["messages"]) - {
            "CardInserted",
            "CardGone",
        }
        told = [*frontend.seen, *detector.seen, *late.seen]
        told += exposed.get("/api/events", limit=1000)["events"]
    seen = {check_message(each) for each in told}
    assert wanted - seen == {"StepAnnounced"}, "the run above doesn't show all of them"


def test_what_a_page_says_comes_from_this_server_alone(exposed: Server) -> None:
    answer = exposed.request("GET", "/docs")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    page = answer.text
    for outside in ("http://", "https://", "<script", "<link", "<img", "@import", "url("):
        assert outside not in page.replace("http://example.com", ""), outside
    for path, methods in documents()["openapi.json"]["paths"].items():
        assert path in page
        for operation in methods.values():
            assert f'id="{operation["operationId"]}"' in page
    for message in documents()["asyncapi.json"]["components"]["messages"].values():
        assert message["title"].replace("'", "&#x27;") in page


def metrics(server: Server) -> dict[str, float]:
    """By a series' name with its labels."""
    text = server.request("GET", "/metrics").text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_figures_say_what_has_happened_and_what_is_the_case(
    start_server: Callable[..., Server],
) -> None:
    server = start_server(RUSHES_POOLS="default=1,card=1,copy=1")
    footage = gopro_card(server.cards / "A")
    done = server.ended(server.announce(server.cards / "A", "figures")["data"]["execution_id"])
    assert done["status"] == "completed"
    until = server.place / "until"
    held = server.trigger("waiting", until=str(until))
    eventually(lambda: server.execution(held)["steps"][1]["status"], lambda s: s == "running")
    server.trigger("waiting", until=str(until))
    with server.client("frontend"):
        busy = eventually(lambda: metrics(server), lambda found: found["rushes_followers"] == 1)
    kind = 'pipeline_type="waiting"'
    assert busy[f'rushes_executions_total{{outcome="started",{kind}}}'] == 2
    assert busy["rushes_executions_active"] == 2
    assert busy["rushes_steps_running"] == 1
    assert busy["rushes_steps_waiting"] == 1
    assert busy['rushes_queue_length{pool="default"}'] == 1
    later = eventually(
        lambda: metrics(server),
        lambda found: found['rushes_queue_age_seconds{pool="default"}'] > 0,
    )
    assert later["rushes_copied_bytes_total"] == sum(len(each) for each in footage.values())
    until.touch()
    server.ended(held)
    ended = f'rushes_executions_total{{outcome="completed",{kind}}}'
    quiet = eventually(lambda: metrics(server), lambda found: found.get(ended) == 2)
    assert quiet["rushes_executions_active"] == 0
    assert quiet["rushes_followers"] == 0
    events = server.get("/api/events", limit=1000)["events"]
    assert quiet["rushes_last_event_id"] == events[-1]["id"]
    counted = {k: v for k, v in quiet.items() if k.startswith("rushes_events_total")}
    assert sum(counted.values()) == len(events)
    assert 0 < quiet["rushes_commit_latency_seconds_count"] <= len(events)


def test_what_figures_are_called_by_is_bounded(server: Server) -> None:
    """No execution, step's key, card or path is a label."""
    text = server.request("GET", "/metrics").text
    labels = set(re.findall(r"rushes_\w+\{([^}]*)\}", text))
    names = {name for each in labels for name in re.findall(r'(\w+)="', each)}
    assert names <= {"pipeline_type", "outcome", "type", "pool", "le", "version", "python"}


def test_a_path_says_all_that_it_takes(server: Server) -> None:
    refused = server.request("DELETE", "/api/pipeline")
    assert refused.status_code == 405
    assert refused.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"from_step": 7}, "from_step"),
        ({}, "from_step"),
        ({"from_step": "join", "form": 1}, "form"),
        ([], None),
    ],
)
def test_a_body_that_the_contract_does_not_know_is_refused_with_its_field(
    server: Server, body: Any, field: str | None
) -> None:
    execution = server.trigger("diamond", text="a b")
    answer = server.request("POST", f"/api/pipeline/{execution}/rerun", json=body)
    assert answer.status_code == 400
    assert answer.json().get("field") == field
    server.ended(execution)


def test_a_page_of_events_goes_on_where_a_stream_has_ended(server: Server) -> None:
    execution = server.trigger("diamond", text="a b")
    server.ended(execution)
    path = f"/api/pipeline/{execution}/events"
    events = server.get(path)["events"]
    answer = server.request("GET", path, headers={"last-event-id": str(events[1]["id"])})
    assert answer.json()["events"] == events[2:]
    for given in ("x", ""):
        wrong = server.request("GET", path, headers={"last-event-id": given})
        assert (wrong.status_code, wrong.json()["field"]) == (400, "last-event-id")
