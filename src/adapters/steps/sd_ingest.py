"""The pipeline that a card starts when nobody says otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.steps.awake import Awake
from adapters.steps.cards import FsCards
from adapters.steps.clip_steps import CheckClips, as_family
from adapters.steps.copy_files import CopyFiles
from adapters.steps.copying import HASH_NAME
from adapters.steps.create_job import CreateJob
from adapters.steps.mhl.documents import Creator
from adapters.steps.scan_sd import ScanSd
from adapters.steps.verdict import GiveVerdict
from adapters.steps.write_manifest import WriteManifest
from adapters.steps.write_report import WriteReport
from application.authoring import AuthoredStep, Pipeline, step
from application.ports import CardFiles, Clock, Executions, Jobs, Ledger
from application.report import Report
from domain.places import DEFAULT_LAYOUT


def sd_ingest(
    *,
    cards: FsCards,
    card_files: CardFiles,
    jobs: Jobs,
    ledger: Ledger,
    clock: Clock,
    executions: Executions,
    library: str,
    report: Report,
    creator: Creator,
    hash_names: Sequence[str] = (HASH_NAME,),
    verify_source: bool = False,
    clip_steps: Sequence[AuthoredStep] = (),
    layout: str = DEFAULT_LAYOUT,
) -> Pipeline:
    """``clip_steps``: what is done with each clip as soon as it stands in the library.

    Raises ``InvalidDefinition``.
    """
    awake = Awake()
    families = [as_family(each) for each in clip_steps]
    copy_files = CopyFiles(
        cards,
        card_files,
        jobs,
        ledger,
        clock,
        library,
        hash_names=hash_names,
        verify_source=verify_source,
        clip_families=[each.spec.name for each in families],
    )
    scan = step(name="scan_sd", weight=1, pool="card")
    create = step(name="create_job", depends_on=["scan_sd"], weight=1)
    copy = step(
        name="copy_files",
        depends_on=["create_job"],
        weight=8,
        pool="copy",
        spawns=[each.spec.name for each in families],
    )
    manifest = step(name="write_manifest", depends_on=["copy_files"], required=False)
    verdict = step(name="verdict", depends_on=["copy_files"], after=["write_manifest"], pool="card")
    write_report = step(name="write_report", depends_on=["verdict"], required=False)
    steps = [
        scan(awake.during(ScanSd(cards, card_files, jobs, ledger, clock, library))),
        create(CreateJob(jobs, clock, library, layout)),
        copy(awake.during(copy_files)),
        *families,
        manifest(WriteManifest(card_files, jobs, ledger, clock, library, creator)),
        verdict(
            awake.during(GiveVerdict(cards, card_files, jobs, ledger, clock, library, creator))
        ),
        write_report(WriteReport(jobs, ledger, report, library)),
    ]
    required = [each.spec.name for each in clip_steps if each.spec.required]
    if required:
        check = step(
            name="check_clips",
            after=[*(f"{name}:*" for name in required), "verdict", "write_report"],
        )
        steps.append(check(CheckClips(executions, required)))
    return Pipeline("sd_ingest", steps, card=True)
