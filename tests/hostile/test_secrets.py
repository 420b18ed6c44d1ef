"""A canary in every place where a secret can be by mistake: it is in no output, record, report or configuration."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from safegene.errors import ParamsError, SafegeneError
from safegene.ledger.chain import open_ledger
from safegene.pipeline.init import add_target, init
from safegene.pipeline.stages.promote import record_error
from safegene.text import redact_text
from safegene.workspace.layout import Workspace
from tests.factories.commands import BIN
from tests.factories.ledger import TARGET, attempt, make_workspace

CANARY = "canaryQ7x9Zt4Lm2Kp8Rv3Wn6"
URLS = [
    f"https://user:{CANARY}@host/x",
    f"https://user:a/{CANARY}@host/x",
    f"https://user:a@{CANARY}@host/x",
    f"https://{CANARY}@host/x",
    f"s3://key:{CANARY}@bucket/x",
    f"s3://key:a/{CANARY}@bucket/x",
    f"hf://org/model?token={CANARY}",
    f"https://host/x?X-Amz-Signature={CANARY}",
    f"https://host/x#access_token={CANARY}",
    f"hf://hf_{CANARY}{CANARY}/model",
]
ENVIRONMENT = ("SAFEGENE_JUDGE_KEY", "SAFEGENE_SERVER_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PREFECT_API_KEY")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    ws = make_workspace(tmp_path_factory.mktemp("secrets") / "ws")
    attempt(ws)
    subprocess.run(["git", "init", "--quiet", str(ws.root)], check=True)
    return ws


@pytest.fixture
def ws(original: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("SAFEGENE_STATE", str(tmp_path / "state"))
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, CANARY)
    return Workspace(Path(shutil.copytree(original.root, tmp_path / "ws")))


def clean(folder: Path, *outputs: str, written: tuple[Path, ...] = ()) -> None:
    """The canary is in no output and in no file, except those that a person wrote it into."""
    for output in outputs:
        assert CANARY not in output
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path not in written:
            assert CANARY.encode() not in path.read_bytes(), path


def said(folder: Path, *command: str) -> str:
    """What a command prints, its trace too."""
    words = [str(BIN / "safegene"), "--debug", *command]
    done = subprocess.run(words, cwd=folder, env={**os.environ, "COLUMNS": "400"}, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize("url", URLS)
def test_a_secret_in_the_source_of_a_target_is_refused(ws: Workspace, tmp_path: Path, url: str) -> None:
    with pytest.raises(SafegeneError) as caught:
        add_target(ws, "bad", url, "sentiment")
    clean(tmp_path, str(caught.value), caught.value.remedy)
    if url in (URLS[0], URLS[-1]):
        output = said(ws.root, "target", "add", "bad", url, "--task", "sentiment")
        assert "error " in output
        clean(tmp_path, output)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("where", ["targets.yaml", "server", "judge", "ledger", "watch", "family"])
def test_a_secret_in_a_file_of_parameters_is_refused_where_it_is_read(
    ws: Workspace, tmp_path: Path, url: str, where: str
) -> None:
    params = ws.root / "params.yaml"
    text = params.read_text()
    if where == "targets.yaml":
        params = ws.targets_file
        text = params.read_text().replace(f"tiny://{TARGET}?seed=0", url)
    elif where == "server":
        text = text.replace("{kind: grammar}}", f'{{kind: grammar}}, server: {{url: "{url}", names: {{before: m}}}}}}')
    elif where == "judge":
        text = text.replace("{kind: grammar}", f'{{kind: chat, model: m, url: "{url}"}}')
    elif where == "ledger":
        text = text.replace('ledger: "ledger"', f'ledger: "{url}"')
    elif where == "watch":
        text += f'\nwatch: {{folders: ["{url}"], task: sentiment}}\n'
    else:
        text = text.replace("tiny://aligned?seed=0", url)
    assert CANARY in text
    params.write_text(text)
    with pytest.raises(ParamsError) as caught:
        _ = ws.params, ws.targets
    clean(tmp_path, str(caught.value), caught.value.remedy, written=(params,))
    if url == URLS[0]:
        output = said(ws.root, "status") + said(ws.root, "promote", TARGET)
        assert "ParamsError" in output
        clean(tmp_path, output, written=(params,))


@pytest.mark.parametrize("place", ["remote", "ledger"])
@pytest.mark.parametrize("url", URLS[:6])
def test_a_secret_in_the_place_of_a_remote_or_ledger_is_refused(tmp_path: Path, url: str, place: str) -> None:
    with pytest.raises(ParamsError, match="without secrets") as caught:
        init(tmp_path / "new", **{place: url})  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
    clean(tmp_path, str(caught.value), caught.value.remedy)


def test_keys_in_the_environment_are_in_no_output(ws: Workspace, tmp_path: Path) -> None:
    outputs = [
        said(ws.root, *command)
        for command in (
            ("status",),
            ("report",),
            ("audit", "verify"),
            ("audit", "show", TARGET),
            ("promote", TARGET),
            ("resolve", TARGET),
            ("gate", "show", TARGET),
            ("target", "add", "new", "s3://bucket/model", "--task", "sentiment"),
        )
    ]
    clean(tmp_path, *outputs)


def test_a_record_of_an_error_holds_no_secret(ws: Workspace, tmp_path: Path) -> None:
    for url in URLS:
        error = SafegeneError(f"expected an answer from {url}, got Bearer {CANARY}", remedy=f"see {url}")
        clean(tmp_path, error.message, error.remedy, error.summary, str(error))
        record_error(ws, TARGET, error)
    newest = next(iter(open_ledger(ws.params.promote, ws.root).walk()))
    assert "***" in newest.reason
    said(ws.root, "report")
    clean(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "hf://org/model@revision",
        "file:///a/b:c@d",
        "http://host:8000/v1",
        "http://127.0.0.1:8000, see a@b",
        "s3://bucket/prefix",
        "tiny://sentiment?seed=0",
        "https://host/x?page=2",
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert redact_text(text) == text
