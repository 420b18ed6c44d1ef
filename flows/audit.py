"""Flow ``audit``: verify the ledger and every artefact that it names."""

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from safegene.errors import LedgerError
from safegene.workspace import Workspace


@flow(name="audit", flow_run_name="audit {root}", persist_result=False)
def audit(root: str) -> None:
    """Verify, and put what was found where Prefect's UI shows it.

    Raises:
        LedgerError: something is broken; names the first of it.
    """
    from safegene.audit import verify_workspace

    findings = [str(finding) for finding in verify_workspace(Workspace(Path(root)))]
    text = "\n".join(f"- {finding}" for finding in findings) or "Every record and artefact verified."
    create_markdown_artifact(markdown=text, key="safegene-audit", description="Audit")
    if findings:
        raise LedgerError(f"expected a ledger without findings, got {len(findings)}: {findings[0]}")
