"""The tokenizer of a model, with the chat template that it is asked with everywhere."""

from typing import TYPE_CHECKING

from safegene.checkpoints.chat_template import ChatFiles, chat_template_of
from safegene.errors import CheckpointError
from safegene.models.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_chat_tokenizer(files: ChatFiles) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, with the template of ``files.template``, also where transformers reads none.

    Raises:
        CheckpointError: there is no tokenizer, or no template.
        UnsafeCheckpoint: a file is too large, or names code.
    """
    tokenizer, template = load_tokenizer(files.tokenizer), chat_template_of(files.template)
    if template is None:
        raise CheckpointError(
            f"expected a chat template in chat_template.jinja or tokenizer_config.json, got none, in {files.template}",
            remedy="fetch the checkpoint again: a checkpoint without a chat template is refused there",
        )
    tokenizer.chat_template = template
    return tokenizer
