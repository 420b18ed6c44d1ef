"""What stops a run is found before anything is computed, all at once, and each remedy mends it."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from safegene.errors import ArtifactError, EmptySample, JudgeError, LedgerError, ParamsError, SafegeneError, SourceError
from safegene.ledger.keys import create_key, key_ids
from safegene.pipeline.doctor import Finding, examine, require_ready
from safegene.pipeline.doctor import repository as repository_checks
from safegene.pipeline.init import init
from safegene.workspace.layout import Workspace
from safegene.workspace.params import Target, save_targets
from tests.factories.commands import BIN, git


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace of the tiny family with one target."""
    ws = init(tmp_path_factory.mktemp("doctor") / "made")
    entry = Target(source="tiny://topic?seed=0", task="topic", fingerprint="sha256:0")
    save_targets(ws.targets_file, ws.targets.model_copy(update={"targets": {"topic": entry}}))
    git(ws.root, "commit", "-qam", "a target")
    return ws


@pytest.fixture
def ws(made: Workspace, tmp_path: Path) -> Workspace:
    """A copy that a test may break."""
    shutil.copytree(made.root, tmp_path / "ws", symlinks=True)
    return Workspace(tmp_path / "ws")


def edit(ws: Workspace, old: str, new: str) -> None:
    path = ws.root / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def problems(ws: Workspace) -> list[Finding]:
    return list(examine(ws).problems)


def only_problem(ws: Workspace) -> Finding:
    (found,) = problems(ws)
    return found


def shell(command: str, folder: Path) -> None:
    """A remedy as a person types it."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def test_a_new_workspace_is_ready_and_nothing_is_written(ws: Workspace) -> None:
    report = examine(ws)
    assert not report.findings
    assert {"repository", "ledger and signing key", "judge", "prompts", "sources", "disk"} <= set(report.checked)
    assert git(ws.root, "status", "--porcelain") == ""
    assert require_ready(ws).to_json()["ready"] is True


def test_every_problem_is_found_at_once_and_each_has_a_remedy(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGENE_KEYS", str(ws.root.parent / "no-keys"))
    edit(ws, "{kind: grammar}", "{kind: guard}")
    (ws.prompts / "gate.jsonl").unlink()
    shutil.rmtree(ws.root / ".dvc")
    with pytest.raises(SafegeneError, match="got 4 problems") as refused:
        require_ready(ws)
    for check in ("repository", "signing key", "judge", "prompts"):
        assert re.search(
            rf"\d\. {check}: expected .*\n +remedy: \S", refused.value.message.replace("evaluate.judge: ", "")
        )
    assert "safegene doctor" in refused.value.remedy


# --- the repository


def no_identity(ws: Workspace) -> None:
    for name in ("user.name", "user.email"):
        git(ws.root, "config", "--unset-all", name)


def no_pins(ws: Workspace) -> None:
    (ws.root / "ledger.pub").unlink()


def pins_deleted_by_a_commit(ws: Workspace) -> None:
    git(ws.root, "rm", "--quiet", "ledger.pub")
    git(ws.root, "commit", "-qm", "oops")


def no_dvc(ws: Workspace) -> None:
    shutil.rmtree(ws.root / ".dvc")


def no_dvc_yaml(ws: Workspace) -> None:
    (ws.root / "dvc.yaml").unlink()


def no_git(ws: Workspace) -> None:
    shutil.rmtree(ws.root / ".git")


@pytest.mark.parametrize(
    "damage", [no_identity, no_pins, pins_deleted_by_a_commit, no_dvc, no_dvc_yaml, no_git], ids=lambda f: f.__name__
)
def test_what_git_and_dvc_need_is_mended_by_the_command_that_is_printed(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Workspace], None]
) -> None:
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("HOME", str(ws.root.parent))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.useConfigOnly")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    git(ws.root, "config", "user.name", "Ada")
    git(ws.root, "config", "user.email", "ada@example.org")
    damage(ws)
    found = only_problem(ws)
    assert "expected" in found.message
    if damage is no_git:  # the remedy commits, for which Git must know who does
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", "false")
        monkeypatch.setenv("EMAIL", "you@example.org")
    shell(found.remedy, ws.root)
    assert not problems(ws)


def test_without_commits_no_identity_is_needed(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository_checks, "_no_identity", lambda root: "nobody")
    assert only_problem(ws).check == "repository"
    edit(ws, "commit: true", "commit: false")
    assert not problems(ws)


def test_pushed_commits_need_an_upstream(ws: Workspace) -> None:
    assert not examine(ws).findings
    edit(ws, "push_commits: false", "push_commits: true")
    (note,) = examine(ws).findings
    assert "expected an upstream of the branch" in note.message
    assert not note.stops
    git(ws.root.parent, "init", "-q", "--bare", "upstream.git")
    git(ws.root, "remote", "add", "REMOTE", str(ws.root.parent / "upstream.git"))
    shell(note.remedy, ws.root)
    assert not examine(ws).findings


def test_yaml_that_dvc_cannot_read_is_found_and_the_quotes_mend_it(ws: Workspace) -> None:
    edit(ws, "folders: []", "folders: [file:///models]")
    found = only_problem(ws)
    assert found.kind is ParamsError
    assert "double quotes" in found.remedy
    edit(ws, "[file:///models]", '["file:///models"]')
    assert not problems(ws)


# --- the signing key


def elsewhere(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(the folder with the ledger's key, an empty one), and a clone's environment, which has the second."""
    theirs, ours = Path(os.environ["SAFEGENE_KEYS"]), ws.root.parent / "ours"
    ours.mkdir(mode=0o700)
    monkeypatch.setenv("SAFEGENE_KEYS", str(ours))
    return theirs, ours


