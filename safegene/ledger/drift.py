"""``drift.json``: what the newest check of a target's live release found, see `safegene.pipeline.drift`."""

from pathlib import Path
from typing import Literal

from safegene.workspace.fields import Digest
from safegene.workspace.layout import Workspace
from safegene.workspace.parsing import Strict, parse_json


class DriftCheck(Strict):
    """What a check of a live release found; the content of ``drift.json``.

    Attributes:
        target: its name.
        channel: where the release is live.
        release: its digest.
        record: number of the record that put it live.
        checked: when, in ISO 8601.
        outcome: of the gate, on the present suite.
        reason: the gate's, one sentence.
        basis: digest of all that the result depends on.
        policy: digest of the policy.
        judgements: digest of the replies and judgements, which are in ``.safegene/drift/<target>``.
        verdict: digest of the verdict there.
    """

    target: str
    channel: str
    release: Digest
    record: int
    checked: str
    outcome: Literal["pass", "fail", "inconclusive"]
    reason: str
    basis: Digest
    policy: Digest
    judgements: Digest
    verdict: Digest

    @property
    def sentence(self) -> str:
        """What people are told of it."""
        said = {"pass": "still passes", "fail": "no longer passes", "inconclusive": "is no longer shown to pass"}
        return f"the live release of record {self.record} {said[self.outcome]} on the present suite: {self.reason}"


def read_drift(ws: Workspace, target: str) -> DriftCheck | None:
    """The newest check of a target; None where there is none.

    Raises:
        FormatError: the file is malformed.
    """
    path = drift_file(ws, target)
    return parse_json(DriftCheck, path.read_bytes(), where=str(path)) if path.exists() else None


def drift_file(ws: Workspace, target: str) -> Path:
    """Where the newest check of a target is."""
    return ws.target(target) / "drift.json"
