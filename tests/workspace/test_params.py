from pathlib import Path

import pytest

from safegene.errors import ParamsError
from safegene.workspace.params import (
    CalibrateParams,
    Target,
    Targets,
    load_params,
    load_targets,
    save_targets,
)
from safegene.workspace.plain_yaml import load_yaml
from safegene.workspace.plugins import BASELINES

TEMPLATE = (Path(__file__).parents[2] / "params.yaml").read_text()


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("margin_hrr: 0.05|margin_hrr: 1.0e+9", "gate.margin_hrr"),
        ("margin_hrr: 0.05|margin_hrr: 0", "gate.margin_hrr"),
        ("alpha: 0.05|alpha: 0.9", "gate.alpha"),
        ("\n  rank: 64|\n  rank: 64\n  energy: 0.9", "compress"),
        ("\n  rank: 64|\n  rnak: 64", "compress.rnak"),
        ("granularity: core|granularity: column", "calibrate.granularity"),
        ("max_extra: 0.01|max_extra: 0", "calibrate.max_extra"),
        ("max_extra: 0.01|max_extra: 1.5", "calibrate.max_extra"),
        ("max_extra: 0.01|baseline: {method: vibes}", "calibrate.baseline"),
        (
            "max_extra: 0.01|baseline: {method: vibes}",
            "expected a 'method' out of enchtable, finetune, one_shot",
        ),
        ("max_extra: 0.01|baseline: {gamma: 1}", "'method'"),
        ("max_extra: 0.01|baseline: resta", "calibrate.baseline"),
        ("max_extra: 0.01|baseline: {method: resta, gama: 1}", "calibrate.baseline.resta.gama"),
        ("max_extra: 0.01|baseline: {method: safelora, number: 3}", "exactly one of threshold and number"),
        ("aligned: tiny://aligned?seed=0|aligned: /somewhere", "family.aligned"),
        ("kind: grammar|kind: vibes", "evaluate.judge"),
        ("kind: grammar|kind: grammar, calibration: ../judge.json", "data/judges"),
        ("kind: grammar|kind: grammar, calibration: data/judges/../judge.json", "data/judges"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, line: str, key: str) -> None:
    old, new = line.split("|")
    assert old in TEMPLATE
    with pytest.raises(ParamsError) as error:
        load_params(written(tmp_path, TEMPLATE.replace(old, new, 1)))
    assert key in error.value.message
    assert "params.yaml" in error.value.message


@pytest.mark.parametrize("method", sorted(BASELINES))
def test_every_baseline_is_chosen_by_its_name(tmp_path: Path, method: str) -> None:
    """With its own defaults, beside keys of ours that it does not use."""
    text = TEMPLATE.replace("max_extra: 0.01", f"max_extra: 0.01\n  baseline: {{method: {method}}}", 1)
    calibrate = load_params(written(tmp_path, text)).calibrate
    assert calibrate.baseline is not None
    assert calibrate.baseline.method == method
    assert CalibrateParams.model_validate(calibrate.model_dump(mode="json")) == calibrate


def test_the_template_repairs_by_ours_and_adds_a_hundredth(tmp_path: Path) -> None:
    calibrate = load_params(written(tmp_path, TEMPLATE)).calibrate
    assert calibrate == CalibrateParams()
    assert (calibrate.baseline, calibrate.granularity, calibrate.max_extra) == (None, "core", 0.01)


@pytest.mark.parametrize(
    "text",
    [
        "a: .nan",
        "a: .inf",
        "a: 1\na: 2",
        "a: &x [1]\nb: *x",
        "a: !!python/object/apply:os.system ['true']",
        "a: [1",
        "a: \x00",
    ],
)
def test_yaml_beyond_plain_data_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ParamsError, match="plain YAML"):
        load_yaml(written(tmp_path, text))


def test_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as error:
        load_params(tmp_path / "params.yaml")
    assert "init" in error.value.remedy


def test_targets_survive_a_round_trip_and_leave_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "targets.yaml"
    targets = Targets(aligned="x", targets={"a": Target(source="file:///a", task="t", fingerprint="f")})
    save_targets(path, targets)
    assert load_targets(path) == targets
    assert [p.name for p in tmp_path.iterdir()] == ["targets.yaml"]


@pytest.mark.parametrize("name", ["../up", "A", "a.b", "", "a b", "-a", "x" * 64])
def test_a_targets_name_is_a_safe_file_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "targets.yaml"
    path.write_text(f"targets:\n  {name!r}: {{source: 'file:///a', task: t, fingerprint: f}}\n")
    with pytest.raises(ParamsError):
        load_targets(path)
