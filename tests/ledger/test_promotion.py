import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from safegene.errors import (
    ArtifactError,
    DigestMismatch,
    FormatError,
    LedgerError,
    ParamsError,
    PromotionRefused,
    SafegeneError,
    StaleArtifact,
    StoreError,
)
from safegene.ledger import Ledger, Record, live_record, load_signer, open_ledger
from safegene.ledger import promotion as registry
from safegene.ledger.promotion import PromotionClaim, read_attempt, read_incumbent, record_revocation
from safegene.ledger.store import LocalStore
from safegene.pipeline.stages.promote import (
    live_digest,
    pin_incumbent,
    promote,
    promote_attempt,
    record_error,
    revoke,
    rollback,
)
from safegene.pipeline.stages.promote import resolve_live as served
from safegene.workspace.digest import canonical_json, digest_file, digest_json, strict_json
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest, write_artefact
from tests.factories.ledger import (
    TARGET,
    Deaf,
    flip_byte,
    make_family,
    make_receipt,
    make_target,
    make_verdict,
    make_workspace,
)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path / "ws")


def ledger_of(ws: Workspace) -> Ledger:
    return open_ledger(ws.params.promote, ws.root)


def records(ws: Workspace) -> list[Record]:
    return list(ledger_of(ws).walk())


def run(ws: Workspace, *, alpha: float = 1.0, outcome: str = "pass") -> str:
    """What the flow does for a target: calibrate, pin the incumbent, evaluate, gate, promote."""
    make_target(ws, alpha=alpha)
    pin_incumbent(ws, TARGET)
    make_verdict(ws, outcome=outcome)
    return promote_attempt(ws, TARGET)


def test_a_pass_goes_live_and_is_served_byte_for_byte(ws: Workspace) -> None:
    done = promote(ws, TARGET)
    assert done.outcome == "pass"
    got = served(ws, TARGET)
    assert got["release"] == done.release == live_digest(ws, TARGET)
    adapter = Path(got["path"]) / "candidate" / "adapter_model.safetensors"
    assert adapter.read_bytes() == (ws.candidate(TARGET) / "adapter_model.safetensors").read_bytes()
    read_manifest(Path(got["path"]) / "verdict", stage="gate")
    make_target(ws, alpha=9.0)
    assert adapter.read_bytes() == b"adapter 1.0" * 20


def test_a_flipped_byte_of_a_release_is_not_served(ws: Workspace) -> None:
    promote(ws, TARGET)
    got = served(ws, TARGET)
    adapter = Path(got["path"]) / "candidate" / "adapter_model.safetensors"
    flip_byte(adapter)
    with pytest.raises(DigestMismatch, match=str(adapter)):
        served(ws, TARGET)


@pytest.mark.parametrize(("outcome", "code"), [("fail", 3), ("inconclusive", 4)])
def test_a_refusal_is_on_record_and_nothing_is_live(ws: Workspace, outcome: str, code: int) -> None:
    make_verdict(ws, outcome=outcome)
    with pytest.raises(PromotionRefused, match=f"got {outcome}: ") as caught:
        promote(ws, TARGET)
    assert caught.value.exit_code == code
    assert [record.outcome for record in records(ws)] == [outcome]
    assert live_digest(ws, TARGET) is None
    with pytest.raises(LedgerError, match="got nothing"):
        served(ws, TARGET)


def test_what_is_live_is_promoted_again_without_a_record(ws: Workspace) -> None:
    first = promote(ws, TARGET)
    again = promote(ws, TARGET)
    assert again.record is None
    assert "already" in again.message
    assert again.release == first.release
    assert len(records(ws)) == 1


def test_a_dry_run_says_and_writes_nothing(ws: Workspace) -> None:
    said = promote(ws, TARGET, dry_run=True)
    assert said.outcome == "pass"
    assert "would be promoted to production" in said.message
    assert not (ws.root / "ledger").exists()
    make_verdict(ws, outcome="fail")
    assert "would be refused (fail)" in promote(ws, TARGET, dry_run=True).message
    flip_byte(ws.vector / "vector.safetensors")
    with pytest.raises(DigestMismatch):
        promote(ws, TARGET, dry_run=True)
    assert not (ws.root / "ledger").exists()


