"""Status: what the artefacts and the ledger say; null for what they do not."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from safegene.ledger import create_key, load_signer, open_ledger, write_public_key
from safegene.ledger.promotion import record_promotion, record_refusal
from safegene.ledger.revocation import record_revocation
from safegene.ledger.rules import PromotionClaim
from safegene.report import write_report
from safegene.report.state import read_state
from safegene.report.status import summary, table
from safegene.report.words import describe_target
from safegene.workspace.digest import digest_bytes, digest_file
from safegene.workspace.manifest import read_manifest
from tests.factories.pages import whole
from tests.factories.runs import Sample


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """One target with a verdict, one calibrated, one only fetched."""
    sample = Sample(tmp_path_factory.mktemp("sample"))
    sample.family()
    sample.target("sentiment")
    sample.target("topic-lora", upto="candidate")
    sample.target("group", upto="target")
    return sample


def rows_of(sample: Sample) -> dict[str, Any]:
    return {entry["name"]: entry for entry in summary(sample.ws, live=sample.live("sentiment"))}


def test_summary_gives_rates_with_their_intervals_beside_them(sample: Sample) -> None:
    entry = rows_of(sample)["sentiment"]
    assert entry["hrr"]["before"] == pytest.approx(0.62, abs=0.002)
    assert entry["hrr"]["after"] == pytest.approx(0.01, abs=0.002)
    for name in ("hrr", "asr", "over_refusal", "utility"):
        for arm in ("before", "after", "aligned"):
            low, high = entry[name][f"{arm}_interval"]
            assert 0 <= low <= entry[name][arm] <= high <= 1
    assert (entry["outcome"], entry["extra_params"]) == ("pass", 0.0312)
    assert entry["live"] == digest_bytes(b"sentiment")
    assert entry["problems"] == []
    json.dumps(entry, allow_nan=False)


def test_summary_gives_null_for_what_was_not_measured(sample: Sample) -> None:
    for name in ("topic-lora", "group"):
        entry = rows_of(sample)[name]
        assert entry["outcome"] is entry["extra_params"] is entry["live"] is None
        assert all(
            value is None for rate in ("hrr", "asr", "over_refusal", "utility") for value in entry[rate].values()
        )


def test_summary_asks_the_ledger_and_says_when_it_cannot(tmp_path: Path) -> None:
    sample = Sample(tmp_path / "w")
    sample.family()
    sample.target("sentiment", upto="target")
    (entry,) = summary(sample.ws)
    assert entry["live"] is None
    assert "what is live is unknown" in entry["problems"][0]


def test_the_table_for_people_shows_every_target_and_no_invented_zero(sample: Sample) -> None:

    text = shown(sample, 140)
    assert "61.9 (56.4-67.0) of 320" in text
    group = text[text.index("\ngroup\n") :]
    assert re.search(r"candidate none; the next stage is calibrate\n live +nothing\n", group)
    assert re.search(r"before +- +- +- +-\n", group)


def shown(sample: Sample, width: int) -> str:
    """The table as a terminal of that width shows it."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(read_state(sample.ws, live=sample.live("sentiment")).targets))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


