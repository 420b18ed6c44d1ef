import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.adapter import concatenate_factors, write_adapter
from safegene.checkpoints.export.base_model import base_model_name
from safegene.checkpoints.export.card import model_card
from safegene.checkpoints.export.merge import merge
from safegene.errors import ArtifactError, CheckpointError, StaleArtifact
from safegene.gate import EndpointResult, JudgeStatement, Rate, VerdictFile
from safegene.models.loading import load_model
from safegene.pipeline.export import export as export_stage
from safegene.pipeline.export import merge as merge_stage
from safegene.pipeline.stages.fetch import fetch
from safegene.vectors.linalg import LowRank
from safegene.workspace.digest import digest_tree
from safegene.workspace.manifest import Manifest, read_manifest, write_artefact
from tests.factories.llamas import IDS, checkpoint_record, random_patch, save_adapter, save_llama

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft calls a deprecated name of transformers
ALPHAS = (1.5, -0.5, 3.0, 0.25)


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("base") / "base", tied=request.param == "tied")


@pytest.fixture(scope="module")
def repair(base: Path) -> dict[str, LowRank]:
    """A repair of every projection, each with a coefficient of its own, none zero."""
    patch = random_patch(base, seed=7)
    return {name: change.scaled(ALPHAS[i % 4]) for i, (name, change) in enumerate(patch.items())}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_peft_computes_what_the_merged_fp32_checkpoint_computes(
    base: Path, repair: dict[str, LowRank], tmp_path: Path, kind: str
) -> None:
    """Must show 7: on the unmodified target, within 1e-3 of the change that the repair makes."""
    own = open_adapter(save_adapter(tmp_path / "own", base)) if kind == "lora" else None
    facts = write_adapter(repair, base_model=str(base), out=tmp_path / "candidate", own=own)
    merge(open_checkpoint(base), concatenate_factors(repair, own), out=tmp_path / "merged")

    before = logits(load_model(base, adapters=[own.root] if own else []))
    merged = logits(load_model(tmp_path / "merged"))
    loaded = PeftModel.from_pretrained(load_model(base), tmp_path / "candidate").eval()
    change = (merged - before).abs().max()
    assert change > 0.1
    assert (logits(loaded) - merged).abs().max() < 1e-3 * change
    assert facts["extra_parameters"] == sum(change.numel() for change in repair.values())
    shapes = [change.shape for change in repair.values()]
    assert facts["parameters"] == sum(facts["rank"] * (out + inner) for out, inner in shapes)
    assert facts["rank"] == (7 if own else 3)
    assert facts["served_rank"] == 8


