"""write_manifest: an ASC MHL generation in the job's folder, on each destination.

It lists what this job brought there, with the hashes of the ledger: nothing is hashed
for it. The time of a hash is when its copy was verified, so that a step that runs again
after a crash finds its own generation and adds no other.

A card may bring a history of its own, an ``ascmhl`` at its top. That was copied like
everything else, and the ledger knows each of its files by size and time. To go on with
it would change them, and would mix what somebody else has witnessed with what we have; so
it is left as it came, and this job's folder gets no generation of ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from adapters.steps.faults import LibraryFault, OffloadFault
from adapters.steps.library import Folder, Library
from adapters.steps.mhl.documents import MANIFESTS, Creator, HashedFile, Process
from adapters.steps.mhl.history import Counted, add_generation
from application.authoring import StepContext
from application.ports import CardFiles, Clock, Jobs, Ledger
from domain.footage import Job, VerifiedCopy, shown

PAGE_FILES = 1_000
"""Files of the inventory that are read, and asked about, at once."""

MAX_NAMED = 100
MAX_NAMED_CHARACTERS = 500
"""Files that no manifest can list and that the output names, and of each name."""


class ManifestsMissing(OffloadFault):
    """Some destinations got none. The copies are none the worse for it."""


class WriteManifest:
    """The step."""

    def __init__(
        self,
        card_files: CardFiles,
        jobs: Jobs,
        ledger: Ledger,
        clock: Clock,
        library: str,
        creator: Creator,
    ) -> None:
        self._card_files = card_files
        self._jobs = jobs
        self._ledger = ledger
        self._clock = clock
        self._library = library
        self._creator = creator

    def __call__(self, context: StepContext) -> dict[str, Any]:
        job = self._jobs.get(context.data["job_id"])
        written: list[dict[str, Any]] = []
        notes: list[str] = []
        faults: list[str] = []
        for library in Library.all_of(context, self._library, self._ledger):
            context.check()
            files = _Brought(partial(self._brought, job, library))
            counted = Counted.of(files)
            if not counted.listed and not counted.left_out:
                continue
            if files.has_own:
                notes.append(
                    f"{library.text}: the card brought manifests of its own (ascmhl); they were "
                    "copied as they are, and none was added"
                )
                continue
            try:
                written.append(self._write(library, job, files, counted))
            except OffloadFault as fault:
                faults.append(str(fault))
        if faults:
            raise ManifestsMissing(f"no manifest was written: {'; '.join(faults)}")
        output: dict[str, Any] = {"manifests": written}
        if notes:
            output["manifest_note"] = "; ".join(notes)
        return output

    def _brought(self, job: Job, library: Library) -> Iterator[HashedFile]:
        """What stands in the job's folder there, by what the ledger says."""
        folder = os.fsencode(job.name) + b"/"
        for known in self._known(job, library):
            for _, copies in sorted(known.items()):
                # One place may have several rows: its file came back with another time.
                places = {copy.path: copy for copy in reversed(copies)}
                yield from (
                    _hashed(copy, path.removeprefix(folder))
                    for path, copy in places.items()
                    if path.startswith(folder)
                )

    def _known(
        self, job: Job, library: Library
    ) -> Iterator[Mapping[bytes, Sequence[VerifiedCopy]]]:
        after: bytes | None = None
        while page := self._card_files.of(job.execution_id, after=after, limit=PAGE_FILES):
            yield self._ledger.known(page, library.root)
            after = page[-1].path

    def _write(
        self, library: Library, job: Job, files: Iterable[HashedFile], counted: Counted
    ) -> dict[str, Any]:
        root = library.look()
        folder = None
        if root is not None:
            with root:
                folder = root.find(os.fsencode(job.name))
        if folder is None:
            raise LibraryFault(f"{library.text}/{job.name} is not there any more")
        with folder:
            return self._add(folder, job, files, counted)

    def _add(
        self, folder: Folder, job: Job, files: Iterable[HashedFile], counted: Counted
    ) -> dict[str, Any]:
        added = add_generation(
            folder,
            os.fsencode(job.name.rpartition("/")[2]),
            files,
            creator=self._creator,
            process=Process.TRANSFER,
            at=self._clock.now(),
            counted=counted,
        )
        path = None
        if added.generation is not None:
            path = f"{folder.text}/{shown(MANIFESTS)}/{shown(added.generation.name)}"
        return {
            "path": path,
            "files": counted.listed,
            "left_out_files": len(added.left_out),
            "left_out": [
                f"{shown(path)[:MAX_NAMED_CHARACTERS]}: {why}"
                for path, why in added.left_out[:MAX_NAMED]
            ],
        }


class _Brought:
    """Files that the ledger is asked for anew whenever they are gone through.

    Of a large card they would be too many to hold. has_own: whether there were some among
    them, once they were gone through, that lie in a folder of manifests at the top.
    """

    def __init__(self, ask: Callable[[], Iterator[HashedFile]]) -> None:
        self.has_own = False
        self._ask = ask

    def __iter__(self) -> Iterator[HashedFile]:
        for file in self._ask():
            self.has_own = self.has_own or file.path.split(b"/")[0].lower() == MANIFESTS
            yield file


def _hashed(copy: VerifiedCopy, path: bytes) -> HashedFile:
    file = copy.file
    hashes = {file.hash_name: file.hash, **dict(file.further)}
    return HashedFile(path, file.size_bytes, file.mtime_ns, hashes, copy.verified_at)
