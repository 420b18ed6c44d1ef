"""What each artefact was made from, and what a verdict was measured with, as the report's pages show them.

A lineage is read from its end: the release, the signed record that put it live, the artefacts that the record names,
and the data that these were made from. Each step names the steps that it was made from, which a page makes links.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safegene.gate import JudgeStatement
from safegene.report.state import FETCHED, RecordedArtefact, TargetState
from safegene.report.words import STAGES, short
from safegene.workspace.staleness import is_data

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
class Source:
    """What an artefact was made from: its name, and the key of its step; "" where it has none."""

    title: str
    key: str = ""


@dataclass(frozen=True)
class Step:
    """One artefact, record, release or data set in a lineage.

    Attributes:
        key: tells it from the other steps of a page.
        title: what it is.
        digest: None when it is absent or unusable.
        sources: what it was made from.
        note: why there is no digest; otherwise what else is known of it.
        state: "", "gone" (absent) or "broken" (unusable): a class of the style sheet.
    """

    key: str
    title: str
    digest: str | None
    sources: Sequence[Source] = ()
    note: str = ""
    state: str = ""


def lineage(artefacts: Mapping[str, RecordedArtefact], data: Mapping[str, str]) -> list[Step]:
    """A step for each artefact from the last to the first, then one for each data set that they were made from.

    Args:
        artefacts: all that the steps may name, in the pipeline's order.
        data: path of a prompt or task set below ``data`` -> digest.
    """
    found = {artefact.digest: Source(TITLES[name].lower(), name) for name, artefact in artefacts.items()}
    found.pop(None, None)
    stages = {**STAGES, **(dict.fromkeys(FETCHED[1:], STAGES["published"]) if "published" in artefacts else {})}
    used: dict[str | None, Step] = {}
    for artefact in artefacts.values():
        for name, digest in artefact.manifest.inputs.items() if artefact.manifest else ():
            if digest not in found and is_data(name):
                step = _data_step(name, digest, data)
                used.setdefault(digest, step)
                found[digest] = Source(step.title, step.key)
    steps = [
        _step(name, artefact, made_from(name, artefacts), found, stages[name]) for name, artefact in artefacts.items()
    ]
    return [*reversed(steps), *used.values()]


def made_from(name: str, artefacts: Mapping[str, RecordedArtefact]) -> Mapping[str, str]:
    """Name -> digest of the inputs of one of the artefacts; a fetched vector and selection came in their bundle."""
    manifest, published = artefacts[name].manifest, artefacts.get("published")
    inputs = manifest.inputs if manifest else {}
    if published is None or published.digest is None:
        return inputs
    if name == "published":
        return {used: digest for used, digest in inputs.items() if used not in ("vector", "selection")}
    return {"published": published.digest, **inputs} if name in ("vector", "selection") else inputs


def _data_step(name: str, digest: str, data: Mapping[str, str]) -> Step:
    """A data set by the file that has this content now; of one that has changed, by the name of the input."""
    path = next((path for path, present in sorted(data.items()) if present == digest), "")
    title = f"data/{path}" if path else f"{name} {short(digest)}"
    note = "data" if path else "data; no set of the workspace has this content now"
    return Step(f"data-{short(digest)}", title, digest, note=note)


def _step(
    name: str,
    artefact: RecordedArtefact,
    inputs: Mapping[str, str],
    found: Mapping[str | None, Source],
    stage: str,
) -> Step:
    if artefact.problem:
        return Step(name, TITLES[name], None, note=artefact.problem, state="broken")
    if artefact.manifest is None:
        return Step(name, TITLES[name], None, note=f"not run yet: {stage}", state="gone")
    sources = [found.get(digest) or Source(f"{used} {short(digest)}") for used, digest in inputs.items()]
    return Step(name, TITLES[name], artefact.digest, tuple(dict.fromkeys(sources)), f"made by {stage}")


def data_of(artefact: RecordedArtefact) -> list[str]:
    """Names of the prompt and task sets among an artefact's inputs."""
    return [name for name in (artefact.manifest.inputs if artefact.manifest else ()) if is_data(name)]


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
