"""New workspaces, and the targets in ``data/targets.yaml``."""

import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from safegene.errors import ParamsError
from safegene.text import redact, redact_text
from safegene.workspace.atomic import write_file
from safegene.workspace.git import config_value, git
from safegene.workspace.layout import Workspace, remotes_folder
from safegene.workspace.params import Target, Targets, load_params, save_targets

TEMPLATE_FILES = ("dvc.yaml", "params.yaml")
TEMPLATE_DATA = ("prompts", "tasks", "judges")
PROMPT_SETS = ("degrade", "safety", "pool", "gate")
GITIGNORE = "/.safegene/\n/reports/\n.*.draft\n"


def template_folder() -> Path:
    """The folder of the template: ``template`` in the wheel, the root of the repository in a checkout."""
    package = Path(__file__).parents[1]
    return package / "template" if (package / "template").is_dir() else package.parent


@dataclass(frozen=True)
class OwnFamily:
    """A family of one's own, as `init` writes it into ``params.yaml``; the workspace gets none of the tiny prompts.

    Attributes:
        aligned: its aligned model: a folder, ``ORG/MODEL`` of the Hub, or a URI.
        judge: kind of the judge.
        judge_model: folder or Hub id of the judge's model, where its kind has one.
        judge_revision: commit of the Hub id.
        data: a folder with prompt sets of one's own (``degrade.jsonl``, ``safety.jsonl``, ``pool.jsonl``,
            ``gate.jsonl``, also in ``prompts/``) and task sets (``tasks/*.jsonl``), which are copied; None for none.
    """

    aligned: str
    judge: str = "phrases"
    judge_model: str | None = None
    judge_revision: str | None = None
    data: Path | None = None


def init(
    folder: Path,
    *,
    remote: str | None = None,
    ledger: str | None = None,
    params: Path | None = None,
    family: OwnFamily | None = None,
) -> Workspace:
    """Make a workspace: the template in a new Git and DVC repository, a pinned public key, a first commit.

    The user's signing key is made where there is none. After an error the folder is as it was.

    Args:
        folder: a new or empty folder.
        remote: the DVC remote: ``s3://bucket/prefix`` or a folder; by default a folder of this user, outside of the
            workspace, where clones on this machine find it (`safegene.workspace.layout.remotes_folder`).
        ledger: the ledger: ``s3://bucket/prefix`` or a folder; by default the one that ``params.yaml`` names.
        params: a ``params.yaml`` to copy instead of the template's.
        family: a family of one's own; by default the tiny one, with its prompts.

    Raises:
        ParamsError: the folder is not empty, ``params`` is invalid, or ``family`` names something that cannot be.
        SafegeneError: Git failed.

    Example:
        >>> ws = safegene.init(Path("demo"))
        >>> ws.params.family.aligned
        'tiny://aligned?seed=0'
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        got = "which has files in it" if folder.is_dir() else "which is a file"
        raise ParamsError(f"expected a new or empty folder, got {folder}, {got}", remedy="choose another folder")
    for place in (remote, ledger):
        if place is not None and redact_text(place) != place:
            remedy = "give credentials by AWS_*, a profile or `dvc remote modify --local`, and revoke this one"
            raise ParamsError(f"expected a place without secrets, got one in {redact(place)}", remedy=remedy)
    if params is not None:
        load_params(params)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _fill(Workspace(folder.resolve()), remote=remote, ledger=ledger, params=params, family=family)
    except BaseException:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if new:
            folder.rmdir()
        raise


def _fill(
    ws: Workspace, *, remote: str | None, ledger: str | None, params: Path | None, family: OwnFamily | None
) -> Workspace:
    from safegene.ledger import ensure_key, open_memory, open_store, write_public_key

    _copy_template(ws.root, params)
    if ledger:
        _set(ws, "promote", "ledger", ledger)
    if family:
        _set_family(ws, family)
    place = open_store(ws.params.promote.ledger, base=ws.root).uri
    if "://" not in place and not Path(place).exists():  # what was there before was removed, and is not meant
        open_memory().forget_place(place)
    save_targets(ws.targets_file, Targets())
    write_file(ws.root / ".gitignore", GITIGNORE)
    git(ws.root, "init", "--quiet", "--initial-branch=main")
    _init_dvc(ws, remote)
    write_public_key(ensure_key(), ws.root / ws.params.promote.public_key)
    _commit(ws)
    return ws


def _copy_template(folder: Path, params: Path | None) -> None:
    source = template_folder()
    for name in TEMPLATE_FILES:
        shutil.copyfile(source / name, folder / name)
    if params is not None:
        shutil.copyfile(params, folder / "params.yaml")
    for name in TEMPLATE_DATA:
        shutil.copytree(source / "data" / name, folder / "data" / name)


def _set(ws: Workspace, section: str, key: str, value: str) -> None:
    """Write a value, as YAML, in the place of that of a key of ``params.yaml``; comments of other lines stay.

    Raises:
        ParamsError: the section has no line with that key.
    """
    path = ws.root / "params.yaml"
    text = path.read_text(encoding="utf-8")
    form = re.compile(rf"(^{section}:[^\n]*\n(?:(?:[ #][^\n]*)?\n)*?  {key}:)[^\n]*", re.MULTILINE)
    changed, found = form.subn(lambda match: f"{match[1]} {value}", text, count=1)
    if not found:
        raise ParamsError(f"expected a line '  {key}: ...' in section {section}, got none, in {path}")
    write_file(path, changed)


def _set_family(ws: Workspace, family: OwnFamily) -> None:
    """Name the family and its judge in ``params.yaml``, and put its own prompts in the place of the tiny family's."""
    from safegene.checkpoints.sources.uri import as_uri

    _set(ws, "family", "aligned", json.dumps(as_uri(family.aligned), ensure_ascii=False))
    parts = {"kind": family.judge, "model": family.judge_model, "revision": family.judge_revision}
    parts["calibration"] = "data/judges/judge.json"  # which `judge calibrate` writes
    judge = ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in parts.items() if value)
    _set(ws, "evaluate", "judge", f"{{{judge}}}")
    _set(ws, "evaluate", "max_new_tokens", "256")
    _set(ws, "evaluate", "batch_size", "32")
    for place in (ws.prompts, ws.tasks):
        shutil.rmtree(place)
        place.mkdir()
        (place / ".gitkeep").touch()  # Git keeps no empty folder, and stage validate reads both
    _copy_data(ws, family.data)
    load_params(ws.root / "params.yaml")  # whatever was named must be valid


