"""The listening socket, as it is made."""

from __future__ import annotations

import asyncio
import socket

from server import _listen


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
