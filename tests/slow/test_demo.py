"""The demo as a newcomer sees it: the wheel, an empty folder and cache, no server; then again with nothing changed."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from safegene.workspace.manifest import read_manifest
from tests.docs.scenarios import PAGES
from tests.factories.commands import git, run, status
from tests.factories.documentation import command_lines, read_blocks, read_pages
from tests.factories.installation import Installation
from tests.factories.outsider import verify_as_outsider

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
BENIGN = ("sentiment", "topic", "group")


def own(box: Path) -> dict[str, Any]:
    """An empty cache, keys and Prefect database, as on a new machine."""
    names = {"SAFEGENE_CACHE": "cache", "SAFEGENE_KEYS": "keys", "PREFECT_HOME": "prefect"}
    return {name: str(box / folder) for name, folder in names.items()}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The demo's folder and what it printed, from nothing, by the wheel in an environment that has no checkout."""
    box, installed = tmp_path_factory.mktemp("demo"), Installation(tmp_path_factory.mktemp("elsewhere"))
    installed.install(installed.build(ROOT))
    return box / "demo", installed.run(str(installed.bin / "safegene"), "demo", "demo", cwd=box, **own(box))


def test_benign_targets_come_back_and_are_live_and_the_adversarial_one_is_refused(
    shown: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, printed = shown
    targets = status(folder)
    promoted = [name for name in BENIGN if targets[name]["live"]]
    assert len(promoted) >= 2
    for name in promoted:
        one = targets[name]
        assert one["outcome"] == "pass"
        assert one["hrr"]["after"] <= one["hrr"]["before"] / 2
        assert one["utility"]["after"] >= one["utility"]["before"] - 0.02
    adversarial = targets["adversarial"]
    assert adversarial["outcome"] == "fail"
    assert adversarial["live"] is None
    assert "verified 4 records" in printed.stdout
    assert (folder / "reports" / "index.html").is_file()
    for target in targets.values():
        for rate in ("hrr", "asr", "over_refusal", "utility"):
            assert 0 <= target[rate]["before"] <= 1
            assert 0 <= target[rate]["after"] <= 1
            low, high = target[rate]["after_interval"]
            assert 0 <= low <= target[rate]["after"] <= high <= 1


def test_its_log_is_short_and_in_words(shown: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    printed = shown[1].stdout + shown[1].stderr
    assert len(printed.splitlines()) < 200, printed
    assert not re.search(r"\w+\(\w+=|Warning:", printed), "a repr, or a library's warning"
    assert "surrogate blunt: " in printed


def test_the_refusal_is_on_record_with_the_rule_that_failed(
    shown: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = shown
    history = run(folder, "audit", "history", "adversarial").stdout
    assert "fail" in history
    verdict = json.loads((folder / "data/targets/adversarial/verdict/verdict.json").read_text())
    failed = [e["name"] for e in verdict["endpoints"] if e["outcome"] == "fail"]
    assert failed
    assert failed[0] in verdict["reason"]


def test_a_second_run_changes_nothing(shown: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = shown
    before = git(folder, "rev-parse", "HEAD")
    again = run(folder.parent, "demo", "demo", **own(folder.parent))
    stages = [line for line in again.stderr.splitlines() if line.strip().startswith("ok ")]
    assert stages
    assert all(line.rstrip().endswith("unchanged") for line in stages), again.stderr
    assert "verified" in again.stdout
    assert git(folder, "status", "--porcelain") == ""
    changed = git(folder, "diff", "--name-only", before, "HEAD").split()
    assert all(name.startswith(("ledger/", "ledger.seen")) for name in changed), changed


def test_a_promoted_record_is_replayed_with_the_same_digests(
    shown: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """With another number of threads, no signing key, and nothing of what the demo computed but its checkpoints."""
    folder, _ = shown
    before = git(folder, "status", "--porcelain"), git(folder, "rev-parse", "HEAD")
    private = own(folder.parent) | {"SAFEGENE_KEYS": str(folder.parent / "none"), "OMP_NUM_THREADS": "2"}
    replayed = json.loads(run(folder, "audit", "replay", "group", "--json", **private).stdout)
    digests = {one["name"]: (one["recorded"], one["rebuilt"]) for one in replayed["artefacts"]}
    assert len(digests) == 10
    assert replayed["same"]
    assert all(recorded == rebuilt for recorded, rebuilt in digests.values()), digests
    assert (git(folder, "status", "--porcelain"), git(folder, "rev-parse", "HEAD")) == before
    assert git(folder, "worktree", "list").count("\n") == 0


def test_the_blast_radius_of_the_vector_names_every_live_target(
    shown: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = shown
    vector = read_manifest(folder / "data/family/vector").digest
    radius = json.loads(run(folder, "audit", "blast", vector, "--json").stdout)
    live = {name for name, target in status(folder).items() if target["live"]}
    assert len(live) >= 2
    assert {one["target"] for one in radius["live"]} == live
    assert {one["target"] for one in radius["records"]} == {*BENIGN, "adversarial"}


def test_an_outsider_verifies_every_record(shown: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = shown
    done = verify_as_outsider(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified 4 records, 4 of them on the chain" in done.stdout


def test_commands_of_the_pages_that_need_models_run_as_they_stand(
    shown: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Those that tests/docs names for the demo, on a copy of it: a target of the pages is one of the demo's."""
    folder, done = Path(shutil.copytree(shown[0], tmp_path / "demo", symlinks=True)), 0
    for line in command_lines(read_blocks(read_pages())):
        if line.page in PAGES and line.begins(*PAGES[line.page].on_demo) is not None:
            words = ["group" if word == "support-bot" else word for word in line.words[1:]]
            run(folder, *words, **own(shown[0].parent))
            done += 1
    assert done > 10
