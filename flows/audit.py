"""Flow ``audit``: verify the ledger and every artefact that it names."""

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.tasks import exclusive
from safegene.errors import LedgerError
from safegene.workspace.layout import Workspace


@flow(name="audit", flow_run_name="audit {root}", persist_result=False)
def audit(root: str) -> None:
    """Verify, and put what was found where Prefect's UI shows it.

    Raises:
        LedgerError: something is broken; names the first of it.
    """
    from safegene.ledger.audit import audit_workspace

    with exclusive(root):  # a run takes artefacts away before it makes them again
        found = audit_workspace(Workspace(Path(root)))
    lines = [f"- {problem}" for problem in found.problems] or [found.summary]
    create_markdown_artifact(markdown="\n".join(lines), key="safegene-audit", description="Audit")
    if found.problems:
        raise LedgerError(f"expected a sound ledger, got {len(found.problems)} problems: {found.problems[0]}")
