import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safegene.datasets.receipt import validated_receipt
from safegene.errors import ArtifactError, ContaminatedSample, FormatError
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
    validate(prompts=data / "prompts", tasks=data / "tasks", out=out, params=params, pools=("benign",))


def spoiled(sets: Path, to: Path, name: str, change: Callable[[Rows], Rows]) -> Path:
    """A copy of the sets in which one file was changed."""
    shutil.copytree(sets, to)
    change_rows(to / name, change)
    return to


def change_rows(path: Path, change: Callable[[Rows], Rows]) -> None:
    """Write the file's rows again, changed."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


def test_the_tiny_familys_sets_hold_and_give_a_receipt(sets: Path, tmp_path: Path) -> None:
    run(sets, tmp_path / "one")
    run(sets, tmp_path / "two")
    manifest = read_manifest(tmp_path / "one")
    assert manifest.digest == read_manifest(tmp_path / "two").digest
    receipt = json.loads((tmp_path / "one" / "receipt.json").read_text())
    assert receipt["sets"]["gate"]["digest"] == digest_file(sets / "prompts" / "gate.jsonl") == manifest.inputs["gate"]
    assert receipt["sets"]["gate"]["parts"]["harmful/test"] == 40
    assert set(receipt["sets"]) == {"degrade", "safety", "gate", "pool", "task-topic"}
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
    "null": ("prompts/gate.jsonl", set_first(prompt=None), r"line 1 \('gate.*expected a value in `prompt`, got none"),
    "missing key": ("prompts/safety.jsonl", without("category"), r"more .*expected a value in `category`, got none"),
    "double id": (
        "prompts/gate.jsonl",
        lambda rows: [*rows, rows[0] | {"prompt": "another one"}],
        r"lines 1, 121 .*expected every `id` once, got 'gate",
    ),
    "double prompt": (
        "prompts/gate.jsonl",
        lambda rows: [*rows, rows[0] | {"id": "another"}],
        r"lines 1, 121 .*expected every `prompt` once",
    ),
    "kind": (
        "prompts/gate.jsonl",
        set_first(kind="<script>alert(1)</script>"),
        "`kind` to be one of harmful, wrapped, lookalike, got '<script>",
    ),
    "split": ("prompts/degrade.jsonl", set_first(split="train"), "line 1 .*expected `split` to be fit, got 'train'"),
    "pool": (
        "prompts/degrade.jsonl",
        set_first(pool="harmful"),
        "expected `pool` to be one of benign, blunt, compliance, identity, jailbreak, got 'harmful'",
    ),
    "pool elsewhere": ("prompts/safety.jsonl", set_first(pool="benign"), "expected `pool` to be empty here"),
    "pool without rows": (
        "prompts/degrade.jsonl",
        without("pool", "benign"),
        "expected rows of pool benign, which degrade.surrogates names, got none",
    ),
    "blank": ("tasks/topic.jsonl", set_first(response=" "), "expected text in `response`, got ' '"),
    "no behaviour": ("prompts/gate.jsonl", set_first(behaviour=""), "expected text in `behaviour`, got ''"),
    "long": ("prompts/degrade.jsonl", set_first(prompt="x" * 9000), "`prompt` of at most 8000 characters, got 9000"),
    "few rows": ("prompts/degrade.jsonl", lambda rows: rows[:5], r"expected at least 32 rows, got 5"),
    "few of a kind": ("prompts/gate.jsonl", without("kind", "wrapped"), "at least 32 rows of kind wrapped, got 0"),
    "no validation rows": (
        "prompts/safety.jsonl",
        without("split", "validation"),
        "at least 1 rows of kind lookalike or kind generic and split validation, got 0",
    ),
    "empty": ("prompts/gate.jsonl", lambda rows: [], "expected at least one prompt, got an empty set"),
    "not an object": ("prompts/gate.jsonl", lambda rows: [[1], *rows], "line 1: expected a JSON object, got list"),  # type: ignore[list-item]
    "unknown key": ("tasks/topic.jsonl", set_first(more=1), "expected the keys id, prompt, .*, got 'more' too"),
    "a number": ("tasks/topic.jsonl", set_first(response=5), "expected `response` to be text, got 5"),
    "a list": ("tasks/topic.jsonl", set_first(kind=["task"]), r"expected `kind` to be .*, got \['task'\]"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_set_that_breaks_a_rule_stops_the_run(sets: Path, tmp_path: Path, name: str) -> None:
    file, change, words = BROKEN[name]
    data = spoiled(sets, tmp_path / "data", file, change)
    with pytest.raises(FormatError, match=words) as caught:
        run(data, tmp_path / "out")
    assert file in str(caught.value)
    assert "Expect" not in str(caught.value), "no name of the library's classes"
    assert not (tmp_path / "out").exists()
    page = Path(caught.value.remedy.rpartition(" ")[2])
    assert "<script" not in page.read_text()
    assert all("<script" not in one.read_text() for one in page.parent.glob("*.html"))


def test_every_file_and_rule_is_named_at_once(sets: Path, tmp_path: Path) -> None:
    data = spoiled(sets, tmp_path / "data", "prompts/gate.jsonl", set_first(kind="attack", split="train"))
    change_rows(data / "tasks" / "topic.jsonl", set_first(response=""))
    change_rows(data / "prompts" / "safety.jsonl", lambda rows: [*rows, gate_row(sets, 1) | {"split": "fit"}])
    (data / "prompts" / "degrade.jsonl").unlink()
    with pytest.raises(FormatError, match="got 5 findings in 3 files") as caught:
        run(data, tmp_path / "out")
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 5
    for words in ("degrade.jsonl, got no such file", "`kind` to be", "`split` to be test", "unseen in fitting"):
        assert sum(words in line for line in lines) == 1, words


def test_one_mistake_in_every_row_is_one_finding(sets: Path, tmp_path: Path) -> None:
    data = spoiled(sets, tmp_path / "data", "prompts/gate.jsonl", lambda rows: [row | {"split": "x"} for row in rows])
    with pytest.raises(FormatError, match=r"lines 1, 2, 3, 4, 5 and 115 more .*got 'x'$") as caught:
        run(data, tmp_path / "out")
    assert "got 1 finding in 1 file:" in str(caught.value)


LINK = re.compile(r"""(?:href|src)=["']([^"']*)["']""")


def broken_links(folder: Path) -> list[str]:
    """Links of the pages in a folder that lead to no file or part of a page, or out of the folder."""
    found = []
    for page in folder.glob("*.html"):
        for link in LINK.findall(page.read_text()):
            name, _, part = link.partition("#")
            place = folder / name if name else page
            there = place.is_file() and place.parent == folder
            if not there or (part and not re.search(rf"""\bid=["']{re.escape(part)}["']""", place.read_text())):
                found.append(f"{page.name}: {link}")
    return found


def test_every_link_of_the_data_docs_resolves(sets: Path, tmp_path: Path) -> None:
    run(sets, tmp_path / "out")
    data = spoiled(sets, tmp_path / "data", "prompts/gate.jsonl", set_first(kind="attack"))
    with pytest.raises(FormatError) as caught:
        run(data, tmp_path / "none")
    for folder in (tmp_path / "out" / "docs", Path(caught.value.remedy.rpartition(" ")[2]).parent):
        index = (folder / "index.html").read_text()
        assert set(LINK.findall(index)) == {
            f"{name}.html" for name in ("degrade", "safety", "gate", "pool", "task-topic")
        }
        assert len(LINK.findall((folder / "gate.html").read_text())) > 5
        assert not broken_links(folder)


def test_a_task_set_that_is_added_changes_no_other_receipt(sets: Path, tmp_path: Path) -> None:
    run(sets, tmp_path / "before")
    data = Path(shutil.copytree(sets, tmp_path / "data"))
    (data / "tasks" / "new.jsonl").write_bytes((data / "tasks" / "topic.jsonl").read_bytes())
    run(data, tmp_path / "after")
    before, after = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "receipts").iterdir()}
        for name in ("before", "after")
    )
    assert set(after) - set(before) == {"task-new.json"}
    assert {name: after[name] for name in before} == before
    digests = {"gate": digest_file(sets / "prompts" / "gate.jsonl")}
    assert validated_receipt(tmp_path / "before", digests) == validated_receipt(tmp_path / "after", digests)
    change_rows(data / "prompts" / "gate.jsonl", lambda rows: rows[:-1])
    run(data, tmp_path / "other")
    changed = tmp_path / "other" / "receipts"
    assert {path.name for path in changed.iterdir() if path.read_bytes() != after[path.name]} == {"gate.json"}


