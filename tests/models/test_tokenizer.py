"""Tokenizers are compared by what they do: harmless differences of spelling are no differences, others are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from safegene.errors import CheckpointError, FormatError, ShapeMismatch, UnsafeCheckpoint
from safegene.models import tokenizer as tokenizer_module
from safegene.models import tokenizer_child
from safegene.models.generation_defaults import generation_values, require_same_generation
from safegene.models.tokenizer import require_same_tokenizer, resolve_tokenizer
from tests.factories.hostile import edit
from tests.factories.tokenizers import save_tokenizer

FAMILIES = ("qwen2", "llama", "mistral", "llama-2")
Change = Callable[[Path], object]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("families") / request.param, request.param)


def config(**values: Any) -> Change:
    return lambda folder: edit(folder / "tokenizer_config.json", lambda held: held.update(values))


def saved_again(folder: Path) -> None:
    """By the present version of transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.save_pretrained(folder)


def saved_by_an_old_version(folder: Path) -> None:
    """Merges as text, tokens in further files, and flags that new versions write otherwise."""
    state = json.loads((folder / "tokenizer.json").read_text())
    model, tokens = state["model"], state["added_tokens"]
    model["merges"] = [" ".join(merge) for merge in model["merges"]]
    model |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    model.pop("ignore_merges", None)
    for token in tokens:
        token["normalized"] = True
    (folder / "tokenizer.json").write_text(json.dumps(state))
    lists = {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in tokens}
    config(added_tokens_decoder=lists)(folder)
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *model["merges"], ""]))
    (folder / "added_tokens.json").write_text(json.dumps({token["content"]: token["id"] for token in tokens}))
    end = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": end, "lstrip": False}}))


def with_padding(folder: Path) -> None:
    first = tokens_of(folder)[0]["content"]
    padding = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0}
    cut = {"direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0}
    edit(
        folder / "tokenizer.json",
        lambda held: held.update(truncation=cut, padding={**padding, "pad_type_id": 0, "pad_token": first}),
    )


def tokens_of(folder: Path) -> list[dict[str, Any]]:
    tokens: list[dict[str, Any]] = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return tokens


SAME: dict[str, Change] = {
    "the same": lambda folder: None,
    "saved again": saved_again,
    "saved by an old version": saved_by_an_old_version,
    "a generic class": config(tokenizer_class="PreTrainedTokenizerFast"),
    "the class of this version": config(tokenizer_class="TokenizersBackend"),
    "a class of Llama": config(tokenizer_class="LlamaTokenizerFast"),
    "padding on the right": config(padding_side="right", model_max_length=77),
    "a padding token of its own": config(pad_token="[PAD]"),
    "the end token as padding": lambda folder: config(pad_token=tokens_of(folder)[-1]["content"])(folder),
    "padding and truncation": with_padding,
    "without a config, as an adapter": lambda folder: (folder / "config.json").unlink(),
}


@pytest.mark.parametrize("case", SAME)
def test_a_harmless_difference_is_accepted(family: Path, tmp_path: Path, case: str) -> None:
    own = Path(shutil.copytree(family, tmp_path / "own"))
    SAME[case](own)
    require_same_tokenizer(resolve_tokenizer(own), resolve_tokenizer(family), "own", 10_000)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (config(clean_up_tokenization_spaces=True), "clean_up_tokenization_spaces True, the family's False"),
        (config(sep_token="[SEP]"), "sep_token '[SEP]', the family's None"),
    ],
)
def test_what_changes_neither_prompts_nor_replies_is_declared(
    family: Path, tmp_path: Path, change: Change, said: str
) -> None:
    own = Path(shutil.copytree(family, tmp_path / "own"))
    change(own)
    assert require_same_tokenizer(resolve_tokenizer(own), resolve_tokenizer(family), "own", 10_000) == (said,)


def state(**values: Any) -> Change:
    return lambda folder: edit(folder / "tokenizer.json", lambda held: held.update(values))


def model(**values: Any) -> Change:
    return lambda folder: edit(folder / "tokenizer.json", lambda held: held["model"].update(values))


def first_merge(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda held: held["model"]["merges"].pop())


DIFFERENT: dict[str, tuple[Change, str]] = {
    "random merges": (model(dropout=0.5), "model"),
    "fewer merges": (first_merge, "merges"),
    "lower case": (state(normalizer={"type": "Lowercase"}), "normalizer"),
    "digits removed": (
        state(pre_tokenizer={"type": "Split", "pattern": {"Regex": "[0-9]"}, "behavior": "Removed", "invert": False}),
        "normalizer|pre_tokenizer",
    ),
    "a decoder of words": (state(decoder={"type": "WordPiece", "prefix": "a", "cleanup": True}), "decoder"),
    "special tokens split": (config(split_special_tokens=True), "split_special_tokens"),
}


@pytest.mark.parametrize("case", DIFFERENT)
@pytest.mark.parametrize("kind", ["qwen2", "mistral"])
def test_a_difference_of_what_it_does_is_refused(tmp_path: Path, kind: str, case: str) -> None:
    family = save_tokenizer(tmp_path / "family", kind)
    own = Path(shutil.copytree(family, tmp_path / "own"))
    change, match = DIFFERENT[case]
    change(own)
    with pytest.raises(ShapeMismatch, match=match):
        require_same_tokenizer(resolve_tokenizer(own), resolve_tokenizer(family), "own", 10_000)


