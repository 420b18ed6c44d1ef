"""The commands of ``serve-plan``, and that the section that it writes is the one that ``evaluate`` reads."""

import json
import shlex
from pathlib import Path

import pytest

from safegene.checkpoints.chat_template import chat_files
from safegene.checkpoints.export.adapter import write_adapter
from safegene.errors import CheckpointError
from safegene.evaluation.shared_bases import EvaluatedModel
from safegene.gate import Arm
from safegene.pipeline.serve_plan import ServePlan, plan_servers
from safegene.workspace.server_params import ServerParams
from tests.factories.llamas import random_patch, save_llama

CHATML = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "base")


def adapter(base: Path, name: str, rank: int) -> Path:
    folder = base.parent / name
    write_adapter(random_patch(base, ranks=(rank,)), base_model="base", out=folder)
    return folder


def model(root: Path, *adapters: Path) -> EvaluatedModel:
    return EvaluatedModel(root, adapters, ("sha256:" + "0" * 64,), chat_files(root, adapters))


def plan(tmp_path: Path, models: dict[Arm, EvaluatedModel], **more: object) -> ServePlan:
    ids = more.get("ids", {})
    assert isinstance(ids, dict)
    return plan_servers("support", models, host="127.0.0.1", port=8000, templates=tmp_path / "reports", ids=ids)


def options(command: str) -> dict[str, list[str]]:
    """Option -> its values; what comes before the first option under an empty name."""
    found: dict[str, list[str]] = {"": []}
    last = ""
    for word in shlex.split(command):
        if word.startswith("--"):
            found[last := word] = []
        else:
            found[last].append(word)
    return found


def test_a_lora_target_needs_one_server_with_modules(base: Path, tmp_path: Path) -> None:
    own, repaired = adapter(base, "own", 4), adapter(base, "repaired", 12)
    found = plan(tmp_path, {"before": model(base, own), "candidate": model(base, repaired), "aligned": model(base)})
    assert not found.notes
    assert not found.merged
    (vllm,), (sglang,) = found.commands("vllm"), found.commands("sglang")
    assert options(vllm) == {
        "": ["vllm", "serve", str(base)],
        "--served-model-name": ["aligned"],
        "--host": ["127.0.0.1"],
        "--port": ["8000"],
        "--dtype": ["float32"],
        "--generation-config": ["vllm"],
        "--return-tokens-as-token-ids": [],
        "--enable-lora": [],
        "--max-lora-rank": ["16"],
        "--max-loras": ["2"],
        "--lora-modules": [f"before={own}", f"candidate={repaired}"],
    }
    assert options(sglang)["--max-lora-rank"] == ["12"]
    assert options(sglang)["--lora-paths"] == options(vllm)["--lora-modules"]
    url = "http://127.0.0.1:8000/v1"
    names = {"before": "before", "candidate": "candidate", "aligned": "aligned"}
    assert found.params("vllm") == {"url": url, "names": names, "allow_hosts": ["127.0.0.1"]}
    assert found.params("sglang")["names"] == {
        "before": "aligned:before",
        "candidate": "aligned:candidate",
        "aligned": "aligned",
    }


def test_a_full_target_needs_two_servers(base: Path, tmp_path: Path) -> None:
    tuned = save_llama(tmp_path / "tuned", seed=1)
    repaired = adapter(tuned, "repaired", 3)
    found = plan(tmp_path, {"before": model(tuned), "candidate": model(tuned, repaired), "aligned": model(base)})
    first, second = found.commands("vllm")
    assert options(first)["--lora-modules"] == [f"candidate={repaired}"]
    assert options(first)["--max-lora-rank"] == ["8"]
    assert options(first)["--served-model-name"] == ["before"]
    assert "--enable-lora" not in options(second)
    assert options(second)["--port"] == ["8001"]
    section = ServerParams.model_validate(found.params("vllm"))
    assert section.url == "http://127.0.0.1:8000/v1"
    assert section.urls == {"aligned": "http://127.0.0.1:8001/v1"}
    json.dumps(found.to_json())


def test_a_target_s_own_template_and_tokenizer_have_a_server_of_their_own(base: Path, tmp_path: Path) -> None:
    own, repaired = adapter(base, "own", 4), adapter(base, "repaired", 4)
    (own / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    asked = chat_files(base, (own,))
    candidate = EvaluatedModel(base, (repaired,), ("sha256:" + "1" * 64,), asked)
    found = plan(tmp_path, {"before": model(base, own), "candidate": candidate, "aligned": model(base)})
    first, second = found.commands("vllm")
    (template,) = options(first)["--chat-template"]
    assert Path(template).read_text() == CHATML
    assert len(options(first)["--lora-modules"]) == 2
    assert options(first)["--served-model-name"] == ["base-of-before"]
    assert "--chat-template" not in options(second)
    (own / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    again = plan(tmp_path, {"before": model(base, own)}).commands("sglang")
    assert options(again[0])["--tokenizer-path"] == [str(own)]
    assert "--chat-template" not in options(again[0])


def test_an_adapter_that_no_server_takes_is_served_merged(base: Path, tmp_path: Path) -> None:
    large = adapter(base, "large", 520)
    found = plan(tmp_path, {"before": model(base), "candidate": model(base, large), "aligned": model(base)})
    first, second = found.commands("vllm")
    (merge,) = found.merged
    words = shlex.split(merge)
    assert words[:3] == ["safegene", "merge", "support"]
    assert options(second)[""] == ["vllm", "serve", words[3]]
    assert options(second)["--served-model-name"] == ["candidate"]
    assert "rank 520" in found.notes[0]
    assert found.params("vllm")["names"] == {"before": "before", "aligned": "before", "candidate": "candidate"}
    assert "--enable-lora" not in options(first)
    with pytest.raises(CheckpointError, match="expected an adapter of before that vLLM serves, got one where .* 520"):
        plan(tmp_path, {"before": model(base, large)})


def test_expert_weights_are_served_merged(base: Path, tmp_path: Path) -> None:
    experts = adapter(base, "experts", 4)
    config = json.loads((experts / "adapter_config.json").read_text())
    (experts / "adapter_config.json").write_text(json.dumps(config | {"target_parameters": ["mlp.experts.down_proj"]}))
    found = plan(tmp_path, {"candidate": model(base, experts)})
    assert "expert weights" in found.notes[0]
    assert not found.servers[0].modules


def test_models_of_the_hub_are_named_by_id_where_asked(base: Path, tmp_path: Path) -> None:
    found = plan(tmp_path, {"aligned": model(base)}, ids={base: ("org/model", "a1b2")})
    command = options(found.commands("vllm")[0])
    assert command[""] == ["vllm", "serve", "org/model"]
    assert command["--revision"] == ["a1b2"]
