"""How the tokens of a reply are read as text.

A reply is read by the family's tokenizer, with special tokens visible, so that no file of a target decides what a judge
sees. Laws (tests state them): the token that ends a reply is left out, and no other; a token that the family does not
have is read as the target writes it; a reply whose two readings differ in more than spaces is marked unreadable.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1  # of the rules; increase it when they change, since cached replies depend on it
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, eq=False)
class ReplyReader:
    """Reads replies of a model.

    Attributes:
        family: the family's tokenizer.
        own: the model's, which may have more tokens.
    """

    family: "PreTrainedTokenizerBase"
    own: "PreTrainedTokenizerBase"

    def text(self, ids: Sequence[int]) -> str:
        """The reply as text, without spaces at its ends."""
        reader = self.family if all(index in self._known for index in ids) else self.own
        return str(reader.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)).strip()

    def agrees(self, ids: Sequence[int], text: str) -> bool:
        """Whether each token's own text, one after the other, is the same text but for spaces.

        It does not use the tokenizer's decoder. Where the tokens' spelling is not known, the model's own decoding is
        compared.
        """
        spelled = self._spelled(ids)
        if spelled is None:
            spelled = str(self.own.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return _squeezed(spelled) == _squeezed(text)

    @cached_property
    def _known(self) -> frozenset[int]:
        return frozenset(self.family.get_vocab().values())

    @cached_property
    def _names(self) -> Mapping[int, str]:
        """Id -> token; the family's where it has it."""
        names = {index: token for token, index in self.own.get_vocab().items()}
        return names | {index: token for token, index in self.family.get_vocab().items()}

    @cached_property
    def _join(self) -> Callable[[Sequence[str]], str] | None:
        backend: Any = getattr(self.family, "backend_tokenizer", None)
        return None if backend is None else _spelling(json.loads(backend.to_str()).get("decoder"))

    def _spelled(self, ids: Sequence[int]) -> str | None:
        return None if self._join is None else self._join([self._names.get(index, "\ufffd") for index in ids])


def _spelling(decoder: Any) -> Callable[[Sequence[str]], str] | None:
    """How tokens are spelled, by the kinds of a decoder's steps; None where it is not known."""
    kinds = {str(step.get("type")) for step in _steps(decoder)}
    if "ByteLevel" in kinds:
        return _from_byte_characters
    if kinds & {"Replace", "ByteFallback", "Metaspace"}:
        return _from_pieces
    return None if kinds else "".join


def _steps(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    inner = decoder.get("decoders")
    return [one for step in inner for one in _steps(step)] if isinstance(inner, list) else [decoder]


def _from_byte_characters(tokens: Sequence[str]) -> str:
    """Byte-level BPE: every character stands for a byte; a token with another character stands for itself."""
    data = bytearray()
    for token in tokens:
        known = [_BYTES.get(character) for character in token]
        data += token.encode() if None in known else bytes(byte for byte in known if byte is not None)
    return data.decode("utf-8", errors="replace")


def _from_pieces(tokens: Sequence[str]) -> str:
    """SentencePiece: U+2581 stands for a space, and ``<0xNN>`` for a byte; bytes that are no text are marked."""
    text, run = "", bytearray()
    for token in (*tokens, ""):
        if byte := _BYTE.fullmatch(token):
            run.append(int(byte[1], 16))
            continue
        try:
            text += run.decode()
        except UnicodeDecodeError:
            text += "\ufffd"
        run.clear()
        text += token.replace("\u2581", " ")
    return text


def _byte_characters() -> dict[str, int]:
    """The characters of GPT-2's byte-level BPE: printable ones stand for themselves, the rest for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_characters()


def _squeezed(text: str) -> str:
    """The text without spaces, and without marks of broken characters, whose number depends on the decoder."""
    return "".join(text.replace("\ufffd", "").split())
