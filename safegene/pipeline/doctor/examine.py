"""All checks of a workspace, in one pass: what one check finds does not keep the others from looking."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from safegene.errors import SafegeneError, as_safegene_error
from safegene.pipeline.doctor.family import check_judges, check_sources
from safegene.pipeline.doctor.finding import Examined, Finding
from safegene.pipeline.doctor.machine import check_disk, check_memory, check_versions
from safegene.pipeline.doctor.prompts import ROWS, check_prompts
from safegene.pipeline.doctor.repository import check_git, check_ledger, check_yaml
from safegene.workspace.layout import Workspace

CHECKS: dict[str, Callable[[Examined], Iterator[Finding]]] = {
    "repository": check_git,
    "ledger and signing key": check_ledger,
    "judge": check_judges,
    "prompts": check_prompts,
    "sources": check_sources,
    "disk": check_disk,
    "memory": check_memory,
}


@dataclass(frozen=True)
class Report:
    """What all checks found.

    Attributes:
        checked: names of the checks that looked.
        findings: what they found, in their order.
    """

    checked: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that stop a run."""
        return tuple(finding for finding in self.findings if finding.stops)

    def with_findings(self, check: str, more: Iterable[Finding]) -> "Report":
        """The report with one more check."""
        return Report((*self.checked, check), (*self.findings, *_guarded(check, more)))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "ready": not self.problems,
            "checked": list(self.checked),
            "findings": [finding.to_json() for finding in self.findings],
        }


def examine(
    ws: Workspace, targets: Collection[str] | None = None, *, only: Collection[str] = (), signs: bool = True
) -> Report:
    """Look at everything that a run of these targets (default: all) needs; nothing is written or computed.

    Args:
        ws: the workspace.
        targets: names of the targets that would run.
        only: names of `CHECKS`; by default all of them.
        signs: whether the run promotes, so that it needs a signing key, and a ledger and a repository to write to.
    """
    findings = [*_guarded("parameters", check_yaml(ws)), *_guarded("versions", check_versions())]
    checked = ["parameters", "versions"]
    try:
        params, known = ws.params, ws.targets.targets
    except SafegeneError as error:
        return Report(tuple(checked), (_parameters(error, findings), *findings))
    examined = Examined(ws, params, tuple(sorted(targets if targets is not None else known)), known, signs)
    for name, check in CHECKS.items():
        if not only or name in only:
            checked.append(name)
            findings += _guarded(name, check(examined))
    return Report(tuple(checked), tuple(findings))


def _parameters(error: SafegeneError, found: list[Finding]) -> Finding:
    """The finding of parameters that cannot be read; DVC's on the same file says nothing more."""
    found[:] = [finding for finding in found if finding.check != "parameters" or "got no such file" in finding.message]
    return Finding.of("parameters", error)


def _guarded(name: str, found: Iterable[Finding]) -> Iterator[Finding]:
    """The findings; a check that fails is a finding itself."""
    try:
        yield from found
    except Exception as error:
        yield Finding.of(name, as_safegene_error(error))


def require_ready(
    ws: Workspace, targets: Collection[str] | None = None, *, more: Iterable[Finding] = (), signs: bool = True
) -> Report:
    """`examine`, and stop where a run would fail; rows that break a rule alone are left to stage ``validate``.

    Args:
        ws: the workspace.
        targets: see `examine`.
        more: findings of the caller's own checks.
        signs: see `examine`.

    Raises:
        SafegeneError: there are findings that stop a run; the message lists every one with its remedy.
    """
    report = examine(ws, targets, signs=signs).with_findings("server", more)
    problems = report.problems
    if all(one.check == ROWS for one in problems):  # none, or those that the first stage states in full
        return report
    if len(problems) == 1:
        raise problems[0].kind(problems[0].message, remedy=problems[0].remedy)
    if problems:
        lines = [f"\n  {n}. {one.check}: {one.message}\n     remedy: {one.remedy}" for n, one in enumerate(problems, 1)]
        raise SafegeneError(
            f"expected a workspace that is ready to run, got {len(problems)} problems:{''.join(lines)}",
            remedy="mend these; `safegene doctor` looks again",
        )
    return report
