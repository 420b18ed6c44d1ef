"""A template is rendered within bounds, repeats the user's words, and writes what transformers writes."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from safegene.errors import CheckpointError
from safegene.models import templates
from safegene.models.template_child import new_environment, undecided
from safegene.models.templates import chat_texts, encode_chats
from safegene.tiny.model import new_tokenizer

TURN = "<user> {{ messages[0]['content'] }} <assistant>"
CHATML = (
    "{%- if tools %}{{ tools | tojson }}{% endif %}{%- if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% else %}{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}{%- for message in messages %}"
    "{%- set content = message.content if message.content is string else '' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
TRIMMED = (
    "{{- bos_token }}{%- set ns = namespace(first=true) %}{%- for message in messages %}"
    "{%- if loop.first %}{%- set ns.first = false %}{%- endif %}"
    "{%- if message['role'] not in ['user', 'assistant'] %}{{ raise_exception('roles') }}{%- endif %}"
    "{%- if loop.index0 > 9 %}{%- break %}{%- endif %}"
    "{{- '[INST] ' + message['content'] | trim + ' [/INST]' }}{%- endfor %}"
    "{% generation %}{% endgeneration %}{{ dict(a=1) | tojson(indent=1) }}"
)
DATED = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}{%- set line = 'Today: ' + date_string ~ '.' %}{{- line + '\\n' }}" + TURN
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return new_tokenizer()


def texts(tokenizer: PreTrainedTokenizerFast, template: str, *prompts: str, own: bool = True) -> list[str]:
    tokenizer.chat_template = template
    return chat_texts(tokenizer, prompts, own=own)


@pytest.mark.parametrize("template", [TURN, CHATML, TRIMMED, DATED])
def test_ordinary_templates_write_what_transformers_writes(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    prompts = ["draw a kite", "two\nlines", "{{ 7 * 7 }} {% raw %}", '"quoted" & <b>', "\u65e5\u672c \U0001f642"]
    written = texts(tokenizer, template, *prompts)
    for prompt, text in zip(prompts, written, strict=True):
        turn = [{"role": "user", "content": prompt}]
        assert tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) == text
        assert text.count(prompt) == 1


@given(prompt=st.text())
def test_law_any_prompt_is_repeated_as_it_is(prompt: str) -> None:
    (text,) = texts(new_tokenizer(), TURN, prompt)
    assert text == f"<user> {prompt} <assistant>"


def test_spaces_at_the_ends_of_a_prompt_may_be_trimmed(tokenizer: PreTrainedTokenizerFast) -> None:
    assert texts(tokenizer, TRIMMED, "  draw \n")[0].startswith("[INST] draw [/INST]")


def test_prompts_are_encoded_without_further_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TURN
    assert tokenizer.decode(encode_chats(tokenizer, ["draw a kite"])[0]) == "<user> draw a kite <assistant>"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% if strftime_now('%Y') == '2030' %}a{% endif %}", "what is decided by strftime_now"),
        ("{{ 'a' if strftime_now('%Y') == '2030' }}", "what is decided by strftime_now"),
        ("{{ strftime_now('%Y') | replace('2030', 'a') }}", "what is decided by strftime_now"),
        ("{{ strftime_now('%Y')[3] }}", "what is decided by strftime_now"),
        ("{{ strftime_now('%Y').replace('2030', 'a') }}", "what is decided by strftime_now"),
        ("{{ strftime_now(messages[0].content) }}", "what is decided by strftime_now"),
        ("{% for c in strftime_now('%Y') %}{{ c }}{% endfor %}", "what is decided by strftime_now"),
        ("{% set a = strftime_now('%Y') %}{% set b = a + '' %}{{ b == '2030' }}", "what is decided by strftime_now"),
        ("{% set f = strftime_now %}", "what is decided by strftime_now"),
        ("{% set ns = namespace() %}{% set ns.a = strftime_now('%Y') %}", "what is decided by strftime_now"),
        ("{% macro m(a) %}{{ a == '2030' }}{% endmacro %}{{ m(strftime_now('%Y')) }}", "decided by strftime_now"),
        ("{{ [1, 2] | random }}", "the filter random"),
        ("{{ lipsum(n=1) }}", "the function lipsum"),
    ],
)
def test_what_depends_on_chance_or_on_the_clock_is_found(template: str, reason: str) -> None:
    assert reason in undecided(new_environment().parse(template))


@pytest.mark.parametrize("template", [TURN, CHATML, TRIMMED, DATED, "{{ 'on ' ~ strftime_now('%Y') }}"])
def test_a_date_may_be_written(template: str) -> None:
    assert undecided(new_environment().parse(template)) == ""


@pytest.mark.parametrize("dated", ["{# strftime_now #}", "{% set day = strftime_now('%d %b %Y') %}{{ day }}"])
def test_a_template_that_knows_who_renders_it_is_refused_also_beside_a_date(
    tokenizer: PreTrainedTokenizerFast, dated: str
) -> None:
    """What is measured would be another text than what is served."""
    assert len(texts(tokenizer, dated + TURN, "draw")) == 1
    with pytest.raises(CheckpointError, match="expected one text of the chat template"):
        texts(tokenizer, dated + "{% if '_raise' in (raise_exception | string) %}safe {% endif %}" + TURN, "draw")


def test_the_familys_own_template_may_decide_by_the_clock(tokenizer: PreTrainedTokenizerFast) -> None:
    template = "{% if strftime_now('%Y') == '1970' %}a{% endif %}" + TURN
    assert texts(tokenizer, template, "draw", own=False) == ["<user> draw <assistant>"]
    with pytest.raises(CheckpointError, match="decided by strftime_now"):
        texts(tokenizer, template, "draw")


@pytest.mark.parametrize(
    "bomb",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{{ 7 ** 300000000 }}",
        "{{ 'a' * 2000000000 }}",
        "{% set x = ['a' * 99999] %}{% for i in range(60) %}{% set _ = x.append(1) %}{% endfor %}",
        "{{ '%2000000000d' % 1 }}",
        "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    ],
)
def test_a_bomb_ends_within_its_bounds_and_the_next_template_is_rendered(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, bomb: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(templates, "SECONDS", 0)
        with pytest.raises(CheckpointError, match="expected a chat template that writes one user turn"):
            texts(tokenizer, bomb + TURN, "draw")
    assert texts(tokenizer, TURN, "draw") == ["<user> draw <assistant>"]


def test_a_template_sees_no_environment_and_no_file(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    templates._CHILD.end()
    texts(tokenizer, TURN, "draw")
    process = templates._CHILD.process
    assert process is not None
    environment = Path(f"/proc/{process.pid}/environ")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "canary"
    assert not environment.exists() or b"canary" not in environment.read_bytes()
    with pytest.raises(CheckpointError, match="UndefinedError|SecurityError"):
        texts(tokenizer, "{{ ''.__class__.__mro__[1].__subclasses__() }}" + TURN, "draw")
    with pytest.raises(CheckpointError, match="TypeError|no loader"):
        texts(tokenizer, "{% include '/etc/hostname' %}" + TURN, "draw")


def test_two_renderings_that_differ_are_an_error(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *args, **more: "<user> draw <assistant> sure")
    with pytest.raises(CheckpointError, match="expected one text of the chat template"):
        texts(tokenizer, TURN, "draw")
