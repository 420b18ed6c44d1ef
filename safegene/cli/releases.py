"""Commands on candidates and releases: promote, roll back, resolve, merge, export."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from safegene.cli.console import Target, console, ledger_committed, manual_run, write_json
from safegene.errors import ParamsError, PromotionRefused
from safegene.text import visible
from safegene.workspace.layout import Workspace

EXIT = {"pass": 0, "override": 0, "fail": 3, "inconclusive": 4, "pending": 4}
"""Outcome of an attempt, or of a dry run of one -> exit code, 1 of any other; ``pending`` waits for signatures."""

Unverified = Annotated[
    bool, typer.Option("--unverified", help="Write it although its verdict is no pass, or although it has none.")
]
Check = Annotated[
    bool,
    typer.Option("--check", help="Load it in a fresh process with public tools and compare logits; exit 1 if off."),
]


def promote(
    target: Target,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen.")] = False,
    override: Annotated[
        str | None, typer.Option(metavar="REASON", help="Promote although the verdict is no pass; needs an approver.")
    ] = None,
    expires: Annotated[str | None, typer.Option(metavar="DATE", help="Last day of the override, YYYY-MM-DD.")] = None,
    responsible: Annotated[str | None, typer.Option(help="The responsible person; default: Git's user.")] = None,
    change: Annotated[str | None, typer.Option(help="What changed since the last release, for the record.")] = None,
    incident: Annotated[str | None, typer.Option(help="Link to an incident, for the record.")] = None,
) -> None:
    """Put the candidate live if its verdict allows it, and record the attempt.

    Exit 3 refused, 4 inconclusive, or waiting for the signatures of others; --dry-run exits with the same codes.
    """
    from safegene.ledger.record_fields import Stated
    from safegene.pipeline.stages.promote import promote as put_live

    if (override is None) != (expires is None):
        raise ParamsError("expected --override REASON and --expires DATE together, got one of them")
    ws, stated = Workspace.find(), Stated(responsible, change, incident)
    given = (override, expires) if override is not None and expires is not None else None
    with nullcontext() if dry_run else ledger_committed(ws, f"promote {target}"):
        promotion = put_live(ws, target, run=manual_run(ws), dry_run=dry_run, override=given, stated=stated)
        console.print(promotion.message, soft_wrap=True)
    if code := EXIT.get(promotion.outcome, 1):
        raise typer.Exit(code)


def approve(
    record: Annotated[str, typer.Argument(help="The record that waits: its number or digest.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be approved.")] = False,
) -> None:
    """Sign what somebody else promoted; the last signature needed puts it live. Exit 4: more are needed."""
    from safegene.pipeline.stages.promote import approve as sign
    from safegene.pipeline.stages.promote import pending

    ws = Workspace.find()
    for line in pending(ws, record).lines:
        console.print(escape(visible(line)), soft_wrap=True)
    if dry_run:
        return
    with ledger_committed(ws, f"approve {record}"):
        promotion = sign(ws, record)
        console.print(promotion.message, soft_wrap=True)
    if code := EXIT.get(promotion.outcome, 1):
        raise typer.Exit(code)


def reject(
    record: Annotated[str, typer.Argument(help="The record that waits: its number or digest.", show_default=False)],
    reason: Annotated[str, typer.Option(help="Why; it goes into the record.")],
) -> None:
    """Refuse what somebody promoted and others have not approved yet; an approver or the author may."""
    from safegene.pipeline.stages.promote import reject as refuse

    if not reason.strip() or not reason.isprintable():
        raise ParamsError(f"expected a reason in printable words, got {reason.encode(errors='replace')!r}")
    ws = Workspace.find()
    with ledger_committed(ws, f"reject {record}"):
        console.print(escape(visible(refuse(ws, record, reason).message)), soft_wrap=True)


def rollback(
    target: Target,
    to: Annotated[str | None, typer.Option(help="Record to go back to (default: the one before).")] = None,
    channel: Annotated[str | None, typer.Option(help="Default: promote.channel.")] = None,
) -> None:
    """Put live again what was live before; it is verified again, and the change is recorded."""
    from safegene.pipeline.stages.promote import rollback as go_back

    ws = Workspace.find()
    with ledger_committed(ws, f"rollback {target}"):
        promotion = go_back(ws, target, to=to, channel=channel, run=manual_run(ws))
        console.print(promotion.message, soft_wrap=True)


def resolve(
    target: Target, channel: Annotated[str | None, typer.Argument(help="Default: promote.channel.")] = None
) -> None:
    """Print where a server finds what is live and its digest, every byte verified (JSON)."""
    from safegene.pipeline.stages.promote import resolve as resolve_target

    write_json(asdict(resolve_target(Workspace.find(), target, channel=channel)))


def merge(
    target: Target,
    out: Annotated[Path, typer.Argument(help="A new folder for the merged checkpoint.")],
    dtype: Annotated[str, typer.Option(help="auto (as the target is stored), float32 or bfloat16.")] = "auto",
    lossy: Annotated[bool, typer.Option("--lossy", help="Merge even if rounding erases much of the change.")] = False,
    check: Check = False,
    unverified: Unverified = False,
) -> None:
    """Write the target with its repair merged into the weights (and a LoRA's own change); print what rounding left."""
    from safegene.pipeline.export import merge as write

    ws = Workspace.find()
    ws.require_target(target)
    folders = {"aligned": ws.aligned, "target": ws.checkpoint(target), "candidate": ws.candidate(target)}
    verdict = _verdict_of(ws, target, unverified=unverified)
    merged = write(**folders, out=out, dtype=dtype, lossy=lossy, verdict=verdict, limits=ws.params.fetch)
    console.print(f"{out}: {merged.dtype}, {merged.survival:.1%} of the change survives rounding", soft_wrap=True)
    if check:
        from safegene.pipeline.check_export import check_merged

        found = check_merged(ws.candidate(target), out, target=folders["target"], aligned=ws.aligned)
        console.print(found.words, soft_wrap=True)


def export(
    target: Target,
    out: Annotated[Path, typer.Argument(help="A new folder for the adapter.")],
    check: Check = False,
    unverified: Unverified = False,
) -> None:
    """Write the repair as a PEFT adapter with its model card; it loads on the unmodified target."""
    from safegene.checkpoints.record import read_record
    from safegene.pipeline.export import export as write

    ws = Workspace.find()
    ws.require_target(target)
    verdict = _verdict_of(ws, target, unverified=unverified)
    checkpoint = ws.checkpoint(target)
    own = checkpoint if read_record(checkpoint).kind == "lora" else None
    base, limits = ws.aligned if own else checkpoint, ws.params.fetch
    adapter = write(
        ws.candidate(target), out=out, target=target, verdict=verdict, loads_on=base, fine_tune=own, limits=limits
    )
    console.print(f"{out}: {adapter.extra_parameters:,} extra parameters, loads on {adapter.loads_on}", soft_wrap=True)
    console.print(adapter.serving, soft_wrap=True)
    if check:
        from safegene.pipeline.check_export import check_adapter

        found = check_adapter(ws.candidate(target), out, target=checkpoint, aligned=ws.aligned)
        console.print(found.words, soft_wrap=True)


def _verdict_of(ws: Workspace, target: str, *, unverified: bool) -> Path | None:
    """The artefact of the target's verdict; None where there is none. What is no pass is said.

    Raises:
        PromotionRefused: the verdict is no pass, or there is none, and the caller did not ask for it all the same.
    """
    from safegene.gate import VerdictFile
    from safegene.workspace.manifest import NAME

    folder = ws.verdict(target)
    there = (folder / NAME).is_file()
    path = folder / "verdict.json"
    outcome = VerdictFile.parse(path.read_bytes(), where=str(path)).outcome if there else "not there yet"
    if outcome != "pass" and not unverified:
        raise PromotionRefused(
            f"expected a repair of {target} that passed the gate, got one whose verdict is {outcome}, in {folder}",
            remedy=f"see why: `safegene gate show {target}`; --unverified writes it all the same, for a study",
        )
    if outcome != "pass":
        console.print(f"[red]unverified[/] {target}: its verdict is {outcome}; this is no release", soft_wrap=True)
    return folder if there else None
