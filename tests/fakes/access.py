"""Tokens in memory, secrets that count, and the use case on top of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from application.access import Access
from application.ports import Clock
from domain.access import Role, Token
from domain.errors import TokenNotFound
from tests.fakes.world import InlineThreads


class MemoryTokens:
    """``application.ports.Tokens``."""

    def __init__(self) -> None:
        self._tokens: dict[int, Token] = {}
        self._last = 0

    def add(
        self,
        *,
        name: str,
        role: Role,
        digest: str,
        created_at: datetime,
        expires_at: datetime | None,
    ) -> Token:
        self._last += 1
        token = Token(self._last, name, role, digest, created_at, expires_at)
        self._tokens[token.id] = token
        return token

    def all(self) -> Sequence[Token]:
        return list(self._tokens.values())

    def revoke(self, token_id: int) -> None:
        if self._tokens.pop(token_id, None) is None:
            raise TokenNotFound(token_id)

    def used(self, at: Mapping[int, datetime]) -> None:
        for token_id, used_at in at.items():
            if token_id in self._tokens:
                self._tokens[token_id] = replace(self._tokens[token_id], last_used_at=used_at)


class CountingSecrets:
    """``application.ports.Secrets``, without any secret."""

    def __init__(self) -> None:
        self._count = 0

    def new(self) -> str:
        self._count += 1
        return f"secret_{self._count:036}"


def unlocked(clock: Clock, owner_key: str = "") -> Access:
    """Nobody has a token yet."""
    return Access(
        tokens=MemoryTokens(),
        clock=clock,
        secrets=CountingSecrets(),
        threads=InlineThreads(),
        owner_key=owner_key,
    )