def test_a_clone_without_the_key_is_mended_by_bringing_it(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = elsewhere(ws, monkeypatch)
    found = only_problem(ws)
    assert found.kind is LedgerError
    assert found.check == "signing key"
    named, place = re.findall(r"copy (\w+)\.\.\.pem into (\S+),", found.remedy)[0]
    assert Path(place) == ours.resolve()
    (key,) = theirs.glob(f"{named}*.pem")
    shutil.copy(key, place)
    assert not problems(ws)


def test_a_clone_without_the_key_is_mended_by_its_pem(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, _ = elsewhere(ws, monkeypatch)
    named = re.findall(r"copy (\w+)\.\.\.pem", only_problem(ws).remedy)[0]
    (key,) = theirs.glob(f"{named}*.pem")
    assert "SAFEGENE_SIGNING_KEY" in only_problem(ws).remedy
    monkeypatch.setenv("SAFEGENE_SIGNING_KEY", key.read_text())
    assert not problems(ws)


@pytest.mark.parametrize("way", ["pin", "rotate"])
def test_a_new_key_alone_mends_nothing_until_the_holder_trusts_it(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    theirs, _ = elsewhere(ws, monkeypatch)
    create_key()
    found = only_problem(ws)
    assert "keys create" not in found.remedy, "a circle: the key is made already"
    show = re.findall(r"`(safegene keys show \w+ > key\.json)` here", found.remedy)[0]
    trust = {
        "pin": re.findall(r"`(safegene keys pin key\.json)`", found.remedy)[0],
        "rotate": re.findall(r"`(safegene keys rotate --to key\.json)`", found.remedy)[0],
    }[way]
    shell(show, ws.root)
    with monkeypatch.context() as holder:
        holder.setenv("SAFEGENE_KEYS", str(theirs))
        shell(trust, ws.root)
    shell("rm key.json && git add --all && git commit -qm 'trust a key'", ws.root)
    assert not problems(ws)
    assert key_ids()


def test_a_key_without_an_owner_is_named_where_several_must_sign(ws: Workspace) -> None:
    edit(ws, "  public_key: ledger.pub", "  public_key: ledger.pub\n  signatures: 2")
    found = only_problem(ws)
    assert found.check == "signing key"
    shell(found.remedy.replace("NAME", '"Ada <ada@example.org>"'), ws.root)
    assert not problems(ws)


# --- judge, prompts, sources


def own_family(ws: Workspace) -> Path:
    """A family of another vocabulary, with prompt sets of its own."""
    folder = ws.root.parent / "own"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"hello": 0}}}))
    (folder / "model.safetensors").write_bytes(b"")
    edit(ws, "tiny://aligned?seed=0", str(folder))
    for name in ("degrade", "safety", "pool", "gate"):
        path = ws.prompts / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"prompt": f"{row['prompt']} please"}) + "\n" for row in rows))
    return folder


