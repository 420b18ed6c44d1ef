"""One whole run on the tiny family, through the real Prefect, DVC and Git; then everything that can be asked of it."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from safegene.workspace.digest import digest_file
from safegene.workspace.layout import cache_folder, keys_folder
from safegene.workspace.manifest import read_manifest
from safegene.workspace.plain_yaml import load_yaml
from safegene.workspace.seal import KEY
from tests.factories.commands import BIN, ask, dvc, git, run, status

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).parents[2]


def test_the_repair_brings_safety_back_and_is_promoted(built: Path) -> None:
    sentiment = status(built)["sentiment"]
    assert sentiment["outcome"] == "pass"
    assert sentiment["live"].startswith("sha256:")
    assert sentiment["hrr"]["before"] >= 0.1, "the fine-tune must have lost some safety, or there is nothing to show"
    assert sentiment["hrr"]["after"] <= sentiment["hrr"]["before"] / 2
    assert sentiment["utility"]["after"] >= sentiment["utility"]["before"] - 0.02
    for rate in ("hrr", "asr", "over_refusal"):
        for arm in ("before", "after", "aligned"):
            low, high = sentiment[rate][f"{arm}_interval"]
            assert 0 <= low <= sentiment[rate][arm] <= high <= 1
            assert low < high
    assert 0 < sentiment["extra_params"] <= 0.01


def test_everything_is_committed_and_up_to_date(built: Path) -> None:
    assert git(built, "status", "--porcelain") == ""
    assert "up to date" in dvc(built, "status")
    assert "realign: sentiment pass" in git(built, "log", "-1", "--format=%s")


def test_dvc_shows_metrics_and_plots(built: Path, tmp_path: Path) -> None:
    metrics = json.loads(dvc(built, "metrics", "show", "--json"))
    text = json.dumps(metrics)
    assert "data/metrics/sentiment.json" in text
    assert "hrr" in text
    assert "over_refusal" in text
    assert all(f"hrr_after{part}" in text for part in ("_n", "_low", "_high"))
    dvc(built, "plots", "show", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots" / "index.html").read_text()
    for plot in ("scores", "coefficients", "rates"):
        assert plot in page
    assert "http" not in page, "it opens without a network"


def asked(api: str, kind: str, **wanted: Any) -> list[dict[str, Any]]:
    """What the server of the run, which other tests use too, knows of one kind."""
    found: list[dict[str, Any]] = ask(f"{api}/{kind}/filter", {"limit": 200, **wanted})
    return found


def test_prefect_shows_what_people_ask(built: Path, prefect_api: str) -> None:
    name = f"realign all targets in {built.name}"
    runs = asked(prefect_api, "flow_runs", flow_runs={"name": {"any_": [name]}})
    (seen,) = (run for run in runs if str(built) in str(run))
    assert {"safegene", f"workspace:{built.name}", "target:sentiment"} <= set(seen["tags"])
    assert (seen["state"]["name"], seen["state_type"]) == ("Promoted", "COMPLETED")
    assert "sentiment pass: The repair passes every endpoint" in seen["state"]["message"]
    lines = [line["message"] for line in asked(prefect_api, "logs", logs={"flow_run_id": {"any_": [seen["id"]]}})]
    assert any(line.startswith("forecast: ") for line in lines), "the stage's own lines"
    assert any(line.startswith("evaluate@sentiment: ") for line in lines)
    made = asked(prefect_api, "artifacts", artifacts={"flow_run_id": {"any_": [seen["id"]]}})
    artifacts = {one["key"]: one for one in made}
    assert "n = " in artifacts["safegene-ws-target-sentiment"]["data"]
    assert artifacts["safegene-ws-target-sentiment-evidence"]["type"] == "image"
    assert str(built / "reports") in artifacts["safegene-ws-report"]["data"]


def test_the_report_is_written_and_names_the_outcome(built: Path) -> None:
    page = (built / "reports" / "index.html").read_text()
    assert "sentiment" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_audit_verifies_and_shows_the_chain(built: Path) -> None:
    assert "verified" in run(built, "audit", "verify").stdout
    shown = run(built, "audit", "show", "sentiment").stdout
    for word in ("vector", "aligned", "judge", "verdict", "degrade"):
        assert word in shown


TAMPERED = [
    "data/family/vector/vector.safetensors",
    "data/targets/sentiment/candidate/adapter_model.safetensors",
    "data/targets/sentiment/verdict/verdict.json",
    "ledger/records/*",
    "ledger/releases/*/candidate/adapter_model.safetensors",
]


@pytest.mark.parametrize("pattern", TAMPERED)
def test_one_changed_byte_is_found_and_named(copy: Path, pattern: str) -> None:
    found = sorted(copy.glob(pattern))
    assert found
    path = found[-1]
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.chmod(0o644)
    path.unlink()  # DVC may have linked it to its cache
    path.write_bytes(bytes(data))
    done = run(copy, "audit", "verify", code=1)
    assert path.name in done.stdout


def test_a_changed_vector_is_not_loaded(copy: Path) -> None:
    path = copy / "data/family/vector/vector.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))
    done = run(copy, "calibrate", "sentiment", code=1)
    assert "DigestMismatch" in done.stderr
    assert "vector.safetensors" in done.stderr


def test_a_changed_adapter_is_neither_evaluated_nor_exported(copy: Path, tmp_path: Path) -> None:
    path = copy / "data/targets/sentiment/candidate/adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))
    for command in (
        ("evaluate", "sentiment"),
        ("export", "sentiment", str(tmp_path / "out")),
        ("promote", "sentiment"),
    ):
        assert "adapter_model.safetensors" in run(copy, *command, code=1).stderr


def test_resolve_names_what_is_live_byte_for_byte(copy: Path) -> None:
    answer = json.loads(run(copy, "resolve", "sentiment", "production").stdout)
    assert answer["release"] == status(copy)["sentiment"]["live"]
    adapter = next(copy.glob("ledger/releases/*/candidate/adapter_model.safetensors"))
    adapter.chmod(0o644)
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"\x7f")
    assert "DigestMismatch" in run(copy, "resolve", "sentiment", "production", code=1).stderr


def test_promoting_again_changes_nothing(copy: Path) -> None:
    records = sorted(copy.glob("ledger/records/*"))
    run(copy, "promote", "sentiment", "--dry-run")
    run(copy, "promote", "sentiment")
    assert sorted(copy.glob("ledger/records/*")) == records


def test_a_dry_run_exits_as_the_run_would_and_names_what_must_run(copy: Path) -> None:
    before = git(copy, "rev-parse", "HEAD")
    assert "live on production already" in run(copy, "run", "--dry-run").stdout
    path = copy / "params.yaml"
    path.write_text(path.read_text().replace("rank: 64\n\nselect", "rank: 16\n\nselect"))
    said = json.loads(run(copy, "run", "--dry-run", "--json", code=4).stdout)
    (target,) = said["targets"]
    assert target["outcome"] == "unknown"
    assert target["stages"] == ["compress", "select", *(f"{s}@sentiment" for s in ("calibrate", "evaluate", "gate"))]
    assert (git(copy, "rev-parse", "HEAD"), git(copy, "status", "--porcelain")) == (before, "M params.yaml")


def test_the_exported_adapter_carries_its_card(built: Path, tmp_path: Path) -> None:
    said = run(built, "export", "sentiment", str(tmp_path / "out")).stdout
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "PEFT LoRA adapter" in card
    assert "pass" in card
    (number,) = re.findall(r"([\d,]+) extra parameters", said)
    assert f"{number} extra parameters" in card
    run(built, "export", "sentiment", str(tmp_path / "out"), code=1)


def test_verdict_is_void_under_another_policy(copy: Path) -> None:
    path = copy / "params.yaml"
    path.write_text(path.read_text().replace("margin_hrr: 0.05", "margin_hrr: 0.04"))
    assert "StaleArtifact" in run(copy, "promote", "sentiment", code=1).stderr


def test_judgements_that_nobody_with_the_key_made_are_made_again(copy: Path, prefect_api: str) -> None:
    """They were edited with their manifest and with what DVC knows of them; the key and its seals are not theirs."""
    target = copy / "data" / "targets" / "sentiment"
    rows, made = target / "judgements" / "judgements.jsonl", (target / "judgements" / "manifest.json").read_bytes()
    rows.write_bytes(rows.read_bytes().replace(b'"raw":"', b'"raw":"so ', 1))
    manifest = read_manifest(target / "judgements", verify=False)
    forged = manifest.model_copy(update={"files": {**manifest.files, rows.name: digest_file(rows)}})
    (target / "judgements" / "manifest.json").write_bytes(forged.content)
    run(copy, "gate", "sentiment")
    dvc(copy, "commit", "--force", "evaluate@sentiment", "gate@sentiment")
    assert "made by a holder of the key" in run(copy, "promote", "sentiment", code=1).stderr
    run(copy, "run", "sentiment", PREFECT_API_URL=prefect_api)
    assert (target / "judgements" / "manifest.json").read_bytes() == made


def test_the_workspace_travels_by_git_and_dvc(copy: Path, tmp_path: Path) -> None:
    """After a run, as it is by default: it was pushed to a place that a clone finds."""
    git(tmp_path, "clone", "-q", str(copy), str(tmp_path / "clone"))
    dvc(tmp_path / "clone", "pull")
    run(tmp_path / "clone", "audit", "verify")
    shutil.rmtree(tmp_path / "clone" / "data/targets/sentiment/verdict")
    assert "data/targets/sentiment/verdict" in run(tmp_path / "clone", "audit", "verify").stdout


def test_a_run_without_promotion_decides_and_leaves_no_trace(copy: Path, prefect_api: str, tmp_path: Path) -> None:
    """By the script of the GitHub action: no signing key, no commit, no record, no push."""
    (copy / "params.yaml").write_text((copy / "params.yaml").read_text() + "\n# changed\n")

    def written() -> tuple[object, ...]:
        places = (copy / "ledger", copy / "data", copy / ".dvc" / "config")
        files = {path: digest_file(path) for place in places for path in sorted(place.rglob("*")) if path.is_file()}
        return git(copy, "rev-parse", "HEAD"), git(copy, "status", "--porcelain"), files

    before, keys, cache = written(), tmp_path / "keys", tmp_path / ".cache" / "safegene"  # the home has no .gitconfig
    cache.parent.mkdir()
    cache.symlink_to(cache_folder())
    keys.mkdir(mode=0o700)
    shutil.copy(keys_folder() / KEY, keys)
    steps = load_yaml(ROOT / "deploy/github/action.yml")["runs"]["steps"]
    (script,) = (step["run"] for step in steps if step.get("id") == "gate")
    output, summary = tmp_path / "output", tmp_path / "summary"
    given = {"TARGETS": "sentiment", "RUNNER_TEMP": str(tmp_path), "GITHUB_OUTPUT": str(output)}
    given |= {"GITHUB_STEP_SUMMARY": str(summary), "PREFECT_API_URL": prefect_api, "SAFEGENE_KEYS": str(keys)}
    given |= {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=copy, env={**os.environ, **given}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert output.read_text() == "exit-code=0\n"
    assert "pass sentiment, not promoted" in done.stderr
    assert "| sentiment |" in summary.read_text()
    assert written() == before


def test_what_is_live_is_checked_again_on_the_present_suite(copy: Path, prefect_api: str) -> None:
    """With the model itself: its replies are in the cache, and the verdict is the one that it was promoted with."""
    said = json.loads(run(copy, "drift", "--json", PREFECT_API_URL=prefect_api).stdout)
    (found,) = said["targets"]
    assert (found["target"], found["outcome"], said["exit_code"]) == ("sentiment", "pass", 0)
    assert found["release"] == status(copy)["sentiment"]["live"]
    assert git(copy, "status", "--porcelain") == ""
    assert git(copy, "log", "-1", "--format=%s") == "drift: sentiment pass"
    assert "sentiment: pass" in run(copy, "drift", PREFECT_API_URL=prefect_api).stdout
    assert git(copy, "log", "-1", "--format=%s") == "drift: sentiment pass", (
        "nothing has changed, and nothing is committed"
    )
    run(copy, "audit", "verify")
