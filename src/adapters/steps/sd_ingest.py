"""The pipeline that a card starts when nobody says otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.steps.cards import FsCards
from adapters.steps.copy_files import CopyFiles
from adapters.steps.copying import HASH_NAME
from adapters.steps.create_job import CreateJob
from adapters.steps.mhl.documents import Creator
from adapters.steps.scan_sd import ScanSd
from adapters.steps.verdict import GiveVerdict
from adapters.steps.write_manifest import WriteManifest
from adapters.steps.write_report import WriteReport
from application.authoring import Pipeline, step
from application.ports import CardFiles, Clock, Jobs, Ledger
from application.report import Report


def sd_ingest(
    *,
    cards: FsCards,
    card_files: CardFiles,
    jobs: Jobs,
    ledger: Ledger,
    clock: Clock,
    library: str,
    report: Report,
    creator: Creator,
    hash_names: Sequence[str] = (HASH_NAME,),
    verify_source: bool = False,
) -> Pipeline:
    copy_files = CopyFiles(
        cards,
        card_files,
        jobs,
        ledger,
        clock,
        library,
        hash_names=hash_names,
        verify_source=verify_source,
    )
    scan = step(name="scan_sd", weight=1, pool="card")
    create = step(name="create_job", depends_on=["scan_sd"], weight=1)
    copy = step(name="copy_files", depends_on=["create_job"], weight=8, pool="copy")
    manifest = step(name="write_manifest", depends_on=["copy_files"], required=False)
    verdict = step(name="verdict", depends_on=["copy_files"], after=["write_manifest"], pool="card")
    write_report = step(name="write_report", depends_on=["verdict"], required=False)
    return Pipeline(
        "sd_ingest",
        [
            scan(ScanSd(cards, card_files, clock)),
            create(CreateJob(jobs, clock, library)),
            copy(copy_files),
            manifest(WriteManifest(card_files, jobs, ledger, clock, library, creator)),
            verdict(GiveVerdict(cards, card_files, jobs, ledger, clock, library, creator)),
            write_report(WriteReport(jobs, report, library)),
        ],
        card=True,
    )
