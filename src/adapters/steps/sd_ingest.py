"""The pipeline that a card starts when nobody says otherwise."""

from __future__ import annotations

from adapters.steps.cards import FsCards
from adapters.steps.copy_files import CopyFiles
from adapters.steps.create_job import CreateJob
from adapters.steps.scan_sd import ScanSd
from application.authoring import Pipeline, step
from application.ports import CardFiles, Clock, Jobs, Ledger


def sd_ingest(
    *,
    cards: FsCards,
    card_files: CardFiles,
    jobs: Jobs,
    ledger: Ledger,
    clock: Clock,
    library: str,
) -> Pipeline:
    scan = step(name="scan_sd", weight=1, pool="card")
    create = step(name="create_job", depends_on=["scan_sd"], weight=1)
    copy = step(name="copy_files", depends_on=["create_job"], weight=8, pool="copy")
    return Pipeline(
        "sd_ingest",
        [
            scan(ScanSd(cards, card_files, clock)),
            create(CreateJob(jobs, clock, library)),
            copy(CopyFiles(cards, card_files, jobs, ledger, clock, library)),
        ],
        card=True,
    )
