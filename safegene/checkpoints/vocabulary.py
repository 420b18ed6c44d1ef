"""The vocabulary of a tokenizer: two models with equal vocabularies give the same tokens the same ids.

Fine-tuning tools write the same tokenizer with other padding and truncation settings. Therefore tokens, ids and merge
rules are compared, not files. A fine-tune may add tokens; the family's keep their ids.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegene.checkpoints.unsafe import MAX_JSON
from safegene.errors import FormatError, ShapeMismatch, UnsafeCheckpoint
from safegene.text import visible
from safegene.workspace.digest import digest_file, digest_json, strict_json

_REMEDY = (
    "keep the family's tokens with their ids and add new ones after them (tokenizer.add_tokens, then "
    "model.resize_token_embeddings); if it was trained with the family's tokenizer, save that one beside it"
)


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a tokenizer.

    Attributes:
        digest: of vocabulary, merges and added tokens of ``tokenizer.json``, else of the file ``tokenizer.model``.
        ids: token -> id; None where only ``tokenizer.model`` is there.
        rules: digest of the merges, or of the scores of a unigram model's pieces by id.
        special: the tokens that are left out of decoded replies.
    """

    digest: str
    ids: Mapping[str, int] | None = None
    rules: str = ""
    special: frozenset[str] = frozenset()

    @property
    def rows(self) -> int:
        """How many rows of an embedding it needs."""
        return max(self.ids.values(), default=-1) + 1 if self.ids else 0


def vocabulary_digest(root: Path) -> str | None:
    """`Vocabulary.digest` of the tokenizer in a folder; None where there is none. Errors as of `read_vocabulary`."""
    vocabulary = read_vocabulary(root)
    return vocabulary.digest if vocabulary else None


def read_vocabulary(root: Path) -> Vocabulary | None:
    """The vocabulary of the tokenizer in a folder; None where there is none.

    Raises:
        FormatError: ``tokenizer.json`` is malformed.
        UnsafeCheckpoint: it is too large.
    """
    path = root / "tokenizer.json"
    if not path.is_file():
        model_file = root / "tokenizer.model"
        return Vocabulary(digest_file(model_file)) if model_file.is_file() else None
    if (size := path.stat().st_size) > MAX_JSON:
        raise UnsafeCheckpoint(f"expected at most {MAX_JSON} bytes, got {size}, in {path}")
    raw = strict_json(path.read_bytes(), where=str(path))
    model = raw.get("model") if isinstance(raw, dict) else None
    if not isinstance(model, dict):
        raise FormatError(f"expected a tokenizer with a model, got none, in {path}")
    try:
        return _parsed(model, raw.get("added_tokens") or [])
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise FormatError(f"expected merges and added tokens of a tokenizer, got {error!r}, in {path}") from None


def added_tokens(family: Vocabulary | None, target: Vocabulary | None, where: str) -> tuple[str, ...]:
    """The tokens that a fine-tune added to the family's vocabulary, in the order of their ids.

    A new token that decoding leaves out (a special one) MUST begin and end with a sign, such as ``<|im_start|>``:
    as an ordinary word it would vanish from replies before they are judged.

    Raises:
        ShapeMismatch: a token of the family is missing or has another id, the merges differ, one of them has no
            ``tokenizer.json``, or a new special token is a word.
    """
    if family is not None and target is not None and family.digest == target.digest:
        return ()
    expected = f"expected the family's vocabulary {family.digest if family else 'none'}"
    if family is None or target is None or family.ids is None or target.ids is None:
        got = target.digest if target else "none"
        raise ShapeMismatch(f"{expected}, got {got}, in {where}", remedy=_REMEDY)
    for token, number in family.ids.items():
        if (other := target.ids.get(token)) != number:
            shown = visible(repr(token), characters=60)
            raise ShapeMismatch(f"{expected}: id {number} of {shown}, got {other}, in {where}", remedy=_REMEDY)
    if family.rules != target.rules:
        raise ShapeMismatch(f"{expected}, got other merges or scores of its tokens, in {where}", remedy=_REMEDY)
    new = sorted(set(target.ids) - set(family.ids), key=lambda token: target.ids[token] if target.ids else 0)
    for token in new:
        if token in target.special:
            require_sign(token, where)
    return tuple(new)


def require_sign(token: str, where: str) -> None:
    """Raises ShapeMismatch where an added special token does not begin and end with a sign."""
    text = token.strip()
    if not text or text[0].isalnum() or text[-1].isalnum():
        shown = visible(repr(token), characters=60)
        raise ShapeMismatch(
            f"expected added special tokens that begin and end with a sign, such as '<|im_start|>', got {shown}, "
            f"which would vanish from replies, in {where}",
            remedy='mark the token as not special ("special": false in tokenizer.json)',
        )


def _parsed(model: dict[str, Any], added: list[dict[str, Any]]) -> Vocabulary:
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
    extra = sorted((int(token["id"]), str(token["content"])) for token in added)
    digest = digest_json({"vocabulary": model.get("vocab"), "merges": merges, "added": extra})
    vocab = model.get("vocab") or {}
    scores: list[list[Any]] = []
    if isinstance(vocab, list):  # of a unigram model: [piece, score], its id is its place
        scores = [[str(piece[0]), float(piece[1])] for piece in vocab]
        ids = {piece[0]: at for at, piece in enumerate(scores)}
    else:
        ids = {str(token): int(number) for token, number in vocab.items()}
    ids |= {token: number for number, token in extra}
    special = frozenset(str(token["content"]) for token in added if token.get("special"))
    return Vocabulary(digest, ids, digest_json([merges, scores]), special)
