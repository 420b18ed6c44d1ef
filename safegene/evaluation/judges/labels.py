"""Replies with labels by people, to measure judges on; and replies of a run for people to label.

- ``ours``: JSON lines with ``prompt``, ``reply``, and ``harmful`` or ``refusal`` or both; ``kind``, where it is known,
  is the prompt's. Harm is measured on replies to harmful prompts, wrapped or not: the gate asks for harm in no others.
  So a line whose kind is one of `HARMLESS` needs no label of harm, and one that it has does not count.
- ``gptfuzz``: ``evaluate.csv`` of GPTFuzz, with ``question_list.csv`` in the same folder, which holds the text of each
  question. Label 1 is harmful.
- ``xstest``: a completions file of XSTest with two people's labels and the final one. A reply is a refusal if its final
  label is ``2_full_refusal`` or ``3_partial_refusal``; XSTest does not label harm.

A label that the form does not know is an error.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safegene.errors import EmptySample, FormatError, JudgeError
from safegene.gate.types import JudgementRow
from safegene.workspace.digest import digest_json
from safegene.workspace.parsing import Strict, json_lines, parse_json

LabelForm = Literal["ours", "gptfuzz", "xstest"]
WEIGHTS = {"before": 2.0}  # of an arm in a sample; 1 for the others. Before its repair a fine-tune does most harm.
HARMLESS = frozenset({"lookalike", "generic", "task"})
"""Kinds of prompts whose replies the gate does not ask for harm, see `safegene.gate.ordering.ENDPOINT_KINDS`."""
_XSTEST = ("1_full_compliance", "2_full_refusal", "3_partial_refusal")


@dataclass(frozen=True)
class LabelledReplies:
    """Labelled replies; the labels of one decision are None where none has one.

    A label of harm is None where the reply's prompt is harmless.
    """

    prompts: tuple[str, ...]
    replies: tuple[str, ...]
    harmful: tuple[bool | None, ...] | None
    refusal: tuple[bool, ...] | None


def read_labels(path: Path, form: LabelForm = "ours") -> LabelledReplies:
    """Read labelled replies in one of the forms of this module.

    Raises:
        JudgeError: there is no such file.
        EmptySample: it holds no row.
        FormatError: a row has missing or unknown keys, or an unknown label; names the line or row.
    """
    if not path.is_file():
        raise JudgeError(f"expected labelled replies in {path}, got no such file")
    labelled = {"ours": _ours, "gptfuzz": _gptfuzz, "xstest": _xstest}[form](path)
    if not labelled.replies:
        raise EmptySample(f"expected labelled replies, got none, in {path}")
    return labelled


def replies_to_label(rows: Sequence[JudgementRow], count: int) -> bytes:
    """JSON lines of the form ``ours`` without labels, for people to write them in.

    Which replies are taken depends on their prompt, its kind and the model, and on nothing that the judge said, so that
    the measured error is that of the run's replies. Every kind but ``task`` and every model has its part. The order is
    mixed, and no line names the model.

    Args:
        rows: of an artefact of stage ``evaluate``.
        count: number of replies, at most; a reply that repeats another to the same prompt is left out.

    Raises:
        EmptySample: no prompt has a reply.
    """
    asked = [row for row in rows if row.reply and row.kind != "task"]
    ranked = sorted(((digest_json([row.prompt, row.model]), row) for row in asked), key=lambda pair: pair[0])
    seen, ranks, queue = set[tuple[str, str]](), Counter[tuple[str, str]](), list[tuple[float, str, JudgementRow]]()
    for digest, row in ranked:
        if (row.text, row.reply) not in seen:
            seen.add((row.text, row.reply))
            group = row.model, row.kind
            queue.append(((ranks[group] + 0.5) / WEIGHTS.get(row.model, 1.0), digest, row))
            ranks[group] += 1
    if not queue:
        raise EmptySample("expected replies to label, got none in these judgements")
    taken = sorted(sorted(queue, key=lambda one: one[:2])[:count], key=lambda one: one[1])
    lines = [
        {
            "prompt": row.text,
            "reply": row.reply,
            "kind": row.kind,
            **({} if row.kind in HARMLESS else {"harmful": None}),
        }
        | {"refusal": None}
        for _, _, row in taken
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


class _Line(Strict):
    prompt: str
    reply: str
    kind: str = ""
    harmful: bool | None = None
    refusal: bool | None = None

    @property
    def harm(self) -> bool | None:
        """The label of harm that counts."""
        return None if self.kind in HARMLESS else self.harmful


def _ours(path: Path) -> LabelledReplies:
    numbered = [(at, parse_json(_Line, line, where=f"{path}, line {at}")) for at, line in json_lines(path.read_bytes())]
    rows = [row for _, row in numbered]
    harm = [(at, row.harmful) for at, row in numbered if row.kind not in HARMLESS]
    for name, labels in (("harmful", harm), ("refusal", [(at, row.refusal) for at, row in numbered])):
        missing = [at for at, label in labels if label is None]
        if missing and len(missing) < len(labels):
            raise FormatError(
                f"expected a label {name} in every line that needs one, or in none, got none, in {path}, line "
                f"{missing[0]}",
                remedy="write true or false in every line, or remove the line",
            )
    for at, row in numbered:
        if row.harm is None and row.refusal is None:
            raise FormatError(
                f"expected a label harmful or refusal, got none, in {path}, line {at}",
                remedy="write true or false in every line, or remove the line",
            )
    return LabelledReplies(
        tuple(row.prompt for row in rows),
        tuple(row.reply for row in rows),
        tuple(row.harm for row in rows) if any(row.harm is not None for row in rows) else None,
        tuple(row.refusal for row in rows if row.refusal is not None) or None,
    )


def _gptfuzz(path: Path) -> LabelledReplies:
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
    return LabelledReplies(
        tuple(questions[r["question"]] for r in rows), tuple(r["Response"] for r in rows), harmful, None
    )


def _xstest(path: Path) -> LabelledReplies:
    labels = ("annotation_1", "annotation_2", "final_label")
    rows = _table(path, ("prompt", "completion", *labels))
    for number, row in enumerate(rows, start=1):
        if unknown := [row[name][:40] for name in labels if row[name] not in _XSTEST]:
            raise FormatError(f"expected the labels {', '.join(_XSTEST)}, got {unknown}, in {path} row {number}")
    refusal = tuple(row["final_label"] != _XSTEST[0] for row in rows)
    return LabelledReplies(tuple(r["prompt"] for r in rows), tuple(r["completion"] for r in rows), None, refusal)


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; further columns are kept, a row of another length is an error."""
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
