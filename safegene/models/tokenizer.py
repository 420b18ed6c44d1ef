"""What a tokenizer does, however its files spell it, compared with the family's.

Several files and the version of transformers decide it, so it is compared as transformers loads it: vocabulary, merges,
normalizer, pre-tokenizer, decoder, added and special tokens. A difference that could change what a prompt is encoded to
or how a reply is read is refused. Tokens with new ids may be added. What changes neither is *declared*: it is shown in
the report.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegene.checkpoints.unsafe import MAX_JSON, read_json
from safegene.checkpoints.vocabulary import require_sign
from safegene.errors import FormatError, ShapeMismatch, UnsafeCheckpoint
from safegene.models import tokenizer_child
from safegene.models.loading import load_tokenizer
from safegene.text import quoted
from safegene.workspace.digest import digest_file, digest_json

REMEDY = "save the family's tokenizer in the fine-tune's folder; add tokens with new ids only (tokenizer.add_tokens)"
FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json")
_GENERIC = "TokenizersBackend"  # the class that does what tokenizer.json says and nothing else
_STEPS = ("normalizer", "pre_tokenizer", "decoder")
_READERS = ("decode", "_decode", "_encode_plus", "__call__")
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")
_PROBE = "a b"
_bounded: set[str] = set()  # digests of files that were tried
WAIT = 600.0  # seconds for a process that tries a tokenizer, on a busy machine
_METASPACE = {"type": "Metaspace", "replacement": "\u2581", "split": False}
_LEGACY = [
    {"type": "Prepend", "prepend": "\u2581"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
]
_PIECES = (  # normalizer and pre-tokenizer, as versions of transformers write the spaces of SentencePiece
    [{"type": "Sequence", "normalizers": _LEGACY}, None],
    [None, {**_METASPACE, "prepend_scheme": "always"}],
    [None, {**_METASPACE, "prepend_scheme": "first"}],
)


@dataclass(frozen=True)
class ResolvedTokenizer:
    """What a tokenizer does.

    Attributes:
        root: its folder.
        kind: the class that transformers loads it as.
        steps: what must be equal: normalizer, pre_tokenizer, decoder, the model's settings and scores, and code.
        merges: of a BPE model.
        vocabulary: token -> id, with added tokens.
        added: id -> flags of an added token.
        declared: what may differ, and is shown.
        end: id of its end token.
    """

    root: Path
    kind: str
    steps: Mapping[str, Any]
    merges: Sequence[str]
    vocabulary: Mapping[str, int]
    added: Mapping[int, Mapping[str, Any]]
    declared: Mapping[str, Any]
    end: int | None

    @property
    def special(self) -> frozenset[int]:
        """The ids that users' decoding leaves out."""
        return frozenset(index for index, flags in self.added.items() if flags["special"])

    @property
    def largest(self) -> int:
        """The largest id."""
        return max(self.vocabulary.values(), default=-1)


def resolve_tokenizer(root: Path) -> ResolvedTokenizer:
    """The tokenizer of a folder, as transformers loads it.

    Raises:
        CheckpointError: there is none, or transformers cannot load it.
        UnsafeCheckpoint: a file is too large, or names code.
    """
    if (file := root / "tokenizer.json").is_file() and file.stat().st_size <= MAX_JSON:
        _require_bounded(file)
    tokenizer: Any = load_tokenizer(root)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        steps, merges = _steps(json.loads(backend.to_str()))
    else:  # written in Python: its files decide
        steps, merges = {"files": {name: digest_file(root / name) for name in FILES if (root / name).is_file()}}, ()
    steps["code"] = {name: getattr(type(tokenizer), name).__qualname__ for name in _READERS}
    steps["split_special_tokens"] = bool(getattr(tokenizer, "split_special_tokens", False))
    return ResolvedTokenizer(
        root,
        type(tokenizer).__name__,
        steps,
        merges,
        tokenizer.get_vocab(),
        {index: _flags(token) for index, token in tokenizer.added_tokens_decoder.items()},
        _declared(tokenizer),
        tokenizer.eos_token_id,
    )


def _require_bounded(file: Path) -> None:
    """Check in a process of its own that a ``tokenizer.json`` can be loaded within bounds; once for a content.

    Raises:
        UnsafeCheckpoint: it needs more time or memory.
    """
    if (digest := digest_file(file)) in _bounded:
        return
    most, seconds = tokenizer_child.BYTES, tokenizer_child.SECONDS
    words = [sys.executable, "-I", "-X", "utf8", tokenizer_child.__file__, str(file), str(most), str(seconds)]
    null = subprocess.DEVNULL
    try:
        done = subprocess.run(words, stdin=null, stdout=null, stderr=null, env={}, timeout=WAIT, check=False).returncode
    except subprocess.TimeoutExpired:
        done = -1
    if done:
        raise UnsafeCheckpoint(
            f"expected a tokenizer that loads within {seconds} s and {most >> 20} MiB, got one that needs more, in "
            f"{file.parent}",
            remedy=REMEDY,
        )
    _bounded.add(digest)


