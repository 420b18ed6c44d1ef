"""An artefact is current when its inputs are what the workspace holds now."""

from pathlib import Path

import pytest

from safegene.errors import StaleArtifact
from safegene.workspace.manifest import Manifest
from safegene.workspace.staleness import require_current, stale_inputs

MANIFEST = Manifest(
    stage="calibrate", params={}, inputs={"aligned": "a", "target": "t", "task": "s", "safety.jsonl": "p"}, files={}
)


def test_inputs_that_are_not_named_are_not_compared() -> None:
    assert stale_inputs(MANIFEST, {"vector": "v"}) == ()
    assert stale_inputs(MANIFEST, {"aligned": "a", "target": "t"}) == ()


def test_changed_and_missing_inputs_are_named_in_order() -> None:
    current = {"aligned": "a", "target": "other", "vector": "v"}
    assert stale_inputs(MANIFEST, current, required=["aligned", "vector"]) == ("target", "vector")


def test_a_required_input_whose_present_digest_is_unknown_is_stale() -> None:
    assert stale_inputs(MANIFEST, {"aligned": "a"}, required=["aligned", "target"]) == ("target",)


def test_sets_are_compared_by_their_digests_whatever_their_names() -> None:
    assert stale_inputs(MANIFEST, {}, data={"s", "p", "others"}) == ()
    assert stale_inputs(MANIFEST, {}, data={"s"}) == ("safety.jsonl",)
    assert stale_inputs(MANIFEST, {}, data=set()) == ("safety.jsonl", "task")


def test_the_error_names_both_digests_and_what_to_run() -> None:
    require_current("candidate", Path("c"), MANIFEST, {"target": "t"}, required=["target"])
    with pytest.raises(
        StaleArtifact, match=r"candidate made from the present target, .*target: t, now other.*, in c"
    ) as error:
        require_current("candidate", Path("c"), MANIFEST, {"target": "other"})
    assert "safegene run" in error.value.remedy
