"""Remedies of promote, rollback, resolve and revoke are followed here: each leads out, and none in a circle."""

import re
from collections.abc import Callable

import pytest

from safegene.errors import LedgerError, PromotionRefused, SafegeneError
from safegene.ledger.trace import trace_workspace
from safegene.pipeline.stages.promote import promote, resolve, revoke, rollback
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.ledger import TARGET, attempt, live_digest, records


def refused_by(action: Callable[[], object]) -> SafegeneError:
    with pytest.raises((PromotionRefused, LedgerError)) as refused:
        action()
    assert refused.value.remedy, refused.value.message
    return refused.value


def follow(ws: Workspace, remedy: str) -> None:
    """Do what a remedy says: its rollback, or the run that it names, which makes another candidate."""
    if found := re.search(r"`safegene rollback (\S+) --channel (\S+) --to (\d+)`", remedy):
        rollback(ws, found[1], channel=found[2], to=found[3])
        return
    assert f"`safegene run {TARGET}`" in remedy, remedy
    assert attempt(ws, alpha=float(len(records(ws)) + 10)) == "pass"


def releases(ws: Workspace, count: int) -> list[str]:
    """Release after release, each of another candidate."""
    found = []
    for alpha in range(1, count + 1):
        assert attempt(ws, alpha=float(alpha)) == "pass"
        found.append(str(live_digest(ws)))
    return found


@pytest.mark.parametrize("count", [1, 2, 3])
def test_after_a_revocation_every_command_leads_back_to_something_that_is_served(ws: Workspace, count: int) -> None:
    made = releases(ws, count)
    revocation = revoke(ws, made[-1], "wrong labels")
    (said,) = revocation.ways_out
    from_resolve = refused_by(lambda: resolve(ws, TARGET)).remedy
    assert said == from_resolve
    assert ("safegene rollback" in said) == (count > 1), "a rollback is named only where it works"
    follow(ws, from_resolve)
    assert resolve(ws, TARGET).release == (made[-2] if count > 1 else live_digest(ws))
    assert resolve(ws, TARGET).release not in made[-1:]


def test_a_rollback_whose_predecessor_is_revoked_names_the_one_before(ws: Workspace) -> None:
    first, second, _ = releases(ws, 3)
    revoke(ws, second, "poisoned")
    follow(ws, refused_by(lambda: rollback(ws, TARGET)).remedy)
    assert resolve(ws, TARGET).release == first


def test_a_rollback_to_a_revoked_release_names_another_or_says_that_there_is_none(ws: Workspace) -> None:
    first, second, third = releases(ws, 3)
    revoke(ws, first, "poisoned")
    remedy = refused_by(lambda: rollback(ws, TARGET, to="0")).remedy
    assert "--to 0" not in remedy
    follow(ws, remedy)
    assert resolve(ws, TARGET).release == second
    revoke(ws, third, "poisoned")
    remedy = refused_by(lambda: rollback(ws, TARGET, to="2")).remedy
    assert "safegene rollback" not in remedy, "nothing else is sound"
    follow(ws, remedy)
    assert resolve(ws, TARGET).release not in (first, second, third)


def test_everything_revoked_leads_to_another_candidate(ws: Workspace) -> None:
    for release in releases(ws, 2):
        revoke(ws, release, "poisoned")
    for action in (lambda: resolve(ws, TARGET), lambda: rollback(ws, TARGET)):
        remedy = refused_by(action).remedy
        assert "safegene rollback" not in remedy
    follow(ws, remedy)
    assert resolve(ws, TARGET)


def test_a_promotion_that_rests_on_something_revoked_says_what_to_replace(ws: Workspace) -> None:
    for name, word in (("candidate", "calibrate"), ("target", f"target add {TARGET}"), ("vector", "compress")):
        folder = {"candidate": ws.candidate(TARGET), "target": ws.checkpoint(TARGET), "vector": ws.vector}[name]
        revoke(ws, read_manifest(folder).digest, "poisoned")
        refused = refused_by(lambda: promote(ws, TARGET))
        assert word in refused.remedy
        assert f"safegene run {TARGET}" in refused.remedy
        if name == "candidate":
            follow(ws, refused.remedy)
            assert resolve(ws, TARGET)


def test_with_nothing_live_each_question_names_the_way_to_something_live(ws: Workspace) -> None:
    assert attempt(ws, outcome="fail") == "fail"
    for action in (lambda: resolve(ws, TARGET), lambda: rollback(ws, TARGET)):
        assert f"`safegene run {TARGET}`" in refused_by(action).remedy
    shown = refused_by(lambda: trace_workspace(ws, TARGET)).remedy
    (number,) = re.findall(r"`safegene audit show (\d+)`", shown)
    assert trace_workspace(ws, number)["outcome"] == "fail"
    follow(ws, refused_by(lambda: resolve(ws, TARGET)).remedy)
    assert trace_workspace(ws, TARGET)["live"]["release"] == live_digest(ws)


def test_only_one_release_and_nothing_revoked_stays_as_it_is(ws: Workspace) -> None:
    releases(ws, 1)
    remedy = refused_by(lambda: rollback(ws, TARGET)).remedy
    assert "no other release" in remedy
    follow(ws, remedy)
    assert rollback(ws, TARGET).outcome == "rollback"
