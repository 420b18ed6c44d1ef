"""What goes live on a channel, what is refused, and the record of each attempt."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import Signer

from safegene.errors import (
    DigestMismatch,
    LedgerError,
    ParamsError,
    PromotionRefused,
    SafegeneError,
    StaleArtifact,
    StoreError,
)
from safegene.ledger import promotion
from safegene.ledger.chain import Ledger
from safegene.ledger.keys import load_signer
from safegene.ledger.live import LiveRecord, live_record
from safegene.ledger.promotion import record_promotion
from safegene.ledger.rules import PromotionClaim
from safegene.ledger.store import LocalStore
from safegene.pipeline.stages.promote import promote, promote_attempt, record_error, resolve
from safegene.workspace.digest import digest_file, digest_json, strict_json
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.ledger import (
    TARGET,
    StoreWithoutConditions,
    attempt,
    flip_byte,
    ledger_of,
    live_digest,
    make_target,
    make_verdict,
    records,
)


def test_a_pass_goes_live_and_is_served_byte_for_byte(ws: Workspace) -> None:
    done = promote(ws, TARGET)
    assert done.outcome == "pass"
    got = resolve(ws, TARGET)
    assert got.release == done.release == live_digest(ws)
    adapter = Path(got.path) / "candidate" / "adapter_model.safetensors"
    assert adapter.read_bytes() == (ws.candidate(TARGET) / "adapter_model.safetensors").read_bytes()
    read_manifest(Path(got.path) / "verdict", stage="gate")
    make_target(ws, alpha=9.0)
    assert adapter.read_bytes() == b"adapter 1.0" * 20


def test_the_served_adapter_is_a_subject_of_the_record(ws: Workspace) -> None:
    """Tools of in-toto find the record by the file's sha256 alone."""
    done = promote(ws, TARGET)
    assert done.record is not None
    store = ledger_of(ws).store
    assert isinstance(store, LocalStore)
    (path,) = store.root.glob(f"records/*{done.record.removeprefix('sha256:')}*")
    statement = strict_json(Envelope.from_dict(strict_json(path.read_bytes(), where="")).payload, where="")
    adapter = Path(resolve(ws, TARGET).path) / "candidate" / "adapter_model.safetensors"
    assert [(one["name"], f"sha256:{one['digest']['sha256']}") for one in statement["subject"]] == [
        (TARGET, done.release),
        ("candidate/adapter_model.safetensors", digest_file(adapter)),
    ]


def test_a_flipped_byte_of_a_release_is_not_served(ws: Workspace) -> None:
    promote(ws, TARGET)
    got = resolve(ws, TARGET)
    adapter = Path(got.path) / "candidate" / "adapter_model.safetensors"
    flip_byte(adapter)
    with pytest.raises(DigestMismatch, match=str(adapter)):
        resolve(ws, TARGET)


@pytest.mark.parametrize(("outcome", "code"), [("fail", 3), ("inconclusive", 4)])
def test_a_refusal_is_on_record_and_nothing_is_live(ws: Workspace, outcome: str, code: int) -> None:
    make_verdict(ws, outcome=outcome)
    with pytest.raises(PromotionRefused, match=f"got {outcome}: ") as caught:
        promote(ws, TARGET)
    assert caught.value.exit_code == code
    assert [record.outcome for record in records(ws)] == [outcome]
    assert live_digest(ws) is None
    with pytest.raises(LedgerError, match="got nothing"):
        resolve(ws, TARGET)


def test_the_same_refusal_is_recorded_once(ws: Workspace) -> None:
    """The judge's error is made of tuples, which a record that is read holds as lists."""
    make_verdict(ws, outcome="fail")
    for _ in range(3):
        assert promote_attempt(ws, TARGET) == "fail"
    assert len(records(ws)) == 1
    assert isinstance(records(ws)[0].predicate.fields()["judge"]["harmful"]["sensitivity"], list)


def test_what_is_live_is_promoted_again_without_a_record(ws: Workspace) -> None:
    first = promote(ws, TARGET)
    again = promote(ws, TARGET)
    assert again.record is None
    assert "already" in again.message
    assert again.release == first.release
    assert len(records(ws)) == 1


def test_new_evidence_for_what_is_live_goes_on_record(ws: Workspace) -> None:
    attempt(ws)
    path = ws.root / "params.yaml"
    path.write_text(path.read_text().replace("cap_hrr: 0.2", "cap_hrr: 0.15"))
    make_verdict(ws)
    assert promote_attempt(ws, TARGET) == "pass"
    assert [record.outcome for record in records(ws)] == ["pass", "pass"]
    make_verdict(ws, outcome="fail")
    assert promote_attempt(ws, TARGET) == "fail"
    assert live_digest(ws) == records(ws)[1].release


def test_a_dry_run_says_and_writes_nothing(ws: Workspace) -> None:
    promotion = promote(ws, TARGET, dry_run=True)
    assert promotion.outcome == "pass"
    assert "would be promoted to production" in promotion.message
    assert not (ws.root / "ledger").exists()
    make_verdict(ws, outcome="fail")
    assert "would be refused (fail)" in promote(ws, TARGET, dry_run=True).message
    flip_byte(ws.vector / "vector.safetensors")
    with pytest.raises(DigestMismatch):
        promote(ws, TARGET, dry_run=True)
    assert not (ws.root / "ledger").exists()


