"""Errors as people provoke them: each is one sentence with expected, got and where, and a remedy; none is a traceback.

Every case starts from a workspace with one target and a passing verdict. `damage` changes a copy of it, and the command
is given there. `where` must be in the message: the file, key or name that is wrong.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from safegene.pipeline.process import show_progress
from safegene.workspace.layout import Workspace
from tests.factories.commands import call
from tests.factories.ledger import TARGET, attempt, make_verdict, make_workspace

DIGEST = "sha256:" + 64 * "a"


@dataclass(frozen=True)
class Case:
    """A fault: what is damaged, the command that meets it, its exit code, and what the message must name."""

    name: str
    command: str
    where: str
    code: int = 1
    damage: Callable[[Path], object] = field(default=lambda _: None)


def text(path: str, old: str = "", new: str = "") -> Callable[[Path], object]:
    """Damage: replace ``old`` in a file, or write ``new`` as all of it."""

    def do(root: Path) -> None:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.read_text() if old else ""
        assert old in before, (path, old)
        file.write_text(before.replace(old, new, 1) if old else new)

    return do


def gone(path: str) -> Callable[[Path], object]:
    def do(root: Path) -> None:
        place = root / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return do


def first(pattern: str, data: bytes) -> Callable[[Path], object]:
    """Damage: append bytes to the first file that fits, of a workspace whose candidate is live."""

    def do(root: Path) -> None:
        live(root)
        file = sorted(root.glob(pattern))[0]
        file.chmod(0o644)
        file.write_bytes(file.read_bytes() + data)

    return do


def live(root: Path) -> None:
    assert attempt(Workspace(root)) == "pass"


def verdict(outcome: str) -> Callable[[Path], object]:
    return lambda root: make_verdict(Workspace(root), outcome=outcome)


def env(**values: str) -> Callable[[Path], object]:
    """Damage: environment variables; ``{root}`` is the workspace. The test restores them."""
    return lambda root: os.environ.update({name: value.format(root=root) for name, value in values.items()})


def both(*damages: Callable[[Path], object]) -> Callable[[Path], object]:
    def do(root: Path) -> None:
        for damage in damages:
            damage(root)

    return do


def folder(*names: str) -> Callable[[Path], object]:
    """Damage: a folder ``model`` with these files, of a few bytes each."""

    def do(root: Path) -> None:
        (root / "model").mkdir()
        for name in names:
            (root / "model" / name).write_bytes(b"{}")

    return do


T = TARGET
AT = f"data/targets/{T}"
PARAMS, READ, PROMOTE = "params.yaml", f"resolve {T}", f"promote {T}"
CASES = (
    # params.yaml, data/targets.yaml and the environment
    Case("params: no YAML", READ, PARAMS, 2, text(PARAMS, new="family: [")),
    Case("params: empty", READ, PARAMS, 2, text(PARAMS, new="")),
    Case("params: no mapping", READ, PARAMS, 2, text(PARAMS, new="- 1\n")),
    Case("params: unknown key", READ, "compres", 2, text(PARAMS, "degrade:", "compres: {}\ndegrade:")),
    Case("params: wrong type", READ, "compress.rank", 2, text(PARAMS, "degrade:", "compress: {rank: x}\ndegrade:")),
    Case("params: margin above the floor", READ, "margin_hrr", 2, text(PARAMS, "hrr: 0.1", "hrr: 0.9")),
    Case("params: unknown scheme", READ, "family.aligned", 2, text(PARAMS, "tiny://aligned?seed=0", "nonsense")),
    Case("params: ledger among artefacts", READ, "promote.ledger", 2, text(PARAMS, '"ledger"', '"data/family"')),
    Case("params: key in the ledger", READ, "promote.public_key", 2,
         text(PARAMS, 'ledger: "ledger"', 'ledger: "ledger", public_key: ledger/pub')),
    Case("params: secret in a place", READ, "promote.ledger", 2, text(PARAMS, '"ledger"', '"s3://k:secret@b/l"')),
    Case("targets: no YAML", PROMOTE, "targets.yaml", 2, text("data/targets.yaml", new="targets: [")),
    Case("targets: bad name", PROMOTE, "targets.yaml", 2, text("data/targets.yaml", f"{T}:", "Bad Name:")),
    Case("log level", "status", "SAFEGENE_LOG", 2, env(SAFEGENE_LOG="verbose")),
    Case("cache is a file", PROMOTE, "SAFEGENE_CACHE", 2, env(SAFEGENE_CACHE="{root}/params.yaml/x")),
    Case("no workspace", "status", "safegene workspace", 2, gone("dvc.yaml")),
    # commands given wrongly
    Case("init: folder in use", "init .", "folder", 2),
    Case("init: no such params", "init new --params none.yaml", "none.yaml", 2),
    Case("init: secret in the remote", "init new --remote s3://k:secret@b/x", "s3://***@b/x", 2),
    Case("target add: unknown task", "target add b tiny://topic?seed=0 --task none", "'none'", 2),
    Case("target add: bad name", f"target add B tiny://topic?seed=0 --task {T}", "'B'", 2),
    Case("target add: unknown scheme", f"target add b ftp://x --task {T}", "ftp://x"),
    Case("target add: no such folder", f"target add b file:///no/such --task {T}", "/no/such"),
    Case("target add: pickles", f"target add b file://{{root}}/model --task {T}", "model", 1,
         folder("config.json", "pytorch_model.bin")),
    Case("target add: no weights", f"target add b file://{{root}}/model --task {T}", "model", 1, folder("config.json")),
    Case("target remove: unknown", "target remove nobody", "'nobody'", 2),
    Case("run: unknown target", "run nobody --dry-run", "nobody", 2),
    Case("promote: unknown target", "promote nobody", "'nobody'", 2),
    Case("gate: unknown target", "gate nobody", "'nobody'", 2),
    Case("gate show: unknown target", "gate show nobody", "'nobody'", 2),
    Case("calibrate: unknown target", "calibrate nobody", "'nobody'", 2),
    Case("diagnose: unknown target", "diagnose nobody", "'nobody'", 2),
    Case("export: unknown target", "export nobody out", "nobody", 2),
    Case("serve-plan: unknown target", "serve-plan nobody", "nobody", 2),
    Case("tiny build: unknown", "tiny build nobody", "'nobody'"),
    Case("judge calibrate: no place", "judge calibrate l.jsonl --what x", "evaluate.judge.calibration", 2),
    Case("suite add: no licence", "suite add s x.csv --format harmbench", "licence", 2),
    Case("suite add: unknown format", "suite add s x.csv --format none --licence MIT", "'none'", 2),
    Case("suite add: no file", "suite add s none.csv --format harmbench --licence MIT", "none.csv"),
    Case("suite use: malformed prompts", "suite use none", "safety.jsonl"),
    Case("keys show: unknown", "keys show deadbeef", "deadbeef"),
    Case("keys revoke: not pinned", "keys revoke deadbeef --reason x", "deadbeef"),
    Case("deploy: no server", "deploy", "PREFECT_API_URL", 2),
    # artefacts that are absent, altered, or of something else
    Case("gate show: no verdict", f"gate show {T}", "verdict", 1, gone(f"{AT}/verdict")),
    Case("promote: no verdict", PROMOTE, "verdict", 1, gone(f"{AT}/verdict")),
    Case("promote: altered judgements", PROMOTE, "judgements.jsonl", 1,
         text(f"{AT}/judgements/judgements.jsonl", '"no"', '"yes"')),
    Case("promote: altered adapter", PROMOTE, "adapter_model.safetensors", 1,
         text(f"{AT}/candidate/adapter_model.safetensors", "adapter", "adapted")),
    Case("promote: a file too many", PROMOTE, "extra", 1, text(f"{AT}/candidate/extra", new="x")),
    Case("promote: a file too few", PROMOTE, "adapter_config.json", 1,
         gone(f"{AT}/candidate/adapter_config.json")),
    Case("promote: no JSON in a manifest", PROMOTE, "manifest.json", 1,
         text(f"{AT}/verdict/manifest.json", new="{")),
    Case("promote: another stage's manifest", f"gate {T}", "manifest.json", 1,
         text(f"{AT}/judgements/manifest.json", '"evaluate"', '"fetch"')),
    Case("promote: no incumbent file of its form", PROMOTE, "incumbent", 1,
         text(f"{AT}/incumbent.json", new="[]")),
    Case("promote: other prompts", PROMOTE, "prompts", 1, text("data/prompts/gate.jsonl", new="{}\n")),
    Case("promote: another policy", PROMOTE, "polic", 1, text(PARAMS, "margin_hrr: 0.1", "margin_hrr: 0.09")),
    Case("diagnose: calibrated without a diagnosis", f"diagnose {T}", "coefficients.json"),
    Case("promote: no vector", PROMOTE, "vector", 1, gone("data/family/vector")),
    Case("compress: no delta", "compress", "delta"),
    Case("promote: no candidate", PROMOTE, "candidate", 1, gone(f"{AT}/candidate")),
    # verdicts that do not allow it
    Case("promote: fail", PROMOTE, T, 3, verdict("fail")),
    Case("promote: inconclusive", PROMOTE, T, 4, verdict("inconclusive")),
    Case("export: fail", f"export {T} out", T, 3, verdict("fail")),
    Case("merge: inconclusive", f"merge {T} out", T, 3, verdict("inconclusive")),
    Case("override: no last day", f"promote {T} --override x", "--expires", 2),
    Case("override: no date", f"promote {T} --override x --expires soon", "soon", 2, verdict("fail")),
    Case("override: in the past", f"promote {T} --override x --expires 2020-01-01", "2020-01-01", 2, verdict("fail")),
    # the ledger
    Case("resolve: nothing live", f"resolve {T}", T),
    Case("rollback: nothing live", f"rollback {T}", T, 3),
    Case("rollback: no such record", f"rollback {T} --to 99", "99", 3, live),
    Case("rollback: nothing before", f"rollback {T}", T, 3, live),
    Case("audit show: nothing live", f"audit show {T}", T),
    Case("audit diff: no such record", "audit diff 7 8", "'7'"),
    Case("audit blast: no such digest", f"audit blast {DIGEST}", "aaaa", 1, live),
    Case("audit revoke: no digest", "audit revoke nonsense --reason x", "nonsense", 1, live),
    Case("audit revoke: no reason", f"audit revoke {DIGEST} --reason \t", "reason", 2, live),
    Case("audit export gto: no release", "audit export gto", "release"),
    Case("audit pack: folder in use", f"audit pack {T} --out data", "data", 2, live),
    Case("approve: nothing waits", "approve 0", "0", 3, live),
    Case("ledger: altered record", f"audit show {T}", "ledger/records", 1, first("ledger/records/*", b" ")),
    Case("ledger: altered pointer", f"resolve {T}", "ledger/channels", 1, first("ledger/channels/*/*", b"x")),
    Case("ledger: altered tip", f"resolve {T}", "ledger", 1, first("ledger/tip*", b"x")),
    Case("ledger: altered release", f"resolve {T}", "adapter_model.safetensors", 1,
         first("ledger/releases/*/candidate/adapter_model.safetensors", b"x")),
    Case("ledger: no pinned key", f"resolve {T}", "ledger.pub", 1, both(live, gone("ledger.pub"))),
    Case("ledger: malformed pinned key", f"resolve {T}", "ledger.pub", 1, both(live, text("ledger.pub", new="{}"))),
    Case("ledger: another key signs here", PROMOTE, "key", 1, env(SAFEGENE_KEYS="{root}/../other")),
    Case("ledger: malformed ledger.seen", f"resolve {T}", "ledger.seen", 1, both(live, text("ledger.seen", new="x"))),
)  # fmt: skip


def test_there_are_sixty_and_more() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("ready") / "ws").root


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_is_one_sentence_with_a_remedy(
    case: Case, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "ws"
    shutil.copytree(ready, root)
    for name in ("SAFEGENE_LOG", "SAFEGENE_CACHE", "SAFEGENE_KEYS"):  # restored after the test, whatever a case sets
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if not os.environ[name]:
            monkeypatch.delenv(name)
    case.damage(root)
    if case.name == "log level":
        with pytest.raises(Exception, match="SAFEGENE_LOG") as raised:
            show_progress()
        error: BaseException | None = raised.value
    else:
        error = call(root, *case.command.format(root=root).split(" "), code=case.code).error
    assert error is not None, "an exit code alone says nothing"
    message, remedy = getattr(error, "message", ""), getattr(error, "remedy", "")
    assert "expected" in message
    assert "got" in message
    assert case.where in message
    assert "\n" not in message
    assert "Traceback" not in message
    assert len(message) < 700
    assert remedy, message
    json.dumps([message, remedy])