def test_an_absent_set_is_an_error(sets: Path, tmp_path: Path) -> None:
    data = spoiled(sets, tmp_path / "data", "prompts/gate.jsonl", lambda rows: rows)
    (data / "prompts" / "gate.jsonl").unlink()
    with pytest.raises(ArtifactError, match="no such file"):
        run(data, tmp_path / "out")


def test_a_text_asked_twice_in_other_letters_stops_the_run(sets: Path, tmp_path: Path) -> None:
    def shouted(rows: Rows) -> Rows:
        return [*rows, rows[0] | {"id": "x", "behaviour": "y", "prompt": rows[0]["prompt"].upper() + " !!"}]

    with pytest.raises(ContaminatedSample, match=r"expected the text .* once, got it in .* and 'x'.*gate\.jsonl"):
        run(spoiled(sets, tmp_path / "data", "prompts/gate.jsonl", shouted), tmp_path / "out")


def gate_row(sets: Path, at: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((sets / "prompts" / "gate.jsonl").read_text().splitlines()[at])
    return found


@pytest.mark.parametrize("change", [{"id": "leak", "behaviour": "b"}, {"id": "leak", "prompt": "in other words ?"}])
@pytest.mark.parametrize("name", ["prompts/safety.jsonl", "prompts/degrade.jsonl", "prompts/pool.jsonl"])
def test_a_gate_prompt_among_the_fitted_stops_the_run(
    sets: Path, tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    pool = "benign" if "degrade" in name else ""
    leak = gate_row(sets) | {"split": "fit", "pool": pool, "response": "r"} | change
    with pytest.raises(ContaminatedSample, match=r"gate\.jsonl") as caught:
        run(spoiled(sets, tmp_path / "data", name, lambda rows: [*rows, leak]), tmp_path / "out")
    assert name in str(caught.value)


@pytest.mark.parametrize("change", [{"behaviour": "b"}, {"prompt": "in other words ?"}])
@pytest.mark.parametrize("leaks_from", ["safety", "pool"])
def test_a_held_out_prompt_among_those_of_the_pool_stops_the_run(
    sets: Path, tmp_path: Path, leaks_from: str, change: dict[str, Any]
) -> None:
    rows = map(json.loads, (sets / "prompts" / f"{leaks_from}.jsonl").read_text().splitlines())
    held = next(row for row in rows if row["split"] == "validation")
    leak = held | {"id": "leak", "split": "fit"} | change
    with pytest.raises(ContaminatedSample, match=r"expected held-out prompts .*pool\.jsonl"):
        run(spoiled(sets, tmp_path / "data", "prompts/pool.jsonl", lambda rows: [*rows, leak]), tmp_path / "out")


def test_a_workspace_without_a_pool_is_validated(sets: Path, tmp_path: Path) -> None:
    data = spoiled(sets, tmp_path / "data", "prompts/pool.jsonl", lambda rows: rows)
    (data / "prompts" / "pool.jsonl").unlink()
    run(data, tmp_path / "out")
    assert "pool" not in read_manifest(tmp_path / "out").inputs


def test_a_tasks_test_row_among_its_shots_stops_the_run(sets: Path, tmp_path: Path) -> None:
    def leak(rows: Rows) -> Rows:
        tested = next(row for row in rows if row["split"] == "test")
        return [*rows, tested | {"id": "leak", "split": "fit"}]

    with pytest.raises(ContaminatedSample, match=r"topic\.jsonl"):
        run(spoiled(sets, tmp_path / "data", "tasks/topic.jsonl", leak), tmp_path / "out")


def test_categories_are_known_where_the_parameters_name_them(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="`category` to be weather"):
        run(sets, tmp_path / "out", ValidateParams(categories=("weather",)))


def test_where_the_vector_is_fetched_there_may_be_no_set_to_degrade_with(sets: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(sets, tmp_path / "data"))
    (data / "prompts" / "degrade.jsonl").unlink()
    with pytest.raises(FormatError, match=r"degrade\.jsonl"):
        run(data, tmp_path / "out")
    made = validate(prompts=data / "prompts", tasks=data / "tasks", out=tmp_path / "out", degrades=False)
    assert "degrade" not in made.inputs
    assert "safety" in made.inputs
