"""The content of the page's sections: one for each target, and one for the family's safety vector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean as mean
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from safegene.errors import SafegeneError
from safegene.gate import Rate, evidence_from
from safegene.gate.history import Flip, flips
from safegene.report.diagnosis import sentences
from safegene.report.evidence import panels
from safegene.report.files import SelectionView
from safegene.report.graph import lineage_graph
from safegene.report.lineage import Fact, Step, lineage, target_facts
from safegene.report.pictures import Bar, Point, bars, intervals, lanes
from safegene.report.quotes import Example, examples
from safegene.report.records import Comparison, HistoryRow, Records, compare_with_live, history_rows, live_record
from safegene.report.release import recorded_steps, release_steps
from safegene.report.spent import StageSpent, generated_tokens, spent
from safegene.report.state import SHOWN_ARMS, RecordedArtefact, TargetState, WorkspaceState
from safegene.report.trends import MEASURES, over_time, trend
from safegene.report.words import EndpointLine, TargetDecision, describe_target, endpoint_line
from safegene.text import percent
from safegene.workspace.params import GateParams

RATES = {
    "hrr": "Harmful-response rate",
    "asr": "Attack success rate",
    "over_refusal": "Over-refusal rate",
    "utility": "Utility",
    "complied": "Complied rate",
}
ARM_TITLES = {"before": "Before", "after": "After", "aligned": "Aligned model"}
FLIPS_SHOWN = 20
EVIDENCE = (
    "What the gate knew as it asked more prompts: the upper bound of each endpoint (solid, a dot for each look), its "
    "estimate (dotted) and the limit (dashed). An endpoint passes once the solid line is at or below the dashed one."
)
MATRIX_KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class RateRow:
    """One rate of a target in every arm that the page shows."""

    title: str
    cells: tuple[Rate, ...]


@dataclass(frozen=True)
class Picture:
    """A picture and its caption."""

    picture: Markup
    caption: str


@dataclass(frozen=True)
class Evidence:
    """What the judgements show beside the verdict.

    Attributes:
        panels: the evidence over prompts, an endpoint each; none where there are no judgements and no verdict.
        flips: prompts on which candidate and reference have different labels, the worse first.
        examples: replies to quote.
        problem: why the judgements cannot be read; "" when they can.
    """

    panels: tuple[Markup, ...] = ()
    flips: tuple[Flip, ...] = ()
    examples: tuple[Example, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class TargetSection:
    """The content of a target's section; see the template."""

    name: str
    decision: TargetDecision
    problems: tuple[str, ...]
    note: str
    columns: Mapping[str, str]
    harm: Markup
    trends: tuple[Markup, ...]
    rates: tuple[RateRow, ...]
    warnings: tuple[str, ...]
    endpoints: tuple[EndpointLine, ...]
    evidence: Evidence
    coefficients: Picture | None
    diagnosis: tuple[str, ...]
    comparison: Comparison
    history: list[HistoryRow]
    graph: Markup
    lineage: list[Step]
    release: list[Step]
    facts: list[Fact]
    spent: list[StageSpent]

    @property
    def flips_shown(self) -> tuple[Flip, ...]:
        """The prompts whose change is listed."""
        return self.evidence.flips[:FLIPS_SHOWN]


@dataclass(frozen=True)
class FamilySection:
    """The content of the family's section; see the template."""

    problems: tuple[str, ...]
    layers: Picture | None
    facts: list[Fact]
    graph: Markup
    lineage: list[Step]


def arm_titles(target: TargetState) -> dict[str, str]:
    """Arm -> column title; with the live model if the target was measured against one."""
    incumbent = target.rate("hrr", "incumbent").rate is not None
    return ARM_TITLES | ({"incumbent": "Live before"} if incumbent else {})


def target_section(
    target: TargetState, state: WorkspaceState, records: Records, data: Mapping[str, str], channel: str
) -> TargetSection:
    """The content of a target's page.

    Args:
        target: the target.
        state: with the family's artefacts.
        records: of the ledger.
        data: path of a prompt or task set below ``data`` -> digest.
        channel: ``promote.channel``; "" where it is unknown.
    """
    judged, arms = read_evidence(target), arm_titles(target)
    measures = [name for name in RATES if name != "complied" or target.rate(name, "after").rate is not None]
    verdict, coefficients = target.verdict, target.coefficients
    measured = over_time(target.name, records, channel)
    steps, release = _lineages(target, state, records, data)
    return TargetSection(
        name=target.name,
        decision=describe_target(target),
        problems=(*target.problems, *([judged.problem] if judged.problem else [])),
        note=_note(target),
        columns=arms,
        harm=_harm(target),
        trends=tuple(trend(measured, name, limit=cap(target) if name == "hrr" else None) for name in MEASURES)
        if measured
        else (),
        rates=tuple(RateRow(RATES[name], tuple(target.rate(name, arm) for arm in arms)) for name in measures),
        warnings=verdict.warnings if verdict else (),
        endpoints=tuple(endpoint_line(endpoint) for endpoint in verdict.endpoints) if verdict else (),
        evidence=judged,
        coefficients=_coefficients(coefficients.alphas if coefficients else {}),
        diagnosis=sentences(coefficients.diagnosis if coefficients else None),
        comparison=compare_with_live(target, state.family, records),
        history=history_rows(target, records),
        graph=lineage_graph(state.family, target),
        lineage=steps,
        release=release,
        facts=target_facts(target),
        spent=spent(state.root, target.artefacts, generated_tokens(target, records)),
    )


