"""Who asks: tokens, tickets, and who is let go."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from application.access import (
    MAX_TICKETS,
    MAX_TOKENS,
    SAVE_EVERY_S,
    TICKET_S,
    USED_EVERY,
    Access,
)
from domain.access import ANYBODY, OWNER, Principal, Role
from domain.errors import Conflict, InvalidInput, TokenNotFound, Unauthenticated, Unavailable
from tests.fakes.access import CountingSecrets, MemoryTokens
from tests.fakes.world import FakeClock, InlineThreads, settle

KEY = "the owner's key"


class House:
    """The use case, and the store below it. ``reopened``: as the next process has it."""

    def __init__(self, tokens: MemoryTokens | None = None, clock: FakeClock | None = None) -> None:
        self.tokens = tokens or MemoryTokens()
        self.clock = clock or FakeClock()
        self.access = Access(
            tokens=self.tokens,
            clock=self.clock,
            secrets=CountingSecrets(),
            threads=InlineThreads(),
            owner_key=KEY,
        )

    async def reopened(self) -> House:
        house = House(self.tokens, self.clock)
        await house.access.open()
        return house

    async def shown(self, role: str = "viewer", expires_in_s: float | None = None) -> str:
        _, text = await self.access.new(role, "name", expires_in_s)
        return f"Bearer {text}"


@pytest.fixture
def house() -> House:
    return House()


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer rushes_1",
        "Bearer rushes_1_",
        "Bearer rushes_1_secret",
        "Bearer rushes_2_secret_000000000000000000000000000000000001",
        "Bearer tokens_1_secret_000000000000000000000000000000000001",
        "Bearer rushes_-1_x",
        "Bearer rushes_²_x",
        "Bearer rushes__secret_000000000000000000000000000000000001",
        "Bearer \udcff",
        "Basic rushes_1_secret_000000000000000000000000000000000001",
        "rushes_1_secret_000000000000000000000000000000000001",
    ],
)
async def test_what_is_no_token_is_refused_and_not_repeated(house: House, shown: str) -> None:
    await house.shown()
    with pytest.raises(Unauthenticated) as refused:
        house.access.who(shown)
    assert "secret" not in refused.value.message
    assert "rushes_" not in refused.value.message


async def test_without_tokens_anybody_is_let_in_and_the_owner_is_known(house: House) -> None:
    assert not house.access.locked
    assert house.access.who(None) == ANYBODY
    assert house.access.who("Bearer nonsense", "wrong") == ANYBODY
    assert house.access.who(None, KEY) == OWNER
    house.access.over(ANYBODY).cancel()


async def test_with_the_first_token_everybody_has_to_show_one(house: House) -> None:
    shown = await house.shown("operator")
    assert house.access.locked
    somebody = house.access.who(shown)
    assert somebody == Principal("name", Role.OPERATOR, 1)
    assert house.access.who(shown.replace("Bearer", "bEARER")) == somebody
    for key in (None, "", "wrong"):
        with pytest.raises(Unauthenticated, match="none was shown"):
            house.access.who(None, key)
    assert house.access.who(None, KEY) == OWNER
    assert house.access.who(shown, KEY) == somebody
    with pytest.raises(Unauthenticated):
        house.access.who(f"{shown}x", KEY)


async def test_without_a_key_of_its_own_nobody_is_the_owner() -> None:
    access = Access(
        tokens=MemoryTokens(),
        clock=FakeClock(),
        secrets=CountingSecrets(),
        threads=InlineThreads(),
    )
    assert access.who(None, "") == ANYBODY


async def test_what_was_given_out_is_good_in_the_next_process_and_not_in_the_store(
    house: House,
) -> None:
    shown = await house.shown()
    later = await house.reopened()
    assert later.access.locked
    assert later.access.who(shown).role is Role.VIEWER
    (token,) = later.tokens.all()
    assert shown.rpartition("_")[2] not in repr(token)


@pytest.mark.parametrize(
    ("role", "name", "expires_in_s", "field"),
    [
        ("owner", "", None, "role"),
        ("", "", None, "role"),
        ("viewer", "x" * 101, None, "name"),
        ("viewer", "a\x1b[0m", None, "name"),
        ("viewer", "a\u202eb", None, "name"),
        ("viewer", "", 0.0, "expires_in_s"),
        ("viewer", "", -1.0, "expires_in_s"),
        ("viewer", "", float("nan"), "expires_in_s"),
        ("viewer", "", 1e300, "expires_in_s"),
    ],
)
async def test_a_token_that_makes_no_sense_is_not_made(
    house: House, role: str, name: str, expires_in_s: float | None, field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await house.access.new(role, name, expires_in_s)
    assert refused.value.field == field
    assert not house.access.locked


async def test_a_token_is_good_until_it_expires_and_the_door_stays_shut(house: House) -> None:
    shown = await house.shown(expires_in_s=60)
    house.clock.tick(59)
    somebody = house.access.who(shown)
    house.clock.tick(1)
    with pytest.raises(Unauthenticated, match="expired"):
        house.access.who(shown)
    assert house.access.locked, "nobody is let in without a token because one has expired"
    assert house.access.over(somebody).done()


async def test_a_revoked_token_is_good_no_more_and_the_last_one_opens_the_door(
    house: House,
) -> None:
    first, second = await house.shown(), await house.shown()
    await house.access.revoke(1)
    with pytest.raises(Unauthenticated):
        house.access.who(first)
    assert house.access.who(second).token_id == 2
    with pytest.raises(TokenNotFound):
        await house.access.revoke(1)
    await house.access.revoke(2)
    assert house.access.who(None) == ANYBODY


async def test_where_others_can_reach_it_the_door_stays_shut(house: House) -> None:
    await house.shown()
    house.access.keep_locked()
    await house.access.revoke(1)
    with pytest.raises(Unauthenticated):
        house.access.who(None)
    assert house.access.who(None, KEY) == OWNER


async def test_who_is_connected_is_let_go_with_the_token_and_nobody_else(house: House) -> None:
    anybody = house.access.over(ANYBODY)
    owner = house.access.over(OWNER)
    shown, other = await house.shown(), await house.shown()
    assert anybody.done(), "the first token locks out who has shown none"
    over = house.access.over(house.access.who(shown))
    gone = house.access.over(house.access.who(shown))
    stays = house.access.over(house.access.who(other))
    gone.cancel()
    await house.access.revoke(1)
    assert over.done()
    assert gone.cancelled()
    assert not stays.done()
    assert not owner.done()


async def test_who_is_connected_is_let_go_at_the_moment_of_expiry(house: House) -> None:
    over = house.access.over(house.access.who(await house.shown(expires_in_s=10)))
    watching = asyncio.ensure_future(house.access.run())
    await house.clock.advance(9)
    assert not over.done()
    sooner = house.access.over(house.access.who(await house.shown(expires_in_s=0.5 + 1)))
    await house.clock.advance(1)
    assert over.done()
    assert not sooner.done()
    await house.clock.advance(1)
    assert sooner.done(), "made while it was waiting for another one"
    watching.cancel()


async def test_nothing_is_kept_of_connections_that_have_ended(house: House) -> None:
    somebody = house.access.who(await house.shown())
    for _ in range(100):
        house.access.over(somebody).cancel()
    await settle()
    assert house.access._staying == {}


# -- when it was used ----------------------------------------------------------------


async def test_when_a_token_was_used_is_written_down_now_and_then(house: House) -> None:
    shown = await house.shown()
    working = asyncio.ensure_future(house.access.run())
    await settle()
    began = house.clock.now()
    for _ in range(100):
        house.access.who(shown)
    assert house.tokens.all()[0].last_used_at is None
    assert house.access.tokens()[0].last_used_at == began
    await house.clock.advance(SAVE_EVERY_S)
    assert house.tokens.all()[0].last_used_at == began
    house.access.who(shown)
    await house.clock.advance(USED_EVERY.total_seconds())
    assert house.tokens.all()[0].last_used_at == began
    house.access.who(shown)
    working.cancel()
    await house.access.save()
    assert house.tokens.all()[0].last_used_at == house.clock.now()


async def test_a_store_that_fails_disturbs_nobody_who_is_let_in(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.access.who(await house.shown())

    def full(*_: object, **more: object) -> None:
        raise Unavailable("the disk is full")

    monkeypatch.setattr(house.tokens, "used", full)
    await house.access.save()
    assert "the disk is full" in caplog.text
    monkeypatch.setattr(house.tokens, "revoke", full)
    with pytest.raises(Unavailable):
        await house.access.revoke(1)
    assert house.access.locked, "what couldn't be revoked in the store isn't revoked"
    monkeypatch.setattr(house.tokens, "add", full)
    with pytest.raises(Unavailable):
        await house.access.new("viewer")
    assert len(house.access.tokens()) == 1


async def test_there_are_only_so_many(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_TOKENS >= 100
    monkeypatch.setattr("application.access.MAX_TOKENS", 2)
    await house.shown()
    await house.shown()
    with pytest.raises(Conflict, match="2 tokens"):
        await house.shown()
    await house.access.revoke(1)
    await house.shown()


# -- tickets -------------------------------------------------------------------------


async def test_a_ticket_is_good_once_for_seconds_and_for_who_asked(house: House) -> None:
    somebody = house.access.who(await house.shown("detector"))
    ticket, expires_at = house.access.ticket(somebody)
    assert expires_at == house.clock.now() + timedelta(seconds=TICKET_S)
    late, _ = house.access.ticket(somebody)
    assert house.access.redeem(ticket) == somebody
    for wrong in (ticket, "", "nonsense", "\udcff"):
        with pytest.raises(Unauthenticated) as refused:
            house.access.redeem(wrong)
        assert not wrong or wrong not in refused.value.message
    house.clock.tick(TICKET_S)
    with pytest.raises(Unauthenticated):
        house.access.redeem(late)


async def test_a_ticket_is_no_better_than_who_asked_for_it(house: House) -> None:
    before_the_first, _ = house.access.ticket(ANYBODY)
    of_revoked, _ = house.access.ticket(house.access.who(await house.shown()))
    await house.shown()
    await house.access.revoke(1)
    for each in (before_the_first, of_revoked):
        with pytest.raises(Unauthenticated, match="any more"):
            house.access.redeem(each)


async def test_tickets_are_bounded_and_what_is_old_goes(house: House) -> None:
    for _ in range(MAX_TICKETS + 10):
        last, _ = house.access.ticket(OWNER)
    assert len(house.access._tickets) == MAX_TICKETS
    assert house.access.redeem(last) == OWNER
    house.clock.tick(TICKET_S)
    house.access.ticket(OWNER)
    assert len(house.access._tickets) == 1
