"""``incumbent.json``: what a candidate is compared with, and how many were tried before it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from safegene.errors import FormatError, StaleArtifact
from safegene.ledger.incumbent import open_incumbent, read_incumbent
from safegene.pipeline.stages.promote import pin_incumbent, promote, promote_attempt
from safegene.workspace.digest import digest_json, strict_json
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest, write_artefact
from tests.factories.ledger import (
    TARGET,
    attempt,
    make_candidate,
    make_checkpoint,
    make_family,
    make_target,
    make_verdict,
    records,
)


def test_the_incumbent_is_pinned_and_rewritten_only_when_it_changed(ws: Workspace) -> None:
    path = ws.incumbent(TARGET)
    assert pin_incumbent(ws, TARGET) is None
    assert strict_json(path.read_bytes(), where="") == {
        "live": None,
        "release": None,
        "candidate": None,
        "earlier": [],
    }
    assert open_incumbent(read_incumbent(path), ws.root) is None
    make_verdict(ws)
    before = path.stat()
    done = promote(ws, TARGET)
    assert pin_incumbent(ws, TARGET) == done.release
    assert path.stat() == before  # the candidate is what is live: its verdict stands
    assert promote(ws, TARGET).record is None

    assert attempt(ws, alpha=2.0) == "pass"
    pinned = strict_json(path.read_bytes(), where="")
    assert pinned["live"] == done.release
    assert pinned["release"] == f"ledger/releases/{str(done.release)[7:]}"
    folder = open_incumbent(read_incumbent(path), ws.root)
    assert folder
    assert (folder / "candidate" / "adapter_model.safetensors").read_bytes() == b"adapter 1.0" * 20


def test_every_other_candidate_of_the_same_fine_tune_is_counted(ws: Workspace) -> None:
    """Refused or not, once each, whatever else is on record; a candidate's own verdict does not count against it."""
    path = ws.incumbent(TARGET)
    digests = []
    for alpha, outcome in ((1.0, "fail"), (2.0, "inconclusive"), (2.0, "fail"), (3.0, "fail")):
        make_target(ws, alpha=alpha)
        pin_incumbent(ws, TARGET)
        before = path.read_bytes()
        make_verdict(ws, outcome=outcome)
        promote_attempt(ws, TARGET)
        pin_incumbent(ws, TARGET)
        assert path.read_bytes() == before
        digests.append(read_manifest(ws.candidate(TARGET)).digest)
    assert strict_json(path.read_bytes(), where="")["earlier"] == [digests[0], digests[1]]
    assert read_incumbent(path).attempt == 3
    make_checkpoint(ws, content="another")
    pin_incumbent(ws, TARGET)
    assert read_incumbent(path).attempt == 1, "another fine-tune under the same name"


def another_limit(ws: Workspace, target: str) -> None:
    make_checkpoint(ws, target, content=TARGET, max_gibibytes=199)


def another_vector(ws: Workspace, target: str) -> None:
    make_family(ws, rank=2)


def another_policy(ws: Workspace, target: str) -> None:
    path = ws.root / "params.yaml"
    path.write_text(path.read_text().replace("cap_hrr: 0.2", "cap_hrr: 0.15"))


def another_tokenizer(ws: Workspace, target: str) -> None:
    """Another file beside the same weights gives the checkpoint another digest."""
    path = ws.checkpoint(target) / "checkpoint.json"
    content = json.loads(path.read_bytes())
    content |= {"digest": digest_json("other"), "files": content["files"] | {"tokenizer.json": digest_json("x")}}
    with write_artefact(ws.checkpoint(target), stage="fetch", params={}, inputs={"aligned": ws.aligned}) as draft:
        (draft.path / "checkpoint.json").write_text(json.dumps(content))


def another_name(ws: Workspace, target: str) -> None:
    """Nothing changes but the name, under which the test tries again."""


RETRIES = [another_limit, another_vector, another_policy, another_tokenizer, another_name]


