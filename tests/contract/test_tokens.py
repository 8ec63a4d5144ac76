"""What ``Tokens`` and ``Secrets`` promise, of the fakes and of the real ones alike."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from adapters.persistence.database import Database
from adapters.persistence.tokens import SqlTokens
from adapters.system import SystemSecrets
from application.ports import Secrets, Tokens
from domain.access import Role, Token
from domain.errors import TokenNotFound
from tests.contract.conftest import SqlStore, Store
from tests.fakes.access import CountingSecrets, MemoryTokens
from tests.fakes.world import EPOCH

T = TypeVar("T")

LATER = EPOCH + timedelta(days=30)


@pytest.fixture
def tokens(store: Store) -> Tokens:
    if isinstance(store, SqlStore):
        return SqlTokens(store.database, store.executions)
    return MemoryTokens()


async def call(method: Callable[..., T], *args: Any, **more: Any) -> T:
    return await asyncio.to_thread(lambda: method(*args, **more))


async def add(tokens: Tokens, name: str = "cart ü", **more: Any) -> Token:
    given = {
        "role": Role.DETECTOR,
        "digest": "ab" * 32,
        "created_at": EPOCH,
        "expires_at": None,
        **more,
    }
    return await call(tokens.add, name=name, **given)


async def test_a_token_that_is_not_there_cannot_be_revoked(tokens: Tokens) -> None:
    for nobody in (1, 2**63 - 1):
        with pytest.raises(TokenNotFound, match=str(nobody)):
            await call(tokens.revoke, nobody)


async def test_what_is_added_is_there_as_it_was_given(tokens: Tokens) -> None:
    assert await call(tokens.all) == []
    first = await add(tokens)
    second = await add(tokens, "", role=Role.ADMIN, expires_at=LATER)
    assert first == Token(first.id, "cart ü", Role.DETECTOR, "ab" * 32, EPOCH, None)
    assert second == Token(second.id, "", Role.ADMIN, "ab" * 32, EPOCH, LATER)
    assert await call(tokens.all) == [first, second]


async def test_no_id_is_given_again(tokens: Tokens) -> None:
    first = await add(tokens)
    await call(tokens.revoke, first.id)
    assert await call(tokens.all) == []
    assert (await add(tokens)).id > first.id


async def test_one_is_revoked_once_and_the_others_stay(tokens: Tokens) -> None:
    first, second = await add(tokens), await add(tokens)
    await call(tokens.revoke, first.id)
    assert await call(tokens.all) == [second]
    with pytest.raises(TokenNotFound):
        await call(tokens.revoke, first.id)


async def test_when_they_were_used_is_remembered_and_who_is_gone_is_passed_over(
    tokens: Tokens,
) -> None:
    first, second, gone = await add(tokens), await add(tokens), await add(tokens)
    await call(tokens.revoke, gone.id)
    await call(tokens.used, {second.id: LATER, gone.id: LATER})
    await call(tokens.used, {})
    found = await call(tokens.all)
    assert [each.last_used_at for each in found] == [None, LATER]
    assert [each.id for each in found] == [first.id, second.id]


async def test_tokens_outlive_the_process_and_their_secrets_are_not_in_the_file(
    sql: SqlStore,
) -> None:
    made = await add(SqlTokens(sql.database, sql.executions))
    other = Database(f"sqlite:///{sql.path}")
    other.open()
    try:
        assert SqlTokens(other, sql.executions).all() == [made]
    finally:
        other.close()


@pytest.mark.parametrize("kind", [SystemSecrets, CountingSecrets])
def test_secrets_differ_and_fit_an_address(kind: type[Secrets]) -> None:
    secrets = kind()
    made = [secrets.new() for _ in range(1000)]
    assert len(set(made)) == 1000
    for each in made:
        # 43 characters of six bits hold 256 of them.
        assert re.fullmatch(r"[A-Za-z0-9_-]{43,}", each)