def require_same_tokenizer(own: ResolvedTokenizer, family: ResolvedTokenizer, where: str, rows: int) -> tuple[str, ...]:
    """Compare a target's tokenizer with the family's.

    Args:
        own: the target's.
        family: the family's.
        where: the target, for messages.
        rows: of its embedding.

    Returns:
        What differs and is declared, one sentence each.

    Raises:
        ShapeMismatch: a difference that could change what is asked or read; names both values.
        FormatError: older files beside the target's ``tokenizer.json`` contradict it.
    """
    _require_same_vocabulary(own, family, where, rows)
    if own.merges != family.merges:
        raise ShapeMismatch(f"expected the family's merges, got others, in {where}", remedy=REMEDY)
    for name in sorted({*own.steps, *family.steps}):
        expected, got = family.steps.get(name), own.steps.get(name)
        if expected != got and not _same_file(own, family):
            raise _other_step(name, expected, got, where)
    _require_known_file(own, family, where)
    _require_consistent(own, where)
    models = [one.root / "tokenizer.model" for one in (own, family)]
    if models[0].is_file() and not (models[1].is_file() and digest_file(models[0]) == digest_file(models[1])):
        raise FormatError(
            f"expected the family's tokenizer.model, got {'another' if models[1].is_file() else 'one of its own'}, "
            f"in {where}",
            remedy="remove tokenizer.model: tokenizer.json holds the whole tokenizer",
        )
    different = [name for name in own.declared if own.declared[name] != family.declared[name]]
    return tuple(
        f"{name} {quoted(own.declared[name])}, the family's {quoted(family.declared[name])}" for name in different
    )


def _require_same_vocabulary(own: ResolvedTokenizer, family: ResolvedTokenizer, where: str, rows: int) -> None:
    for token, index in family.vocabulary.items():
        if (got := own.vocabulary.get(token)) != index:
            raise ShapeMismatch(
                f"expected id {index} of the family's token {quoted(token)}, got {got}, in {where}", remedy=REMEDY
            )
    known = set(family.vocabulary.values())
    for index in sorted({*own.added, *family.added}):
        flags = own.added.get(index)
        if index in known and family.added.get(index) != flags:
            raise ShapeMismatch(
                f"expected the family's token {index} as {quoted(family.added.get(index, 'an ordinary one'))}, "
                f"got {quoted(flags or 'an ordinary one')}, in {where}",
                remedy=REMEDY,
            )
        if index not in known and flags and flags["special"]:
            require_sign(flags["content"], where)
    new = sorted(set(own.vocabulary.values()) - known)
    if new and new[-1] >= rows:
        raise ShapeMismatch(
            f"expected ids of added tokens below the {rows} rows of the embedding, got {new[-1]}, in {where}",
            remedy="model.resize_token_embeddings(len(tokenizer)), then save the model again",
        )


def _require_known_file(own: ResolvedTokenizer, family: ResolvedTokenizer, where: str) -> None:
    """Check that ``tokenizer.json``, as other programs read it, does what the family's does in one of its versions."""
    paths = [one.root / "tokenizer.json" for one in (own, family)]
    if not all(path.is_file() for path in paths) or digest_file(paths[0]) == digest_file(paths[1]):
        return
    steps, merges = _steps_of_file(paths[0])
    theirs, _ = _steps_of_file(paths[1])
    if merges != family.merges:
        raise ShapeMismatch(f"expected the family's merges, got others, in tokenizer.json of {where}", remedy=REMEDY)
    for name, got in steps.items():
        if got not in (theirs[name], family.steps.get(name)):
            raise _other_step(name, theirs[name], got, f"tokenizer.json of {where}")


def _other_step(name: str, expected: Any, got: Any, where: str) -> ShapeMismatch:
    return ShapeMismatch(
        f"expected the family's tokenizer with {name} {quoted(expected)}, got {quoted(got)}, in {where}", remedy=REMEDY
    )


def _same_file(own: ResolvedTokenizer, family: ResolvedTokenizer) -> bool:
    """Whether both ``tokenizer.json`` say the same, and only the name of the class that reads them differs."""
    if own.kind not in (_GENERIC, family.kind) or own.steps["split_special_tokens"]:
        return False
    paths = [one.root / "tokenizer.json" for one in (own, family)]
    return all(path.is_file() for path in paths) and _steps_of_file(paths[0]) == _steps_of_file(paths[1])


def _steps_of_file(path: Path) -> tuple[dict[str, Any], Sequence[str]]:
    from tokenizers import Tokenizer

    return _steps(json.loads(Tokenizer.from_file(str(path)).to_str()))


