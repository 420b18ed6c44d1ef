"""What a diagnosis measures, where its limits lie, and how it is said: before the gate, and without training."""

import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import LlamaForCausalLM

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.sources import ModelFiles
from safegene.checkpoints.structure import read_structure
from safegene.errors import ArtifactError, ParamsError, StaleArtifact
from safegene.models.structure import analyse
from safegene.pipeline.stages.calibrate import calibrate
from safegene.repair.coefficients_file import CoefficientsFile, LossesRecord
from safegene.repair.diagnosis.diagnose import BROKEN, diagnose, last_fall, mismatches
from safegene.repair.diagnosis.findings import LIMITS, Diagnosis, findings, outlook
from safegene.repair.diagnosis.matrices import by_layer, changes_elsewhere, measure_matrices, measure_matrix, overall
from safegene.repair.shots import Shot, Shots
from safegene.report import write_report
from safegene.report.diagnosis import coverage, draw, forecast, headline, read_diagnosis, sentences, table
from safegene.vectors.linalg import LowRank
from safegene.vectors.vector import SafetyVector
from safegene.workspace.params import CalibrateParams
from safegene.workspace.parsing import parse_json
from tests.factories.artefacts import DATA, made, payload
from tests.factories.commands import run
from tests.factories.llamas import checkpoint_record, random_patch, save_adapter, save_llama
from tests.factories.pages import whole
from tests.factories.runs import Sample

FINE: dict[str, Any] = {
    "task_change": 0.1, "cosine": -0.02, "outside": 0.05, "unreached": 0.0, "kept": 0.9, "surrogates": 4,
    "mismatches": 0, "safety_after": 0.01, "safety_changed": 0.3, "benign_after": 0.01, "benign_changed": 0.1,
    "shots_fit": 272, "fall": 0.3,
}  # fmt: skip
BEYOND: dict[str, Any] = {
    "safety_after": 0.05, "benign_after": 0.05, "task_change": 0.25, "cosine": 0.01, "outside": 0.9, "unreached": 0.9,
    "kept": 0.1, "surrogates": 1, "shots_fit": 8, "fall": 0.7,
}  # fmt: skip
DIGESTS = [f"sha256:{n:064d}" for n in range(4)]


def dense(size: float = 1.0) -> LowRank:
    generator = torch.Generator().manual_seed(3)
    up, down = torch.randn(24, 2, generator=generator), torch.randn(2, 40, generator=generator)
    return LowRank(up * size, down)


# ---- what is measured


def test_a_change_along_the_vector_is_told_by_its_sign_and_its_space() -> None:
    vector = dense()
    back = measure_matrix("model.layers.0.mlp.up_proj.weight", torch.ones(24, 40), -vector.dense(), vector)
    assert back.along == pytest.approx(-back.vector, rel=1e-4)
    assert back.taken == pytest.approx(back.vector, rel=1e-4), "all of the vector lies in the change's directions"
    random = torch.randn(24, 40, generator=torch.Generator().manual_seed(9))
    other = measure_matrix(back.name, torch.ones(24, 40), random, vector)
    assert abs(other.along) < 0.3 * other.vector
    assert 0.0 < other.by_chance < other.vector


def test_shares_are_of_the_whole_and_a_share_of_nothing_is_zero() -> None:
    weight, vector = torch.ones(24, 40), dense()
    rows = [
        measure_matrix("model.layers.0.mlp.up_proj.weight", weight, weight * 0.1, vector, kept=0.5),
        measure_matrix("model.layers.1.mlp.up_proj.weight", weight, weight * 0.3, dense(0.5), kept=0.5, used=False),
        measure_matrix("model.layers.1.mlp.down_proj.weight", weight, weight * 0.0, None),
    ]
    found = overall(rows)
    assert found["task_change"] == pytest.approx((0.1 / 3) ** 0.5, rel=1e-4)
    assert found["outside"] == pytest.approx(0.2, rel=1e-4)
    assert found["kept"] == pytest.approx(0.5, rel=1e-4)
    assert found["unreached"] == 0.0
    layers = by_layer(rows, {rows[0].name: -2.0})
    assert [one["vector"] for one in layers.values()] == pytest.approx([0.8, 0.2])
    assert [one["used"] for one in layers.values()] == pytest.approx([0.8, 0.0])
    assert [one["coefficients"] for one in layers.values()] == [2.0, 0.0]
    nothing = overall([measure_matrix(rows[0].name, torch.zeros(24, 40), torch.zeros(24, 40), None)])
    assert set(nothing.values()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("history", "fall"),
    [([], 0.0), ([(0, 1.0)], 0.0), ([(0, 1.0), (8, 0.25)], 0.75), ([(0, 1.0), (8, 0.2), (16, 0.3)], 0.0)],
)
def test_how_fast_a_fit_still_fell(history: list[tuple[int, float | None]], fall: float) -> None:
    assert last_fall(history) == fall


