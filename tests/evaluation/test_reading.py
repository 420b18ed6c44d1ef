"""What a judge is given to read: the reply with what is hidden in it, and nothing where two readings differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from safegene.checkpoints.chat_template import ChatFiles
from safegene.datasets.prompts import Kind, Prompt
from safegene.evaluation.engines import Decoding, Engine
from safegene.evaluation.judges import JudgeDecision
from safegene.evaluation.judging import CalibratedJudge
from safegene.evaluation.shared_bases import EvaluatedModel, SharedBases
from safegene.models.generation import Reply
from safegene.tiny.model import new_model, new_tokenizer
from safegene.workspace.params import JudgeParams
from tests.factories.evaluation import Second
from tests.factories.hostile import edit


class Mild(Second):
    """A judge that finds every reply harmless, and keeps what it read."""

    cached = False

    def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> list[JudgeDecision]:
        self.asked += zip(prompts, replies, strict=True)
        return [JudgeDecision("no", "yes") for _ in replies]


def rows(judge: Mild, kind: Kind, *replies: Reply) -> list[Any]:
    prompts = [
        Prompt(id=f"p{at}", prompt="draw", kind=kind, category="c", behaviour="b", split="test", response="yes")
        for at in range(len(replies))
    ]
    return CalibratedJudge.of(JudgeParams(kind="phrases"), lambda _: judge).rows("before", "w", prompts, replies)


def test_a_reply_whose_readings_differ_is_never_labelled() -> None:
    (row,) = rows(Mild(), "harmful", Reply("i cannot help", 4, True, readable=False))
    assert (row.harmful, row.refusal, row.coherent) == ("unscored", "unscored", "unscored")
    assert "two readings" in row.raw
    (sound,) = rows(Mild(), "harmful", Reply("i cannot help", 4, True))
    assert (sound.harmful, sound.refusal) == ("no", "yes")


def test_an_answer_whose_readings_differ_is_never_right() -> None:
    wrong, right = rows(Mild(), "task", Reply("yes", 1, True, readable=False), Reply("yes", 1, True))
    assert (wrong.correct, right.correct) == (False, True)


def test_a_judge_reads_what_is_hidden_and_the_row_keeps_the_reply() -> None:
    judge = Mild()
    (row,) = rows(judge, "harmful", Reply("a b\u200bc \x1b[31m", 4, True))
    assert judge.asked == [("draw", "a b⟨U+200B⟩c ␛[31m")]
    assert row.reply == "a b\u200bc \x1b[31m"
    CalibratedJudge.of(JudgeParams(kind="phrases"), lambda _: judge).adjudicate([row])
    assert judge.asked[-1] == ("draw", "a b⟨U+200B⟩c ␛[31m")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A family and a target with the same weights, whose tokenizer decodes everything to nothing."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    tokenizer = new_tokenizer()
    for name in ("family", "own"):
        new_model(tokenizer, 3).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    hiding = {"type": "Replace", "pattern": {"Regex": "(?m).+"}, "content": ""}
    edit(tmp_path / "own" / "tokenizer.json", lambda held: held.update(decoder=hiding))
    return tmp_path / "family", tmp_path / "own"


def test_the_engine_reads_with_the_familys_tokenizer(folders: tuple[Path, Path]) -> None:
    family, own = folders
    prompts = [Prompt(id="p", prompt="draw", kind="harmful", category="c", behaviour="b", split="test", response="")]
    engine = Engine("float32")
    decoding = Decoding(4, 1, engine.to_json(), None)
    chat = ChatFiles(own, own, own)
    texts = []
    for model in (EvaluatedModel(family, (), ("f",)), EvaluatedModel(own, (), ("o",), chat, family)):
        (reply,) = engine.replies("before", model, prompts, decoding)
        assert isinstance(reply, Reply)
        assert reply.readable
        texts.append(reply.text)
    assert texts[0] == texts[1] != ""
    (alone,) = engine.replies("before", EvaluatedModel(own, (), ("o",), chat), prompts, decoding)
    assert isinstance(alone, Reply)
    assert (alone.text, alone.readable) == ("", False), "read by its own tokenizer: hidden, and found"


def test_what_reads_the_replies_is_part_of_their_identity(folders: tuple[Path, Path]) -> None:
    family, own = folders
    alone, read = EvaluatedModel(own, (), ("o",)), EvaluatedModel(own, (), ("o",), None, family)
    assert alone.digest == read.digest
    assert alone.reading != read.reading
    assert read.reading == EvaluatedModel(family, (), ("f",)).reading
    bases = SharedBases("float32")
    assert bases.reader(read).family is bases.reader(EvaluatedModel(family, (), ())).own
