"""A server that takes a token, and a detector that has none, a wrong one, or the right one."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path

import msgspec
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from adapters.detector.courier import Courier
from adapters.detector.outbox import Outbox
from adapters.settings import Settings
from domain.errors import InvalidInput
from tests.adapters.detector.test_courier import ScriptedServer, _quick, accepted, at_work, outbox
from tests.fakes.world import until

__all__ = ["_quick", "outbox"]

TOKEN = "rushes_1_right"


class LockedServer(ScriptedServer):
    """Lets in who shows ``TOKEN``, unless ``refuses`` says otherwise."""

    def __init__(self, refuses: HTTPStatus | None = None) -> None:
        super().__init__(lambda message, number: accepted(message))
        self.refuses = refuses
        self.knocks = 0

    async def __aenter__(self) -> LockedServer:
        self._server = await serve(
            self._serve, "127.0.0.1", self.port, process_request=self._look_at
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def _look_at(self, connection: ServerConnection, request: Request) -> Response | None:
        self.knocks += 1
        if self.refuses is HTTPStatus.FORBIDDEN:
            detail = "the role viewer lacks the permission \x1b[2Jfollow"
            body = msgspec.json.encode({"code": "not_permitted", "detail": detail}).decode()
            return connection.respond(HTTPStatus.FORBIDDEN, body)
        if self.refuses or request.headers.get("authorization") != f"Bearer {TOKEN}":
            return connection.respond(self.refuses or HTTPStatus.UNAUTHORIZED, "{}")
        return None


@pytest.mark.parametrize(
    ("token", "refuses", "said"),
    [
        ("", None, "RUSHES_TOKEN is not set"),
        ("rushes_1_wrong", None, "RUSHES_TOKEN is not good there"),
        ("rushes_1_wrong", HTTPStatus.FORBIDDEN, "the role viewer lacks"),
        (TOKEN, HTTPStatus.SERVICE_UNAVAILABLE, "503"),
    ],
)
async def test_who_is_not_let_in_keeps_its_messages_and_says_so_once(
    outbox: Outbox,
    caplog: pytest.LogCaptureFixture,
    token: str,
    refuses: HTTPStatus | None,
    said: str,
) -> None:
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with LockedServer(refuses) as server:
        courier = Courier(server.url, outbox, lambda line: None, headers=lambda: headers)
        async with at_work(courier):
            await until(lambda: server.knocks > 5)
            assert said in (courier.offline or "")
    assert not server.asked
    assert len(outbox.unsent()) == 1
    assert caplog.text.count("is kept") == 1
    assert said in caplog.text
    assert "wrong" not in caplog.text
    assert "\x1b" not in caplog.text


async def test_who_was_away_and_comes_back_locked_is_told_of_both(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")
    async with LockedServer() as server:
        url = server.url
    courier = Courier(url, outbox, lambda line: None)
    async with at_work(courier):
        await until(lambda: caplog.text.count("is kept") == 1)
        again = LockedServer()
        again.port = server.port
        async with again:
            await until(lambda: again.knocks > 3)
    assert caplog.text.count("is kept") == 2
    assert "RUSHES_TOKEN is not set" in caplog.text


async def test_with_the_right_token_it_is_let_in(outbox: Outbox) -> None:
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with LockedServer() as server:
        async with at_work(Courier(server.url, outbox, lambda line: None, headers=lambda: headers)):
            await until(lambda: outbox.idle)
    assert len(server.asked) == 1


@pytest.mark.parametrize("text", ["rushes_1 secret", "rushes_1_sécret", "rushes_1_secret\nx"])
def test_what_can_be_no_token_is_refused_and_never_repeated(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rushes.toml"
    file.write_text(f'token = """{text}"""', "utf-8")
    for environment, config in (({"RUSHES_TOKEN": text}, None), ({}, file)):
        with pytest.raises(InvalidInput, match="token") as refused:
            Settings.load({}, environment, config)
        assert "cret" not in refused.value.message
        assert refused.value.field == "RUSHES_TOKEN"


def test_settings_that_are_shown_show_no_token() -> None:
    settings = Settings.load({}, {"RUSHES_TOKEN": f" {TOKEN}\n"})
    assert settings.token == TOKEN
    assert TOKEN not in repr(settings)