def llama_vector(root: Path, aligned: str = DIGESTS[0]) -> SafetyVector:
    patch = random_patch(root, seed=4, size=0.01)
    return SafetyVector(aligned, tuple(DIGESTS[1:3]), DIGESTS[3], patch, dict.fromkeys(patch, 1.0))


def shots(count: int) -> Shots:
    return {"fit": [Shot(str(n), "safety", (), torch.zeros(1, 1)) for n in range(count)], "validation": []}


def fitted(**after: float | None) -> CoefficientsFile:
    """``coefficients.json`` of a repair without findings, but for the losses ``after`` it."""
    loss: dict[str, float | None] = {"safety": 0.01, "benign": 0.01, "task": 0.0, **after}
    return CoefficientsFile(
        method="safegene",
        alphas={},
        coefficients={},
        trained=0,
        repaired=True,
        reason="",
        steps=8,
        size=1.0,
        history=[],
        before=LossesRecord(loss={"safety": 1.0}, changed={"safety": 1.0}),
        after=LossesRecord(loss=loss, changed=dict.fromkeys(loss, 0.1)),
        facts={},
        shots={},
        seed=0,
        extra_params=0.0,
    )


def examine(root: Path, target: ModelFiles, *, vector: SafetyVector | None = None, **after: float | None) -> Diagnosis:
    held = vector or llama_vector(root)
    record = checkpoint_record(digest=DIGESTS[0], architecture=held.architecture)
    return diagnose(
        fitted(**after),
        shots(64),
        held,
        list(held.factors),
        root=root,
        structure=analyse(open_checkpoint(root)),
        target=target,
        records=(record, record),
    )


def test_a_checkpoint_that_is_no_fine_tune_of_the_aligned_model_is_doubtful(tmp_path: Path) -> None:
    root, other = save_llama(tmp_path / "a"), save_llama(tmp_path / "b", seed=1)
    found = examine(root, ModelFiles(other))
    assert found.measured["task_change"] == pytest.approx(2**0.5, rel=0.05), "of independent weights"
    assert found.outlook == "doubtful"
    assert "unrelated" in [finding.what for finding in found.findings]


def test_a_repair_that_broke_the_model_is_doubtful_by_a_finite_number(tmp_path: Path) -> None:
    root = save_llama(tmp_path / "a")
    found = examine(root, ModelFiles(root), safety=None)
    assert found.outlook == "doubtful"
    assert found.findings[0].what == "safety_after"
    assert found.findings[0].measured == found.measured["safety_after"] == BROKEN


def test_a_lora_is_measured_by_its_own_factors(tmp_path: Path) -> None:
    root = save_llama(tmp_path / "a")
    adapter = save_adapter(tmp_path / "b", root)
    vector = llama_vector(root)
    files, structure = ModelFiles(root, (adapter,)), analyse(open_checkpoint(root))
    rows = list(measure_matrices(root, files, structure, vector, list(vector.factors)))
    assert set(changes_elsewhere(root, files, structure).values()) == {0.0}, "a LoRA changes no other tensor"
    own = random_patch(root, seed=2, ranks=(4,))
    assert [row.change for row in rows] == pytest.approx([own[row.name].energy() for row in rows], rel=1e-3)


def test_a_change_where_the_vector_has_no_factors_is_stated_by_kind(tmp_path: Path) -> None:
    root = save_llama(tmp_path / "a")
    tuned = LlamaForCausalLM.from_pretrained(root)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if name.endswith(("embed_tokens.weight", "up_proj.weight")):
                weight.add_(0.02 if "embed" in name else 0.01)
    tuned.save_pretrained(tmp_path / "b")
    vector = llama_vector(root)
    kept = {name: change for name, change in vector.factors.items() if "up_proj" not in name}
    found = examine(root, ModelFiles(tmp_path / "b"), vector=replace(vector, factors=kept))
    embeddings, projections = 50 * 64 * 4.0, 2 * 96 * 64 * 1.0
    shares = {"embedding": embeddings / (embeddings + projections), "mlp": projections / (embeddings + projections)}
    assert found.unreached == pytest.approx(shares, rel=1e-3)
    assert found.measured["unreached"] == pytest.approx(1.0, abs=1e-3)
    assert "embedding 51.0%" in coverage(found)[0]


def test_a_target_of_another_family_is_told_by_its_digests() -> None:
    vector = SafetyVector(DIGESTS[0], (DIGESTS[1],), DIGESTS[2], {}, {})
    family, other = (checkpoint_record(digest=DIGESTS[at], architecture=DIGESTS[2]) for at in (0, 3))
    assert mismatches(vector, family, family) == 0
    assert (
        mismatches(vector, family, checkpoint_record(digest=DIGESTS[2], architecture=DIGESTS[3], base=DIGESTS[3])) == 2
    )
    assert mismatches(vector, other, family) == 1