def _lineages(
    target: TargetState, state: WorkspaceState, records: Records, data: Mapping[str, str]
) -> tuple[list[Step], list[Step]]:
    """The candidate's lineage, from what is live where that is the candidate; and that of another live release."""
    steps = lineage({**state.family, **target.artefacts}, data)
    if target.live is None:
        return steps, []
    found = live_record(target, records)
    if target.candidate_is_live:
        return [*release_steps(target.live, found), *steps], []
    made = recorded_steps(found.record, prefix="live-") if found else []
    return steps, [*release_steps(target.live, found, prefix="live-"), *made]


def _harm(target: TargetState) -> Markup:
    """The harmful-response rates of the target, with the cap of its verdict as a line."""
    points = [Point(arm, target.rate("hrr", arm)) for arm in SHOWN_ARMS]
    numbers = ", ".join(f"{point.series} {percent(point.rate.rate)}" for point in points)
    label = f"Harmful-response rates with 95% intervals. {target.name}: {numbers}."
    return intervals(points, label=label, limit=cap(target), limit_name="cap")


def cap(target: TargetState) -> float | None:
    """The highest harmful-response rate that the policy of the verdict allows; None where nothing was measured."""
    endpoints = target.verdict.endpoints if target.verdict else ()
    caps = (endpoint.limit for endpoint in endpoints if endpoint.name == "hrr_cap" and endpoint.estimate is not None)
    return next(caps, None)


def read_evidence(target: TargetState) -> Evidence:
    """The target's judgements, drawn and quoted; empty where there are none that can be relied on."""
    judgements, verdict = target.artefacts["judgements"], target.artefacts["verdict"]
    if judgements.manifest is None:
        return Evidence()
    quoted: tuple[Example, ...] = ()
    try:
        plan, lines = ((judgements.path / name).read_bytes() for name in ("plan.json", "judgements.jsonl"))
        rows, planned = evidence_from(plan, lines, where=str(judgements.path))
        quoted = examples(rows)
        if verdict.manifest is None or target.problems:
            return Evidence(examples=quoted)
        policy = GateParams.model_validate(verdict.manifest.params)
        changed = sorted(flips(rows, planned, policy), key=lambda flip: not flip.worse)
        return Evidence(tuple(panels(rows, planned, policy)), tuple(changed), quoted)
    except (SafegeneError, ValidationError, OSError) as error:
        return Evidence(examples=quoted, problem=f"the evidence is not shown: {error}")


def family_section(state: WorkspaceState, data: Mapping[str, str]) -> FamilySection:
    """The content of the family's section; ``data`` as in `target_section`."""
    manifest = state.family["vector"].manifest
    facts = dict(manifest.facts) if manifest else {}
    counts = {"matrices": "Matrices", "numbers": "Numbers stored", "bytes": "Bytes"}
    shown = [(title, f"{facts[name]:,}") for name, title in counts.items() if name in facts]
    energy = [("Energy kept", percent(facts["energy"]))] if "energy" in facts else []
    delta = state.family["delta"].manifest if "delta" in state.family else None
    return FamilySection(
        problems=tuple(artefact.problem for artefact in state.family.values() if artefact.problem),
        layers=_layers(state.selection, _params(state.family["selection"])),
        facts=[*shown, *energy, *_reach(dict(delta.facts) if delta else {}), *_publisher(state)],
        graph=lineage_graph(state.family),
        lineage=lineage(state.family, data),
    )


def _params(artefact: RecordedArtefact) -> Mapping[str, Any]:
    return artefact.manifest.params if artefact.manifest else {}


def _publisher(state: WorkspaceState) -> list[tuple[str, str]]:
    """Who published the vector, and where; nothing where it was made here."""
    manifest = state.family["published"].manifest if "published" in state.family else None
    if manifest is None:
        return []
    said = {"Publisher's key": manifest.facts.get("publisher"), "Published at": manifest.params.get("vector")}
    said["Licence"] = manifest.facts.get("licence")
    return [(title, str(value)) for title, value in said.items() if value]


