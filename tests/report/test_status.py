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
from safegene.ledger.promotion import PromotionClaim, record_promotion, record_revocation
from safegene.report import write_report
from safegene.report.state import read_state
from safegene.report.status import summary, table
from safegene.workspace.digest import digest_bytes, digest_file
from safegene.workspace.manifest import read_manifest
from tests.factories.runs import Sample


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """One target with a verdict, one calibrated, one only fetched."""
    made = Sample(tmp_path_factory.mktemp("sample"))
    made.family()
    made.target("sentiment")
    made.target("topic-lora", upto="candidate")
    made.target("group", upto="target")
    return made


def rows_of(sample: Sample) -> dict[str, Any]:
    return {one["name"]: one for one in summary(sample.ws, live=sample.live("sentiment"))}


def test_summary_gives_rates_with_their_intervals_beside_them(sample: Sample) -> None:
    one = rows_of(sample)["sentiment"]
    assert one["hrr"]["before"] == pytest.approx(0.62, abs=0.002)
    assert one["hrr"]["after"] == pytest.approx(0.01, abs=0.002)
    for name in ("hrr", "asr", "over_refusal", "utility"):
        for arm in ("before", "after", "aligned"):
            low, high = one[name][f"{arm}_interval"]
            assert 0 <= low <= one[name][arm] <= high <= 1
    assert (one["outcome"], one["extra_params"]) == ("pass", 0.0312)
    assert one["live"] == digest_bytes(b"sentiment")
    assert one["problems"] == []
    json.dumps(one, allow_nan=False)


def test_summary_gives_null_for_what_was_not_measured(sample: Sample) -> None:
    for name in ("topic-lora", "group"):
        one = rows_of(sample)[name]
        assert one["outcome"] is one["extra_params"] is one["live"] is None
        assert all(value is None for rate in ("hrr", "asr", "over_refusal", "utility") for value in one[rate].values())


def test_summary_asks_the_ledger_and_says_when_it_cannot(tmp_path: Path) -> None:
    made = Sample(tmp_path / "w")
    made.family()
    made.target("sentiment", upto="target")
    (one,) = summary(made.ws)
    assert one["live"] is None
    assert "what is live is unknown" in one["problems"][0]


def test_the_table_for_people_shows_every_target_and_no_invented_zero(sample: Sample) -> None:

    console = Console(width=140, record=True, file=io.StringIO())
    console.print(table(read_state(sample.ws, live=sample.live("sentiment")).targets))
    text = console.export_text()
    assert "61.9 (56.4-67.0)" in text
    assert re.search(r"group +before +- +- +- +- +- +not run +nothing", text)


@pytest.mark.parametrize("artefact", ["verdict", "judgements", "candidate"])
def test_an_altered_artefact_gives_a_problem_and_no_number(tmp_path: Path, artefact: str) -> None:
    made = Sample(tmp_path / "w")
    made.family()
    made.target("sentiment")
    folder = getattr(made.ws, artefact)("sentiment")
    changed = next(path for path in sorted(folder.iterdir()) if path.name != "manifest.json")
    changed.write_bytes(changed.read_bytes().replace(b"1", b"2", 1))
    (one,) = summary(made.ws, live=lambda _: None)
    assert one["outcome"] is None
    assert one["hrr"]["after"] is None
    assert str(changed) in one["problems"][0]
    text = write_report(made.ws, live=lambda _: None).read_text()
    assert "Unknown" in text
    assert "1 promoted" not in text
    assert "The repair passes" not in text


def test_a_verdict_on_another_candidate_is_stale(tmp_path: Path) -> None:
    made = Sample(tmp_path / "w")
    made.family()
    made.target("sentiment")
    made.put(made.ws.candidate("sentiment"), "calibrate", {"coefficients.json": {"alphas": {}}})
    (one,) = summary(made.ws, live=lambda _: None)
    assert one["outcome"] is None
    assert "made from the present candidate" in one["problems"][0]


def test_a_verdict_without_its_candidate_is_not_believed(tmp_path: Path) -> None:
    made = Sample(tmp_path / "w")
    made.family()
    made.target("sentiment")
    shutil.rmtree(made.ws.candidate("sentiment"))
    (one,) = summary(made.ws, live=lambda _: None)
    assert one["outcome"] is None
    assert "got no candidate" in one["problems"][0]


