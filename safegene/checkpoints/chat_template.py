"""The chat template of a checkpoint: how a conversation is written as the text that the model reads.

Each model is asked with one tokenizer and one template, the same in shots, calibration and evaluation: a full
checkpoint's own; a LoRA adapter's own where its folder has one, as fine-tuning tools save it, else its base's.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegene.checkpoints.unsafe import MAX_JSON, read_json
from safegene.errors import CheckpointError, FormatError, UnsafeCheckpoint
from safegene.workspace.digest import digest_bytes, digest_files, digest_json

TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_TEMPLATE = "chat_template.jinja"
_IN_JSON = ("tokenizer_config.json", "chat_template.json")
_CHAT_FILES = (*TOKENIZERS, *_IN_JSON, _TEMPLATE, "special_tokens_map.json", "added_tokens.json")


def chat_template_of(folder: Path) -> str | None:
    """The template of ``chat_template.jinja``, ``tokenizer_config.json`` or ``chat_template.json``, in that order.

    Of several named templates it is the default one. None where there is none, or only white space.

    Raises:
        FormatError: a file is malformed.
        UnsafeCheckpoint: a file is too large, or names code.
    """
    first = next(iter(templates_of(folder).values()), "")
    return first if first.strip() else None


def templates_of(folder: Path) -> dict[str, str]:
    """File -> its template, in the order in which they are taken; of several named templates the default one.

    Raises:
        FormatError, UnsafeCheckpoint: see `chat_template_of`.
    """
    found = {}
    path = folder / _TEMPLATE
    if path.is_file():
        if (size := path.stat().st_size) > MAX_JSON:
            raise UnsafeCheckpoint(f"expected at most {MAX_JSON} bytes, got {size}, in {path}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"expected a chat template in UTF-8, got {error}, in {path}") from None
        found[_TEMPLATE] = text
    for name in _IN_JSON:
        if (folder / name).is_file():
            held = _default(read_json(folder / name).get("chat_template"), folder / name)
            if held is not None:
                found[name] = held
    return found


def _default(value: Any, where: Path) -> str | None:
    """The default of one template, or of a list of ``{"name": ..., "template": ...}``."""
    if isinstance(value, list):
        named = {one.get("name"): one.get("template") for one in value if isinstance(one, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise FormatError(f"expected a chat template as text, got {type(value).__name__}, in {where}")
    return value if value and value.strip() else None


def template_digest(folder: Path, base: str | None = None) -> str:
    """Digest of the template that the model of a folder is asked with.

    Args:
        folder: of the checkpoint.
        base: the digest for a folder without one: that of the full checkpoint under an adapter.

    Raises:
        CheckpointError: there is none.
        FormatError, UnsafeCheckpoint: see `chat_template_of`.
    """
    template = chat_template_of(folder)
    if template is None and base is not None:
        return base
    if template is None:
        raise CheckpointError(
            f"expected a chat template in {_TEMPLATE} or tokenizer_config.json, got none, in {folder}",
            remedy="copy the chat template of the model that it was tuned from into the folder, under that name; it "
            "must be the one that the fine-tune was trained with",
        )
    return digest_bytes(template.encode())


@dataclass(frozen=True)
class ChatFiles:
    """Where the tokenizer and the chat template of a model are.

    Attributes:
        root: the folder of its full checkpoint.
        tokenizer: the folder of the last adapter with a tokenizer, else ``root``.
        template: the folder of the last adapter with a chat template, else ``root``.
    """

    root: Path
    tokenizer: Path
    template: Path

    @property
    def digest(self) -> str | None:
        """Digest of the tokenizer and template that a LoRA target brings along; None where both are its base's."""
        own = {folder.name: folder for folder in (self.tokenizer, self.template) if folder != self.root}
        files = [chat_digest(folder) for folder in own.values()]
        return digest_json(sorted(files)) if files else None


def chat_digest(folder: Path) -> str:
    """Digest of the tokenizer and the chat template in a folder."""
    return digest_files(folder, [file for file in _CHAT_FILES if (folder / file).is_file()])


def chat_files(root: Path, adapters: Sequence[Path] = ()) -> ChatFiles:
    """Where the tokenizer and the template of a full checkpoint with adapters are.

    Raises:
        FormatError, UnsafeCheckpoint: see `chat_template_of`.
    """
    newest = tuple(reversed(adapters))
    with_tokenizer = (folder for folder in newest if any((folder / name).is_file() for name in TOKENIZERS))
    with_template = (folder for folder in newest if chat_template_of(folder) is not None)
    return ChatFiles(root, next(with_tokenizer, root), next(with_template, root))


def copy_own_chat(chat: ChatFiles, out: Path) -> None:
    """Copy the tokenizer and template that a LoRA target brings along to ``out``; nothing where both are its base's.

    What is served then reads and writes text as the model that was gated.

    Raises:
        FormatError, UnsafeCheckpoint: see `chat_template_of`.
    """
    if chat.digest is None:
        return
    for name in _CHAT_FILES:
        if (chat.tokenizer / name).is_file():
            shutil.copyfile(chat.tokenizer / name, out / name)
    (out / _TEMPLATE).write_text(chat_template_of(chat.template) or "", encoding="utf-8")
