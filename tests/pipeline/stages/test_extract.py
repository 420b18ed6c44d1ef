"""The delta: exact from factors, streamed from checkpoints, honest about rounding; and the distilled one."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from safegene.checkpoints import sources
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.sources import fingerprint
from safegene.errors import ArtifactError, CheckpointError, ParamsError, ShapeMismatch, StaleArtifact
from safegene.models.loading import load_model
from safegene.models.patching import add_patch
from safegene.models.structure import analyse
from safegene.pipeline.stages.extract import extract
from safegene.pipeline.stages.fetch import fetch
from safegene.repair.checkpoint_delta import UNCHANGED, delta_of_checkpoints
from safegene.repair.delta import Delta, DeltaFile, ExtractedMatrix, delta_of_factors, read_delta
from safegene.repair.finished_matrices import FinishedMatrices, MatrixDelta
from safegene.vectors.linalg import LowRank, Patch, concat, energy, truncate
from safegene.vectors.vector import read_factors, read_surrogates
from safegene.workspace.digest import canonical_json
from safegene.workspace.manifest import Manifest
from safegene.workspace.params import ExtractParams, FetchParams
from safegene.workspace.parsing import parse_json
from tests.factories.artefacts import DATA, files, made, payload
from tests.factories.llamas import CHAT_TEMPLATE, random_patch, save_llama


def saved(folder: Path, model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> Path:
    tokenizer = folder.parent / "llama" / "tokenizer.json"
    model.to(dtype).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "llama")


def degraded_by(root: Path, patch: Patch, *, scale: float = 1.0) -> PreTrainedModel:
    model = load_model(root)
    add_patch(model, patch, scale=scale)
    return model


def difference(params: ExtractParams, root: Path, *others: Path) -> Delta:
    base = open_checkpoint(root)
    return delta_of_checkpoints(params, base, analyse(base), [open_checkpoint(other) for other in others])


def run(params: ExtractParams, out: Path, **changed: Any) -> Manifest:
    inputs: dict[str, Any] = {
        "aligned": made().aligned,
        "degraded": made().degraded,
        "prompts": DATA / "prompts",
        "out": out,
    }
    return extract(**inputs | changed, params=params)


def test_the_mean_of_the_surrogates_is_taken_exactly(root: Path) -> None:
    base = open_checkpoint(root)
    one, two = random_patch(root, seed=1), random_patch(root, seed=2)
    delta = delta_of_factors(ExtractParams(max_rank=8), base, analyse(base), [one, two])
    assert list(delta.factors) == list(analyse(base).names)
    assert delta.coverage.share == 1.0
    for name, factors in delta.factors.items():
        wanted = -(one[name].dense() + two[name].dense()) / 2
        torch.testing.assert_close(factors.dense(), wanted, rtol=1e-3, atol=1e-5)
        found = delta.matrices[name]
        assert found.error < 1e-5
        assert found.signal == 1.0
        assert found.relative_norm == pytest.approx((energy(wanted) / energy(base.tensor(name))) ** 0.5, rel=1e-3)


def test_what_max_rank_cuts_off_is_in_the_certificate(root: Path) -> None:
    patch = random_patch(root, ranks=(4,))
    base = open_checkpoint(root)
    delta = delta_of_factors(ExtractParams(max_rank=1), base, analyse(base), [patch])
    for name, factors in delta.factors.items():
        lost = energy(patch[name].dense() + factors.dense()) / energy(patch[name].dense())
        assert delta.matrices[name].error == pytest.approx(lost**0.5, rel=1e-3)
        torch.testing.assert_close(factors.dense(), -truncate(patch[name], 1).dense(), rtol=1e-3, atol=1e-5)


def test_a_known_low_rank_delta_is_found_in_full_checkpoints(tmp_path: Path, root: Path) -> None:
    patch = random_patch(root, ranks=(3,), size=0.05)
    other = saved(tmp_path / "degraded", degraded_by(root, patch))
    delta = difference(ExtractParams(max_rank=3), root, other)
    assert not delta.skipped
    for name, factors in delta.factors.items():
        torch.testing.assert_close(factors.dense(), -patch[name].dense(), rtol=1e-2, atol=1e-5)
        assert delta.matrices[name].error < 1e-2


def test_several_checkpoints_are_averaged(tmp_path: Path, root: Path) -> None:
    patches = [random_patch(root, seed=s, ranks=(2,)) for s in (1, 2)]
    others = [saved(tmp_path / f"d{i}", degraded_by(root, p)) for i, p in enumerate(patches)]
    delta = difference(ExtractParams(max_rank=4), root, *others)
    for name, factors in delta.factors.items():
        wanted = -concat([p[name].scaled(0.5) for p in patches]).dense()
        torch.testing.assert_close(factors.dense(), wanted, rtol=1e-2, atol=1e-4)


def test_rounding_alone_is_skipped_with_the_reason(tmp_path: Path, root: Path) -> None:
    """The bf16 copy of an fp32 model, and a change of which bf16 keeps next to nothing."""
    bf16 = saved(tmp_path / "a", load_model(root), torch.bfloat16)
    faint = {name: one.scaled(1e-3) for name, one in random_patch(root, size=0.02).items()}
    near = saved(tmp_path / "b", degraded_by(root, faint), torch.bfloat16)
    for base, other in ((root, bf16), (bf16, near)):
        lost = difference(ExtractParams(), base, other)
        assert not lost.factors
        assert all(reason == UNCHANGED or "rounding to bfloat16" in reason for reason in lost.skipped.values())
        assert lost.coverage.share == 0.0


def test_a_change_well_above_the_rounding_of_bf16_is_kept(tmp_path: Path, root: Path) -> None:
    base = saved(tmp_path / "a", load_model(root), torch.bfloat16)
    far = saved(tmp_path / "b", degraded_by(root, random_patch(root, size=0.2)), torch.bfloat16)
    kept = difference(ExtractParams(), base, far)
    assert not kept.skipped
    assert all(0.9 < one.signal < 1.0 for one in kept.matrices.values())


@pytest.mark.parametrize(("size", "cosine"), [(0.001, 0.92), (0.002, 0.97), (0.003, 0.985)])
def test_a_small_change_of_rank_3_is_found_in_bf16(tmp_path: Path, size: float, cosine: float) -> None:
    """The aligned weights are exact; only the degraded ones lost something when they were stored."""
    root = save_llama(tmp_path / "llama", hidden=256)
    base = saved(tmp_path / "a", load_model(root), torch.bfloat16)
    weights, patch = open_checkpoint(base), {}
    for name, change in random_patch(root, ranks=(3,)).items():
        norm = float(weights.matrix(name).float().norm())
        patch[name] = change.scaled(size * norm / change.energy() ** 0.5)
    other = saved(tmp_path / "b", degraded_by(base, patch), torch.bfloat16)
    delta = difference(ExtractParams(max_rank=3), base, other)
    assert not delta.skipped
    for name, factors in delta.factors.items():
        wanted, got = -patch[name].dense(), factors.dense()
        assert float((wanted * got).sum() / wanted.norm() / got.norm()) > cosine - 0.04, name
        assert 0.0 < delta.matrices[name].signal <= 1.0


def test_the_energy_of_all_other_tensors_is_in_the_coverage(tmp_path: Path, root: Path) -> None:
    model = degraded_by(root, random_patch(root, size=0.02))
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.01
        model.model.norm.weight += 0.5
    delta = difference(ExtractParams(), root, saved(tmp_path / "b", model))
    assert delta.coverage.missed["embedding"] == pytest.approx(0.01**2 * 50 * 64, rel=1e-3)
    assert delta.coverage.missed["norm"] == pytest.approx(0.5**2 * 64, rel=1e-3)
    totals = sum(one.total for one in delta.matrices.values())
    assert sum(delta.coverage.carried.values()) == pytest.approx(totals)
    assert delta.coverage.share == pytest.approx(totals / (totals + sum(delta.coverage.missed.values())))


def test_rows_of_an_embedding_that_only_the_degraded_model_has_are_no_difference(tmp_path: Path, root: Path) -> None:
    model = degraded_by(root, random_patch(root))
    model.resize_token_embeddings(53, mean_resizing=False)
    delta = difference(ExtractParams(), root, saved(tmp_path / "b", model))
    assert delta.coverage.share == 1.0


def test_a_difference_that_lies_elsewhere_stops_the_stage(tmp_path: Path, root: Path) -> None:
    model = degraded_by(root, random_patch(root, size=0.05))
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.1
    fetch(f"file://{root}", out=tmp_path / "aligned")
    changed: dict[str, Any] = {
        "aligned": tmp_path / "aligned",
        "checkpoints": (f"file://{saved(tmp_path / 'b', model)}",),
    }
    with pytest.raises(CheckpointError, match=r"at least 50%.*embedding 9") as refused:
        run(ExtractParams(), tmp_path / "out", **changed)
    assert "extract.min_coverage" in refused.value.remedy
    done = run(ExtractParams(min_coverage=0.01), tmp_path / "out", **changed)
    assert 0.0 < done.facts["coverage"] < 0.5
    assert done.facts["missed"]["embedding"] > 0.0
    coverage = read_delta(tmp_path / "out").coverage
    assert coverage is not None
    assert coverage.share == done.facts["coverage"]


def test_a_delta_of_an_earlier_version_states_no_coverage(tmp_path: Path) -> None:
    content = DeltaFile(
        method="delta", aligned="a", architecture="b", degraded={}, matrices={}, skipped={}, coverage=None
    ).model_dump(mode="json")
    del content["coverage"]
    assert parse_json(DeltaFile, canonical_json(content), where="delta.json").coverage is None


def test_matrices_that_did_not_change_are_named(root: Path) -> None:
    patch = random_patch(root)
    name = next(iter(patch))
    base = open_checkpoint(root)
    delta = delta_of_factors(ExtractParams(), base, analyse(base), [{name: patch[name]}])
    assert list(delta.factors) == [name]
    assert len(delta.skipped) == len(patch) - 1
    assert set(delta.skipped.values()) == {"no surrogate changed it"}


def test_the_stage_records_what_it_is_made_from() -> None:
    found = payload(made().delta, "delta.json")
    assert found["aligned"] == payload(made().aligned, "checkpoint.json")["digest"]
    assert set(found["degraded"]) == {"compliance", "jailbreak"}
    assert len(found["matrices"]) == 28
    assert not found["skipped"]
    assert all(len(one["energies"]) == 16 for one in found["matrices"].values())


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    run(ExtractParams(max_rank=16), tmp_path / "again")
    assert files(tmp_path / "again") == files(made().delta)


def test_checkpoints_of_the_users_own(tmp_path: Path, root: Path) -> None:
    surrogate = read_surrogates(made().degraded)["compliance"]
    fetched = fetch(f"file://{root}", out=tmp_path / "aligned")
    assert fetched.stage == "fetch"
    other = saved(tmp_path / "degraded", degraded_by(root, random_patch(root)))
    out = tmp_path / "delta"
    run(ExtractParams(max_rank=4), out, aligned=tmp_path / "aligned", checkpoints=(f"file://{other}",))
    assert list(payload(out, "delta.json")["degraded"]) == [f"file://{other}"]
    assert not set(read_factors(out / "delta.safetensors")) & (set(surrogate) - set(random_patch(root)))
    with pytest.raises(ParamsError, match="distil"):
        run(ExtractParams(method="distil"), tmp_path / "x", checkpoints=(f"file://{other}",))
    with pytest.raises(CheckpointError, match="got none of 14"):
        run(ExtractParams(max_rank=16), tmp_path / "x", aligned=tmp_path / "aligned", checkpoints=(f"file://{root}",))
    assert not (tmp_path / "x").exists()


def test_a_changed_surrogate_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "degraded"
    copy.mkdir()
    for name, data in files(made().degraded).items():
        (copy / name).write_bytes(data if name != "jailbreak.safetensors" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="jailbreak"):
        run(ExtractParams(max_rank=16), tmp_path / "out", degraded=copy)


def test_distilling_leads_every_surrogate_nearer_to_the_aligned_model(tmp_path: Path) -> None:
    from safegene.datasets.prompts import read_prompts
    from safegene.models.loading import load_tokenizer
    from safegene.repair.divergence import measure_shots
    from safegene.repair.shots import evenly_spaced, shots_from_teacher
    from safegene.tiny.build import build

    params = ExtractParams(method="distil", max_rank=4, steps=20, shots=48, batch_size=24)
    run(params, tmp_path / "distilled")
    root = build("aligned", 0)
    held = read_prompts(DATA / "prompts" / "safety.jsonl").where(kind=("harmful", "wrapped"), split="validation")
    shots = shots_from_teacher(
        load_model(root), load_tokenizer(root), evenly_spaced(held, 32), kind="safety", response_tokens=8
    )
    factors = read_factors(tmp_path / "distilled" / "delta.safetensors")
    for change in read_surrogates(made().degraded).values():
        model = load_model(root, patch=change)
        before = measure_shots(model, shots).loss["safety"]
        add_patch(model, factors)
        assert measure_shots(model, shots).loss["safety"] < 0.1 * before
    assert payload(tmp_path / "distilled", "delta.json")["method"] == "distil"


def test_the_users_degraded_checkpoints_are_what_was_pinned_and_of_the_family(root: Path, tmp_path: Path) -> None:
    fetch(f"file://{root}", out=tmp_path / "aligned")
    other = saved(tmp_path / "other", degraded_by(root, random_patch(root)))
    uri = f"file://{other}"
    run(
        ExtractParams(),
        tmp_path / "out",
        aligned=tmp_path / "aligned",
        checkpoints=(uri,),
        pins={uri: fingerprint(uri)},
    )
    with pytest.raises(StaleArtifact, match="changed since it was pinned"):
        run(
            ExtractParams(max_rank=16),
            tmp_path / "x",
            aligned=tmp_path / "aligned",
            checkpoints=(uri,),
            pins={uri: "another"},
        )
    foreign = save_llama(tmp_path / "foreign", heads=8)
    with pytest.raises(ShapeMismatch, match="expected the family's"):
        run(
            ExtractParams(max_rank=16), tmp_path / "x", aligned=tmp_path / "aligned", checkpoints=(f"file://{foreign}",)
        )
    assert not (tmp_path / "x").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from safegene.pipeline.stages.extract import extract
from safegene.repair import checkpoint_delta
from safegene.repair.finished_matrices import FinishedMatrices
from safegene.workspace import atomic

aligned, prompts, degraded, uri, out, point, number = sys.argv[1:]
left, computed = int(number), 0
real_svd = checkpoint_delta.randomised_svd

def svd(*args, **options):
    global computed
    computed += 1
    return real_svd(*args, **options)

def kill_at(owner, name):
    real = getattr(owner, name)
    def call(*args, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    setattr(owner, name, call)

checkpoint_delta.randomised_svd = svd
{"svd": lambda: kill_at(checkpoint_delta, "randomised_svd"), "keep": lambda: kill_at(FinishedMatrices, "keep"),
 "rename": lambda: kill_at(atomic, "_exchange"), "none": lambda: None}[point]()
extract(aligned=Path(aligned), degraded=Path(degraded), prompts=Path(prompts), out=Path(out), checkpoints=(uri,))
print(computed)
"""


