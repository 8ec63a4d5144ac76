"""create_job: the row and the folder's name under which a card comes into the library."""

from __future__ import annotations

import os
import unicodedata
from datetime import datetime
from typing import Any

from adapters.steps.cards import is_volume
from adapters.steps.library import Library
from application.authoring import StepContext
from application.ports import Clock, Jobs
from domain.footage import Card

MAX_NAME_BYTES = 100
"""Leaves room for a ``-2``, and for the paths below it where the whole path is counted."""


class CreateJob:
    """The step. Run again, it finds the job that the execution has.

    The name that it gets is free on the disk too: a folder that is there already is
    somebody else's, another server's perhaps, or from a database that is gone.
    """

    def __init__(self, jobs: Jobs, clock: Clock, library: str) -> None:
        self._jobs = jobs
        self._clock = clock
        self._library = library

    def __call__(self, context: StepContext) -> dict[str, Any]:
        found = context.data["card"]
        card = Card(found["identity"], found["label"], volume=is_volume(found["identity"]))
        # Looked at beforehand: the names are asked for within the database's transaction.
        names = {
            _folded(name)
            for library in Library.all_of(context, self._library)
            for name in library.names()
        }
        job = self._jobs.create(
            context.ref,
            name=job_name(self._clock.now(), card.label),
            card=card,
            file_count=context.data["file_count"],
            total_bytes=context.data["total_bytes"],
            taken=lambda name: _folded(os.fsencode(name)) in names,
        )
        context.attach_job(job.id)
        return {"job_id": job.id, "job_name": job.name}


def _folded(name: bytes) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFC", os.fsdecode(name)).casefold()


def job_name(now: datetime, label: str) -> str:
    """``2026-11-22_A001``: the local day, and the label as far as every file system takes it.

    The day in front also keeps the name clear of leading dots and of what Windows
    reserves (CON, AUX, ...).
    """
    # Composed, because some file systems hold that form of a letter and the other to be one.
    text = unicodedata.normalize("NFC", label)
    safe = "".join(character if _is_safe(character) else "_" for character in text)
    head = f"{now.astimezone():%Y-%m-%d}_"
    room = MAX_NAME_BYTES - len(head)
    cut = safe.strip("_.-").encode()[:room].decode("utf-8", "ignore").rstrip("_.-")
    return head + (cut or "card")


def _is_safe(character: str) -> bool:
    # Letters with their marks, and digits, of every script.
    return character in "-_." or unicodedata.category(character) in _SAFE_CATEGORIES


_SAFE_CATEGORIES = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Nd"})
