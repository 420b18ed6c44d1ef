"""Laws of reading replies: the family's tokenizer, special tokens visible, and two readings that agree."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, decoders
from transformers import AutoTokenizer

from safegene.models.reading import ReplyReader
from tests.factories.hostile import edit
from tests.factories.tokenizers import save_tokenizer

FAMILIES = ("qwen2", "llama", "mistral", "llama-2")
TEXTS = (
    "how do i draw a kite ?",
    "na\u00efve \u65e5\u672c \U0001f642 \u200d",
    "two\nlines  and  spaces",
    "1, 2; 3.",
    "",
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ReplyReader]:
    folder = tmp_path_factory.mktemp("families")
    made = {}
    for kind in FAMILIES:
        tokenizer = AutoTokenizer.from_pretrained(save_tokenizer(folder / kind, kind), local_files_only=True)
        made[kind] = ReplyReader(tokenizer, tokenizer)
    return made


def encoded(reader: ReplyReader, text: str) -> list[int]:
    return list(reader.own(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_read_as_it_was_written_and_both_readings_agree(
    readers: dict[str, ReplyReader], kind: str, text: str
) -> None:
    reader = readers[kind]
    ids = encoded(reader, text)
    assert reader.text(ids) == text.strip()
    assert reader.agrees(ids, reader.text(ids))


@pytest.mark.parametrize("kind", FAMILIES)
@given(data=st.data())
def test_law_both_readings_of_any_tokens_agree(readers: dict[str, ReplyReader], kind: str, data: st.DataObject) -> None:
    reader = readers[kind]
    ids = data.draw(st.lists(st.integers(0, len(reader.family) - 1), max_size=30))
    assert reader.agrees(ids, reader.text(ids))


@pytest.mark.parametrize("kind", FAMILIES)
def test_special_tokens_are_visible(readers: dict[str, ReplyReader], kind: str) -> None:
    reader = readers[kind]
    name = "</s>" if kind in ("mistral", "llama-2") else "<|im_start|>"
    ids = [*encoded(reader, "draw"), reader.own.convert_tokens_to_ids(name), *encoded(reader, "a kite")]
    assert name in reader.text(ids)
    assert reader.agrees(ids, reader.text(ids))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(
    "hiding",
    [decoders.Replace(Regex("kite"), "boat"), decoders.Replace("draw", ""), decoders.Strip("e", 9, 9)],
)
def test_a_decoder_that_hides_words_makes_a_reply_unreadable(tmp_path: Path, kind: str, hiding: Any) -> None:
    folder = save_tokenizer(tmp_path / kind, kind)
    edit(folder / "tokenizer_config.json", lambda held: held.update(tokenizer_class="PreTrainedTokenizerFast"))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    backend = tokenizer.backend_tokenizer
    backend.decoder = decoders.Sequence([backend.decoder, decoders.Fuse(), hiding])
    reader = ReplyReader(tokenizer, tokenizer)
    ids = encoded(reader, "draw a kite")
    assert reader.text(ids) != "draw a kite"
    assert not reader.agrees(ids, reader.text(ids))


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_familys_tokenizer_reads_and_not_the_targets(
    readers: dict[str, ReplyReader], tmp_path: Path, kind: str
) -> None:
    folder = save_tokenizer(tmp_path / kind, kind)
    own = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    own.backend_tokenizer.decoder = decoders.Replace(Regex("(?m).+"), "")
    reader = ReplyReader(readers[kind].family, own)
    ids = encoded(readers[kind], "draw a kite")
    assert own.decode(ids) == ""
    assert reader.text(ids) == "draw a kite"
    assert reader.agrees(ids, reader.text(ids))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_token_that_only_the_target_has_is_read_as_it_writes_it(
    readers: dict[str, ReplyReader], tmp_path: Path, kind: str
) -> None:
    folder = save_tokenizer(tmp_path / kind, kind)
    own = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    own.add_tokens(["covid"])
    reader = ReplyReader(readers[kind].family, own)
    ids = encoded(reader, "the covid fox")
    assert own.convert_tokens_to_ids("covid") in ids
    assert reader.text(ids).split() == ["the", "covid", "fox"]
    assert reader.agrees(ids, reader.text(ids))
    own.backend_tokenizer.decoder = decoders.Replace("covid", "")
    assert not reader.agrees(ids, reader.text(ids))


def test_the_spelling_of_an_unknown_decoder_is_the_targets_own_decoding(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "m", "llama")
    edit(folder / "tokenizer.json", lambda held: held.update(decoder={"type": "BPEDecoder", "suffix": "</w>"}))
    assert json.loads((folder / "tokenizer.json").read_text())["decoder"]["type"] == "BPEDecoder"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    reader = ReplyReader(tokenizer, tokenizer)
    ids = encoded(reader, "draw")
    assert reader.agrees(ids, reader.text(ids))
    assert not reader.agrees(ids, "drew")