@pytest.mark.parametrize("change", RETRIES)
@pytest.mark.parametrize("target", [TARGET, "again"])
def test_attempts_are_counted_by_the_content_of_the_checkpoint(
    ws: Workspace, change: Callable[[Workspace, str], None], target: str
) -> None:
    """Neither another name of the target nor an unrelated parameter begins the count again."""
    for alpha in (1.0, 2.0):
        attempt(ws, alpha=alpha, outcome="fail")
    make_target(ws, target, alpha=3.0)
    make_checkpoint(ws, target, content=TARGET)
    change(ws, target)
    make_candidate(ws, target, alpha=3.0)
    pin_incumbent(ws, target)
    assert read_incumbent(ws.incumbent(target)).attempt == 3
    make_verdict(ws, target)
    assert promote_attempt(ws, target) == "pass"
    verdict = strict_json((ws.verdict(target) / "verdict.json").read_bytes(), where="")
    assert verdict["attempt"] == {"alpha": pytest.approx(0.05 * 0.1 / 6), "number": 3}


@pytest.mark.parametrize("change", [another_limit, another_vector, another_name])
def test_the_same_repair_again_is_no_further_attempt(ws: Workspace, change: Callable[[Workspace, str], None]) -> None:
    attempt(ws, alpha=1.0, outcome="fail")
    change(ws, TARGET)
    make_candidate(ws, alpha=1.0)
    pin_incumbent(ws, TARGET)
    assert read_incumbent(ws.incumbent(TARGET)).attempt == 1


def test_the_same_repair_under_another_policy_is_a_further_attempt_unless_it_passed(ws: Workspace) -> None:
    attempt(ws, alpha=1.0, outcome="fail")
    another_policy(ws, TARGET)
    pin_incumbent(ws, TARGET)
    assert read_incumbent(ws.incumbent(TARGET)).attempt == 2
    make_verdict(ws)
    assert promote_attempt(ws, TARGET) == "pass"


def test_what_passed_may_be_judged_again_under_another_policy_as_the_same_attempt(ws: Workspace) -> None:
    for alpha in (1.0, 2.0):
        assert attempt(ws, alpha=alpha) == "pass"
    another_policy(ws, TARGET)
    make_candidate(ws, alpha=1.0)
    pin_incumbent(ws, TARGET)
    assert read_incumbent(ws.incumbent(TARGET)).attempt == 1


@pytest.mark.parametrize("how", ["erased", "pinned before"])
def test_a_pass_that_does_not_count_the_attempts_on_record_is_refused(ws: Workspace, how: str) -> None:
    """``incumbent.json`` was edited, or another name of the fine-tune was tried since it was pinned."""
    if how == "erased":
        attempt(ws, alpha=1.0, outcome="fail")
    make_target(ws, alpha=2.0)
    ws.incumbent(TARGET).write_text('{"live":null,"release":null,"candidate":null,"earlier":[]}')
    make_verdict(ws)
    if how == "pinned before":
        make_target(ws, "again", outcome="fail")
        make_checkpoint(ws, "again", content=TARGET)
        make_candidate(ws, "again", alpha=1.0)
        make_verdict(ws, "again", outcome="fail")
        assert promote_attempt(ws, "again") == "fail"
    with pytest.raises(StaleArtifact, match="counts this as attempt 1 .* it is attempt 2"):
        promote(ws, TARGET)
    assert [record.outcome for record in records(ws)] == ["error", "fail"]
    pin_incumbent(ws, TARGET)
    make_verdict(ws)
    assert promote_attempt(ws, TARGET) == "pass"


@pytest.mark.parametrize("earlier", ['"sha256:0"', "[1]", '["none"]', "3"])
def test_malformed_earlier_candidates_are_an_error(tmp_path: Path, earlier: str) -> None:
    path = tmp_path / "incumbent.json"
    path.write_text(f'{{"live": null, "release": null, "candidate": null, "earlier": {earlier}}}')
    with pytest.raises(FormatError, match="earlier"):
        read_incumbent(path)
