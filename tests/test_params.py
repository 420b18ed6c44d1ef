from pathlib import Path

import pytest

from safegene.errors import ParamsError
from safegene.params import Target, Targets, load_params, load_targets, load_yaml, save_targets

TEMPLATE = (Path(__file__).parent.parent / "params.yaml").read_text()


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
        ("rank: 4|rank: 4\n  energy: 0.9", "compress"),
        ("rank: 4|rnak: 4", "rnak"),
        ("aligned: tiny://aligned?seed=0|aligned: /somewhere", "family.aligned"),
        ("kind: grammar|kind: vibes", "evaluate.judge"),
        ("kind: grammar|kind: grammar, calibration: ../judge.json", "data/judges"),
        ("kind: grammar|kind: grammar, calibration: data/judges/../judge.json", "data/judges"),
    ],
)
def test_wrong_values_are_named(tmp_path, line, key):
    old, new = line.split("|")
    assert old in TEMPLATE
    with pytest.raises(ParamsError) as error:
        load_params(written(tmp_path, TEMPLATE.replace(old, new, 1)))
    assert key in error.value.message
    assert "params.yaml" in error.value.message


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
def test_yaml_beyond_plain_data_is_refused(tmp_path, text):
    with pytest.raises(ParamsError, match="plain YAML"):
        load_yaml(written(tmp_path, text))


def test_missing_file_names_the_remedy(tmp_path):
    with pytest.raises(ParamsError) as error:
        load_params(tmp_path / "params.yaml")
    assert "init" in error.value.remedy


def test_targets_survive_a_round_trip_and_leave_no_draft(tmp_path):
    path = tmp_path / "targets.yaml"
    targets = Targets(aligned="x", targets={"a": Target(source="file:///a", task="t", fingerprint="f")})
    save_targets(path, targets)
    assert load_targets(path) == targets
    assert [p.name for p in tmp_path.iterdir()] == ["targets.yaml"]


@pytest.mark.parametrize("name", ["../up", "A", "a.b", "", "a b", "-a", "x" * 64])
def test_a_targets_name_is_a_safe_file_name(tmp_path, name):
    path = tmp_path / "targets.yaml"
    path.write_text(f"targets:\n  {name!r}: {{source: 'file:///a', task: t, fingerprint: f}}\n")
    with pytest.raises(ParamsError):
        load_targets(path)
