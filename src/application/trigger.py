"""Start a pipeline: whoever asks, the same checks, and once per message."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from application.catalogue import Catalogue
from application.hold import Hold
from application.json_values import contents_hash, json_object
from application.ports import Cards, Clock, Executions, Ids, Threads
from application.views import ExecutionView
from domain.card_keys import is_serial, key_of_card
from domain.errors import InvalidInput
from domain.execution import Execution

MAX_MESSAGE_ID = 200
"""Characters; long enough for any uuid, path or URN, short enough for an index."""

CARD_PATH = "sd_path"
LIBRARY = "library"
DESTINATIONS = "destinations"
AGAIN = "again"
VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class TriggerAnswer:
    """duplicate: ``"message"``, ``"card"``, or None if a new execution was made."""

    execution: ExecutionView
    duplicate: Literal["message", "card"] | None


class Trigger:
    def __init__(
        self,
        *,
        catalogue: Catalogue,
        executions: Executions,
        cards: Cards,
        clock: Clock,
        ids: Ids,
        threads: Threads,
        hold: Hold,
        library: str,
        destinations: Sequence[str] = (),
    ) -> None:
        self._catalogue = catalogue
        self._executions = executions
        self._cards = cards
        self._clock = clock
        self._ids = ids
        self._threads = threads
        self._hold = hold
        self._library = library
        self._destinations = tuple(destinations)

    async def __call__(
        self,
        pipeline_type: str,
        data: object,
        *,
        message_id: object = None,
        anywhere: bool = False,
    ) -> TriggerAnswer:
        """Store a running execution and start its first steps, or answer with the one there is.

        While the engine is held it is pending.

        ``data`` becomes the execution's data; a pipeline that works on a card needs
        ``sd_path`` in it. Raises ``PipelineNotFound``, ``InvalidInput`` (``InvalidPath``
        for the card; what the pipeline's own check refuses), and ``MessageConflict`` if the
        message_id came with other contents.

        ``anywhere``: a person at this machine has named the card, so it need not lie
        below the card roots.
        """
        pipeline = self._catalogue.get(pipeline_type)
        payload = json_object(data, "data")
        checked_id = None if message_id is None else check_message_id(message_id)
        card_key = None
        if pipeline.card:
            if CARD_PATH not in payload:
                raise InvalidInput(
                    f"{CARD_PATH} is missing: pipeline {pipeline_type!r} works on a card",
                    field=CARD_PATH,
                )
            for name in (LIBRARY, DESTINATIONS):
                if name in payload:
                    raise InvalidInput(
                        f"{name} is the server's to say, not the client's: leave it out",
                        field=name,
                    )
            if not isinstance(payload.get(AGAIN, False), bool):
                raise InvalidInput(
                    f"{AGAIN} is true (copy what was imported before once more) or false",
                    field=AGAIN,
                )
            sd_path = payload[CARD_PATH]
            serial = _serial_seen(payload)
            located, is_seen = await self._threads.run(
                lambda: (
                    self._cards.locate(sd_path, anywhere=anywhere),
                    serial is not None and self._cards.has_volume(serial),
                )
            )
            payload[CARD_PATH] = located
            # Where we see no serial numbers, the scan couldn't tell these cards apart either.
            card_key = key_of_card(located, serial if is_seen else None)
        if (check := pipeline.check) is not None:
            await self._threads.run(lambda: check(payload))
        # The client's own contents: the same message is the same on a server with another library.
        contents = "" if checked_id is None else contents_hash(pipeline_type, payload)
        if pipeline.card:
            # Whichever server goes on with it, the footage of one card stays together.
            payload[LIBRARY] = self._library
            if self._destinations:
                payload[DESTINATIONS] = [self._library, *self._destinations]
        execution = Execution.trigger(
            pipeline.definition,
            uuid=self._ids.new(),
            message_id=checked_id,
            data=payload,
            card_key=card_key,
            at=self._clock.now(),
            # Nothing is awaited between this and the store (see ``hold``).
            held=self._hold.held_at is not None,
        )
        triggered = await self._executions.trigger(execution, contents)
        view = ExecutionView.of(triggered.execution, held_at=self._hold.held_at)
        return TriggerAnswer(view, triggered.duplicate)


def _serial_seen(payload: Mapping[str, Any]) -> str | None:
    """What the detector says that the card's volume calls itself."""
    volume = payload.get(VOLUME)
    serial = volume.get("uuid") if isinstance(volume, Mapping) else None
    return serial if is_serial(serial) else None


def check_message_id(value: object) -> str:
    """Raises ``InvalidInput`` unless it is text of 1 to 200 printable characters."""
    if not isinstance(value, str):
        raise InvalidInput(
            f"message_id must be text, not {type(value).__name__}", field="message_id"
        )
    if not 0 < len(value) <= MAX_MESSAGE_ID:
        raise InvalidInput(
            f"message_id must have 1 to {MAX_MESSAGE_ID} characters, not {len(value)}",
            field="message_id",
        )
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            raise InvalidInput(
                f"message_id holds a character that can't be shown: {character!a}",
                field="message_id",
            )
    return value
