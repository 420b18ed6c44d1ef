"""Prompt sets and task sets: files of JSON lines, one prompt per line, read strictly.

Each line is a JSON object with the keys of `Prompt` and no others. The digest of a set is the sha256 of its bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from safegene.errors import ArtifactError, EmptySample, FormatError
from safegene.workspace.digest import canonical_json, digest_bytes
from safegene.workspace.parsing import Strict, json_lines, parse_json

Kind = Literal["harmful", "wrapped", "lookalike", "generic", "task"]
Split = Literal["fit", "validation", "test"]
Text = Annotated[str, StringConstraints(min_length=1)]

MAX_BYTES = 256 << 20  # of a set's file


class Prompt(Strict):
    """One prompt; docs/data.md says what each stage needs.

    Attributes:
        id: unique within its file.
        prompt: the user's message, without chat template.
        kind: ``harmful`` (asked directly), ``wrapped`` (the same behaviour inside a jailbreak wrapper), ``lookalike``
            (safe, but looks harmful), ``generic`` (an ordinary instruction) or ``task`` (of a target's task).
        category: the group for which rates are reported.
        behaviour: id of the base behaviour; a wrapped prompt shares it with its direct form. Empty where there is none.
        split: ``fit``, ``validation`` or ``test``.
        response: the gold answer of a task row, or the training reply of a row of ``degrade.jsonl``.
        pool: which pool of ``degrade.jsonl`` the row belongs to; empty elsewhere.
    """

    id: Text = Field(description="Unique within its file.")
    prompt: Text = Field(description="The user's message, without chat template.")
    kind: Kind = Field(
        description="harmful (asked directly), wrapped (the same inside a jailbreak wrapper), lookalike (safe, but "
        "looks harmful), generic (an ordinary instruction) or task (of a target's task)."
    )
    category: str = Field(description="The group for which rates are reported.")
    behaviour: str = Field(description="Shared by the prompts that ask for the same thing; one unit of evidence.")
    split: Split = Field(description="fit and validation for fitting, test for measuring.")
    response: str = Field("", description="Gold answer of a task row; training reply of a row of degrade.jsonl.")
    pool: str = Field("", description="Which pool of degrade.jsonl the row belongs to; empty elsewhere.")


@dataclass(frozen=True)
class PromptSet:
    """The rows of one file, in file order, and the digest of its bytes."""

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
            EmptySample: no row matches, and ``required``.
        """
        kinds = {kind} if isinstance(kind, str) else None if kind is None else set(kind)
        rows = tuple(
            row
            for row in self.rows
            if (kinds is None or row.kind in kinds)
            and (split is None or row.split == split)
            and (pool is None or row.pool == pool)
        )
        if required and not rows:
            asked = {"kind": kinds and sorted(kinds), "split": split, "pool": pool}
            wanted = ", ".join(f"{key} {value}" for key, value in asked.items() if value is not None)
            raise EmptySample(f"expected at least one prompt of {wanted or 'any kind'}, got none, in {self.path}")
        return rows


def read_prompts(path: Path) -> PromptSet:
    """Read a prompt or task set.

    Raises:
        ArtifactError: there is no such file.
        EmptySample: it holds no row.
        FormatError: a line is not a `Prompt`, an id occurs twice, or the file is larger than 256 MiB; names the line.
    """
    return parse_prompts(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """The bytes of a prompt or task set.

    Raises:
        ArtifactError: there is no such file.
        FormatError: the file is larger than 256 MiB.
    """
    if not path.is_file():
        raise ArtifactError(
            f"expected the prompt set {path}, got no such file",
            remedy="`dvc pull`, or `safegene data add FILE`, then `safegene data split` (docs/data.md)",
        )
    if path.stat().st_size > MAX_BYTES:
        raise FormatError(f"expected at most {MAX_BYTES} bytes, got {path.stat().st_size}, in {path}")
    return path.read_bytes()


def parse_prompts(data: bytes, path: Path) -> PromptSet:
    """The rows of a set's bytes; ``path`` is where they were read.

    Raises:
        EmptySample: there is no row.
        FormatError: a line is not a `Prompt`, or an id occurs twice; names the line.
    """
    rows: dict[str, Prompt] = {}
    for number, line in json_lines(data):
        where = f"{path}, line {number}"
        row = parse_json(Prompt, line, where=where)
        if row.id in rows:
            raise FormatError(f"expected every id once, got {row.id!r} twice, in {where}")
        rows[row.id] = row
    if not rows:
        raise EmptySample(f"expected at least one prompt, got an empty set, in {path}")
    return PromptSet(tuple(rows.values()), digest_bytes(data), path)


def prompt_lines(rows: Sequence[Prompt]) -> bytes:
    """The rows as the bytes of a prompt set's file: canonical JSON, one row per line."""
    return b"".join(canonical_json(row.model_dump()) + b"\n" for row in rows)
