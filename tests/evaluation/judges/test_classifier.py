import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safegene.errors import JudgeError
from safegene.evaluation.judges import build
from safegene.evaluation.judges.classifier import ClassifierJudge
from safegene.workspace.params import JudgeParams

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "sure", "sorry", "how", "?"]


def classifier(folder: Path, labels: list[str], *, multi: bool = False) -> Path:
    """A one-layer BERT whose only strong feature is the word "sure", saved as any classifier is."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
        id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
        problem_type="multi_label_classification" if multi else "single_label_classification",
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", model_max_length=24
    ).save_pretrained(folder)
    return folder


class SlowTokenizer:
    """A tokenizer that does not say where its tokens lie, as those that are written in Python."""

    is_fast = False

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, *texts: Any, **options: Any) -> Any:
        assert "return_offsets_mapping" not in options
        return self.inner(*texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def judge(folder: Path, **more: Any) -> ClassifierJudge:
    made = build(JudgeParams(kind="classifier", model=str(folder), **more))
    assert isinstance(made, ClassifierJudge)
    return made


def test_scores_become_decisions(tmp_path: Path) -> None:
    made = judge(classifier(tmp_path / "m", ["safe", "unsafe"]))
    replies = ["sure sure", "I'm sorry, but I can't", "", "sure " * 40]
    first, second, empty, long = made.judge(["how ?"] * 4, replies)
    harm = float(first.raw.split()[1])
    assert first.harmful == ("yes" if harm >= 0.5 else "no")
    assert (first.refusal, second.refusal) == ("no", "yes")
    assert empty.harmful == long.harmful == "unscored"
    assert "fit" in long.raw
    low, high = (judge(tmp_path / "m", harmful_threshold=t).judge(["how ?"], ["sure"])[0].harmful for t in (0.0, 1.0))
    assert (low, high) == ("yes", "no")


def test_a_reply_of_unknown_words_is_never_harmless(tmp_path: Path) -> None:
    """One word too long for a tokenizer is one unknown token, whatever it says."""
    made = judge(classifier(tmp_path / "m", ["safe", "unsafe"]))
    with torch.no_grad():
        made.model.classifier.bias.copy_(torch.tensor([9.0, -9.0]))
    known, hidden, some = made.judge(["how ?"] * 3, ["sorry ?", "sorry sureSURE" + "sure" * 30, "sorry sorry sorry é"])
    assert (known.harmful, hidden.harmful, some.harmful) == ("no", "unscored", "no")
    assert "does not know words" in hidden.raw
    slow: Any = SlowTokenizer(made.tokenizer)
    known, some = replace(made, tokenizer=slow).judge(["how ?"] * 2, ["sorry ?", "sorry sorry sorry é"])
    assert (known.harmful, some.harmful) == ("no", "unscored")  # where the unknown lies is not known


def test_batches_do_not_change_a_decision(tmp_path: Path) -> None:
    made = judge(classifier(tmp_path / "m", ["safe", "unsafe"]))
    replies = [f"{'sure ' * (i % 5)}how" for i in range(20)]
    together = made.judge(["how ?"] * 20, replies)
    assert [d.harmful for d in together] == [made.judge(["how ?"], [r])[0].harmful for r in replies]


def test_scores_that_are_not_finite_are_unscored(tmp_path: Path) -> None:
    made = judge(classifier(tmp_path / "m", ["safe", "unsafe"]))
    with torch.no_grad():
        made.model.classifier.bias.fill_(float("nan"))
    assert made.judge(["how ?"], ["sure"])[0].harmful == "unscored"


def test_a_multi_label_model_is_harmful_by_its_largest_category(tmp_path: Path) -> None:
    made = judge(classifier(tmp_path / "m", ["violence", "fraud", "refusal"], multi=True))
    with torch.no_grad():
        made.model.classifier.weight.zero_()
        made.model.classifier.bias.copy_(torch.tensor([-5.0, 3.0, -4.0]))
    decision = made.judge(["how ?"], ["I'm sorry, but I can't"])[0]
    assert (decision.harmful, decision.refusal) == ("yes", "no")  # by its own label, not by phrases


def test_labels_that_do_not_name_harm_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="expected one of the labels"):
        judge(classifier(tmp_path / "m", ["a", "b"]))


def test_a_single_label_of_safety_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="high for safe replies"):
        judge(classifier(tmp_path / "m", ["safe", "hate"], multi=True))


@pytest.mark.parametrize("lacking", ["model_max_length", "pad_token"])
def test_a_tokenizer_that_says_too_little_is_no_stack_trace(tmp_path: Path, lacking: str) -> None:
    config = classifier(tmp_path / "m", ["safe", "unsafe"]) / "tokenizer_config.json"
    content = json.loads(config.read_text())
    del content[lacking]
    config.write_text(json.dumps(content))
    if lacking == "pad_token":
        with pytest.raises(JudgeError, match="padding token"):
            judge(tmp_path / "m")
    else:
        decisions = judge(tmp_path / "m").judge(["how ?"] * 2, ["sure", "sure " * 40])
        assert [one.harmful == "unscored" for one in decisions] == [False, True]


def test_pickle_weights_are_refused(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "m", ["safe", "unsafe"])
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(JudgeError, match="expected a sequence classifier"):
        judge(folder)


def test_the_identity_changes_with_weights_and_threshold(tmp_path: Path) -> None:
    one = judge(classifier(tmp_path / "m", ["safe", "unsafe"]))
    assert judge(tmp_path / "m").identity == one.identity
    assert judge(tmp_path / "m", harmful_threshold=0.4).identity != one.identity
    data = bytearray((tmp_path / "m" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "m" / "model.safetensors").write_bytes(bytes(data))
    assert judge(tmp_path / "m").identity != one.identity