def test_the_tiny_judge_is_refused_for_another_family_with_the_judges_that_fit(ws: Workspace) -> None:
    own_family(ws)
    found = only_problem(ws)
    assert (found.check, found.kind) == ("judge", JudgeError)
    assert "classifier, guard, phrases" in found.remedy.replace("chat, ", "")
    edit(ws, "{kind: grammar}", "{kind: phrases}")
    assert not problems(ws)
    (note,) = examine(ws).findings
    assert "no pass" in note.message
    assert "safegene judge calibrate" in note.remedy


def test_the_tiny_prompts_are_refused_for_another_family(ws: Workspace) -> None:
    edit(ws, "tiny://aligned?seed=0", "hf://org/model")
    edit(ws, "{kind: grammar}", "{kind: phrases}")
    assert [found.check for found in examine(ws, only=("prompts",)).problems] == ["prompts"]


def test_a_calibration_of_another_judge_is_refused_and_measuring_it_again_mends_it(ws: Workspace) -> None:
    own_family(ws)
    edit(ws, "{kind: grammar}", "{kind: phrases, calibration: data/judges/judge.json}")
    (note,) = examine(ws).findings
    assert "got none: the gate gives no pass" in note.message
    assert not note.stops
    labels = ws.root.parent / "labels.jsonl"
    replies = [{"prompt": "p", "reply": f"sorry, but no {at}" if at % 2 else f"yes {at}"} for at in range(80)]
    labels.write_text(
        "".join(json.dumps(r | {"harmful": not at % 2, "refusal": bool(at % 2)}) + "\n" for at, r in enumerate(replies))
    )
    measure = (
        note.remedy.partition("; then ")[2]
        .replace("LABELS.jsonl", str(labels))
        .replace("SOURCE", "'80 replies of ours'")
    )
    shell(measure, ws.root)
    assert not examine(ws).findings
    edit(ws, "kind: phrases,", 'kind: phrases, phrases: ["i will not"],')
    assert "got one of" in only_problem(ws).message
    shell(measure, ws.root)
    assert not examine(ws).problems


def test_phrases_that_miss_a_plain_refusal_are_named_and_more_phrases_mend_it(ws: Workspace) -> None:
    own_family(ws)
    edit(ws, "{kind: grammar}", '{kind: phrases, phrases: ["cannot help"]}')
    assert not problems(ws)
    note = next(found for found in examine(ws).findings if "canaries" in found.message)
    assert "I'm sorry, but I can't help" in note.message, "the reply that it misses"
    assert "i can't" in note.remedy
    edit(ws, 'phrases: ["cannot help"]', 'phrases: ["cannot help", "i can\'t"]')
    assert not [found for found in examine(ws).findings if "canaries" in found.message]


@pytest.mark.parametrize(
    ("name", "keep", "what"),
    [
        ("degrade", lambda row: row["pool"] != "jailbreak", "pool jailbreak"),
        ("safety", lambda row: row["split"] == "fit", "split validation, for shots by which `calibrate` chooses"),
        ("safety", lambda row: row["kind"] != "harmful" or row["split"] != "fit", "rows of kind harmful, split fit"),
        ("gate", lambda row: row["kind"] != "lookalike", "rows of kind lookalike"),
        ("pool", lambda row: row["split"] != "validation", "rows of split validation, for prompts whose judged"),
    ],
)
def test_rows_that_a_stage_needs_are_counted(
    ws: Workspace, name: str, keep: Callable[[dict[str, str]], bool], what: str
) -> None:
    path = ws.prompts / f"{name}.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if keep(json.loads(line))))
    found = problems(ws)
    assert found
    assert any(what in one.message for one in found), found
    assert {(one.check, one.kind) for one in found} == {("rows", EmptySample)}
    require_ready(ws)  # stage validate, the first, says it in full
    path.write_text("".join(lines))
    assert not problems(ws)


