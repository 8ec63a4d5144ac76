"""The steps after the copy, on the rig that the others run on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from adapters.steps.mhl.documents import Creator
from adapters.steps.verdict import GiveVerdict
from adapters.steps.write_manifest import WriteManifest
from adapters.steps.write_report import WriteReport
from application.authoring import StepContext
from application.report import Report
from tests.adapters.steps.conftest import NoonClock, Rig
from tests.cards import files_below

CREATOR = Creator("cart-1", "Rushes", "0.1.0")


class Finishing(Rig):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.contexts: list[StepContext] = []

    def _context(self, name: str, execution_id: int, data: dict[str, Any]) -> StepContext:
        self.contexts.append(self.context(name, execution_id, data))
        return self.contexts[-1]

    def copied(self, execution_id: int = 1, **more: Any) -> dict[str, Any]:
        """Everything up to the copy has been done."""
        data = self.ready(execution_id) | more
        return data | self.copy(execution_id, data)

    def manifest(self, data: dict[str, Any], execution_id: int = 1) -> dict[str, Any]:
        ports = (self.card_files, self.jobs, self.ledger, NoonClock())
        step = WriteManifest(*ports, str(self.library), CREATOR)
        return data | step(self._context("write_manifest", execution_id, data))

    def judge(self, data: dict[str, Any], execution_id: int = 1) -> dict[str, Any]:
        ports = (self.cards, self.card_files, self.jobs, self.ledger, NoonClock())
        step = GiveVerdict(*ports, str(self.library), CREATOR)
        return data | step(self._context("verdict", execution_id, data))

    @property
    def page(self) -> Report:
        return Report(self.jobs, self.card_files, self.ledger)

    def report(self, data: dict[str, Any], execution_id: int = 1) -> dict[str, Any]:
        step = WriteReport(self.jobs, self.ledger, self.page, str(self.library))
        return data | step(self._context("write_report", execution_id, data))

    def taken_in(self, execution_id: int = 1) -> dict[str, Any]:
        """A card, from the scan to the report."""
        data = self.manifest(self.copied(execution_id), execution_id)
        return self.report(self.judge(data, execution_id), execution_id)

    def arrived_footage(self) -> list[bytes]:
        """What came from cards: manifests and reports aside."""
        return list(files_below(self.library).values())

    def arrived_as(self, path: str) -> str:
        return os.path.join(self.job, path)