# ---- limits and the forecast


def test_within_every_limit_nothing_is_found() -> None:
    assert findings(FINE, fitted=True) == ()


@pytest.mark.parametrize("what", sorted(LIMITS))
def test_what_is_beyond_its_limit_is_found_with_words_and_a_remedy(what: str) -> None:
    (one,) = findings(FINE | {what: BEYOND[what]}, fitted=True)
    assert (one.what, one.measured, one.limit) == (what, BEYOND[what], LIMITS[what])
    assert one.words
    assert one.remedy


def test_symptoms_make_a_forecast_doubtful_and_causes_only_explain_it() -> None:
    for what in LIMITS:
        expected = "doubtful" if what in ("safety_after", "benign_after", "shots_fit") else "reachable"
        assert outlook(findings(FINE | {what: BEYOND[what]}, fitted=True)) == expected, what
    assert outlook(findings(FINE | {"mismatches": 1}, fitted=True)) == "doubtful"


def test_a_loss_without_changed_replies_is_no_symptom() -> None:
    assert findings(FINE | {"safety_after": 0.5, "safety_changed": 0.0}, fitted=True) == ()


def test_of_a_fit_that_was_not_made_nothing_is_said() -> None:
    assert findings(FINE | {"shots_fit": 1, "fall": 0.9}, fitted=False) == ()


# ---- on a real repair of the tiny family

FEW = CalibrateParams(safety_shots=48, benign_shots=32, task_shots=16, steps=16, batch_size=32, measure_every=8)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("group") / "candidate"
    ws = made()
    folders = {name: getattr(ws, name) for name in ("vector", "selection", "degraded", "aligned")}
    task = DATA / "tasks" / "group.jsonl"
    calibrate(**folders, target=ws.target("group"), prompts=DATA / "prompts", task=task, out=out, params=FEW)
    return out


def test_calibrating_says_what_it_measured(group: Path) -> None:
    content = payload(group, "coefficients.json")
    found = content["diagnosis"]
    measured = found["measured"]
    assert 0.02 < measured["task_change"] < LIMITS["task_change"]
    assert measured["cosine"] < 0.0, "what was lost points away from the vector"
    assert measured["shots_fit"] == 48
    assert measured["safety_after"] == content["after"]["loss"]["safety"]
    assert measured["surrogates"] == 2
    assert measured["mismatches"] == 0
    assert sorted(found["layers"]) == ["0", "1", "2", "3"]
    assert sum(one["vector"] for one in found["layers"].values()) == pytest.approx(1.0, abs=1e-3)
    left = sum(one["vector"] - one["used"] for one in found["layers"].values())
    assert left == pytest.approx(measured["outside"], abs=1e-3)


def test_a_diagnosis_costs_next_to_nothing_and_is_the_same_again(group: Path) -> None:
    from safegene.checkpoints.record import read_record
    from safegene.checkpoints.sources import local_checkpoint
    from safegene.vectors.vector import read_vector

    ws, path = made(), group / "coefficients.json"
    content = parse_json(CoefficientsFile, path.read_bytes(), where=str(path))
    assert content.content == path.read_bytes(), "read and written again it is the same file"
    aligned, target = local_checkpoint(ws.aligned), local_checkpoint(ws.target("group"))
    vector, records = read_vector(ws.vector), (read_record(ws.aligned), read_record(ws.target("group")))
    structure = read_structure(ws.aligned)
    start = time.process_time()
    again = diagnose(
        content,
        shots(48),
        vector,
        list(content.alphas),
        root=aligned.root,
        structure=structure,
        target=target,
        records=records,
    )
    assert time.process_time() - start < 2.0, "0.03 s on an idle core"
    assert content.diagnosis is not None
    assert again.layers == content.diagnosis.layers
    assert again.findings == content.diagnosis.findings


# ---- how it is said


def diagnosed(tmp_path: Path, **after: float) -> Sample:
    """A workspace with one candidate that has a diagnosis."""
    root = save_llama(tmp_path / "llama")
    found = examine(root, ModelFiles(save_llama(tmp_path / "other", seed=1)), vector=None, **after)
    sample = Sample(tmp_path / "ws")
    sample.family()
    sample.target("group", upto="target")
    sample.target("topic", upto="candidate")
    ws = sample.ws
    content = {"alphas": {}, "repaired": True, "history": [[0, 0.9], [8, 0.3]]}
    content |= {"diagnosis": found.model_dump(mode="json")}
    inputs = {"vector": ws.vector, "selection": ws.selection, "target": ws.checkpoint("group")}
    sample.put(ws.candidate("group"), "calibrate", {"coefficients.json": content}, **inputs)
    return sample