def _copy_data(ws: Workspace, data: Path | None) -> None:
    if data is None:
        return
    sets = {path for place in (data, data / "prompts") for path in place.glob("*.jsonl") if path.stem in PROMPT_SETS}
    tasks = set((data / "tasks").glob("*.jsonl"))
    if not sets and not tasks:
        raise ParamsError(
            f"expected prompt sets ({', '.join(f'{name}.jsonl' for name in PROMPT_SETS)}) or tasks/*.jsonl, got none, "
            f"in {data}",
            remedy="leave --data out: the command says what is missing",
        )
    for paths, place in ((sets, ws.prompts), (tasks, ws.tasks)):
        for path in sorted(paths):
            shutil.copyfile(path, place / path.name)


def _init_dvc(ws: Workspace, remote: str | None) -> None:
    """Set up DVC with a remote that verifies what it returns; by default DVC trusts the bytes of a remote."""
    from dvc.config_schema import RelPath
    from dvc.repo import Repo

    url = remote or str(remotes_folder().resolve() / f"{ws.root.name}-{uuid4().hex[:8]}")
    if "://" not in url:
        (ws.root / url).mkdir(parents=True, exist_ok=True)
        url = url if Path(url).is_absolute() else RelPath(ws.root / url)
    logging.getLogger("dvc").setLevel(logging.WARNING)
    with Repo.init(str(ws.root)) as repo, repo.config.edit("repo") as config:
        config["core"] = {"analytics": False, "check_update": False, "autostage": False, "remote": "store"}
        bounds = {"connect_timeout": 10, "read_timeout": 60} if str(url).startswith("s3://") else {}
        config["remote"]["store"] = {"url": url, "verify": True, **bounds}


def _commit(ws: Workspace) -> None:
    for key, value in (("user.name", "safegene"), ("user.email", "safegene@localhost")):
        if not config_value(ws.root, key):
            git(ws.root, "config", key, value)
    git(ws.root, "add", "--all")
    git(ws.root, "commit", "--quiet", "-m", "safegene init")


def add_target(ws: Workspace, name: str, source: str, task: str) -> Target:
    """Add a fine-tune to ``data/targets.yaml``, or replace it, pinned to what its source holds now.

    Args:
        ws: the workspace.
        name: its name: small letters, digits, ``-`` and ``_``.
        source: of its checkpoint or LoRA adapter: a URI, a path, or ``ORG/MODEL`` of the Hub.
        task: its task set, ``data/tasks/TASK.jsonl``.

    Raises:
        ParamsError: the name or the source is malformed, or there is no such task set.
        SourceError: the source cannot be read.

    Example:
        >>> target = safegene.add_target(ws, "sentiment", "tiny://sentiment?seed=0", "sentiment")
        >>> target.task
        'sentiment'
    """
    from safegene.checkpoints.sources import fingerprint
    from safegene.checkpoints.sources.uri import as_uri

    if not (ws.tasks / f"{task}.jsonl").is_file():
        tasks = sorted(path.stem for path in ws.tasks.glob("*.jsonl"))
        raise ParamsError(
            f"expected one of the tasks {tasks}, got {task!r}, in {ws.tasks}",
            remedy=f"add its task set, {ws.tasks / task}.jsonl",
        )
    targets, source = ws.targets, as_uri(source)
    try:
        Target(source=source, task=task, fingerprint="unpinned")
        target = Target(source=source, task=task, fingerprint=fingerprint(source))
        changed = Targets.model_validate({**dict(targets), "targets": {**targets.targets, name: target}})
    except ValidationError as error:
        first = error.errors()[0]
        got = redact(repr(first["input"]))
        raise ParamsError(f"expected a target name and a source URI, got {got}: {first['msg']}") from None
    save_targets(ws.targets_file, changed)
    return target


def remove_target(ws: Workspace, name: str) -> None:
    """Remove a target from ``data/targets.yaml``; what is live for it stays live until it is rolled back or revoked.

    Raises:
        ParamsError: there is no such target.
    """
    ws.require_target(name)
    targets = ws.targets
    rest = {key: target for key, target in targets.targets.items() if key != name}
    save_targets(ws.targets_file, targets.model_copy(update={"targets": rest}))
