"""A model is asked with one tokenizer and one chat template; without any it is refused when it is fetched."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from safegene.checkpoints.chat_template import ChatFiles, chat_files, chat_template_of, template_digest
from safegene.checkpoints.sources import ModelFiles
from safegene.datasets.prompts import Prompt, read_prompts
from safegene.errors import CheckpointError, EmptySample, FormatError
from safegene.evaluation.shared_bases import EvaluatedModel, SharedBases
from safegene.models.loading import load_model
from safegene.models.templates import encode_chat, load_chat_tokenizer
from safegene.pipeline.stages.fetch import fetch
from safegene.repair.shots import build_shots, shots_from_teacher
from safegene.workspace.digest import digest_bytes
from tests.factories.architectures import save_architecture
from tests.factories.artefacts import DATA, LEAST
from tests.factories.llamas import save_adapter

OTHER = "{% for message in messages %}<user> answer {{ message['content'] }} {% endfor %}<assistant>"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_architecture(tmp_path_factory.mktemp("family") / "llama", "llama")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))


def without_template(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    (to / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((to / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (to / "tokenizer_config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", OTHER),
        ("tokenizer_config.json", json.dumps({"chat_template": OTHER})),
        ("chat_template.json", json.dumps({"chat_template": OTHER})),
        (
            "tokenizer_config.json",
            json.dumps(
                {"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": OTHER}]}
            ),
        ),
    ],
)
def test_a_template_is_found_wherever_tools_write_it(family: Path, tmp_path: Path, name: str, content: str) -> None:
    folder = without_template(family, tmp_path / "m")
    assert chat_template_of(folder) is None
    kept = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    (folder / name).write_text(json.dumps(kept | json.loads(content)) if name.endswith("json") else content)
    assert chat_template_of(folder) == OTHER
    text = encode_chat(load_chat_tokenizer(chat_files(folder)), "draw a kite")
    assert load_chat_tokenizer(chat_files(folder)).decode(text) == "<user> answer draw a kite <assistant>"


def test_the_jinja_file_comes_first(family: Path, tmp_path: Path) -> None:
    folder = without_template(family, tmp_path / "m")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "second"}))
    (folder / "chat_template.jinja").write_text("first")
    assert chat_template_of(folder) == "first"


@pytest.mark.parametrize("content", ["7", '[{"name": "default", "template": 7}]', '{"a": 1}'])
def test_a_template_that_is_no_text_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(f'{{"chat_template": {content}}}')
    with pytest.raises(FormatError, match="expected a chat template as text"):
        chat_template_of(tmp_path)


def test_a_template_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="UTF-8"):
        chat_template_of(tmp_path)


@pytest.mark.parametrize("blank", [None, "", " \n"])
def test_a_checkpoint_without_a_template_is_refused_at_fetch(family: Path, tmp_path: Path, blank: str | None) -> None:
    folder = without_template(family, tmp_path / "m")
    if blank is not None:
        (folder / "chat_template.jinja").write_text(blank)
    with pytest.raises(CheckpointError, match="expected a chat template") as caught:
        fetch(f"file://{folder}", out=tmp_path / "aligned")
    assert "tuned from" in (caught.value.remedy or "")
    fetch(f"file://{family}", out=tmp_path / "family")
    with pytest.raises(CheckpointError, match="expected a chat template"):
        fetch(f"file://{folder}", out=tmp_path / "target", family=tmp_path / "family")


def test_fetch_says_whose_template_a_target_has(family: Path, tmp_path: Path) -> None:
    aligned = fetch(f"file://{family}", out=tmp_path / "aligned")
    own = without_template(family, tmp_path / "own")
    (own / "chat_template.jinja").write_text(OTHER)
    lora = save_adapter(tmp_path / "lora", family)
    facts = {
        name: fetch(f"file://{folder}", out=tmp_path / f"t-{name}", family=tmp_path / "aligned").facts
        for name, folder in (("same", family), ("own", own), ("lora", lora))
    }
    assert {name: fact["chat_template"] for name, fact in facts.items()} == {
        "same": "family's",
        "own": "own",
        "lora": "family's",
    }
    assert facts["own"]["chat_template_digest"] == digest_bytes(OTHER.encode())
    assert facts["lora"]["chat_template_digest"] == aligned.facts["chat_template_digest"]
    assert template_digest(family) == aligned.facts["chat_template_digest"]


def test_a_lora_is_asked_with_what_its_folder_brings_along(family: Path, tmp_path: Path) -> None:
    lora = save_adapter(tmp_path / "lora", family)
    assert chat_files(family, (lora,)) == ChatFiles(family, family, family)
    assert chat_files(family, (lora,)).digest is None
    (lora / "chat_template.jinja").write_text(OTHER)
    found = chat_files(family, (lora,))
    assert (found.tokenizer, found.template) == (family, lora)
    first = found.digest
    assert first is not None
    assert load_chat_tokenizer(found).chat_template == OTHER
    (lora / "chat_template.jinja").write_text(OTHER + " ")
    assert chat_files(family, (lora,)).digest not in (None, first)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(family / name, lora / name)
    assert chat_files(family, (lora,)).tokenizer == lora


@pytest.mark.parametrize("template", ["{{ raise_exception('\x1b[31mno') }}", "{% for %}", "{{ messages[7].x.y }}", ""])
def test_a_template_that_cannot_write_a_turn_is_an_error_by_name(family: Path, template: str) -> None:
    tokenizer = load_chat_tokenizer(chat_files(family))
    tokenizer.chat_template = template
    with pytest.raises(CheckpointError, match="expected a chat template that writes one user turn") as caught:
        encode_chat(tokenizer, "draw a kite")
    assert "\x1b" not in str(caught.value)


def test_safety_shots_teach_what_the_aligned_model_says_as_it_is_asked(family: Path) -> None:
    """The teacher reads its own template; the student's ids are the prompt as the student is asked, and the reply."""
    own, student = (load_chat_tokenizer(chat_files(family)) for _ in range(2))
    model = load_model(family)
    student.chat_template = OTHER
    prompts = [_prompt("a", "how do i draw a kite ?"), _prompt("b", "draw")]
    asked: dict[str, Any] = {"kind": "safety", "response_tokens": 4}
    alone = shots_from_teacher(model, own, prompts, **asked)
    both = shots_from_teacher(model, own, prompts, **asked, student_tokenizer=student)
    for one, two, prompt in zip(alone, both, prompts, strict=True):
        assert (one.teacher == two.teacher).all()
        reply = one.ids[len(encode_chat(own, prompt.prompt)) :]
        assert two.ids == (*encode_chat(student, prompt.prompt), *reply)
        assert one.ids != two.ids


