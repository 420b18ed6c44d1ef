"""Prompt sets and task sets: JSON lines, one prompt each, read strictly; and the check that no set leaks into the gate.

A set is a file of JSON objects, one a line, each with the keys of `Prompt` and no others. Its digest is the sha256 of
its bytes. Prompts used to extract, select or calibrate must not meet the gate's: not as the same text, not as the same
behaviour in other words, not as mostly the same n-grams.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from safegene.errors import ArtifactError, ContaminatedSample, EmptySample, FormatError, StaleArtifact
from safegene.workspace.digest import digest_bytes, digest_file, strict_json
from safegene.workspace.manifest import read_manifest

Kind = Literal["harmful", "wrapped", "lookalike", "generic", "task"]
Split = Literal["fit", "validation", "test"]
Text = Annotated[str, StringConstraints(min_length=1)]

MAX_BYTES = 256 << 20
RECEIPT = "receipt.json"


class Prompt(BaseModel):
    """One prompt.

    Attributes:
        id: unique within its file.
        prompt: what the user says, without chat template.
        kind: ``harmful`` (asked directly), ``wrapped`` (the same behaviour inside a jailbreak wrapper), ``lookalike``
            (safe, but looks harmful), ``generic`` (an ordinary instruction) or ``task`` (of a target's own task).
        category: for rates per category.
        behaviour: id of the base behaviour; a wrapped prompt shares it with its direct form. Empty when it has none.
        split: ``fit``, ``validation`` or ``test``.
        response: the gold answer of a task row, or the training reply of a row of ``degrade.jsonl``.
        pool: which pool of ``degrade.jsonl`` the row belongs to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Text
    prompt: Text
    kind: Kind
    category: str
    behaviour: str
    split: Split
    response: str = ""
    pool: str = ""


@dataclass(frozen=True)
class PromptSet:
    """The rows of one file, in file order, with the digest of its bytes."""

    rows: tuple[Prompt, ...]
    digest: str
    path: Path

    def where(
        self,
        *,
        kind: Kind | Iterable[Kind] | None = None,
        split: Split | None = None,
        pool: str | None = None,
        required: bool = True,
    ) -> tuple[Prompt, ...]:
        """Rows of that kind (or kinds), split and pool, in file order.

        Raises:
            EmptySample: nothing is left, and ``required``.
        """
        kinds = {kind} if isinstance(kind, str) else None if kind is None else set(kind)
        found = tuple(
            row
            for row in self.rows
            if (kinds is None or row.kind in kinds)
            and (split is None or row.split == split)
            and (pool is None or row.pool == pool)
        )
        if required and not found:
            asked = {"kind": kinds and sorted(kinds), "split": split, "pool": pool}
            wanted = ", ".join(f"{key} {value}" for key, value in asked.items() if value is not None)
            raise EmptySample(f"expected at least one prompt of {wanted or 'any kind'}, got none, in {self.path}")
        return found


def read_prompts(path: Path) -> PromptSet:
    """Read a prompt or task set.

    Raises:
        ArtifactError: there is no such file.
        EmptySample: it holds no row.
        FormatError: a line is not a `Prompt`, an id stands twice, or the file is larger than 256 MiB; names the line.
    """
    if not path.is_file():
        raise ArtifactError(
            f"expected the prompt set {path}, got no such file", remedy="run `dvc pull` or add the file"
        )
    if path.stat().st_size > MAX_BYTES:
        raise FormatError(f"expected at most {MAX_BYTES} bytes, got {path.stat().st_size}, in {path}")
    data = path.read_bytes()
    rows: dict[str, Prompt] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        row = _parse(line, f"{path}, line {number}")
        if row.id in rows:
            raise FormatError(f"expected every id once, got {row.id!r} twice, in {path}, line {number}")
        rows[row.id] = row
    if not rows:
        raise EmptySample(f"expected at least one prompt, got an empty set, in {path}")
    return PromptSet(tuple(rows.values()), digest_bytes(data), path)


def _parse(line: bytes, where: str) -> Prompt:
    try:
        return Prompt.model_validate(strict_json(line, where=where))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the row"
        raise FormatError(f"expected a prompt, got {field}: {first['msg']}, in {where}") from None


def validated_receipt(validation: Path, sets: Mapping[str, str] | None = None) -> str:
    """Digest of stage ``validate``'s receipt, if it is of just these sets.

    Args:
        validation: the stage's artefact.
        sets: name (``gate``, ``task-<task>``) -> digest of the set that is about to be used.

    Raises:
        ArtifactError: nothing was validated, or its receipt was altered.
        StaleArtifact: a set was changed since, or never validated.
    """
    read_manifest(validation, stage="validate")
    path = validation / RECEIPT
    raw = strict_json(path.read_bytes(), where=str(path))
    for name, digest in (sets or {}).items():
        if (found := raw["sets"].get(name, {}).get("digest")) != digest:
            raise StaleArtifact(
                f"expected the set {name} as it was validated, {found or '(never)'}, got {digest}, by {path}",
                remedy="run `safegene run`, which validates it first",
            )
    return digest_file(path)


_SIGN = re.compile(r"[-\u2010-\u2015\u2212](?=\s*\d)")
_KEPT = ("Mn", "Mc", "Sm")  # vowel signs and mathematical symbols: without them different prompts would be one


def normalised(text: str) -> str:
    """Text as compared between sets: NFKC, case folded, words and mathematical symbols with one space between."""
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    signed = _SIGN.sub("\u2212", folded)
    kept = "".join(c if c.isalnum() or unicodedata.category(c) in _KEPT else " " for c in signed)
    return unicodedata.normalize("NFKC", " ".join(kept.split()))


def ngrams(text: str, n: int) -> frozenset[tuple[str, ...]]:
    """The n-grams of words of a normalised text; none when it is shorter."""
    words = text.split()
    return frozenset(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def check_contamination(
    tested: Sequence[Prompt], fitted: Sequence[Prompt], *, ngram: int, max_overlap: float, where: str
) -> None:
    """Refuse a gate set that meets what was fitted on.

    A tested prompt is contaminated when its normalised text is a fitted one's, when its behaviour id is a fitted
    one's, or when more than ``max_overlap`` of its ``ngram``-grams occur among the fitted ones'.

    Raises:
        ContaminatedSample: names ``where``, the rule and the first rows.
    """
    texts = {normalised(row.prompt): row.id for row in fitted}
    behaviours = {row.behaviour: row.id for row in fitted if row.behaviour}
    grams: set[tuple[str, ...]] = set()
    for text in texts:
        grams |= ngrams(text, ngram)
    same, alike, overlapping = [], [], []
    for row in tested:
        text = normalised(row.prompt)
        own = ngrams(text, ngram)
        if text in texts:
            same.append(f"{row.id} = {texts[text]}")
        elif row.behaviour in behaviours:
            alike.append(f"{row.id} ~ {behaviours[row.behaviour]}")
        elif own and len(own & grams) > max_overlap * len(own):
            overlapping.append(f"{row.id} ({len(own & grams)} of {len(own)})")
    for rule, rows in (
        ("the same text", same),
        ("the same behaviour", alike),
        (f"more than {max_overlap:g} of the {ngram}-grams", overlapping),
    ):
        if rows:
            more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
            raise ContaminatedSample(
                f"expected gate prompts unseen in fitting, got {rule} in {', '.join(rows[:5])}{more}, in {where}",
                remedy="take these rows out of the gate set or out of the fitted set",
            )