@pytest.mark.parametrize(
    "file",
    [
        "family/vector/vector.safetensors",
        "family/aligned/checkpoint.json",
        f"targets/{TARGET}/candidate/adapter_model.safetensors",
        f"targets/{TARGET}/judgements/judgements.jsonl",
        f"targets/{TARGET}/verdict/verdict.json",
    ],
)
def test_a_changed_byte_of_the_evidence_is_refused_on_record(ws: Workspace, file: str) -> None:
    flip_byte(ws.data / file)
    with pytest.raises(DigestMismatch, match=file):
        promote(ws, TARGET)
    (record,) = records(ws)
    assert record.outcome == "error"
    assert file in record.reason
    assert live_digest(ws, TARGET) is None


def test_a_missing_verdict_is_refused_on_record(ws: Workspace) -> None:
    (ws.verdict(TARGET) / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="verdict"):
        promote(ws, TARGET)
    assert [record.outcome for record in records(ws)] == ["error"]


def another_vector(ws: Workspace) -> None:
    make_family(ws, rank=2)


def another_candidate(ws: Workspace) -> None:
    from tests.factories.ledger import make_candidate

    make_candidate(ws, alpha=5.0)


def another_policy(ws: Workspace) -> None:
    path = ws.root / "params.yaml"
    path.write_text(path.read_text().replace("cap_hrr: 0.5", "cap_hrr: 0.4"))


def another_gate_suite(ws: Workspace) -> None:
    (ws.prompts / "gate.jsonl").write_bytes(b'{"id": "z"}\n')


def another_incumbent_file(ws: Workspace) -> None:
    ws.incumbent(TARGET).write_text('{"live":null,"release":null,"candidate":null}')
    make_verdict(ws)
    ws.incumbent(TARGET).write_text('{"live":null,"release":null,"candidate":"x"}')


@pytest.mark.parametrize(
    "change", [another_vector, another_candidate, another_policy, another_gate_suite, another_incumbent_file]
)
def test_a_verdict_of_something_else_is_stale(ws: Workspace, change: object) -> None:
    change(ws)  # type: ignore[operator]
    with pytest.raises(StaleArtifact) as caught:
        promote(ws, TARGET)
    assert "safegene run" in caught.value.remedy
    assert [record.outcome for record in records(ws)] == ["error"]


def test_a_verdict_measured_against_what_is_no_longer_live_is_stale(ws: Workspace) -> None:
    pin_incumbent(ws, TARGET)
    make_verdict(ws)
    elsewhere = Workspace(ws.root.parent / "elsewhere")
    shutil.copytree(ws.root, elsewhere.root)
    ledger = elsewhere.root / "ledger"
    ledger.symlink_to(ws.root / "ledger")
    (ws.root / "ledger").mkdir()
    assert run(elsewhere, alpha=2.0) == "pass"
    with pytest.raises(StaleArtifact, match="measured against nothing as live"):
        promote(ws, TARGET)
    assert [record.outcome for record in records(ws)] == ["error", "pass"]


@pytest.mark.parametrize("endpoints", ["kept", "passing"])
def test_a_forged_pass_is_found_by_deciding_again(ws: Workspace, endpoints: str) -> None:
    """The forger has rewritten the verdict and its manifest, so that every digest fits."""
    make_verdict(ws, outcome="fail")
    verdict = ws.verdict(TARGET) / "verdict.json"
    content = strict_json(verdict.read_bytes(), where="verdict") | {"outcome": "pass"}
    if endpoints == "passing":
        content["endpoints"] = [one | {"outcome": "pass"} for one in content["endpoints"]]
    inputs = {"candidate": ws.candidate(TARGET), "judgements": ws.judgements(TARGET)}
    with write_artefact(ws.verdict(TARGET), stage="gate", params={}, inputs=inputs) as draft:
        (draft.path / "verdict.json").write_bytes(canonical_json(content))
    with pytest.raises(StaleArtifact, match="which the judgements give"):
        promote(ws, TARGET)
    assert [record.outcome for record in records(ws)] == ["error"]


def test_the_record_says_what_was_live_what_was_used_and_who_ran_it(ws: Workspace) -> None:
    facts = {"run_id": "r1", "trigger": "cron", "git_commit": "c" * 40}
    promote(ws, TARGET, run=facts)
    (record,) = records(ws)
    content = record.predicate
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
    run(ws)
    (ws.root / "ledger" / "tip").write_text("{}")
    error = SafegeneError("fetch failed", remedy="look at the source")
    record_error(ws, TARGET, error)
    assert error.remedy.startswith("look at the source; the attempt is not on record either: expected a pointer")


