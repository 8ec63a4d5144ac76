"""Talking to a server: requests, and an execution's events across lost connections."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

import click
import httpx2

from adapters import tls
from adapters.cli.factories import Attached
from domain.errors import Unavailable

TIMEOUT_S = 30.0
"""For an answer; event streams say something every 15 seconds."""

RECONNECT_S = (0.1, 0.2, 0.5, 1.0)
"""How long to wait before looking for a server again; the last one from then on."""

RECONNECTS = 30
"""How often in a row, without an event in between: about half a minute."""

WRONG_USE = 2


class Refused(click.ClickException):
    """The server said no. ``code`` is its word for why."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.status = status


class Client:
    """REST and server-sent events of the server that ``attached`` has."""

    def __init__(self, attached: Attached) -> None:
        self._attached = attached
        self._certificate: str | None = None
        self._client: httpx2.Client | None = None

    @property
    def _http(self) -> httpx2.Client:
        """Another one for a server that shows another certificate: it may have been restarted."""
        if self._client is None or self._certificate != self._attached.certificate:
            self._certificate = self._attached.certificate
            # This machine only, so no proxy of the environment has a say in it.
            self._client = httpx2.Client(
                timeout=TIMEOUT_S,
                trust_env=False,
                verify=tls.trusting(self._certificate) if self._certificate else False,
            )
        return self._client

    def get(self, path: str, **params: object) -> Any:
        return self._request("GET", path, params=params)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._request("POST", path, body=body)

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, object] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        for pause_s in RECONNECT_S:
            try:
                response = self._http.request(
                    method,
                    self._attached.url + path,
                    params={k: str(v) for k, v in (params or {}).items() if v is not None},
                    json=body,
                    headers=self._shown(),
                )
                break
            except httpx2.ConnectError:
                # Nothing has been sent, so nothing is done twice.
                time.sleep(pause_s)
                self._attached.find()
            except httpx2.TransportError as error:
                raise Unavailable(
                    f"the server at {self._attached.url} didn't answer: {error}"
                ) from error
        else:
            raise Unavailable(f"the server at {self._attached.url} can't be reached")
        if response.is_error:
            raise self._refusal(response)
        return response.json()

    def _shown(self) -> dict[str, str]:
        shown = {"x-rushes-key": self._attached.key} if self._attached.key else {}
        if self._attached.token:
            shown["authorization"] = f"Bearer {self._attached.token}"
        return shown

    def _refusal(self, response: httpx2.Response) -> Refused:
        refused = _refusal(response)
        if refused.status == HTTPStatus.UNAUTHORIZED or refused.code == "not_permitted":
            said = "RUSHES_TOKEN says who you are"
            if not self._attached.token:
                said = "RUSHES_TOKEN, which would say who you are, is not set"
            return Refused(refused.status, refused.code, f"{refused.message} ({said})")
        return refused

    def events(
        self, path: str, *, since: int | None = None, transient: bool = True
    ) -> Iterator[dict[str, Any]]:
        """The events at ``path``, for ever: a lost server is found again, and resumed from.

        Raises ``Refused``; ``Unavailable`` if no server is to be had for half a minute.
        """
        last = since
        lost = 0
        while True:
            try:
                for event in self._stream(path, last):
                    lost = 0
                    if "id" in event:
                        last = event["id"]
                    if transient or "id" in event:
                        yield event
            except httpx2.TransportError as error:
                reason: object = error
            else:
                reason = "it has stopped"
            lost += 1
            if lost > RECONNECTS:
                raise Unavailable(f"the server at {self._attached.url} is gone: {reason}")
            time.sleep(RECONNECT_S[min(lost, len(RECONNECT_S)) - 1])
            self._attached.find()

    def _stream(self, path: str, since: int | None) -> Iterator[dict[str, Any]]:
        params = {} if since is None else {"since": str(since)}
        with self._http.stream(
            "GET",
            self._attached.url + path,
            params=params,
            headers={"accept": "text/event-stream", **self._shown()},
        ) as response:
            if response.is_error:
                response.read()
                raise self._refusal(response)
            for received in httpx2.EventSource(response):
                event = received.json()
                assert isinstance(event, dict)
                yield event


def _refusal(response: httpx2.Response) -> Refused:
    try:
        document = response.json()
        return Refused(response.status_code, str(document["code"]), str(document["detail"]))
    except (ValueError, KeyError, TypeError):
        return Refused(
            response.status_code, "unknown", f"the server answered {response.status_code}"
        )
