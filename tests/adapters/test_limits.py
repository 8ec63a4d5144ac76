"""How often one address may ask."""

from __future__ import annotations

import pytest

from adapters.limits import (
    BURST_S,
    FAILURES,
    MAX_ADDRESSES,
    SHARE,
    Buckets,
    Rates,
    Shares,
    client_of,
)
from domain.errors import Forbidden, TooManyRequests, Unauthenticated
from tests.fakes.access import unlocked
from tests.fakes.world import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def asked(rates: Rates, address: str, times: int) -> int:
    """How many of them were let through."""
    through = 0
    for _ in range(times):
        try:
            rates.ask(address)
        except TooManyRequests:
            continue
        through += 1
    return through


async def test_who_asks_too_often_is_told_when_to_come_back(clock: FakeClock) -> None:
    rates = Rates(10, unlocked(clock), clock)
    assert asked(rates, "192.0.2.1", 10 * BURST_S + 5) == 10 * BURST_S
    with pytest.raises(TooManyRequests, match="more than 10 times a second") as refused:
        rates.ask("192.0.2.1")
    assert refused.value.retry_after_s == 1
    assert asked(rates, "192.0.2.2", 5) == 5
    await clock.advance(1.0)
    assert asked(rates, "192.0.2.1", 20) == 10
    await clock.advance(3_600)
    assert asked(rates, "192.0.2.1", 100) == 10 * BURST_S


async def test_a_rate_of_nothing_is_no_rate(clock: FakeClock) -> None:
    assert asked(Rates(0, unlocked(clock), clock), "192.0.2.1", 10_000) == 10_000


async def test_a_failure_to_say_who_one_is_counts_for_itself(clock: FakeClock) -> None:
    rates = Rates(1_000, unlocked(clock), clock)
    nobody = Unauthenticated("the token is none of this server's")
    for _ in range(FAILURES):
        assert rates.refused(nobody, "192.0.2.1") is nobody
    answered = rates.refused(nobody, "192.0.2.1")
    assert isinstance(answered, TooManyRequests)
    assert answered.retry_after_s == 6
    assert rates.refused(nobody, "192.0.2.2") is nobody
    known = Forbidden("a viewer may not")
    assert rates.refused(known, "192.0.2.1") is known
    assert asked(rates, "192.0.2.1", 5) == 5


async def test_rates_apply_as_soon_as_others_may_be_asking(clock: FakeClock) -> None:
    access = unlocked(clock)
    rates = Rates(1, access, clock)
    assert not rates.apply
    access.keep_locked()
    assert rates.apply


async def test_any_number_of_addresses_takes_a_bounded_memory(clock: FakeClock) -> None:
    buckets = Buckets(10, 20, clock)
    for number in range(3 * MAX_ADDRESSES):
        buckets.take(f"address {number}")
        assert len(buckets._left) <= MAX_ADDRESSES
    for _ in range(20):
        buckets.take("busy")
    await clock.advance(1.0)
    for number in range(MAX_ADDRESSES // 2):
        buckets.take(f"another {number}")
    assert "busy" in buckets._left


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "unknown", False),
    ],
)
def test_whose_bucket_it_is(one: str, other: str, same: bool) -> None:
    assert (client_of(one) == client_of(other)) is same


def test_an_address_has_its_share_and_this_machine_all_there_is() -> None:
    shares = Shares(3 * SHARE)
    assert [shares.take("192.0.2.1") for _ in range(4)] == [True, True, True, False]
    assert shares.take("192.0.2.2")
    shares.give_back("192.0.2.1")
    assert [shares.take("192.0.2.1") for _ in range(2)] == [True, False]
    assert [shares.take("2001:db8::1") for _ in range(3)] == [True] * 3
    assert not shares.take("2001:db8::2")  # of the same household
    for own in ("127.0.0.1", "::1", "::ffff:127.0.0.1", ""):
        assert all(shares.take(own) for _ in range(4 * SHARE))
