"""What each artefact was made from, and what a verdict was measured with, as the report's page shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safegene.gate import JudgeStatement
from safegene.report.state import FETCHED, RecordedArtefact, TargetState
from safegene.report.words import STAGES, short

TITLES = {
    "aligned": "Aligned model",
    "degraded": "Degraded copies",
    "delta": "Delta",
    "published": "Publisher's bundle",
    "vector": "Safety vector",
    "selection": "Layer selection",
    "target": "Fine-tune",
    "candidate": "Candidate",
    "judgements": "Judgements",
    "verdict": "Verdict",
}
Fact = tuple[str, str]  # name and value; "" for a value that is not recorded


@dataclass(frozen=True)
class Step:
    """One artefact in a lineage.

    Attributes:
        title: what it is.
        digest: None when it is absent or unusable.
        sources: what it was made from.
        note: why there is no digest; "" when there is one.
        state: "", "gone" (absent) or "broken" (unusable): a class of the style sheet.
    """

    title: str
    digest: str | None
    sources: Sequence[str]
    note: str
    state: str


def lineage(artefacts: Mapping[str, RecordedArtefact], upstream: Mapping[str, RecordedArtefact]) -> list[Step]:
    """A step for each artefact; an input that is in neither mapping is named by its digest."""
    titles = {
        artefact.digest: TITLES[name].lower()
        for name, artefact in {**upstream, **artefacts}.items()
        if artefact.digest is not None
    }
    stages = {**STAGES, **(dict.fromkeys(FETCHED[1:], STAGES["published"]) if "published" in artefacts else {})}
    return [_step(name, artefact, titles, stages[name]) for name, artefact in artefacts.items()]


def _step(name: str, artefact: RecordedArtefact, titles: Mapping[str, str], stage: str) -> Step:
    if artefact.problem:
        return Step(TITLES[name], None, (), artefact.problem, "broken")
    if artefact.manifest is None:
        return Step(TITLES[name], None, (), f"not run yet: {stage}", "gone")
    inputs = artefact.manifest.inputs.items()
    sources = [titles.get(digest) or f"{used} {short(digest)}" for used, digest in inputs]
    return Step(TITLES[name], artefact.digest, sources, "", "")


def target_facts(target: TargetState) -> list[Fact]:
    """Where the target comes from, what its verdict was measured with, and what is live."""
    live = target.live_problem or (target.live.release if target.live else "nothing")
    fetched = target.artefacts["target"].manifest
    facts = fetched.facts if fetched else {}
    asked = [
        ("Source", target.source),
        ("Chat template", str(facts.get("chat_template", ""))),
        ("Added tokens", ", ".join(map(repr, facts.get("added_tokens", ())))),
        ("Declared differences", "; ".join(facts.get("declared", ()))),
        ("Task", target.task),
    ]
    return [*asked, *_verdict_facts(target), ("Live", live)]


def _verdict_facts(target: TargetState) -> list[Fact]:
    verdict = target.verdict
    if verdict is None:
        return [("Judge", ""), ("Policy", ""), ("Decoding", "")]
    return [
        ("Judge", _describe_judge(verdict.judge)),
        ("Policy", verdict.policy),
        *((f"Model, {name}", digest) for name, digest in sorted(verdict.models.items())),
        *((f"Suite, {name}", digest) for name, digest in sorted(verdict.suites.items())),
        ("Decoding", ", ".join(f"{name} {value}" for name, value in _flat(verdict.decoding))),
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[Fact]:
    """Names and values as text; a nested mapping's names are joined by spaces."""
    facts: list[Fact] = []
    for name, value in sorted(values.items()):
        nested = isinstance(value, Mapping)
        facts += _flat(value, f"{prefix}{name} ") if nested else [(f"{prefix}{name}", str(value))]
    return facts


def _describe_judge(judge: JudgeStatement) -> str:
    """The judge's identity and its measured error."""
    if judge.exact:
        return f"{judge.identity} exact by construction"
    errors = [
        f"{decision}: sensitivity {_span(bounds.sensitivity)}, specificity {_span(bounds.specificity)}"
        for decision, bounds in (("harmful", judge.harmful), ("refusal", judge.refusal))
        if bounds
    ]
    labels = f" (measured on {judge.labels})" if judge.labels else ""
    return f"{judge.identity} {'; '.join(errors) or 'its error was never measured'}{labels}"


def _span(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}%"