def _steps(state: Mapping[str, Any]) -> tuple[dict[str, Any], Sequence[str]]:
    """What of a ``tokenizer.json``, as the tokenizers library writes it, decides ids and texts; and its merges."""
    model = {key: value for key, value in state["model"].items() if value not in (None, "", False)}
    vocabulary, merges = model.pop("vocab", None), [" ".join(merge) for merge in model.pop("merges", [])]
    if model.get("byte_fallback"):  # then nothing is unknown
        model.pop("unk_token", None)
    if "unk_token" not in model:
        model.pop("fuse_unk", None)
    scores = digest_json(vocabulary) if isinstance(vocabulary, list) else None  # of a unigram model
    steps = {name: _plain(state.get(name), decoder=name == "decoder") for name in _STEPS}
    if [steps["normalizer"], steps["pre_tokenizer"]] in _PIECES:
        steps |= {"normalizer": None, "pre_tokenizer": "SentencePiece's spaces"}
    return {"model": model, "scores": scores, **steps}, merges


def _plain(step: Any, *, decoder: bool = False) -> Any:
    """A step without what changes neither ids nor texts, such as offsets."""
    if isinstance(step, list):
        return [_plain(one, decoder=decoder) for one in step]
    if not isinstance(step, dict):
        return step
    plain = {key: _plain(value, decoder=decoder) for key, value in step.items() if key != "trim_offsets"}
    if plain.get("type") == "ByteLevel" and decoder:
        return {"type": "ByteLevel"}
    inner = next((plain[key] for key in ("normalizers", "pretokenizers", "decoders") if key in plain), None)
    if plain.get("type") == "Sequence" and isinstance(inner, list) and len(inner) < 2:
        return inner[0] if inner else None
    return plain


def _flags(token: Any) -> dict[str, Any]:
    """Flags of an added token; where it is special, old versions of transformers write ``normalized`` either way."""
    flags = {"content": token.content, "special": bool(token.special)}
    flags |= {name: bool(getattr(token, name)) for name in ("lstrip", "rstrip", "single_word")}
    return flags if token.special else flags | {"normalized": bool(token.normalized)}


def _declared(tokenizer: Any) -> dict[str, Any]:
    plain, whole = (list(tokenizer(_PROBE, add_special_tokens=added)["input_ids"]) for added in (False, True))
    at = next((n for n in range(len(whole) - len(plain) + 1) if whole[n : n + len(plain)] == plain), 0)
    around = [whole[:at], whole[at + len(plain) :]] if whole[at : at + len(plain)] == plain else whole
    return {
        **{name: getattr(tokenizer, name, None) for name in _ROLES},
        "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
        "spaces": _spaces(tokenizer),
        "ids around a plain text": around,
    }


def _spaces(tokenizer: Any) -> Any:
    """How a SentencePiece tokenizer adds spaces, which versions of transformers do differently."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    scheme = getattr(getattr(backend, "pre_tokenizer", None), "prepend_scheme", None)
    return scheme if isinstance(scheme, str) else None


def _require_consistent(own: ResolvedTokenizer, where: str) -> None:
    """Check the files that other programs read in place of ``tokenizer.json``."""
    root = own.root
    claims = {name: read_json(root / name) for name in ("vocab.json", "added_tokens.json") if (root / name).is_file()}
    if (root / "vocab.txt").is_file():
        claims["vocab.txt"] = {token: at for at, token in enumerate(_lines(root / "vocab.txt")) if token}
    for name, claimed in claims.items():
        for token, index in claimed.items():
            if own.vocabulary.get(token) != index:
                raise FormatError(
                    f"expected {name} to agree with tokenizer.json, got id {quoted(index)} of {quoted(token)}, "
                    f"in {where}",
                    remedy=f"remove {name}: tokenizer.json holds the whole tokenizer",
                )
    if (root / "merges.txt").is_file() and own.merges:
        lines = _lines(root / "merges.txt")
        if [line for line in lines[lines[0].startswith("#version") :] if line] != list(own.merges):
            raise FormatError(
                f"expected merges.txt to agree with tokenizer.json, got other merges, in {where}",
                remedy="remove merges.txt: tokenizer.json holds the whole tokenizer",
            )
    roles = read_json(root / "special_tokens_map.json") if (root / "special_tokens_map.json").is_file() else {}
    for role, value in roles.items():
        for token in value if isinstance(value, list) else [value]:
            content = str(token.get("content") if isinstance(token, dict) else token)
            if content in own.vocabulary and own.vocabulary[content] not in own.special:
                raise FormatError(
                    f"expected special tokens, got the ordinary {quoted(content)} as {quoted(role)}, "
                    f"in special_tokens_map.json of {where}",
                    remedy="remove special_tokens_map.json: tokenizer_config.json holds the roles of tokens",
                )


def _lines(path: Path) -> list[str]:
    if (size := path.stat().st_size) > MAX_JSON:
        raise UnsafeCheckpoint(f"expected at most {MAX_JSON} bytes, got {size}, in {path}")
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(f"expected text in UTF-8, got {error}, in {path}") from None