def test_the_record_says_what_was_live_what_was_used_and_who_ran_it(ws: Workspace) -> None:
    facts = {"run_id": "r1", "trigger": "cron", "git_commit": "c" * 40}
    promote(ws, TARGET, run=facts)
    (record,) = records(ws)
    content = record.predicate.fields()
    assert record.artefacts["vector"] == read_manifest(ws.vector).digest
    assert record.artefacts["verdict"] == read_manifest(ws.verdict(TARGET)).digest
    assert content["run"]["run_id"] == "r1"
    assert content["run"]["trigger"] == "cron"
    assert content["code"]["git_commit"] == "c" * 40
    assert content["vector"]["layers"] == [0, 1]
    assert content["model"]["source"] == f"tiny://{TARGET}?seed=0"
    assert set(content["datasets"]) == {"prompts/gate.jsonl", "prompts/safety.jsonl", "tasks/sentiment.jsonl"}
    assert content["judge"]["identity"] == "grammar"


def test_an_error_of_the_flow_is_on_record_once(ws: Workspace) -> None:
    flip_byte(ws.vector / "vector.safetensors")
    with pytest.raises(DigestMismatch) as caught:
        promote_attempt(ws, TARGET)
    record_error(ws, TARGET, caught.value)
    assert len(records(ws)) == 1
    record_error(ws, TARGET, SafegeneError("fetch failed"))
    assert [record.reason for record in records(ws)][0] == "SafegeneError: fetch failed"


def test_an_error_that_cannot_be_recorded_is_still_the_one_reported(ws: Workspace) -> None:
    attempt(ws)
    (ws.root / "ledger" / "tip").write_text("{}")
    error = SafegeneError("fetch failed", remedy="look at the source")
    record_error(ws, TARGET, error)
    assert error.remedy.startswith("look at the source; the attempt is not on record either: expected a Tip")


def test_nothing_is_promoted_without_a_key(ws: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / "nothing"))
    with pytest.raises(LedgerError, match="private key") as caught:
        promote(ws, TARGET)
    assert "SAFEGENE_KEYS" in caught.value.remedy
    assert not (ws.root / "ledger").exists()


def test_a_store_that_ignores_conditions_is_refused_by_name(ws: Workspace, tmp_path: Path) -> None:
    ledger = replace(ledger_of(ws), store=StoreWithoutConditions(tmp_path / "store"))
    claim = PromotionClaim(TARGET, "pass", "r", {}, {})
    with pytest.raises(StoreError, match=f"in {tmp_path}/store"):
        record_promotion(ledger, load_signer(ledger.keys), claim, "production")
    assert list(ledger.store.list("records/")) == []


def test_an_unknown_target_leaves_no_record(ws: Workspace) -> None:
    with pytest.raises(ParamsError, match="'typo'"):
        promote(ws, "typo")
    assert records(ws) == []


def test_channels_are_apart(ws: Workspace) -> None:
    done = promote(ws, TARGET, channel="staging")
    assert live_digest(ws) is None
    assert resolve(ws, TARGET, channel="staging").release == done.release
    now = live_record(ledger_of(ws), TARGET, "staging")
    assert now
    assert now.record.channel == "staging"


def test_bytes_changed_after_they_were_verified_do_not_go_live(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = ws.candidate(TARGET) / "adapter_model.safetensors"

    def changed_meanwhile(ledger: Ledger, target: str, channel: str, *, signer: Signer) -> LiveRecord | None:
        adapter.write_bytes(b"EVIL")
        return live_record(ledger, target, channel, signer=signer)

    monkeypatch.setattr(promotion, "live_record", changed_meanwhile)
    with pytest.raises(DigestMismatch, match="changed after it was verified"):
        promote(ws, TARGET)
    assert live_digest(ws) is None


class Racing(LocalStore):
    """Another promoter is faster, between the rules and the record."""

    def put_if_absent(self, key: str, data: bytes) -> str:
        if key.startswith("records/") and (first := Racing.winner):
            Racing.winner = None
            first()
        return super().put_if_absent(key, data)

    winner: ClassVar[Callable[[], object] | None] = None


def test_the_losing_promotion_is_refused_and_names_the_winner(ws: Workspace, tmp_path: Path) -> None:
    ledger = ledger_of(ws)
    signer = load_signer(ledger.keys)
    claims = [
        PromotionClaim(TARGET, "pass", "r", {"candidate": digest_json(n)}, {}, _files(tmp_path, n)) for n in range(2)
    ]
    Racing.winner = lambda: record_promotion(ledger, signer, claims[0], "production")
    racing = replace(ledger, store=Racing(ws.root / "ledger"))
    with pytest.raises(PromotionRefused, match="record 0 was promoted to production first") as caught:
        record_promotion(racing, signer, claims[1], "production")
    assert caught.value.exit_code == 1
    assert [record.outcome for record in records(ws)] == ["superseded", "pass", "pass"]
    assert records(ws)[0].replaces == records(ws)[1].digest
    assert live_digest(ws) == records(ws)[2].release


def test_promoters_at_once_leave_one_live_and_each_on_record(ws: Workspace, tmp_path: Path) -> None:
    ledger = ledger_of(ws)
    signer = load_signer(ledger.keys)

    def one(number: int) -> str:
        claim = PromotionClaim(TARGET, "pass", "r", {"candidate": digest_json(number)}, {}, _files(tmp_path, number))
        try:
            return str(record_promotion(ledger, signer, claim, "production").release)
        except (PromotionRefused, StaleArtifact):
            return ""

    with ThreadPoolExecutor(4) as pool:
        won = [release for release in pool.map(one, range(8)) if release]
    assert won == [live_digest(ws)]
    outcomes = [record.outcome for record in records(ws)]
    assert outcomes.count("pass") == 1 + outcomes.count("superseded")
    assert outcomes.count("superseded") + outcomes.count("error") == 7


def _files(folder: Path, number: int) -> dict[str, tuple[Path, str]]:
    path = folder / f"adapter-{number}"
    path.write_text(str(number))
    return {"candidate/adapter": (path, digest_file(path))}