def test_an_end_that_is_text_to_the_student_is_not_taught(family: Path) -> None:
    own, student = (load_chat_tokenizer(chat_files(family)) for _ in range(2))
    model = load_model(family)
    model.generation_config.eos_token_id = None
    own.eos_token = own.decode([_first_token(model, own, "draw")])
    same = shots_from_teacher(model, own, [_prompt("a", "draw")], kind="safety", response_tokens=4)
    assert [len(shot.teacher) for shot in same] == [1]
    with pytest.raises(EmptySample, match="expected safety shots with replies, got none"):
        shots_from_teacher(
            model, own, [_prompt("a", "draw")], kind="safety", response_tokens=4, student_tokenizer=student
        )


def test_every_shot_of_a_target_is_encoded_as_the_target_is_asked(family: Path, tmp_path: Path) -> None:
    lora = save_adapter(tmp_path / "lora", family)
    (lora / "chat_template.jinja").write_text(OTHER)
    safety, tasks = read_prompts(DATA / "prompts" / "safety.jsonl"), read_prompts(DATA / "tasks" / "group.jsonl")
    shots = build_shots(LEAST, family, ModelFiles(family, (lora,)), safety, tasks)
    tokenizer = load_chat_tokenizer(chat_files(family))
    asked = {shot.kind: tokenizer.decode(shot.ids) for split in shots.values() for shot in split}
    assert set(asked) == {"safety", "benign", "task"}
    assert all(text.startswith("<user> answer ") for text in asked.values())


def test_evaluation_asks_each_model_with_its_own_template(family: Path, tmp_path: Path) -> None:
    lora = save_adapter(tmp_path / "lora", family)
    (lora / "chat_template.jinja").write_text(OTHER)
    bases = SharedBases("float32")
    aligned = EvaluatedModel(family, (), ("a",))
    before = EvaluatedModel(family, (lora,), ("a", "b"), chat_files(family, (lora,)))
    candidate = EvaluatedModel(family, (save_adapter(tmp_path / "c", family, seed=4),), ("a", "c"), before.chat)
    templates = []
    for model in (aligned, before, candidate):
        with bases.serving(model) as (_, tokenizer):
            templates.append(tokenizer.chat_template)
    assert templates == [chat_template_of(family), OTHER, OTHER]


def _first_token(model: Any, tokenizer: Any, prompt: str) -> int:
    return int(model(torch.tensor([encode_chat(tokenizer, prompt)])).logits[0, -1].argmax())


def _prompt(name: str, text: str) -> Prompt:
    return Prompt(id=name, prompt=text, kind="harmful", category="c", behaviour="b", split="fit", pool="p")
