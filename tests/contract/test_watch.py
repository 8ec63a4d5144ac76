"""What ``Executions.watch`` promises: who has an old state in hand is told in time."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

import pytest

from domain.errors import IllegalTransition, Unavailable
from tests.contract.conftest import Store
from tests.fakes.world import EPOCH


class Watcher:
    """Notes what it is told, and how many facts were out by then."""

    def __init__(self, store: Store) -> None:
        self.told: list[tuple[set[int] | None, int]] = []
        self._store = store
        store.executions.watch(self.note)

    def note(self, execution_ids: Collection[int] | None) -> None:
        ids = None if execution_ids is None else set(execution_ids)
        self.told.append((ids, len(self._store.published)))


async def test_a_watcher_hears_of_a_change_before_its_facts_are_out(store: Store) -> None:
    watcher = Watcher(store)
    made = await store.make()
    assert watcher.told == [({made}, 0)]
    out = len(store.published)
    await store.complete(made, "a")
    assert watcher.told[1:] == [({made}, out)]
    assert len(store.published) > out


async def test_a_watcher_hears_of_what_no_fact_tells(store: Store) -> None:
    made = await store.make()
    watcher = Watcher(store)
    await store.executions.apply(made, lambda e: e.note({"a": (1, 0.5)}, at=EPOCH))
    assert [ids for ids, _ in watcher.told] == [{made}]


async def test_what_changes_nothing_is_told_to_no_watcher(store: Store) -> None:
    made = await store.make()
    watcher = Watcher(store)
    await store.executions.update(made, lambda e: None)
    with pytest.raises(IllegalTransition):
        await store.executions.update(made, lambda e: e.retry(at=EPOCH))
    assert watcher.told == []


async def test_a_watcher_hears_of_what_is_forgotten_before_who_asked_for_it(store: Store) -> None:
    made = await store.make()
    await store.complete(made, "a")
    await store.complete(made, "b")
    watcher = Watcher(store)
    assert await store.executions.forget(EPOCH + timedelta(days=1), 10) == 1
    assert [ids for ids, _ in watcher.told] == [{made}]


async def test_after_a_commit_that_failed_nothing_is_shown_that_may_be_wrong(store: Store) -> None:
    made = await store.make()
    watcher = Watcher(store)
    store.fail_commits(1)
    with pytest.raises(Unavailable):
        await store.complete(made, "a")
    # A store that reads anew what it knew says that anything may be another.
    assert [ids for ids, _ in watcher.told] in ([], [None])
