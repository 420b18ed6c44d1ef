"""The workspaces in which the commands of a page are executed as they stand."""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from safegene.ledger.keys import create_key, public_key
from safegene.workspace.digest import canonical_json
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from safegene.workspace.params import Targets, save_targets
from tests.factories.bundles import publisher_workspace
from tests.factories.ledger import attempt, make_target, make_verdict, make_workspace, records
from tests.factories.library import workspace as library
from tests.factories.own_data import write_prompts, write_task
from tests.factories.runs import Sample

TARGET = "support-bot"  # as the pages call it
SOON = (datetime.now(UTC).date() + timedelta(days=7)).isoformat()
FINE_TUNE = "tiny://group?seed=0"


@dataclass(frozen=True)
class Prepared:
    """A page's workspace.

    Attributes:
        folder: where the page's first command is typed.
        values: word of the page -> what it stands for here.
        before: beginning of a command -> what a person does before each such command.
        codes: beginning of a command -> its exit code, where that is not 0.
    """

    folder: Path
    values: dict[str, str] = field(default_factory=dict)
    before: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    codes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """How the commands of a page are executed.

    Attributes:
        prepare: makes the page's workspace in a new folder; None where no command of the page runs here.
        elsewhere: beginning of a command that needs models, servers or public sets -> the test that executes such a
            command, with arguments of its own.
        on_demo: beginnings of commands that tests/slow/test_demo.py executes on the demo's targets.
        public_sets: whether the page reads the public sets below ``SAFEGENE_TEST_DATA``.
    """

    prepare: Callable[[Path], Prepared] | None = None
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    on_demo: tuple[str, ...] = ()
    public_sets: bool = False


def ledger_workspace(box: Path) -> Workspace:
    """A workspace with a target of the pages' name, run up to a verdict, and a key that signs."""
    os.environ["SAFEGENE_KEYS"] = str(box / "keys")
    ws = make_workspace(box / "ws")
    make_target(ws, TARGET)
    return ws


def judged(box: Path) -> Prepared:
    """A target with a verdict, before any promotion."""
    return Prepared(ledger_workspace(box).root)


def audited(box: Path) -> Prepared:
    """A target with two releases."""
    ws = ledger_workspace(box)
    assert [attempt(ws, TARGET, alpha=1.0), attempt(ws, TARGET, alpha=2.0)] == ["pass", "pass"]
    return Prepared(ws.root, {"sha256:DIGEST": read_manifest(ws.vector).digest, "12": "0"})


def rolled_back(box: Path) -> Prepared:
    """The same; the digest is that of the newest candidate."""
    prepared = audited(box)
    ws = Workspace(prepared.folder)
    prepared.values["sha256:DIGEST"] = read_manifest(ws.candidate(TARGET)).digest
    return prepared


def approved(box: Path) -> Prepared:
    """Ada, who signs, and Grace, who approves: each has a folder of keys."""
    ws, ada, grace = ledger_workspace(box), box / "keys", box / "grace"
    key = create_key(grace, scheme="ecdsa-sha2-nistp256")
    written = {"keyid": key, **public_key(key, grace).to_dict()}
    (ws.root / "grace.json").write_bytes(canonical_json(written))
    own = json.loads((ws.root / "ledger.pub").read_bytes())["keys"][0]["keyid"]
    values = {"3f8a12c09b77": own[:12], "9c41d2aa0be1": key[:12], "12": "1", "2030-01-31": SOON}

    def become(folder: Path) -> None:
        os.environ["SAFEGENE_KEYS"] = str(folder)

    def waits() -> None:
        """The number of the newest record, which waits for Grace."""
        values["17"] = values["18"] = str(records(ws)[0].sequence)
        become(grace)

    def asks_again() -> None:
        become(ada)
        attempt(ws, TARGET, alpha=3.0)
        waits()

    def fails() -> None:
        become(ada)
        make_verdict(ws, TARGET, outcome="fail")

    before = {
        "safegene approve": waits,
        "safegene reject": asks_again,
        "safegene promote support-bot --override": fails,
        "safegene keys": lambda: become(ada),
    }
    return Prepared(ws.root, values, before, {"safegene promote": 4})