def test_nothing_is_promoted_without_a_key(ws: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / "nothing"))
    with pytest.raises(LedgerError, match="private key") as caught:
        promote(ws, TARGET)
    assert "SAFEGENE_KEYS" in caught.value.remedy
    assert not (ws.root / "ledger").exists()


def test_a_store_that_ignores_conditions_is_refused_by_name(ws: Workspace, tmp_path: Path) -> None:
    ledger = replace(ledger_of(ws), store=Deaf(tmp_path / "deaf"))
    claim = PromotionClaim(TARGET, "pass", "r", {}, {})
    with pytest.raises(StoreError, match=f"in {tmp_path}/deaf"):
        registry.record_promotion(ledger, load_signer(ledger.keys), claim, "production")
    assert list(ledger.store.list("records/")) == []


class Racing(LocalStore):
    """Another promoter is faster between the record and the channel pointer."""

    def put_if_absent(self, key: str, data: bytes) -> str:
        if key.startswith("channels/"):
            super().put_if_absent(key, Racing.winner)
        return super().put_if_absent(key, data)

    winner = b""


def test_who_loses_the_last_swap_is_told_who_won(ws: Workspace, tmp_path: Path) -> None:
    ledger = ledger_of(ws)
    signer = load_signer(ledger.keys)
    claims = [
        PromotionClaim(TARGET, "pass", "r", {"candidate": digest_json(n)}, {}, _files(tmp_path, n)) for n in range(2)
    ]
    first = registry.record_promotion(ledger, signer, claims[0], "production")
    pointer = ws.root / "ledger" / "channels" / "production" / TARGET
    Racing.winner = pointer.read_bytes()
    pointer.unlink()
    racing = replace(ledger, store=Racing(ws.root / "ledger"))
    with pytest.raises(PromotionRefused, match="record 0 was promoted to production first") as caught:
        registry.record_promotion(racing, signer, claims[1], "production")
    assert caught.value.exit_code == 1
    assert [record.outcome for record in records(ws)] == ["superseded", "pass", "pass"]
    assert live_digest(ws, TARGET) == first.release


def _files(folder: Path, number: int) -> dict[str, tuple[Path, str]]:
    path = folder / f"adapter-{number}"
    path.write_text(str(number))
    return {"candidate/adapter": (path, digest_file(path))}


def test_promoters_at_once_leave_one_live_and_each_on_record(ws: Workspace, tmp_path: Path) -> None:
    ledger = ledger_of(ws)
    signer = load_signer(ledger.keys)

    def one(number: int) -> str:
        claim = PromotionClaim(TARGET, "pass", "r", {"candidate": digest_json(number)}, {}, _files(tmp_path, number))
        try:
            return str(registry.record_promotion(ledger, signer, claim, "production").release)
        except (PromotionRefused, StaleArtifact):
            return ""

    with ThreadPoolExecutor(4) as pool:
        won = [release for release in pool.map(one, range(8)) if release]
    assert won == [live_digest(ws, TARGET)]
    outcomes = [record.outcome for record in records(ws)]
    assert outcomes.count("pass") == 1 + outcomes.count("superseded")
    assert outcomes.count("superseded") + outcomes.count("error") == 7


def test_the_incumbent_is_pinned_and_rewritten_only_when_it_changed(ws: Workspace) -> None:
    path = ws.incumbent(TARGET)
    assert pin_incumbent(ws, TARGET) is None
    assert strict_json(path.read_bytes(), where="") == {
        "live": None,
        "release": None,
        "candidate": None,
        "earlier": [],
    }
    assert read_incumbent(path, ws.root) is None
    make_verdict(ws)
    before = path.stat()
    done = promote(ws, TARGET)
    assert pin_incumbent(ws, TARGET) == done.release
    assert path.stat() == before  # the candidate is what is live: its verdict stands
    assert promote(ws, TARGET).record is None

    assert run(ws, alpha=2.0) == "pass"
    pinned = strict_json(path.read_bytes(), where="")
    assert pinned["live"] == done.release
    assert pinned["release"] == f"ledger/releases/{str(done.release)[7:]}"
    folder = read_incumbent(path, ws.root)
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
    assert read_attempt(path) == 3
    with write_artefact(ws.checkpoint(TARGET), stage="fetch", params={}, inputs={"aligned": ws.aligned}) as draft:
        (draft.path / "checkpoint.json").write_text('{"digest": "sha256:new", "source": "tiny://new"}')
    pin_incumbent(ws, TARGET)
    assert read_attempt(path) == 1, "another fine-tune under the same name"


