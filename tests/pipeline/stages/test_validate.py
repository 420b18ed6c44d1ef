import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safegene.errors import ArtifactError, ContaminatedSample, EmptySample, FormatError, SafegeneError
from safegene.pipeline.stages.validate import validate
from safegene.tiny.data import write_data
from safegene.workspace.digest import digest_file
from safegene.workspace.manifest import read_manifest
from safegene.workspace.params import ValidateParams

Rows = list[dict[str, Any]]
PARAMS = ValidateParams()


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny family's sets, at most 40 rows of each part."""
    folder = tmp_path_factory.mktemp("data")
    for path in write_data(folder):
        counts: Counter[tuple[str, ...]] = Counter()
        kept = []
        for line in path.read_text().splitlines():
            row = json.loads(line)
            counts[part := (row["kind"], row["split"], row["pool"])] += 1
            kept += [line] if counts[part] <= 40 else []
        path.write_text("\n".join(kept) + "\n")
    for task in ("sentiment", "group"):
        (folder / "tasks" / f"{task}.jsonl").unlink()
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))


def run(data: Path, out: Path, params: ValidateParams = PARAMS) -> None:
    validate(prompts=data / "prompts", tasks=data / "tasks", out=out, params=params)


def spoiled(sets: Path, to: Path, name: str, change: Callable[[Rows], Rows]) -> Path:
    """A copy of the sets in which one file was changed."""
    shutil.copytree(sets, to)
    path = to / name
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))
    return to


def test_the_tiny_familys_sets_hold_and_give_a_receipt(sets: Path, tmp_path: Path) -> None:
    run(sets, tmp_path / "one")
    run(sets, tmp_path / "two")
    manifest = read_manifest(tmp_path / "one")
    assert manifest.digest == read_manifest(tmp_path / "two").digest
    receipt = json.loads((tmp_path / "one" / "receipt.json").read_text())
    assert receipt["sets"]["gate"]["digest"] == digest_file(sets / "prompts" / "gate.jsonl") == manifest.inputs["gate"]
    assert receipt["sets"]["gate"]["parts"]["harmful/test"] == 40
    assert set(receipt["sets"]) == {"degrade", "safety", "gate", "task-topic"}
    page = (tmp_path / "one" / "docs" / "gate.html").read_text()
    assert "Content-Security-Policy" in page
    assert "<script" not in page
    assert "100.0%" in page or "100%" in page


def set_first(**change: Any) -> Callable[[Rows], Rows]:
    return lambda rows: [rows[0] | change, *rows[1:]]


def without(key: str, value: str | None = None) -> Callable[[Rows], Rows]:
    """Rows without that key; or without the rows where it has that value."""
    if value is None:
        return lambda rows: [{k: v for k, v in row.items() if k != key} for row in rows]
    return lambda rows: [row for row in rows if row[key] != value]


BROKEN: dict[str, tuple[str, Callable[[Rows], Rows], str]] = {
    "null": ("prompts/gate.jsonl", set_first(prompt=None), r"NotBeNull\(prompt\) broken by 'gate.*line 1"),
    "missing key": (
        "prompts/safety.jsonl",
        without("category"),
        r"NotBeNull\(category",
    ),
    "double id": ("prompts/gate.jsonl", lambda rows: [*rows, rows[0] | {"prompt": "another one"}], r"BeUnique\(id"),
    "double prompt": ("prompts/gate.jsonl", lambda rows: [*rows, rows[0] | {"id": "another"}], r"BeUnique\(prompt"),
    "the same prompt shouted": (
        "prompts/gate.jsonl",
        lambda rows: [*rows, rows[0] | {"id": "x", "behaviour": "y", "prompt": rows[0]["prompt"].upper() + " !!"}],
        "expected the text",
    ),
    "kind": ("prompts/gate.jsonl", set_first(kind="<script>alert(1)</script>"), r"BeInSet\(kind"),
    "split": ("prompts/gate.jsonl", set_first(split="fit"), r"BeInSet\(split"),
    "blank": ("tasks/topic.jsonl", set_first(response=" "), r"MatchRegex\(response"),
    "no behaviour": ("prompts/gate.jsonl", set_first(behaviour=""), r"LengthsToBeBetween\(behaviour"),
    "long": ("prompts/degrade.jsonl", set_first(prompt="x" * 9000), "max_value 8000"),
    "few rows": (
        "prompts/degrade.jsonl",
        lambda rows: rows[:5],
        r"rows: min_value 32\) broken \(5\)",
    ),
    "few of a kind": (
        "prompts/gate.jsonl",
        without("kind", "wrapped"),
        'kind == "wrapped"',
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_set_that_breaks_a_rule_stops_the_run(sets: Path, tmp_path: Path, name: str) -> None:
    file, change, words = BROKEN[name]
    data = spoiled(sets, tmp_path / "data", file, change)
    with pytest.raises(FormatError, match=words) as caught:
        run(data, tmp_path / "out")
    assert file in str(caught.value)
    assert not (tmp_path / "out").exists()
    if "the complete result is in" in caught.value.remedy:
        assert "<script" not in Path(caught.value.remedy.rpartition(" ")[2]).read_text()


OTHER: dict[str, tuple[str, Callable[[Rows], Rows], type[SafegeneError], str]] = {
    "empty": ("prompts/gate.jsonl", lambda rows: [], EmptySample, "an empty set"),
    "not an object": ("prompts/gate.jsonl", lambda rows: [[1]], FormatError, "line 1"),  # type: ignore[list-item]
    "unknown key": ("tasks/topic.jsonl", set_first(more=1), FormatError, "more"),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_is_no_set_at_all_has_its_own_error(sets: Path, tmp_path: Path, name: str) -> None:
    file, change, error, words = OTHER[name]
    with pytest.raises(error, match=words):
        run(spoiled(sets, tmp_path / "data", file, change), tmp_path / "out")


def test_an_absent_set_is_an_error(sets: Path, tmp_path: Path) -> None:
    data = spoiled(sets, tmp_path / "data", "prompts/gate.jsonl", lambda rows: rows)
    (data / "prompts" / "gate.jsonl").unlink()
    with pytest.raises(ArtifactError, match="no such file"):
        run(data, tmp_path / "out")


def gate_row(sets: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((sets / "prompts" / "gate.jsonl").read_text().splitlines()[0])
    return found


@pytest.mark.parametrize("change", [{"id": "leak", "behaviour": "b"}, {"id": "leak", "prompt": "in other words ?"}])
@pytest.mark.parametrize("name", ["prompts/safety.jsonl", "prompts/degrade.jsonl"])
def test_a_gate_prompt_among_the_fitted_stops_the_run(
    sets: Path, tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    leak = gate_row(sets) | {"split": "fit", "pool": "p", "response": "r"} | change
    with pytest.raises(ContaminatedSample, match=r"gate\.jsonl") as caught:
        run(spoiled(sets, tmp_path / "data", name, lambda rows: [*rows, leak]), tmp_path / "out")
    assert name in str(caught.value)


def test_a_tasks_test_row_among_its_shots_stops_the_run(sets: Path, tmp_path: Path) -> None:
    def leak(rows: Rows) -> Rows:
        tested = next(row for row in rows if row["split"] == "test")
        return [*rows, tested | {"id": "leak", "split": "fit"}]

    with pytest.raises(ContaminatedSample, match=r"topic\.jsonl"):
        run(spoiled(sets, tmp_path / "data", "tasks/topic.jsonl", leak), tmp_path / "out")


def test_categories_are_known_where_the_parameters_name_them(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"BeInSet\(category"):
        run(sets, tmp_path / "out", ValidateParams(categories=("weather",)))
