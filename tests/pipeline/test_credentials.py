"""A stage of a run gets no credentials that it does not need, and bounds on time and memory."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from safegene.checkpoints import sources
from safegene.checkpoints.sources import fetching
from safegene.errors import SafegeneError, SourceError
from safegene.pipeline import runner
from safegene.pipeline.process import LIMITS
from safegene.pipeline.runner import child_environment
from safegene.pipeline.stage_server import SWITCH, StageServer, is_usable
from safegene.pipeline.stages.fetch import fetch
from safegene.pipeline.table import PIPELINE, stage_named
from safegene.workspace.credentials import KEPT, REMOVED, secret_names
from safegene.workspace.layout import Workspace
from safegene.workspace.params import FetchParams, JudgeParams, Params, load_params
from tests.factories.commands import until
from tests.factories.llamas import save_llama

CANARY = "canaryQ7x9Zt4Lm2Kp8Rv3Wn6"
SECRETS = {
    name: CANARY
    for name in (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "OPENAI_API_KEY"),
        *("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "SAFEGENE_SIGNING_KEY", "SAFEGENE_SIGNING_PIN", "DB_PASSWORD"),
    )
} | {"PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql://prefect:{CANARY}@host/db"}
JUDGE = {"SAFEGENE_JUDGE_KEY": CANARY, "SAFEGENE_SERVER_KEY": CANARY}
HUB = {"HF_TOKEN": CANARY}
SETTINGS = {"HF_TOKEN_PATH": "a", "TOKENIZERS_PARALLELISM": "false", "GIT_AUTHOR_NAME": "a", "HF_HOME": "/a"}


@pytest.fixture
def params() -> Params:
    return load_params(Path(__file__).parents[2] / "params.yaml")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv(SWITCH, "0")
    for name, value in (SECRETS | JUDGE | HUB | SETTINGS).items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def seen(stage: str, params: Params) -> set[str]:
    """Variables of the canaries that a stage's process gets."""
    with child_environment(Path("error.json"), stage_named(stage), params):
        assert SETTINGS.items() <= os.environ.items()
        assert os.environ["SAFEGENE_KEYS"], "the seals of artefacts need it"
        return {name for name, value in os.environ.items() if CANARY in value}


def test_a_stage_gets_the_credentials_that_it_needs(params: Params, environment: pytest.MonkeyPatch) -> None:
    everything = {*SECRETS, *JUDGE, *HUB}
    assert secret_names(os.environ) & (everything | SETTINGS.keys()) == everything
    for stage in (stage.name for stage in PIPELINE if stage.tracked):
        copies, judges = stage.startswith("fetch"), stage in ("degrade", "calibrate", "evaluate")
        assert seen(stage, params) == (everything if copies else set(JUDGE) if judges else set())
    assert {name for name, value in os.environ.items() if CANARY in value} == everything, "they are back"


def test_further_credentials_are_for_who_names_them(params: Params, environment: pytest.MonkeyPatch) -> None:
    hub_judge = JudgeParams(kind="guard", model="org/guard", revision="a" * 40)
    gated = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"adjudicator": hub_judge})})
    assert seen("evaluate", gated) == {*JUDGE, *HUB}
    assert seen("compress", gated) == set()
    degraded = params.model_copy(update={"family": params.family.model_copy(update={"degraded": ("s3://b/c",)})})
    assert seen("extract", degraded) >= SECRETS.keys()
    assert seen("calibrate", degraded) == set(JUDGE)
    environment.setenv(KEPT, "OPENAI_API_KEY, DB_PASSWORD")
    assert seen("compress", params) == {"OPENAI_API_KEY", "DB_PASSWORD"}


@pytest.mark.skipif(not is_usable(), reason="a stage server is used on Linux only")
def test_a_stage_server_holds_none(environment: pytest.MonkeyPatch) -> None:
    server = StageServer()
    try:
        held = until(Path(f"/proc/{server._process.pid}/environ").read_bytes, 10, "the server's environment")
        assert CANARY.encode() not in held
        environment.setenv("HF_TOKEN", "another")
        assert server.serves, "a library does not read it when it is imported"
    finally:
        server.close()


def test_a_fetched_checkpoint_is_inspected_without_credentials(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    from safegene.pipeline.stages import fetch as module

    at, real = list[frozenset[str]](), module._full
    environment.setattr(module, "_full", lambda *args: at.append(secret_names(os.environ)) or real(*args))  # type: ignore[func-returns-value]
    environment.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    fetch(f"file://{save_llama(tmp_path / 'llama')}", out=tmp_path / "out")
    assert at == [frozenset()]
    assert os.environ["HF_TOKEN"] == CANARY


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace whose family lies behind a scheme that may need credentials, and is not in the cache."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    ws = Workspace(tmp_path)
    (tmp_path / "params.yaml").write_bytes((Path(__file__).parents[2] / "params.yaml").read_bytes())
    fetch(f"file://{save_llama(tmp_path / 'llama')}", out=ws.aligned)
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache2"))
    monkeypatch.setattr(fetching, "LOCAL", frozenset())
    return ws


def test_what_is_missing_is_copied_by_the_run_and_the_stage_runs_again(
    elsewhere: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = list[str]()

    def run(stage: object, ws: Workspace, target: str) -> bool:
        runs.append(target)
        with monkeypatch.context() as child:
            child.setenv(REMOVED, "1")
            sources.local_checkpoint(ws.aligned, FetchParams())
        return True

    monkeypatch.setattr(runner, "_reproduce", run)
    assert runner.reproduce(stage_named("select"), elsewhere)
    assert len(runs) == 2
    assert runner.reproduce(stage_named("select"), elsewhere)
    assert len(runs) == 3, "it is there now"


def test_another_error_of_a_source_is_not_tried_again(elsewhere: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = list[str]()

    def run(stage: object, ws: Workspace, target: str) -> bool:
        runs.append(target)
        raise SourceError("expected a source that answers")

    runner._bring_checkpoints(stage_named("select"), elsewhere, "")
    monkeypatch.setattr(runner, "_reproduce", run)
    with pytest.raises(SourceError, match="that answers"):
        runner.reproduce(stage_named("select"), elsewhere)
    assert len(runs) == 1


def bounded(limits: str, code: str) -> "subprocess.CompletedProcess[str]":
    script = f"from safegene.pipeline.process import keep_within_limits\nkeep_within_limits()\n{code}"
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env={**os.environ, LIMITS: limits}, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="the bounds of Linux")
def test_a_stage_is_ended_by_its_time_also_within_a_library() -> None:
    stuck = "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()"
    done = bounded("1 0", f"print(open('/proc/self/oom_score_adj').read(), flush=True)\n{stuck}")
    assert done.returncode == -signal.SIGALRM
    assert int(done.stdout) >= 500


@pytest.mark.skipif(sys.platform != "linux", reason="the bounds of Linux")
def test_a_stage_gets_no_more_memory_than_it_may_take() -> None:
    most = 2 << 30
    done = bounded(f"100 {most}", f"bytearray({most // 4}); print('small'); bytearray({most})")
    assert done.stdout == "small\n"
    assert "MemoryError" in done.stderr


def test_a_stage_that_was_ended_by_its_time_says_so(params: Params) -> None:
    flow = params.flow.model_copy(update={"max_stage_hours": 0.001})
    error: SafegeneError = runner._unreported(
        "gate@x", ValueError("exited with 142"), params.model_copy(update={"flow": flow})
    )
    assert "after flow.max_stage_hours (0.001)" in error.remedy
    assert "max_stage_hours" not in runner._unreported("gate@x", ValueError("exited with 1"), None).remedy
