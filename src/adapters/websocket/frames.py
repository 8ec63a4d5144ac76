"""Straight to a client's transport, with frames that are the same bytes for everybody.

ASGI has a message encoded and framed anew for every client. What
goes out here is text without compression, and a server doesn't mask: the frame of an
event is the same for a thousand clients. So our server's WebSocket protocol offers an
ASGI extension (``EXTENSION`` in the scope), an object that takes whole frames. Where it
isn't there, the hub sends as ASGI has it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request

EXTENSION = "rushes.frames"

SEND_BUFFER_BYTES = 64 * 1024
"""The kernel's part of what a client hasn't read yet (Linux takes it twice). Left to itself
it keeps up to 4 MB for each client that doesn't read, and the hub learns of it that late."""

LEAVE_S = 10.0
"""How long somebody who was let go for not reading may take to read why."""


def text_frame(payload: bytes) -> bytes:
    """One whole message, from a server."""
    return bytes(Frame(Opcode.TEXT, payload).serialize(mask=False))


class FrameWriter:
    """To one client. Frames are written whole, so whoever writes comes in between nobody.

    full: the transport's buffer is, and takes nothing until somebody has read.
    """

    __slots__ = ("_is_closing", "_protocol", "_write", "full")

    def __init__(self, protocol: WebSocketsSansIOProtocol) -> None:
        self._protocol = protocol
        self._is_closing = protocol.transport.is_closing
        self._write = protocol.transport.write
        self.full = False

    def write(self, frames: bytes) -> bool:
        """Whether they were taken; not if the buffer is full, or the connection closing."""
        if self.full or self._protocol.close_sent or self._is_closing():
            return False
        self._write(frames)
        return True

    async def drain(self) -> None:
        """Until there is room again. Raises ``ConnectionResetError`` if there will be none."""
        await self._protocol.writable.wait()
        if self._protocol.close_sent or self._is_closing():
            raise ConnectionResetError

    def let_go(self, code: int, reason: str) -> None:
        """Close, with a full buffer too: the close frame stands behind what is in there."""
        protocol = self._protocol
        if protocol.close_sent or self._is_closing():
            return
        protocol.conn.send_close(code, reason)
        self._write(b"".join(protocol.conn.data_to_send()))
        protocol.close_sent = True
        protocol.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        if protocol.read_paused:  # or the answer to the close would not be seen
            protocol.read_paused = False
            protocol.transport.resume_reading()
        # A plain close would wait for ever for somebody to read what is in the buffer.
        protocol.close_timer = protocol.loop.call_later(LEAVE_S, protocol.transport.abort)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, for its ``ws`` setting, with the extension."""

    _frame_writer: FrameWriter | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        wire = transport.get_extra_info("socket")
        if wire is not None:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:  # what is no handshake was answered, and has no scope
            self._frame_writer = FrameWriter(self)
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = self._frame_writer

    async def send(self, message: Any) -> None:
        """A handshake that is refused with a response has been answered, as any request is:
        uvicorn would call that an error, and leaves out what goes with every answer."""
        if message["type"] == "websocket.http.response.start":
            message["headers"] = [*self.default_headers, *message["headers"]]
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._frame_writer is not None:
            self._frame_writer.full = True

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._frame_writer is not None:
            self._frame_writer.full = False


def frame_writer(scope: Mapping[str, Any]) -> FrameWriter | None:
    """The client's, if the server offers it."""
    found = (scope.get("extensions") or {}).get(EXTENSION)
    return found if isinstance(found, FrameWriter) else None
