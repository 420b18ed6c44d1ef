"""The vocabulary of a tokenizer: two models with equal vocabularies give the same tokens the same ids.

Fine-tuning tools write the same tokenizer with other padding and truncation settings. Therefore tokens, ids and merge
rules are compared, not files.
"""

from pathlib import Path

from safegene.checkpoints.unsafe import MAX_JSON
from safegene.errors import FormatError, UnsafeCheckpoint
from safegene.workspace.digest import digest_file, digest_json, strict_json


def vocabulary_digest(root: Path) -> str | None:
    """Digest of vocabulary, merges and added tokens of ``tokenizer.json``, else of the file ``tokenizer.model``.

    None where the folder has neither.

    Raises:
        FormatError: ``tokenizer.json`` is malformed.
        UnsafeCheckpoint: it is too large.
    """
    path = root / "tokenizer.json"
    if not path.is_file():
        return digest_file(root / "tokenizer.model") if (root / "tokenizer.model").is_file() else None
    if (size := path.stat().st_size) > MAX_JSON:
        raise UnsafeCheckpoint(f"expected at most {MAX_JSON} bytes, got {size}, in {path}")
    raw = strict_json(path.read_bytes(), where=str(path))
    model = raw.get("model") if isinstance(raw, dict) else None
    if not isinstance(model, dict):
        raise FormatError(f"expected a tokenizer with a model, got none, in {path}")
    try:
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
        added = sorted((int(token["id"]), str(token["content"])) for token in raw.get("added_tokens") or [])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"expected merges and added tokens of a tokenizer, got {error!r}, in {path}") from None
    return digest_json({"vocabulary": model.get("vocab"), "merges": merges, "added": added})
