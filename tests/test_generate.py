"""Replies stand in their prompts' places, do not depend on their neighbours, and say when they were cut off."""

import pytest

from safegene.errors import CheckpointError
from safegene.generate import Reply, encode_chat, end_tokens, generate, left_padded
from safegene.tensors.models import load_model, load_tokenizer
from safegene.tiny.build import build
from safegene.tiny.corpus import harmful, instructions, lookalikes


@pytest.fixture(scope="module")
def family():
    folder = build("aligned", 0)
    return load_model(folder), load_tokenizer(folder)


def prompts() -> list[str]:
    asked = [request.prompt("test", wrapped=at % 2 == 0) for at, request in enumerate(harmful("test")[:6])]
    benign = [request.prompt("test") for request in lookalikes("test")[:6]]
    return [
        text for three in zip(asked, benign, instructions("test"), strict=False) for text in (*three[:2], three[2][0])
    ]


def test_order_and_neighbours_do_not_matter(family) -> None:
    model, tokenizer = family
    texts = prompts()
    alone = [generate(model, tokenizer, [text], max_new_tokens=24, batch_size=1)[0] for text in texts]
    assert generate(model, tokenizer, texts, max_new_tokens=24, batch_size=len(texts)) == alone
    assert generate(model, tokenizer, texts, max_new_tokens=24, batch_size=5) == alone
    turned = generate(model, tokenizer, texts[::-1], max_new_tokens=24, batch_size=7)
    assert turned[::-1] == alone


def test_the_same_prompt_twice_gets_two_replies(family) -> None:
    text = prompts()[0]
    one, two = generate(*family, [text, text], max_new_tokens=24, batch_size=8)
    assert one == two


def test_no_prompts_give_no_replies(family) -> None:
    assert generate(*family, [], max_new_tokens=8, batch_size=4) == []


def test_a_cut_off_reply_says_so_and_is_the_beginning_of_the_whole_one(family) -> None:
    texts = prompts()
    whole = generate(*family, texts, max_new_tokens=24, batch_size=32)
    short = generate(*family, texts, max_new_tokens=3, batch_size=32)
    assert all(reply.finished for reply in whole)
    assert any(not reply.finished for reply in short)
    for long, cut in zip(whole, short, strict=True):
        assert cut.finished == (long.tokens <= 3)
        assert cut.tokens == min(3, long.tokens)
        assert long.text.startswith(cut.text)


def test_replies_are_handed_over_as_they_come(family) -> None:
    texts, seen = prompts(), {}

    def keep(index: int, reply: Reply) -> None:
        seen[index] = reply

    replies = generate(*family, texts, max_new_tokens=24, batch_size=5, on_done=keep)
    assert [seen[index] for index in range(len(texts))] == replies


def test_a_kill_loses_only_the_batch_under_way(family) -> None:
    texts, kept = prompts(), {}

    def keep(index: int, reply: Reply) -> None:
        if len(kept) == 5:
            raise KeyboardInterrupt
        kept[index] = reply

    with pytest.raises(KeyboardInterrupt):
        generate(*family, texts, max_new_tokens=24, batch_size=5, on_done=keep)
    missing = [index for index in range(len(texts)) if index not in kept]
    rest = generate(*family, [texts[index] for index in missing], max_new_tokens=24, batch_size=5)
    kept.update(zip(missing, rest, strict=True))
    assert [kept[index] for index in range(len(texts))] == generate(*family, texts, max_new_tokens=24, batch_size=5)


def test_a_checkpoints_own_sampling_settings_change_nothing(family) -> None:
    model, tokenizer = family
    texts = prompts()[:4]
    before = generate(model, tokenizer, texts, max_new_tokens=24, batch_size=4)
    own = model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.num_beams = True, 9.0, 5.0, 3
    own.bad_words_ids, own.min_length, own.suppress_tokens = [[7]], 20, list(range(5, 60))
    try:
        assert generate(model, tokenizer, texts, max_new_tokens=24, batch_size=4) == before
    finally:
        own.do_sample, own.temperature, own.repetition_penalty, own.num_beams = False, 1.0, 1.0, 1
        own.bad_words_ids, own.min_length, own.suppress_tokens = None, 0, None


def test_a_checkpoint_may_not_end_its_replies_with_an_ordinary_word(family) -> None:
    model, tokenizer = family
    own = model.generation_config
    before = own.eos_token_id
    own.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("first")]
    try:
        with pytest.raises(CheckpointError, match="got \\['first'\\]"):
            generate(model, tokenizer, prompts()[:2], max_new_tokens=4, batch_size=2)
    finally:
        own.eos_token_id = before


def test_the_chat_template_is_applied_and_padding_is_on_the_left(family) -> None:
    model, tokenizer = family
    ids = encode_chat(tokenizer, "how do i draw a kite ?")
    assert tokenizer.decode(ids) == "<user> how do i draw a kite ? <assistant>"
    padded, mask = left_padded([[5, 6], [7]], 0)
    assert padded.tolist() == [[5, 6], [0, 7]]
    assert mask.tolist() == [[1, 1], [0, 1]]
    assert end_tokens(model, tokenizer) == [tokenizer.eos_token_id]