@pytest.mark.parametrize("width", [24, 50, 80, 100])
def test_names_digests_and_rates_are_whole_at_every_width(sample: Sample, width: int) -> None:
    text = shown(sample, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\u2026" not in text
    for name in ("sentiment", "topic-lora", "group"):
        assert f"{name}\n" in text
    assert ("97.2 of 320" in text) == (width >= 80), "utility"
    assert ("not shown at this width:" in " ".join(text.split())) == (width < 80)
    candidate = str(read_manifest(sample.ws.candidate("sentiment")).digest).removeprefix("sha256:")[:12]
    assert candidate in text.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("artefact", ["verdict", "judgements", "candidate"])
def test_an_altered_artefact_gives_a_problem_and_no_number(tmp_path: Path, artefact: str) -> None:
    sample = Sample(tmp_path / "w")
    sample.family()
    sample.target("sentiment")
    folder = getattr(sample.ws, artefact)("sentiment")
    changed = next(path for path in sorted(folder.iterdir()) if path.name != "manifest.json")
    changed.write_bytes(changed.read_bytes().replace(b"1", b"2", 1))
    (entry,) = summary(sample.ws, live=lambda _: None)
    assert entry["outcome"] is None
    assert entry["hrr"]["after"] is None
    assert str(changed) in entry["problems"][0]
    text = whole(write_report(sample.ws, live=lambda _: None))
    assert "Unknown" in text
    assert "1 promoted" not in text
    assert "The repair passes" not in text


def test_a_verdict_on_another_candidate_is_stale(tmp_path: Path) -> None:
    sample = Sample(tmp_path / "w")
    sample.family()
    sample.target("sentiment")
    sample.put(sample.ws.candidate("sentiment"), "calibrate", {"coefficients.json": {"alphas": {}, "repaired": True}})
    (entry,) = summary(sample.ws, live=lambda _: None)
    assert entry["outcome"] is None
    assert "made from the present candidate" in entry["problems"][0]


def test_a_verdict_without_its_candidate_is_not_believed(tmp_path: Path) -> None:
    sample = Sample(tmp_path / "w")
    sample.family()
    sample.target("sentiment")
    shutil.rmtree(sample.ws.candidate("sentiment"))
    (entry,) = summary(sample.ws, live=lambda _: None)
    assert entry["outcome"] is None
    assert "got no candidate" in entry["problems"][0]


@pytest.fixture
def promoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """A target whose candidate a real ledger put live."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    sample = Sample(tmp_path / "w")
    sample.family()
    sample.target("sentiment")
    keys, params = tmp_path / "keys", sample.ws.params.promote
    write_public_key(create_key(keys), sample.ws.root / params.public_key, keys)
    ledger = open_ledger(params, sample.ws.root)
    candidate = sample.ws.candidate("sentiment")
    artefacts = {"candidate": read_manifest(candidate).digest}
    files = {"candidate/manifest.json": (candidate / "manifest.json", digest_file(candidate / "manifest.json"))}
    record_promotion(
        ledger,
        load_signer(ledger.keys, keys),
        PromotionClaim("sentiment", "pass", "ok", artefacts, {}, files),
        "production",
    )
    return sample


def test_what_the_ledger_put_live_is_live(promoted: Sample) -> None:
    (entry,) = summary(promoted.ws)
    pointer = json.loads((promoted.ws.root / "ledger/channels/production/sentiment").read_bytes())
    assert entry["live"] == pointer["release"]
    assert entry["problems"] == []
    text = whole(write_report(promoted.ws))
    assert "1 promoted" in text.replace("\xa0", " ")
    assert entry["live"] in text


def test_another_candidate_than_the_live_one_is_not_called_promoted(promoted: Sample) -> None:
    shutil.rmtree(promoted.ws.target("sentiment"))
    promoted.names.clear()
    promoted.target("sentiment", harmful=(0.5, 0.02))
    promoted.put(
        promoted.ws.candidate("sentiment"), "calibrate", {"coefficients.json": {"alphas": {"x": 1.0}, "repaired": True}}
    )
    text = whole(write_report(promoted.ws)).replace("\xa0", " ")
    assert "1 promoted" not in text
    (entry,) = summary(promoted.ws)
    assert entry["live"] == entry["release"]["release"]
    assert entry["candidate"]["is_live"] is False
    assert entry["outcome"] is None
    assert "made from the present candidate, got it made from another" in entry["reason"]
    assert entry["last_attempt"]["outcome"] == "pass", "the promotion of the candidate before"
    assert entry["candidate"]["decided"] is None, "nobody decided on this one yet"


def test_a_pass_that_may_not_be_promoted_says_why(promoted: Sample) -> None:
    """As after `dvc exp run`: a passing verdict on another candidate, measured when nothing was live."""
    promoted.names.clear()
    shutil.rmtree(promoted.ws.target("sentiment"))
    promoted.target("sentiment", alpha=0.9)
    (entry,) = summary(promoted.ws)
    assert entry["outcome"] == "pass"
    why = entry["candidate"]["refused_because"]
    assert why.startswith("when the verdict was measured, nothing was live; now sha256:")
    assert f"It may not be promoted: {why}." in entry["reason"]
    text = shown_live(promoted)
    assert "pass, would be refused" in text
    assert "by record 0, another candidate" in text
    assert why in text


def shown_live(sample: Sample) -> str:
    """The table on one line, with what the ledger says."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(read_state(sample.ws).targets))
    return " ".join(console.export_text().split())


def test_an_attempt_that_ended_in_an_error_is_said_beside_an_older_verdict(promoted: Sample, tmp_path: Path) -> None:
    ledger = open_ledger(promoted.ws.params.promote, promoted.ws.root)
    claim = PromotionClaim(
        "sentiment", "error", "the judge did not answer", {}, {"run": {"start": "2026-03-01T12:30:00+00:00"}}
    )
    record_refusal(ledger, load_signer(ledger.keys, tmp_path / "keys"), claim, "production")
    assert "last try error, 2026-03-01 12:30 UTC, record 1: the judge did not answer" in shown_live(promoted)
    (entry,) = summary(promoted.ws)
    assert (entry["outcome"], entry["candidate"]["is_live"]) == ("pass", True)


@pytest.mark.parametrize("kind", ["records", "channels"])
def test_a_ledger_that_does_not_verify_says_nothing_is_known(promoted: Sample, kind: str) -> None:
    path = next(p for p in sorted((promoted.ws.root / "ledger" / kind).rglob("*")) if p.is_file())
    path.write_bytes(path.read_bytes().replace(b"sha256:", b"sha256:0", 1).replace(b"payload", b"payl0ad", 1))
    shutil.rmtree(promoted.ws.root.parent / "cache", ignore_errors=True)
    (entry,) = summary(promoted.ws)
    assert entry["live"] is None
    assert "what is live is unknown" in entry["problems"][0]
    assert "What is live is unknown" in whole(write_report(promoted.ws))


def test_a_revoked_release_is_not_called_promoted(promoted: Sample, tmp_path: Path) -> None:
    params = promoted.ws.params.promote
    ledger = open_ledger(params, promoted.ws.root)
    digest = read_manifest(promoted.ws.candidate("sentiment")).digest
    record_revocation(ledger, load_signer(ledger.keys, tmp_path / "keys"), digest, "poisoned", fields={})
    (entry,) = summary(promoted.ws)
    assert "what is live is not served: record 1 revoked" in entry["problems"][0]
    text = whole(write_report(promoted.ws)).replace("\xa0", " ")
    assert "1 promoted" not in text
    assert "is revoked, and not served" in text


@pytest.mark.parametrize("change", ["policy", "data"])
def test_a_verdict_under_another_policy_or_on_other_data_gives_no_outcome(tmp_path: Path, change: str) -> None:
    sample = Sample(tmp_path / "w")
    sample.family()
    sample.target("sentiment")
    assert summary(sample.ws, live=lambda _: None)[0]["outcome"] == "pass"
    if change == "policy":
        path = sample.ws.root / "params.yaml"
        path.write_text(path.read_text().replace("cap_hrr: 0.10", "cap_hrr: 0.001"))
    else:
        files: dict[str, Any] = {"coefficients.json": {"alphas": {}, "repaired": True}}
        sample.put(sample.ws.candidate("sentiment"), "calibrate", files, prompts=digest_bytes(b"another set"))
    (entry,) = summary(sample.ws, live=lambda _: None)
    assert entry["outcome"] is None
    what = {"policy": "a verdict under the present policy", "data": "candidate made from the present prompts"}[change]
    assert f"expected {what}" in entry["problems"][0]


def test_an_inconclusive_verdict_says_how_many_more_prompts_would_decide_it(tmp_path: Path) -> None:
    sample = Sample(tmp_path / "ws")
    sample.family()
    sample.target("open", lookalike=(0.0, 0.02))
    sample.target("closed")
    states = {target.name: target for target in read_state(sample.ws, live=lambda _: None).targets}
    assert states["open"].outcome == "inconclusive"
    assert re.search(r"About \d+ more look-alike prompts would decide it", describe_target(states["open"]).sentence)
    assert not states["closed"].further