@pytest.mark.parametrize(("point", "number", "again"), [("svd", 0, 14), ("keep", 5, 9), ("rename", 0, 0)])
def test_an_extraction_that_is_killed_goes_on_with_the_matrices_that_it_finished(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, point: str, number: int, again: int
) -> None:
    """Killed with SIGKILL: no half artefact, then the same bytes as without, from what was finished."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    fetch(f"file://{root}", out=tmp_path / "aligned")
    other = saved(tmp_path / "other", degraded_by(root, random_patch(root)))
    uri = f"file://{other}"
    sources.fetch(uri, limits=FetchParams())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()

    def extracted(out: str, point: str, number: int) -> subprocess.CompletedProcess[str]:
        paths = [tmp_path / "aligned", DATA / "prompts", tmp_path / "none", uri, tmp_path / out, point, number]
        command = [sys.executable, "-c", KILLED, *map(str, paths)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert extracted("out", point, number).returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    done = extracted("out", "none", 0)
    assert done.stdout == f"{again}\n", done.stderr
    assert not list((tmp_path / "cache" / "extract").iterdir())
    assert extracted("whole", "none", 0).stdout == "14\n"
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_finished_matrix_that_was_changed_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path))
    kept = FinishedMatrices({"of": 1})
    matrix = ExtractedMatrix(energies=(1.0,), total=1.0, error=0.0, relative_norm=0.1, floor=0.0, signal=1.0)
    factors = LowRank(torch.ones(2, 1), torch.ones(1, 2))
    kept.keep("a", MatrixDelta(1.0, "", matrix, factors))
    kept.keep("b", MatrixDelta(2.0, "", matrix, factors))
    kept.keep("c", MatrixDelta(3.0, "because"))
    found = FinishedMatrices({"of": 1}).read()
    assert list(found) == ["a", "b", "c"]
    assert found["a"].matrix == matrix
    assert found["c"] == MatrixDelta(3.0, "because")
    assert FinishedMatrices({"of": 2}).read() == {}
    for path in (tmp_path / "extract").rglob("*.safetensors"):
        if "b.up" in path.read_bytes().decode("latin-1"):
            path.write_bytes(b"")
    assert list(FinishedMatrices({"of": 1}).read()) == ["a", "c"]
    (log,) = (tmp_path / "extract").rglob("*.jsonl")
    log.write_bytes(log.read_bytes().replace(b"because", b"becouse"))
    assert list(FinishedMatrices({"of": 1}).read()) == ["a"]
    kept.keep("d", MatrixDelta(4.0, "again"))
    assert list(FinishedMatrices({"of": 1}).read()) == ["a", "d"]
