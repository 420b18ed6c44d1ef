"""``incumbent.json``: what a candidate is compared with, and how many were tried before it."""

from pathlib import Path

import pytest

from safegene.errors import FormatError
from safegene.ledger.incumbent import open_incumbent, read_incumbent
from safegene.pipeline.stages.promote import pin_incumbent, promote, promote_attempt
from safegene.workspace.digest import strict_json
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest, write_artefact
from tests.factories.ledger import TARGET, attempt, make_target, make_verdict


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
    with write_artefact(ws.checkpoint(TARGET), stage="fetch", params={}, inputs={"aligned": ws.aligned}) as draft:
        (draft.path / "checkpoint.json").write_text('{"digest": "sha256:new", "source": "tiny://new"}')
    pin_incumbent(ws, TARGET)
    assert read_incumbent(path).attempt == 1, "another fine-tune under the same name"


@pytest.mark.parametrize("earlier", ['"sha256:0"', "[1]", '["none"]', "3"])
def test_malformed_earlier_candidates_are_an_error(tmp_path: Path, earlier: str) -> None:
    path = tmp_path / "incumbent.json"
    path.write_text(f'{{"live": null, "release": null, "candidate": null, "earlier": {earlier}}}')
    with pytest.raises(FormatError, match="earlier"):
        read_incumbent(path)
