"""Whether a target is asked and read as the family is: tokenizer, chat template, end tokens, generation defaults."""

from pathlib import Path

from safegene.checkpoints.chat_template import ChatFiles, templates_of
from safegene.errors import CheckpointError, FormatError
from safegene.models.generation_defaults import generation_values, require_same_generation
from safegene.models.templates import chat_texts, load_chat_tokenizer
from safegene.models.tokenizer import require_same_tokenizer, resolve_tokenizer

PROBES = ("draw a kite", 'two lines\nand a "quoted" word & <b>', "na\u00efve \u65e5\u672c \U0001f642", "1. one\n2. two")


def require_template(chat: ChatFiles, where: str, *, own: bool = False) -> None:
    """Check that the template of a model repeats what a user says, over a few probes.

    Args:
        chat: where tokenizer and template are.
        where: the checkpoint, for messages.
        own: whether the template is a target's, and another than the family's.

    Raises:
        CheckpointError: it is malformed, fails, takes too much time or memory, or changes what a user says.
        FormatError: two files of the folder hold different templates, and programs differ in which they take.
    """
    found = templates_of(chat.template)
    if own and len({text for text in found.values() if text.strip()}) > 1:
        raise FormatError(
            f"expected one chat template, got different ones in {' and '.join(found)}, in {where}",
            remedy="keep chat_template.jinja only",
        )
    try:
        chat_texts(load_chat_tokenizer(chat), PROBES, own=own)
    except CheckpointError as error:
        named = str(chat.root) in error.message or str(chat.template) in error.message
        raise type(error)(error.message if named else f"{error.message}, in {where}", remedy=error.remedy) from None


def require_same_chat(chat: ChatFiles, family: Path, where: str, *, rows: int) -> tuple[str, ...]:
    """Compare a target's tokenizer and, of a full one, its generation defaults with the family's.

    Args:
        chat: where the target's tokenizer and template are.
        family: folder of the aligned model.
        where: the target, for messages.
        rows: of the target's embedding.

    Returns:
        What differs and is declared, one sentence each; it changes neither what is asked nor what is read.

    Raises:
        CheckpointError, FormatError, ShapeMismatch, UnsafeCheckpoint: a difference that is refused; names both values.
    """
    own, reference = resolve_tokenizer(chat.tokenizer), resolve_tokenizer(family)
    declared = require_same_tokenizer(own, reference, where, rows)
    if chat.tokenizer != chat.root or chat.root == family:  # an adapter: the base's defaults are the family's own
        return declared
    values, expected = generation_values(chat.root), generation_values(family)
    return declared + require_same_generation((values, own), (expected, reference), where)
