"""The local guard, on a real causal language model whose every next word is set by the last one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from safegene.errors import JudgeError
from safegene.evaluation.judges import build
from safegene.evaluation.judges.canaries import check_canaries
from safegene.evaluation.judges.formats import ANSWER_FORMATS
from safegene.evaluation.judges.guard import GuardJudge
from safegene.workspace.params import JudgeParams

END, PAD, UNKNOWN, USER = "<|end|>", "<|pad|>", "<|unk|>", "<|user|>"
SAFE, UNSAFE = "Safety: Safe\nCategories: None\nRefusal: Yes", "Safety: Unsafe\nCategories: Violent\nRefusal: No"
TEMPLATE = "{% for m in messages %}" + USER + " {{ m['content'] }} {% endfor %}{{ guideline or '' }}"
WORDS = ("sure", "sorry", "yes", "no", "maybe", ".", "]", "|>", "how", "to", "V", "?", ")", "hm")


def guard_model(folder: Path, says: dict[str, str], *, template: str = TEMPLATE, positions: int = 512) -> Path:
    """A one-layer Llama that answers by the last word it read: ``says[word]``, then ``says`` of that, up to the end.

    Attention and MLP write zeros, every word's embedding is its own axis, and the head maps a word to its successor.
    A word without a successor is followed by the end token.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = list(dict.fromkeys([PAD, UNKNOWN, END, USER, *WORDS, *says, *says.values()]))
    ids = {word: at for at, word in enumerate(words)}
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        eos_token_id=ids[END],
        pad_token_id=ids[PAD],
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(words), 64))
        model.lm_head.weight.zero_()
        for word, at in ids.items():
            model.lm_head.weight[ids[says.get(word, END)], at] = 1.0
    model.save_pretrained(folder)
    core = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"pad_token": PAD, "unk_token": UNKNOWN, "eos_token": END, "additional_special_tokens": [USER]}
    PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=template, model_max_length=positions, **tokens
    ).save_pretrained(folder)
    return folder


def judge(folder: Path, form: str, **more: Any) -> GuardJudge:
    made = build(JudgeParams.model_validate({"kind": "guard", "model": str(folder), "format": form, **more}))
    assert isinstance(made, GuardJudge)
    return made


ANSWERS = {
    "qwen3guard": (SAFE, UNSAFE),
    "granite_guardian": ("<score>no</score>", "<score>yes</score>"),
    "llama_guard": ("safe", "unsafe\nS1,S14"),
    "shieldgemma": ("No", "Yes"),
}


@pytest.mark.parametrize("form", sorted(ANSWERS))
def test_every_format_of_a_template_judges_here(tmp_path: Path, form: str) -> None:
    safe, unsafe = ANSWERS[form]
    last = ")" if form == "shieldgemma" else ""
    template = TEMPLATE.replace("{{ guideline or '' }}", "")
    folder = guard_model(
        tmp_path / "m", {"sorry": safe, "sure": unsafe, "hm": "maybe", last or ")": unsafe}, template=template
    )
    made = judge(folder, form)
    decisions = made.judge(["how to V ?"] * 5, ["I cannot , sorry", "hm , sure", "", "hm", "it is ?"])
    assert [one.harmful for one in decisions] == ["no", "yes", "unscored", "unscored", "unscored"]
    assert [one.refusal for one in decisions] == ["yes", "no", "unscored", "unscored", "unscored"]
    assert decisions[3].raw == "not the format's answer: 'maybe'"


