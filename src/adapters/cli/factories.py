"""What the command line is handed from where everything meets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adapters.settings import Settings


class Attached(Protocol):
    """A server to talk to, for as long as a command runs."""

    @property
    def url(self) -> str: ...

    @property
    def key(self) -> str:
        """Shown to the server, it says that its own user asks; empty where that can't be said."""
        ...

    @property
    def token(self) -> str:
        """What RUSHES_TOKEN says; empty if it isn't set."""
        ...

    @property
    def certificate(self) -> str:
        """What the server shows at an ``https`` address, as PEM: that one is trusted."""
        ...

    @property
    def is_own(self) -> bool:
        """Whether it runs inside this process."""
        ...

    def find(self) -> None:
        """The server has gone: find another, or start one. Raises ``Unavailable``."""
        ...


@dataclass(frozen=True, slots=True)
class Factories:
    """attach: ``(settings, recover)``; an own server goes on with unfinished work if ``recover``.

    serve: ``(settings, say)`` serves until a signal; ``say`` is given a line per address.
    detect: ``(settings, once, say)`` tells a server of cards, until a signal or just once;
        whether all went well. ``say`` is given a line per thing that happens.
    eject: ``(settings, path)`` unmounts a card; its path, to be shown.
    """

    load_settings: Callable[[Mapping[str, str | None], Path | None], Settings]
    attach: Callable[[Settings, bool], AbstractContextManager[Attached]]
    serve: Callable[[Settings, Callable[[str], None]], None]
    detect: Callable[[Settings, bool, Callable[[str], None]], bool]
    eject: Callable[[Settings, str], str]