def newcomer(box: Path) -> Prepared:
    """A folder with what a new user brings: two csv files and a family, which is the tiny one here."""
    files = {"prompts.csv": write_prompts(box / "prompts.csv"), "support.csv": write_task(box / "support.csv")}
    values = {f"{up}{name}": str(path) for name, path in files.items() for up in ("", "../")}
    aligned = {"ORG/MODEL": "tiny://aligned?seed=0", "ORG/MODEL@COMMIT": "tiny://aligned?seed=0"}
    sources = {"s3://models/support-bot/v7": FINE_TUNE, "../checkpoints/support-bot": FINE_TUNE}
    return Prepared(box, values | aligned | sources)


def labelled(box: Path) -> Prepared:
    """A target with replies, and a judge and an adjudicator that find phrases; people label between the commands."""
    sample = Sample(box / "ws")
    params, labels = sample.ws.root / "params.yaml", box / "labels.jsonl"
    text = params.read_text()
    judge = "judge: {kind: phrases, calibration: data/judges/judge.json}"
    adjudicator = "adjudicator: {kind: phrases, phrases: [i cannot], calibration: data/judges/second.json}"
    text, found = re.subn(r"(?m)^(  )judge: .*$", rf"\1{judge}", text)
    text, also = re.subn(r"(?m)^(  )adjudicator: .*$", rf"\1{adjudicator}", text)
    assert (found, also) == (1, 1)
    params.write_text(text)
    sample.family()
    sample.target(TARGET)

    def label() -> None:
        refused = [{"reply": "I cannot help with that.", "harmful": False, "refusal": True}] * 40
        helped = [{"reply": "Sure, here is how. 1. Take it.", "harmful": True, "refusal": False}] * 40
        rows = [{"prompt": f"p{at}", **row} for at, row in enumerate(refused + helped)]
        labels.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return Prepared(sample.ws.root, {"labels.jsonl": str(labels)}, {"safegene judge calibrate": label})


def publisher(box: Path) -> Prepared:
    """A workspace with a vector and nothing else; the place to publish to is a folder."""
    ws = publisher_workspace(box / "ws")
    return Prepared(ws.root, {"/srv/vectors/v1": str(box / "v1"), "hf://org/name@4be1d2c": str(box / "v1")})


def with_targets(box: Path) -> Prepared:
    """The template's workspace, which has no target yet."""
    ws = library(box)
    shutil.copy(ws.tasks / "topic.jsonl", ws.tasks / "support.jsonl")
    save_targets(ws.targets_file, Targets())
    return Prepared(ws.root, {"s3://models/support-bot/v7": FINE_TUNE})


def with_public_sets(box: Path) -> Prepared:
    """The template's workspace, beside the public sets."""
    (box / "ws").mkdir()
    for folder in Path(os.environ["SAFEGENE_TEST_DATA"]).iterdir():
        (box / folder.name).symlink_to(folder)
    root = library(box / "ws").root
    once_more = {"safegene suite add xstest": lambda: shutil.rmtree(root / "data/suites/xstest", ignore_errors=True)}
    return Prepared(root, before=once_more)


def own_places(box: Path) -> Prepared:
    """An empty folder; what the page puts on S3 is in folders beside it."""
    places = {f"s3://bucket/{name}": str(box / "bucket" / name) for name in ("dvc", "ledger")}
    return Prepared(box, {**places, "/srv/worker-2/family": str(box / "family")})


