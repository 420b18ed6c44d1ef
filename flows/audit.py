"""Flow ``audit``: verify the ledger and every artefact that it names."""

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.schedule import cancel_missed_runs
from flows.shown import run_name, tag_run
from flows.tasks import exclusive
from safegene.errors import LedgerError
from safegene.workspace.layout import Workspace


@flow(name="audit", flow_run_name=run_name, persist_result=False)
def audit(root: str) -> None:
    """Verify, and show the result in Prefect's user interface.

    Raises:
        LedgerError: there are problems; names the first.
    """
    from safegene.ledger.audit import audit_workspace

    root = str(Path(root).resolve())
    cancel_missed_runs()
    tag_run(root, [])
    with exclusive(root):  # a run removes artefacts before it makes them again
        report = audit_workspace(Workspace(Path(root)))
    lines = [f"- {problem}" for problem in report.problems] or [report.summary]
    create_markdown_artifact(markdown="\n".join(lines), key="safegene-audit", description="Audit")
    if report.problems:
        raise LedgerError(
            f"expected a ledger and artefacts without problems, got {len(report.problems)}: {report.problems[0]}",
            remedy="`safegene audit verify` lists all of them",
        )