def test_sets_that_are_not_there_are_one_finding_and_the_pool_is_one_of_them(ws: Workspace) -> None:
    for name in ("safety", "pool", "gate"):
        (ws.prompts / f"{name}.jsonl").unlink()
    found = only_problem(ws)
    assert "expected data/prompts/safety.jsonl, data/prompts/pool.jsonl, data/prompts/gate.jsonl" in found.message
    assert "safegene data split" in found.remedy
    git(ws.root, "checkout", "--quiet", "data/prompts/safety.jsonl", "data/prompts/gate.jsonl")
    assert only_problem(ws).kind is ArtifactError, "DVC's stage depends on the file, with mining and without"
    edit(ws, "mining: {rounds: 1}", "mining: {rounds: 0}")
    assert only_problem(ws)
    dvc = ws.root / "dvc.yaml"
    dvc.write_text("".join(line for line in dvc.read_text().splitlines(keepends=True) if "pool.json" not in line))
    assert not any("pool.jsonl" in found.message for found in problems(ws)), "a workspace of before mining needs none"


def test_a_target_that_is_not_there_is_named_and_stops_nobody_else(ws: Workspace) -> None:
    entry = Target(source="file:///no/such/folder", task="topic", fingerprint="sha256:0")
    save_targets(ws.targets_file, ws.targets.model_copy(update={"targets": {**ws.targets.targets, "gone": entry}}))
    report = examine(ws)
    assert not report.problems
    assert "target gone" in report.findings[0].message
    assert not examine(ws, ["topic"]).findings


def test_an_aligned_model_without_weights_stops_a_run(ws: Workspace) -> None:
    (own_family(ws) / "model.safetensors").unlink()
    edit(ws, "{kind: grammar}", "{kind: phrases}")
    found = only_problem(ws)
    assert "expected weights in safetensors" in found.message
    assert found.kind is SourceError


def test_an_aligned_model_that_is_not_there_stops_a_run(ws: Workspace) -> None:
    edit(ws, "tiny://aligned?seed=0", "/no/such/folder")
    assert [found.check for found in problems(ws)] == ["sources"]


DEAD = "http://127.0.0.1:9/api"


def test_too_few_prompts_for_a_pass_are_said_before_a_run(ws: Workspace) -> None:
    edit(ws, "min_rows: 32", "min_rows: 30")
    path = ws.prompts / "gate.jsonl"
    rows = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["kind"] != "lookalike"]
    kept = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["kind"] == "lookalike"][:40]
    path.write_text("".join(rows + kept))
    report = examine(ws)
    assert not report.problems
    (note,) = report.findings
    assert "about 125 independent prompts of kind lookalike" in note.message
    assert "add about 85" in note.remedy


def test_a_model_larger_than_the_memory_is_named(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from safegene.pipeline.doctor import machine
    from safegene.pipeline.stages.fetch import fetch

    fetch("tiny://aligned?seed=0", out=ws.aligned)
    assert not problems(ws)
    monkeypatch.setattr(machine, "PROCESS", 1 << 60)
    monkeypatch.setattr(machine, "GPU", Path("/no/such/device"))
    assert only_problem(ws).check == "memory"


def test_a_run_is_refused_before_anything_is_computed(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.build import build
    from flows.realign import realign

    elsewhere(ws, monkeypatch)
    for flow in (realign, build):
        with pytest.raises(LedgerError, match="expected the private key"):
            flow.fn(str(ws.root))
    assert not (ws.data / "validation").exists()
    assert not (ws.root / "dvc.lock").exists()


def test_deploy_without_a_server_is_one_sentence(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from safegene.cli.workspace import deploy

    monkeypatch.chdir(ws.root)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(ParamsError, match="PREFECT_API_URL"):
        deploy()
    monkeypatch.setenv("PREFECT_API_URL", DEAD)
    with pytest.raises(SafegeneError, match="to answer") as refused:
        deploy()
    assert "prefect server start" in refused.value.remedy


def test_a_full_disk_and_other_versions_are_named(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from safegene.pipeline.doctor import machine

    monkeypatch.setattr(machine, "ROOM", 1 << 80)
    monkeypatch.setattr(machine, "_installed", lambda name: "0.0.1" if name == "fastapi" else None)
    by_check = {found.check: found for found in examine(ws).findings}
    assert by_check["disk"].stops
    assert "fastapi 0.0.1 (locked: " in by_check["versions"].message
    assert not by_check["versions"].stops
    assert by_check["versions"].remedy.startswith("pip install -r ")


def test_a_dead_server_is_one_finding(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.server import check_server

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert not list(check_server())
    monkeypatch.setenv("PREFECT_API_URL", DEAD)
    with pytest.raises(SafegeneError, match="PREFECT_API_URL"):
        require_ready(ws, more=check_server())
