"""The listening socket, as it is made."""

from __future__ import annotations

import asyncio
import socket

import pytest

from adapters.rest.limits import Connections
from adapters.settings import Settings
from bootstrap import Container
from domain.errors import Unavailable
from server import _listen, _serving_http


async def test_answers_don_t_wait_for_acknowledgements() -> None:
    """asyncio sets TCP_NODELAY only on what says that it is TCP, and accepted sockets inherit that.

    Without it a message that follows two others is 40 ms late.
    """
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own: socket.socket = writer.get_extra_info("socket")
        accepted.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with _listen("127.0.0.1", 0) as listener:
        async with await asyncio.start_server(handle, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            assert await accepted
            writer.close()
            await writer.wait_closed()


async def test_who_can_t_listen_says_so_and_doesn_t_claim_to_serve() -> None:
    """Another one was quicker after the port was bound."""
    container = Container(settings=Settings.load({}, {}))
    with _listen("127.0.0.1", 0) as listener, socket.socket() as quicker:
        quicker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        quicker.bind(listener.getsockname())
        quicker.listen()
        with pytest.raises(Unavailable, match=r"can't listen on 127\.0\.0\.1:\d+: .*in use"):
            async with _serving_http(container, listener, Connections(10)):
                raise AssertionError("it serves")
