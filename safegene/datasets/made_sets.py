"""Which prompt and task sets commands have made, so that none writes over a file that a person wrote.

``data/suites/made.json`` names every set that ``data split`` made, with its digest and what it was made from;
``data/suites/gate.json`` names the gate's set that ``suite use`` made. A file of any other content is taken for a
person's, except the sets of the tiny family, which come with safegene.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from safegene.errors import ParamsError
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import canonical_json, digest_bytes, digest_file
from safegene.workspace.fields import Digest
from safegene.workspace.layout import Workspace
from safegene.workspace.parsing import Strict, parse_json

MADE_FILE, GATE_SUITES_FILE = "made.json", "gate.json"
GATE = "prompts/gate.jsonl"
SHIPPED: Mapping[str, str] = {
    "prompts/degrade.jsonl": "sha256:a2cf6482fbf5d7fffe934df27c4e19f35a971868a81fdb9a8415763dd84c16ce",
    "prompts/gate.jsonl": "sha256:ec9ee9ea93ae91af374accdd0073fc457639d9ea03f099beef8496cddc27df59",
    "prompts/pool.jsonl": "sha256:e621dfd444762a433a5855e42db9344a492ef774a5ba6a5a0d448191a241e0be",
    "prompts/safety.jsonl": "sha256:d00425bbeb20299198a76530854b055a4e903dcef46af68bed4c4cca43602de5",
    "tasks/group.jsonl": "sha256:227389c5ade3b0f7087bc2b03719b74c209137c53562ed531e200649a2bdcff5",
    "tasks/sentiment.jsonl": "sha256:b87212267e35cf6388f0a02db1d57a51c56d95f8d0c724d7fde615c15b01d42a",
    "tasks/topic.jsonl": "sha256:aa1ba9cc15739c1f6a222c27de8d4a07dee91ed761d03f1eeec88f239a32ea7c",
}
"""Path below ``data`` -> digest of the tiny family's sets, which a command may replace without being asked to."""


class GateSuites(Strict):
    """Content of ``data/suites/gate.json``: what the gate's prompt set was made from.

    Attributes:
        schema_: the format's name.
        gate: digest of the prompt set.
        suites: name -> digest of each suite.
        left_out: name -> number of rows left out, because a prompt of their behaviour has the same text as a prompt of
            an earlier suite.
    """

    schema_: Literal["safegene/gate-suites/v1"] = Field(default="safegene/gate-suites/v1", alias="schema")
    gate: Digest
    suites: dict[str, Digest]
    left_out: dict[str, int]


class MadeSet(Strict):
    """How one set was made.

    Attributes:
        digest: of the file.
        before: digest of the file that it took the place of, made by a command too; a killed write leaves either.
        seed: of the split.
        suites: name -> digest of the suites that it was made from.
    """

    digest: Digest
    before: Digest | None
    seed: int
    suites: dict[str, Digest]


class MadeSets(Strict):
    """Content of ``data/suites/made.json``.

    Attributes:
        schema_: the format's name.
        sets: path below ``data`` -> how it was made.
    """

    schema_: Literal["safegene/made-sets/v1"] = Field(default="safegene/made-sets/v1", alias="schema")
    sets: dict[str, MadeSet] = {}


def read_made(ws: Workspace) -> MadeSets:
    """What ``data split`` has made in the workspace.

    Raises:
        FormatError: the file has another form.
    """
    path = ws.suites / MADE_FILE
    return parse_json(MadeSets, path.read_bytes(), where=str(path)) if path.is_file() else MadeSets()


def require_replaceable(ws: Workspace, path: Path, content: bytes) -> None:
    """Check that a command may write ``content`` to the path without being asked to.

    Args:
        ws: the workspace.
        path: of a set.
        content: what the command is about to write.

    Raises:
        ParamsError: a person wrote what is there.
    """
    if not path.is_file():
        return
    name, there = path.relative_to(ws.data).as_posix(), digest_file(path)
    made = read_made(ws).sets.get(name)
    known = {digest_bytes(content), SHIPPED.get(name)} | ({made.digest, made.before} if made else set())
    pins = ws.suites / GATE_SUITES_FILE
    if name == GATE and pins.is_file():
        known.add(parse_json(GateSuites, pins.read_bytes(), where=str(pins)).gate)
    if there not in known:
        raise ParamsError(
            f"expected {path} absent or as a safegene command wrote it, got one that somebody wrote or changed by hand",
            remedy="keep a copy and add --replace to write over it, or leave it and use another workspace",
        )


def write_made(ws: Workspace, sets: Mapping[str, bytes], *, seed: int, suites: Mapping[str, Mapping[str, str]]) -> None:
    """Write sets and their entries in ``made.json``; a writer that is killed can be run again.

    Each file is replaced in one step. Sets of two runs cannot be mixed unnoticed: `validate` refuses gate prompts that
    share a behaviour with a fitted set.

    Args:
        ws: the workspace.
        sets: path below ``data`` -> content.
        seed: of the split.
        suites: path -> name -> digest of the suites that the set was made from.
    """
    made = dict(read_made(ws).sets)
    for name, content in sets.items():
        path = ws.data / name
        there, old = digest_file(path) if path.is_file() else None, made.get(name)
        before = there if old is not None and there in (old.digest, old.before) else None
        made[name] = MadeSet(digest=digest_bytes(content), before=before, seed=seed, suites=dict(suites[name]))
    record = MadeSets(sets=dict(sorted(made.items())))
    write_file(ws.suites / MADE_FILE, canonical_json(record.model_dump(by_alias=True)) + b"\n")
    for name, content in sets.items():
        write_file(ws.data / name, content)
    if GATE in sets:
        (ws.suites / GATE_SUITES_FILE).unlink(missing_ok=True)