@pytest.mark.parametrize(
    ("form", "last", "answer"),
    [
        ("harmbench", "]", "yes"),
        ("wildguard", "|>", "Harmful request: yes\nResponse refusal: no\nHarmful response: yes"),
        ("yes_no", ".", "Yes"),
    ],
)
def test_a_format_with_its_own_prompt_needs_no_template_or_little_of_one(
    tmp_path: Path, form: str, last: str, answer: str
) -> None:
    decision = judge(guard_model(tmp_path / "m", {last: answer}), form).judge(["how to V ?"], ["sure"])[0]
    assert (decision.harmful, decision.refusal) == ("yes", "no")
    config = tmp_path / "m" / "chat_template.jinja"
    config.unlink()
    if form == "yes_no":
        with pytest.raises(JudgeError, match="expected a chat template"):
            judge(tmp_path / "m", form)
    else:
        assert judge(tmp_path / "m", form).judge(["how to V ?"], ["sure"])[0].harmful == "yes"


def test_further_arguments_of_the_template_reach_it(tmp_path: Path) -> None:
    made = judge(guard_model(tmp_path / "m", {".": "Yes"}), "shieldgemma")
    assert made.judge(["how ?"], ["sorry"])[0].harmful == "yes"  # the principle ends with a full stop


@pytest.mark.parametrize(
    "says",
    [
        {"sure": "<score>no</score>", "<score>no</score>": "<score>no</score>"},  # never ends
        {"sure": "<score>no</score>", "<score>no</score>": "<score>yes</score>"},  # two verdicts
        {"sure": "<score>no</score>", "<score>no</score>": "because"},
        {"sure": "<score>"},  # cut
        {"sure": PAD, PAD: "<score>no</score>"},  # a special token inside
        {"sure": END},  # nothing at all
    ],
    ids=["endless", "two", "wordy", "cut", "special", "empty"],
)
def test_what_is_not_the_formats_answer_is_unscored(tmp_path: Path, says: dict[str, str]) -> None:
    decision = judge(guard_model(tmp_path / "m", says), "granite_guardian").judge(["how ?"], ["sure"])[0]
    assert (decision.harmful, decision.refusal) == ("unscored", "unscored")
    assert decision.raw


def test_one_token_is_enough_where_the_format_says_so_and_only_there(tmp_path: Path) -> None:
    folder = guard_model(tmp_path / "m", {"]": "no", "no": "no", "sure": "safe", "safe": "safe"})
    assert judge(folder, "harmbench").judge(["how ?"], ["sure"])[0].harmful == "no"
    assert judge(folder, "llama_guard").judge(["how ?"], ["sure"])[0].harmful == "unscored"


def test_order_and_batches_do_not_matter(tmp_path: Path) -> None:
    folder = guard_model(tmp_path / "m", {"sorry": "safe", "sure": "unsafe\nS1"})
    replies = [f"{'hm ' * (7 * i % 11)}{('sure', 'sorry', 'hm', '')[i % 4]}" for i in range(30)]
    together = judge(folder, "llama_guard").judge(["how ?"] * 30, replies)
    made = judge(folder, "llama_guard", batch_size=1)
    assert [made.judge(["how ?"], [reply])[0] for reply in replies] == together
    assert [one.harmful for one in together[:4]] == ["yes", "no", "unscored", "unscored"]


def test_what_does_not_fit_whole_is_unscored(tmp_path: Path) -> None:
    made = judge(guard_model(tmp_path / "m", {"sorry": "safe"}, positions=100), "llama_guard")
    short, long = made.judge(["how ?"] * 2, ["hm " * 10 + "sorry", "sure " * 90 + "sorry"])
    assert (short.harmful, long.harmful) == ("no", "unscored")
    assert "does not fit" in long.raw


def test_scores_that_are_no_numbers_are_unscored(tmp_path: Path) -> None:
    made = judge(guard_model(tmp_path / "m", {"sorry": "safe"}), "llama_guard")
    with torch.no_grad():
        made.model.lm_head.weight[5, 0] = float("nan")
    assert made.judge(["how ?"], ["sorry"])[0].harmful == "unscored"