def test_a_token_without_a_row_is_refused(tmp_path: Path) -> None:
    family = save_tokenizer(tmp_path / "family", "llama")
    own = Path(shutil.copytree(family, tmp_path / "own"))
    config(sep_token="[SEP]")(own)
    rows = resolve_tokenizer(family).largest + 1
    with pytest.raises(ShapeMismatch, match=f"below the {rows} rows"):
        require_same_tokenizer(resolve_tokenizer(own), resolve_tokenizer(family), "own", rows)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("vocab.json", '{"the": 1}', "vocab.json to agree"),
        ("merges.txt", "#version: 0.2\na b\n", "merges.txt to agree"),
        ("special_tokens_map.json", '{"additional_special_tokens": ["k"]}', "the ordinary 'k'"),
        ("tokenizer.model", "x", "tokenizer.model"),
    ],
)
def test_a_file_that_contradicts_the_tokenizer_is_refused(tmp_path: Path, name: str, content: str, match: str) -> None:
    family = save_tokenizer(tmp_path / "family", "llama")
    own = Path(shutil.copytree(family, tmp_path / "own"))
    saved_by_an_old_version(own)
    (own / name).write_text(content)
    with pytest.raises((FormatError, ShapeMismatch), match=match):
        require_same_tokenizer(resolve_tokenizer(own), resolve_tokenizer(family), "own", 10_000)


def test_a_tokenizer_that_takes_any_amount_of_memory_is_never_loaded_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = save_tokenizer(tmp_path / "own", "llama")
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    state(normalizer={"type": "Sequence", "normalizers": [double] * 45})(own)
    monkeypatch.setattr(tokenizer_child, "BYTES", 256 << 20)
    monkeypatch.setattr(tokenizer_child, "SECONDS", 10)
    monkeypatch.setattr(tokenizer_module, "load_tokenizer", lambda _: pytest.fail("it was loaded in this process"))
    with pytest.raises(UnsafeCheckpoint, match="within 10 s and 256 MiB"):
        resolve_tokenizer(own)


def test_a_file_of_any_size_is_not_read(tmp_path: Path) -> None:
    own = save_tokenizer(tmp_path / "own", "llama")
    with (own / "vocab.txt").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UnsafeCheckpoint, match="expected at most 67108864 bytes"):
        resolve_tokenizer(own)


# Generation defaults


def compared(tmp_path: Path, own: dict[str, Any], family: dict[str, Any]) -> tuple[str, ...]:
    folders = [save_tokenizer(tmp_path / name, "llama") for name in ("own", "family")]
    pairs = []
    for folder, values in zip(folders, (own, family), strict=True):
        (folder / "generation_config.json").write_text(json.dumps(values))
        pairs.append((generation_values(folder), resolve_tokenizer(folder)))
    return require_same_generation(pairs[0], pairs[1], "own")


TEXT_END, END = 307, 309  # <|endoftext|> and <|im_end|>


@pytest.mark.parametrize(
    ("own", "family"),
    [
        ({"eos_token_id": END}, {"eos_token_id": [END, TEXT_END]}),
        ({"eos_token_id": [TEXT_END, END], "pad_token_id": 1, "max_length": 5}, {"eos_token_id": [END, TEXT_END]}),
        ({"eos_token_id": END, "transformers_version": "4.40.0", "_from_model_config": True}, {"eos_token_id": END}),
        ({}, {"eos_token_id": END, "suppress_tokens": [1]}),
        ({"eos_token_id": END, "suppress_tokens": [1]}, {"eos_token_id": END, "suppress_tokens": [1]}),
        ({"eos_token_id": END, "min_length": 0, "bad_words_ids": None, "temperature": 1.0}, {"eos_token_id": END}),
        ({"eos_token_id": [TEXT_END]}, {"eos_token_id": [TEXT_END]}),
    ],
)
def test_ordinary_generation_defaults_are_accepted(tmp_path: Path, own: dict[str, Any], family: dict[str, Any]) -> None:
    assert compared(tmp_path, own, family) == ()


def test_another_sampling_is_declared(tmp_path: Path) -> None:
    said = compared(tmp_path, {"do_sample": True, "temperature": 0.6, "eos_token_id": END}, {"eos_token_id": END})
    assert set(said) == {"do_sample True, the family's None", "temperature 0.6, the family's None"}


@pytest.mark.parametrize(
    ("own", "match"),
    [
        ({"eos_token_id": [END, 5]}, "end tokens"),
        ({"eos_token_id": [END, END - 1]}, "end tokens"),
        ({"eos_token_id": [TEXT_END]}, "some programs would end replies there"),
        ({"eos_token_id": END, "suppress_tokens": [5]}, r"suppress_tokens None, got \[5\]"),
        ({"eos_token_id": END, "no_repeat_ngram_size": 3}, "no_repeat_ngram_size"),
    ],
)
def test_other_generation_defaults_are_refused(tmp_path: Path, own: dict[str, Any], match: str) -> None:
    with pytest.raises(ShapeMismatch, match=match):
        compared(tmp_path, own, {"eos_token_id": [END, TEXT_END]})


@pytest.mark.parametrize("ends", ["all", True, [1.5], [-1], {"a": 1}])
def test_end_tokens_that_are_no_ids_are_refused(tmp_path: Path, ends: Any) -> None:
    folder = save_tokenizer(tmp_path / "own", "llama")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(CheckpointError, match="expected ids of end tokens"):
        generation_values(folder)