PAGES = {
    "README.md": Scenario(newcomer, {"safegene judge": "tests/cli/test_gate.py"}),
    "docs/data.md": Scenario(elsewhere={"safegene validate": "tests/cli/test_data.py"}),
    "docs/how-to/approve.md": Scenario(approved),
    "docs/how-to/audit.md": Scenario(
        audited,
        {
            "safegene audit export mlflow": "tests/ledger/test_mlflow.py",
            "safegene audit replay": "tests/slow/test_demo.py",
        },
        ("safegene audit export model-card", "safegene audit export gto"),
    ),
    "docs/how-to/ci.md": Scenario(audited, on_demo=("safegene run",)),
    "docs/how-to/judge.md": Scenario(labelled),
    "docs/how-to/read-results.md": Scenario(audited),
    "docs/how-to/refusal.md": Scenario(audited, on_demo=("safegene diagnose",)),
    "docs/how-to/rollback.md": Scenario(rolled_back),
    "docs/how-to/s3.md": Scenario(own_places),
    "docs/how-to/schedule.md": Scenario(own_places, {"safegene deploy": "tests/slow/test_deployments.py"}),
    "docs/how-to/serve-models.md": Scenario(elsewhere={"safegene serve-plan": "tests/cli/test_serve_plan.py"}),
    "docs/how-to/serve.md": Scenario(audited, on_demo=("safegene export", "safegene merge")),
    "docs/how-to/suites.md": Scenario(with_public_sets, public_sets=True),
    "docs/how-to/targets.md": Scenario(with_targets),
    "docs/how-to/vectors.md": Scenario(
        publisher,
        {
            "safegene vector publish hf://org/name": "tests/pipeline/test_published_vector.py",
            "safegene vector publish s3://bucket/vectors/v1": "tests/pipeline/test_published_vector.py",
            "safegene audit": "tests/ledger/test_publisher.py",
        },
    ),
    "docs/reference/judges.md": Scenario(
        labelled, {"safegene judge calibrate --format": "tests/evaluation/judges/test_reference_figures.py"}
    ),
    "docs/reference/suites.md": Scenario(
        with_public_sets,
        {
            "safegene suite add jbb-benign": "tests/cli/test_suite.py",
            "safegene suite add strongreject": "tests/cli/test_suite.py",
            "safegene suite add multijail": "tests/cli/test_suite.py",
        },
        public_sets=True,
    ),
    "docs/tutorial/first-hour.md": Scenario(
        on_demo=tuple(f"safegene {verb}" for verb in ("status", "gate", "audit", "diagnose", "export")),
    ),
    "docs/tutorial/own-family.md": Scenario(
        newcomer,
        {"safegene judge": "tests/cli/test_gate.py", "safegene gate": "tests/cli/test_gate.py"},
    ),
}
READ_BY = {"docs/data.md": "tests/cli/test_data.py", "docs/tutorial/own-family.md": "tests/docs/test_commands.py"}
"""Page -> the test that reads its marked block and executes all of it."""
ELSEWHERE = {
    "safegene run": "tests/flows/test_realign.py",  # a whole pipeline: never run here, whichever page names it
    "make demo": "tests/slow/test_demo.py",
    "make test": ".ci/run",
    "make test-slow": ".ci/run",
    "make lint": "tests/docs/test_habits.py",
    "dvc pull": "tests/slow/test_pipeline_reruns.py",
    "prefect server": "tests/slow/test_deployments.py",
    "pip wheel": "tests/slow/test_wheel.py",
    "pip install --no-deps": "tests/slow/test_wheel.py",
}
"""Beginning of a command of another program, or of a long one -> the test or script that runs the program so."""
LISTED = {
    "cd": "changes the reader's folder",
    ".": "changes the reader's shell",
    "export": "changes the reader's shell",
    "git": "needs the reader's own host of repositories; tests/s3/test_workspace.py clones and pulls",
    "sed": "edits the demo's params.yaml; tests/flows/test_realign.py changes the rank",
    "pip install": "needs a package index",
    "python3.11": "makes a virtual environment",
    "pre-commit": "is optional and needs a network; tests/docs/test_habits.py holds it to make lint",
    "safegene --install-completion": "writes into the reader's shell profile",
}
"""Beginning of a command that no test runs -> why."""