def test_the_adapter_is_one_that_servers_take(base: Path, repair: dict[str, LowRank], tmp_path: Path) -> None:
    write_adapter(repair, base_model="org/model", out=tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None
    assert config["use_dora"] is False
    assert config["bias"] == "none"
    assert config["base_model_name_or_path"] == "org/model"
    assert config["target_modules"] == sorted(name.removesuffix(".weight") for name in repair)


def test_matrices_of_several_ranks_get_one_rank_and_alpha(
    base: Path, repair: dict[str, LowRank], tmp_path: Path
) -> None:
    """A tool that scales each tensor by alpha / its own rank, as llama.cpp does, computes the same change."""
    assert {change.rank for change in repair.values()} == {2, 3}
    write_adapter(repair, base_model="x", out=tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for name, change in repair.items():
        up, down = (tensors[f"base_model.model.{name.removesuffix('weight')}lora_{side}.weight"] for side in "BA")
        assert up.shape[1] == down.shape[0] == config["r"] == config["lora_alpha"]
        torch.testing.assert_close(config["lora_alpha"] / up.shape[1] * (up @ down), change.dense())


def test_equal_input_gives_equal_bytes(base: Path, repair: dict[str, LowRank], tmp_path: Path) -> None:
    write_adapter(repair, base_model="x", out=tmp_path / "one")
    write_adapter(dict(reversed(repair.items())), base_model="x", out=tmp_path / "two")
    assert digest_tree(tmp_path / "one") == digest_tree(tmp_path / "two")
    for folder in ("three", "four"):
        merge(open_checkpoint(base), repair, out=tmp_path / folder)
    assert digest_tree(tmp_path / "three") == digest_tree(tmp_path / "four")


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got none"):
        write_adapter({}, base_model="x", out=tmp_path)
    with pytest.raises(CheckpointError, match="lm_head"):
        write_adapter({"lm_head": LowRank(torch.ones(1, 1), torch.ones(1, 1))}, base_model="x", out=tmp_path)


UNIT = EndpointResult("hrr_direct", "pass", 0.0, 0.01, 0.05, 100, "")
VERDICT = VerdictFile(
    outcome="fail",
    reason="utility: lost 5 points",
    endpoints=(UNIT, replace(UNIT, name="utility", outcome="fail", reason="lost 5 points | <b>worse</b>")),
    failed=("utility",),
    problems=(),
    warnings=(),
    judge=JudgeStatement("j", exact=True, harmful=None, refusal=None),
    policy="p",
    models={},
    suites={},
    decoding={},
    rates={
        "hrr": {"before": Rate(0.5, (0.4, 0.6), 100), "after": Rate(0.015, (0.0, 0.03), 100)},
        "asr": {"before": Rate(None, None)},
    },
)
FACTS = {"rank": 4, "matrices": 14, "extra_parameters": 12345}


def test_the_card_holds_the_verdict_and_its_limits() -> None:
    card = model_card(target="topic", base_model="hf://org/model@main", adapter=FACTS, verdict=VERDICT)
    meta = yaml.safe_load(card.split("---\n")[1])
    assert meta["base_model"] == "org/model"
    assert meta["base_model_relation"] == "adapter"
    assert "50.0% (40.0% to 60.0%, n = 100) | 1.5% (0.0% to 3.0%, n = 100) | not measured" in card
    assert "12,345 extra parameters" in card
    assert "does\n  not say that the model is safe" in card
    assert "Not gated" in model_card(target="topic", base_model="file:///x", adapter=FACTS)


def test_the_card_escapes_what_strangers_wrote() -> None:
    card = model_card(target="a<script>", base_model="---\nevil: 1", adapter=FACTS, verdict=VERDICT)
    assert "<script>" not in card
    assert "<b>" not in card
    assert "base_model" not in yaml.safe_load(card.split("---\n")[1])
    assert "evil: 1" not in card.split("---\n")[1]


def artefact(
    out: Path, *, stage: str, files: dict[str, bytes], inputs: dict[str, str], facts: dict[str, Any] | None = None
) -> Manifest:
    with write_artefact(out, stage=stage, params={}, inputs=inputs) as draft:
        for name, data in files.items():
            (draft.path / name).write_bytes(data)
        draft.facts.update(facts or {})
    return draft.done


@pytest.fixture
def pipeline(base: Path, repair: dict[str, LowRank], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The artefacts of a LoRA target whose candidate is there."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    own, uri = save_adapter(tmp_path / "own", base), f"file://{base}"
    fetch(uri, out=tmp_path / "aligned")
    fetch(f"file://{own}", out=tmp_path / "target", family=tmp_path / "aligned")
    facts = write_adapter(repair, base_model=uri, out=tmp_path / "draft", own=open_adapter(own))
    files = {path.name: path.read_bytes() for path in (tmp_path / "draft").iterdir()}
    inputs = {"vector": "sha256:" + "1" * 64, "aligned": read_manifest(tmp_path / "aligned").digest}
    artefact(tmp_path / "candidate", stage="calibrate", files=files, inputs=inputs, facts=facts)
    return tmp_path


def test_stages_merge_and_export_the_candidate_of_a_lora_target(
    base: Path, repair: dict[str, LowRank], pipeline: Path
) -> None:
    inputs: dict[str, Any] = {name: pipeline / name for name in ("aligned", "target", "candidate")}
    facts = merge_stage(**inputs, out=pipeline / "merged")
    assert facts.least_survival > 0.99
    expected = logits(load_model(base, patch=repair, adapters=[pipeline / "own"]))
    assert torch.allclose(logits(load_model(pipeline / "merged")), expected, atol=1e-5)
    card = (pipeline / "merged" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "transformers"
    assert "stored in float32: 100.0% of the change survives" in card
    assert read_manifest(pipeline / "candidate").digest in card.replace("\\", "")

    told = export_stage(pipeline / "candidate", out=pipeline / "exported", target="topic")
    assert told.loads_on == f"file://{base}"
    assert told.extra_parameters == sum(change.numel() for change in repair.values())
    assert told.served_rank == 8
    assert told.outcome is None
    assert told.serving in (pipeline / "exported" / "README.md").read_text().replace("\\", "")
    assert sorted(path.name for path in (pipeline / "exported").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert "vector: sha256:" in (pipeline / "exported" / "README.md").read_text().replace("\\", "")
    with pytest.raises(CheckpointError, match="which exists"):
        export_stage(pipeline / "candidate", out=pipeline / "exported", target="topic")


def test_an_export_never_shows_the_verdict_on_something_else(pipeline: Path) -> None:
    files = {"verdict.json": VERDICT.to_bytes()}
    artefact(pipeline / "verdict", stage="gate", files=files, inputs={"candidate": "sha256:" + "2" * 64})
    inputs: dict[str, Any] = {"candidate": pipeline / "candidate", "verdict": pipeline / "verdict"}
    with pytest.raises(StaleArtifact, match="expected verdict made from the present candidate"):
        export_stage(**inputs, target="topic", out=pipeline / "exported")
    (pipeline / "candidate" / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"adapter_config\.json"):
        export_stage(**inputs, target="topic", out=pipeline / "exported")
    assert not (pipeline / "exported").exists()


def test_the_exported_adapter_names_its_base_as_loaders_do(pipeline: Path, base: Path) -> None:
    """AutoPeftModel finds the base by ``base_model_name_or_path``."""
    told = export_stage(
        pipeline / "candidate", out=pipeline / "exported", target="topic", loads_on=pipeline / "aligned"
    )
    assert told.loads_on == str(base)
    loaded = AutoPeftModelForCausalLM.from_pretrained(pipeline / "exported").eval()
    expected = PeftModel.from_pretrained(load_model(base), pipeline / "candidate").eval()
    assert torch.equal(logits(loaded), logits(expected))
    with pytest.raises(StaleArtifact, match="expected a repair made from"):
        export_stage(pipeline / "candidate", out=pipeline / "other", target="topic", loads_on=pipeline / "target")


@pytest.mark.parametrize(
    ("source", "fingerprint", "name", "revision"),
    [
        ("hf://org/model@main", "commit:0123", "org/model", "0123"),
        ("hf://org/model", "commit:0123", "org/model", "0123"),
        ("file:///models/a%20b", "sha256:1", "/models/a b", None),
        ("s3://bucket/prefix", "sha256:1", "/cache/copy", None),
        ("tiny://aligned?seed=0", "sha256:1", "/cache/copy", None),
    ],
)
def test_the_base_is_named_as_loaders_understand_it(
    source: str, fingerprint: str, name: str, revision: str | None
) -> None:
    record = checkpoint_record(digest="sha256:" + "1" * 64, architecture="sha256:" + "2" * 64)
    record = record.model_copy(update={"source": source, "fingerprint": fingerprint})
    assert base_model_name(record, Path("/cache/copy")) == (name, revision)
    if name == "/cache/copy":
        assert base_model_name(record) == (source, None), "bytes of an artefact do not depend on the machine"
