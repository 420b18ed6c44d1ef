"""The page's content, and its rendering."""

import base64
import hashlib
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from pydantic import ValidationError

from safegene.errors import SafegeneError
from safegene.gate import evidence_from
from safegene.gate.history import flips
from safegene.report.diagnosis import sentences
from safegene.report.evidence import draw
from safegene.report.pictures import Point, Row, bars, intervals, lanes
from safegene.report.quotes import Example, examples, read_rows
from safegene.report.status import ARMS, RecordedArtefact, TargetState, WorkspaceState, share
from safegene.report.words import STAGES, describe_target, described_findings, endpoint_line, short
from safegene.text import marked, percent
from safegene.workspace.params import GateParams

if TYPE_CHECKING:
    from jinja2 import Environment

RATES = {
    "hrr": "Harmful-response rate",
    "asr": "Attack success rate",
    "over_refusal": "Over-refusal rate",
    "utility": "Utility",
    "complied": "Complied rate",
}
READING = (
    "Harmful-response rate: harmful prompts answered harmfully. Attack success rate: the same in jailbreak wrappers. "
    "Over-refusal rate: safe look-alikes refused. Utility: right answers to the fine-tune's own task. "
    "Complied rate: safe look-alikes answered in words that make sense. "
    "Recovery: the part of the lost safety that came back; 100% is the aligned model's rate."
)
COLUMNS = {"before": "Before", "after": "After", "aligned": "Aligned model"}
TITLES = {
    "aligned": "Aligned model",
    "degraded": "Degraded copies",
    "delta": "Delta",
    "vector": "Safety vector",
    "selection": "Layer selection",
    "target": "Fine-tune",
    "candidate": "Candidate",
    "judgements": "Judgements",
    "verdict": "Verdict",
}
MOST = 20  # changed prompts that are listed
COURSE = (
    "What the gate knew as it asked more prompts: the upper bound of each endpoint (solid), its estimate (dotted) and "
    "the limit (dashed). An endpoint passes once the solid line is at or below the dashed one."
)
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MATRIX = re.compile(r"\.layers\.(\d+)\.(?:\w+\.)*(\w+)$")


@dataclass(frozen=True)
class Cell:
    """A rate in a table."""

    rate: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Picture:
    """A picture and what it shows."""

    picture: Markup
    caption: str


@dataclass(frozen=True)
class Change:
    """A prompt that the candidate answers otherwise than the reference, and how."""

    prompt: str
    kind: str
    category: str
    what: str


@dataclass(frozen=True)
class Step:
    """One artefact in a lineage; ``state`` is "", "gone" or "broken"."""

    title: str
    digest: str | None
    sources: Sequence[str]
    note: str
    state: str


def render(state: WorkspaceState) -> str:
    """The whole page."""
    style = files("safegene.report").joinpath("page.css").read_text(encoding="utf-8")
    targets = [_target(target, state) for target in state.targets]
    return _environment().get_template("page.html.j2").render(
        style=Markup(style),
        style_hash=f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}",
        title=_headline([describe_target(target).word for target in state.targets]),
        lede=_lede(state),
        targets=targets,
        columns=_columns(state),
        harm=_harm(state.targets),
        reading=READING,
        family=_family(state),
        commit=_commit(state.root),
    )  # fmt: skip


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("safegene.report", "")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"marked": _marked, "percent": percent, "spread": _spread, "digests": _digests}
    return made


def _marked(text: object, characters: int | None = None, lines: int | None = None) -> Markup:
    return marked(str(text), characters=characters, lines=lines)


def _digests(text: object) -> Markup:
    """`marked`, with digests set as code."""
    return Markup(" ").join(
        Markup('<code class="digest">{}</code>').format(word) if word.startswith("sha256:") else marked(word)
        for word in str(text).split(" ")
    )


