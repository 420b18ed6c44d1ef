"""A live release is checked against the present suite, and nothing but what is live is touched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safegene.errors import PromotionRefused
from safegene.ledger.audit import audit_workspace
from safegene.pipeline import drift
from safegene.pipeline.drift import check_drift, roll_back_drifted
from safegene.report.state import read_state
from safegene.report.status import to_json
from safegene.report.words import describe_target
from safegene.workspace.digest import digest_file
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import Manifest, read_manifest, write_artefact
from tests.factories.ledger import TARGET, attempt, copy_workspace, live_digest, make_workspace, records

RUN = {"run_id": "r", "trigger": "drift, test", "git_commit": ""}
Judged = Callable[[str], list[Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two promotions, the second one live."""
    ws = make_workspace(tmp_path_factory.mktemp("drift") / "ws")
    attempt(ws, alpha=1.0)
    attempt(ws, alpha=2.0)
    return ws


@pytest.fixture
def ws(made: Workspace, tmp_path: Path) -> Workspace:
    return copy_workspace(made, tmp_path / "ws")


@pytest.fixture
def judged(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> Judged:
    """Lets the live model answer, without a model: as the workspace's candidate did, whose outcome is chosen."""
    asked: list[Path] = []

    def choose(outcome: str) -> list[Path]:
        def evaluate(*, candidate: Path, out: Path, **given: Any) -> Manifest:
            asked.append(candidate)
            with write_artefact(out, stage="evaluate", params={}, inputs={"candidate": candidate}) as draft:
                (draft.path / "judgements.jsonl").write_text(outcome)
            return draft.done

        def decide(candidate: Path, judgements: Path, *, out: Path, params: object) -> Manifest:
            verdict = json.loads((ws.verdict(TARGET) / "verdict.json").read_bytes()) | {"outcome": outcome}
            with write_artefact(out, stage="gate", params={}, inputs={"judgements": judgements}) as draft:
                (draft.path / "verdict.json").write_text(json.dumps(verdict))
            return draft.done

        monkeypatch.setattr("safegene.pipeline.stages.evaluate.evaluate", evaluate)
        monkeypatch.setattr(drift, "decide", decide)
        return asked

    return choose


def test_the_release_that_is_live_is_asked_and_the_result_is_kept(ws: Workspace, judged: Judged) -> None:
    asked = judged("pass")
    check = check_drift(ws, TARGET)
    assert check is not None
    assert (check.outcome, check.release) == ("pass", live_digest(ws))
    assert "still passes" in check.sentence
    assert read_manifest(asked[0]).digest == records(ws)[0].artefacts["candidate"]
    assert check_drift(ws, TARGET) == check
    assert len(asked) == 1, "nothing has changed"
    (ws.prompts / "gate.jsonl").write_bytes(b'{"id": "newer"}\n')
    check_drift(ws, TARGET)
    assert len(asked) == 2, "the suite has"
    path = ws.root / "params.yaml"
    path.write_text(path.read_text().replace("margin_hrr: 0.1", "margin_hrr: 0.05"))
    check_drift(Workspace(ws.root), TARGET)
    assert len(asked) == 3, "the policy has"


@pytest.mark.parametrize("what", ["forged", "malformed", "verdict gone", "verdict changed"])
def test_what_a_file_alone_claims_is_not_relied_on(ws: Workspace, judged: Judged, what: str) -> None:
    asked, file = judged("fail"), ws.target(TARGET) / "drift.json"
    verdict = ws.root / ".safegene" / "drift" / TARGET / "verdict"
    check_drift(ws, TARGET)
    if what == "forged":
        file.write_text(file.read_text().replace('"outcome":"fail"', '"outcome":"pass"'))
    elif what == "malformed":
        file.write_text("{}")
        assert "is unknown" in read_state(ws).targets[0].drift
    elif what == "verdict gone":
        shutil.rmtree(verdict)
    else:
        (verdict / "verdict.json").write_text("{}")
    check = check_drift(ws, TARGET)
    assert check is not None
    assert (check.outcome, len(asked)) == ("fail", 2)


def test_a_release_that_no_longer_passes_is_reported(ws: Workspace, judged: Judged) -> None:
    judged("fail")
    chain = [record.digest for record in records(ws)]
    check = check_drift(ws, TARGET)
    assert check is not None
    assert "no longer passes" in check.sentence
    (target,) = read_state(ws).targets
    assert target.drift == check.sentence
    assert to_json(target)["drift"] == check.sentence
    assert "no longer passes" in describe_target(target).sentence
    assert [record.digest for record in records(ws)] == chain


def test_a_rollback_names_the_verdict_and_verifies(ws: Workspace, judged: Judged) -> None:
    judged("fail")
    check = check_drift(ws, TARGET)
    assert check is not None
    roll_back_drifted(ws, check, RUN)
    newest, before, first = records(ws)
    assert (newest.outcome, newest.release, newest.replaces) == ("rollback", first.release, before.digest)
    assert newest.predicate.run["drift"] == check.verdict
    assert newest.predicate.run["trigger"] == "drift, test"
    assert audit_workspace(ws).problems == ()
    (target,) = read_state(ws).targets
    assert target.drift == "", "it was another release"
    with pytest.raises(PromotionRefused, match="which was checked"):
        roll_back_drifted(ws, check, RUN)
    judged("fail")
    with pytest.raises(PromotionRefused, match="no longer passes"):
        roll_back_drifted(ws, check.model_copy(update={"outcome": "inconclusive"}), RUN)
    older = check_drift(ws, TARGET)
    assert older is not None
    assert older.release == first.release
    with pytest.raises(PromotionRefused, match="an earlier release"):
        roll_back_drifted(ws, older, RUN)


def test_where_nothing_is_live_nothing_is_asked(tmp_path: Path) -> None:
    ws = make_workspace(tmp_path / "new")
    assert check_drift(ws, TARGET) is None
    assert not (ws.target(TARGET) / "drift.json").exists()


def test_a_changed_byte_of_the_release_stops_the_check(ws: Workspace, judged: Judged) -> None:
    asked = judged("pass")
    (weights,) = (ws.root / "ledger" / "releases" / str(live_digest(ws))[7:]).glob("candidate/*.safetensors")
    before = digest_file(weights)
    weights.chmod(0o644)
    weights.write_bytes(b"other")
    assert digest_file(weights) != before
    with pytest.raises(Exception, match=r"expected .*, got "):
        check_drift(ws, TARGET)
    assert asked == []
