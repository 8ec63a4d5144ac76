"""When a card is ready, and what is said of one that isn't."""

from __future__ import annotations

import pytest

from adapters.detector.mounts import Mount
from adapters.detector.volume import Look
from adapters.detector.watch import (
    EMPTY_QUIET_S,
    LOOK_EVERY_S,
    PATIENCE_S,
    QUIET_S,
    Appeared,
    Event,
    Ready,
    Removed,
    Stayed,
    Vanished,
    Waiting,
    Watch,
)


def mount(key: str, path: str = "/media/A") -> Mount:
    return Mount(key, path, "/dev/sdb1", 2065, "vfat")


A = mount("a")


def found(state: str = "same", *, empty: bool = False) -> Look:
    return Look(state, empty, {})


class Bench:
    """A watch with a hand on its clock; looks find what ``finds`` says at the time."""

    def __init__(self, **ready: str) -> None:
        self.watch = Watch(ready)
        self.now = 0.0

    def after(self, seconds: float, finds: Look | str) -> list[Event]:
        """Time passes, and every look that is due finds this."""
        events: list[Event] = []
        end = self.now + seconds
        while True:
            events += self.watch.overdue(self.now)
            for each in self.watch.due(self.now):
                events += self.watch.looked(each, finds, self.now)
            next_at = self.watch.next_at()
            if next_at is None or next_at > end:
                self.now = end
                return events
            self.now = next_at


def test_a_card_is_ready_once_when_it_has_looked_the_same_for_long_enough() -> None:
    bench = Bench()
    assert bench.watch.see([A], 0) == [Appeared(A)]
    assert bench.after(QUIET_S - 0.01, found()) == []
    assert not bench.watch.settled
    assert bench.after(LOOK_EVERY_S, found()) == [Ready(A, found())]
    assert bench.watch.settled
    assert bench.watch.see([A], bench.now) == []
    assert bench.after(60, found("other files")) == []


def test_what_still_changes_is_not_ready() -> None:
    bench = Bench()
    bench.watch.see([A], 0)
    for number in range(20):
        assert not bench.after(LOOK_EVERY_S, found(f"{number} files"))
    assert bench.after(2 * QUIET_S, found("20 files")) == [Ready(A, found("20 files"))]


def test_two_equal_looks_with_a_change_between_them_are_no_quiet() -> None:
    bench = Bench()
    bench.watch.see([A], 0)
    for state in "one", "two", "one", "two", "one":
        assert not bench.after(LOOK_EVERY_S, found(state))


def test_an_empty_card_is_given_more_time_for_its_files_to_come() -> None:
    bench = Bench()
    bench.watch.see([A], 0)
    assert not bench.after(EMPTY_QUIET_S - 0.01, found("nothing", empty=True))
    assert not bench.after(LOOK_EVERY_S, found("files"))
    assert bench.after(2 * QUIET_S, found("files")) == [Ready(A, found("files"))]

    empty = found("nothing", empty=True)
    bench.watch.see([A, mount("b", "/media/B")], bench.now)
    assert bench.after(EMPTY_QUIET_S + 1, empty) == [Ready(mount("b", "/media/B"), empty)]


def test_a_card_that_can_t_be_read_is_tried_again_and_told_of_once() -> None:
    bench = Bench()
    bench.watch.see([A], 0)
    assert bench.after(PATIENCE_S - 1, "it can't be read: Permission denied") == []
    problem = Waiting(A, "it can't be read: Permission denied")
    assert bench.after(60, "it can't be read: Permission denied") == [problem]
    assert bench.after(2 * QUIET_S, found()) == [Ready(A, found())]


def test_a_failed_look_between_two_equal_ones_begins_the_quiet_anew() -> None:
    bench = Bench()
    bench.watch.see([A], 0)
    bench.after(QUIET_S / 2, found())
    bench.after(LOOK_EVERY_S, "it can't be read: Input/output error")
    assert not bench.after(QUIET_S - 0.01, found())
    assert bench.after(1.0, found()) == [Ready(A, found())]


def test_a_card_that_doesn_t_answer_is_not_asked_twice_and_told_of() -> None:
    watch = Watch({})
    watch.see([A], 0)
    assert watch.due(0) == [A]
    assert watch.due(PATIENCE_S) == []
    assert watch.next_at() == PATIENCE_S
    assert watch.overdue(PATIENCE_S) == [Waiting(A, "it doesn't answer")]
    assert watch.overdue(2 * PATIENCE_S) == []
    assert watch.next_at() is None


def test_what_goes_before_it_is_ready_was_never_a_card() -> None:
    bench = Bench()
    bench.watch.see([A], 0)
    bench.after(LOOK_EVERY_S, found())
    assert bench.watch.see([], bench.now) == [Vanished(A)]
    assert bench.watch.looked(A, found(), bench.now + 10) == [], "a late look woke it"
    assert bench.watch.next_at() is None


def test_a_ready_card_that_goes_is_removed_and_one_that_comes_back_is_new() -> None:
    bench = Bench()
    bench.watch.see([A], 0)
    bench.after(2 * QUIET_S, found())
    back = mount("a2")
    assert bench.watch.see([back], bench.now) == [Removed("a", "/media/A"), Appeared(back)]
    assert bench.after(2 * QUIET_S, found()) == [Ready(back, found())]


def test_what_was_ready_before_a_restart_is_not_ready_again_and_its_going_is_noticed() -> None:
    bench = Bench(a="/media/A", b="/media/B")
    assert bench.watch.see([A], 0) == [Removed("b", "/media/B"), Stayed(A)]
    assert bench.watch.see([A], 0) == [], "it is said once"
    assert bench.after(60, found()) == []


def test_after_a_restart_another_mounting_at_the_same_place_is_in_doubt_until_it_is_ready() -> None:
    bench = Bench(a="/media/A", b="/media/B")
    again, other = mount("a2"), mount("b2", "/media/B")
    assert bench.watch.see([again, other], 0) == [Appeared(again), Appeared(other)]
    assert bench.watch.see([again], 0) == [Vanished(other), Removed("b", "/media/B")]
    assert bench.after(2 * QUIET_S, found()) == [Ready(again, found(), before="a")]
    assert bench.watch.see([mount("a3")], bench.now) == [
        Removed("a2", "/media/A"),
        Appeared(mount("a3")),
    ]


@pytest.mark.parametrize("count", [2, 50])
def test_many_cards_settle_each_by_itself(count: int) -> None:
    bench = Bench()
    cards = [mount(str(number), f"/media/{number}") for number in range(count)]
    bench.watch.see(cards, 0)
    assert bench.after(2 * QUIET_S, found()) == [Ready(card, found()) for card in cards]