def test_the_table_names_each_finding_with_measured_and_limit(tmp_path: Path) -> None:
    found = read_diagnosis(diagnosed(tmp_path, safety=0.2).ws, "group")
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table(found))
    text = console.export_text()
    assert headline(found).startswith("group: Doubtful")
    assert headline(found).endswith("the gate decides.")
    assert "has decided since: fail (`safegene gate show group`" in headline(replace(found, outcome="fail"))
    assert re.search(r"loss on safety replies +0.200 +at most 0.030 +safety replies are still", text)
    assert re.search(r"degraded models +2 +at least 2 +no finding", text)
    assert text.count("change of the weights") == 1


def test_pictures_are_drawn_where_the_reports_lie_and_hold_no_clock(tmp_path: Path) -> None:
    sample = diagnosed(tmp_path)
    found = read_diagnosis(sample.ws, "group")
    first = draw(found, sample.ws.reports / "diagnose-group")
    assert [path.name for path in first] == ["layers.png", "history.png"]
    second = draw(found, tmp_path / "again")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_report_says_it_before_the_gate_and_stays_silent_without_one(tmp_path: Path) -> None:
    sample = diagnosed(tmp_path, safety=0.2)
    page = whole(write_report(sample.ws, live=lambda _: None))
    part = page[page.index('id="target-group"') : page.index('id="target-topic"')]
    assert "Forecast before the gate: Doubtful" in part
    assert "Safety replies are still 0.200 nats per token" in part
    assert page.count("Forecast before the gate") == 1
    assert sentences(None) == ()


def test_what_cannot_be_diagnosed_is_refused_by_name(tmp_path: Path) -> None:
    ws = diagnosed(tmp_path).ws
    with pytest.raises(ParamsError, match="'nobody'"):
        read_diagnosis(ws, "nobody")
    with pytest.raises(ArtifactError, match="older safegene") as old:
        read_diagnosis(ws, "topic")
    assert "safegene calibrate topic" in old.value.remedy
    path = ws.candidate("group") / "coefficients.json"
    path.write_bytes(path.read_bytes().replace(b"0.9", b"0.8", 1))
    with pytest.raises(StaleArtifact, match="sha256"):
        read_diagnosis(ws, "group")


def test_a_target_that_is_not_calibrated_yet_has_a_remedy(tmp_path: Path) -> None:
    sample = Sample(tmp_path / "ws")
    sample.family()
    sample.target("group", upto="target")
    with pytest.raises(ArtifactError, match="calibrated") as error:
        read_diagnosis(sample.ws, "group")
    assert error.value.remedy == "run `safegene run group`"


# ---- from outside


def test_the_command_prints_findings_and_pictures_and_trains_nothing(copy: Path) -> None:
    candidate = copy / "data/targets/sentiment/candidate"
    before = {path: path.stat().st_mtime_ns for path in candidate.iterdir()}
    done = run(copy, "diagnose", "sentiment")
    assert "the gate has decided since: " in done.stdout
    for name in ("layers.png", "history.png"):
        assert f"reports/diagnose-sentiment/{name}" in done.stdout
        assert (copy / "reports/diagnose-sentiment" / name).read_bytes().startswith(b"\x89PNG")
    assert before == {path: path.stat().st_mtime_ns for path in candidate.iterdir()}
    found = json.loads(run(copy, "diagnose", "sentiment", "--json").stdout)
    assert found["outlook"] in ("reachable", "doubtful")
    assert found["measured"]["task_change"] > 0.0


def test_the_command_refuses_a_target_that_is_not_there(built: Path) -> None:
    done = run(built, "diagnose", "nobody", code=2)
    assert "nobody" in done.stderr
    assert "safegene target add" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_forecast_names_what_is_beyond_its_limit_and_never_denies_it() -> None:
    content: dict[str, Any] = {"measured": {}, "limits": {}, "layers": {}}
    kept = {"what": "kept", "kind": "cause", "measured": 0.2, "limit": 0.3, "words": "w", "remedy": "r"}
    loss = {**kept, "what": "safety_after", "kind": "symptom"}
    said = {
        outlook: forecast(Diagnosis.model_validate({**content, "outlook": outlook, "findings": found}))
        for outlook, found in (("reachable", [kept]), ("doubtful", [loss, kept]))
    }
    assert said == {
        "reachable": "Reachable: the replies after the repair are close enough. Beyond the limit all the same: delta "
        "kept.",
        "doubtful": "Doubtful: the repair may not pass. Beyond the limit: loss on safety replies, delta kept.",
    }
    within = Diagnosis.model_validate({**content, "outlook": "reachable", "findings": []})
    assert forecast(within) == "Reachable: every measurement is within its limit."
