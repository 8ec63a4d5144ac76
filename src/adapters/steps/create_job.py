"""create_job: the row and the folder's name under which a card comes into the library."""

from __future__ import annotations

import os
from typing import Any

from adapters.steps.cards import is_volume
from adapters.steps.library import Library
from application.authoring import StepContext
from application.ports import Clock, Jobs
from domain.footage import Card
from domain.names import folded
from domain.places import DEFAULT_LAYOUT, Template, job_values


class CreateJob:
    """The step. Run again, it finds the job that the execution has.

    The name that it gets is free on the disk too: a folder that is there already is
    somebody else's, another server's perhaps, or from a database that is gone. Nor does it
    lie in another job's folder, or one of theirs in it, as could be once the layout was
    changed.

    The layout is this server's now; what it makes of the card is kept with the execution,
    and holds for it whatever the settings say later.
    """

    def __init__(
        self, jobs: Jobs, clock: Clock, library: str, layout: str = DEFAULT_LAYOUT
    ) -> None:
        self._jobs = jobs
        self._clock = clock
        self._library = library
        self._template = Template.parse(layout)

    def __call__(self, context: StepContext) -> dict[str, Any]:
        found = context.data["card"]
        card = Card(
            found["identity"],
            found["label"],
            volume=is_volume(found["identity"]),
            generation=found.get("generation", 1),
        )
        now = self._clock.now().astimezone()
        layouts = context.data.get("layouts", ())
        values = job_values(now, card.label, layouts)
        above, name = self._place(self._template.job_name(values))
        # Looked at beforehand: the names are asked for within the database's transaction.
        there = {
            folded(each)
            for library in Library.all_of(context, self._library)
            for each in library.names(os.fsencode(above))
        }
        job = self._jobs.create(
            context.ref,
            name=above + name,
            card=card,
            file_count=context.data["file_count"],
            total_bytes=context.data["total_bytes"],
            intake=context.data.get("intake"),
            taken=lambda path: folded(os.fsencode(path.removeprefix(above))) in there,
        )
        context.attach_job(job.id)
        offset = now.utcoffset()
        return {
            "job_id": job.id,
            "job_name": job.name,
            "layout": {
                "files": self._template.sorting(values, layouts),
                "utc_offset_s": int(offset.total_seconds()) if offset else 0,
            },
        }

    def _place(self, path: str) -> tuple[str, str]:
        """What the folder is in (empty, or ending in ``/``), and its own name."""
        *components, name = path.split("/")
        above = ""
        for component in components:
            free, number = component, 1
            while self._jobs.named(above + free):
                number += 1
                free = f"{component}-{number}"
            above += f"{free}/"
        return above, name