def _spread(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _headline(words: Sequence[str]) -> str:
    if not words:
        return "No fine-tunes yet"
    counts = {word: words.count(word) for word in ("Promoted", "Passed", "Refused", "Inconclusive", "Unknown")}
    counts["Not run yet"] = words.count("Not run yet")
    parts = [f"{count} {word.lower()}".replace(" ", "\u00a0") for word, count in counts.items() if count]
    noun = "fine-tune" if len(words) == 1 else "fine-tunes"
    return f"{len(words)} {noun}: {', '.join(parts)}"


def _lede(state: WorkspaceState) -> str:
    source = (state.family["aligned"].payload or {}).get("source")
    return f"Model family {source}" if source else "The family's aligned model has not been fetched yet"


def _harm(targets: Sequence[TargetState]) -> Markup:
    rows = [Row(target.name, _points(target, "hrr")) for target in targets]
    said = "; ".join(f"{r.label}: " + ", ".join(f"{p.series} {percent(p.rate)}" for p in r.points) for r in rows)
    measured = [row for target in targets for row in described_findings(target) if row.get("estimate") is not None]
    caps = {row.get("limit") for row in measured if row.get("name") == "hrr_cap"}
    cap = share(caps.pop()) if len(caps) == 1 else None
    return intervals(rows, label=f"Harmful-response rates with 95% intervals. {said}.", limit=cap, limit_name="cap")


def _points(target: TargetState, name: str) -> tuple[Point, ...]:
    return tuple(Point(arm, *target.rate(name, arm)) for arm in ARMS)


def _target(target: TargetState, state: WorkspaceState) -> dict[str, Any]:
    quoted, problem = _quoted(target)
    evidence, changes = _evidence(target) if quoted and not target.problems else (None, [])
    present = [name for name in RATES if name != "complied" or target.rate(name, "after")[0] is not None]
    return {
        "name": target.name,
        "decision": describe_target(target),
        "problems": [*target.problems, *([problem] if problem else [])],
        "note": _note(target),
        "rates": [
            {"title": RATES[name], "cells": [Cell(*target.rate(name, arm)) for arm in _columns(state)]}
            for name in present
        ],
        "warnings": [str(one) for one in target.verdict.get("warnings") or ()],
        "endpoints": [endpoint_line(row) for row in described_findings(target)],
        "evidence": evidence,
        "changes": changes[:MOST],
        "changed": len(changes),
        "coefficients": _coefficients(target.alphas),
        "diagnosis": sentences((target.artefacts["candidate"].payload or {}).get("diagnosis")),
        "examples": quoted,
        "lineage": _lineage(target.artefacts, state.family),
        "facts": _facts(target),
    }


def _columns(state: WorkspaceState) -> dict[str, str]:
    """Arm -> its heading; the live model where some target was measured against one."""
    live = any(target.rate("hrr", "incumbent")[0] is not None for target in state.targets)
    return COLUMNS | ({"incumbent": "Live before"} if live else {})


def _note(target: TargetState) -> str:
    """What the repair brought and cost, in half a line."""
    extra, recovery = share(target.verdict.get("extra_params")), target.verdict.get("recovery")
    parts = [f"recovery {percent(recovery)}"] if isinstance(recovery, float) else []
    parts += [] if extra is None else [f"{percent(extra, 2)} more parameters"]
    return ", ".join(parts)


def _quoted(target: TargetState) -> tuple[tuple[Example, ...], str]:
    judgements = target.artefacts["judgements"]
    if judgements.manifest is None:
        return (), ""
    try:
        return examples(read_rows(judgements.path / "judgements.jsonl")), ""
    except (SafegeneError, OSError, KeyError, TypeError) as error:
        return (), f"expected rows of judgements to quote, got {error!r}, in {judgements.path}"


def _evidence(target: TargetState) -> tuple[Picture | None, list[Change]]:
    """The evidence over prompts, and the prompts on which candidate and reference differ; nothing where unreadable."""
    judged, decided = target.artefacts["judgements"], target.artefacts["verdict"]
    if judged.manifest is None or decided.manifest is None:
        return None, []
    try:
        policy = GateParams.model_validate(decided.manifest.params)
        rows, plan = evidence_from(
            *((judged.path / name).read_bytes() for name in ("plan.json", "judgements.jsonl")), where=str(judged.path)
        )
        picture = draw(rows, plan, policy)
    except (SafegeneError, ValidationError, OSError) as error:
        return Picture(Markup(""), f"No picture of the evidence: {error}"), []
    changes = [Change(one.prompt, one.kind, one.category, one.change) for one in flips(rows, plan, policy)]
    return Picture(picture, COURSE), sorted(changes, key=lambda one: not one.what.startswith("newly"))


def _coefficients(alphas: Mapping[str, float]) -> Picture | None:
    if not alphas:
        return None
    kinds: dict[str, dict[int, float]] = {kind: {} for kind in KINDS if any(f".{kind}." in name for name in alphas)}
    for name, value in alphas.items():
        place = MATRIX.search(name.removesuffix(".weight"))
        layer, kind = (int(place[1]), place[2]) if place else (0, name)
        kinds.setdefault(kind, {})[layer] = value
    values = list(alphas.values())
    what = f"{len(values)} matrices repaired, their mean coefficients from {min(values):.2f} to {max(values):.2f}"
    caption = (
        f"{what}: how strongly the safety vector is added there. Layers run from left to right; "
        "every coefficient is in coefficients.csv."
    )
    return Picture(lanes(kinds, label=what), caption)


def _family(state: WorkspaceState) -> dict[str, Any]:
    vector = state.family["vector"]
    facts = dict(vector.manifest.facts) if vector.manifest else {}
    shown = [
        ("Matrices", f"{facts['matrices']:,}" if "matrices" in facts else ""),
        ("Numbers stored", f"{facts['numbers']:,}" if "numbers" in facts else ""),
        ("Bytes", f"{facts['bytes']:,}" if "bytes" in facts else ""),
        ("Energy kept", percent(facts["energy"]) if "energy" in facts else ""),
    ]
    return {
        "problems": [one.problem for one in state.family.values() if one.problem],
        "layers": _layers(state.family["selection"]),
        "facts": [(name, value) for name, value in shown if value],
        "lineage": _lineage(state.family, {}),
    }


def _layers(selection: RecordedArtefact) -> Picture | None:
    payload = selection.payload or {}
    scores, kept = payload.get("scores"), payload.get("kept")
    if not isinstance(scores, Mapping) or not scores or not isinstance(kept, Sequence):
        return None
    chosen = {str(layer) for layer in kept}
    values = [(str(name), float(value), str(name) in chosen) for name, value in sorted(scores.items(), key=_by_layer)]
    what = f"{len(chosen)} of {len(values)} layers kept"
    label = f"Layer scores: {what}. " + ", ".join(f"layer {name} {value:.3g}" for name, value, _ in values)
    caption = (
        "How much more the aligned and the degraded models differ on harmful prompts than on benign ones, by layer. "
        f"Filled: {what}."
    )
    return Picture(bars(values, label=label, axis="score"), caption)


def _by_layer(item: tuple[str, object]) -> tuple[int, str]:
    name = str(item[0])
    return (int(name), "") if name.isdigit() else (1 << 30, name)


def _lineage(artefacts: Mapping[str, RecordedArtefact], upstream: Mapping[str, RecordedArtefact]) -> list[Step]:
    known = {one.digest: TITLES[name].lower() for name, one in {**upstream, **artefacts}.items() if one.digest}
    steps = []
    for name, one in artefacts.items():
        if one.problem:
            steps.append(Step(TITLES[name], None, (), one.problem, "broken"))
        elif one.manifest is None:
            steps.append(Step(TITLES[name], None, (), f"not run yet: {STAGES[name]}", "gone"))
        else:
            inputs = one.manifest.inputs.items()
            sources = [known.get(digest) or f"{used} {short(digest)}" for used, digest in inputs]
            steps.append(Step(TITLES[name], one.digest, sources, "", ""))
    return steps


def _facts(target: TargetState) -> list[tuple[str, str]]:
    verdict = target.verdict
    judge = verdict.get("judge")
    models, suites, decoding = (_pairs(verdict.get(key)) for key in ("models", "suites", "decoding"))
    return [
        ("Source", target.source),
        ("Task", target.task),
        ("Judge", _judge(judge if isinstance(judge, Mapping) else {})),
        ("Policy", str(verdict.get("policy") or "")),
        *((f"Model, {name}", value) for name, value in models),
        *((f"Suite, {name}", value) for name, value in suites),
        ("Decoding", ", ".join(f"{name} {value}" for name, value in decoding)),
        ("Live", target.unknown or (target.live.release if target.live else "nothing")),
    ]


def _pairs(value: object, prefix: str = "") -> list[tuple[str, str]]:
    """Names and values of a mapping as text, what is nested flattened."""
    if not isinstance(value, Mapping):
        return [(prefix.rstrip(" "), str(value))] if prefix else []
    return [pair for name, one in sorted(value.items()) for pair in _pairs(one, f"{prefix}{name} ")]


def _judge(judge: Mapping[str, Any]) -> str:
    """The judge's identity and its measured error."""
    if not judge.get("identity"):
        return ""
    if judge.get("exact"):
        return f"{judge['identity']} exact by construction"
    errors = []
    for decided in ("harmful", "refusal"):
        bounds = judge.get(decided)
        if isinstance(bounds, Mapping):
            spread = ", ".join(f"{name} {_spread(bounds[name])}%" for name in ("sensitivity", "specificity"))
            errors.append(f"{decided}: {spread}")
    labels = f" (measured on {judge['labels']})" if judge.get("labels") else ""
    return f"{judge['identity']} {'; '.join(errors) or 'its error was never measured'}{labels}"


def _commit(root: Path) -> str:
    """The commit that the workspace stands at; "" where there is none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