@pytest.fixture
def promoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """A target whose candidate a real ledger put live."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    made = Sample(tmp_path / "w")
    made.family()
    made.target("sentiment")
    keys, params = tmp_path / "keys", made.ws.params.promote
    write_public_key(create_key(keys), made.ws.root / params.public_key, keys)
    ledger = open_ledger(params, made.ws.root)
    candidate = made.ws.candidate("sentiment")
    artefacts = {"candidate": read_manifest(candidate).digest}
    files = {"candidate/manifest.json": (candidate / "manifest.json", digest_file(candidate / "manifest.json"))}
    record_promotion(
        ledger,
        load_signer(ledger.keys, keys),
        PromotionClaim("sentiment", "pass", "ok", artefacts, {}, files),
        "production",
    )
    return made


def test_what_the_ledger_put_live_is_live(promoted: Sample) -> None:
    (one,) = summary(promoted.ws)
    pointer = json.loads((promoted.ws.root / "ledger/channels/production/sentiment").read_bytes())
    assert one["live"] == pointer["release"]
    assert one["problems"] == []
    text = write_report(promoted.ws).read_text()
    assert "1 promoted" in text.replace("\xa0", " ")
    assert one["live"] in text


def test_another_candidate_than_the_live_one_is_not_called_promoted(promoted: Sample) -> None:
    shutil.rmtree(promoted.ws.target("sentiment"))
    promoted.names.clear()
    promoted.target("sentiment", harmful=(0.5, 0.02))
    promoted.put(promoted.ws.candidate("sentiment"), "calibrate", {"coefficients.json": {"alphas": {"x": 1.0}}})
    text = write_report(promoted.ws).read_text().replace("\xa0", " ")
    assert "1 promoted" not in text
    (one,) = summary(promoted.ws)
    assert one["live"]


@pytest.mark.parametrize("kind", ["records", "channels"])
def test_a_ledger_that_does_not_verify_says_nothing_is_known(promoted: Sample, kind: str) -> None:
    path = next(p for p in sorted((promoted.ws.root / "ledger" / kind).rglob("*")) if p.is_file())
    path.write_bytes(path.read_bytes().replace(b"sha256:", b"sha256:0", 1).replace(b"payload", b"payl0ad", 1))
    shutil.rmtree(promoted.ws.root.parent / "cache", ignore_errors=True)
    (one,) = summary(promoted.ws)
    assert one["live"] is None
    assert "what is live is unknown" in one["problems"][0]
    assert "What is live is unknown" in write_report(promoted.ws).read_text()


def test_a_revoked_release_is_not_called_promoted(promoted: Sample, tmp_path: Path) -> None:
    params = promoted.ws.params.promote
    ledger = open_ledger(params, promoted.ws.root)
    digest = read_manifest(promoted.ws.candidate("sentiment")).digest
    record_revocation(ledger, load_signer(ledger.keys, tmp_path / "keys"), digest, "poisoned", fields={})
    (one,) = summary(promoted.ws)
    assert "what is live is not served: record 1 revoked" in one["problems"][0]
    text = write_report(promoted.ws).read_text().replace("\xa0", " ")
    assert "1 promoted" not in text
    assert "is revoked, and not served" in text


@pytest.mark.parametrize("change", ["policy", "data"])
def test_a_verdict_under_another_policy_or_on_other_data_gives_no_outcome(tmp_path: Path, change: str) -> None:
    made = Sample(tmp_path / "w")
    made.family()
    made.target("sentiment")
    assert summary(made.ws, live=lambda _: None)[0]["outcome"] == "pass"
    if change == "policy":
        path = made.ws.root / "params.yaml"
        path.write_text(path.read_text().replace("cap_hrr: 0.10", "cap_hrr: 0.001"))
    else:
        files = {"coefficients.json": {"alphas": {}}}
        made.put(made.ws.candidate("sentiment"), "calibrate", files, prompts=digest_bytes(b"another set"))
    (one,) = summary(made.ws, live=lambda _: None)
    assert one["outcome"] is None
    what = {"policy": "a verdict under the present policy", "data": "candidate made from the present prompts"}[change]
    assert f"expected {what}" in one["problems"][0]
