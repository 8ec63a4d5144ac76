"""What the audit writes, and what it only counts."""

from __future__ import annotations

import asyncio
import logging

import pytest

from adapters.audit import MAX_CLIENTS, REFUSALS, WINDOW_S, Audit
from domain.access import ANYBODY, OWNER, Principal, Role
from tests.fakes.world import FakeClock, settle

CART = Principal("cart 2", Role.DETECTOR, 7)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def audit(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> Audit:
    caplog.set_level(logging.INFO, "rushes.audit")
    return Audit(clock)


@pytest.mark.parametrize(
    "evil", ["a\nb who=owner", "\x1b[2J", "\u202e", "\udcff", 'x" outcome=200', "x" * 10_000, ""]
)
def test_nothing_that_a_client_chooses_can_break_or_forge_a_line(
    audit: Audit, caplog: pytest.LogCaptureFixture, evil: str
) -> None:
    somebody = Principal(evil, Role.VIEWER, 3)
    audit.note(somebody, evil, f"GET /{evil}", evil, refused=False, execution=evil)
    line = caplog.messages[0]
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 6_000
    assert " token=3 role=viewer from=" in line
    outside = "".join(line.split('"')[::2]) if '\\"' not in line else ""
    assert "who=owner" not in outside


def test_a_line_says_who_from_where_what_of_what_and_what_came_of_it(
    audit: Audit, caplog: pytest.LogCaptureFixture
) -> None:
    audit.note(CART, "10.0.0.7", "detector:sd_inserted", "accepted", refused=False, execution="e-1")
    audit.note(None, "::1", "GET /api/pipeline", 401, refused=True)
    audit.note(ANYBODY, "127.0.0.1", "POST /api/pipeline", 201, refused=False)
    audit.note(OWNER, "127.0.0.1", "POST /api/tokens", 201, refused=False)
    assert caplog.messages == [
        'who="cart 2" token=7 role=detector from=10.0.0.7 what=detector:sd_inserted '
        "execution=e-1 outcome=accepted",
        'who=nobody from=::1 what="GET /api/pipeline" outcome=401',
        'who=anonymous from=127.0.0.1 what="POST /api/pipeline" outcome=201',
        'who=owner role=admin from=127.0.0.1 what="POST /api/tokens" outcome=201',
    ]


def test_refusals_are_counted_after_a_while_and_the_count_is_told(
    audit: Audit, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(REFUSALS + 5):
        audit.note(None, "10.0.0.7", "GET /", 401, refused=True)
    assert len(caplog.messages) == REFUSALS
    audit.note(None, "10.0.0.8", "GET /", 401, refused=True)
    audit.note(CART, "10.0.0.7", "GET /", 403, refused=True)
    assert len(caplog.messages) == REFUSALS + 2, "others are still heard, at the same address too"
    clock.tick(WINDOW_S)
    audit.note(None, "10.0.0.7", "GET /", 401, refused=True)
    assert caplog.messages[-2] == "who=nobody from=10.0.0.7 outcome=refused more_times=5"
    assert caplog.messages[-1].endswith("outcome=401"), "and a new window has begun"


def test_what_is_done_is_never_left_out(audit: Audit, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(10 * REFUSALS):
        audit.note(CART, "10.0.0.7", "POST /api/pipeline", 201, refused=False)
    assert len(caplog.messages) == 10 * REFUSALS


def test_a_flood_from_everywhere_is_bounded_too(
    audit: Audit, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2 * MAX_CLIENTS):
        audit.note(None, f"10.0.{number // 256}.{number % 256}", "GET /", 401, refused=True)
    assert len(caplog.messages) == MAX_CLIENTS + REFUSALS
    audit.count_up(all_of_them=True)
    assert caplog.messages[-1].startswith("who=others from=others outcome=refused more_times=")


async def test_the_count_is_told_although_nothing_else_happens_and_at_the_end(
    audit: Audit, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    running = asyncio.ensure_future(audit.run())
    for _ in range(2):
        await settle()
        for _ in range(REFUSALS + 1):
            audit.note(None, "10.0.0.7", "GET /", 401, refused=True)
        if not running.done() and caplog.text.count("more_times") == 0:
            await clock.advance(WINDOW_S)
            assert caplog.text.count("more_times=1") == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert caplog.text.count("more_times=1") == 2


def test_where_nobody_listens_nothing_is_counted(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "rushes.audit")
    audit = Audit(clock)
    audit.note(None, "10.0.0.7", "GET /", 401, refused=True)
    assert not caplog.messages
    assert not audit._windows