@pytest.mark.parametrize("earlier", ['"sha256:0"', "[1]", '["none"]', "3"])
def test_a_count_of_attempts_that_cannot_be_read_is_an_error(tmp_path: Path, earlier: str) -> None:
    path = tmp_path / "incumbent.json"
    path.write_text(f'{{"live": null, "release": null, "candidate": null, "earlier": {earlier}}}')
    with pytest.raises(FormatError, match="earlier candidates"):
        read_attempt(path)


def test_new_evidence_for_what_is_live_goes_on_record(ws: Workspace) -> None:
    run(ws)
    another_policy(ws)
    make_verdict(ws)
    assert promote_attempt(ws, TARGET) == "pass"
    assert [record.outcome for record in records(ws)] == ["pass", "pass"]
    make_verdict(ws, outcome="fail")
    assert promote_attempt(ws, TARGET) == "fail"
    assert live_digest(ws, TARGET) == records(ws)[1].release


def test_rollback_goes_one_promotion_back_each_time(ws: Workspace) -> None:
    releases = []
    for alpha in (1.0, 2.0, 3.0):
        run(ws, alpha=alpha)
        releases.append(live_digest(ws, TARGET))
    for expected in (releases[1], releases[0]):
        assert rollback(ws, TARGET).release == expected
        assert live_digest(ws, TARGET) == expected
    with pytest.raises(PromotionRefused, match="an earlier release"):
        rollback(ws, TARGET)
    top = records(ws)[0]
    assert top.outcome == "rollback"
    assert top.artefacts == records(ws)[-1].artefacts
    assert len(records(ws)) == 5


@pytest.mark.parametrize("named_by", ["sequence", "record", "release", "prefix"])
def test_rollback_to_a_named_release(ws: Workspace, named_by: str) -> None:
    run(ws, alpha=1.0)
    run(ws, alpha=2.0, outcome="fail")
    run(ws, alpha=3.0)
    run(ws, alpha=4.0)
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
    run(ws, alpha=1.0)
    first = served(ws, TARGET)
    run(ws, alpha=2.0)
    now = live_digest(ws, TARGET)
    flip_byte(Path(first["path"]) / "candidate" / "adapter_model.safetensors")
    with pytest.raises(DigestMismatch):
        rollback(ws, TARGET)
    assert live_digest(ws, TARGET) == now


def test_what_was_rolled_back_does_not_return_by_itself(ws: Workspace) -> None:
    run(ws, alpha=1.0)
    run(ws, alpha=2.0)
    rollback(ws, TARGET)
    assert run(ws, alpha=2.0) == "fail"
    assert "took this candidate away" in records(ws)[0].reason
    assert run(ws, alpha=3.0) == "pass"


def test_nor_does_what_an_earlier_rollback_of_a_run_took_away(ws: Workspace) -> None:
    for alpha in (1.0, 2.0, 3.0):
        run(ws, alpha=alpha)
    for _ in range(2):
        rollback(ws, TARGET)
    assert [run(ws, alpha=alpha) for alpha in (3.0, 2.0, 4.0)] == ["fail", "fail", "pass"]


def test_a_revoked_vector_is_not_promoted_served_or_rolled_back_to(ws: Workspace) -> None:
    ledger = ledger_of(ws)
    run(ws, alpha=1.0)
    vector = read_manifest(ws.vector).digest
    record, touched, unread = record_revocation(ledger, load_signer(ledger.keys), vector, "poisoned", fields={})
    assert unread == ()
    assert record.outcome == "revocation"
    assert [now.record.target for now in touched] == [TARGET]
    with pytest.raises(PromotionRefused, match="poisoned"):
        served(ws, TARGET)
    assert run(ws, alpha=2.0) == "fail"
    make_family(ws, rank=2)
    assert run(ws, alpha=3.0) == "pass"
    assert served(ws, TARGET)
    with pytest.raises(PromotionRefused, match="poisoned"):
        rollback(ws, TARGET)
    with pytest.raises(SafegeneError, match="expected the digest"):
        record_revocation(ledger, load_signer(ledger.keys), "vector", "?", fields={})


def test_what_is_revoked_is_named_by_what_a_release_rests_on(ws: Workspace) -> None:
    """Not by the record that happens to stand before it."""
    run(ws, alpha=1.0)
    run(ws, alpha=2.0)
    first, second = records(ws)[1], records(ws)[0]
    with pytest.raises(SafegeneError, match="got that of a record") as refused:
        revoke(ws, first.digest, "?")
    assert str(first.release) in refused.value.remedy
    _, touched, _ = revoke(ws, str(first.release), "poisoned")
    assert touched == ()
    assert served(ws, TARGET)["release"] == second.release
    with pytest.raises(PromotionRefused, match="poisoned"):
        rollback(ws, TARGET)


