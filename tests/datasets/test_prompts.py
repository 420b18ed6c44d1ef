import json
from pathlib import Path
from typing import Any

import pytest

from safegene.datasets.prompts import read_prompts
from safegene.errors import ArtifactError, EmptySample, FormatError
from safegene.workspace.digest import digest_file

ROW = {"id": "a", "prompt": "how to V a O ?", "kind": "harmful", "category": "c", "behaviour": "b", "split": "fit"}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_rows_come_back_in_order_with_the_digest_of_the_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", ROW, ROW | {"id": "b", "kind": "task", "split": "test", "response": "yes"})
    found = read_prompts(path)
    assert [row.id for row in found.rows] == ["a", "b"]
    assert found.digest == digest_file(path)
    assert found.where(kind="task") == found.where(split="test") == found.rows[1:]
    assert found.where(kind=("task", "harmful")) == found.rows
    assert found.where(pool="none", required=False) == ()
    with pytest.raises(EmptySample, match=r"kind \['wrapped'\], split fit.*p\.jsonl"):
        found.where(kind="wrapped", split="fit")


def test_an_absent_and_an_empty_set_have_their_own_errors(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        read_prompts(tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_text("\n\n")
    with pytest.raises(EmptySample, match="empty set"):
        read_prompts(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    "row",
    [
        ROW | {"kind": "other"},
        ROW | {"split": "train"},
        ROW | {"more": 1},
        ROW | {"id": ""},
        ROW | {"prompt": ""},
        ROW | {"prompt": None},
        {k: v for k, v in ROW.items() if k != "behaviour"},
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write(tmp_path / "p.jsonl", ROW | {"id": "fine"}, row)
    with pytest.raises(FormatError, match="line 2"):
        read_prompts(path)


def test_other_text_and_double_ids_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("not json\n")
    with pytest.raises(FormatError, match="line 1"):
        read_prompts(tmp_path / "p.jsonl")
    with pytest.raises(FormatError, match="'a' twice"):
        read_prompts(write(tmp_path / "p.jsonl", ROW, ROW))
