"""RESULTS.md: every section states where its figures come from, by commands that exist."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.results import header, markdown, new_figure, publish, write

ROOT = Path(__file__).parents[2]
SECTIONS = re.findall(r"<!-- ([\w-]+) -->\n## .+\n\n(.+)\n", results.RESULTS.read_text(encoding="utf-8"))


def test_every_section_states_commit_date_command_and_machine() -> None:
    assert len(SECTIONS) == results.RESULTS.read_text(encoding="utf-8").count("\n## ") >= 6
    for name, first_line in SECTIONS:
        assert re.match(r"Measured at commits? [0-9a-f]{7,}.*, \d{4}-\d\d-\d\d, by `.+`, on .+\.$", first_line), name


def test_every_command_in_it_exists() -> None:
    text = results.RESULTS.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([\w-]+)`", text)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for module in set(re.findall(r"`python -m ([\w.]+)", text)):
        assert find_spec(module), module
    for path in set(re.findall(r"\]\(([^)]+)\)", text)):
        assert (ROOT / "benchmarks" / path).is_file(), path


def test_the_targets_of_the_makefile_run_modules_and_scripts_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for module in re.findall(r"python -m ((?:studies|examples|benchmarks|scripts)[\w.]*)", makefile):
        assert find_spec(module), module
    for script in re.findall(r"python (scripts/\S+)", makefile):
        assert (ROOT / script).is_file(), script


def test_a_section_replaces_its_last_version_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    figure = new_figure("time", 2.0, "s", command="make bench", goal="< 1 s", holds=False)
    publish("one", "One", header(figure), markdown([figure]))
    publish("two", "Two", header(figure), "text")
    first = results.RESULTS.read_text()
    assert "| time | 2 s | < 1 s | **no** |" in first
    assert f"Measured at commit {figure.commit}, {figure.date}, by `make bench`, on " in first
    publish("one", "One", header(figure), "changed")
    assert results.RESULTS.read_text() == first.replace(markdown([figure]), "changed")


def test_figures_are_written_beside_the_study_and_none_are_an_error(tmp_path: Path) -> None:
    figure = new_figure("time", 2.0, "s", command="make bench")
    write(tmp_path / "results.json", [figure])
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert (row["name"], row["value"], row["holds"]) == ("time", 2.0, None)
    assert all(row[key] for key in ("commit", "date", "machine"))
    with pytest.raises(ValueError, match="expected figures, got none"):
        write(tmp_path / "results.json", [])