def test_a_release_revoked_on_one_channel_is_not_promoted_on_another(ws: Workspace) -> None:
    staging = ws.params.promote.model_copy(update={"channel": "staging"})
    done = promote(ws, TARGET, channel=staging.channel)
    revoke(ws, str(done.release), "poisoned")
    assert promote_attempt(ws, TARGET) == "fail"
    assert live_digest(ws, TARGET) is None


def test_a_pointer_that_cannot_be_read_keeps_nobody_from_revoking(ws: Workspace) -> None:
    promote(ws, TARGET)
    (ws.root / "ledger" / "channels" / "production" / "other").write_text("{}")
    digest = read_manifest(ws.vector).digest
    _, touched, unread = revoke(ws, digest, "poisoned")
    assert [now.record.target for now in touched] == [TARGET]
    assert "channels/production/other" in unread[0]
    with pytest.raises(PromotionRefused, match="poisoned"):
        served(ws, TARGET)


def test_what_is_revoked_is_no_reference_for_its_successor(ws: Workspace) -> None:
    run(ws, alpha=1.0)
    revoke(ws, str(live_digest(ws, TARGET)), "poisoned")
    make_target(ws, alpha=2.0)
    assert pin_incumbent(ws, TARGET) is None
    make_verdict(ws)
    assert promote_attempt(ws, TARGET) == "pass"


def test_a_candidate_that_was_not_compared_with_what_is_live_is_refused(ws: Workspace) -> None:
    run(ws, alpha=1.0)
    ws.incumbent(TARGET).unlink()
    make_target(ws, alpha=2.0)  # judged as if nothing were live
    pin_incumbent(ws, TARGET)
    with pytest.raises(StaleArtifact, match="made from the present incumbent"):
        promote(ws, TARGET)


def test_judgements_of_sets_that_were_not_validated_are_refused(ws: Workspace) -> None:
    (ws.prompts / "gate.jsonl").write_bytes(b'{"id": "z"}\n')
    make_target(ws)  # judged by hand on the new set
    make_receipt(ws)
    with pytest.raises(StaleArtifact, match="made from the present validation"):
        promote(ws, TARGET)
    shutil.rmtree(ws.validation)
    with pytest.raises(ArtifactError, match="validation"):
        promote(ws, TARGET)


def test_a_verdict_with_invented_rates_is_refused(ws: Workspace) -> None:
    content = strict_json((ws.verdict(TARGET) / "verdict.json").read_bytes(), where="verdict")
    content["rates"] = {"hrr": {"after": {"rate": 0.0, "interval": [0.0, 0.0]}}}
    inputs = {"candidate": ws.candidate(TARGET), "judgements": ws.judgements(TARGET)}
    with write_artefact(ws.verdict(TARGET), stage="gate", params={}, inputs=inputs) as draft:
        (draft.path / "verdict.json").write_bytes(canonical_json(content))
    with pytest.raises(StaleArtifact, match="expected rates = "):
        promote(ws, TARGET)


def test_bytes_changed_after_they_were_verified_do_not_go_live(ws: Workspace, monkeypatch) -> None:
    adapter, found = ws.candidate(TARGET) / "adapter_model.safetensors", registry.live_record

    def meanwhile(*args: object):
        adapter.write_bytes(b"EVIL")
        return found(*args)

    monkeypatch.setattr(registry, "live_record", meanwhile)
    with pytest.raises(DigestMismatch, match="changed after it was verified"):
        promote(ws, TARGET)
    assert live_digest(ws, TARGET) is None


def test_a_target_that_nobody_named_leaves_no_record(ws: Workspace) -> None:
    with pytest.raises(ParamsError, match="'typo'"):
        promote(ws, "typo")
    assert records(ws) == []


def test_channels_are_apart(ws: Workspace) -> None:
    staging = ws.params.promote.model_copy(update={"channel": "staging"})
    done = promote(ws, TARGET, channel=staging.channel)
    assert live_digest(ws, TARGET) is None
    assert served(ws, TARGET, channel=staging.channel)["release"] == done.release
    now = live_record(ledger_of(ws), TARGET, "staging")
    assert now
    assert now.record.channel == "staging"
