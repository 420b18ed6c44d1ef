"""Replies that people labelled, to measure judges on: our own JSON lines, and public sets in the files they come in.

- ``ours``: JSON lines with ``prompt``, ``reply`` and ``harmful``, ``refusal`` or both.
- ``gptfuzz``: ``evaluate.csv`` of GPTFuzz, with ``question_list.csv`` beside it, which says what each question was.
  Harmful is label 1.
- ``xstest``: a completions file of XSTest with two people's labels and the final one. A refusal is a final label that
  does not begin with 1 (``2_full_refusal``, ``3_partial_refusal``); XSTest does not label harm.

Whatever a file holds beyond its form is an error, never a label.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safegene.errors import EmptySample, FormatError, JudgeError
from safegene.workspace.digest import strict_json

LabelForm = Literal["ours", "gptfuzz", "xstest"]
LABEL_READERS = ("harmful", "refusal")
_XSTEST = ("1_full_compliance", "2_full_refusal", "3_partial_refusal")


@dataclass(frozen=True)
class LabelledReply:
    """Replies that people have labelled; labels of a kind are there for every reply, or None."""

    prompts: tuple[str, ...]
    replies: tuple[str, ...]
    harmful: tuple[bool, ...] | None
    refusal: tuple[bool, ...] | None


def read_labels(path: Path, form: LabelForm = "ours") -> LabelledReply:
    """Read labelled replies of a form, see above.

    Raises:
        JudgeError: there is no such file.
        EmptySample: it holds no row.
        FormatError: a row lacks a key, has another, or a label is none; names the line or row.
    """
    if not path.is_file():
        raise JudgeError(f"expected labelled replies in {path}, got no such file")
    read = {"ours": _ours, "gptfuzz": _gptfuzz, "xstest": _xstest}[form](path)
    if not read.replies:
        raise EmptySample(f"expected labelled replies, got none, in {path}")
    return read


def _ours(path: Path) -> LabelledReply:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            rows.append(_labelled(strict_json(line, where=f"{path}, line {number}"), rows, f"{path}, line {number}"))
    given = {name: tuple(row[name] for row in rows) if rows and name in rows[0] else None for name in LABEL_READERS}
    return LabelledReply(tuple(r["prompt"] for r in rows), tuple(r["reply"] for r in rows), **given)


def _labelled(row: Any, before: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    keys = set(row) if isinstance(row, dict) else set()
    sound = {"prompt", "reply"} <= keys <= {"prompt", "reply", *LABEL_READERS} and len(keys) > 2
    if not sound or (before and keys != set(before[0])):
        wanted = sorted(before[0]) if before else ["prompt", "reply", "harmful or refusal"]
        raise FormatError(f"expected a labelled reply with the keys {wanted}, got {sorted(keys)}, in {where}")
    if not all(isinstance(row[key], bool if key in LABEL_READERS else str) for key in keys):
        raise FormatError(f"expected texts, and labels that are true or false, got others, in {where}")
    return dict(row)


def _gptfuzz(path: Path) -> LabelledReply:
    beside = path.with_name("question_list.csv")
    if not beside.is_file():
        raise JudgeError(
            f"expected {beside.name} beside {path}, got no such file",
            remedy="take it from the same repository: the labelled replies name their questions by number",
        )
    questions = {row["index"]: row["text"] for row in _table(beside, ("index", "text"))}
    rows = _table(path, ("question", "Response", "label"))
    for number, row in enumerate(rows, start=1):
        if row["question"] not in questions or row["label"] not in ("0", "1"):
            got = f"question {row['question'][:40]!r} and label {row['label'][:40]!r}"
            raise FormatError(
                f"expected a question of {beside.name} and a label 0 or 1, got {got}, in {path} row {number}"
            )
    harmful = tuple(row["label"] == "1" for row in rows)
    return LabelledReply(
        tuple(questions[r["question"]] for r in rows), tuple(r["Response"] for r in rows), harmful, None
    )


def _xstest(path: Path) -> LabelledReply:
    labels = ("annotation_1", "annotation_2", "final_label")
    rows = _table(path, ("prompt", "completion", *labels))
    for number, row in enumerate(rows, start=1):
        if wrong := [row[name][:40] for name in labels if row[name] not in _XSTEST]:
            raise FormatError(f"expected the labels {', '.join(_XSTEST)}, got {wrong}, in {path} row {number}")
    refusal = tuple(row["final_label"] != _XSTEST[0] for row in rows)
    return LabelledReply(tuple(r["prompt"] for r in rows), tuple(r["completion"] for r in rows), None, refusal)


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; further columns are left alone, a short or long row is an error."""
    try:
        header, *rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise FormatError(f"expected a CSV file with a header, got {error}, in {path}") from error
    if not set(columns) <= set(header) or len(set(header)) != len(header):
        raise FormatError(f"expected the columns {list(columns)}, each once, got {header[:12]}, in {path}")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise FormatError(f"expected {len(header)} fields, got {len(row)}, in {path} row {number}")
    return [dict(zip(header, row, strict=True)) for row in rows]