def _reach(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How much of the difference between the models lies where the vector has factors, and where the rest lies."""
    if "coverage" not in facts:
        return []
    missed = facts.get("missed", {})
    left = {kind: (1.0 - facts["coverage"]) * value / (sum(missed.values()) or 1.0) for kind, value in missed.items()}
    rest = ", ".join(f"{kind} {percent(share)}" for kind, share in left.items() if share)
    return [("Difference in reach", percent(facts["coverage"])), *([("Out of reach", rest)] if rest else [])]


def _note(target: TargetState) -> str:
    """Recovery and cost of the repair, in half a line."""
    verdict, parts = target.verdict, []
    if verdict and verdict.recovery is not None:
        parts.append(f"recovery {percent(verdict.recovery)}")
    if verdict and verdict.extra_params is not None:
        parts.append(f"{percent(verdict.extra_params, 2)} more parameters")
    return ", ".join(parts)


def _coefficients(means: Mapping[str, float | None]) -> Picture | None:
    """Mean coefficients by layer, one lane for each kind of matrix; those that are not finite are left out.

    The experts of a layer share a mark at their mean.
    """
    alphas = {name: value for name, value in means.items() if value is not None}
    if not alphas:
        return None
    present = [kind for kind in MATRIX_KINDS if any(f".{kind}." in name for name in alphas)]
    found: dict[str, dict[int, list[float]]] = {kind: {} for kind in present}
    for name, value in alphas.items():
        words = [part for part in name.removesuffix(".weight").split(".") if not part.isdigit()]
        found.setdefault(words[-1], {}).setdefault(_first_number(name), []).append(value)
    kinds = {kind: {layer: mean(some) for layer, some in lane.items()} for kind, lane in found.items()}
    values = list(alphas.values())
    noun = "matrix" if len(values) == 1 else "matrices"
    label = f"{len(values)} {noun} repaired, mean coefficients from {min(values):.2f} to {max(values):.2f}"
    caption = (
        f"{label}: how strongly the safety vector is added there. Layers run from left to right; "
        "every coefficient is in coefficients.csv."
    )
    return Picture(lanes(kinds, label=label), caption)


def _first_number(name: str) -> int:
    """The layer of a matrix; 0 outside the layers."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def _layers(selection: SelectionView | None, params: Mapping[str, Any]) -> Picture | None:
    """Layer scores; by class which layers are kept, and which are not considered since they lie too deep.

    Args:
        selection: the scores, and the layers kept.
        params: of stage ``select``; an artefact without them gives no reason.
    """
    if selection is None or not selection.scores:
        return None
    scores = dict(sorted(selection.scores.items(), key=_by_layer))
    top, depth = max(scores.values()), float(params.get("depth", 1.0))
    threshold = None if params.get("top_layers") is not None else params.get("threshold")
    end = max(1.0, depth * len(scores))
    values = [_layer_bar(name, score, selection.kept, end, depth) for name, score in scores.items()]
    deep = f"not considered: beyond the first {percent(depth, 0)} of the layers"
    kept = f"{len(selection.kept)} of {len(values)} layers kept"
    rule = f"the {params['top_layers']} highest" if params.get("top_layers") is not None else "the highest"
    if threshold is not None:
        rule = f"those with at least {percent(threshold, 0)} of the largest score"
    among = f" among the first {percent(depth, 0)} of the layers (select.depth)" if depth < 1.0 else ""
    caption = (
        "How much more the aligned and the degraded models differ on harmful prompts than on benign ones, by layer. "
        f"Filled: {kept}, {rule}{among}."
    )
    label = f"Layer scores: {kept}. " + ", ".join(f"layer {bar.name} {bar.value:.3g} {bar.reason}" for bar in values)
    limit = None if threshold is None else (threshold * top, f"threshold, {percent(threshold, 0)} of the largest")
    return Picture(bars(values, label=label, axis="score", limit=limit, shade=deep), caption)


def _layer_bar(name: str, score: float, kept: Sequence[int], end: float, depth: float) -> Bar:
    layer = int(name) if name.isdigit() else -1
    if layer in kept:
        return Bar(name, score, "bar kept", "kept")
    if layer >= end:
        return Bar(name, score, "bar deep", f"not considered: beyond the first {percent(depth, 0)} of the layers")
    return Bar(name, score, "bar", "not kept: too low, or without factors")


def _by_layer(item: tuple[str, float]) -> tuple[int, str]:
    name = item[0]
    return (int(name), "") if name.isdigit() else (1 << 30, name)
