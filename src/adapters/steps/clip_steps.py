"""Steps for clips, made while the rest of the card is still being copied.

As soon as every file of a clip stands verified at the first destination, and is in the
ledger, a step is made for it in each of the families that the pipeline has for clips. A
clip that was whole before this job isn't processed again; one that has got another file
since is, with all of its files.

The same clip always makes the same step with the same params, so a copy that is tried
again adds nothing. Whatever becomes of these steps is nobody's business here: a copy
never fails because one can't be made.

Where a card has more than ``MAX_STEPS`` clips, several that follow each other share a
step: how many, and which, hangs on nothing but the card's inventory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from adapters.steps.copy_destinations import Destination
from application.authoring import AuthoredStep, PermanentError, StepContext
from application.ports import Executions
from domain.errors import InvalidDefinition, InvalidInput
from domain.footage import CardFile, FileKind, shown
from domain.step import StepStatus

MAX_STEPS = 1_000
"""In a family. A card of a hundred thousand stills would be an execution that nobody can read."""

MAX_FILES = 100
"""Files of a clip that a step is told of; frames are thousands, and lie in one folder."""

MAX_NAMED = 20
"""Steps that failed and are named; the execution shows all of them."""

_NO_WORD = re.compile(rb"[^A-Za-z0-9._-]")
_WORD_BYTES = 100


@dataclass(slots=True)
class _Group:
    """The clips of one step; ``lacking`` is how many of their files aren't there yet."""

    parameter: str
    clips: Sequence[Sequence[CardFile]]
    lacking: int


class ClipSteps:
    """Makes them. ``families``: their names; ``destination``: the first."""

    def __init__(
        self, context: StepContext, families: Sequence[str], destination: Destination
    ) -> None:
        self._context = context
        self._families = families
        self._destination = destination
        self._waiting: dict[bytes, _Group] = {}
        self._clips = self._made = self._refused = 0
        self._why = ""

    def begin(self, wanted: Iterable[CardFile]) -> None:
        """Once it is known what is new; an earlier attempt may have left whole clips."""
        if not self._families:
            return
        clips: dict[bytes, list[CardFile]] = {}
        for file in wanted:
            if file.clip is not None:
                clips.setdefault(file.clip, []).append(file)
        ids = sorted(clips)
        together = -(-len(ids) // MAX_STEPS) or 1
        for start in range(0, len(ids), together):
            ours = [clips[id] for id in ids[start : start + together] if self._is_ours(clips[id])]
            lacking = [
                file for clip in ours for file in clip if not self._destination.has(file.path)
            ]
            group = _Group(_parameter(ids[start]), ours, len(lacking))
            self._waiting.update(dict.fromkeys((file.path for file in lacking), group))
            if ours and not lacking:
                self._make(group)

    def arrived(self, file: CardFile) -> None:
        """It stands at the first destination, and is in the ledger."""
        group = self._waiting.pop(file.path, None)
        if group is not None:
            group.lacking -= 1
            if not group.lacking:
                self._make(group)

    def output(self) -> Mapping[str, Any]:
        """What the step has to say of them; nothing if there are no families."""
        if not self._families:
            return {}
        said: dict[str, Any] = {"clips": self._clips, "made": self._made}
        if self._refused:
            said |= {"refused": self._refused, "why": self._why}
        return {"clip_steps": said}

    def _is_ours(self, clip: Sequence[CardFile]) -> bool:
        """Whether this job brings any of it."""
        destination = self._destination
        return any(file.path in destination.copied or file.path in destination.new for file in clip)

    def _make(self, group: _Group) -> None:
        params = {"clips": [self._described(clip) for clip in group.clips]}
        self._clips += len(group.clips)
        for family in self._families:
            try:
                self._context.spawn(family, group.parameter, params)
                self._made += 1
            except InvalidInput as error:
                self._refused += 1
                self._why = self._why or error.message

    def _described(self, clip: Sequence[CardFile]) -> Mapping[str, Any]:
        id = clip[0].clip
        assert id is not None
        media = [file for file in clip if file.kind is FileKind.MEDIA]
        beside = [file for file in clip if file.kind is not FileKind.MEDIA]
        stem, _, suffix = id.rpartition(b"/")[2].rpartition(b".")
        return {
            "name": shown(stem or suffix),
            "format": shown(suffix).lower() if stem else "",
            "size_bytes": sum(file.size_bytes for file in clip),
            "file_count": len(clip),
            "files": [self._file(file) for file in (media + beside)[:MAX_FILES]],
        }

    def _file(self, file: CardFile) -> Mapping[str, Any]:
        destination = self._destination
        place = os.path.join(os.fsencode(destination.library.root), destination.places[file.path])
        said: dict[str, Any] = {"kind": file.kind.value, "size_bytes": file.size_bytes}
        try:
            return {"path": place.decode(), **said}
        except UnicodeDecodeError:  # JSON can't say it; who opens it takes the bytes
            return {"path": shown(place), "path_hex": place.hex(), **said}


def _parameter(id: bytes) -> str:
    """A word for the step's key: ``GX010042.MP4-0123456789abcdef``."""
    word = _NO_WORD.sub(b"_", id.rpartition(b"/")[2])[:_WORD_BYTES].decode()
    return f"{word}-{xxhash.xxh64_hexdigest(id)}"


def as_family(step: AuthoredStep) -> AuthoredStep:
    """The step as the family that clips are processed by. Raises ``InvalidDefinition``.

    It is optional there, whatever it says itself: nothing else may wait for it. If it is
    required, ``CheckClips`` speaks for it at the end.
    """
    spec = step.spec
    if spec.depends_on or spec.after or spec.spawns:
        raise InvalidDefinition(
            f"step {spec.name!r} is to process clips, so it stands alone: a clip is all that it "
            "waits for, and depends_on, after and spawns have no place there"
        )
    return replace(step, spec=replace(spec, dynamic=True, required=False))


class CheckClips:
    """check_clips: fails the execution at its very end if a clip's required step has failed.

    By then the verdict is given, so the card is as safe as it is. A retry does the failed
    steps again, then this one, and nothing else.
    """

    def __init__(self, executions: Executions, required: Collection[str]) -> None:
        self._executions = executions
        self._required = required

    async def __call__(self, context: StepContext) -> Mapping[str, Any]:
        execution = await self._executions.get(context.execution_id)
        steps = [step for step in execution.steps.values() if step.name in self._required]
        failed = [step for step in steps if step.status is StepStatus.FAILED]
        if failed:
            named = "; ".join(f"{step.key}: {step.error}"[:300] for step in failed[:MAX_NAMED])
            more = f"; and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else ""
            raise PermanentError(
                f"{len(failed)} of {len(steps)} steps for clips failed: {named}{more}; the copy "
                "is done, and a retry does only these again"
            )
        return {"processed_clip_steps": len(steps)}
