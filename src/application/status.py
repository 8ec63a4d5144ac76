"""What there is, and how far it has come.

A page that is open asks for the same execution again and again, and so does every tool
that polls. So the answers that were given last are kept as they were encoded, and given
again as long as they are true: the store tells which executions a commit has changed,
before it lets anybody know of the commit, and those answers are dropped. So nobody is
given an answer that is older than an event they have been told. What isn't committed,
the progress of running attempts and whether the engine is held, is compared each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from application.hold import Hold
from application.ports import Executions, Query
from application.progress import ProgressBoard
from application.views import ExecutionView
from domain.execution import Execution

KEPT_BYTES = 16 * 1024 * 1024
"""Of encoded answers: some thousand executions of a card, of which people watch a few."""

Encode = Callable[[ExecutionView], bytes]


@dataclass(slots=True)
class _Shown:
    """An execution as it was shown last.

    stamp, held_at: of what isn't committed, at that time.
    """

    uuid: str
    stamp: int
    held_at: datetime | None
    answers: dict[Encode, bytes] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.answers.values()))


class _Reading:
    """A look into the store that is under way, and what has changed meanwhile."""

    def __init__(self) -> None:
        self.changed: set[int] | None = set()

    def is_true_of(self, execution_id: int) -> bool:
        return self.changed is not None and execution_id not in self.changed


class Status:
    def __init__(self, *, executions: Executions, progress: ProgressBoard, hold: Hold) -> None:
        self._executions = executions
        self._progress = progress
        self._hold = hold
        self._shown: OrderedDict[int, _Shown] = OrderedDict()
        self._ids: dict[str, int] = {}
        self._kept_bytes = 0
        self._readings: set[_Reading] = set()
        executions.watch(self._changed)

    async def get(self, reference: str | int) -> ExecutionView:
        """By uuid or by id. Raises ``ExecutionNotFound``."""
        execution = await self._executions.get(reference)
        return self.view(execution)

    async def encoded(self, reference: str | int, encode: Encode) -> bytes:
        """``encode`` of what ``get`` answers, made once as long as that stays the same."""
        execution_id = self._ids.get(reference, 0) if isinstance(reference, str) else reference
        shown = self._shown.get(execution_id)
        if (
            shown is not None
            and shown.stamp == self._progress.stamp(execution_id)
            and shown.held_at == self._hold.held_at
        ):
            answer = shown.answers.get(encode)
            if answer is not None:
                self._shown.move_to_end(execution_id)
                return answer
        return await self._encoded_anew(reference, encode)

    async def list(self, query: Query) -> Sequence[ExecutionView]:
        """Newest first."""
        return [self.view(execution) for execution in await self._executions.list(query)]

    def view(self, execution: Execution) -> ExecutionView:
        """As it is at this moment; ``execution`` becomes the view's."""
        live = self._progress.of(execution.id or 0)
        return ExecutionView.of(
            execution, live, detail=self._progress.detail, held_at=self._hold.held_at
        )

    async def _encoded_anew(self, reference: str | int, encode: Encode) -> bytes:
        reading = _Reading()
        self._readings.add(reading)
        try:
            execution = await self._executions.get(reference)
        finally:
            self._readings.discard(reading)
        assert execution.id is not None
        # The stamp first: what is noted on another thread in between is then shown at worst twice.
        stamp, held_at = self._progress.stamp(execution.id), self._hold.held_at
        answer = encode(self.view(execution))
        if reading.is_true_of(execution.id):
            self._keep(execution.id, _Shown(execution.uuid, stamp, held_at), encode, answer)
        return answer

    def _keep(self, execution_id: int, now: _Shown, encode: Encode, answer: bytes) -> None:
        shown = self._shown.get(execution_id)
        if shown is None or (shown.stamp, shown.held_at) != (now.stamp, now.held_at):
            self._drop(execution_id)
            shown = self._shown[execution_id] = now
            self._ids[now.uuid] = execution_id
        self._kept_bytes += len(answer) - len(shown.answers.get(encode, b""))
        shown.answers[encode] = answer
        while self._kept_bytes > KEPT_BYTES:
            self._drop(next(iter(self._shown)))

    def _drop(self, execution_id: int) -> None:
        shown = self._shown.pop(execution_id, None)
        if shown is not None:
            del self._ids[shown.uuid]
            self._kept_bytes -= shown.size_bytes

    def _changed(self, execution_ids: Collection[int] | None) -> None:
        if execution_ids is None:
            for reading in self._readings:
                reading.changed = None
            for execution_id in tuple(self._shown):
                self._drop(execution_id)
            return
        for reading in self._readings:
            if reading.changed is not None:
                reading.changed.update(execution_ids)
        for execution_id in execution_ids:
            self._drop(execution_id)
