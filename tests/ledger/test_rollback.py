"""A rollback puts live again what was live before, and its candidate does not return by itself."""

from pathlib import Path

import pytest

from safegene.errors import DigestMismatch, PromotionRefused
from safegene.pipeline.stages.promote import resolve, rollback
from safegene.workspace.digest import digest_json
from safegene.workspace.layout import Workspace
from tests.factories.ledger import TARGET, attempt, flip_byte, live_digest, records


def test_rollback_goes_one_promotion_back_each_time(ws: Workspace) -> None:
    releases = []
    for alpha in (1.0, 2.0, 3.0):
        attempt(ws, alpha=alpha)
        releases.append(live_digest(ws))
    for expected in (releases[1], releases[0]):
        assert rollback(ws, TARGET).release == expected
        assert live_digest(ws) == expected
    with pytest.raises(PromotionRefused, match="an earlier release"):
        rollback(ws, TARGET)
    top = records(ws)[0]
    assert top.outcome == "rollback"
    assert top.artefacts == records(ws)[-1].artefacts
    assert len(records(ws)) == 5


@pytest.mark.parametrize("named_by", ["sequence", "record", "release", "prefix"])
def test_rollback_to_a_named_release(ws: Workspace, named_by: str) -> None:
    attempt(ws, alpha=1.0)
    attempt(ws, alpha=2.0, outcome="fail")
    attempt(ws, alpha=3.0)
    attempt(ws, alpha=4.0)
    first = records(ws)[-1]
    name = {
        "sequence": "0",
        "record": first.digest,
        "release": str(first.release),
        "prefix": first.digest.removeprefix("sha256:")[:10],
    }[named_by]
    assert rollback(ws, TARGET, to=name).release == first.release
    for wrong in ("1", "99", "abc", digest_json("nobody")):
        with pytest.raises(PromotionRefused):
            rollback(ws, TARGET, to=wrong)


def test_rollback_verifies_the_bytes_again(ws: Workspace) -> None:
    attempt(ws, alpha=1.0)
    first = resolve(ws, TARGET)
    attempt(ws, alpha=2.0)
    now = live_digest(ws)
    flip_byte(Path(first.path) / "candidate" / "adapter_model.safetensors")
    with pytest.raises(DigestMismatch):
        rollback(ws, TARGET)
    assert live_digest(ws) == now


def test_a_rolled_back_candidate_is_not_promoted_again(ws: Workspace) -> None:
    attempt(ws, alpha=1.0)
    attempt(ws, alpha=2.0)
    rollback(ws, TARGET)
    assert attempt(ws, alpha=2.0) == "fail"
    assert "was rolled back" in records(ws)[0].reason
    assert attempt(ws, alpha=3.0) == "pass"


def test_candidates_of_consecutive_rollbacks_do_not_return_by_themselves(ws: Workspace) -> None:
    for alpha in (1.0, 2.0, 3.0):
        attempt(ws, alpha=alpha)
    for _ in range(2):
        rollback(ws, TARGET)
    assert [attempt(ws, alpha=alpha) for alpha in (3.0, 2.0, 4.0)] == ["fail", "fail", "pass"]