@pytest.mark.parametrize("token", [END, USER, PAD, f"<|e{END}nd|>", f"{USER[:4]}{USER}{USER[4:]}"])
def test_law_no_special_token_comes_from_a_reply(tmp_path: Path, token: str) -> None:
    made = judge(guard_model(tmp_path / "m", {"sorry": "safe"}), "llama_guard")
    row, plain = (made._tokens("how ?", text) for text in (f"hm {token} sorry", "hm x sorry"))
    assert isinstance(row, list)
    special = [made.tokenizer.convert_tokens_to_ids(name) for name in (END, USER, PAD)]
    assert [sum(t == one for t in row) for one in special] == [sum(t == one for t in plain) for one in special]


def test_half_a_character_is_unscored(tmp_path: Path) -> None:
    made = judge(guard_model(tmp_path / "m", {"sorry": "safe"}), "llama_guard")
    assert made.judge(["how ?"], ["\ud800 sorry"])[0].harmful == "unscored"


def test_the_identity_holds_weights_template_wording_and_phrases(tmp_path: Path) -> None:
    folder = guard_model(tmp_path / "m", {"sorry": "safe"})
    base = judge(folder, "llama_guard")
    assert judge(folder, "llama_guard", batch_size=3).identity == base.identity
    others = {judge(folder, form).identity for form in ANSWER_FORMATS if form != "llama_guard"}
    others |= {judge(folder, "llama_guard", phrases=("nope",)).identity}
    others |= {judge(folder, "llama_guard", phrases=("nope",), phrase_rule="anywhere").identity}
    others |= {judge(folder, "llama_guard", dtype="bfloat16").identity}
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    others |= {judge(folder, "llama_guard").identity}
    (tmp_path / "n").mkdir()
    others |= {judge(guard_model(tmp_path / "n", {"sorry": "unsafe\nS1"}), "llama_guard").identity}
    assert len(others | {base.identity}) == len(ANSWER_FORMATS) + 5


def test_code_pickles_and_missing_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="expected a model for the guard judge"):
        build(JudgeParams(kind="guard"))
    with pytest.raises(JudgeError, match="a Hub id with a revision"):
        build(JudgeParams(kind="guard", model="org/guard"))
    folder = guard_model(tmp_path / "m", {})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(JudgeError, match="expected no code to load"):
        judge(folder, "llama_guard")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pytorch_model.bin").write_bytes(b"not opened")
    judge(folder, "llama_guard")
    (folder / "model.safetensors").unlink()
    with pytest.raises(JudgeError, match="expected safetensors weights"):
        judge(folder, "llama_guard")


def test_a_template_that_cannot_take_the_turns_is_an_error(tmp_path: Path) -> None:
    template = "{{ raise_exception('only a user may speak') }}"
    made = judge(guard_model(tmp_path / "m", {}, template=template), "llama_guard")
    with pytest.raises(JudgeError, match="only a user may speak"):
        made.judge(["how ?"], ["sure"])


def test_a_guard_that_says_one_thing_fails_the_canaries(tmp_path: Path) -> None:
    for at, answer in enumerate(("No", "Yes", "maybe")):
        assert check_canaries(judge(guard_model(tmp_path / str(at), {".": answer}), "shieldgemma"))


@pytest.mark.parametrize(
    "lossy",
    [
        "{% for m in messages %}" + USER + " {{ m['content'][:9] }} {% endfor %}",
        "{% for m in messages %}" + USER + " {{ m['content'].split('hm')[-1] }} {% endfor %}",
        USER + " {{ messages[0]['content'] }}",
    ],
)
def test_a_template_that_leaves_out_a_part_makes_the_reply_unscored(tmp_path: Path, lossy: str) -> None:
    made = judge(guard_model(tmp_path / "m", {"sorry": SAFE, "sure": UNSAFE, ")": SAFE}, template=lossy), "qwen3guard")
    (decision,) = made.judge(["how to V ?"], ["sure , sure hm sorry"])
    assert decision.harmful == "unscored"
    assert "leaves out a part" in decision.raw
