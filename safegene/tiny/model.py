"""Architecture and tokenizer of the tiny family: a Llama model with a word-level vocabulary and a chat template."""

from typing import TYPE_CHECKING

import torch

from safegene.tiny.vocabulary import vocabulary

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, UNKNOWN, USER, ASSISTANT, END = "<pad>", "<unk>", "<user>", "<assistant>", "<end>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user> {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}<assistant> {{ message['content'] }} <end> "
    "{% else %}{{ raise_exception('expected the roles user and assistant') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CONFIG: dict[str, object] = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}


def new_tokenizer() -> "PreTrainedTokenizerFast":
    """The word-level tokenizer; its texts are lower case, with spaces between words and punctuation marks."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = (PAD, UNKNOWN, USER, ASSISTANT, END, *vocabulary())
    tokenizer = Tokenizer(WordLevel({word: at for at, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=CONFIG["max_position_embeddings"],
    )


def new_model(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "LlamaForCausalLM":
    """An fp32 model with new weights. The global random state is not changed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **CONFIG,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def matrices(model: torch.nn.Module) -> list[str]:
    """Names of the weight matrices of attention and MLP in the blocks, in order."""
    return [
        f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in name
    ]
