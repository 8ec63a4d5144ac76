"""Slots, limits and queues: who gets what, and in which order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapters.dispatch.pools import ABANDONED_PER_SLOT, PLACES, Claim, Pools, most_at_work

COPY = Claim("copy")


def one(number: int, attempt: int = 1) -> tuple[int, str, int]:
    return (number, "step", attempt)


def test_who_has_waited_longest_is_served_first() -> None:
    pools = Pools({"copy": 1})
    assert pools.admit(one(1), COPY)
    assert not pools.admit(one(2), COPY)
    assert not pools.admit(one(3), COPY)
    assert not pools.admit(one(2), COPY), "asking again keeps the place"
    assert pools.release(one(1)) == [one(2)]
    assert not pools.admit(one(4), COPY), "what is reserved is nobody else's"
    assert pools.admit(one(2), COPY)
    assert pools.waiting == 2


def test_what_was_reserved_and_not_needed_goes_on() -> None:
    pools = Pools({"copy": 1})
    pools.admit(one(1), COPY)
    pools.admit(one(2), COPY)
    pools.admit(one(3), COPY)
    assert pools.release(one(1)) == [one(2)]
    assert pools.give_back(one(2)) == [one(3)]
    assert pools.give_back(one(2)) == ()


def test_a_priority_overtakes_but_only_so_many_places() -> None:
    pools = Pools({"copy": 1})
    pools.admit(one(0), COPY)
    pools.admit(one(1), COPY)
    for number in range(2, PLACES + 10):
        pools.admit(one(number), Claim("copy", priority=1))
    served, holder = [], one(0)
    while pools.waiting:
        (holder,) = pools.release(holder)
        assert pools.admit(holder, COPY)
        served.append(holder[0])
    assert served[0] == 2, "the higher priority is served earlier"
    assert served.index(1) <= PLACES, "and nobody waits for ever"


def test_a_limit_holds_across_pools_and_executions() -> None:
    reader = (("reader=usb1", 1),)
    pools = Pools({"copy": 5, "scan": 5})
    assert pools.admit(one(1), Claim("copy", reader))
    assert not pools.admit(one(2), Claim("scan", reader))
    assert pools.admit(one(3), Claim("copy", (("reader=usb2", 1),)))
    assert pools.admit(one(4), COPY), "who comes under no limit doesn't wait behind who does"
    assert pools.release(one(3)) == []
    assert pools.release(one(1)) == [one(2)]


def test_room_in_a_limit_goes_to_who_came_first_in_whatever_pool() -> None:
    reader = (("reader=usb1", 1),)
    pools = Pools({"copy": 5, "scan": 5})
    assert pools.admit(one(1), Claim("copy", reader))
    assert not pools.admit(one(2), Claim("scan", reader))
    assert not pools.admit(one(3), Claim("copy", reader))
    assert pools.release(one(1)) == [one(2)]
    assert pools.admit(one(2), Claim("scan", reader))
    assert pools.release(one(2)) == [one(3)]


def test_a_late_attempt_keeps_its_slot_beside_its_successor_s() -> None:
    pools = Pools({"copy": 2})
    assert pools.admit(one(1), COPY)
    assert pools.admit(one(1, 2), COPY)
    assert not pools.admit(one(2), COPY)
    assert pools.release(one(1, 2)) == [one(2)]
    assert pools.admit(one(2), COPY)
    assert pools.release(one(1)) == []
    assert pools.release(one(1)) == ()


def test_what_an_attempt_gives_back_is_its_own_whatever_its_successor_has() -> None:
    usb1, usb2 = (Claim("copy", ((f"reader=usb{number}", 1),)) for number in (1, 2))
    pools = Pools({"copy": 4})
    assert pools.admit(one(1), usb1)
    assert pools.admit(one(1, 2), usb2)
    assert pools.release(one(1, 2)) == []
    assert not pools.admit(one(2), usb1), "the first attempt still has its hands on it"
    assert pools.admit(one(3), usb2)
    assert pools.release(one(1)) == [one(2)]


def test_what_needs_nothing_waits_for_nobody_but_while_all_is_held() -> None:
    pools = Pools({"copy": 1})
    assert pools.admit(one(1), COPY)
    assert pools.lets_through(one(2))
    assert pools.release(one(2)) == (), "it has taken nothing"
    pools.hold()
    assert not pools.lets_through(one(3))
    assert not pools.lets_through(one(3))
    assert pools.waiting == 1
    assert pools.go_on() == [one(3)]
    assert pools.lets_through(one(3))
    assert pools.waiting == 0
    assert pools.go_on() == []


def test_who_is_abandoned_leaves_its_slot_to_others_and_keeps_its_limits() -> None:
    reader = Claim("copy", (("reader=usb1", 1),))
    pools = Pools({"copy": 1})
    assert pools.admit(one(1), reader)
    assert not pools.admit(one(2), reader)
    assert not pools.admit(one(3), COPY)
    assert pools.abandon(one(1)) == [one(3)], "its reader is still taken"
    assert pools.admit(one(3), COPY)
    assert pools.release(one(3)) == []
    assert pools.release(one(1)) == (), "it has no slot any more"
    assert pools.release_abandoned(one(1)) == [one(2)]
    assert pools.release_abandoned(one(1)) == ()
    assert pools.admit(one(2), reader)
    assert not pools.admit(one(4), COPY), "there is one slot, as before"


def test_the_successor_of_an_abandoned_attempt_has_a_claim_of_its_own() -> None:
    pools = Pools({"copy": 1})
    assert pools.admit(one(1), COPY)
    assert not pools.admit(one(1, 2), COPY)
    assert pools.abandon(one(1)) == [one(1, 2)]
    assert pools.admit(one(1, 2), COPY)
    assert not pools.admit(one(2), COPY)
    assert pools.release_abandoned(one(1)) == ()
    assert pools.release(one(1, 2)) == [one(2)]


def test_a_pool_has_a_bounded_number_of_abandoned_ones_and_others_have_their_own() -> None:
    sizes = {"copy": 2, "scan": 1}
    pools = Pools(sizes)
    allowed = sizes["copy"] * ABANDONED_PER_SLOT
    for number in range(allowed):
        assert pools.admit(one(number), COPY)
        assert pools.abandon(one(number)) == []
    assert pools.admit(one(50), COPY)
    assert pools.admit(one(51), COPY)
    assert pools.abandon(one(50)) is None
    assert not pools.admit(one(52), COPY), "its slot stays taken"
    assert pools.admit(one(60), Claim("scan"))
    assert pools.abandon(one(60)) == []
    assert pools.release_abandoned(one(0)) == ()
    assert pools.abandon(one(50)) == [one(52)]
    assert most_at_work(sizes) == 3 + 3 * ABANDONED_PER_SLOT


def test_what_is_abandoned_while_held_serves_nobody_until_it_goes_on() -> None:
    pools = Pools({"copy": 1})
    assert pools.admit(one(1), COPY)
    pools.hold()
    assert not pools.admit(one(2), COPY)
    assert pools.abandon(one(1)) == ()
    assert pools.go_on() == [one(2)]


def test_while_held_everybody_waits_and_afterwards_all_that_fit_are_served() -> None:
    pools = Pools({"copy": 2})
    assert pools.admit(one(1), COPY)
    pools.hold()
    assert not pools.admit(one(2), COPY)
    assert not pools.admit(one(3), COPY)
    assert pools.release(one(1)) == ()
    assert pools.go_on() == [one(2), one(3)]


def test_what_was_reserved_when_all_was_held_is_kept_for_it_and_not_given_before() -> None:
    pools = Pools({"copy": 1})
    assert pools.admit(one(1), COPY)
    assert not pools.admit(one(2), COPY)
    assert not pools.admit(one(3), COPY)
    assert pools.release(one(1)) == [one(2)]
    pools.hold()
    assert not pools.admit(one(2), COPY)
    assert pools.give_back(one(2)) == ()
    assert pools.waiting == 2
    assert pools.go_on() == [one(2)]
    assert pools.admit(one(2), COPY)
    assert pools.release(one(2)) == [one(3)]
    assert pools.give_back(one(3)) == []
    assert pools.waiting == 0


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.sampled_from(["a", "b"]),
            st.sampled_from([(), (("x", 1),), (("x", 1), ("y", 2))]),
            st.integers(-2, 2),
        ),
        max_size=60,
    )
)
def test_no_bound_is_ever_exceeded_and_everybody_is_served(
    asked: list[tuple[int, str, tuple[tuple[str, int], ...], int]],
) -> None:
    sizes = {"a": 2, "b": 1}
    pools = Pools(sizes)
    running: dict[tuple[int, str, int], Claim] = {}
    claims: dict[tuple[int, str, int], Claim] = {}
    served = set()

    def check() -> None:
        for name, size in sizes.items():
            assert sum(claim.pool == name for claim in running.values()) <= size
        for name, at_once in (("x", 1), ("y", 2)):
            held = sum(name in dict(claim.limits) for claim in running.values())
            assert held <= at_once

    for number, pool, limits, priority in asked:
        step_id = one(number)
        if step_id in claims:
            continue
        claims[step_id] = Claim(pool, limits, priority)
        if pools.admit(step_id, claims[step_id]):
            running[step_id] = claims[step_id]
        check()
    while running:
        done = next(iter(running))
        served.add(done)
        del running[done]
        for step_id in pools.release(done):
            assert pools.admit(step_id, claims[step_id])
            running[step_id] = claims[step_id]
        check()
    assert served == claims.keys()
    assert pools.waiting == 0
