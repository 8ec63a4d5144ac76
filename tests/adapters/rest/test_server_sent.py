"""A stream of server-sent events ends where the log does not go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from adapters.rest.api import _server_sent
from application.feed import Entry, StepProgress
from domain.errors import FactsGone
from tests.fakes.world import EPOCH


async def test_a_stream_ends_when_what_follows_is_forgotten() -> None:
    """The client comes back with its last id, and is answered with 410."""

    async def entries() -> AsyncIterator[Entry]:
        yield Entry(StepProgress(1, {"n": 1}, EPOCH), None)
        raise FactsGone(1, 5, 9)

    events = [
        event async for event in _server_sent(entries(), asyncio.get_running_loop().create_future)
    ]
    assert len(events) == 1
    assert "pipeline:step_progress" in events[0]


async def test_a_stream_ends_when_who_follows_may_not_any_more() -> None:
    over = asyncio.get_running_loop().create_future()

    async def entries() -> AsyncIterator[Entry]:
        yield Entry(StepProgress(1, {"n": 1}, EPOCH), None)
        over.set_result(None)
        yield Entry(StepProgress(1, {"n": 2}, EPOCH), None)

    events = [event async for event in _server_sent(entries(), lambda: over)]
    assert len(events) == 1
